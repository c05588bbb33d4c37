"""What the folder or repository of a model states of it."""

import contextlib
from typing import Any

from carl_hf.encoders.embedding import StatedPooling
from carl_hf.encoders.hub_files import UnreachableError, find_file, optional_json
from carl_hf.encoders.layout import Pooling
from carl_hf.encoders.packaged import resolve_encoder

EXPORT_RECORD = "carl_export.json"
"""The file by which an export of this package is known."""


def stated_pooling(resolved: str) -> StatedPooling | None:
    """Pooling that a sentence-transformers folder or repository states; "other" with modules beyond pooling, or with a
    prompt before every text; None where it is of another kind.

    Args:
        resolved: a folder or Hub id, as from [`resolve_encoder`].

    Raises:
        OSError: if there is no such model. ValueError: if the Hub could not be asked, or the file is missing in which
            the pooling stands.
    """
    modules = optional_json(resolved, "modules.json")
    if modules is None:
        return None
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    settings = optional_json(resolved, "config_sentence_transformers.json") or {}
    prompt = (settings.get("prompts") or {}).get(settings.get("default_prompt_name"))
    if prompt or kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
        return "other"
    state = optional_json(resolved, f"{modules[1]['path']}/config.json")
    if state is None:  # an export of this package states it twice
        state = {"pooling_mode": (optional_json(resolved, EXPORT_RECORD) or {}).get("pooling")}
        if state["pooling_mode"] is None:
            raise ValueError(f"{resolved} lacks {modules[1]['path']}/config.json, which states its pooling: copy or "
                             "download it whole, with its folders.")  # fmt: skip
    flags = (key.removeprefix("pooling_mode_") for key, value in state.items() if value is True)
    # sentence-transformers up to 5 writes a flag for each mode, version 6 one name
    modes = [flag for flag in flags if not flag.startswith("include_")] or [state.get("pooling_mode")]
    known: dict[Any, StatedPooling] = {"cls_token": "cls", "mean_tokens": "mean", "cls": "cls", "mean": "mean"}
    return known.get(modes[0], "other") if len(modes) == 1 else "other"


def exported_pooling(name: str) -> Pooling | None:
    """The pooling that an encoder was exported for by this package; None of any other model."""
    resolved, stated = resolve_encoder(name), None
    with contextlib.suppress(OSError):  # there is no such model, which loading it says
        stated = stated_pooling(resolved) if find_file(resolved, EXPORT_RECORD) else None
    return None if stated == "other" else stated


def reading_length(name: str) -> int:
    """How many tokens of a text a model reads by default: as many as it was exported for by this package; 128 for any
    other model.

    Raises:
        ValueError: if the record of the export is damaged, or the Hub could not be asked for it.
    """
    try:
        record = optional_json(resolve_encoder(name), EXPORT_RECORD)
        return 128 if record is None else int(record["max_length"])
    except UnreachableError:
        raise
    except OSError:  # there is no such model, which loading it says
        return 128
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name}: {EXPORT_RECORD} is damaged. Export the model again.") from error
