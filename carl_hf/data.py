"""Texts with valence and arousal: corpora, files, normalisation to [-1, 1], mixing.

Datasets leave this module with the columns `text`, `valence`, `arousal` (in [-1, 1]) and, where the source has one,
`label`.
"""

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import pandas as pd
from datasets import Dataset

from carl_hf.corpora import CORPORA, CorpusSpec, read_corpus
from carl_hf.label_spaces import LabelSpace

logger = logging.getLogger(__name__)

_FEATURES = {"text": "string", "valence": "float64", "arousal": "float64", "label": "string"}


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
    return _with_columns(dataset, [column for column in _FEATURES if column in frame])


def check_dataset(dataset: Dataset, name: str, needs: Collection[str] = ("va",)) -> None:
    """Checks that `dataset` can be trained on: a text in every row, and valence and arousal in [-1, 1], a label, or
    both; None where a row has none.

    Args:
        needs: what some rows must carry: `"va"`, numbers; `"class"`, a label; `"angle"`, either.

    Raises:
        ValueError: it names the dataset, the column, the first bad row (counted from 0) and the remedy.
    """
    has = set(dataset.column_names)
    lacking = [column for column in ("text", "valence", "arousal") if column not in has]
    if "label" in has and {"valence", "arousal"} <= set(lacking):
        lacking = [column for column in lacking if column == "text" or "va" in needs]
    if "class" in needs and "label" not in has:
        lacking.append("label")
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
    named = [None] * len(dataset) if "label" not in has else list(dataset["label"])
    for row, label in enumerate(named):
        if label is not None and (not isinstance(label, str) or not label.strip()):
            raise ValueError(f"{name}, row {row}: label is {label!r}, not a name; give the class's name, or None.")
    valences, arousals = (
        list(dataset[column]) if column in has else [None] * len(dataset) for column in ("valence", "arousal")
    )
    numbered = [False] * len(dataset)
    for row, (valence, arousal) in enumerate(zip(valences, arousals, strict=True)):
        if valence is None and arousal is None and named[row] is not None:
            continue
        numbered[row] = True
        for column, value, other in (("valence", valence, arousal), ("arousal", arousal, valence)):
            if not isinstance(value, (int, float)) or not -1 <= value <= 1:  # NaN fails both comparisons
                half = f" ({'arousal' if column == 'valence' else 'valence'} is {other!r})" if value is None else ""
                raise ValueError(
                    f"{name}, row {row}: {column} is {value!r}{half}, not a number in [-1, 1]; load it with "
                    "load_va_dataset(..., scale=(least, greatest)), which normalises. A text without numbers has None "
                    "for both, and a label."
                )
    for kind, rows, what in (("va", numbered, "valence and arousal"), ("class", named, "a label")):
        if kind in needs and not any(rows):
            raise ValueError(f"{name}: no text has {what}, which the objectives need.")


def label_names(dataset: Dataset) -> list[str]:
    """The distinct names in the column `label`, sorted; none without that column."""
    return sorted(set(dataset["label"]) - {None}) if "label" in dataset.column_names else []


def numbered_rows(dataset: Dataset) -> Dataset:
    """The rows that have valence and arousal; none without such columns."""
    if not {"valence", "arousal"} <= set(dataset.column_names):
        return dataset.select([])
    values = zip(dataset["valence"], dataset["arousal"], strict=True)
    return dataset.select([row for row, pair in enumerate(values) if None not in pair])


def numbers_from_names(dataset: Dataset, space: LabelSpace) -> Dataset:
    """The dataset in which texts without numbers have those of their `label` in a label space.

    Raises:
        ValueError: for a label that the space does not know; the message lists those that it knows.
    """
    columns = {c: list(dataset[c]) if c in dataset.column_names else [None] * len(dataset) for c in _FEATURES}
    bare = [i for i in range(len(dataset)) if None in (columns["valence"][i], columns["arousal"][i])]
    known = space.va_of({columns["label"][i] for i in bare} - {None})
    for i in bare:
        if columns["label"][i] is not None:
            columns["valence"][i], columns["arousal"][i] = known[columns["label"][i]]
    return _with_columns(Dataset.from_dict(columns), list(_FEATURES))


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
    columns = [column for column in _FEATURES if any(column in part.column_names for part, _ in parts)]
    chosen = []
    for dataset, weight in parts:
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"A mixing weight must be a number >= 0, got {weight}.")
        whole, part = divmod(weight, 1)
        rows = np.concatenate(
            [np.tile(np.arange(len(dataset)), int(whole)),
             np.sort(rng.permutation(len(dataset))[: round(part * len(dataset))])]
        )  # fmt: skip
        chosen.append(_with_columns(dataset.select(rows.astype(int)), columns))
    mixed = datasets.concatenate_datasets(chosen)
    if len(mixed) == 0:
        raise ValueError("The mixture of training corpora is empty: raise a weight.")
    return mixed


def _with_columns(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    """`dataset` with these columns and no other, None where it has none; labels as text."""
    values = {c: list(dataset[c]) if c in dataset.column_names else [None] * len(dataset) for c in columns}
    if "label" in values:
        values["label"] = [None if _is_blank(label) else str(label) for label in values["label"]]
    features = datasets.Features({column: datasets.Value(_FEATURES[column]) for column in columns})
    return Dataset.from_dict(values, features=features)


def _is_blank(cell: object) -> bool:
    return cell is None or cell != cell or not str(cell).strip()


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
                frame[column] = [feature.int2str(int(number)) for number in frame[column]]
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


def text_key(text: str) -> str:
    """What two texts share that are the same up to case and white space."""
    return " ".join(text.casefold().split())
