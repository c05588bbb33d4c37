"""Texts with valence and arousal: corpora, files, bad rows, normalisation to [-1, 1].

Datasets leave this module with the columns `text`, `valence`, `arousal` (in [-1, 1]) and, where the source has one,
`label`.
"""

import logging
import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import datasets
import numpy as np
import pandas as pd
from datasets import Dataset

from carl_hf.data.bad_rows import (
    BadRow,
    Fault,
    is_blank,
    name_fault,
    number_of,
    refuse,
    report_skipped,
    skipped,
    text_fault,
)
from carl_hf.data.corpora import CORPORA, CorpusSpec, read_corpus
from carl_hf.data.files import REMEDY, SUFFIXES, Table, load_hub_dataset, read_rows
from carl_hf.data.mixing import COLUMNS, with_columns
from carl_hf.data.splits import split_names, without_overlap
from carl_hf.utils.suggestions import listed

logger = logging.getLogger(__name__)


class NoSplitError(ValueError):
    """A source has no such part."""


VA = ("valence", "arousal")
SKIP_REMEDY = f"{REMEDY}, or leave bad rows out with --skip_bad_rows true (skip_bad_rows=True)"
NO_GOOD_ROW = "no row is good, so that there is nothing to skip to"
Normalization = Literal["scale", "observed", "standardized"]
Split = Literal["train", "validation", "test", "all"]


def load_va_dataset(
    source: str | Path,
    *,
    split: Split = "all",
    data_dir: str | Path | None = None,
    scale: tuple[float, float] | None = None,
    columns: Mapping[str, str] | None = None,
    normalization: Normalization = "scale",
    skip_bad_rows: bool = False,
) -> Dataset:
    """Loads texts with valence and arousal, normalised to [-1, 1] by Eq 12: x = 2 (x - min) / (max - min) - 1.

    Args:
        source: the name of a corpus (`demo`, `emobank`, `facebook`, `iemocap`, `emotales`), a file (`.csv`, `.tsv`,
            `.parquet`, `.json`, `.jsonl`), or a Hub dataset id.
        split: `"train"`, `"validation"`, `"test"`, or all rows. Of a source without splits, `"train"` is all rows.
            Texts of `"train"` that also stand in another split of the source are left out.
        data_dir: folder with local copies of the corpora.
        scale: (least, greatest) value of the labels' scale; needed for files and Hub datasets, known for corpora.
        columns: names of the columns in the source, such as `{"text": "sentence", "valence": "V"}`.
        normalization: min and max of Eq 12 are those of the `"scale"`, or those `"observed"` in all rows of the
            source; or (x - mean) / (3 standard deviations) of the training rows, cut to [-1, 1]: `"standardized"`.
        skip_bad_rows: leave out the rows of a file or Hub dataset that [`find_bad_rows`] names, and log their number,
            in place of refusing it. A corpus known by name has none: a copy with bad rows is damaged.

    Returns:
        `datasets.Dataset` with `text`, `valence`, `arousal` and, where the source has it, `label`: a name, None where
        the cell is empty.

    Raises:
        ValueError: for an unknown source, an unreadable or empty file, a missing column, a bad row (see
            [`find_bad_rows`]) or, if they are skipped, no good one, or an unknown split; it names the column, the row
            and the remedy.
    """
    if split not in ("train", "validation", "test", "all"):
        raise ValueError(f"Unknown split {split!r}: choose 'train', 'validation', 'test' or 'all'.")
    if normalization not in get_args(Normalization):
        raise ValueError(f"Unknown normalization {normalization!r}: choose {listed(get_args(Normalization))}.")
    name = str(source)
    spec = CORPORA.get(name)
    if spec is not None:
        scale = scale or spec.scale
        frame = check_table(read_corpus(spec, data_dir), VA, scale, name, spec)
    else:
        scale, table = _checked_rows(source, scale, columns)
        frame = good_rows(table, name, skip_bad_rows)
    if normalization == "standardized":
        frame = _standardized(frame, VA)
    else:
        frame = normalized(frame, VA, scale, normalization)
    frame = _take_split(frame, split, name).copy()
    kept = [column for column in COLUMNS if column in frame]
    if "label" in frame:
        frame["label"] = [None if is_blank(label) else str(label) for label in frame["label"]]
    return with_columns(Dataset.from_pandas(frame[kept], preserve_index=False), kept)


def find_bad_rows(
    source: str | Path, *, scale: tuple[float, float] | None = None, columns: Mapping[str, str] | None = None
) -> list[BadRow]:
    """The rows of a file or Hub dataset that [`load_va_dataset`] refuses, or leaves out under `skip_bad_rows`.

    A bad row cannot be read (not UTF-8, no CSV, a wrong number of cells, no JSON object), is empty, or has an empty
    `text` or `split`, a text that is none or has more than `MAX_CHARACTERS`, a `label` that is no name, or a valence
    or arousal that is no number or lies outside the scale.

    Raises:
        ValueError: as [`load_va_dataset`], for what is no matter of single rows.
    """
    return _checked_rows(source, scale, columns)[1].bad


def _checked_rows(
    source: str | Path, scale: tuple[float, float] | None, columns: Mapping[str, str] | None
) -> tuple[tuple[float, float], Table]:
    """The scale, checked, and the table in which what no cell may hold is among the bad rows."""
    table = read_source(source)
    if scale is None:
        raise ValueError(f"{source}: state the scale of its labels, such as scale=(1, 9) (--scale 1 9).")
    check_scale(scale)
    frame = renamed(table, columns or {}, str(source), ("text", *VA)).copy()
    frame, bad = sorted_out(frame, scale)
    return scale, Table(frame, sorted([*table.bad, *bad], key=lambda row: row.number))


def sorted_out(frame: pd.DataFrame, scale: tuple[float, float]) -> tuple[pd.DataFrame, list[BadRow]]:
    """The rows with a text and numbers on the scale, and the bad ones; numbers of rows are the index."""
    faults: dict[int, Fault] = {}
    for column, check in (("text", text_fault), ("split", name_fault), ("label", _label_fault)):
        for number, cell in frame[column].items() if column in frame else ():
            fault = check(column, cell)
            if fault is not None:
                faults.setdefault(number, fault)
    for column in VA:
        for number, fault in number_faults(frame, column, scale).items():
            faults.setdefault(number, fault)
    return frame.drop(index=list(faults)), [BadRow(number, *fault) for number, fault in faults.items()]


def _label_fault(column: str, cell: object) -> Fault | None:
    return None if is_blank(cell) else name_fault(column, cell)


def good_rows(table: Table, name: str, skip_bad_rows: bool) -> pd.DataFrame:
    """The rows of a table under a plain index, if there are no bad ones, or they are to be skipped.

    Raises:
        ValueError: for the first bad row unless they are skipped, or if there is no good one.
    """
    if table.bad and not skip_bad_rows:
        refuse(name, table.bad, SKIP_REMEDY)
    if table.bad and not len(table.frame):
        refuse(name, table.bad, NO_GOOD_ROW)
    report_skipped(name, skipped(table.bad))
    return table.frame.reset_index(drop=True)


def read_source(source: str | Path) -> Table:
    """The rows of a file or of a Hub data set, the latter with a column `split`.

    Raises:
        ValueError: for what is neither, or cannot be read.
    """
    path = Path(source)
    if path.suffix.lower() in SUFFIXES or path.exists():
        return read_rows(path)
    if str(source).count("/") == 1:
        return _read_hub_dataset(str(source))
    raise ValueError(
        f"Unknown corpus {str(source)!r}: choose one of {', '.join(CORPORA)}, a .csv, .tsv, .parquet, .json or "
        ".jsonl file, or a Hub dataset id (owner/name)."
    )


def _read_hub_dataset(name: str) -> Table:
    frames = []
    for split, part in load_hub_dataset(name).items():
        frame = part.to_pandas()
        for column, feature in part.features.items():
            if isinstance(feature, datasets.ClassLabel):
                known = frame[column].fillna(-1).astype(int)
                frame[column] = [feature.int2str(number) if number >= 0 else None for number in known]
        frames.append(frame.assign(split=split))
    frame = pd.concat(frames, ignore_index=True)
    frame.index += 1
    return Table(frame, [])


def renamed(table: Table, columns: Mapping[str, str], name: str, needed: Sequence[str]) -> pd.DataFrame:
    """The table's rows with our names of the columns.

    Raises:
        ValueError: if there are no rows, or one of the columns `needed` or named is not there.
    """
    frame = table.frame
    if len(frame) == 0:
        refuse(name, table.bad, REMEDY)
        raise ValueError(f"{name} has no rows.")
    return with_our_names(frame, columns, name, needed)


def with_our_names(frame: pd.DataFrame, columns: Mapping[str, str], name: str, needed: Sequence[str]) -> pd.DataFrame:
    """A frame with our names of the columns.

    Raises:
        ValueError: if one of the columns `needed` or named is not there.
    """
    for ours, theirs in columns.items():
        if theirs not in frame:
            raise ValueError(f"{name} has no column {theirs!r} for {ours!r}; it has {listed(frame)}.")
    shadowed = [ours for ours, theirs in columns.items() if ours != theirs and ours in frame]
    frame = frame.drop(columns=shadowed).rename(columns={theirs: ours for ours, theirs in columns.items()})
    for column in needed:
        if column not in frame:
            raise ValueError(
                f"{name} has no column {column!r}; it has {listed(frame)}. Name the right one: "
                f"columns={{{column!r}: ...}} (--{column}_column)."
            )
    return frame


def check_scale(scale: tuple[float, float]) -> None:
    least, greatest = scale
    if not (math.isfinite(greatest - least) and least < greatest):
        raise ValueError(f"The scale must be (least, greatest), two numbers, got {scale}.")


def check_table(
    frame: pd.DataFrame, columns: Sequence[str], scale: tuple[float, float], name: str, spec: CorpusSpec
) -> pd.DataFrame:
    """The table of a known corpus with `columns` as numbers.

    Raises:
        ValueError: for a table without rows, an empty text, a label that is no number or lies outside the scale
            (unless the corpus is known to leave it and is clipped); it names the row and the column.
    """
    check_scale(scale)
    if len(frame) == 0:
        raise ValueError(f"{name} has no rows.")
    frame = frame.set_axis(range(1, len(frame) + 1))
    faults = {number: fault for number, cell in frame["text"].items() if (fault := text_fault("text", cell))}
    for column in columns:
        clipped = scale if spec.clips_to_scale else None
        for number, fault in number_faults(frame, column, scale if clipped is None else (-math.inf, math.inf)).items():
            faults.setdefault(number, fault)
        if clipped is not None:
            inside = frame[column].clip(*clipped)
            if (outside := int((inside != frame[column]).sum())) > 0:
                logger.warning("%s: %d values of %s outside [%g, %g] were clipped.", name, outside, column, *clipped)
            frame[column] = inside
    refuse(name, [BadRow(number, *fault) for number, fault in faults.items()], "correct or remove the row")
    return frame.reset_index(drop=True)


def number_faults(frame: pd.DataFrame, column: str, scale: tuple[float, float]) -> dict[int, Fault]:
    """Makes a column one of numbers, and says in which rows it held none, or one outside the scale."""
    least, greatest = scale
    cells, values = frame[column], np.array([number_of(cell) for cell in frame[column]], dtype=float)
    faults: dict[int, Fault] = {}
    for number, cell, value in zip(frame.index, cells, values, strict=True):
        if not math.isfinite(value):
            detail = f"column {column!r} holds {reprlib.repr(cell)}, not a number"
            faults[number] = (f"{column} is no number", detail)
        elif not least <= value <= greatest:
            detail = f"{column} is {value:g}, outside the stated scale [{least:g}, {greatest:g}]"
            faults[number] = (f"{column} is outside the scale", detail)
    frame[column] = values
    return faults


def normalized(
    frame: pd.DataFrame,
    columns: Sequence[str],
    scale: tuple[float, float],
    normalization: Literal["scale", "observed"] = "scale",
) -> pd.DataFrame:
    """The table with `columns` in [-1, 1], by Eq 12."""
    for column in columns:
        values = frame[column]
        least, greatest = scale if normalization == "scale" else (values.min(), values.max())
        if least == greatest:
            raise ValueError(
                f"All values of {column} are {least:g}: the observed range is empty; normalise by the scale."
            )
        frame[column] = (2 * (values - least) / (greatest - least) - 1).clip(-1, 1)  # Eq 12
    return frame


def _standardized(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The table with `columns` shifted and scaled to mean 0 and standard deviation 1/3 in the training rows."""
    trained_on = split_names(frame) == "train" if "split" in frame else np.full(len(frame), True)
    if not trained_on.any():
        raise NoSplitError("There are no training rows to standardize by: --normalization scale.")
    for column in columns:
        values = frame.loc[trained_on, column]
        if values.nunique() < 2:
            raise ValueError(f"{column} does not vary in the training rows: --normalization scale.")
        frame[column] = ((frame[column] - values.mean()) / (3 * values.std(ddof=0))).clip(-1, 1)
    return frame


def _take_split(frame: pd.DataFrame, split: Split, name: str) -> pd.DataFrame:
    if split == "all":
        return frame
    if "split" not in frame:
        if split == "train":
            return frame
        raise NoSplitError(f"{name} has no column 'split', so it has no {split!r} part; it can only be trained on.")
    names = split_names(frame)
    part = frame[names == split]
    if len(part) == 0:
        raise NoSplitError(f"{name} has no rows in split {split!r}; its splits are {listed(sorted(set(names)))}.")
    return part[without_overlap(frame["text"], names)[names == split]] if split == "train" else part
