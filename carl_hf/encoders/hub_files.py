"""Files of a model, in its folder or on the Hub, and what the Hub's errors mean."""

import functools
import json
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from carl_hf.utils.suggestions import first_line

logger = logging.getLogger(__name__)


class UnreachableError(ValueError):
    """The Hub did not answer whether it has a model, or a file of one."""


def optional_json(resolved: str, file: str) -> Any:
    """Content of a model's JSON file; None if it has none. Raises as [`find_file`]."""
    path = find_file(resolved, file)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def find_file(resolved: str, file: str) -> str | None:
    """Where a file of a model lies; None if it has none. With HF_HUB_OFFLINE also, with a warning, where it is not
    known whether a model that was downloaded has that file.

    Args:
        resolved: a folder or Hub id, as from [`carl_hf.encoders.packaged.resolve_encoder`].

    Raises:
        OSError: if there is no such model.
        UnreachableError: if the Hub could not be asked, or does not let this user in.
    """
    if Path(resolved).is_dir():
        path = Path(resolved, file)
        return str(path) if path.is_file() else None
    try:
        return hf_hub_download(resolved, file)
    except HFValidationError as error:
        raise OSError(f"{resolved} is no folder, and no Hub id: {first_line(error)}") from error
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        answer = hub_answer(error, resolved)
        if answer is None:
            raise
        cached = try_to_load_from_cache(resolved, file)
        if cached is not None:  # a file, or that the Hub has said that there is none
            return cached if isinstance(cached, str) else None
        if constants.HF_HUB_OFFLINE:
            if isinstance(try_to_load_from_cache(resolved, "config.json"), str):
                _say_unknown(resolved)
            return None
        if not answer[1]:
            raise OSError(answer[0]) from error
        raise UnreachableError(f"{resolved}, {file}: {answer[0]}") from error


def commit_of(resolved: str) -> str | None:
    """The commit that a model's configuration on the Hub is read from; None of a folder. Raises as [`find_file`]."""
    path = None if Path(resolved).is_dir() else find_file(resolved, "config.json")
    return None if path is None else Path(path).parent.name


@functools.cache
def _say_unknown(resolved: str) -> None:
    logger.warning(
        "HF_HUB_OFFLINE is set, and it is not known whether %s states a pooling, a length of texts or its training: "
        "it is read as a model that does not. An export of carl_hf is to be downloaded whole: hf download %s",
        resolved, resolved,
    )  # fmt: skip


def is_of_the_client(error: BaseException) -> bool:
    """Whether the Hub's client raised it: httpx or httpx2, by the version of huggingface_hub."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2")


def hub_answer(error: BaseException | None, resolved: str) -> tuple[str, bool] | None:
    """What an error of loading the model `resolved`, or one behind it, says of the Hub.

    Returns:
        why it gave no model, and what to do; and whether that leaves open if it has one: it could not be asked, or
        does not let this user in. None of an error that is not the Hub's.
    """
    while error is not None:
        if isinstance(error, GatedRepoError):
            return "the Hub's model is gated: ask for it on its page, and log in (hf auth login).", True
        if isinstance(error, RepositoryNotFoundError):
            return "the Hub gave no such model (a private one: hf auth login).", False
        if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
            return f"HF_HUB_OFFLINE is set: once with a network, hf download {resolved}.", False
        if isinstance(error, HfHubHTTPError):
            if not isinstance(error, EntryNotFoundError | RevisionNotFoundError):
                said = error.server_message or first_line(error)
                if error.response.status_code in (401, 403):
                    return f"the Hub refuses ({said}): check HF_TOKEN, or hf auth login.", True
                return _not_asked(said), True
        elif is_of_the_client(error):
            return _not_asked(first_line(error)), True
        elif isinstance(error, LocalEntryNotFoundError) and not isinstance(error.__cause__, HfHubHTTPError):
            return _not_asked(first_line(error.__cause__ or error)), True
        error = error.__cause__ or error.__context__
    return None


def _not_asked(reason: str) -> str:
    return f"the Hub could not be asked ({reason}): try again, or set HF_HUB_OFFLINE=1 to take what was downloaded."
