"""Files of rows: CSV, TSV, Parquet, JSON and JSON lines, all in UTF-8, and the rows in them that cannot be read.

Rows are counted from 1, without the header. A row of CSV may have line breaks in quotes; a row of JSON lines is a
line. Cells of CSV and TSV files are strings, those of the others Python's own types, and None where a row has no such
cell. Files are read in pieces of some thousand rows; a JSON array, which cannot be cut, is one piece.
"""

import contextlib
import csv
import itertools
import json
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from carl_hf.data.bad_rows import REMEDY, TO_UTF8, BadRow, Rows, refuse
from carl_hf.utils.suggestions import first_line
from carl_hf.utils.text_files import open_text

SUFFIXES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")
PIECE = 8192
"""Rows read together."""
_LONGEST_CELL = 2**31 - 1
SEP = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)  # the first line of some CSV files that Excel reads
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_SURROGATE = re.compile("[\ud800-\udfff]")  # in a string that was read: bytes that are not UTF-8

EMPTY = ("empty row", "is empty")
"""Reason and detail of a [`BadRow`] without any cell that is filled."""

Wanted = Callable[[int], bool]
"""Whether any of the next so many rows is wanted."""

_Row = Mapping[str, Any] | tuple[str, str] | None
"""The cells of a row, or reason and detail of a [`BadRow`]; None for a blank line."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows."""

    frame: pd.DataFrame  # those that can be read, with their numbers as index
    bad: list[BadRow]  # the others, in order
    arrow: pa.Table | None = None  # all rows, typed as Parquet files and Hub data sets hold them


def read_table(path: Path, *, comment: str | None = None) -> pd.DataFrame:
    """As [`read_rows`], under a plain index; a row that cannot be read is an error that names it."""
    frame, bad = read_rows(path, comment=comment)
    refuse(path, bad, REMEDY)
    return frame.reset_index(drop=True)


def read_rows(path: Path, *, comment: str | None = None) -> Rows:
    """Reads a .csv, .tsv, .parquet, .json (an array, or lines) or .jsonl file.

    Args:
        comment: what the lines of a CSV or TSV file begin with that are no rows.

    Returns:
        the rows that can be read, with their numbers as index, and the others.

    Raises:
        ValueError: if the file is missing, of another kind, empty, or so damaged that its rows cannot be told apart.
    """
    names = column_names(path, comment=comment)
    pieces = list(read_pieces(path, comment=comment, rows=PIECE if path.suffix.lower() == ".parquet" else sys.maxsize))
    frames = [piece.frame for piece in pieces] or [pd.DataFrame(columns=names, dtype=object)]
    return frames[0] if len(frames) == 1 else pd.concat(frames), [row for piece in pieces for row in piece.bad]


def column_names(path: Path, *, comment: str | None = None) -> list[str] | None:
    """The names of a file's columns, all different; None of JSON, whose rows have names of their own. Raises as
    [`read_rows`]."""
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"{path}: cannot read this kind of file; give a {', '.join(SUFFIXES[:-1])} or .jsonl file.")
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    if kind in (".json", ".jsonl"):
        return None
    with _readable(path):
        if kind == ".parquet":
            names = pyarrow.parquet.read_schema(path).names
        else:
            with open_csv(path, comment) as (names, _):
                pass
    if len(set(names)) < len(names):
        twice = next(name for name, times in Counter(names).items() if times > 1)
        raise ValueError(f"{path} has two columns {reprlib.repr(twice)}: rename or remove one.")
    return names


def read_pieces(
    path: Path, *, comment: str | None = None, rows: int = PIECE, columns: Sequence[str] | None = None,
    wanted: Wanted | None = None,
) -> Iterator[Piece]:  # fmt: skip
    """The rows of a file that [`column_names`] has accepted, in pieces of at most `rows`; of a Parquet file only these
    columns, and of a row group that is not wanted only the row numbers. Raises as [`read_rows`], when the reading
    comes to it."""
    kind = path.suffix.lower()
    with _readable(path):
        if kind == ".parquet":
            yield from _parquet_pieces(path, rows, columns, wanted)
        elif kind in (".json", ".jsonl"):
            yield from _text_pieces(_json_rows(path), rows)
        else:
            with open_csv(path, comment) as (names, reader):
                yield from _text_pieces(_csv_rows(path, reader, names), rows, names)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Errors of the libraries that read a file (a damaged Parquet file may ask for any memory), as a ValueError."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise  # our own
        raise ValueError(f"{path} is empty or cannot be read: {first_line(error)}") from error


def _text_pieces(found: Iterator[_Row], rows: int, names: Sequence[str] | None = None) -> Iterator[Piece]:
    numbered = _numbered(found)
    while taken := list(itertools.islice(numbered, rows)):
        yield _piece(taken, names)


def _numbered(rows: Iterator[_Row], first: int = 1) -> Iterator[tuple[int, _Row | BadRow]]:
    """Rows with their numbers. Blank lines are empty rows, but at the end of a file they are none."""
    blank = 0
    for number, row in enumerate(rows, first):
        if row is None:
            blank += 1
            continue
        for empty in range(number - blank, number):
            yield empty, BadRow(empty, *EMPTY)
        blank = 0
        yield number, BadRow(number, *row) if isinstance(row, tuple) else row


def _piece(numbered: list[tuple[int, Any]], names: Sequence[str] | None, arrow: pa.Table | None = None) -> Piece:
    """A piece with the columns `names`; None takes those of any row."""
    good = {number: row for number, row in numbered if not isinstance(row, BadRow)}
    columns = dict.fromkeys(name for row in good.values() for name in row) if names is None else names
    cells = {name: [row.get(name) for row in good.values()] for name in columns}
    frame = pd.DataFrame(cells, index=list(good), dtype=object)
    return Piece(frame, [row for _, row in numbered if isinstance(row, BadRow)], arrow)


@contextlib.contextmanager
def open_csv(
    path: Path, comment: str | None = None, watch: Callable[[Iterator[str]], Iterator[str]] = iter
) -> Iterator[tuple[list[str], Any]]:
    """The names of a file's columns, and a reader of the rows behind them; lines are taken by way of `watch`."""
    with open_text(path, newline="") as file:
        lines: Iterator[str] = file if comment is None else (line for line in file if not line.startswith(comment))
        first = next(lines, "")
        stated = SEP.fullmatch(first)
        delimiter = stated[1] if stated else "\t" if path.suffix.lower() == ".tsv" else _delimiter(first)
        # in tab-separated text a quotation mark is mostly one of the text: quotes hold no tab and no line end there
        reader = csv.reader(
            watch(itertools.chain([first], lines)), delimiter=delimiter, strict=True,
            quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
        )  # fmt: skip
        try:
            header = [next_cells(reader) for _ in range(2 if stated else 1)][-1]
        except csv.Error as error:
            raise ValueError(f"{path}: its header is not CSV ({error}); correct the first line.") from error
        if not any(header or ()):
            raise ValueError(f"{path} is empty or cannot be read: its first line names no column.")
        if any("\0" in name or _SURROGATE.search(name) for name in header):
            raise ValueError(f"{path}: its header is not UTF-8 text; {TO_UTF8}.")
        yield [name or f"column {number}" for number, name in enumerate(header, 1)], reader


def _delimiter(header: str) -> str:
    """A comma; a semicolon or tab if the header has no comma to divide it and is divided by these."""
    return next((mark for mark in ",;\t" if len(next_cells(csv.reader([header], delimiter=mark)) or ()) > 1), ",")


def next_cells(reader: Any) -> list[str] | None:
    """The next row, None at the end. By itself the csv module refuses cells from 128 KiB on."""
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        cells = next(reader, None)
    finally:
        csv.field_size_limit(before)
    if cells and reader.dialect.quoting == csv.QUOTE_NONE:
        if len(cells) == 1 and cells[0].startswith('"') and not _QUOTED.fullmatch(cells[0]):
            raise csv.Error("a quotation mark that its line does not close")
        cells = [cell[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell) else cell for cell in cells]
    return cells


def _csv_rows(path: Path, reader: Any, header: list[str]) -> Iterator[_Row]:
    for number in itertools.count(1):
        start = reader.line_num
        try:
            cells = next_cells(reader)
        except csv.Error as error:
            if reader.line_num > start + 1:
                raise ValueError(
                    f"{path}, row {number} (line {start + 1}): a quoted cell goes over several lines and does not "
                    f"end as it should ({error}), so that the rows behind it cannot be told apart; close its "
                    "quotation mark, and double those inside it."
                ) from error
            yield "not CSV", f"is not CSV ({error})"
            continue
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            yield EMPTY if cells else None
        elif len(cells) != len(header):
            yield "wrong number of cells", f"has {len(cells)} cells, the header {len(header)}"
        else:
            yield _in_unicode(dict(zip(header, cells, strict=True)))


def _json_rows(path: Path) -> Iterator[_Row]:
    with open_text(path, newline="\n") as lines:
        start = next((line for line in lines if line.strip()), None)
        if start is None:
            raise ValueError(f"{path} is empty or cannot be read: it holds no JSON.")
        lines.seek(0)
        if path.suffix.lower() == ".json" and start.lstrip().startswith("["):
            try:
                rows = json.loads(lines.read())
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} is no valid JSON ({error}); correct it there.") from error
            yield from map(_object, rows)
        else:
            yield from map(_json_line, lines)


def _json_line(line: str) -> _Row:
    if not line.strip():
        return None
    if _SURROGATE.search(line):
        return "not UTF-8", "is not UTF-8 text"
    try:
        return _object(json.loads(line))
    except (ValueError, RecursionError) as error:
        return "not JSON", f"is no valid JSON ({error})"


def _object(found: Any) -> _Row:
    if isinstance(found, dict):
        return _in_unicode(found)
    kind = {list: "an array", str: "a string", type(None): "null"}.get(type(found), "a single value")
    return "no JSON object", f"holds {kind}, not an object with a name for each cell"


def _in_unicode(cells: Mapping[str, Any]) -> _Row:
    """The cells, or what is wrong if a name or text is not UTF-8."""
    for name, cell in cells.items():
        if _SURROGATE.search(name):
            return "not UTF-8", "is not UTF-8 text"
        if isinstance(cell, str) and _SURROGATE.search(cell):
            return "not UTF-8", f"column {reprlib.repr(name)} is not UTF-8 text"
    return cells


def _parquet_pieces(path: Path, rows: int, columns: Sequence[str] | None, wanted: Wanted | None) -> Iterator[Piece]:
    first = 1
    with pyarrow.parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            count, found = file.metadata.row_group(group).num_rows, 0
            if wanted is None or wanted(count):
                for batch in file.iter_batches(rows, row_groups=[group], columns=columns and list(columns)):
                    arrow = pa.Table.from_batches([batch]).select(columns or batch.schema.names)
                    yield arrow_piece(arrow, first + found, path)
                    found += len(batch)
                if found != count:
                    raise ValueError(f"{path} is damaged: a row group states {count} rows and holds {found}; write it "
                                     "anew.")  # fmt: skip
            elif count:
                yield Piece(pd.DataFrame(index=range(first, first + count)), [])
            first += count


def arrow_piece(arrow: pa.Table, first: int, name: object) -> Piece:
    """A piece of an Arrow table, whose first row has that number; a ValueError for a value that Python cannot hold."""
    names = arrow.column_names
    try:
        classes = _class_labels(arrow.schema)
        columns = [
            _named(_cells(column), classes.get(name)) for name, column in zip(names, arrow.columns, strict=True)
        ]
    except (ValueError, TypeError, OverflowError, LookupError) as error:
        raise ValueError(f"{name} is empty or cannot be read: {first_line(error)}") from error
    rows = (_in_unicode(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True))
    return _piece(list(_numbered(rows, first)), names, arrow)


def _class_labels(schema: pa.Schema) -> dict[str, datasets.ClassLabel]:
    """The columns of class labels, or lists of such, that the `datasets` library has stored as numbers."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    features = datasets.Features.from_arrow_schema(schema)
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: feature for name, feature in inner.items() if isinstance(feature, datasets.ClassLabel)}


def _named(cells: list[Any], classes: datasets.ClassLabel | None) -> list[Any]:
    """Numbers of classes, or lists of them, as names; -1 is none."""
    if classes is None:
        return cells
    name = {-1: None, None: None, **dict(enumerate(classes.names))}
    return [[name[i] for i in cell] if isinstance(cell, list) else name[cell] for cell in cells]


def _cells(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column.to_pylist()
    values = column.cast(pa.large_binary()).to_pylist()  # to_pylist of strings ends at the first that is not UTF-8
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in values]
