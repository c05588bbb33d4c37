"""Valence, arousal and emotions for every row of Parquet files, on all machines of a Ray cluster.

    pip install "ray[data]"
    python examples/cluster/score_ray.py reviews.parquet scored --model runs/carl-demo --text_column review
    python examples/cluster/score_ray.py /shared/reviews /shared/scored --model NAME/carl --workers 16 --gpus 1

Each worker, a process, loads the models once. The folder that is written has the rows of the input in their order,
and the columns that carl-hf score adds.
"""

import argparse
import math

import pyarrow as pa
import ray

from carl_hf import AffectPipeline


class Scorer:
    """What a worker holds: a pipeline, whose models are loaded at its first call."""

    def __init__(self, affect: AffectPipeline, text_column: str):
        self.affect, self.text_column = affect, text_column

    def __call__(self, rows: pa.Table) -> pa.Table:
        answers = self.affect(rows[self.text_column].to_pylist())
        answers = pa.Table.from_pandas(answers, schema=self.affect.schema(), preserve_index=False)
        return pa.table([*rows.columns, *answers.columns], names=[*rows.column_names, *answers.column_names])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help="A Parquet file or a folder of them, where every machine can read it.")
    parser.add_argument("output", help="The folder to write, where every machine can write to it.")
    parser.add_argument("--model", default="runs/carl-demo", help="As carl-hf score takes it (default: %(default)s).")
    parser.add_argument("--text_column", default="text", help="Name of the column with the texts (default: text).")
    parser.add_argument("--workers", type=int, default=1, help="Processes of the whole cluster (default: 1).")
    parser.add_argument("--gpus", type=float, default=0, help="Share of a GPU that each takes (default: 0).")
    args = parser.parse_args()
    try:
        affect = AffectPipeline.from_pretrained(args.model)
    except ValueError as error:
        parser.error(str(error))
    ray.init()
    # one CPU stays free: workers that hold all would wait for ever for the tasks that list, read and write files
    free = ray.cluster_resources().get("CPU", 1) - 1
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    texts = ray.data.read_parquet(args.texts)
    if taken := set(texts.schema().names) & set(affect.schema().names):
        parser.error(f"{args.texts} has columns that would be written: {', '.join(sorted(taken))}. Rename them.")
    table = texts.map_batches(
        Scorer, fn_constructor_args=(affect, args.text_column), concurrency=args.workers, num_gpus=args.gpus,
        num_cpus=min(1, math.floor(100 * free / args.workers) / 100), batch_size=2048, batch_format="pyarrow",
    )  # fmt: skip
    table.write_parquet(args.output)


if __name__ == "__main__":
    main()
