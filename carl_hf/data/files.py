"""Files of rows: CSV, TSV, Parquet, JSON and JSON lines, all in UTF-8, and the rows in them that cannot be read.

Rows are counted from 1, without the header. A row of CSV may go over several lines; a row of JSON lines is a line.
Cells of CSV and TSV files are strings, those of the others Python's own types, and None where a row has no such cell.
A file is read piece by piece, so that of what is not kept a piece is in memory at a time; a JSON array, which cannot
be cut, is one piece.
"""

import contextlib
import csv
import itertools
import json
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from carl_hf.data.bad_rows import BadRow, is_unicode, refuse

SUFFIXES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")
PIECE = 8192
"""Rows read together."""
_LONGEST_CELL = 2**31 - 1
REMEDY = "correct or remove the row"

Wanted = Callable[[int, int], bool]
"""Whether any row of [first, stop), counted from 0, is wanted."""


@dataclass(frozen=True)
class Table:
    """The rows of a file that can be read, under their numbers as index, and those that cannot."""

    frame: pd.DataFrame
    bad: list[BadRow]


@dataclass(frozen=True)
class Piece(Table):
    """Rows that follow each other.

    Args:
        first: number of the first. length: how many there are, with those that cannot be read.
        arrow: all of them as Parquet files and Hub data sets hold them, with their types; None of text files.
    """

    first: int
    length: int
    arrow: pa.Table | None = None


def read_table(path: Path, *, comment: str | None = None) -> pd.DataFrame:
    """The table of a file all of whose rows can be read, under a plain index.

    Raises:
        ValueError: as [`read_rows`], and for the first row that cannot be read; it names the row.
    """
    table = read_rows(path, comment=comment)
    refuse(path, table.bad, REMEDY)
    return table.frame.reset_index(drop=True)


def read_rows(path: Path, *, comment: str | None = None) -> Table:
    """Reads a .csv, .tsv, .parquet, .json (an array, or lines) or .jsonl file.

    Args:
        comment: what the lines of a CSV or TSV file begin with that are no rows.

    Raises:
        ValueError: if the file is not there, of another kind, empty, or so damaged that its rows cannot be told apart.
    """
    names = column_names(path, comment=comment)
    pieces = list(read_pieces(path, comment=comment, rows=PIECE if path.suffix.lower() == ".parquet" else sys.maxsize))
    bad = [row for piece in pieces for row in piece.bad]
    if not pieces:
        return Table(pd.DataFrame(columns=names, dtype=object), bad)
    return Table(pd.concat([piece.frame for piece in pieces]) if len(pieces) > 1 else pieces[0].frame, bad)


def column_names(path: Path, *, comment: str | None = None) -> list[str] | None:
    """The names of a file's columns, all different; None of JSON, whose rows have names of their own.

    Raises:
        ValueError: as [`read_rows`].
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"{path}: cannot read this kind of file; give a {', '.join(SUFFIXES[:-1])} or .jsonl file.")
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    if kind in (".json", ".jsonl"):
        return None
    with _readable(path):
        if kind == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
        else:
            with _csv_reader(path, comment) as reader, _long_cells():
                names = _header(path, reader)
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise ValueError(f"{path} has two columns {reprlib.repr(twice)}: rename or remove one.")
    return names


def read_pieces(
    path: Path,
    *,
    comment: str | None = None,
    rows: int = PIECE,
    columns: Sequence[str] | None = None,
    wanted: Wanted = lambda first, stop: True,
) -> Iterator[Piece]:
    """The same rows, in order, piece by piece; as [`column_names`] has accepted the file.

    Args:
        rows: of a piece, at most. columns: those that are read of a Parquet file (default: all).
        wanted: row groups of Parquet files without a wanted row are passed over; of other files all is read.

    Raises:
        ValueError: as [`read_rows`], when the reading comes to it.
    """
    kind = path.suffix.lower()
    with _readable(path):
        if kind == ".parquet":
            yield from _parquet_pieces(path, rows, columns, wanted)
        elif kind in (".json", ".jsonl"):
            for first, found in _taken(_json_rows(path), rows):
                good = {number: row for number, row in found if not isinstance(row, BadRow)}
                names = dict.fromkeys(name for row in good.values() for name in row)
                cells = {name: [row.get(name) for row in good.values()] for name in names}
                frame = pd.DataFrame(cells, index=list(good), dtype=object)
                yield Piece(frame, _bad(found), first, len(found))
        else:
            with _csv_reader(path, comment) as reader:
                with _long_cells():
                    names = _header(path, reader)
                for first, found in _taken(_csv_rows(path, reader, names), rows):
                    good = {number: row for number, row in found if not isinstance(row, BadRow)}
                    frame = pd.DataFrame(list(good.values()), index=list(good), columns=names, dtype=object)
                    yield Piece(frame, _bad(found), first, len(found))


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Errors of the libraries that read a file, as a ValueError that names the file."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise  # our own
        # MemoryError: a damaged Parquet file states any size
        raise ValueError(f"{path} is empty or cannot be read: {first_line(error)}") from error


_Numbered = tuple[int, Any]
"""A row's number, and its cells or what is wrong with it."""


def _taken(rows: Iterator[_Numbered], count: int) -> Iterator[tuple[int, list[_Numbered]]]:
    """Up to so many rows at a time, behind the number of the first."""
    while True:
        with _long_cells():
            found = list(itertools.islice(rows, count))
        if not found:
            return
        yield found[0][0], found


def _bad(found: Iterable[_Numbered]) -> list[BadRow]:
    return [row for _, row in found if isinstance(row, BadRow)]


@contextlib.contextmanager
def _csv_reader(path: Path, comment: str | None) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = file if comment is None else (line for line in file if not line.startswith(comment))
        yield csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)


def _csv_rows(path: Path, reader: Any, header: list[str]) -> Iterator[_Numbered]:
    blank = 0  # lines without anything that were met last: at the end of the file they are no rows
    for number in itertools.count(1):
        start = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > start + 1:
                raise ValueError(
                    f"{path}, row {number} (line {start + 1}): a quoted cell goes over several lines and does not "
                    f"end as it should ({error}), so that the rows behind it cannot be told apart; close its "
                    "quotation mark, and double those inside it."
                ) from error
            cells = BadRow(number, "not CSV", f"is not CSV ({error})")
        if cells == []:
            blank += 1
            continue
        for empty in range(number - blank, number):
            yield empty, _empty(empty)
        blank = 0
        if isinstance(cells, BadRow):
            yield number, cells
        elif not any(cell.strip() for cell in cells):
            yield number, _empty(number)
        elif len(cells) != len(header):
            detail = f"has {len(cells)} cells, the header {len(header)}"
            yield number, BadRow(number, "wrong number of cells", detail)
        elif not all(map(is_unicode, cells)):
            yield number, _not_unicode(number, dict(zip(header, cells, strict=True)))
        else:
            yield number, cells


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise ValueError(f"{path}: its header is not CSV ({error}); correct the first line.") from error
    if not any(header):
        raise ValueError(f"{path} is empty or cannot be read: its first line names no column.")
    if not all(map(is_unicode, header)):
        raise ValueError(f"{path}: its header is not UTF-8 text; convert the file.")
    return [name or f"column {number}" for number, name in enumerate(header, 1)]


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Lets the csv module read cells of any length, which it else refuses from 128 KiB on; we name their row."""
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _json_rows(path: Path) -> Iterator[_Numbered]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        start = next((line for line in lines if line.strip()), None)
        if start is None:
            raise ValueError(f"{path} is empty or cannot be read: it holds no JSON.")
        lines.seek(0)
        is_array = path.suffix.lower() == ".json" and start.lstrip().startswith("[")
        for number, found in enumerate(_array(path, lines.read()), 1) if is_array else _lines(lines):
            yield number, _object(number, found)


def _object(number: int, found: Any) -> dict[str, Any] | BadRow:
    if isinstance(found, BadRow):
        return found
    if not isinstance(found, dict):
        kind = {list: "an array", str: "a string", type(None): "null"}.get(type(found), "a single value")
        return BadRow(number, "no JSON object", f"holds {kind}, not an object with a name for each cell")
    if not all(is_unicode(cell) for cell in (*found, *found.values()) if isinstance(cell, str)):
        return _not_unicode(number, found)
    return found


def _array(path: Path, content: str) -> list[Any]:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid JSON ({error}); correct it there.") from error


def _lines(lines: Iterable[str]) -> Iterator[_Numbered]:
    blank = 0  # as in CSV
    for number, line in enumerate(lines, 1):
        if not line.strip():
            blank += 1
            continue
        for empty in range(number - blank, number):
            yield empty, _empty(empty)
        blank = 0
        if not is_unicode(line):
            yield number, BadRow(number, "not UTF-8", "is not UTF-8 text")
        else:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                found = BadRow(number, "not JSON", f"is no valid JSON ({error})")
            yield number, found


def _parquet_pieces(path: Path, rows: int, columns: Sequence[str] | None, wanted: Wanted) -> Iterator[Piece]:
    first = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            if wanted(first, stop):
                at = first
                for batch in file.iter_batches(rows, row_groups=[group], columns=columns and list(columns)):
                    arrow = pa.Table.from_batches([batch])
                    yield arrow_piece(arrow if columns is None else arrow.select(columns), at + 1, path)
                    at += len(arrow)
                if at != stop:
                    raise ValueError(f"{path} is damaged: a part of it states {stop - first} rows and holds "
                                     f"{at - first}; write it anew.")  # fmt: skip
            first = stop


def arrow_piece(arrow: pa.Table, first: int, name: object) -> Piece:
    """A piece of a table of Arrow's, whose first row has that number.

    Raises:
        ValueError: for a value that Python cannot hold.
    """
    try:
        columns = [_cells(column) for column in arrow.columns]
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} is empty or cannot be read: {first_line(error)}") from error
    bad: dict[int, BadRow] = {}
    for column, cells in zip(arrow.column_names, columns, strict=True):
        for number, cell in enumerate(cells, first):
            if isinstance(cell, str) and not is_unicode(cell):
                bad.setdefault(number, _not_unicode(number, {column: cell}))
    index = range(first, first + len(arrow))
    frame = pd.DataFrame({i: pd.Series(cells, dtype=object, index=index) for i, cells in enumerate(columns)})
    frame.columns = pd.Index(arrow.column_names, dtype=object)
    if bad:
        frame = frame.drop(index=list(bad))
    return Piece(frame, [bad[number] for number in sorted(bad)], first, len(arrow), arrow)


def _cells(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return column.to_pylist()
    values = column.cast(pa.large_binary()).to_pylist()  # to_pylist of strings ends at the first that is not UTF-8
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in values]


def _empty(number: int) -> BadRow:
    return BadRow(number, "empty row", "is empty")


def _not_unicode(number: int, cells: Mapping[str, Any]) -> BadRow:
    column = next((name for name, cell in cells.items() if isinstance(cell, str) and not is_unicode(cell)), None)
    detail = "is not UTF-8 text" if column is None else f"column {reprlib.repr(column)} is not UTF-8 text"
    return BadRow(number, "not UTF-8", detail)


def load_hub_dataset(name: str) -> datasets.DatasetDict:
    """The parts of a Hub data set, on disk and mapped into memory.

    Raises:
        ValueError: if there is none, or it cannot be loaded.
    """
    try:
        return datasets.load_dataset(name)
    except Exception as error:  # whatever the Hub client raises
        raise ValueError(
            f"Cannot load the Hub dataset {name!r} ({type(error).__name__}: {first_line(error)}), and there is no "
            "such file or folder. With a local copy, give its file instead."
        ) from error


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
