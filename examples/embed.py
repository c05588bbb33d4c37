"""Embeds texts of any number into Parquet files (shards), on all processes. A killed run can be continued.

    accelerate launch -q examples/embed.py --model minilm-l6@mean --texts my.parquet --output_dir runs/embedded
    accelerate launch -q examples/embed.py --model runs/carl-demo/encoder --texts 'corpus/*.jsonl' --keep_columns id
    torchrun --standalone --nproc_per_node 2 examples/embed.py --texts my.csv

Reads .csv, .tsv, .jsonl and .parquet files piece by piece, the first time to check every row. Writes
part-00000.parquet, part-00001.parquet, ... with the columns row, text, embedding and those of --keep_columns, and
_manifest.json. The same command again embeds what is missing, on any number of processes.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.embed import EmbedArguments, remedy_for_a_full_disk
from carl_hf.commands.environment import environment_record, use_all_cores
from carl_hf.commands.shards import Shards, Survey, survey
from carl_hf.data.streaming import PiecewiseTable, open_tables
from carl_hf.evaluation.encoder import TextEncoder, load_text_encoder, split_pooling
from carl_hf.utils.progress import RowProgress

WINDOW = 8192  # texts embedded together; within it, texts of similar length share a batch


def check_rows(args: EmbedArguments, tables: list[PiecewiseTable], *, show_progress: bool) -> Survey:
    """Reads every row once. All processes do: it is cheap beside embedding and needs no communication."""
    logging.info("Checking every row of %s ...", " ".join(args.texts))
    with tqdm(desc="checking", unit="rows", unit_scale=True, disable=None if show_progress else True) as bar:
        return survey(tables, args.text_column, args.keep_columns, bar.update)


def embed_shards(
    args: EmbedArguments, encoder: TextEncoder, tables: list[PiecewiseTable], found: Survey, shards: Shards,
    device: torch.device,
) -> None:  # fmt: skip
    """Embeds the shards of this process that are not finished."""
    missing = {shard for shard in shards.own() if not shards.is_finished(shard)}
    if len(missing) < len(shards.own()):
        finished, own = len(shards.own()) - len(missing), len(shards.own())
        logging.info("%d of this process's %d shards are finished.", finished, own)
    progress = RowProgress(sum(map(shards.rows_of, missing)), shown=shards.rank == 0)
    columns = [args.text_column, *args.keep_columns]
    for shard, rows in shards.read(tables, columns, missing):
        vectors = []
        for start in range(0, len(rows), WINDOW):
            texts = rows[args.text_column].slice(start, WINDOW).to_pylist()
            with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                vectors.append(encoder.embed(texts).astype(args.dtype))
            progress.update(len(texts))
        kept = rows.select(args.keep_columns).cast(found.schema)
        shards.write(shard, rows[args.text_column], np.concatenate(vectors), kept)
        progress.line(shards.path(shard).name)
    progress.close()


def main(argv: Sequence[str] | None = None) -> None:
    # as torchrun and accelerate launch set them
    rank, world, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        args = parse_script_arguments(EmbedArguments, argv, description=__doc__)
        use_all_cores(args.num_threads)
        tables = open_tables(args.texts, [args.text_column, *args.keep_columns])
        device = torch.device(f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu")
        model, pooling = split_pooling(args.model)
        encoder = load_text_encoder(
            model, pooling=pooling, max_length=args.max_length, batch_size=args.batch_size, device=device,
            show_progress=False,
        )  # fmt: skip
        found = check_rows(args, tables, show_progress=rank == 0)
        settings = {
            "pooling": encoder.pooling,
            **args.shard_settings(),
            "checksum_of_model": encoder.fingerprint,
            "checksum_of_texts": found.sha256,
        }
        shards = Shards(Path(args.output_dir), settings, found.rows, args.shard_rows, rank, world)
        about = {"model": args.model, "texts": args.texts, "versions": environment_record()["versions"]}
        with remedy_for_a_full_disk(args.output_dir):
            shards.prepare(about, overwrite=args.overwrite_output_dir)
            embed_shards(args, encoder, tables, found, shards, device)
    except ValueError as error:
        sys.exit(f"error: {error}")
    logging.info("%s: %s rows in %d shards.", args.output_dir, f"{shards.total:,}", len(shards))


if __name__ == "__main__":
    main()
