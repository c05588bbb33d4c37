"""Files of a model, in its folder or on the Hub."""

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
    """Where a file of a model lies; None if it has none. With HF_HUB_OFFLINE also, with a warning, where a model was
    downloaded without knowing whether it has that file.

    Args:
        resolved: a folder or Hub id, as from [`carl_hf.encoders.packaged.resolve_encoder`].

    Raises:
        OSError: if there is no such model, or none that this user may see.
        UnreachableError: if the Hub could not be asked.
    """
    if Path(resolved).is_dir():
        path = Path(resolved, file)
        return str(path) if path.is_file() else None
    try:
        return hf_hub_download(resolved, file)
    except HFValidationError as error:
        raise OSError(f"{resolved} is no folder, and no Hub id: {first_line(error)}") from error
    except LocalEntryNotFoundError as error:
        cached = try_to_load_from_cache(resolved, file)
        if cached is not None and not isinstance(cached, str):  # the Hub has said that there is none
            return None
        if constants.HF_HUB_OFFLINE:
            if isinstance(try_to_load_from_cache(resolved, "config.json"), str):
                _say_unknown(resolved)
            return None
        raise UnreachableError(
            f"{resolved}: the Hub could not be asked for {file} ({first_line(error.__cause__ or error)}): try again, "
            "or set HF_HUB_OFFLINE=1 to take what was downloaded."
        ) from error
    except EntryNotFoundError:
        return None


@functools.cache
def _say_unknown(resolved: str) -> None:
    logger.warning(
        "%s was not downloaded whole, and HF_HUB_OFFLINE is set: what is not there of its pooling, its length of "
        "texts and its training counts as not stated. Once with a network: hf download %s", resolved, resolved,
    )  # fmt: skip


def hub_answer(error: BaseException | None) -> tuple[str, bool] | None:
    """What an error of loading, or one behind it, says of the Hub.

    Returns:
        why it gave no model, and what to do; and whether that leaves open if it has one: it could not be asked, or
        lets only some users in. None of an error that is not the Hub's.
    """
    while error is not None:
        if isinstance(error, GatedRepoError):
            return "its owners let in those alone who ask for it on its page, and log in (hf auth login).", True
        if isinstance(error, RepositoryNotFoundError):
            return "there is no such folder, and the Hub gave no such model (a private one: hf auth login).", False
        if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
            return "there is no such folder, and HF_HUB_OFFLINE is set: once with a network, hf download.", False
        if isinstance(error, LocalEntryNotFoundError):
            reason = first_line(error.__cause__ or error)
        elif isinstance(error, HfHubHTTPError) and not isinstance(error, EntryNotFoundError | RevisionNotFoundError):
            reason = first_line(error)
        else:
            error = error.__cause__ or error.__context__
            continue
        return (
            f"there is no such folder, and the Hub could not be asked ({reason}): try again, or set HF_HUB_OFFLINE=1 "
            "to take what was downloaded.",
            True,
        )
    return None
