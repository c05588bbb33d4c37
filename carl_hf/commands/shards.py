"""Embeddings of tables of any size, in Parquet files (shards) that are written atomically.

Shard k holds the rows from k * shard_rows on. Process r of w writes the shards r, r + w, r + 2w, ... So the processes
need not communicate, and neither their number nor a kill changes the result.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from carl_hf.data.bad_rows import REMEDY, any_text, parse_rows, refuse
from carl_hf.data.files import Piece, first_line
from carl_hf.data.streaming import PiecewiseTable
from carl_hf.utils.atomic_files import write_atomically, write_json

MANIFEST = "_manifest.json"  # readers of a folder of Parquet files ignore names that begin with an underscore
_SETTINGS = b"carl_hf.settings"  # key in a shard's metadata


class Survey(NamedTuple):
    """What reading all rows once has found."""

    rows: int  # of all tables
    schema: pa.Schema  # of the columns to keep
    sha256: str  # checksum of all cells that are read


def survey(
    tables: Sequence[PiecewiseTable], text_column: str, keep_columns: Sequence[str], report: Callable[[int], Any]
) -> Survey:
    """Reads and checks all rows once, before the first of them is embedded.

    Args:
        report: called with the number of rows of each piece.

    Raises:
        ValueError: for a missing, empty or non-string text, a column of several types, or no rows at all.
    """
    digest, rows, schema = hashlib.sha256(), 0, pa.schema([])
    for table in tables:
        for piece in table.pieces(None):
            refuse(table.name, piece.bad, REMEDY)
            texts = piece.frame if text_column in piece.frame else piece.frame.assign(**{text_column: None})
            bad = parse_rows(texts, {text_column: any_text})[1]
            refuse(table.name, bad, f"{REMEDY}, or name another column with --text_column")
            cells = _as_arrow(piece, [text_column, *keep_columns], table.name)
            digest.update(repr(cells.to_pydict()).encode("utf-8"))
            kept = cells.select(keep_columns).schema.remove_metadata()
            try:
                schema = pa.unify_schemas([schema, kept], promote_options="permissive")
            except pa.ArrowException as error:
                raise ValueError(f"{table.name}: a column of --keep_columns has several types ({error}).") from error
            rows += len(cells)
            report(len(cells))
    if not rows:
        raise ValueError(f"{', '.join(table.name for table in tables)}: there are no rows.")
    return Survey(rows, schema, digest.hexdigest())


def _as_arrow(piece: Piece, columns: Sequence[str], name: str) -> pa.Table:
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
                f"{name}, {rows}: column {column!r} of --keep_columns holds values of several types, or values that "
                f"cannot be stored ({first_line(error)})."
            ) from error
    return pa.table(cells)


@dataclass(frozen=True)
class Shards:
    """The shards in a folder, and which of them this process writes.

    Args:
        settings: everything that the shards depend on, recorded in `_manifest.json` and in each shard.
        total: number of rows. shard_rows: rows of a shard; the last one may have fewer.
        rank, world: index of this process, and number of processes.
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

    def own(self) -> range:
        """The shards that this process writes."""
        return range(self.rank, len(self), self.world)

    def prepare(self, about: dict[str, Any], *, overwrite: bool) -> None:
        """Writes the manifest and, with `overwrite`, first removes this process's shards of an earlier run.

        Args:
            about: what else the manifest records.

        Raises:
            ValueError: if the folder holds shards with other settings, or other Parquet files.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--output_dir {self.folder} is a file; name a folder.")
        manifest = self.folder / MANIFEST
        remedy = "name another folder, or start anew with --overwrite_output_dir true"
        if overwrite:
            for path in self.folder.glob("*"):
                match = re.fullmatch(r"part-(\d+)\.parquet|_part-(\d+)\.partial", path.name)
                if match and int(match[1] or match[2]) % self.world == self.rank:
                    path.unlink()
        elif manifest.exists():
            try:
                before = json.loads(manifest.read_text(encoding="utf-8"))["settings"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{manifest} is damaged: {remedy}.") from error
            for name, value in self.settings.items():
                if before.get(name) != value:
                    raise ValueError(
                        f"--output_dir {self.folder} holds embeddings with another {name.replace('_', ' ')} "
                        f"({before.get(name)!r}, now {value!r}): {remedy}."
                    )
            return
        elif any(self.folder.glob("*.parquet")):
            raise ValueError(f"--output_dir {self.folder} holds Parquet files, but no {MANIFEST}: {remedy}.")
        content = {"settings": self.settings, "rows": self.total, "shards": len(self), **about}
        # every process writes the same file, so that none writes a shard before there is a manifest
        write_json(manifest, content, partial_name=f"_manifest-{self.rank}.partial")

    def read(
        self, tables: Sequence[PiecewiseTable], columns: Sequence[str], wanted: Collection[int]
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
            for piece in table.pieces(wanted_in_next):
                refuse(table.name, piece.bad, REMEDY)
                for shard in wanted_in_next(len(piece.frame)):
                    cells, start = _as_arrow(piece, columns, table.name), shard * self.shard_rows - first
                    parts.append(cells[max(start, 0) : start + self.rows_of(shard)])
                    if sum(map(len, parts)) == self.rows_of(shard):
                        yield shard, pa.concat_tables(parts, promote_options="permissive")
                        parts = []
                first += len(piece.frame)

    def is_finished(self, shard: int) -> bool:
        """Whether a shard exists, is complete and has these settings."""
        try:
            metadata = pq.read_metadata(self.path(shard))
        except (OSError, pa.ArrowException):
            return False
        return (metadata.metadata or {}).get(_SETTINGS) == self._stamp() and metadata.num_rows == self.rows_of(shard)

    def write(self, shard: int, texts: pa.ChunkedArray, vectors_NH: np.ndarray, kept: pa.Table) -> None:
        """Writes a shard: the columns row (int64, from 0), text, embedding (fixed-size list of the dtype of
        `vectors_NH`) and those of `kept`.

        Raises:
            OSError: if it cannot be written; nothing of it is left behind.
        """
        first, (count, width) = shard * self.shard_rows, vectors_NH.shape
        columns = {
            "row": pa.array(np.arange(first, first + count)),
            "text": texts.cast(pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors_NH.reshape(-1)), width),
            **dict(zip(kept.column_names, kept.columns, strict=True)),
        }
        table = pa.table(columns).replace_schema_metadata({_SETTINGS: self._stamp()})
        path = self.path(shard)
        write_atomically(path, lambda file: pq.write_table(table, file), partial_name=f"_{path.stem}.partial")

    def _stamp(self) -> bytes:
        return json.dumps(self.settings, sort_keys=True).encode()
