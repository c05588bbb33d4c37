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

_CITATION = """
@inproceedings{wang2020understanding,
  title = {Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere},
  author = {Wang, Tongzhou and Isola, Phillip},
  booktitle = {Proceedings of the 37th International Conference on Machine Learning},
  pages = {9929--9939},
  year = {2020}
}
"""

_INPUTS = """
Args:
    embeddings: list of N lists of H numbers, of any length other than zero.
    labels: list of N class numbers.

Returns:
    dict with "alignment" in [0, 4], "uniformity" in [-8, 0] and "positive_random_ratio". A figure that is undefined,
    such as alignment where no two texts have the same label, is None, and "<figure>_reason" says why.

Example:
    >>> from carl_hf.evaluation.metrics import load_metric
    >>> metric = load_metric("alignment_uniformity")
    >>> result = metric.compute(embeddings=[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]], labels=[0, 0, 1, 1])
    >>> result["alignment"]
    0.0
"""


class AlignmentUniformity(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        embeddings = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"embeddings": embeddings, "labels": datasets.Value("int64")}),
        )

    def _compute(self, embeddings, labels):
        return alignment_uniformity(np.array(embeddings), np.array(labels))
