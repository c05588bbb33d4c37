"""Embeddings of tables of any size, in Parquet files that are written whole or not at all.

Shard k holds the rows k * shard_rows and on. A process makes the shards whose number, divided by the number of
processes, leaves its rank. So nothing needs to be agreed on between processes, and neither their number nor a kill
changes what comes out.
"""

import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from carl_hf.data.bad_rows import refuse
from carl_hf.data.files import REMEDY, Piece, first_line
from carl_hf.data.table_pieces import PiecewiseTable
from carl_hf.utils.atomic_files import write_atomically, write_json

MANIFEST = "_manifest.json"  # readers of a folder of Parquet files pass over what begins with an underscore
OWN_COLUMNS = ("row", "text", "embedding")
_SETTINGS = b"carl_hf.settings"  # key in a shard's metadata


@dataclass(frozen=True)
class Survey:
    """What a first reading of all rows has found.

    Args:
        rows: of each table. schema: of the columns that are carried through. sha256: of all cells that are read.
    """

    rows: list[int]
    schema: pa.Schema
    sha256: str

    @property
    def total(self) -> int:
        return sum(self.rows)


def survey(
    tables: Sequence[PiecewiseTable], text_column: str, keep_columns: Sequence[str], report: Callable[[int], None]
) -> Survey:
    """Reads and checks all rows once, before the first of them is embedded.

    Args:
        report: called with the number of rows of each piece.

    Raises:
        ValueError: for a text that is missing, empty or no text, for a column of several types, or if there are no
            rows; it names the table and the row.
    """
    digest, counts, schemas = hashlib.sha256(), [], []
    for table in tables:
        count = 0
        for piece in table.pieces(lambda first, stop: True):
            refuse(table.name, piece.bad, REMEDY)
            _check_texts(piece.frame, table.name, text_column)
            cells = as_arrow(piece, [text_column, *keep_columns], table.name)
            digest.update(repr(cells.to_pydict()).encode("utf-8"))
            schemas.append(cells.select(keep_columns).schema.remove_metadata())
            schemas = [_one_schema(schemas, table.name)]
            count += piece.length
            report(piece.length)
        counts.append(count)
    if not sum(counts):
        raise ValueError(f"{', '.join(table.name for table in tables)}: there are no rows.")
    return Survey(counts, schemas[0], digest.hexdigest())


def as_arrow(piece: Piece, columns: Sequence[str], name: str) -> pa.Table:
    """The columns of a piece without bad rows, with their types; those of text files are strings, those of JSON lines
    what all their cells can be.

    Raises:
        ValueError: for a column of several types, or with numbers that no type can hold; it names the column.
    """
    if piece.arrow is not None:
        return piece.arrow.select(columns)
    cells = {}
    for column in columns:
        try:
            cells[column] = pa.array(piece.frame[column].tolist() if column in piece.frame else [None] * piece.length)
        except (pa.ArrowException, ValueError, OverflowError, RecursionError) as error:
            rows = f"rows {piece.first} to {piece.first + piece.length - 1}"
            raise ValueError(
                f"{name}, {rows}: column {column!r} of --keep_columns holds values of several types, or none that can "
                f"be kept ({first_line(error)})."
            ) from error
    return pa.table(cells)


def _check_texts(frame: pd.DataFrame, name: str, column: str) -> None:
    for row, text in frame[column].items() if column in frame else dict.fromkeys(frame.index).items():
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{name}, row {row}: column {column!r} holds {reprlib.repr(text)}, which is no text; name another "
                "column with --text_column."
            )
        if text is None or not text.strip():
            raise ValueError(f"{name}, row {row}: column {column!r} is empty; remove the row.")


def _one_schema(schemas: Sequence[pa.Schema], name: str) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{name}: a column of --keep_columns holds values of several types ({error}).") from error


@dataclass(frozen=True)
class Shards:
    """The shards in a folder, and which of them this process makes.

    Args:
        settings: all that the shards depend on; each of them carries it, and `_manifest.json` does.
        total: number of rows. shard_rows: rows of a shard, of the last one perhaps fewer.
        rank, world: number of this process, and of processes.
    """

    folder: Path
    settings: dict[str, Any]
    total: int
    shard_rows: int
    rank: int
    world: int

    def __len__(self) -> int:
        return -(-self.total // self.shard_rows)

    def rows_of(self, shard: int) -> int:
        return min(self.shard_rows, self.total - shard * self.shard_rows)

    def path(self, shard: int) -> Path:
        return self.folder / f"part-{shard:05d}.parquet"

    def is_own(self, shard: int) -> bool:
        return shard % self.world == self.rank

    def prepare(self, about: dict[str, Any], *, overwrite: bool) -> None:
        """Makes the folder ready: a manifest, and with `overwrite` none of this process's shards of an earlier run.

        Args:
            about: what else the manifest records.

        Raises:
            ValueError: if the folder holds shards of other settings, or other Parquet files.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--output_dir {self.folder} is a file; name a folder.")
        manifest = self.folder / MANIFEST
        if overwrite:
            for path in self.folder.glob("*"):
                match = re.fullmatch(r"part-(\d+)\.parquet|_part-(\d+)\.partial", path.name)
                if match and self.is_own(int(match[1] or match[2])):
                    path.unlink()
        elif manifest.exists():
            self._compare(manifest)
            return
        elif any(self.folder.glob("*.parquet")):
            raise ValueError(
                f"--output_dir {self.folder} holds Parquet files, but no {MANIFEST}: name another folder, or "
                "replace them with --overwrite_output_dir true."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"settings": self.settings, "rows": self.total, "shards": len(self), **about}
        # every process writes the same, so that none writes a shard before the manifest is there
        write_json(manifest, content, partial_name=f"_manifest-{self.rank}.partial")

    def _compare(self, manifest: Path) -> None:
        try:
            before = json.loads(manifest.read_text(encoding="utf-8"))["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{manifest} is damaged: name another --output_dir, or start anew with --overwrite_output_dir true."
            ) from error
        for name, value in self.settings.items():
            if before.get(name) != value:
                raise ValueError(
                    f"--output_dir {self.folder} holds embeddings with another {name.replace('_', ' ')} "
                    f"({before.get(name)!r}, now {value!r}): name another folder, or replace them with "
                    "--overwrite_output_dir true."
                )

    def is_finished(self, shard: int) -> bool:
        """Whether a shard is there, whole, and of these settings."""
        try:
            metadata = pq.read_metadata(self.path(shard))
        except (OSError, pa.ArrowException):
            return False
        return (metadata.metadata or {}).get(_SETTINGS) == self._stamp() and metadata.num_rows == self.rows_of(shard)

    def write(self, shard: int, texts: pa.ChunkedArray, vectors_NH: np.ndarray, kept: pa.Table) -> None:
        """Writes a shard with the columns row (int64, from 0), text, embedding (fixed-size list of the dtype of
        `vectors_NH`) and those of `kept`.

        Raises:
            OSError: if it cannot be written. Nothing is left of it then.
        """
        first, (count, width) = shard * self.shard_rows, vectors_NH.shape
        table = pa.table(
            {
                "row": pa.array(np.arange(first, first + count)),
                "text": texts.cast(pa.string()),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors_NH.reshape(-1)), width),
                **dict(zip(kept.column_names, kept.columns, strict=True)),
            }
        ).replace_schema_metadata({_SETTINGS: self._stamp()})
        path = self.path(shard)
        write_atomically(path, lambda file: pq.write_table(table, file), partial_name=f"_{path.stem}.partial")

    def _stamp(self) -> bytes:
        return json.dumps(self.settings, sort_keys=True).encode()


def read_shards(
    tables: Sequence[PiecewiseTable],
    columns: Sequence[str],
    rows: Sequence[int],
    shard_rows: int,
    wanted: Collection[int],
) -> Iterator[tuple[int, pa.Table]]:
    """The rows of the wanted shards, one shard after another.

    Args:
        columns: those that are read. rows: of each table, as the survey found them.

    Raises:
        ValueError: if a table has changed since the survey.
    """
    first, total, pieces = 0, sum(rows), []
    for table, count in zip(tables, rows, strict=True):

        def any_wanted(start: int, stop: int, first: int = first) -> bool:
            shards = range((first + start) // shard_rows, (first + stop - 1) // shard_rows + 1)
            return any(shard in wanted for shard in shards)

        for piece in table.pieces(any_wanted):
            refuse(table.name, piece.bad, REMEDY)
            at, cells = first + piece.first - 1, as_arrow(piece, columns, table.name)
            while len(cells):
                shard = at // shard_rows
                here = min(len(cells), (shard + 1) * shard_rows - at)
                at += here
                if shard in wanted:
                    pieces.append(cells.slice(0, here))
                    if at in ((shard + 1) * shard_rows, total):
                        yield shard, pa.concat_tables(pieces, promote_options="permissive")
                        pieces = []
                cells = cells.slice(here)
        first += count
