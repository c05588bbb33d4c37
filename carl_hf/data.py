"""Texts with valence and arousal: corpora, files, normalisation to [-1, 1].

Datasets leave this module with the columns `text`, `valence`, `arousal` (in [-1, 1]) and, where the source has one,
`label`.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import pandas as pd
from datasets import Dataset

from carl_hf.corpora import CORPORA, CorpusSpec, read_corpus
from carl_hf.mixtures import COLUMNS, text_key, with_columns

logger = logging.getLogger(__name__)


class NoSplitError(ValueError):
    """A source has no such part."""


Split = Literal["train", "validation", "test", "all"]
_SPLIT_NAMES = {"dev": "validation", "val": "validation", "valid": "validation"}


def load_va_dataset(
    source: str | Path,
    *,
    split: Split = "all",
    data_dir: str | Path | None = None,
    scale: tuple[float, float] | None = None,
    columns: Mapping[str, str] | None = None,
    normalization: Literal["scale", "observed"] = "scale",
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
            source.

    Returns:
        `datasets.Dataset` with `text`, `valence`, `arousal` and, where the source has it, `label`: a name, None where
        the cell is empty.

    Raises:
        ValueError: for an unknown source, an unreadable or empty file, a missing column, an empty text, a label that
            is no number or lies outside the scale, or an unknown split; it names the column, the row and the remedy.
    """
    if split not in ("train", "validation", "test", "all"):
        raise ValueError(f"Unknown split {split!r}: choose 'train', 'validation', 'test' or 'all'.")
    if normalization not in ("scale", "observed"):
        raise ValueError(f"Unknown normalization {normalization!r}: choose 'scale' or 'observed'.")
    name = str(source)
    spec = CORPORA.get(name)
    if spec is not None:
        frame, scale = read_corpus(spec, data_dir), scale or spec.scale
    else:
        frame = read_source(source)
        if scale is None:
            raise ValueError(f"{name}: state the scale of its labels, such as scale=(1, 9) (--scale 1 9).")
    frame = check_table(_renamed(frame, columns or {}, name), ("valence", "arousal"), scale, name, spec)
    frame = normalized(frame, ("valence", "arousal"), scale, normalization)
    frame = _take_split(frame, split, name)
    dataset = Dataset.from_pandas(frame, preserve_index=False)
    return with_columns(dataset, [column for column in COLUMNS if column in frame])


_TABLES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")


def read_source(source: str | Path) -> pd.DataFrame:
    """The table of a file or of a Hub data set, the latter with a column `split`.

    Raises:
        ValueError: for what is neither, or cannot be read.
    """
    path = Path(source)
    if path.suffix.lower() in _TABLES or path.exists():
        return read_table(path)
    if str(source).count("/") == 1:
        return _read_hub_dataset(str(source))
    raise ValueError(
        f"Unknown corpus {str(source)!r}: choose one of {', '.join(CORPORA)}, a .csv, .tsv, .parquet, .json or "
        ".jsonl file, or a Hub dataset id (owner/name)."
    )


def read_table(path: Path) -> pd.DataFrame:
    """Reads a .csv, .tsv, .parquet, .json or .jsonl file in UTF-8; cells of text files stay text.

    Raises:
        ValueError: if the file is not there, of another kind, empty or damaged.
    """
    if path.suffix.lower() not in _TABLES:
        raise ValueError(f"{path}: cannot read this kind of file; give a {', '.join(_TABLES[:-1])} or .jsonl file.")
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        if path.suffix.lower() in (".json", ".jsonl"):
            is_array = path.read_text(encoding="utf-8").lstrip().startswith("[")
            return pd.read_json(path, lines=not is_array, dtype=False, encoding="utf-8")
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        return pd.read_csv(path, sep=separator, keep_default_na=False, dtype=str, encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); convert it.") from error
    except (ValueError, OSError) as error:  # pandas' and pyarrow's errors are ValueErrors
        raise ValueError(f"{path} is empty or cannot be read: {error}") from error


def _read_hub_dataset(name: str) -> pd.DataFrame:
    try:
        parts = datasets.load_dataset(name)
    except Exception as error:  # whatever the Hub client raises
        raise ValueError(
            f"Cannot load the Hub dataset {name!r} ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "With a local copy, give its file instead."
        ) from error
    frames = []
    for split, part in parts.items():
        frame = part.to_pandas()
        for column, feature in part.features.items():
            if isinstance(feature, datasets.ClassLabel):
                known = frame[column].fillna(-1).astype(int)
                frame[column] = [feature.int2str(number) if number >= 0 else None for number in known]
        frames.append(frame.assign(split=split))
    return pd.concat(frames, ignore_index=True)


def _renamed(frame: pd.DataFrame, columns: Mapping[str, str], name: str) -> pd.DataFrame:
    if len(frame) == 0:
        raise ValueError(f"{name} has no rows.")
    for ours, theirs in columns.items():
        if theirs not in frame:
            raise ValueError(f"{name} has no column {theirs!r} for {ours!r}; it has {', '.join(map(str, frame))}.")
    shadowed = [ours for ours, theirs in columns.items() if ours != theirs and ours in frame]
    frame = frame.drop(columns=shadowed).rename(columns={theirs: ours for ours, theirs in columns.items()})
    for column in ("text", "valence", "arousal"):
        if column not in frame:
            raise ValueError(
                f"{name} has no column {column!r}; it has {', '.join(map(str, frame))}. Name the right one: "
                f"columns={{{column!r}: ...}} (--{column}_column)."
            )
    return frame.reset_index(drop=True)


def check_table(
    frame: pd.DataFrame, columns: Sequence[str], scale: tuple[float, float], name: str, spec: CorpusSpec | None
) -> pd.DataFrame:
    """The table with `columns` as numbers.

    Raises:
        ValueError: for an empty text, a label that is no number or lies outside the scale (unless the corpus is known
            to leave it and is clipped); it names the row and the column.
    """
    least, greatest = scale
    if not (math.isfinite(least) and math.isfinite(greatest) and least < greatest):
        raise ValueError(f"The scale must be (least, greatest), two numbers, got {scale}.")
    for row, text in enumerate(frame["text"], 1):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}, row {row}: column 'text' is empty; remove the row.")
    for column in columns:
        numbers = pd.to_numeric(frame[column], errors="coerce")
        bad = ~np.isfinite(numbers.to_numpy(dtype=float))
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"{name}, row {row + 1}: column {column!r} holds {frame[column].iloc[row]!r}, not a number; "
                "correct or remove the row."
            )
        outside = (numbers < least) | (numbers > greatest)
        if spec is not None and spec.clips_to_scale and outside.any():
            logger.warning(
                "%s: %d values of %s outside [%g, %g] were clipped.", name, outside.sum(), column, least, greatest
            )
            numbers = numbers.clip(least, greatest)
        elif outside.any():
            row = int(outside.to_numpy().argmax())
            raise ValueError(
                f"{name}, row {row + 1}: {column} is {numbers.iloc[row]:g}, outside the stated scale [{least:g}, "
                f"{greatest:g}]; correct the row or the scale."
            )
        frame[column] = numbers.astype(float)
    return frame


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
        raise NoSplitError(f"{name} has no rows in split {split!r}; its splits are {', '.join(sorted(set(names)))}.")
    return part[without_overlap(frame["text"], names)[names == split]] if split == "train" else part


def split_names(frame: pd.DataFrame) -> np.ndarray:
    """The column `split` in lower case, every name for the development part as "validation"."""
    return frame["split"].astype(str).str.strip().str.lower().replace(_SPLIT_NAMES).to_numpy(dtype=object)


def without_overlap(texts: Iterable[str], split: np.ndarray) -> np.ndarray:
    """(N,) booleans: False for a training text that stands in another split, and a validation text that stands in the
    test split."""
    keys = np.array([text_key(text) for text in texts], dtype=object)
    test = set(keys[split == "test"])
    held_out = set(keys[split != "train"])
    return np.array(
        [
            not (part == "train" and key in held_out) and not (part == "validation" and key in test)
            for key, part in zip(keys, split, strict=True)
        ],
        dtype=bool,
    )
