"""Figures of classification: accuracy in percent; macro precision, recall and F1 as fractions; confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from carl_hf.evaluation.bootstrap import RESAMPLES, interval, resample_rows


def confusion_matrix(predictions_N: np.ndarray, references_N: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) counts: rows the true class, columns the predicted one."""
    return np.bincount(references_N * classes + predictions_N, minlength=classes**2).reshape(classes, classes)


def macro_figures(true_positive: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> tuple[Any, Any, Any]:
    """Macro precision, recall and F1 from counts per class along the last axis; a class that is never predicted has
    precision 0, one that does not occur recall 0."""
    precision = true_positive / np.maximum(predicted, 1)
    recall = true_positive / np.maximum(actual, 1)
    f1 = 2 * true_positive / np.maximum(predicted + actual, 1)
    return precision.mean(-1), recall.mean(-1), f1.mean(-1)


def classification_figures(
    predictions_N: np.ndarray, references_N: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Accuracy (percent), macro precision, recall, F1 and confusion matrix (rows true, columns predicted).

    Args:
        predictions_N, references_N: (N,) numbers of classes, 0 to C - 1. classes: their C names.

    Raises:
        ValueError: for different lengths, no rows, or a number that is no class.
    """
    predictions_N, references_N = np.asarray(predictions_N), np.asarray(references_N)
    if predictions_N.shape != references_N.shape or predictions_N.ndim != 1 or len(predictions_N) == 0:
        raise ValueError(
            f"Predictions {predictions_N.shape} and references {references_N.shape} must be of one length, at least 1."
        )
    for values in (predictions_N, references_N):
        if values.min() < 0 or values.max() >= len(classes):
            raise ValueError(
                f"Classes must be numbers from 0 to {len(classes) - 1}, got {values.min()} to {values.max()}."
            )
    confusion = confusion_matrix(predictions_N, references_N, len(classes))
    precision, recall, f1 = macro_figures(np.diag(confusion), confusion.sum(0), confusion.sum(1))
    return {
        "accuracy": 100 * float((predictions_N == references_N).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "confusion": confusion.tolist(),
    }


def accuracy_and_f1(
    predictions_N: np.ndarray, references_N: np.ndarray, classes: int, *, seed: int, resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy (percent) and macro F1 of every bootstrap resample, (resamples,) each."""
    rows = resample_rows(len(references_N), seed, resamples)
    cells = references_N * classes + predictions_N
    confusion = np.stack([np.bincount(cells[r], minlength=classes**2) for r in rows]).reshape(-1, classes, classes)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    return 100 * hits.sum(-1) / rows.shape[1], macro_figures(hits, confusion.sum(1), confusion.sum(2))[2]


def classification_report(
    predictions_N: np.ndarray, references_N: np.ndarray, classes: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """[`classification_figures`] with bootstrap intervals of accuracy and F1, and the majority class's accuracy."""
    accuracy, f1 = accuracy_and_f1(predictions_N, references_N, len(classes), seed=seed)
    return {
        **classification_figures(predictions_N, references_N, classes),
        "accuracy_interval": interval(accuracy),
        "f1_interval": interval(f1),
        "majority": 100 * float(np.bincount(references_N).max() / len(references_N)),
        "classes": list(classes),
        "texts": len(references_N),
    }


def multi_label_f1(
    predictions_NC: np.ndarray, references_NC: np.ndarray, *, seed: int, resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Exact-match accuracy (percent) and macro F1 of every bootstrap resample, (resamples,) each."""
    rows = resample_rows(len(references_NC), seed, resamples)
    counts = np.stack([np.bincount(r, minlength=len(references_NC)) for r in rows]).astype(float)
    hits = counts @ (predictions_NC & references_NC)
    f1 = macro_figures(hits, counts @ predictions_NC, counts @ references_NC)[2]
    return 100 * counts @ (predictions_NC == references_NC).all(1) / len(references_NC), f1


def multi_label_report(
    predictions_NC: np.ndarray, references_NC: np.ndarray, classes: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """Macro precision, recall and F1 over C classes of which a text may have several, and exact matches in percent.

    Args:
        predictions_NC, references_NC: (N, C) booleans. classes: C names.
    """
    hits = (predictions_NC & references_NC).sum(0)
    predicted, actual = predictions_NC.sum(0), references_NC.sum(0)
    precision, recall, f1 = macro_figures(hits, predicted, actual)
    accuracies, f1s = multi_label_f1(predictions_NC, references_NC, seed=seed)
    per_class = 2 * hits / np.maximum(predicted + actual, 1)
    return {
        "f1": float(f1),
        "f1_interval": interval(f1s),
        "precision": float(precision),
        "recall": float(recall),
        "accuracy": 100 * float((predictions_NC == references_NC).all(1).mean()),
        "accuracy_interval": interval(accuracies),
        "classes": list(classes),
        "f1_per_class": dict(zip(classes, per_class.tolist(), strict=True)),
        "texts": len(references_NC),
    }
