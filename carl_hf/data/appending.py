"""Copies of CSV, TSV and JSON lines files with further cells at the end of each row.

What was there stays as it was, byte for byte: encoding, delimiter, quotes, line ends, a byte order mark, a line
`sep=;`, blank lines. New numbers have a decimal comma where the file's have one.
"""

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from carl_hf.data.bad_rows import is_missing
from carl_hf.data.files import SEP, next_cells, open_csv
from carl_hf.utils.text_files import byte_order_mark, open_text

APPENDABLE = (".csv", ".tsv", ".jsonl")
_LOOKED_AT = 1000  # rows in which decimal commas are looked for
_NUMBER = re.compile(r"\s*[+-]?\d+(,\d+)?\s*")
_THOUSANDS = re.compile(r"\s*[+-]?([1-9]\d{0,2}(,\d{3})?|0)\s*")


class _CommaNumber(float):
    """A number that the csv module writes with a decimal comma, and as a number."""

    def __str__(self) -> str:
        return repr(float(self)).replace(".", ",")


def append_cells(path: Path, rows: Iterator[Mapping[str, Any]], file: BinaryIO) -> None:
    """Writes the content of `path` to `file`, with the cells of `rows` at the end of its rows.

    Args:
        rows: a mapping from names to cells (texts, numbers, None) for each row as [`carl_hf.data.files.read_pieces`]
            counts them, empty ones included, all with the same names. Numbers are written as they are.

    Raises:
        ValueError: if the file has not so many rows.
    """
    mark, encoding = byte_order_mark(path)
    file.write(mark)
    written = io.TextIOWrapper(file, encoding=encoding, newline="")
    lines = _json_lines(path, rows) if path.suffix.lower() == ".jsonl" else _csv_lines(path, rows)
    written.writelines(lines)
    written.flush()
    written.detach()
    if next(rows, None) is not None:
        raise ValueError(f"{path} has lost rows while it was read: start anew.")


def _next_row(rows: Iterator[Mapping[str, Any]], path: Path) -> Mapping[str, Any]:
    row = next(rows, None)
    if row is None:
        raise ValueError(f"{path} has got rows while it was read: start anew.")
    return row


def _json_lines(path: Path, rows: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    with open_text(path, newline="\n") as lines:
        for line in lines:
            body = line.strip()
            if body:
                inside = body[:-1].rstrip()
                comma = "" if inside.endswith("{") else ", "
                end = line[len(line.rstrip("\r\n")) :]
                yield f"{inside}{comma}{json.dumps(_next_row(rows, path), ensure_ascii=False)[1:]}{end}"
            else:
                next(rows, None)  # a blank line is a row, except at the end of the file
                yield line


def _csv_lines(path: Path, rows: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    raw: list[str] = []  # the lines of the record that was read last

    def watch(lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            raw.append(line)
            yield line

    number = _CommaNumber if _has_decimal_commas(path) else float
    with open_csv(path, watch=watch) as (header, reader):
        delimiter = reader.dialect.delimiter
        if SEP.fullmatch(raw[0]):
            yield raw.pop(0)
        record, first = "".join(raw), next(rows)
        raw.clear()
        quoted = _all_quoted(record, header, delimiter)
        yield _with_cells(record, [*first], delimiter, csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
        pending: Mapping[str, Any] | None = first
        while (cells := next_cells(reader)) is not None:
            row = pending or (_next_row(rows, path) if cells else next(rows, None))
            pending, record = None, "".join(raw)
            raw.clear()
            if len(cells) != len(header):  # an empty row
                yield record
                continue
            style = csv.QUOTE_NONNUMERIC if quoted else csv.QUOTE_MINIMAL
            if _all_quoted(record, cells, delimiter):
                style = csv.QUOTE_ALL
            answers = [number(cell) if isinstance(cell, float) else cell for cell in row.values()]
            yield _with_cells(record, answers, delimiter, style)


def _has_decimal_commas(path: Path) -> bool:
    """Whether, in the first rows of a file, a column holds nothing but numbers and marks of missing ones, some with a
    decimal comma: not only such as 12,000. Where commas divide cells, numbers have points."""
    with open_csv(path) as (header, reader):
        if reader.dialect.delimiter == ",":
            return False
        read = itertools.takewhile(lambda row: row is not None, (next_cells(reader) for _ in range(_LOOKED_AT)))
        rows = [row for row in read if len(row) == len(header)]
    columns = ([cell for cell in column if not is_missing(cell)] for column in zip(*rows, strict=True))
    return any(
        all(map(_NUMBER.fullmatch, column)) and not all(map(_THOUSANDS.fullmatch, column)) and "," in "".join(column)
        for column in columns
    )


def _all_quoted(record: str, cells: Sequence[str], delimiter: str) -> bool:
    quoted = ('"' + cell.replace('"', '""') + '"' for cell in cells)
    return record.rstrip("\r\n") == delimiter.join(quoted)


def _with_cells(record: str, cells: Sequence[Any], delimiter: str, style: Any) -> str:
    body, out = record.rstrip("\r\n"), io.StringIO()
    csv.writer(out, delimiter=delimiter, quoting=style, lineterminator="").writerow(
        ["" if cell is None else cell for cell in cells]
    )
    return f"{body}{delimiter}{out.getvalue()}{record[len(body) :]}"
