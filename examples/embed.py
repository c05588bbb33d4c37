"""Embeds texts of any number into Parquet files, on all processes; what a kill leaves is continued.

    accelerate launch examples/embed.py --model minilm-l6@mean --texts my.parquet --output_dir runs/embedded
    accelerate launch examples/embed.py --model runs/carl-demo/encoder --texts 'corpus/*.jsonl' --keep_columns id
    torchrun --standalone --nproc_per_node 2 examples/embed.py --texts my.csv

Reads .csv, .tsv, .jsonl and .parquet files piece by piece, first once to check every row, and leaves in the output
folder part-00000.parquet, part-00001.parquet, ... with the columns row, text, embedding and those of --keep_columns,
and _manifest.json. The same command again embeds what is missing, on as many processes as you like.
"""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from carl_hf.commands.arguments import environment_record, parse_script_arguments, use_all_cores
from carl_hf.commands.embedding_shards import OWN_COLUMNS, Shards, Survey, read_shards, survey
from carl_hf.data.table_pieces import PiecewiseTable, open_tables
from carl_hf.evaluation.encoder import TextEncoder, load_text_encoder, split_pooling
from carl_hf.utils.progress import RowProgress

_WINDOW = 8192  # texts embedded together; within it, texts of similar length share a batch
_PLACE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}  # as torchrun and accelerate set them
_SETTINGS = ("max_length", "bf16", "dtype", "shard_rows", "text_column", "keep_columns")  # what shards depend on


@dataclass
class EmbedArguments:
    model: str = field(
        default="minilm-l6",
        metadata={
            "help": "Hub id, folder (encoder, CARL checkpoint, sentence-transformers model) or 'minilm-l6'; NAME@cls, "
            "NAME@mean and NAME@pooler choose a pooling (without: what the model's folder states, else cls)."
        },
    )
    texts: list[str] = field(
        default_factory=list,
        metadata={"help": "Files (.csv, .tsv, .jsonl, .parquet), folders of them, patterns, or ids of Hub data sets."},
    )
    text_column: str = field(default="text", metadata={"help": "Name of the column with the texts."})
    keep_columns: list[str] = field(default_factory=list, metadata={"help": "Columns that are carried through."})
    output_dir: str = field(default="runs/embedded", metadata={"help": "Folder for the shards."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the shards that the folder holds."})
    shard_rows: int = field(default=50_000, metadata={"help": "Rows of a shard: what a kill can cost a process."})
    dtype: Literal["float32", "float16"] = field(default="float32", metadata={"help": "Of the stored numbers."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16 (autocast)."})
    max_length: int = field(default=128, metadata={"help": "Tokens kept of a text."})
    batch_size: int = field(
        default=64, metadata={"help": "Texts of 32 tokens encoded together; of shorter ones more."}
    )
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})

    def __post_init__(self):
        if not self.texts:
            raise ValueError("--texts is missing: name a file, a folder, a pattern or a Hub data set.")
        for name in ("shard_rows", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be positive, got {getattr(self, name)}.")
        if len({*self.keep_columns}) < len(self.keep_columns):
            raise ValueError("--keep_columns names a column twice.")
        taken = [column for column in self.keep_columns if column in (*OWN_COLUMNS, self.text_column)]
        if taken:
            raise ValueError(f"--keep_columns {taken[0]}: the shards have such a column anyway; leave it out.")


def check_rows(args: EmbedArguments, tables: list[PiecewiseTable], *, main_process: bool) -> Survey:
    """Reads every row once. All processes do, which is cheap beside embedding and needs no communication."""
    logging.info("Checking every row of %s ...", " ".join(args.texts))
    with tqdm(desc="checking", unit="rows", unit_scale=True, disable=None if main_process else True) as bar:
        return survey(tables, args.text_column, args.keep_columns, bar.update)


def embed_shards(
    args: EmbedArguments,
    encoder: TextEncoder,
    tables: list[PiecewiseTable],
    found: Survey,
    shards: Shards,
    device: str,
) -> None:
    """Embeds the shards of this process that are not finished."""
    own = {shard for shard in range(len(shards)) if shards.is_own(shard)}
    missing = {shard for shard in own if not shards.is_finished(shard)}
    if len(missing) < len(own):
        logging.info("%d of this process's %d shards are finished.", len(own) - len(missing), len(own))
    progress = RowProgress(sum(map(shards.rows_of, missing)), shown=shards.rank == 0)
    columns = [args.text_column, *args.keep_columns]
    for shard, rows in read_shards(tables, columns, found.rows, args.shard_rows, missing):
        vectors = []
        for start in range(0, len(rows), _WINDOW):
            texts = rows[args.text_column].slice(start, _WINDOW).to_pylist()
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=args.bf16):
                vectors.append(encoder.embed(texts).astype(args.dtype))
            progress.update(len(texts))
        kept = rows.select(args.keep_columns).cast(found.schema)
        shards.write(shard, rows[args.text_column], np.concatenate(vectors), kept)
        progress.line(shards.path(shard).name)
    progress.close()


@contextlib.contextmanager
def writable(folder: str) -> Iterator[None]:
    """A full disk and the like as a ValueError with the remedy."""
    try:
        yield
    except OSError as error:
        remedy = "make room" if error.errno == errno.ENOSPC else "see to that"
        raise ValueError(
            f"--output_dir {folder} cannot be written ({error.strerror}). The finished shards are whole: {remedy} and "
            "start the same command again."
        ) from error


def main() -> None:
    rank, world, local_rank = (int(os.environ.get(name, n)) for name, n in _PLACE.items())
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        args = parse_script_arguments(EmbedArguments)
        use_all_cores(args.num_threads)
        tables = open_tables(args.texts, [args.text_column, *args.keep_columns])
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
        model, pooling = split_pooling(args.model)
        encoder = load_text_encoder(
            model, pooling=pooling, max_length=args.max_length, batch_size=args.batch_size, device=device,
            show_progress=False,
        )  # fmt: skip
        found = check_rows(args, tables, main_process=rank == 0)
        settings = {
            "pooling": encoder.pooling,
            **{name: getattr(args, name) for name in _SETTINGS},
            "checksum_of_model": encoder.fingerprint,
            "checksum_of_texts": found.sha256,
        }
        shards = Shards(Path(args.output_dir), settings, found.total, args.shard_rows, rank, world)
        about = {"model": args.model, "texts": args.texts, "versions": environment_record()["versions"]}
        with writable(args.output_dir):
            shards.prepare(about, overwrite=args.overwrite_output_dir)
            embed_shards(args, encoder, tables, found, shards, device)
    except ValueError as error:
        sys.exit(f"error: {error}")
    logging.info("%s: %s rows in %d shards.", args.output_dir, f"{found.total:,}", len(shards))


if __name__ == "__main__":
    main()
