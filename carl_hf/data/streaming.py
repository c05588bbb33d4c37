"""Corpora that do not fit into memory, read and checked piece by piece."""

import glob
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa

from carl_hf.data.bad_rows import BadRow, Rule, Skipped, log_missing, refuse, report_skipped
from carl_hf.data.corpora import DIMENSIONS
from carl_hf.data.files import PIECE, SUFFIXES, Piece, Wanted, arrow_piece, column_names, read_pieces
from carl_hf.data.hub_sets import load_hub_dataset
from carl_hf.data.loading import NO_GOOD_ROW, SKIP_REMEDY, check_columns, normalized, parse_va_rows, renamed, va_rules
from carl_hf.data.mixing import VA
from carl_hf.data.splits import text_key, text_keys
from carl_hf.utils.suggestions import listed

logger = logging.getLogger(__name__)

PIECEWISE = tuple(kind for kind in SUFFIXES if kind != ".json")  # a JSON array cannot be cut into pieces
_OPTIONAL = (*DIMENSIONS, "split", "label", "weight")


@dataclass(frozen=True)
class PiecewiseTable:
    """A table that is read in pieces."""

    name: str  # in messages
    pieces: Callable[[Wanted | None], Iterator[Piece]]  # of those not wanted, perhaps the row numbers alone


def open_tables(
    sources: Sequence[str], columns: Sequence[str], optional: Collection[str] | None = (), va: Sequence[str] = ()
) -> list[PiecewiseTable]:
    """The tables that `sources` name, in order.

    Args:
        sources: files (.csv, .tsv, .jsonl, .parquet), folders of such files, glob patterns (files of both in the order
            of their names), or ids of Hub data sets, whose splits follow each other with a column `split`.
        columns: those that each must have; in JSON lines, one of its first lines. optional: those that are read too,
            where they are there; None: all. va: of these, any that are named, a file must have one. Of Parquet files
            and Hub data sets no others are read.

    Raises:
        ValueError: for what is none of these, or lacks a column; and when it is read, for a file too damaged to be.
    """
    tables = []
    for source in sources:
        path, files = Path(source), files_of(source)
        if files:
            tables += [_open_file(file, columns, optional, va) for file in files]
        elif path.suffix.lower() not in SUFFIXES and source.count("/") == 1 and not path.exists():
            splits = load_hub_dataset(source)
            tables += [_open_split(f"{source} ({split})", splits[split], split, columns, optional) for split in splits]
        else:
            raise ValueError(
                f"{source}: there is no such file, no folder or pattern with {', '.join(PIECEWISE)} files, and it is "
                "no id of a Hub data set (owner/name or owner/name:configuration)."
            )
    return tables


def files_of(source: str) -> list[Path]:
    """The files that a file's name, a folder or a pattern stands for; none for anything else."""
    path = Path(source)
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in PIECEWISE)
    found = [source] if path.is_file() else sorted(glob.glob(source, recursive=True))
    return [file for file in map(Path, found) if file.is_file()]


def _open_file(
    path: Path, columns: Sequence[str], optional: Collection[str] | None, va: Sequence[str]
) -> PiecewiseTable:
    kind = path.suffix.lower()
    if kind not in PIECEWISE:
        hint = " Write it as JSON lines." if kind == ".json" else ""
        raise ValueError(f"{path}: only {', '.join(PIECEWISE)} files can be read piece by piece.{hint}")
    names = there = column_names(path)
    if names is None:  # JSON lines, whose first may all be bad rows
        there = [*next((piece.frame for piece in read_pieces(path, rows=100)), ())] or [*columns, *va]
    read = _chosen(str(path), there, columns, None if optional is None else (*optional, *va))
    if va:
        check_columns(there, {}, str(path), (), va)
    return PiecewiseTable(str(path), lambda wanted: read_pieces(path, columns=read, wanted=wanted))


def _chosen(name: str, there: Sequence[str], columns: Sequence[str], optional: Collection[str] | None) -> list[str]:
    """The columns to read; a ValueError if one that is needed is not there."""
    if missing := [column for column in dict.fromkeys(columns) if column not in there]:
        hint = " --text_column names the column of the texts." if columns[0] in missing else ""
        names = ", ".join(map(repr, missing))
        raise ValueError(f"{name} has no column {names}; it has {listed(there) or 'none'}.{hint}")
    return [column for column in there if optional is None or column in columns or column in optional]


def _open_split(
    name: str, rows: datasets.Dataset, split: str, columns: Sequence[str], optional: Collection[str] | None
) -> PiecewiseTable:
    read = _chosen(name, list(dict.fromkeys([*rows.column_names, "split"])), columns, optional)
    adds_split = "split" in read and "split" not in rows.column_names
    rows = rows.select_columns([column for column in read if column in rows.column_names]).with_format("arrow")

    def pieces(wanted: Wanted | None) -> Iterator[Piece]:
        for first in range(0, len(rows), PIECE):
            table = rows[first : first + PIECE]
            if adds_split:
                table = table.append_column("split", pa.array([split] * len(table)))
            yield arrow_piece(table, first + 1, name)

    return PiecewiseTable(name, pieces)


def stream_va_dataset(
    sources: Sequence[str], *, scale: tuple[float, float] | None, columns: Mapping[str, str] | None = None,
    held_out: Iterable[str] = (), skip_bad_rows: bool = False, shuffle_buffer: int = 10_000, seed: int = 42,
    skipped: dict[str, Skipped] | None = None, dominance: bool = False,
) -> datasets.IterableDataset:  # fmt: skip
    """Streams files of texts with valence, arousal or both, normalised to [-1, 1] by Eq 12 from their scale.

    Each pass takes the files in another order and draws from a buffer of so many texts: files that are sorted (by
    time, by label) are better cut into many.

    Of a file with a column `split` only the training rows are taken; unlike [`load_va_dataset`], also those whose text
    is in another split, which is known only when all has been read. Name such texts in `held_out`.

    Args:
        sources: files (.csv, .tsv, .jsonl, .parquet), folders of them, glob patterns.
        scale: (least, greatest) value of the labels' scale. columns: names of `text`, `valence`, `arousal`, `split`,
            `label` and `weight` in the files, where they differ.
        held_out: texts that are left out, up to case and white space.
        skip_bad_rows: leave out the rows that [`find_bad_rows`] names, instead of stopping at the first. The log
            reports the first of each kind, and all at the end of each file. Other columns of Parquet files are not
            read, and so never bad.
        shuffle_buffer: texts in the buffer; 1 keeps their order. seed: of both.
        skipped: is filled with what is left out of each file, in the pass that has read most of it. It stays empty
            where another process reads (a worker of a data loader).
        dominance: also read the column `dominance`, where a file has it.

    Raises:
        ValueError: for no such file, a missing column or scale; and when it is iterated, for a bad row, or a file
            whose rows are all bad; it names the file and the row.
    """
    if isinstance(sources, str | Path):
        raise ValueError(f"sources is a list of files, got one name: pass ['{sources}'].")
    rules = va_rules(scale, ", ".join(sources), dominance=dominance)
    if shuffle_buffer < 1:
        raise ValueError(f"shuffle_buffer must be at least 1, got {shuffle_buffer}.")
    columns = dict(columns or {})
    for ours in columns:
        if ours not in rules:
            raise ValueError(f"columns: {ours!r} is none of {', '.join(rules)}.")
    names = columns | {ours: ours for ours in rules if ours not in columns and ours not in columns.values()}
    for ours in ("text", *VA):
        if ours not in names:
            raise ValueError(f"columns: {ours!r} is named for another column; name one for {ours!r} too.")
    needed = [names["text"], *columns.values()]
    files = [table.name for table in open_tables(sources, needed, va=[names[ours] for ours in VA])]
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"{file}: only {', '.join(PIECEWISE)} files are streamed.")
    stream = datasets.IterableDataset.from_generator(
        _rows,
        gen_kwargs={
            "files": files, "names": names, "scale": tuple(scale),
            "held_out": frozenset(text_keys(held_out, "held_out")),
            "skip_bad_rows": skip_bad_rows, "log": _Log({} if skipped is None else skipped),
            "dimensions": DIMENSIONS if dominance else VA,
        },
    )  # fmt: skip
    return stream.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer > 1 else stream


@dataclass
class _Log:
    """What has been left out of a stream: of each file in the pass that read most of it, and the kinds reported."""

    files: dict[str, Skipped]
    kinds: set[str] = field(default_factory=set)


def _rows(
    files: list[str], names: dict[str, str], scale: tuple[float, float], held_out: frozenset[str],
    skip_bad_rows: bool, log: _Log, dimensions: Sequence[str],
) -> Iterator[dict[str, object]]:  # fmt: skip
    for file in files:
        skipped, first, good, missing = Skipped(), None, 0, Counter()
        try:
            for frame, bad in _checked_pieces(file, names, va_rules(scale, file, dominance=len(dimensions) > 2)):
                if not skip_bad_rows:
                    refuse(file, bad, SKIP_REMEDY)
                for row in bad:
                    skipped.add(row)
                    if row.reason not in log.kinds:
                        log.kinds.add(row.reason)
                        logger.warning("%s, row %d: %s; left out, as others will be (%s).",
                                       file, row.number, row.detail, row.reason)  # fmt: skip
                if skipped.rows > log.files.get(file, Skipped()).rows:
                    log.files[file] = skipped
                first = first or next(iter(bad), None)
                good += len(frame)
                if len(frame) == 0:
                    continue
                missing.update(frame[[*dimensions]].isna().sum().to_dict())
                frame = normalized(frame, dimensions, scale)
                if "split" in frame:
                    frame = frame[frame["split"] == "train"]
                read = [*dimensions, *(column for column in ("label", "weight") if column in frame)]
                for text, *found in zip(frame["text"], *(frame[name] for name in read), strict=True):
                    if text_key(text) not in held_out:
                        cells = (None if cell != cell else cell for cell in found)  # NaN is a missing number
                        yield {"text": text, **dict(zip(read, cells, strict=True))}
            if first is not None and not good:
                others = f" ({skipped.rows - 1} more bad rows follow)" if skipped.rows > 1 else ""
                raise ValueError(f"{file}, row {first.number}: {first.detail}{others}; {NO_GOOD_ROW}.")
        finally:  # at the end of the file, and where a run ends within it
            report_skipped(file, skipped)
            log_missing(file, missing, good)


def _checked_pieces(
    file: str, names: dict[str, str], rules: Mapping[str, Rule]
) -> Iterator[tuple[pd.DataFrame, list[BadRow]]]:
    """The good rows of a file, with our names of the columns, and the bad ones, in order."""
    optional = [names[ours] for ours in _OPTIONAL if ours in names]
    (table,) = open_tables([file], [names["text"]], optional)
    has_split = None
    for piece in table.pieces(None):
        frame, bad = piece.frame, piece.bad
        if len(frame):
            there = {ours: theirs for ours, theirs in names.items() if theirs in frame}
            frame = renamed(frame, there, file).copy()
            if has_split is None:
                has_split = "split" in frame
            elif "split" in frame and not has_split:
                raise ValueError(
                    f"{file}: one of the rows {frame.index[0]} to {frame.index[-1]} has a {names['split']!r}, those "
                    "before have none; give all rows one, or none."
                )
            for ours in ("text", *(c for c in DIMENSIONS if c in rules), *(["split"] if has_split else [])):
                if ours not in frame:  # in this file, or in these rows of JSON lines
                    frame[ours] = None
            frame, bad = parse_va_rows(frame, rules, bad)
        yield frame, bad
