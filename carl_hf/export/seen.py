"""What the record of a model says of the texts that it was trained on."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from carl_hf.data.corpora import CORPORA, is_copy
from carl_hf.data.labelled import EMOTION, ClassCorpus
from carl_hf.export.folder import read_record, record_of
from carl_hf.export.provenance import (
    file_digest,
    is_file_name,
    known_by_content,
    known_digests,
    with_head,
    without_configuration,
)

_GOEMOTIONS = [name for name in EMOTION if name.startswith("goemotions")]


def trained_on(model: str, emotion: Mapping[str, ClassCorpus] | None = None) -> list[str]:
    """The corpora whose measured texts the encoder was trained on, according to its export record: a valence-arousal
    corpus or file without splits, or any corpus if training included test rows.

    Args:
        emotion: file -> what is measured of it: a file of training is recognised by its content.
    """
    origin = _origin(model)
    seen = [Path(file).stem for file, corpus in (emotion or {}).items() if has_seen(model, file, corpus)]
    names = [name for name in origin["corpora"] if not known_by_content(origin, name)]
    return list(dict.fromkeys([*_seen(names, test_rows=origin["trained_on_test_rows"]), *seen]))


def has_seen(model: str, source: str, corpus: ClassCorpus) -> bool:
    """Whether the encoder was trained on test texts of a corpus with class labels: a file is recognised by its
    content, others by their names."""
    origin = _origin(model)
    if not Path(source).is_file():
        seen = _seen(origin["corpora"], test_rows=origin["trained_on_test_rows"])
        if "/" in source and corpus.split is None and "partly" in origin:  # a Hub data set without splits
            seen += [name for name in origin["corpora"] if name not in origin["partly"].values()]
        return without_configuration(source) in map(without_configuration, seen)
    whole = origin["trained_on_test_rows"] or corpus.split is None
    return whole and file_digest(source) in origin.get("files", {}).values()


def has_seen_measured(model: str, corpora: Iterable[str]) -> bool:
    """Whether the encoder was trained on test rows of one of these corpora with valence and arousal."""
    origin, seen = _origin(model), trained_on(model)
    digests = {*origin.get("files", {}).values()} if origin["trained_on_test_rows"] else set()
    return any(name in seen or (Path(name).is_file() and file_digest(name) in digests) for name in corpora)


def _origin(model: str) -> Mapping[str, Any]:
    """What its record says of the training of an encoder: of an export, with a head that it was trained with, or of a
    checkpoint of pretrain or finetune."""
    record, folder = record_of(model), Path(model)
    if record is None and (folder / "checkpoint.json").is_file():
        run = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8")).get("run") or {}
        if {"corpora", "trained_on_test_rows"} <= set(run):
            return run
    if record is None and folder.name.startswith("checkpoint-"):
        record = read_record(folder.parent / "encoder")  # of the same run
    origin = (record or {}).get("provenance") or {"corpora": [], "trained_on_test_rows": False}
    return with_head(origin, (record or {}).get("head"))


def head_trained_on(model: str) -> list[str]:
    """The same for the head of an exported regressor."""
    record = record_of(model) or {}
    test_rows = (record.get("provenance") or {}).get("trained_on_test_rows", False)
    return _seen((record.get("head") or {}).get("corpora", []), test_rows=test_rows)


def _seen(corpora: Sequence[str], *, test_rows: bool) -> list[str]:
    names = [name for name in corpora if test_rows or name in ("facebook", "iemocap", "emotales")]
    # GoEmotions is one file under three names; a file is called after its stem in an evaluation
    if any(name in _GOEMOTIONS for name in names):
        names += _GOEMOTIONS
    return list(dict.fromkeys(Path(name).stem if is_file_name(name) else name for name in names))


def was_seen(labels: str, record: Mapping[str, Any]) -> bool:
    """Whether the model of this record, its head or its encoder, was trained on any part of a file or Hub data set."""
    origin, head = record.get("provenance") or {}, record.get("head") or {}
    corpora = {*origin.get("corpora", ()), *head.get("corpora", ())}
    if not Path(labels).is_file():
        return without_configuration(labels) in set(map(without_configuration, corpora))
    if file_digest(labels) in known_digests(origin, head):
        return True
    return any(is_copy(labels, CORPORA[name]) for name in corpora & set(CORPORA))
