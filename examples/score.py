"""Valence, arousal and emotions for every row of a table of any size. A killed run can be continued.

    python examples/score.py my.csv --model runs/carl-demo --output scored.csv
    python examples/score.py reviews.parquet --text_column review --model runs/carl-demo --output scored.parquet
    python examples/score.py 'corpus/*.jsonl' --model NAME/carl --output scored.parquet --processes 2

Reads .csv, .tsv, .jsonl and .parquet files or Hub data sets piece by piece, the first time to check every row. The
output has all their columns and, for each row, valence and arousal in [0, 1], the emotion and its probability, and
how many tokens were not read or are unknown to the model. A CSV, TSV or JSON lines file goes out in the dialect in
which it came in. The same command again goes on where a killed one was stopped.
"""

import logging
from collections.abc import Sequence

from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.outputs import errors_in_one_line
from carl_hf.commands.score import ScoreArguments, score
from carl_hf.commands.sharded import start_writing_script


@errors_in_one_line("the same command goes on")
def main(argv: Sequence[str] | None = None) -> None:
    start_writing_script()
    args = parse_script_arguments(ScoreArguments, argv, description=__doc__, leading="texts")
    found = score(args, args.pipeline())
    logging.info("%s: %s rows, %s of them without a text.", args.output, f"{found.rows:,}", f"{found.empty:,}")


if __name__ == "__main__":
    main()
