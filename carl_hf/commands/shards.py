"""What a model says of tables of any size, in Parquet files (shards) that are written atomically.

Shard k holds the rows from k * shard_rows on: a kill does not change the result, nor does the number of processes if
each has as many threads.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from carl_hf.data.bad_rows import REMEDY, any_text, is_missing, optional_text, parse_rows, refuse
from carl_hf.data.files import EMPTY, Piece
from carl_hf.data.streaming import PiecewiseTable
from carl_hf.utils.atomic_files import write_atomically, write_json
from carl_hf.utils.suggestions import first_line

logger = logging.getLogger(__name__)

MANIFEST = "_manifest.json"  # readers of a folder of Parquet files ignore names that begin with an underscore
_SETTINGS = b"carl_hf.settings"  # key in a shard's metadata


class Survey(NamedTuple):
    """What reading all rows once has found."""

    rows: int  # of all tables
    empty: int  # of these, how many have no text
    schema: pa.Schema  # of the columns to keep
    sha256: str  # checksum of all cells that are read


def survey(
    tables: Sequence[PiecewiseTable], text_column: str, keep_columns: Sequence[str], report: Callable[[int], Any],
    *, empty_texts: bool = False, new_columns: Collection[str] = (),
) -> Survey:  # fmt: skip
    """Reads and checks all rows once, before the model sees the first of them.

    Args:
        report: called with the number of rows of each piece.
        empty_texts: a row without a text, or an empty one, is no mistake.
        new_columns: that the tables must not have yet; open them with these as optional columns.

    Raises:
        ValueError: for a missing, empty or non-string text, a column of several types or one of `new_columns`, or no
            rows at all.
    """
    digest, rows, empty, schema = hashlib.sha256(), 0, 0, pa.schema([])
    unlike_texts: Counter[str] = Counter()
    rule = optional_text if empty_texts else any_text
    for table in tables:
        for piece in pieces_of(table, empty_texts=empty_texts):
            there = [name for name in new_columns if name in piece.frame]
            if there:
                raise ValueError(
                    f"{table.name} has a column {there[0]!r} already: choose a --prefix for the new ones."
                )
            texts = piece.frame if text_column in piece.frame else piece.frame.assign(**{text_column: None})
            read, bad = parse_rows(texts, {text_column: rule})
            refuse(table.name, bad, f"{REMEDY}, or name another column with --text_column")
            cells = as_arrow(piece, [text_column, *keep_columns], table.name)
            digest.update(repr(cells.to_pydict()).encode("utf-8"))
            schema = unified(schema, cells.select(keep_columns).schema, table.name)
            rows, empty = rows + len(cells), empty + int(read[text_column].isna().sum())
            given = read[text_column].dropna()
            unlike_texts["marks of a missing value, such as NA"] += sum(map(is_missing, given))
            unlike_texts["numbers"] += sum(text.replace(".", "", 1).isdecimal() for text in given)
            report(len(cells))
    if not rows:
        raise ValueError(f"{', '.join(table.name for table in tables)}: there are no rows.")
    for what, count in unlike_texts.items():
        if count:
            logger.warning("Column %r: cells that are %s, and are read as texts: %d.", text_column, what, count)
    return Survey(rows, empty, schema, digest.hexdigest())


def pieces_of(
    table: PiecewiseTable, wanted: Callable[[int], bool] | None = None, *, empty_texts: bool
) -> Iterator[Piece]:
    """The pieces of a table, in which empty rows are rows without cells if `empty_texts`; a ValueError for others that
    cannot be read."""
    for piece in table.pieces(wanted):
        empty = [row.number for row in piece.bad if empty_texts and row.reason == EMPTY[0]]
        if empty:
            frame = piece.frame.reindex(sorted([*piece.frame.index, *empty])).astype(object)
            bad = [row for row in piece.bad if row.reason != EMPTY[0]]
            piece = replace(piece, frame=frame.where(frame.notna(), None), bad=bad)
        refuse(table.name, piece.bad, REMEDY)
        yield piece


def unified(schema: pa.Schema, other: pa.Schema, name: str) -> pa.Schema:
    """The schema that holds both."""
    try:
        return pa.unify_schemas([schema, other.remove_metadata()], promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{name}: a column has several types ({first_line(error)}).") from error


def as_arrow(piece: Piece, columns: Sequence[str], name: str) -> pa.Table:
    """Columns of a piece with their types: strings for text files, for JSON lines the type that fits all cells."""
    if piece.arrow is not None:
        return piece.arrow.select(columns)
    cells = {}
    for column in columns:
        try:
            cells[column] = pa.array(list(piece.frame[column]) if column in piece.frame else [None] * len(piece.frame))
        except (pa.ArrowException, ValueError, OverflowError, RecursionError) as error:
            rows = f"rows {piece.frame.index[0]} to {piece.frame.index[-1]}"
            raise ValueError(
                f"{name}, {rows}: column {column!r} holds values of several types, or values that cannot be stored "
                f"({first_line(error)})."
            ) from error
    if not cells:  # there are rows all the same
        return pa.table({"row": pa.nulls(len(piece.frame))}).select([])
    return pa.table(cells)


def _is_shard(path: Path) -> bool:
    """Whether a file is a shard, of any settings, or an unfinished one."""
    if path.suffix == ".partial":
        return True
    try:
        return _SETTINGS in (pq.read_metadata(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


@dataclass(frozen=True)
class Shards:
    """The shards in a folder.

    Args:
        settings: everything that the shards depend on, recorded in `_manifest.json` and in each shard.
        total: number of rows. shard_rows: rows of a shard; the last one may have fewer.
        flag, overwrite_flag: in messages, the flags that name the folder and that replace what it holds.
    """

    folder: Path
    settings: dict[str, Any]
    total: int
    shard_rows: int
    flag: str = "--output_dir"
    overwrite_flag: str = "--overwrite_output_dir true"

    def __len__(self) -> int:
        return -(-self.total // self.shard_rows)

    def rows_of(self, shard: int) -> int:
        return min(self.shard_rows, self.total - shard * self.shard_rows)

    def path(self, shard: int) -> Path:
        return self.folder / f"part-{shard:05d}.parquet"

    def missing(self) -> list[int]:
        """The shards that are not finished."""
        return [shard for shard in range(len(self)) if not self._is_finished(shard)]

    def prepare(self, about: dict[str, Any], *, overwrite: bool) -> None:
        """Writes the manifest and, with `overwrite`, first removes shards that are not of these settings.

        Args:
            about: what else the manifest records.

        Raises:
            ValueError: if the folder holds shards with other settings, or Parquet files that are no shards.
        """
        manifest = self.folder / MANIFEST
        remedy = f"name another folder, or start anew with {self.overwrite_flag}"
        shards = {path for path in self._files() if manifest.exists() or _is_shard(path)}
        if foreign := sorted({*self._files(), *self.folder.glob("*.parquet")} - shards):  # read with the shards
            raise ValueError(
                f"{self.flag} {self.folder} holds {foreign[0].name}, which is no shard: name another folder."
            )
        if overwrite:
            own = {self.path(shard) for shard in {*range(len(self))}.difference(self.missing())}
            for path in {*self._files()} - own:
                path.unlink()
        elif manifest.exists():
            try:
                before = json.loads(manifest.read_text(encoding="utf-8"))["settings"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{manifest} is damaged: {remedy}.") from error
            other = next((name for name, value in self.settings.items() if before.get(name) != value), None)
            if other is None:
                return
            if any(map(_is_shard, self._files())):
                what = other.replace("_", " ").replace("of model", "of the model and its settings")
                raise ValueError(
                    f"{self.flag} {self.folder} holds rows with another {what} ({before.get(other)!r}, now "
                    f"{self.settings[other]!r}): {remedy}."
                )
        elif shards:
            raise ValueError(f"{self.flag} {self.folder} holds Parquet files, but no {MANIFEST}: {remedy}.")
        write_json(manifest, {"settings": self.settings, "rows": self.total, "shards": len(self), **about})

    def remove(self) -> None:
        """Removes the shards and the manifest."""
        for path in (*self._files(), self.folder / MANIFEST):
            path.unlink()

    def _files(self) -> list[Path]:
        """What is called like a shard, finished or not."""
        named = r"part-\d+\.parquet|_part-\d+\.partial"
        return [path for path in self.folder.glob("*") if re.fullmatch(named, path.name)]

    def read(
        self, tables: Sequence[PiecewiseTable], columns: Sequence[str], wanted: Collection[int], *, empty_texts: bool
    ) -> Iterator[tuple[int, pa.Table]]:
        """Index and rows of each wanted shard, in order.

        Raises:
            ValueError: for a row that can no longer be read.
        """
        first, parts = 0, []  # index of a piece's first row; pieces of the current shard

        def wanted_in_next(count: int) -> list[int]:
            shards = range(first // self.shard_rows, (first + count - 1) // self.shard_rows + 1)
            return [shard for shard in shards if shard in wanted]

        for table in tables:
            for piece in pieces_of(table, wanted_in_next, empty_texts=empty_texts):  # type: ignore[arg-type]
                for shard in wanted_in_next(len(piece.frame)):
                    cells, start = as_arrow(piece, columns, table.name), shard * self.shard_rows - first
                    parts.append(cells[max(start, 0) : start + self.rows_of(shard)])
                    if sum(map(len, parts)) == self.rows_of(shard):
                        yield shard, pa.concat_tables(parts, promote_options="permissive")
                        parts = []
                first += len(piece.frame)

    def _is_finished(self, shard: int) -> bool:
        """Whether a shard exists, is complete and has these settings."""
        try:
            metadata = pq.read_metadata(self.path(shard))
        except (OSError, pa.ArrowException):
            return False
        return (metadata.metadata or {}).get(_SETTINGS) == self._stamp() and metadata.num_rows == self.rows_of(shard)

    def write(self, shard: int, answers: pa.Table) -> None:
        """Writes a shard: the column row (int64, from 0) and those of `answers`.

        Raises:
            OSError: if it cannot be written; nothing of it is left behind.
        """
        rows = pa.array(np.arange(len(answers)) + shard * self.shard_rows)
        table = answers.add_column(0, "row", rows).replace_schema_metadata({_SETTINGS: self._stamp()})
        path = self.path(shard)
        write_atomically(path, lambda file: pq.write_table(table, file), partial_name=f"_{path.stem}.partial")

    def _stamp(self) -> bytes:
        return json.dumps(self.settings, sort_keys=True).encode()
