"""The command line of examples/score.py, and how a finished table is written."""

import csv
import io
import itertools
import json
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from carl_hf.commands.sharded import Answer, ShardArguments, checked_rows, remedy_for_a_full_disk
from carl_hf.commands.shards import Shards, Survey, as_arrow, pieces_of, unified
from carl_hf.data.appending import APPENDABLE, append_cells
from carl_hf.data.files import Piece
from carl_hf.data.streaming import PIECEWISE, PiecewiseTable, files_of, open_tables
from carl_hf.inference.pipeline import AffectPipeline
from carl_hf.utils.atomic_files import write_atomically
from carl_hf.utils.fields import setting
from carl_hf.utils.suggestions import first_line

_DIGITS = 4  # of answers in text files
_ROW_GROUP = 65_536  # rows


@dataclass
class ScoreArguments(ShardArguments):
    model: str = setting(
        "runs/carl-demo",
        "Folder with va/ and emotion/, one such export, or a Hub id (NAME, beside NAME-va and NAME-emotion).",
    )
    output: str | None = setting(None, "The finished table: .csv, .tsv, .jsonl or .parquet.")
    overwrite: bool = setting(False, "Replace the finished table, and what an earlier run has left unfinished.")
    prefix: str = setting("", "What the names of the new columns begin with.")
    probabilities: bool = setting(False, "Also the probability of each emotion.")
    intervals: bool = setting(False, "Also between which values nine in ten labels lie.")
    windows: bool = setting(True, "Read long texts in windows whose answers are averaged; false: their beginning.")
    max_length: int | None = setting(None, "Tokens of a window at most (default: the model's).")
    bf16: bool = setting(False, "Compute in bfloat16 (autocast).")
    shard_rows: int = setting(8192, "Rows that a killed process loses at most.")

    def __post_init__(self):
        super().__post_init__()
        if self.output is None or Path(self.output).suffix.lower() not in PIECEWISE:
            raise ValueError(f"--output {self.output or 'is missing'}: name a {', '.join(PIECEWISE)} file.")

    def pipeline(self) -> AffectPipeline:
        return AffectPipeline.from_pretrained(
            self.model, batch_size=self.batch_size, max_length=self.max_length, windows=self.windows,
            probabilities=self.probabilities, intervals=self.intervals, bf16=self.bf16,
        )  # fmt: skip


def score(args: ScoreArguments, affect: AffectPipeline, *, show_progress: bool = True) -> Survey:
    """Writes `args.output`: the tables that `args.texts` names, with the columns of `affect` for each row.

    The answers lie in a folder OUTPUT.parts until the table is finished; then it is removed.

    Returns:
        what reading the tables has found.

    Raises:
        ValueError: for a table that cannot be read or has such columns already, an output that exists, and what goes
            wrong when it is written.
    """
    output, names = Path(args.output), [f"{args.prefix}{name}" for name in affect.schema().names]
    files = list(itertools.chain.from_iterable(map(files_of, args.texts)))
    if output.exists() and any(output.samefile(file) for file in files):
        raise ValueError(f"--output {output} is one of the tables to read: name another.")
    _check_free(output, args)
    folder = output.with_name(f"{output.name}.parts")
    args.check_apart(folder, "--output")
    tables = open_tables(args.texts, [args.text_column], optional=names)
    found = checked_rows(tables, args.text_column, empty_texts=True, new_columns=names, show_progress=show_progress)
    settings = {
        "text_column": args.text_column, "prefix": args.prefix, "shard_rows": args.shard_rows,
        "checksum_of_model": affect.fingerprint(), "checksum_of_texts": found.sha256,
    }  # fmt: skip
    shards = Shards(folder, settings, found.rows, args.shard_rows, "--output", "--overwrite true")
    write = (
        partial(_copy, files[0])
        if _same_kind(files, args.texts, output)
        else _table_writer(args, output.suffix.lower())
    )

    def finish() -> None:
        _check_free(output, args)  # another run may have written it meanwhile
        with remedy_for_a_full_disk(shards):
            write_atomically(output, partial(write, shards))
            shards.remove()

    answer_on = partial(_answer_on, affect, args.text_column, args.prefix)
    args.write(
        shards, [args.text_column], answer_on, overwrite=args.overwrite, empty_texts=True,
        show_progress=show_progress, finish=finish,
    )  # fmt: skip
    return found


def _check_free(output: Path, args: ScoreArguments) -> None:
    if output.exists() and not args.overwrite:
        raise ValueError(f"--output {output} exists: name another, or replace it with --overwrite true.")


def _answer_on(affect: AffectPipeline, text_column: str, prefix: str, device: torch.device) -> Answer:
    if device.type != "cpu" and affect.device is None:
        affect.device = device

    def answer(rows: pa.Table) -> pa.Table:
        found = affect(rows[text_column].cast(pa.string()).to_pylist())
        return pa.Table.from_pandas(found, schema=schema, preserve_index=False).rename_columns(names)

    schema = affect.schema()
    names = [f"{prefix}{name}" for name in schema.names]
    return answer


def _same_kind(files: Sequence[Path], texts: Sequence[str], output: Path) -> bool:
    """Whether the output is a copy of one text file with more cells."""
    return len(files) == len(texts) == 1 and files[0].suffix.lower() == output.suffix.lower() in APPENDABLE


def _copy(source: Path, shards: Shards, file: BinaryIO) -> None:
    """Writes the answers into a copy of a text file."""
    answers = (row for shard in range(len(shards)) for row in _rounded(_stored(shards, shard)).to_pylist())
    append_cells(source, answers, file)


def _stored(shards: Shards, shard: int) -> pa.Table:
    return pq.read_table(shards.path(shard)).drop_columns("row")


def _rounded(answers: pa.Table) -> pa.Table:
    """Answers as text files hold them."""
    columns = [
        pc.round(column.cast(pa.float64()), _DIGITS) if pa.types.is_floating(column.type) else column
        for column in answers.columns
    ]
    return pa.table(columns, names=answers.column_names)


def _table_writer(args: ScoreArguments, kind: str) -> Callable[[Shards, BinaryIO], None]:
    """What writes the answers and all columns of the tables as another kind of file, as Parquet, or from several
    files; a ValueError if their types do not go together."""
    tables = open_tables(args.texts, [args.text_column], optional=None)
    schema = _schema_of(tables)
    _rehearse(tables, schema, kind)

    def rows(shards: Shards) -> Iterator[pa.Table]:
        answers = pa.concat_tables([_stored(shards, 0)])[:0]
        unread = iter(range(len(shards)))
        for table in tables:
            for piece in pieces_of(table, empty_texts=True):
                while len(answers) < len(piece.frame):
                    shard = next(unread, None)
                    if shard is None:
                        raise ValueError(f"{table.name} has got rows while it was read: start anew.")
                    answers = pa.concat_tables([answers, _stored(shards, shard)])
                new, answers = answers[: len(piece.frame)], answers[len(piece.frame) :]
                whole = pa.table(_columns_as(schema, piece, table.name), schema=schema)
                for name, column in zip(new.column_names, new.columns, strict=True):
                    whole = whole.append_column(name, column)
                yield whole
        if len(answers) or next(unread, None) is not None:
            raise ValueError(f"{', '.join(args.texts)}: rows were lost while they were read: start anew.")

    def write(shards: Shards, file: BinaryIO) -> None:
        if kind == ".parquet":
            _write_parquet(rows(shards), file)
        else:
            _write_text(rows(shards), len(schema), kind, file)

    return write


def _rehearse(tables: Sequence[PiecewiseTable], schema: pa.Schema, kind: str) -> None:
    """Raises a ValueError for a cell that the finished table cannot hold, before any is scored."""
    for table in tables:
        for piece in pieces_of(table, empty_texts=True):
            if piece.arrow is not None and len(tables) == 1 and kind != ".tsv":
                return  # its types are those of the schema
            cells = pa.table(_columns_as(schema, piece, table.name), schema=schema)
            if kind == ".tsv":
                _refuse_breaks(cells)


def _columns_as(schema: pa.Schema, piece: Piece, name: str) -> list[pa.ChunkedArray]:
    cells, columns = as_arrow(piece, [field.name for field in schema if field.name in piece.frame], name), []
    for field in schema:
        try:
            known = field.name in cells.column_names
            columns.append(cells[field.name].cast(field.type) if known else pa.nulls(len(cells), field.type))
        except pa.ArrowException as error:
            raise ValueError(
                f"{name}: column {field.name!r} cannot be written beside that of the other tables, as {field.type} "
                f"({first_line(error)}). Give it one type, or score the tables one by one."
            ) from error
    return columns


def _schema_of(tables: Sequence[PiecewiseTable]) -> pa.Schema:
    schema, metadata = pa.schema([]), None
    for table in tables:
        for piece in pieces_of(table, empty_texts=True):
            found = as_arrow(piece, [*piece.frame], table.name).schema
            schema, metadata = unified(schema, found, table.name), metadata or found.metadata
            if piece.arrow is not None:
                break  # its further pieces have the same types
    return schema.with_metadata(metadata)


def _write_parquet(tables: Iterator[pa.Table], file: BinaryIO) -> None:
    first = next(tables)
    with pq.ParquetWriter(file, first.schema) as writer:
        pending = []
        for table in itertools.chain([first], tables):
            pending.append(table)
            if sum(map(len, pending)) >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(pending))
                pending = []
        if pending:
            writer.write_table(pa.concat_tables(pending))


def _write_text(tables: Iterator[pa.Table], own: int, kind: str, file: BinaryIO) -> None:
    """JSON lines, CSV or TSV; the columns behind the first `own` are answers."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(_Lines(text), delimiter="\t" if kind == ".tsv" else ",", lineterminator="\r\n")
    for number, table in enumerate(tables):
        names = table.column_names
        answers = _rounded(table.select(names[own:]))
        found = pa.table([*table.columns[:own], *answers.columns], names=names)
        if kind == ".jsonl":
            text.writelines(map(_json_line, found.to_pylist()))
        else:
            if kind == ".tsv":
                _refuse_breaks(found)  # of a class, too
            writer.writerows([names] if number == 0 else [])
            writer.writerows(map(_plain, found.to_pylist()))
    text.flush()
    text.detach()


class _Lines:
    """A file for a csv writer, which quotes a carriage return only if its rows end in one; here they do not."""

    def __init__(self, file: io.TextIOBase):
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix("\r\n") + "\n")


def _refuse_breaks(table: pa.Table) -> None:
    for column in (pa.chunked_array([table.column_names]), *table.columns):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_string_view(column.type):
            column = column.cast(pa.large_string())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            for cell in column.filter(pc.match_substring_regex(column, r"[\t\r\n]")):
                raise ValueError(
                    f"A .tsv file cannot hold {reprlib.repr(cell.as_py())}, with a tab or a line break: name a .csv."
                )


def _json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), ensure_ascii=False, default=str, allow_nan=False) + "\n"


def _finite(cell: Any) -> Any:
    """A cell with null for each number that JSON does not have: NaN and the infinities."""
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    if isinstance(cell, Mapping):
        return {name: _finite(inner) for name, inner in cell.items()}
    return [_finite(inner) for inner in cell] if isinstance(cell, (list, tuple)) else cell


def _plain(row: Mapping[str, Any]) -> list[Any]:
    """Cells as a CSV file holds them; lists and mappings as JSON."""
    cells = row.values()
    return [json.dumps(c, ensure_ascii=False, default=str) if isinstance(c, (list, dict)) else c for c in cells]
