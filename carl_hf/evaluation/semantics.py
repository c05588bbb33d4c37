"""Semantic textual similarity: whether an embedding still tells what a text is about, not only how it feels."""

from typing import Any

import numpy as np

from carl_hf.evaluation.geometry import unit_rows
from carl_hf.evaluation.statistics import RESAMPLES, defined, interval, resample_rows, spearman


def pair_cosines(left_NH: np.ndarray, right_NH: np.ndarray) -> np.ndarray:
    """(N,) cosines of the pairs, to 12 decimals: what rounding leaves between equal ones must not rank the pairs."""
    return (unit_rows(left_NH) * unit_rows(right_NH)).sum(1).round(12)


def sts_spearman(
    left_NH: np.ndarray, right_NH: np.ndarray, scores_N: np.ndarray, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Spearman rank correlation of the cosine of two texts' embeddings with their rated similarity.

    Args:
        left_NH, right_NH: (N, H) embeddings of the first and second text of each pair, any scale. scores_N: (N,)
            rated similarity, on any scale. seed, resamples: of the bootstrap over pairs, which ranks each resample
            anew.

    Returns:
        {"spearman": in [-1, 1], "spearman_interval": [low, high] (95 %), "texts": number of pairs}; None, with
        "spearman_reason", where cosines or scores are constant.

    Raises:
        ValueError: for unequal lengths, no pairs, a score that is no finite number, or an embedding row that is zero
            or not finite.
    """
    scores_N = np.asarray(scores_N, dtype=np.float64)
    if np.shape(left_NH) != np.shape(right_NH) or scores_N.shape != np.shape(left_NH)[:1] or len(scores_N) == 0:
        raise ValueError(
            f"Left embeddings {np.shape(left_NH)}, right embeddings {np.shape(right_NH)} and scores {scores_N.shape} "
            "must belong to the same pairs, at least one."
        )
    if not np.isfinite(scores_N).all():
        raise ValueError(f"The score in row {int((~np.isfinite(scores_N)).argmax())} is no finite number.")
    cosines_N = pair_cosines(left_NH, right_NH)
    rows_RN = resample_rows(len(scores_N), seed, resamples)
    constant = [what for what, values in (("cosines", cosines_N), ("scores", scores_N)) if np.ptp(values) == 0]
    return {
        **defined({"spearman": float(spearman(cosines_N, scores_N))}, constant),
        "spearman_interval": interval(spearman(cosines_N[rows_RN], scores_N[rows_RN])),
        "texts": len(scores_N),
    }
