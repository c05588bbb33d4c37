"""Texts with VA labels from corpora, files and Hub data sets, normalised to [-1, 1]."""

import logging
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from datasets import Dataset

from carl_hf.data import bad_rows
from carl_hf.data.agreement import agreement_weights as weights_by_agreement
from carl_hf.data.corpora import CORPORA, DIMENSIONS, read_corpus
from carl_hf.data.files import SUFFIXES, arrow_piece, read_rows
from carl_hf.data.hub_sets import load_hub_dataset, usual_splits
from carl_hf.data.mixing import COLUMNS, VA, make_dataset, marked_off_scale
from carl_hf.data.splits import without_overlap
from carl_hf.utils.log_once import log_once
from carl_hf.utils.suggestions import listed

logger = logging.getLogger(__name__)


class NoSplitError(ValueError):
    """A source has no such split."""


class NoRatingsError(ValueError):
    """A source does not say how its raters agree."""


SKIP_REMEDY = f"{bad_rows.REMEDY}, or leave bad rows out with --skip_bad_rows true (skip_bad_rows=True)"
_FLAGS = ("text", "valence", "arousal", "label")  # of which scripts have --NAME_column
_OPTIONAL = ("split", "weight", "label", "dominance")
NO_GOOD_ROW = "no row is good, so that there is nothing to skip to"
Normalization = Literal["scale", "observed", "standardized"]
Split = Literal["train", "validation", "test", "all"]


def load_va_dataset(
    source: str | Path, *, split: Split = "all", data_dir: str | Path | None = None,
    scale: tuple[float, float] | None = None, columns: Mapping[str, str] | None = None,
    normalization: Normalization = "scale", skip_bad_rows: bool = False, agreement_weights: bool = False,
    dominance: bool = False,
) -> Dataset:  # fmt: skip
    """Loads texts with valence, arousal or both, normalised to [-1, 1] by Eq 12: x = 2 (x - min) / (max - min) - 1.

    Args:
        source: the name of a corpus (`demo`, `emobank`, `facebook`, `iemocap`, `emotales`), a file (`.csv`, `.tsv`,
            `.parquet`, `.json`, `.jsonl`), or a Hub dataset id.
        split: `"train"`, `"validation"`, `"test"`, or all rows. Of a source without splits, `"train"` is all rows.
            Texts of `"train"` that are also in another split of the source are left out, and those of `"validation"`
            that are also in `"test"`.
        data_dir: folder with local copies of the corpora.
        scale: (least, greatest) value of the labels' scale, for files and Hub datasets; that of a corpus is known.
        columns: names of the columns in the source, such as `{"text": "sentence", "valence": "V"}`.
        normalization: min and max of Eq 12 are those of the `"scale"`, or those `"observed"` in all rows of the
            source; or (x - mean) / (3 standard deviations) of the training rows, cut to [-1, 1]: `"standardized"`.
            Task heads and metrics need the scale: they refuse the other two.
        skip_bad_rows: leave out the rows of a file or Hub dataset that [`find_bad_rows`] names, and log their number,
            instead of refusing the source. A corpus known by name has none: a copy with bad rows is damaged.
        agreement_weights: weigh texts by how well their raters agree, by [`carl_hf.data.agreement_weights`], from the
            number of ratings, column `raters`, and their standard deviations, columns `valence_sd` and `arousal_sd` on
            the scale of the labels. `emobank` and `facebook` publish theirs. A column `weight` is a factor.
        dominance: also load dominance, on the same scale, where the source has it: `emobank`, or a column `dominance`.

    Returns:
        `datasets.Dataset` with `text` and, where the source has them, `valence`, `arousal`, with `dominance` that too,
        `label`: a class name, and `weight`: > 0, for the losses. An empty cell is None.

    Raises:
        ValueError: for an unknown source, an unreadable or empty file, a missing column, a bad row (see
            [`find_bad_rows`]) or, if they are skipped, no good one, an unknown split, or agreement of raters that is
            unknown; it names the column, the row and the remedy.
    """
    if split not in get_args(Split):
        raise ValueError(f"Unknown split {split!r}: choose {listed(get_args(Split))}.")
    if normalization not in get_args(Normalization):
        raise ValueError(f"Unknown normalization {normalization!r}: choose {listed(get_args(Normalization))}.")
    name = str(source)
    if (spec := CORPORA.get(name)) is not None:
        if columns:
            raise ValueError(f"columns are named of files and Hub data sets, not of {name}.")
        if scale is not None and checked_scale(scale, name) != tuple(spec.scale):
            raise ValueError(f"{name} is rated from {spec.scale[0]:g} to {spec.scale[1]:g}: leave scale out.")
        scale = spec.scale
        frame = read_corpus(spec, data_dir, scale, ratings=agreement_weights)
    else:
        frame = good_rows(_checked_rows(source, scale, columns, agreement_weights, dominance), name, skip_bad_rows)
    if not dominance:
        frame = frame.drop(columns="dominance", errors="ignore")
    if agreement_weights:
        frame = _weighted_by_agreement(frame, name)
    if "weight" in frame and not frame["weight"].isna().all():
        least, greatest = frame["weight"].min(), frame["weight"].max()
        log_once(f"{name}: texts are weighted, by {least:.3g} to {greatest:.3g} (column 'weight').")
    there = report_missing(frame, name, DIMENSIONS if dominance else VA)
    frame = _standardized(frame, there) if normalization == "standardized" else normalized(
        frame, there, scale, normalization
    )  # fmt: skip
    frame = _take_split(frame, split, name)
    dataset = make_dataset({column: frame[column] for column in COLUMNS if column in frame})
    return dataset if normalization == "scale" else marked_off_scale(dataset)


def find_bad_rows(
    source: str | Path, *, scale: tuple[float, float] | None = None, columns: Mapping[str, str] | None = None,
    agreement_weights: bool = False, dominance: bool = False,
) -> list[bad_rows.BadRow]:  # fmt: skip
    """The rows of a file or Hub dataset that [`load_va_dataset`] refuses, or leaves out under `skip_bad_rows`.

    A bad row cannot be read (not UTF-8, no CSV, a wrong number of cells, no JSON object), is empty, or has an empty
    `text` or `split`, a text that is none or has more than `MAX_CHARACTERS`, a `split` that is none of the usual
    names, a `label` that is not one name, a valence or arousal that is no number or lies outside the scale,
    neither of the two, or a weight that is not positive; with `agreement_weights`, no number of raters >= 1 or a
    deviation that is negative.

    Raises:
        ValueError: as [`load_va_dataset`], for what is not a matter of single rows.
    """
    return _checked_rows(source, scale, columns, agreement_weights, dominance)[1]


def _checked_rows(
    source: str | Path, scale: tuple[float, float] | None, columns: Mapping[str, str] | None, ratings: bool,
    dominance: bool,
) -> bad_rows.Rows:  # fmt: skip
    frame, bad = read_source(source, columns or {}, ("text",), some_of=VA)
    rules = va_rules(scale, str(source), dominance=dominance)
    if ratings:
        rules |= {"raters": bad_rows.Number(1), **{f"{name}_sd": bad_rows.Number(0, optional=True) for name in VA}}
    return parse_va_rows(frame, rules, bad)


def parse_va_rows(
    frame: pd.DataFrame, rules: Mapping[str, bad_rows.Rule], unread: Sequence[bad_rows.BadRow] = ()
) -> bad_rows.Rows:
    """[`parse_rows`] by [`va_rules`], where a row is bad too if it has neither valence nor arousal."""
    rows = bad_rows.parse_rows(frame, rules, unread)
    empty = rows[0][[column for column in VA if column in frame]].isna().all(axis=1)
    return bad_rows.without_rows(rows, empty.index[empty], "no valence or arousal", "has neither valence nor arousal")


def va_rules(scale: tuple[float, float] | None, name: str, *, dominance: bool = False) -> dict[str, bad_rows.Rule]:
    """The rules for the columns of a file with VA labels on this scale; a ValueError if it is missing or wrong."""
    rule = bad_rows.Number(*checked_scale(scale, name), optional=True)
    return {
        "text": bad_rows.corpus_text, "split": bad_rows.split_name, "label": bad_rows.optional_class_name,
        "weight": bad_rows.Weight(), **dict.fromkeys(DIMENSIONS if dominance else VA, rule),
    }  # fmt: skip


def checked_scale(scale: tuple[float, float] | None, name: str) -> tuple[float, float]:
    if scale is None:
        raise ValueError(f"{name}: state the scale of its labels, such as scale=(1, 9) (--scale 1 9).")
    pair = isinstance(scale, Sequence) and len(scale) == 2 and all(isinstance(end, numbers.Real) for end in scale)
    least, greatest = map(float, scale) if pair else (math.nan, math.nan)
    if not (math.isfinite(greatest - least) and least < greatest):
        raise ValueError(f"The scale must be (least, greatest), two numbers, got {scale}.")
    return least, greatest


def good_rows(rows: bad_rows.Rows, name: str, skip_bad_rows: bool) -> pd.DataFrame:
    """The good rows under a plain index. A ValueError names the first bad row unless they are to be skipped, and if
    there is no good one."""
    frame, bad = rows
    if not skip_bad_rows or not len(frame):
        remedy = NO_GOOD_ROW if skip_bad_rows else SKIP_REMEDY
        if any(row.reason in {f"{label} is outside the scale" for label in DIMENSIONS} for row in bad[:1]):
            hint = "state the scale of its labels (--scale)"
            remedy = f"{remedy}: {hint}" if skip_bad_rows else f"{hint}, or {remedy}"
        bad_rows.refuse(name, bad, remedy)
    bad_rows.report_skipped(name, bad_rows.Skipped.of(bad))
    return frame.reset_index(drop=True)


def read_source(
    source: str | Path, columns: Mapping[str, str], needed: Sequence[str], *, some_of: Sequence[str] = ()
) -> bad_rows.Rows:
    """The rows of a file or of a Hub data set, the latter with a column `split`: its own, if it has one and is one
    split on the Hub, else that on the Hub. Columns are as by [`renamed`]. A ValueError for what is neither, cannot be
    read, has no rows, or lacks a column."""
    known = (*COLUMNS, "split", "raters", *(f"{name}_sd" for name in VA))
    if not isinstance(columns, Mapping) or not set(columns) <= set(known):
        raise ValueError(f"columns must be {{ours: theirs}}, with ours of {', '.join(known)}; got {columns!r}.")
    if not isinstance(source, (str, Path)):
        raise ValueError(f"A corpus is a name, a file or the id of a Hub data set, got a {type(source).__name__}.")
    path, name = Path(source), str(source)
    if path.suffix.lower() in SUFFIXES or path.exists():
        frame, bad = read_rows(path)
    elif name.count("/") == 1:
        frame, bad = _read_hub_dataset(name)
    else:
        raise ValueError(
            f"Unknown corpus {name!r}: choose one of {', '.join(CORPORA)}, a .csv, .tsv, .parquet, .json or .jsonl "
            "file, or a Hub dataset id (owner/name or owner/name:configuration)."
        )
    if len(frame) == 0:
        bad_rows.refuse(name, bad, bad_rows.REMEDY)
        raise ValueError(f"{name} has no rows.")
    return renamed(frame, columns, name, needed, some_of=some_of), bad


def _read_hub_dataset(name: str) -> bad_rows.Rows:
    rows, bad, first, parts = [], [], 1, load_hub_dataset(name)
    for split, part in usual_splits(name, parts).items():
        piece = arrow_piece(part.with_format("arrow")[:], first, f"{name} ({split})")
        own = "split" in piece.frame
        if own and len(parts) > 1:
            log_once(f"{name}: its splits are those of the Hub; its column 'split' is not read.")
        rows.append(piece.frame if own and len(parts) == 1 else piece.frame.assign(split=split))
        bad += piece.bad
        first += len(part)
    return pd.concat(rows), bad


def renamed(
    frame: pd.DataFrame, columns: Mapping[str, str], name: str, needed: Sequence[str] = (), *,
    some_of: Sequence[str] = (),
) -> pd.DataFrame:  # fmt: skip
    """A frame whose columns have our names, given as {ours: theirs}; a ValueError as by [`check_columns`]."""
    check_columns(list(frame), columns, name, needed, some_of)
    shadowed = [o for o, theirs in columns.items() if o != theirs and o in frame and o not in columns.values()]
    for column in map(str, frame):
        if (ours := column.strip().lower()) in _OPTIONAL and column != ours and ours not in frame:
            logger.warning("%s: the column %r is not read; call it %r if it is meant.", name, column, ours)
    return frame.drop(columns=shadowed).rename(columns={theirs: ours for ours, theirs in columns.items()})


def check_columns(
    there: Sequence[str], columns: Mapping[str, str], name: str, needed: Sequence[str], some_of: Sequence[str]
) -> None:
    """Raises a ValueError that names every missing column: of those given as {ours: theirs}, of `needed`, and
    `some_of`, if none of these is there; and for one column that is to have two names."""
    theirs = {ours: columns.get(ours, ours) for ours in dict.fromkeys([*columns, *needed])}
    for column in theirs.values():
        if len(names := [ours for ours, own in theirs.items() if own == column]) > 1:
            raise ValueError(f"{name}: column {column!r} cannot be both {' and '.join(names)}; name one for each.")
    missing = [ours for ours, column in theirs.items() if column not in there]
    names = [repr(theirs[ours]) for ours in missing]
    if some_of and not {*some_of} & {*missing} and not any(columns.get(ours, ours) in there for ours in some_of):
        missing += some_of
        names.append(f"{'and none of ' if names else ''}{' or '.join(map(repr, some_of))}")
    if missing:
        flags = ", ".join(f"--{ours}_column" for ours in missing if ours in _FLAGS)
        python = f"columns={{{missing[0]!r}: ...}}"
        raise ValueError(
            f"{name} has no column {', '.join(names)}; it has {listed(there) or 'none'}. Name yours by "
            f"{f'{flags} (in Python {python})' if flags else python}."
        )


def normalized(
    frame: pd.DataFrame, columns: Sequence[str], scale: tuple[float, float], by: Literal["scale", "observed"] = "scale"
) -> pd.DataFrame:
    """The table with `columns` in [-1, 1], by Eq 12."""
    for column in columns:
        values = frame[column]
        least, greatest = scale if by == "scale" else (values.min(), values.max())
        if least == greatest:
            raise ValueError(
                f"All values of {column} are {least:g}: the observed range is empty; normalise by the scale."
            )
        frame[column] = (2 * (values - least) / (greatest - least) - 1).clip(-1, 1)  # Eq 12
    return frame


def _weighted_by_agreement(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    there = [column for column in VA if column in frame and f"{column}_sd" in frame]
    if "raters" not in frame or not there:
        raise NoRatingsError(
            f"{name} does not say how its raters agree: agreement_weights needs the columns 'raters', a number, and "
            "'valence_sd' or 'arousal_sd'. A column 'weight' of your own needs no agreement_weights."
        )
    labels, deviations = (frame[names].to_numpy(dtype=float) for names in (there, [f"{c}_sd" for c in there]))
    found = weights_by_agreement(labels, deviations, frame["raters"].to_numpy(dtype=float))
    return frame.assign(weight=found * (frame["weight"].fillna(1.0) if "weight" in frame else 1.0))


def report_missing(frame: pd.DataFrame, name: str, dimensions: Sequence[str]) -> list[str]:
    """Those of these columns that some row has a number in. Logs how many rows lack one of them."""
    missing = {c: len(frame) if c not in frame else int(frame[c].isna().sum()) for c in dimensions}
    bad_rows.log_missing(name, missing, len(frame))
    return [column for column in dimensions if missing[column] < len(frame)]


def _standardized(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The table with these labels at mean 0 and standard deviation 1/3 in the training rows."""
    train = frame["split"] == "train" if "split" in frame else np.full(len(frame), True)
    if not train.any():
        raise NoSplitError("There are no training rows to standardize by: --normalization scale.")
    for column in columns:
        values = frame.loc[train, column]
        if values.nunique() < 2:
            raise ValueError(f"{column} does not vary in the training rows: --normalization scale.")
        frame[column] = ((frame[column] - values.mean()) / (3 * values.std(ddof=0))).clip(-1, 1)
    return frame


def _take_split(frame: pd.DataFrame, split: Split, name: str) -> pd.DataFrame:
    if split == "all" or (split == "train" and "split" not in frame):
        return frame
    if "split" not in frame:
        raise NoSplitError(f"{name} has no column 'split', so it has no {split!r} split; it can only be trained on.")
    names = frame["split"].to_numpy(dtype=object)
    if split not in names:
        raise NoSplitError(f"{name} has no rows in split {split!r}; its splits are {listed(sorted(set(names)))}.")
    chosen = (names == split) & without_overlap(frame["text"], names)
    if not chosen.any():
        raise NoSplitError(f"{name}: every text of split {split!r} is in another split too, which is held out.")
    return frame[chosen]
