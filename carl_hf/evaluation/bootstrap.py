"""Bootstrap over test items: every figure gets an interval, and two models are compared on the same resamples."""

import numpy as np

RESAMPLES = 1000


def resample_rows(size: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(resamples, size) row numbers drawn with replacement. The same size and seed give the same rows, so that figures
    of two models on one test set are paired."""
    return np.random.default_rng(seed).integers(size, size=(resamples, size))


def interval(values: np.ndarray) -> list[float] | None:
    """95 % percentile interval of a figure's values over the resamples; None if the figure is undefined in all."""
    values = values[np.isfinite(values)]
    return [float(v) for v in np.quantile(values, [0.025, 0.975])] if len(values) else None
