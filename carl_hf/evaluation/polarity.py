"""Polarity of sentences and reviews: MR, CR, SST5 and IMDB with SentEval's linear probe."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.splits import split_rows
from carl_hf.evaluation.senteval import FAST_PROTOCOL, TEST_PROTOCOL, nested_kfold, split_probe
from carl_hf.evaluation.statistics import interval, one_hot, resampled_class_metrics

SENTEVAL_SEED = 1111  # of the published protocol, whatever the seed of everything else


def measure_polarity(
    encode: Callable[[Sequence[str]], np.ndarray], corpus: ClassCorpus, *, protocol: Literal["fast", "test"]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Accuracy (percent) by nested k-fold where the corpus has no splits (MR, CR), else on its test part (SST5, IMDB;
    IMDB has no dev part: a tenth of its training part is taken)."""
    settings = {"fast": FAST_PROTOCOL, "test": TEST_PROTOCOL}[protocol]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    embeddings, labels = encode(corpus.texts), corpus.labels
    if corpus.split is None:
        result = nested_kfold(embeddings, labels, settings, seed=SENTEVAL_SEED, device=device)
        predictions, truth, accuracy, l2 = result.predictions, labels, result.accuracy, list(result.l2)
    else:
        train, dev, test = split_rows(corpus)
        result = split_probe(
            embeddings[train], labels[train], embeddings[dev], labels[dev], embeddings[test], settings,
            classes=len(corpus.classes), seed=SENTEVAL_SEED, device=device,
        )  # fmt: skip
        predictions, truth, l2 = result.predictions, labels[test], [result.l2]
        accuracy = 100 * float((predictions == truth).mean())
    tables = (one_hot(values, len(corpus.classes)) for values in (predictions, truth))
    resampled = resampled_class_metrics(*tables, seed=SENTEVAL_SEED)
    figures = {
        "accuracy": float(accuracy),
        "accuracy_interval": interval(resampled["accuracy"]),
        "majority": 100 * float(np.bincount(truth).max() / len(truth)),
        "protocol": protocol,
        "l2": [float(value) for value in l2],
        "texts": len(truth),
    }
    return figures, {"predictions": predictions, "references": truth}
