"""Semantic textual similarity: whether an embedding still tells what a text is about, not only how it feels."""

from collections.abc import Sequence

import numpy as np

from carl_hf.evaluation.geometry import unit_rows
from carl_hf.evaluation.statistics import defined, interval, resample_rows, spearman
from carl_hf.evaluation.tasks import Encode, Measured


def measure_sts(encode: Encode, pairs: tuple[Sequence[str], Sequence[str], np.ndarray], *, seed: int) -> Measured:
    """Spearman rank correlation of the cosine of two texts' embeddings with their rated similarity.

    Args:
        pairs: first texts, second texts, and similarity on any scale. seed: of the bootstrap over pairs, which ranks
            each resample anew.

    Returns:
        {"spearman": in [-1, 1], "spearman_interval": [low, high] (95 %), "texts": number of pairs}; None, with
        "spearman_reason", where cosines or scores are constant. And the cosines as predictions.

    Raises:
        ValueError: for an embedding row that is zero or not finite.
    """
    left, right, scores_N = pairs
    embeddings_NH = encode([*left, *right])
    first_NH, second_NH = unit_rows(embeddings_NH[: len(left)]), unit_rows(embeddings_NH[len(left) :])
    # to 12 decimals: what rounding leaves between equal cosines must not rank the pairs
    cosines_N = (first_NH * second_NH).sum(1).round(12)
    rows_RN = resample_rows(len(scores_N), seed)
    constant = [what for what, values in (("cosines", cosines_N), ("scores", scores_N)) if np.ptp(values) == 0]
    metrics = {
        **defined({"spearman": float(spearman(cosines_N, scores_N))}, constant),
        "spearman_interval": interval(spearman(cosines_N[rows_RN], scores_N[rows_RN])),
        "texts": len(scores_N),
    }
    return metrics, {"predictions": cosines_N, "references": scores_N}
