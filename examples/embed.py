"""Embeds texts of any number into Parquet files (shards). A killed run can be continued.

    python examples/embed.py my.parquet --model minilm-l6@mean --output_dir runs/embedded
    python examples/embed.py 'corpus/*.jsonl' --model runs/carl-demo/encoder --keep_columns id --processes 2

Reads .csv, .tsv, .jsonl and .parquet files piece by piece, the first time to check every row. Writes
part-00000.parquet, part-00001.parquet, ... with the columns row, text, embedding and those of --keep_columns, and
_manifest.json. The same command again embeds what is missing, in any number of processes.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.embed import EmbedArguments
from carl_hf.commands.outputs import errors_in_one_line
from carl_hf.commands.sharded import checked_rows, start_writing_script
from carl_hf.commands.shards import Shards
from carl_hf.data.streaming import open_tables


@errors_in_one_line("the same command goes on")
def main(argv: Sequence[str] | None = None) -> None:
    start_writing_script()
    args = parse_script_arguments(EmbedArguments, argv, description=__doc__, leading="texts")
    args.check_apart(Path(args.output_dir), "--output_dir")
    columns = [args.text_column, *args.keep_columns]
    tables = open_tables(args.texts, columns)
    encoder = args.load(torch.device("cpu"))  # here for its settings; each process loads it where it runs
    found = checked_rows(tables, args.text_column, args.keep_columns)
    settings = {
        "pooling": encoder.pooling,
        **args.shard_settings(),
        "checksum_of_model": encoder.fingerprint,
        "checksum_of_texts": found.sha256,
    }
    shards = Shards(Path(args.output_dir), settings, found.rows, args.shard_rows)
    answer_on = partial(args.answer_on, schema=found.schema)
    args.write(shards, columns, answer_on, overwrite=args.overwrite_output_dir)
    logging.info("%s: %s rows in %d shards.", args.output_dir, f"{shards.total:,}", len(shards))


if __name__ == "__main__":
    main()
