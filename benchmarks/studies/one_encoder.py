"""What it costs that va/ and emotion/ share an encoder: the heads of one run beside those of another, on test texts.

    python benchmarks/studies/one_encoder.py --apart runs/apart --shared runs/carl-demo --corpus demo --emotion demo

The differences are paired over the texts: 95 % bootstrap intervals.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carl_hf import AffectPipeline, load_va_dataset
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import use_all_cores
from carl_hf.data.labelled import ClassCorpus, read_emotion
from carl_hf.data.splits import split_rows
from carl_hf.evaluation.statistics import (
    class_metrics,
    correlation_gain,
    interval,
    one_hot,
    pearson,
    resampled_class_metrics,
)
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of
from carl_hf.export.folder import read_record
from carl_hf.report.tables import fraction, table
from carl_hf.utils.fields import setting


@dataclass
class OneEncoderArguments:
    apart: str = setting("runs/apart", "Run whose va/ and emotion/ have an encoder each.")
    shared: str = setting("runs/carl-minilm", "Run whose heads share one.")
    corpus: str = setting("emobank", "Corpus with valence and arousal, of whose test part r is.")
    emotion: str = setting("goemotions-ekman", "Corpus of the emotions.")
    data_dir: str | None = setting(None, "Folder with local copies of the corpora.")
    num_threads: int | None = setting(None, "CPU threads (default: all cores).")
    seed: int = setting(42, "Seed of the bootstrap.")


def predicted(run: str, pipeline: AffectPipeline, texts: list[str], corpus: ClassCorpus) -> np.ndarray:
    """(N, C) booleans: the most probable class, or those from their thresholds on."""
    answers = pipeline(texts)[[f"emotion_{name}" for name in corpus.classes]].to_numpy(float)
    if not corpus.multi_label:
        return one_hot(answers.argmax(1), len(corpus.classes))
    thresholds = (read_record(Path(run) / "emotion") or {})["head"]["thresholds"]
    return answers >= np.array([thresholds[name] for name in corpus.classes])


def main() -> None:
    try:
        args = parse_script_arguments(OneEncoderArguments)
        use_all_cores(args.num_threads)
        runs = [args.apart, args.shared]
        pipelines = [AffectPipeline.from_pretrained(run, probabilities=True) for run in runs]
        rated = load_va_dataset(args.corpus, split="test", data_dir=args.data_dir)
        corpus = read_emotion(args.emotion, args.data_dir)
        answers = [pipeline(rated["text"])[list(DIMENSIONS)].to_numpy(float) for pipeline in pipelines]
        texts, labels = corpus.part(split_rows(corpus)[2])
        classes = [predicted(run, pipeline, texts, corpus) for run, pipeline in zip(runs, pipelines, strict=True)]
    except ValueError as error:
        sys.exit(f"error: {error}")
    rows = []
    for k, (name, truth) in enumerate(zip(DIMENSIONS, labels_of(rated).T, strict=False)):
        values = [fraction(float(pearson(found[:, k], truth))) for found in answers]
        before, after = (found[:, k] for found in answers)
        gain = correlation_gain("pearson", before, after, truth, seed=args.seed, constant="predictions")
        bounds = ", ".join(map(fraction, gain["pearson_interval"]))
        rows.append([args.corpus, f"{name}, Pearson r", *values, f"{fraction(gain['pearson'])} [{bounds}]"])
    truth_NC = labels if corpus.multi_label else one_hot(labels, len(corpus.classes))
    measured = [class_metrics(found, truth_NC) for found in classes]
    resampled = [resampled_class_metrics(found, truth_NC, seed=args.seed) for found in classes]
    for metric, name in (("f1", "macro F1"), ("accuracy", "exactly right, %")):
        show = fraction if metric == "f1" else "{:.1f}".format
        difference = measured[1][metric] - measured[0][metric]
        bounds = ", ".join(map(show, interval(resampled[1][metric] - resampled[0][metric]) or ()))
        values = [show(found[metric]) for found in measured]
        rows.append([args.emotion, name, *values, f"{show(difference)} [{bounds}]"])
    passes = [len(pipeline._loaded()) for pipeline in pipelines]
    rows.append(["", "passes of an encoder", *map(str, passes), ""])
    print(table(["test texts of", "metric", "apart", "shared", "difference"], rows, text_columns=2))


if __name__ == "__main__":
    main()
