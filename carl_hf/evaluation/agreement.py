"""Agreement of predicted with true numbers: Pearson r, Spearman rho, concordance correlation (CCC), absolute error.

The functions take any leading axes and work along the last one (the texts), so that a bootstrap is one call.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation along the last axis; NaN where a side is constant."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.where(scale > 1e-12, (x * y).sum(-1) / np.where(scale > 1e-12, scale, 1), np.nan)[()]


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman rank correlation along the last axis, ties given their mean rank; NaN where a side is constant."""
    from scipy.stats import rankdata

    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


def concordance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Concordance correlation along the last axis: 2 cov(x, y) / (var x + var y + (mean x - mean y)^2), population
    moments (Lin 1989, Biometrics 45, 255-268). It falls short of Pearson r by any difference of scale or mean; 0
    where one side is constant, NaN where both are the same constant."""
    mean_x, mean_y = x.mean(-1), y.mean(-1)
    covariance = ((x - mean_x[..., None]) * (y - mean_y[..., None])).mean(-1)
    total = x.var(-1) + y.var(-1) + (mean_x - mean_y) ** 2
    return np.where(total > 0, 2 * covariance / np.where(total > 0, total, 1), np.nan)[()]


def absolute_error(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean absolute error along the last axis."""
    return np.abs(x - y).mean(-1)


FIGURES = {"pearson": pearson, "spearman": spearman, "ccc": concordance, "mae": absolute_error}


def agreement(predictions_NK: np.ndarray, references_NK: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The four figures for each of K dimensions.

    Args:
        predictions_NK, references_NK: (N, K) numbers on one scale. names: of the K dimensions.

    Returns:
        {name: {"pearson", "spearman", "ccc", "mae"}}; a figure that is undefined is None, and a key
        "<figure>_reason" says why.

    Raises:
        ValueError: for different shapes, no rows, or a value that is no finite number.
    """
    predictions_NK, references_NK = np.asarray(predictions_NK, dtype=float), np.asarray(references_NK, dtype=float)
    if predictions_NK.shape != references_NK.shape or predictions_NK.ndim != 2 or len(predictions_NK) == 0:
        raise ValueError(
            f"Predictions {predictions_NK.shape} and references {references_NK.shape} must be two (N, K) arrays of "
            "one shape, N at least 1."
        )
    for what, values in (("prediction", predictions_NK), ("reference", references_NK)):
        if not np.isfinite(values).all():
            raise ValueError(f"The {what} in row {int((~np.isfinite(values)).any(1).argmax())} is no finite number.")
    result = {}
    for name, x, y in zip(names, predictions_NK.T, references_NK.T, strict=True):
        constant = [what for what, values in (("predictions", x), ("references", y)) if np.ptp(values) == 0]
        result[name] = defined({key: float(figure(x, y)) for key, figure in FIGURES.items()}, constant)
    return result


def defined(figures: dict[str, float], constant: Sequence[str]) -> dict[str, Any]:
    """Figures with None in place of NaN, and the reason beside it."""
    result: dict[str, Any] = {}
    for key, value in figures.items():
        result[key] = value if np.isfinite(value) else None
        if result[key] is None:
            result[f"{key}_reason"] = f"undefined: the {' and '.join(constant) or 'values'} are constant"
    return result
