"""Tables of any size, read piece by piece: files and Hub data sets as one run of rows.

What is in memory at a time does not grow with the tables.
"""

import contextlib
import glob
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_PIECE = 8192  # rows read together

Wanted = Callable[[int, int], bool]
"""Whether any row of [first, stop) is wanted."""


@dataclass(frozen=True)
class PiecewiseTable:
    """A table that is read in pieces.

    Args:
        name: what messages call it.
        pieces: yields (number of the first row, `pyarrow.Table`) in order, for all rows that are wanted and perhaps
            others.
    """

    name: str
    pieces: Callable[[Wanted], Iterator[tuple[int, pa.Table]]]


def open_tables(sources: Sequence[str], columns: Sequence[str]) -> list[PiecewiseTable]:
    """The tables that `sources` name, in order, with `columns` alone.

    Args:
        sources: files (.csv, .tsv, .jsonl, .parquet), folders of such files, glob patterns (files of both in the order
            of their names), or ids of Hub data sets, whose parts follow each other with a column `split`.

    Raises:
        ValueError: for what is none of these, or lacks a column. Reading raises it for a row that cannot be read.
    """
    return [table for source in sources for table in _open(source, columns)]


def _open(source: str, columns: Sequence[str]) -> list[PiecewiseTable]:
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    elif path.is_file():
        files = [path]
    else:
        files = sorted(Path(found) for found in glob.glob(source, recursive=True))
    if files:
        return [_open_file(file, columns) for file in files]
    if path.suffix.lower() not in SUFFIXES and source.count("/") == 1 and not path.exists():
        return _open_hub_dataset(source, columns)
    raise ValueError(
        f"{source}: there is no such file, no folder or pattern with {', '.join(SUFFIXES)} files, and it is no id of "
        "a Hub data set (owner/name)."
    )


def _open_file(path: Path, columns: Sequence[str]) -> PiecewiseTable:
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        hint = " Write it as JSON lines." if kind == ".json" else ""
        raise ValueError(f"{path}: only {', '.join(SUFFIXES)} files can be read piece by piece.{hint}")
    with _readable(path):
        if kind == ".parquet":
            _check_columns(str(path), columns, pq.read_schema(path).names)
            return PiecewiseTable(str(path), lambda wanted: _parquet_pieces(path, columns, wanted))
        if kind == ".jsonl":
            first = next(_json_rows(path), (1, {}))[1]
            _check_columns(str(path), columns, first)
            return PiecewiseTable(str(path), lambda _: _json_pieces(path, columns))
        separator = "\t" if kind == ".tsv" else ","
        header = pd.read_csv(path, sep=separator, nrows=0, encoding="utf-8")
        _check_columns(str(path), columns, header.columns)
        return PiecewiseTable(str(path), lambda _: _csv_pieces(path, columns, separator))


def _check_columns(name: str, columns: Sequence[str], there: Collection[str]) -> None:
    for column in columns:
        if column not in there:
            raise ValueError(f"{name} has no column {column!r}; it has {', '.join(map(str, there)) or 'none'}.")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Errors of the libraries that read a file, as a ValueError that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; convert it.") from error
    except (OSError, ValueError) as error:  # pandas' and pyarrow's errors are ValueErrors
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is empty or cannot be read: {error}") from error


def _parquet_pieces(path: Path, columns: Sequence[str], wanted: Wanted) -> Iterator[tuple[int, pa.Table]]:
    first = 0
    with _readable(path), pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            if wanted(first, stop):
                at = first
                for batch in file.iter_batches(_PIECE, row_groups=[group], columns=list(columns)):
                    yield at, pa.Table.from_batches([batch]).select(columns)
                    at += batch.num_rows
            first = stop


def _csv_pieces(path: Path, columns: Sequence[str], separator: str) -> Iterator[tuple[int, pa.Table]]:
    schema = pa.schema([(column, pa.string()) for column in columns])  # cells of text files stay text
    with _readable(path):
        frames = pd.read_csv(
            path, sep=separator, usecols=list(columns), dtype=str, keep_default_na=False, encoding="utf-8",
            chunksize=_PIECE,
        )  # fmt: skip
        with frames:
            first = 0
            for frame in frames:
                yield first, pa.Table.from_pandas(frame, schema, preserve_index=False)
                first += len(frame)


def _json_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """(number of the line, its object)"""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error}); correct the line.") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: {line.strip()[:40]!r} is no JSON object; correct the line.")
            yield number, row


def _json_pieces(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    with _readable(path):
        rows, first = _json_rows(path), 0
        while piece := list(itertools.islice(rows, _PIECE)):
            cells = {}
            for column in columns:
                try:
                    cells[column] = pa.array([row.get(column) for _, row in piece])
                except (pa.ArrowException, UnicodeError) as error:
                    lines = f"lines {piece[0][0]} to {piece[-1][0]}"
                    raise ValueError(
                        f"{path}, {lines}: the values of column {column!r} are of several types or no valid text "
                        f"({error}); correct them."
                    ) from error
            yield first, pa.table(cells)
            first += len(piece)


def _open_hub_dataset(name: str, columns: Sequence[str]) -> list[PiecewiseTable]:
    try:
        parts = datasets.load_dataset(name)  # on disk, mapped into memory
    except Exception as error:  # whatever the Hub client raises
        raise ValueError(
            f"{name}: there is no such file or folder, and the Hub gave no such data set ({type(error).__name__}: "
            f"{str(error).splitlines()[0]})."
        ) from error
    return [_open_part(f"{name} ({split})", part, split, columns) for split, part in parts.items()]


def _open_part(name: str, part: datasets.Dataset, split: str, columns: Sequence[str]) -> PiecewiseTable:
    _check_columns(name, columns, [*part.column_names, "split"])
    rows = part.select_columns([column for column in columns if column in part.column_names]).with_format("arrow")

    def pieces(wanted: Wanted) -> Iterator[tuple[int, pa.Table]]:
        for first in range(0, len(rows), _PIECE):
            stop = min(first + _PIECE, len(rows))
            if wanted(first, stop):
                table = rows[first:stop]
                if "split" in columns and "split" not in table.column_names:
                    table = table.append_column("split", pa.array([split] * len(table)))
                yield first, table.select(columns)

    return PiecewiseTable(name, pieces)
