"""Training sets: texts with valence and arousal, with names, or both; checked, mixed, and kept apart from others."""

import logging
import math
from collections.abc import Collection, Iterable, Sequence

import datasets
import numpy as np
from datasets import Dataset

from carl_hf.data.bad_rows import is_blank
from carl_hf.data.label_spaces import LabelSpace
from carl_hf.data.splits import text_key

logger = logging.getLogger(__name__)

COLUMNS = {"text": "string", "valence": "float64", "arousal": "float64", "label": "string"}
"""Columns of a training set and their types; None stands for no label."""


def check_dataset(dataset: Dataset, name: str, needs: Collection[str] = ("va",)) -> None:
    """Checks that `dataset` can be trained on: a text in every row, and what the objectives need in some.

    Args:
        needs: what texts are to carry: `"va"`, valence and arousal in [-1, 1]; `"class"`, a label; `"angle"`, either.
            A text may lack one of them (None) if it carries another. Empty: nothing but the text is asked for.

    Raises:
        ValueError: it names the dataset, the column, the first bad row (counted from 0) and the remedy.
    """
    has, numbers = set(dataset.column_names), ("valence", "arousal")
    wanted = ["text"]
    if "va" in needs or has & set(numbers) or ("angle" in needs and "label" not in has):
        wanted += numbers
    if "class" in needs:
        wanted.append("label")
    lacking = [column for column in wanted if column not in has]
    if lacking:
        raise ValueError(
            f"{name} has no column {lacking[0]!r} (it has {', '.join(dataset.column_names)}): load it with "
            "load_va_dataset, or rename the column."
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty.")
    for row, text in enumerate(dataset["text"]):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}, row {row}: column 'text' is empty; remove the row.")
    named = list(dataset["label"]) if "label" in has else [None] * len(dataset)
    if {"class", "angle"} & set(needs):
        for row, label in enumerate(named):
            if label is not None and (not isinstance(label, str) or not label.strip()):
                raise ValueError(f"{name}, row {row}: label is {label!r}, not a name; give the class's name, or None.")
    valences, arousals = (list(dataset[c]) if c in has else [None] * len(dataset) for c in numbers)
    numbered = [
        valence is not None or arousal is not None for valence, arousal in zip(valences, arousals, strict=True)
    ]
    for row, (valence, arousal) in enumerate(zip(valences, arousals, strict=True)):
        if not numbered[row] and (not needs or named[row] is not None):
            continue
        for column, value, other in (("valence", valence, f"arousal is {arousal!r}"),
                                     ("arousal", arousal, f"valence is {valence!r}")):  # fmt: skip
            if not isinstance(value, (int, float)) or not -1 <= value <= 1:  # NaN fails both comparisons
                shown = f"{value!r} ({other})" if value is None else repr(value)
                raise ValueError(
                    f"{name}, row {row}: {column} is {shown}, not a number in [-1, 1]; load it with "
                    "load_va_dataset(..., scale=(least, greatest)), which normalises. A text without numbers has None "
                    "for both, and a label."
                )
    for kind, carried, what in (("va", numbered, "valence and arousal"), ("class", named, "a label")):
        if kind in needs and not any(carried):
            raise ValueError(f"{name}: no text has {what}, which the objectives need.")


def class_names(dataset: Dataset) -> list[str]:
    """The distinct names in the column `label`, sorted; none without that column."""
    return sorted(set(dataset["label"]) - {None}) if "label" in dataset.column_names else []


def rows_with_va(dataset: Dataset) -> Dataset:
    """The rows that have valence and arousal; none without such columns."""
    if not {"valence", "arousal"} <= set(dataset.column_names):
        return dataset.select([])
    values = zip(dataset["valence"], dataset["arousal"], strict=True)
    return dataset.select([row for row, pair in enumerate(values) if None not in pair])


def va_from_class_labels(dataset: Dataset, space: LabelSpace) -> Dataset:
    """The dataset in which texts without numbers have those of their `label` in a label space.

    Raises:
        ValueError: for a label that the space does not know; the message lists those that it knows.
    """
    columns = {c: list(dataset[c]) if c in dataset.column_names else [None] * len(dataset) for c in COLUMNS}
    bare = [i for i in range(len(dataset)) if None in (columns["valence"][i], columns["arousal"][i])]
    known = space.va_of({columns["label"][i] for i in bare} - {None})
    for i in bare:
        if columns["label"][i] is not None:
            columns["valence"][i], columns["arousal"][i] = known[columns["label"][i]]
    return with_columns(Dataset.from_dict(columns), list(COLUMNS))


def remove_overlap(train: Dataset, others: Iterable[Iterable[str]]) -> Dataset:
    """`train` without the texts that stand in one of `others`, up to case and white space."""
    held_out = {text_key(text) for other in others for text in other}
    keep = [i for i, text in enumerate(train["text"]) if text_key(text) not in held_out]
    if len(keep) < len(train):
        logger.info("%d training texts that stand in an evaluation set were left out.", len(train) - len(keep))
    return train.select(keep)


def mix_datasets(parts: Sequence[tuple[Dataset, float]], *, seed: int) -> Dataset:
    """Concatenates datasets, each repeated `weight` times an epoch (a fraction takes a random part of its rows).

    Args:
        parts: (dataset, weight >= 0) pairs. seed: of the random parts.

    Returns:
        `text` and those of `valence`, `arousal`, `label` that any part has; None in the rows of a part without.

    Raises:
        ValueError: for a negative or non-finite weight, or if nothing is left.
    """
    rng = np.random.default_rng(seed)
    columns = [column for column in COLUMNS if any(column in part.column_names for part, _ in parts)]
    chosen = []
    for dataset, weight in parts:
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"A mixing weight must be a number >= 0, got {weight}.")
        whole, part = divmod(weight, 1)
        rows = np.concatenate(
            [np.tile(np.arange(len(dataset)), int(whole)),
             np.sort(rng.permutation(len(dataset))[: round(part * len(dataset))])]
        )  # fmt: skip
        chosen.append(with_columns(dataset.select(rows.astype(int)), columns))
    mixed = datasets.concatenate_datasets(chosen)
    if len(mixed) == 0:
        raise ValueError("The mixture of training corpora is empty: raise a weight.")
    return mixed


def with_columns(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    """`dataset` with these columns and no other, None where it has none; labels as text."""
    values = {c: list(dataset[c]) if c in dataset.column_names else [None] * len(dataset) for c in columns}
    if "label" in values:
        values["label"] = [None if is_blank(label) else str(label) for label in values["label"]]
    features = datasets.Features({column: datasets.Value(COLUMNS[column]) for column in columns})
    return Dataset.from_dict(values, features=features)
