"""Files of rows: CSV, TSV, Parquet, JSON and JSON lines, all in UTF-8, and the rows in them that cannot be read.

Rows are counted from 1, without the header. A row of CSV may go over several lines; a row of JSON lines is a line.
Cells of CSV and TSV files are strings, those of the others Python's own types, and None where a row has no such cell.
"""

import contextlib
import csv
import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from carl_hf.bad_rows import BadRow, is_unicode, refuse

SUFFIXES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")
_LONGEST_CELL = 2**31 - 1
REMEDY = "correct or remove the row"


@dataclass(frozen=True)
class Table:
    """The rows of a file that can be read, under their numbers as index, and those that cannot."""

    frame: pd.DataFrame
    bad: list[BadRow]


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
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"{path}: cannot read this kind of file; give a {', '.join(SUFFIXES[:-1])} or .jsonl file.")
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        if kind == ".parquet":
            table = _read_parquet(path)
        elif kind in (".json", ".jsonl"):
            table = _read_json(path)
        else:
            table = _read_csv(path, "\t" if kind == ".tsv" else ",", comment)
    except (OSError, pa.ArrowException, MemoryError) as error:  # MemoryError: a damaged Parquet file states any size
        raise ValueError(f"{path} is empty or cannot be read: {_first_line(error)}") from error
    if table.frame.columns.has_duplicates:
        twice = table.frame.columns[table.frame.columns.duplicated()][0]
        raise ValueError(f"{path} has two columns {reprlib.repr(twice)}: rename or remove one.")
    return table


def _read_csv(path: Path, separator: str, comment: str | None) -> Table:
    rows: dict[int, list[str]] = {}
    bad: list[BadRow] = []
    blank: list[int] = []  # lines without anything: at the end of the file they are no rows
    with _long_cells(), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = file if comment is None else (line for line in file if not line.startswith(comment))
        reader = csv.reader(lines, delimiter=separator, strict=True)
        header = _header(path, reader)
        number = 0
        while True:
            number, start = number + 1, reader.line_num
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                if reader.line_num > start + 1:
                    raise ValueError(
                        f"{path}, row {number} (line {start + 1}): a quoted cell goes over several lines and does not "
                        f"end as it should ({error}), so that the rows behind it cannot be told apart; close its "
                        "quotation mark, and double those inside it."
                    ) from error
                bad.append(BadRow(number, "not CSV", f"is not CSV ({error})"))
                continue
            if not cells:
                blank.append(number)
                continue
            bad += [_empty(empty) for empty in blank]
            blank = []
            if not any(cell.strip() for cell in cells):
                bad.append(_empty(number))
            elif len(cells) != len(header):
                bad.append(
                    BadRow(number, "wrong number of cells", f"has {len(cells)} cells, the header {len(header)}")
                )
            elif not all(map(is_unicode, cells)):
                bad.append(_not_unicode(number, dict(zip(header, cells, strict=True))))
            else:
                rows[number] = cells
    return Table(pd.DataFrame(list(rows.values()), index=list(rows), columns=header, dtype=object), bad)


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


def _read_json(path: Path) -> Table:
    content = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    if not content.strip():
        raise ValueError(f"{path} is empty or cannot be read: it holds no JSON.")
    rows: dict[int, dict[str, Any]] = {}
    bad: list[BadRow] = []
    for number, found in enumerate(_array(path, content) if _is_array(path, content) else _lines(content), 1):
        if isinstance(found, BadRow):
            bad.append(found)
        elif not isinstance(found, dict):
            kind = {list: "an array", str: "a string", type(None): "null"}.get(type(found), "a single value")
            bad.append(BadRow(number, "no JSON object", f"holds {kind}, not an object with a name for each cell"))
        elif not all(is_unicode(cell) for cell in (*found, *found.values()) if isinstance(cell, str)):
            bad.append(_not_unicode(number, found))
        else:
            rows[number] = found
    return Table(_frame(list(rows.values()), list(rows)), bad)


def _is_array(path: Path, content: str) -> bool:
    return path.suffix.lower() == ".json" and content.lstrip().startswith("[")


def _array(path: Path, content: str) -> list[Any]:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid JSON ({error}); correct it there.") from error


def _lines(content: str) -> Iterator[Any]:
    for number, line in enumerate(content.rstrip().split("\n"), 1):
        if not line.strip():
            yield _empty(number)
        elif not is_unicode(line):
            yield BadRow(number, "not UTF-8", "is not UTF-8 text")
        else:
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield BadRow(number, "not JSON", f"is no valid JSON ({error})")


def _frame(rows: Sequence[Mapping[str, Any]], numbers: list[int]) -> pd.DataFrame:
    names = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame({name: [row.get(name) for row in rows] for name in names}, index=numbers, dtype=object)


def _read_parquet(path: Path) -> Table:
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        names = table.column_names
        columns = [_cells(column) for column in table.columns]
    except (ValueError, TypeError) as error:  # of values that Python cannot hold, and names that are not UTF-8
        raise ValueError(f"{path} is empty or cannot be read: {_first_line(error)}") from error
    bad = {}
    for name, cells in zip(names, columns, strict=True):
        for number, cell in enumerate(cells, 1):
            if isinstance(cell, str) and not is_unicode(cell):
                bad[number] = _not_unicode(number, {name: cell})
    frame = pd.DataFrame(
        {i: pd.Series(cells, dtype=object, index=range(1, len(table) + 1)) for i, cells in enumerate(columns)}
    )
    frame.columns = names
    return Table(frame.drop(index=list(bad)), list(bad.values()))


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


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
