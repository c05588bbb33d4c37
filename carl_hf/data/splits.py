"""Train, validation and test splits: a source's own, and the seeded draws where it has none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from carl_hf.data.labelled import ClassCorpus

_SEED = 42
SPLITS = ("train", "validation", "test")


def text_key(text: str) -> str:
    """The same for texts that differ only in case and white space."""
    return " ".join(text.casefold().split())


def text_keys(texts: Iterable[str], argument: str) -> set[str]:
    """The [`text_key`] of every text; a ValueError that names the `argument` for one text, a table or other things."""
    if isinstance(texts, (str, Mapping)) or hasattr(texts, "column_names"):
        raise ValueError(f"{argument} takes a list of texts, got one {type(texts).__name__}: data['text'].")
    texts = list(texts)
    if others := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{argument} takes a list of texts, got one with a {type(others[0]).__name__} in it.")
    return set(map(text_key, texts))


def is_drawn(text: str) -> bool:
    """Whether a text is of the tenth of all texts that is kept from training where a corpus has no validation part."""
    return int.from_bytes(hashlib.sha256(text_key(text).encode("utf-8", "surrogatepass")).digest()[:4]) < 2**32 / 10


def numbered(texts: Iterable[str]) -> np.ndarray:
    """(N,) numbers from 0, in order of appearance; texts that differ only in case and white space have the same."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text_key(text), len(numbers)) for text in texts], dtype=int)


def without_overlap(texts: Iterable[str], split: np.ndarray) -> np.ndarray:
    """(N,) booleans: False for a training text that is also in another split, and for a validation text that is also
    in the test split."""
    keys = np.array([text_key(text) for text in texts], dtype=object)
    test, held_out = set(keys[split == "test"]), set(keys[split != "train"])
    leaks = [
        (name == "train" and key in held_out) or (name == "validation" and key in test)
        for key, name in zip(keys, split, strict=True)
    ]
    return ~np.array(leaks, dtype=bool)


class _Texts:
    """Rows of a corpus by text, so that a draw puts all rows of a text on one side."""

    def __init__(self, texts: Sequence[str], rows: np.ndarray):
        number = numbered(texts[i] for i in rows)
        order = np.argsort(number, kind="stable")
        self.rows, self.first = rows, rows[np.unique(number, return_index=True)[1]]
        """(T,) the first row of each text, ascending."""
        self.first_of_rows = self.first[number]
        groups = np.split(rows[order], np.flatnonzero(np.diff(number[order])) + 1)
        self._rows = dict(zip(self.first.tolist(), groups, strict=False))  # of no rows one empty group

    def all_rows(self, first: np.ndarray) -> np.ndarray:
        """The rows of the texts that have these first ones."""
        return np.concatenate([np.empty(0, dtype=int), *(self._rows[row] for row in first.tolist())])


def with_validation(split: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The (N,) split names of N texts; where none is "validation", the rows of a random tenth of the training texts
    are."""
    if "validation" not in split:
        train, split = _Texts(texts, np.flatnonzero(split == "train")), split.copy()
        drawn = np.random.default_rng(0).choice(train.first, max(2, len(train.first) // 10), replace=False)
        split[train.all_rows(drawn)] = "validation"
    return split


def divide(rows: np.ndarray, tenths: int, *, fewest: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The first `tenths` tenths of `rows`, but at least `fewest` of them, and the others."""
    first = max(fewest, tenths * len(rows) // 10)
    return rows[:first], rows[first:]


def split_rows(corpus: ClassCorpus) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(train, validation, test) rows of a corpus. Without a validation split, it is a random tenth of train. Without
    any splits, the rows are divided 80 / 10 / 10, stratified by class if each text has one; every drawn part then has
    a text of each class that has one for it (the test split first). All rows of a text are in one drawn part.

    The draw is the same in every training, export and evaluation, whatever their seed, so that none measures on texts
    that another has trained on.
    """
    from sklearn.model_selection import train_test_split

    def draw(rows: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        labels = None if corpus.multi_label else corpus.labels[rows]
        if labels is not None:
            counts = np.unique(labels, return_counts=True)[1]
            if counts.min() < 2 or round(share * len(rows)) < len(counts):
                labels = None  # too few to stratify
        return train_test_split(rows, test_size=share, random_state=_SEED, stratify=labels)

    rows = np.arange(len(corpus.texts))
    if corpus.split is None:
        texts = _Texts(corpus.texts, rows)
        rest, test = draw(texts.first, 0.1)
        train, validation, test = map(texts.all_rows, _with_every_class(corpus, texts, *draw(rest, 1 / 9), test))
        return train, validation, test
    train, validation, test = (rows[corpus.split == name] for name in SPLITS)
    if len(validation) == 0:
        texts = _Texts(corpus.texts, train)
        train, validation = map(texts.all_rows, _with_every_class(corpus, texts, *draw(texts.first, 0.1)))
    return train, validation, test


def _with_every_class(corpus: ClassCorpus, texts: _Texts, train: np.ndarray, *others: np.ndarray) -> Any:
    """The parts of a draw of texts, by their first rows; a text moved into each that has none of a class: from the one
    with the most of it, while that keeps one. A class of ten texts or more has some in every part of a stratified
    draw."""
    parts = [train, *reversed(others)]  # in the order of need: train, test, validation
    if corpus.multi_label:
        return train, *others
    has_NC = np.zeros((len(corpus.texts), len(corpus.classes)), dtype=bool)  # of a text in any of its rows
    has_NC[texts.first_of_rows, corpus.labels[texts.rows]] = True
    for c in np.flatnonzero(has_NC.any(0)):
        for i in range(len(parts)):
            of_class = [part[has_NC[part, c]] for part in parts]
            giver = int(np.argmax([len(members) for members in of_class]))
            if len(of_class[i]) == 0 and (len(of_class[giver]) > 1 or i == 0):
                moved = of_class[giver][-1]
                parts[giver], parts[i] = parts[giver][parts[giver] != moved], np.append(parts[i], moved)
    return parts[0], *reversed(parts[1:])
