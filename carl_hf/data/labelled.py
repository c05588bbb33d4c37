"""The corpora of the evaluation, read from a folder with local copies.

Every file is UTF-8; docs/evaluation.md says where each comes from and which columns it must have.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from carl_hf.data.bad_rows import BadRow, name_fault, number_of, refuse, text_fault
from carl_hf.data.corpora import CORPORA, read_corpus
from carl_hf.data.files import REMEDY, Table, read_table
from carl_hf.data.loading import check_table, good_rows, normalized, read_source, renamed
from carl_hf.data.splits import split_names, text_key, with_validation, without_overlap
from carl_hf.utils.suggestions import listed

EKMAN_SIX = ("anger", "disgust", "fear", "joy", "sadness", "surprise")


class MissingCorpus(ValueError):
    """A corpus that is not there: its task is skipped, unless the user wants that to be an error."""


@dataclass(frozen=True)
class VaCorpus:
    """Texts with numbers: `labels` (N, K) in [-1, 1] for the K `dimensions`; `split` (N,) or None."""

    texts: list[str]
    labels: np.ndarray
    dimensions: tuple[str, ...]
    split: np.ndarray | None

    def rows(self, split: str) -> np.ndarray:
        assert self.split is not None
        return np.flatnonzero(self.split == split)


@dataclass(frozen=True)
class ClassCorpus:
    """Texts with classes: `labels` (N,) class indices, or (N, C) booleans where a text may have any number of them;
    `split` (N,) or None; the rows of its file that were skipped."""

    texts: list[str]
    labels: np.ndarray
    classes: list[str]
    split: np.ndarray | None
    skipped: Sequence[BadRow] = ()

    @property
    def multi_label(self) -> bool:
        """Whether a text may have more than one class, or none."""
        return self.labels.ndim == 2

    def part(self, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
        return [self.texts[i] for i in rows], self.labels[rows]


def read_va(name: str, data_dir: str | Path | None) -> VaCorpus:
    """A corpus of [`carl_hf.data.corpora`] with valence, arousal and, where it has it, dominance, each normalised from
    the corpus's scale to [-1, 1] (Eq 12). Training texts that also stand in another split are left out.

    Raises:
        MissingCorpus: if it is not in `data_dir` and cannot be fetched. ValueError: for an empty text or a label that
            is no number in the corpus's scale.
    """
    spec = CORPORA[name]
    try:
        frame = read_corpus(spec, data_dir)
    except ValueError as error:
        if data_dir is not None and any((Path(data_dir) / folder).exists() for folder in spec.folder):
            raise  # it is there, and wrong
        raise MissingCorpus(str(error)) from error
    dimensions = tuple(d for d in ("valence", "arousal", "dominance") if d in frame)
    frame = normalized(check_table(frame, dimensions, spec.scale, name, spec), dimensions, spec.scale)
    labels = frame[list(dimensions)].to_numpy(dtype=float)
    texts, split = frame["text"].tolist(), split_names(frame) if "split" in frame else None
    keep = _kept_rows(texts, split, name)
    if split is not None:
        split = with_validation(split[keep])
    return VaCorpus([texts[i] for i in keep], labels[keep], dimensions, split)


_POLARITY = {
    "mr": ("mr/mr.csv", ("negative", "positive")),
    "cr": ("cr/cr.csv", ("negative", "positive")),
    "sst5": ("sst5/sst5.csv", ("very negative", "negative", "neutral", "positive", "very positive")),
    "imdb": ("imdb/imdb.parquet", ("negative", "positive")),
}
POLARITY = tuple(_POLARITY)


def read_polarity(name: str, data_dir: str | Path | None) -> ClassCorpus:
    """MR, CR, SST5 or IMDB: `text`, `label` (0 the most negative), and `split` for SST5 and IMDB.

    Raises:
        MissingCorpus: if its file is not there. ValueError: for missing columns or a label that is no class.
    """
    file, classes = _POLARITY[name]
    path = _find(file, data_dir)
    frame = _table(path, ("text", "label", "split") if name in ("sst5", "imdb") else ("text", "label"))
    labels = np.array([number_of(cell) for cell in frame["label"]])
    bad = ~np.isin(labels, range(len(classes)))
    if bad.any():
        row = int(bad.argmax())
        held = reprlib.repr(frame["label"].iloc[row])
        raise ValueError(f"{path}, row {row + 1}: label {held} is none of 0 to {len(classes) - 1}.")
    return _class_corpus(frame, labels.astype(int), list(classes), path)


EMOTION = {
    "goemotions-six": "goemotions/goemotions.parquet",
    "goemotions-ekman": "goemotions/goemotions.parquet",
    "goemotions-28": "goemotions/goemotions.parquet",
    "isear": "isear/isear.csv",
    "emolit12": "emolit12/emolit12.csv",
}


def read_emotion(
    name: str, data_dir: str | Path | None, columns: Mapping[str, str] | None = None, *, skip_bad_rows: bool = False
) -> ClassCorpus:
    """GoEmotions (six raw labels, texts with one label; Ekman's six and neutral, or all 28 labels, several a text),
    ISEAR, EmoLit-12, the demo corpus, or a file of one's own or a Hub data set with the columns `text`, `label` and
    maybe `split`.

    Args:
        columns: names of the columns in a file or Hub data set, such as `{"text": "sentence", "label": "emotion"}`.
        skip_bad_rows: leave out the rows of a file or Hub data set that cannot be read, or whose text, label or split
            is empty or of a wrong type, log their number and keep them as `skipped`, in place of refusing the file.

    Raises:
        MissingCorpus: if a corpus's file is not there. ValueError: for an unknown source, missing columns, a bad row,
            or a class with too few texts.
    """
    if name == "demo":
        return _single_label(read_corpus(CORPORA["demo"], None), "demo")
    if name not in EMOTION:
        path = Path(name)
        if not path.suffix and name.count("/") != 1 and not path.exists():
            raise ValueError(
                f"Unknown emotion corpus {name!r}: choose demo, {', '.join(EMOTION)}, a file with the columns text "
                "and label, or the id of a Hub data set (owner/name)."
            )
        table = read_source(name)
        table = _checked(Table(renamed(table, columns or {}, name, ("text", "label")), table.bad))
        corpus = _single_label(good_rows(table, name, skip_bad_rows), path)
        return replace(corpus, skipped=table.bad)
    path = _find(EMOTION[name], data_dir)
    if not name.startswith("goemotions"):
        return _single_label(_table(path, ("text", "label")), path)
    column = "ekman" if name == "goemotions-ekman" else "label"
    frame = _table(path, ("text", "split", column))
    names = frame[column].map(lambda cell: [label.strip() for label in cell.split(",") if label.strip()])
    if name == "goemotions-six":
        chosen = names.map(lambda labels: len(labels) == 1 and labels[0] in EKMAN_SIX).to_numpy(dtype=bool)
        return _single_label(frame[chosen].reset_index(drop=True), path, classes=EKMAN_SIX)
    classes = sorted({label for labels in names for label in labels})
    number = {label: i for i, label in enumerate(classes)}
    table = np.zeros((len(frame), len(classes)), dtype=bool)
    for row, labels in enumerate(names):
        table[row, [number[label] for label in labels]] = True
    return _class_corpus(frame, table, classes, path)


def read_sts(data_dir: str | Path | None) -> tuple[list[str], list[str], np.ndarray]:
    """Test part of the STS benchmark: `text1`, `text2`, and their similarity from 0 to 5.

    Raises:
        MissingCorpus: if its file is not there. ValueError: for missing columns or a score that is no number.
    """
    path = _find("stsb/stsb_test.csv", data_dir)
    frame = _table(path, ("text1", "text2", "score"))
    scores = np.array([number_of(cell) for cell in frame["score"]])
    if not np.isfinite(scores).all():
        raise ValueError(f"{path}, row {int((~np.isfinite(scores)).argmax()) + 1}: the score is no number.")
    return frame["text1"].tolist(), frame["text2"].tolist(), scores


def _find(file: str, data_dir: str | Path | None) -> Path:
    if data_dir is None:
        raise MissingCorpus(f"needs {file} in the folder that --data_dir names.")
    path = Path(data_dir) / file
    if not path.is_file():
        raise MissingCorpus(f"{path} does not exist.")
    return path


def _table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The table of a known corpus, its texts and names as strings, none of them empty."""
    frame = read_table(path)
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(map(repr, missing))}; it has {listed(frame)}.")
    if len(frame) == 0:
        raise ValueError(f"{path} has no rows.")
    frame.index += 1
    table = _checked(Table(frame, []))
    refuse(path, table.bad, REMEDY)
    return table.frame.reset_index(drop=True)


_CHECKS = {"text": text_fault, "text1": text_fault, "text2": text_fault, "label": name_fault, "ekman": name_fault,
           "split": name_fault}  # fmt: skip


def _checked(table: Table) -> Table:
    """The table, its texts and names as strings; rows in which one is empty or of a wrong type are bad ones."""
    frame, faults = table.frame.copy(), {}
    for column in (c for c in _CHECKS if c in frame):
        for number, cell in frame[column].items():
            fault = _CHECKS[column](column, cell)
            if fault is not None:
                faults.setdefault(number, BadRow(number, *fault))
        frame[column] = frame[column].astype(str)
    bad = sorted([*table.bad, *faults.values()], key=lambda row: row.number)
    return Table(frame.drop(index=list(faults)), bad)


def _single_label(frame: pd.DataFrame, path: Path | str, classes: Sequence[str] = ()) -> ClassCorpus:
    labels = frame["label"].astype(str).str.strip()
    classes = list(classes) or sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(
            f"{path}: all texts have the label {reprlib.repr(classes[0])}; classification needs at least two."
        )
    number = {label: i for i, label in enumerate(classes)}
    return _class_corpus(frame, labels.map(number).to_numpy(dtype=int), classes, path)


def _class_corpus(frame: pd.DataFrame, labels: np.ndarray, classes: list[str], path: Path | str) -> ClassCorpus:
    """The corpus without training texts that stand in its other splits; refused if a class cannot be measured."""
    texts, split = frame["text"].tolist(), split_names(frame) if "split" in frame else None
    keep = _kept_rows(texts, split, path)
    texts, labels, split = [texts[i] for i in keep], labels[keep], None if split is None else split[keep]
    parts = {"the file": labels} if split is None else {f"the {p} part": labels[split == p] for p in ("train", "test")}
    needed = 3 if split is None else 1  # of the whole file: one each for training, validation and test
    for where, rows in parts.items():
        counts = rows.sum(0) if rows.ndim == 2 else np.bincount(rows, minlength=len(classes))
        rare = int(counts.argmin())
        if counts[rare] < needed:
            raise ValueError(
                f"{path}: class {reprlib.repr(classes[rare])} has {counts[rare]} example(s) in {where}, and needs "
                f"{needed}. Remove the class or merge it with another."
            )
    return ClassCorpus(texts, labels, classes, split)


def _kept_rows(texts: list[str], split: np.ndarray | None, name: Path | str) -> np.ndarray:
    """Rows of one part only; without splits, all but repeated texts.

    Raises:
        ValueError: if the column `split` has no training or no test rows.
    """
    if split is None:
        first = {text_key(text): row for row, text in reversed(list(enumerate(texts)))}
        return np.array(sorted(first.values()), dtype=int)
    keep = np.flatnonzero(without_overlap(texts, split))
    missing = {"train", "test"} - set(split[keep])
    if missing:
        raise ValueError(
            f"{name}: column 'split' has no rows {' and '.join(map(repr, sorted(missing)))}; it has "
            f"{listed(sorted(set(split)))}."
        )
    return keep
