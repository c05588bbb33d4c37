"""Valence and arousal from frozen embeddings: a ridge probe, with bootstrap intervals over the test texts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

DIMENSIONS = ("valence", "arousal")
_ALPHAS = tuple(10.0**k for k in range(-1, 6))


def ridge_predictions(
    train: np.ndarray, train_labels: np.ndarray, dev: np.ndarray, dev_labels: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Predictions of a ridge regression on standardised embeddings, its strength chosen on dev by Pearson r.

    Args:
        train, dev, test: embeddings (N, H) of three disjoint sets of texts. train_labels, dev_labels: (N, K).

    Returns:
        (N of test, K); each of the K labels has a strength of its own.
    """
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    train, dev, test = (np.asarray(part, dtype=np.float64) for part in (train, dev, test))
    scaler = StandardScaler().fit(train)
    train, dev, test = (scaler.transform(part) for part in (train, dev, test))
    columns = []
    for k in range(train_labels.shape[1]):
        probes = [Ridge(alpha=alpha).fit(train, train_labels[:, k]) for alpha in _ALPHAS]
        best = max(probes, key=lambda probe: pearson(probe.predict(dev), dev_labels[:, k]))
        columns.append(best.predict(test))
    return np.stack(columns, axis=1)


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation along the last axis; -1 where a side is constant, so that it never wins a choice."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.where(scale > 0, (x * y).sum(-1) / np.where(scale > 0, scale, 1), -1.0)[()]


def va_metrics(predictions: np.ndarray, labels: np.ndarray, *, seed: int, resamples: int = 2000) -> dict[str, Any]:
    """Pearson r and mean absolute error of predicted valence and arousal.

    Args:
        predictions, labels: (N, 2), valence and arousal in [-1, 1]. seed, resamples: of the bootstrap over texts.

    Returns:
        {"valence": {"pearson": r, "pearson_interval": [low, high] (95 %), "mae": ...}, "arousal": {...}}
    """
    rows = _resamples(len(labels), seed, resamples)
    return {
        name: {
            "pearson": float(pearson(predictions[:, k], labels[:, k])),
            "pearson_interval": _interval(pearson(predictions[rows, k], labels[rows, k])),
            "mae": float(np.abs(predictions[:, k] - labels[:, k]).mean()),
        }
        for k, name in enumerate(DIMENSIONS)
    }


def va_gain(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, *, seed: int, resamples: int = 2000
) -> dict[str, Any]:
    """Gain in Pearson r from one set of predictions to another on the same texts, by the paired bootstrap.

    Returns:
        {"valence": {"pearson": after - before, "pearson_interval": [low, high] (95 %)}, "arousal": {...}}
    """
    rows = _resamples(len(labels), seed, resamples)
    return {
        name: {
            "pearson": float(pearson(after[:, k], labels[:, k]) - pearson(before[:, k], labels[:, k])),
            "pearson_interval": _interval(
                pearson(after[rows, k], labels[rows, k]) - pearson(before[rows, k], labels[rows, k])
            ),
        }
        for k, name in enumerate(DIMENSIONS)
    }


def labels_of(dataset: Mapping[str, Any]) -> np.ndarray:
    """(N, 2) valence and arousal of a dataset."""
    return np.stack([np.asarray(dataset[name], dtype=float) for name in DIMENSIONS], axis=1)


def _resamples(size: int, seed: int, resamples: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(size, size=(resamples, size))


def _interval(values: np.ndarray) -> list[float]:
    return [float(v) for v in np.quantile(values, [0.025, 0.975])]
