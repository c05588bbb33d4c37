"""Other models to measure beside one's own, named in a YAML file."""

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from carl_hf.encoders.embedding import ReadPooling
from carl_hf.utils.yaml_files import read_yaml

_KEYS = ("model", "pooling", "note")


@dataclass(frozen=True)
class Comparator:
    """A model to measure.

    Args:
        name: shown in results. model: Hub id or folder; None where none is known, `note` then says what to give.
        note: why this pooling, or where the weights are.
    """

    name: str
    model: str | None
    pooling: ReadPooling
    note: str


def read_comparators(path: str | Path) -> dict[str, Comparator]:
    """Reads a YAML file of entries `NAME: {model: HUB_ID_OR_FOLDER, pooling: cls | mean | pooler, note: ...}`.

    `model: null` stands for a model that has to be given by the user; pooling (default cls) and note may be left out.

    Raises:
        ValueError: if the file cannot be read, holds no such entries, or an entry has an unknown key or pooling or no
            key `model`; it names file and entry.
    """
    path = Path(path)
    content = read_yaml(path, "the comparators")
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} must hold entries such as 'BERT: {{model: google-bert/bert-base-uncased}}'.")
    found = {}
    for name, entry in content.items():
        try:
            found[str(name)] = _comparator(str(name), entry)
        except ValueError as error:
            raise ValueError(f"{path}, entry {reprlib.repr(name)}: {error}") from None
    return found


def _comparator(name: str, entry: Any) -> Comparator:
    if not isinstance(entry, dict):
        raise ValueError(f"must be a mapping with the keys {', '.join(_KEYS)}, got {reprlib.repr(entry)}.")
    unknown = [key for key in entry if key not in _KEYS]
    if unknown:
        raise ValueError(f"unknown key {reprlib.repr(unknown[0])}; the keys are {', '.join(_KEYS)}.")
    if "model" not in entry:
        raise ValueError("the key 'model' is missing; give a Hub id or a folder, or null if there is none.")
    model, pooling, note = entry["model"], entry.get("pooling", "cls"), entry.get("note") or ""
    if model is not None and (not isinstance(model, str) or not model.strip()):
        raise ValueError(f"model is {reprlib.repr(model)}; give a Hub id or a folder in quotes, or null.")
    if pooling not in get_args(ReadPooling):
        raise ValueError(f"unknown pooling {reprlib.repr(pooling)}; choose {', '.join(get_args(ReadPooling))}.")
    if model is None and not note:
        raise ValueError("model is null; say in 'note' where the weights can be had, or give a model.")
    return Comparator(name, model, pooling, " ".join(str(note).split()))
