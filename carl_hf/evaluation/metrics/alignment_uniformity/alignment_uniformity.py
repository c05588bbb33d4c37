"""Alignment and uniformity of embeddings with class labels, as an `evaluate` metric."""

# evaluate reads this file's imports line by line and takes "import a, b" for one package: one module a line
import datasets
import evaluate
import numpy as np

from carl_hf.evaluation.geometry import alignment_uniformity

_DESCRIPTION = """
Alignment (mean squared distance of texts with the same label) and uniformity (log of the mean Gaussian potential of
all pairs) of embeddings on the unit sphere, and alignment over the mean squared distance of random pairs. Lower is
better.
"""
_CITATION = "Wang and Isola, Understanding Contrastive Representation Learning, ICML 2020, arXiv 2005.10242"
_INPUTS = """
Args:
    embeddings: list of N lists of H numbers, of any length other than zero.
    labels: list of N class indices.

Returns:
    dict with "alignment" in [0, 4], "uniformity" in [-8, 0] and "positive_random_ratio". A metric that is undefined,
    such as alignment where no two texts have the same label, is None, and "<metric>_reason" says why.

Example:
    >>> from carl_hf.evaluation.metrics import load_metric
    >>> metric = load_metric("alignment_uniformity")
    >>> result = metric.compute(embeddings=[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]], labels=[0, 0, 1, 1])
    >>> result["alignment"]
    0.0
"""
_FEATURES = {"embeddings": datasets.Sequence(datasets.Value("float64")), "labels": datasets.Value("int64")}


class AlignmentUniformity(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(_DESCRIPTION, _CITATION, datasets.Features(_FEATURES), inputs_description=_INPUTS)

    def _compute(self, embeddings, labels):
        return alignment_uniformity(np.array(embeddings), np.array(labels))
