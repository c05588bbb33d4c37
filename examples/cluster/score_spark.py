"""Valence, arousal and emotions for every row of Parquet files, on all machines of a Spark cluster.

    pip install pyspark
    python examples/cluster/score_spark.py reviews.parquet scored --model runs/carl-demo --text_column review
    spark-submit --master yarn examples/cluster/score_spark.py hdfs:/reviews hdfs:/scored --model NAME/carl

Each Python worker loads the models once. The folder that is written has the rows of the input, and the columns that
carl-hf score adds.
"""

import argparse
from collections.abc import Iterator

import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import StructType

from carl_hf import AffectPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help="A Parquet file or a folder of them, where every machine can read it.")
    parser.add_argument("output", help="The folder to write, where every machine can write to it.")
    parser.add_argument("--model", default="runs/carl-demo", help="As carl-hf score takes it (default: %(default)s).")
    parser.add_argument("--text_column", default="text", help="Name of the column with the texts (default: text).")
    args = parser.parse_args()
    try:
        affect = AffectPipeline.from_pretrained(args.model)
    except ValueError as error:
        parser.error(str(error))
    spark = SparkSession.builder.appName("carl-hf").getOrCreate()
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "2048")  # texts of similar length share a batch
    text_column = args.text_column
    sent = spark.sparkContext.broadcast(affect)  # a worker keeps it, and its models, from one task to the next

    def score(parts: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for part in parts:
            yield pd.concat([part, sent.value(part[text_column])], axis=1)

    texts = spark.read.parquet(args.texts)
    if taken := set(texts.columns) & set(affect.schema().names):
        parser.error(f"{args.texts} has columns that would be written: {', '.join(sorted(taken))}. Rename them.")
    schema = StructType([*texts.schema, *from_arrow_schema(affect.schema())])
    texts.mapInPandas(score, schema).write.parquet(args.output)
    spark.stop()


if __name__ == "__main__":
    main()
