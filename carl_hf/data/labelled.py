"""The corpora of the evaluation, read from a folder with local copies.

Every file is UTF-8; docs/evaluation.md says where each comes from and which columns it must have.
"""

import logging
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from carl_hf.data.bad_rows import (
    BadRow,
    Number,
    check_table,
    class_name,
    class_names,
    corpus_text,
    parse_rows,
    split_name,
)
from carl_hf.data.corpora import CORPORA, DIMENSIONS, MissingCorpus, read_corpus
from carl_hf.data.files import read_table
from carl_hf.data.loading import good_rows, normalized, read_source
from carl_hf.data.mixing import warn_of_similar_names
from carl_hf.data.splits import SPLITS, text_key, with_validation, without_overlap
from carl_hf.utils.suggestions import listed

logger = logging.getLogger(__name__)

EKMAN_SIX = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
_RULES = {"text": corpus_text, "label": class_name, "ekman": class_name, "split": split_name}


@dataclass(frozen=True)
class VaCorpus:
    """Texts with VA labels: `labels` (N, K) in [-1, 1] for the K `dimensions`; `split` (N,) or None."""

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
    `split` (N,) of train, validation, test, or none for a text that takes no part; or None; the rows of its file that
    were skipped.

    Raises:
        ValueError: unless each text has labels and, where there are splits, one of them; for an unknown class.
    """

    texts: list[str]
    labels: np.ndarray
    classes: list[str]
    split: np.ndarray | None
    skipped: Sequence[BadRow] = ()

    def __post_init__(self):
        for name in ("labels", "split"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, values := np.asarray(given))
                if len(values) != len(self.texts):
                    raise ValueError(f"{len(self.texts)} texts have {len(values)} {name}: give one for each.")
        flat, table = self.labels.ndim == 1, self.labels.shape[1:] == (len(self.classes),)
        if not (table or (flat and len(self.labels) and self.labels.dtype.kind in "iu")):
            raise ValueError("labels are numbers of the classes, (N,) integers, or a table of (N, classes) booleans.")
        if not flat:
            if not np.isin(self.labels, (0, 1)).all():
                raise ValueError("labels: a table of (N, classes) booleans holds something else than 0 and 1.")
            object.__setattr__(self, "labels", self.labels.astype(bool))
        if flat and not (0 <= self.labels.min() and self.labels.max() < len(self.classes)):
            raise ValueError(
                f"labels are 0 to {len(self.classes) - 1}, got {self.labels.min()} to {self.labels.max()}."
            )
        if self.split is not None and (other := sorted({*self.split} - {*SPLITS, "none"})):
            raise ValueError(f"A split is {listed(SPLITS)}, got '{other[0]}'.")

    @property
    def multi_label(self) -> bool:
        """Whether a text may have more than one class, or none."""
        return self.labels.ndim == 2

    def part(self, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
        return [self.texts[i] for i in rows], self.labels[rows]


def read_va(name: str, data_dir: str | Path | None) -> VaCorpus:
    """A corpus of [`carl_hf.data.corpora`] with valence, arousal and, where it has it, dominance, each normalised from
    the corpus's scale to [-1, 1] (Eq 12). Training texts that are also in another split are left out. Without a
    validation split, a tenth of the training split is it.

    Raises:
        MissingCorpus: if it is not in `data_dir` and cannot be fetched. ValueError: for a missing column or a bad row.
    """
    frame = read_corpus(CORPORA[name], data_dir)
    dimensions = tuple(d for d in DIMENSIONS if d in frame)
    labels = normalized(frame, dimensions, CORPORA[name].scale)[list(dimensions)].to_numpy(dtype=float)
    texts, split, keep = _without_repeats(frame, name)
    return VaCorpus(texts, labels[keep], dimensions, None if split is None else with_validation(split, texts))


_POLARITY = {
    "mr": ("mr/mr.csv", ("negative", "positive")),
    "cr": ("cr/cr.csv", ("negative", "positive")),
    "sst5": ("sst5/sst5.csv", ("very negative", "negative", "neutral", "positive", "very positive")),
    "imdb": ("imdb/imdb.parquet", ("negative", "positive")),
}
POLARITY = tuple(_POLARITY)
_FEW = 0.1  # of the texts


def read_polarity(name: str, data_dir: str | Path | None) -> ClassCorpus:
    """MR, CR, SST5 or IMDB: `text`, `label` (0 the most negative), and `split` for SST5 and IMDB.

    Raises:
        MissingCorpus: if its file is not there. ValueError: for missing columns or a label that is no class.
    """
    file, classes = _POLARITY[name]
    columns = ("text", "label", "split") if name in ("sst5", "imdb") else ("text", "label")
    path, frame = _read(file, data_dir, columns, label=Number(0, len(classes) - 1))
    whole = frame["label"] % 1 == 0
    if not whole.all():
        raise ValueError(f"{path}, row {int(whole.argmin()) + 1}: the label is none of 0 to {len(classes) - 1}.")
    return _class_corpus(frame, frame["label"].to_numpy(dtype=int), list(classes), path)


EMOTION = {
    "goemotions-six": "goemotions/goemotions.parquet",
    "goemotions-ekman": "goemotions/goemotions.parquet",
    "goemotions-28": "goemotions/goemotions.parquet",
    "isear": "isear/isear.csv",
    "emolit12": "emolit12/emolit12.csv",
}


def read_emotion(
    name: str | Path,
    data_dir: str | Path | None,
    columns: Mapping[str, str] | None = None,
    *,
    skip_bad_rows: bool = False,
) -> ClassCorpus:
    """GoEmotions (six raw labels, texts with one label; or multi-label with Ekman's six and neutral, or all 28),
    ISEAR, EmoLit-12, the demo corpus, or a file of your own or a Hub data set with the columns `text`, `label` (a name
    or a list of names) and maybe `split`; one whose rows are all in "train" has no splits.

    Args:
        columns: names of the columns in a file or Hub data set, such as `{"text": "sentence", "label": "emotion"}`.
        skip_bad_rows: leave out the rows of a file or Hub data set that cannot be read, or whose text, label or split
            is empty or of a wrong type, log their number and keep them as `skipped`, instead of refusing the file.

    Raises:
        MissingCorpus: if a corpus's file is not there. ValueError: for an unknown source, missing columns, a bad row,
            or a class with too few texts.
    """
    name = str(name)
    if name == "demo":
        return _single_label(read_corpus(CORPORA["demo"], None), "demo")
    if name not in EMOTION:
        path = Path(name)
        if not path.suffix and name.count("/") != 1 and not path.exists():
            raise ValueError(
                f"Unknown emotion corpus {name!r}: choose demo, {', '.join(EMOTION)}, a file with the columns text "
                "and label, or the id of a Hub data set (owner/name or owner/name:configuration)."
            )
        frame, unread = read_source(name, columns or {}, ("text", "label"))
        rows = parse_rows(frame, _RULES | {"label": class_names}, unread)
        frame = good_rows(rows, name, skip_bad_rows)
        if "split" in frame and (frame["split"] == "train").all():
            frame = frame.drop(columns="split")
        if "weight" in frame:
            logger.warning("%s: the column weight is not read: each text counts the same for its class.", path)
        _say_repeats(frame, path)
        if frame["label"].map(len).eq(1).all():
            frame["label"] = frame["label"].str[0]
            return replace(_single_label(frame, path), skipped=rows[1])
        _say_several(frame, path)
        return replace(_multi_label(frame, frame["label"], path), skipped=rows[1])
    if not name.startswith("goemotions"):
        path, frame = _read(EMOTION[name], data_dir, ("text", "label"))
        return _single_label(frame, path)
    column = "ekman" if name == "goemotions-ekman" else "label"
    path, frame = _read(EMOTION[name], data_dir, ("text", "split", column))
    names = frame[column].map(lambda cell: [label.strip() for label in cell.split(",") if label.strip()])
    if name == "goemotions-six":
        chosen = names.map(lambda labels: len(labels) == 1 and labels[0] in EKMAN_SIX).to_numpy(dtype=bool)
        return _single_label(frame[chosen].reset_index(drop=True), path, classes=EKMAN_SIX)
    return _multi_label(frame, names, path)


def read_sts(data_dir: str | Path | None) -> tuple[list[str], list[str], np.ndarray]:
    """Test split of the STS benchmark: `text1`, `text2`, and their similarity from 0 to 5. Raises as
    [`read_polarity`]."""
    rules = {"text1": corpus_text, "text2": corpus_text, "score": Number()}
    _, frame = _read("stsb/stsb_test.csv", data_dir, (), **rules)
    return frame["text1"].tolist(), frame["text2"].tolist(), frame["score"].to_numpy()


def _read(file: str, data_dir: str | Path | None, columns: Sequence[str], **rules) -> tuple[Path, pd.DataFrame]:
    """The path and table of a known corpus, whose columns are needed and checked."""
    if data_dir is None:
        raise MissingCorpus(f"needs {file} in the folder that --data_dir names.")
    path = Path(data_dir) / file
    if not path.is_file():
        raise MissingCorpus(f"{path} does not exist.")
    return path, check_table(read_table(path), {column: _RULES[column] for column in columns} | rules, path)


def _single_label(frame: pd.DataFrame, path: Path | str, classes: Sequence[str] = ()) -> ClassCorpus:
    labels = frame["label"]
    classes = list(classes) or sorted(set(labels))
    number = {label: i for i, label in enumerate(classes)}
    return _class_corpus(frame, labels.map(number).to_numpy(dtype=int), classes, path)


def _multi_label(frame: pd.DataFrame, names: Iterable[Sequence[str]], path: Path | str) -> ClassCorpus:
    classes = sorted({label for labels in names for label in labels})
    table = np.array([[label in labels for label in classes] for labels in names], dtype=bool)
    if table.all():
        raise ValueError(
            f"{path}: every text has all classes, {listed(classes[:3])}, which tells nothing apart. In place of marks "
            "such as [0 1] write the names of the classes."
        )
    if (everywhere := table.all(axis=0)).any():
        name = classes[int(everywhere.argmax())]
        logger.warning("%s: every text has the class %r, so that nothing is learnt of it.", path, name)
    return _class_corpus(frame, table, classes, path)


def _class_corpus(frame: pd.DataFrame, labels: np.ndarray, classes: list[str], path: Path | str) -> ClassCorpus:
    """The corpus without training texts that are in its other splits; refused if a class cannot be measured."""
    if len(classes) < 2:
        raise ValueError(
            f"{path}: the texts have {len(classes)} class {reprlib.repr(classes[:1])}; classification "
            "needs at least two."
        )
    texts, split, keep = _without_repeats(frame, path)
    labels = labels[keep]
    warn_of_similar_names(classes, str(path))
    groups = {"the file": labels}
    if split is not None:
        groups = {f"the {name} split": labels[split == name] for name in ("train", "test")}
    needed = 3 if split is None else 1  # of the whole file: one each for training, validation and test
    for where, rows in groups.items():
        counts = rows.sum(0) if rows.ndim == 2 else np.bincount(rows, minlength=len(classes))
        rare = int(counts.argmin())
        if counts[rare] < needed:
            raise ValueError(
                f"{path}: class {reprlib.repr(classes[rare])} has {counts[rare]} example(s) in {where}, and needs "
                f"{needed}. Remove the class or merge it with another."
            )
    return ClassCorpus(texts, labels, classes, split)


def _say_several(frame: pd.DataFrame, name: Path) -> None:
    """Logs why a file is one of several classes a text, where few of its texts are so."""
    other = frame["label"].map(len) != 1
    if other.mean() < _FEW:
        logger.warning(
            "%s: %d of %d texts have no class or several, such as %s: so each may have several, and accuracy counts "
            "the texts with exactly the right ones. Give each one class if that is not meant.",
            name, other.sum(), len(frame), reprlib.repr(frame["text"][other.idxmax()]),
        )  # fmt: skip


def _say_repeats(frame: pd.DataFrame, name: Path) -> None:
    """Logs the rows of a file without splits that [`_without_repeats`] leaves out; of one with splits, those that
    repeat a text of their split with another label."""
    keys = frame["text"].map(text_key)
    groups = keys if "split" not in frame else keys + "\n" + frame["split"]
    if not (repeated := groups.duplicated()).any():
        return
    labels = frame["label"].map(frozenset)
    other = labels[repeated] != groups[repeated].map(labels.groupby(groups).first())
    if "split" in frame:
        if other.any():
            logger.warning(
                "%s: %d rows repeat a text of their split with another label, and count too.", name, other.sum()
            )
        return
    logger.warning(
        "%s: %d rows repeat a text and are left out, %d of them with another label. A text with several labels has "
        "one row, with a list of them.", name, repeated.sum(), other.sum(),
    )  # fmt: skip


def _without_repeats(frame: pd.DataFrame, name: Path | str) -> tuple[list[str], np.ndarray | None, np.ndarray]:
    """Texts, splits and row numbers without texts that are repeated in another split or, without splits, at all.

    Raises:
        ValueError: if the column `split` has no training or no test rows.
    """
    if "split" not in frame:
        keep = np.flatnonzero(~frame["text"].map(text_key).duplicated())
        return frame["text"].iloc[keep].tolist(), None, keep
    split = frame["split"].to_numpy(dtype=object)
    keep = np.flatnonzero(without_overlap(frame["text"], split))
    missing = {"train", "test"} - set(split[keep])
    if there := missing & set(split):
        raise ValueError(
            f"{name}: every text of the split {min(there)!r} is in another split too: give each text one."
        )
    if missing:
        names = " and ".join(map(repr, sorted(missing)))
        raise ValueError(f"{name}: column 'split' has no rows {names}; it has {listed(sorted(set(split)))}.")
    return frame["text"].iloc[keep].tolist(), split[keep], keep
