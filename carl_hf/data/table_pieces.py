"""Tables of any size, read piece by piece: files and Hub data sets as one run of rows.

What is in memory at a time does not grow with the tables.
"""

import glob
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa

from carl_hf.data.files import PIECE, SUFFIXES, Piece, Wanted, arrow_piece, column_names, load_hub_dataset, read_pieces
from carl_hf.utils.suggestions import listed

PIECEWISE = tuple(kind for kind in SUFFIXES if kind != ".json")  # an array is no run of pieces
_FIRST_LINES = 100  # of a file of JSON lines, that say which columns it has


@dataclass(frozen=True)
class PiecewiseTable:
    """A table that is read in pieces.

    Args:
        name: what messages call it.
        pieces: yields those in order that hold wanted rows, and perhaps others.
    """

    name: str
    pieces: Callable[[Wanted], Iterator[Piece]]


def open_tables(
    sources: Sequence[str], columns: Sequence[str], optional: Collection[str] = ()
) -> list[PiecewiseTable]:
    """The tables that `sources` name, in order.

    Args:
        sources: files (.csv, .tsv, .jsonl, .parquet), folders of such files, glob patterns (files of both in the order
            of their names), or ids of Hub data sets, whose parts follow each other with a column `split`.
        columns: those that each must have; in JSON lines, one of its first lines. optional: those that are read too,
            where they are there. Of Parquet files and Hub data sets no others are read.

    Raises:
        ValueError: for what is none of these, or lacks a column. Reading raises it for a file so damaged that its rows
            cannot be told apart.
    """
    return [table for source in sources for table in _open(source, columns, optional)]


def _open(source: str, columns: Sequence[str], optional: Collection[str]) -> list[PiecewiseTable]:
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in PIECEWISE)
    elif path.is_file():
        files = [path]
    else:
        files = sorted(file for found in glob.glob(source, recursive=True) if (file := Path(found)).is_file())
    if files:
        return [_open_file(file, columns, optional) for file in files]
    if path.suffix.lower() not in SUFFIXES and source.count("/") == 1 and not path.exists():
        parts = load_hub_dataset(source)
        return [_open_part(f"{source} ({split})", part, split, columns, optional) for split, part in parts.items()]
    raise ValueError(
        f"{source}: there is no such file, no folder or pattern with {', '.join(PIECEWISE)} files, and it is no id of "
        "a Hub data set (owner/name)."
    )


def _open_file(path: Path, columns: Sequence[str], optional: Collection[str]) -> PiecewiseTable:
    kind = path.suffix.lower()
    if kind not in PIECEWISE:
        hint = " Write it as JSON lines." if kind == ".json" else ""
        raise ValueError(f"{path}: only {', '.join(PIECEWISE)} files can be read piece by piece.{hint}")
    names = column_names(path)
    if names is None:
        first = next(read_pieces(path, rows=_FIRST_LINES), None)
        if first is not None and len(first.frame):
            _check_columns(str(path), columns, first.frame)
        return PiecewiseTable(str(path), lambda wanted: read_pieces(path, wanted=wanted))
    _check_columns(str(path), columns, names)
    read = [name for name in names if name in columns or name in optional]
    return PiecewiseTable(str(path), lambda wanted: read_pieces(path, columns=read, wanted=wanted))


def _check_columns(name: str, columns: Sequence[str], there: Collection[str]) -> None:
    for column in columns:
        if column not in there:
            raise ValueError(f"{name} has no column {column!r}; it has {listed(there) or 'none'}.")


def _open_part(
    name: str, part: datasets.Dataset, split: str, columns: Sequence[str], optional: Collection[str]
) -> PiecewiseTable:
    _check_columns(name, columns, [*part.column_names, "split"])
    read = [column for column in part.column_names if column in columns or column in optional]
    rows = part.select_columns(read).with_format("arrow")
    adds_split = "split" in (*columns, *optional) and "split" not in read

    def pieces(wanted: Wanted) -> Iterator[Piece]:
        for first in range(0, len(rows), PIECE):
            stop = min(first + PIECE, len(rows))
            if wanted(first, stop):
                table = rows[first:stop]
                if adds_split:
                    table = table.append_column("split", pa.array([split] * len(table)))
                yield arrow_piece(table, first + 1, name)

    return PiecewiseTable(name, pieces)
