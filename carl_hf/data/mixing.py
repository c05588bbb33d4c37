"""Training sets: texts with VA labels, class labels or both; checked, mixed, and kept apart from evaluation texts."""

import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import datasets
import numpy as np
import pandas as pd
from datasets import Dataset

from carl_hf.data.bad_rows import (
    BadCell,
    Number,
    Rule,
    Weight,
    any_text,
    is_blank,
    optional_class_name,
    parse_rows,
    refuse,
    without_rows,
)
from carl_hf.data.label_spaces import LabelSpace
from carl_hf.data.splits import text_key, text_keys

logger = logging.getLogger(__name__)

VA = ("valence", "arousal")
COLUMNS = {"text": "string", **dict.fromkeys((*VA, "dominance"), "float64"), "label": "string", "weight": "float64"}
"""Columns of a training set and their types; None is a missing label or number."""
_FEW_VALUES = 10  # different numbers: fewer say nothing of the scale
_OFF_SCALE = "valence and arousal are not on their corpus's scale"


def check_dataset(
    dataset: Dataset, name: str, needs: Collection[str] = ("va",), *, dominance: bool = False, named: bool = False
) -> None:
    """Checks that `dataset` can be trained on: a text in every row, and what the objectives need in some. Warns of
    numbers that look like those of another scale.

    Args:
        needs: labels of the texts: `"va"`, valence or arousal, in [-1, 1]; `"class"`, a class label; `"angle"`, both
            numbers or a class label. A text may lack some of them (None) if it has another. Empty: only the text is
            needed. dominance: whether the model uses it. named: whether labels must be names, also if not needed.

    Raises:
        ValueError: it names the dataset, the column, the first bad row (counted from 0) and the remedy.
    """
    has, needs = set(dataset.column_names), set(needs)
    needs_va = "va" in needs or has & set(VA) or ("angle" in needs and "label" not in has)
    for column in ("text", *(["label"] if "class" in needs else [])):
        if column not in has:
            raise ValueError(
                f"{name} has no column {column!r} (it has {', '.join(dataset.column_names)}): load it with "
                "load_va_dataset, or rename the column."
            )
    if needs_va and not has & set(VA):
        raise ValueError(
            f"{name} has no column 'valence' or 'arousal' (it has {', '.join(dataset.column_names)}): load it with "
            "load_va_dataset, or rename the column."
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty.")
    frame = pd.DataFrame(_columns(dataset, COLUMNS), dtype=object)
    given, with_class = frame[list(VA)].notna(), frame["label"].notna().to_numpy()
    with_va, with_both = given.any(axis=1).to_numpy(), given.all(axis=1).to_numpy()
    named |= bool(needs & {"class", "angle"})
    rules = {"text": any_text} | ({"label": _as_loaded(optional_class_name)} if named else {})
    numbers = dict.fromkeys((*VA, *["dominance"] * dominance), Number(-1, 1, optional=True)) | {"weight": Weight()}
    rows = parse_rows(frame, rules | {column: _as_loaded(rule) for column, rule in numbers.items()})
    if needs:
        bare = rows[0].index.intersection(np.flatnonzero(~with_va & ~with_class))
        rows = without_rows(rows, bare, "no label", "has neither valence nor arousal nor a label")
    refuse(name, rows[1], "remove the row, or load the texts with load_va_dataset(..., scale=(least, greatest)), "
           "which normalises; a number that a text lacks is None")  # fmt: skip
    for kind, there, what in (
        ("va", with_va, "valence or arousal"), ("class", with_class, "a label"),
        ("angle", with_both | with_class, "both valence and arousal, or a label"),
    ):  # fmt: skip
        if kind in needs and not there.any():
            raise ValueError(f"{name}: no text has {what}, which the objectives need.")
    if dominance and "va" in needs and not frame["dominance"].notna().any():
        raise ValueError(
            f"{name}: no text has dominance, which the model needs: load_va_dataset(..., dominance=True)."
        )
    for column in VA if needs_va else ():
        warn_of_one_side(name, column, frame[column].dropna().astype(float))


def warn_of_one_side(name: str, column: str, values: np.ndarray | pd.Series) -> None:
    """Logs labels that look like those of another scale: none is below the middle of [-1, 1], or none above it."""
    if len(np.unique(values)) >= _FEW_VALUES and (values.min() >= 0 or values.max() <= 0):
        logger.warning(
            "%s: %s lies in [%.3g, %.3g], on one side of 0, the middle of the scale. If the texts were rated on "
            "another one, load them with it: load_va_dataset(..., scale=(least, greatest)), --scale.",
            name, column, values.min(), values.max(),
        )  # fmt: skip


def _as_loaded(rule: Rule) -> Rule:
    """The rule for cells that have been loaded: what it makes of them is what they are already."""

    def check(column: str, cell: object) -> object:
        value = rule(column, cell)
        if value != cell and not (cell is None and value != value):  # a missing number
            raise BadCell(f"{column} is of another type", f"column {column!r} holds {cell!r} in place of {value!r}")
        return value

    return check


def class_names(dataset: Dataset) -> list[str]:
    """The distinct class labels in the column `label`, sorted; none without that column."""
    return sorted(set(_columns(dataset, ["label"])["label"]) - {None})


def warn_of_similar_names(names: Iterable[str], where: str) -> None:
    """Logs classes that differ in case alone, are one number written in two ways, or a list of others: each is a class
    of its own."""
    groups: dict[str, list[str]] = {}
    names = set(names)
    if "None" in names:
        logger.warning("%s: 'None' is a class like any other. Leave the cell empty where a label is missing.", where)
    for name in sorted(names):
        parts = re.split(r"\s*[,;|/]\s*", name.strip())
        if len(parts) > 1 and set(parts) <= names:
            logger.warning("%s: %r is a class of its own. A text with several has a list of them: %s.",
                           where, name, json.dumps(parts, ensure_ascii=False))  # fmt: skip
        key = name.casefold().strip()
        groups.setdefault(key.removesuffix(".0") if key.removesuffix(".0").isdecimal() else key, []).append(name)
    for alike in groups.values():
        if len(alike) > 1:
            logger.warning("%s: %s are classes of their own. If they are one, write it in one way.",
                           where, " and ".join(map(repr, alike)))  # fmt: skip


def rows_with_va(dataset: Dataset) -> Dataset:
    """The rows that have both valence and arousal; none without such columns."""
    columns = _columns(dataset, VA)
    return dataset.select([row for row, pair in enumerate(zip(*columns.values(), strict=True)) if None not in pair])


def va_from_class_labels(dataset: Dataset, space: LabelSpace) -> Dataset:
    """The dataset in which texts with neither valence nor arousal have those of their class label in a label space; a
    ValueError for a label that the space does not know."""
    columns = _columns(dataset, [c for c in COLUMNS if c in (*VA, "label") or c in dataset.column_names])
    pairs = zip(columns["valence"], columns["arousal"], strict=True)
    bare = [i for i, pair in enumerate(pairs) if pair == (None, None)]
    known = space.va_of({columns["label"][i] for i in bare} - {None})
    for i in bare:
        if columns["label"][i] is not None:
            columns["valence"][i], columns["arousal"][i] = known[columns["label"][i]]
    filled = make_dataset(columns)
    return filled if on_scale(dataset) else marked_off_scale(filled)


def remove_overlap(train: Dataset, others: Iterable[Iterable[str]]) -> Dataset:
    """`train` without the texts that are in one of `others`, lists of texts, up to case and white space. A ValueError
    for anything else, such as a dataset in place of its column `text`."""
    if isinstance(others, (str, Mapping, Dataset)):
        raise ValueError(f"others is a list of lists of texts, got one {type(others).__name__}: [data['text']].")
    held_out = {key for other in others for key in text_keys(other, "Each of others")}
    keep = [i for i, text in enumerate(_columns(train, ["text"])["text"]) if text_key(text) not in held_out]
    if len(keep) < len(train):
        logger.info("Left out of training: %d texts that are kept for evaluation.", len(train) - len(keep))
    return train.select(keep)


def mix_datasets(parts: Sequence[tuple[Dataset, float]], *, seed: int) -> Dataset:
    """Concatenates datasets, each repeated `weight` times an epoch (a fraction takes a random part of its rows).

    Args:
        parts: (dataset, weight in [0, 10,000]) pairs. seed: of the random parts.

    Returns:
        `text` and those of `valence`, `arousal`, `dominance`, `label`, `weight` that any dataset has; None in the rows
        of one without.

    Raises:
        ValueError: for what is no dataset, another weight, or if nothing is left.
    """
    for dataset, weight in parts:
        _columns(dataset, ())
        if not 0 <= weight <= 10_000:
            raise ValueError(f"A mixing weight must be a number from 0 to 10,000, got {weight}.")
    rng = np.random.default_rng(seed)
    columns = [column for column in COLUMNS if any(column in part.column_names for part, _ in parts)]
    chosen, off_scale = [], [part for part, weight in parts if weight > 0 and not on_scale(part)]
    for dataset, weight in parts:
        whole, fraction = divmod(weight, 1)
        drawn = np.sort(rng.permutation(len(dataset))[: round(fraction * len(dataset))])
        rows = np.concatenate([np.tile(np.arange(len(dataset)), int(whole)), drawn]).astype(int)
        chosen.append(make_dataset(_columns(dataset.select(rows), columns)))
    mixed = datasets.concatenate_datasets(chosen)
    if len(mixed) == 0:
        raise ValueError("The mixed training set is empty: raise a weight.")
    return marked_off_scale(mixed) if off_scale else mixed


def _columns(dataset: Dataset, names: Iterable[str]) -> dict[str, list]:
    """The cells of these columns as Python's own types, whatever the format of the dataset, a class label as its name;
    None for NaN, and where the dataset has no such column."""
    if not isinstance(dataset, Dataset):
        raise ValueError(f"A {type(dataset).__name__} is no datasets.Dataset: pass one, of a DatasetDict one split.")
    rows, columns = dataset.with_format(None), {}
    for name in names:
        cells = rows[name] if name in rows.column_names else [None] * len(rows)
        columns[name] = [None if cell != cell else cell for cell in cells]  # NaN alone differs from itself
        if isinstance(classes := rows.features.get(name), datasets.ClassLabel):
            columns[name] = [None if i is None or i < 0 else classes.names[i].strip() for i in columns[name]]
    return columns


def marked_off_scale(dataset: Dataset) -> Dataset:
    """The dataset, marked: its valence and arousal are in another unit than the corpus's scale mapped to [-1, 1]."""
    dataset.info.description = _OFF_SCALE
    return dataset


def on_scale(dataset: Mapping | Dataset) -> bool:
    """Whether no [`marked_off_scale`] texts are in the dataset; selecting, filtering and joining keep the mark."""
    return not isinstance(dataset, Dataset) or _OFF_SCALE not in (dataset.info.description or "")


def make_dataset(columns: Mapping[str, Iterable]) -> Dataset:
    """A dataset of these columns, typed as in `COLUMNS`; an empty label and a missing number become None."""
    cells = {column: list(values) for column, values in columns.items()}
    for column in cells.keys() - {"text"}:
        cells[column] = [None if is_blank(cell) else cell for cell in cells[column]]
    if "label" in cells:
        cells["label"] = [None if label is None else str(label) for label in cells["label"]]
    return Dataset.from_dict(cells, datasets.Features({c: datasets.Value(COLUMNS[c]) for c in cells}))
