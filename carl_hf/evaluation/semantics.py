"""Semantic textual similarity: whether an embedding still tells what a text is about, not only how it feels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from carl_hf.evaluation.geometry import unit_rows
from carl_hf.evaluation.statistics import defined, interval, resample_rows, spearman
from carl_hf.evaluation.tasks import Encode, Measured


def measure_sts(encode: Encode, pairs: tuple[Sequence[str], Sequence[str], np.ndarray], *, seed: int) -> Measured:
    """[`sts_spearman`] of first texts, second texts and their rated similarity."""
    left, right, scores = pairs
    both = encode([*left, *right])
    cosines = pair_cosines(both[: len(left)], both[len(left) :])
    return sts_spearman(cosines, scores, seed=seed), {"predictions": cosines, "references": scores}


def pair_cosines(left_NH: np.ndarray, right_NH: np.ndarray) -> np.ndarray:
    """(N,) cosines of the pairs, to 12 decimals: what rounding leaves between equal ones must not rank the pairs.

    Raises:
        ValueError: if the embeddings are not of the same number of texts, or a row is zero or not finite.
    """
    return (unit_rows(left_NH) * unit_rows(right_NH)).sum(1).round(12)


def sts_spearman(cosines_N: np.ndarray, scores_N: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Spearman rank correlation of the cosine of two texts' embeddings with their rated similarity, on any scale.

    Args:
        seed: of the bootstrap over pairs, which ranks each resample anew.

    Returns:
        {"spearman": in [-1, 1], "spearman_interval": [low, high] (95 %), "texts": number of pairs}; None, with
        "spearman_reason", where cosines or scores are constant.
    """
    rows_RN = resample_rows(len(scores_N), seed)
    constant = [what for what, values in (("cosines", cosines_N), ("scores", scores_N)) if np.ptp(values) == 0]
    return {
        **defined({"spearman": float(spearman(cosines_N, scores_N))}, constant),
        "spearman_interval": interval(spearman(cosines_N[rows_RN], scores_N[rows_RN])),
        "texts": len(scores_N),
    }
