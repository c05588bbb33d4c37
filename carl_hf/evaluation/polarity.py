"""Polarity of sentences and reviews: MR, CR, SST5 and IMDB with SentEval's linear probe."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.splits import split_rows
from carl_hf.evaluation.senteval import PROTOCOLS, SEED, nested_kfold, split_probe
from carl_hf.evaluation.statistics import interval, one_hot, resampled_class_metrics
from carl_hf.utils.devices import default_device


def measure_polarity(
    encode: Callable[[Sequence[str]], np.ndarray], corpus: ClassCorpus, *, protocol: Literal["fast", "test"]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Accuracy (percent) by nested k-fold where the corpus has no splits (MR, CR), else on its test split (SST5, IMDB;
    for the validation split of IMDB see [`carl_hf.data.splits.split_rows`])."""
    device, classes = default_device(), len(corpus.classes)
    embeddings, truth = encode(corpus.texts), corpus.labels
    if corpus.split is None:
        result = nested_kfold(embeddings, truth, PROTOCOLS[protocol], device=device)
    else:
        rows = split_rows(corpus)
        result = split_probe(embeddings, truth, *rows, PROTOCOLS[protocol], classes=classes, device=device)
        truth = truth[rows[2]]
    tables = (one_hot(values, classes) for values in (result.predictions, truth))
    metrics = {
        "accuracy": result.accuracy,
        "accuracy_interval": interval(resampled_class_metrics(*tables, seed=SEED)["accuracy"]),
        "majority": 100 * float(np.bincount(truth).max() / len(truth)),
        "protocol": protocol,
        "l2": list(result.l2),
        "texts": len(truth),
    }
    return metrics, {"predictions": result.predictions, "references": truth}
