"""Metrics of predictions against labels, and bootstrap intervals over test texts.

Shape suffixes: N texts, K dimensions, C classes, R resamples, S samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from carl_hf.utils.suggestions import listed

RESAMPLES = 1000
FEWEST_FOR_A_VERDICT = 30
"""Texts of a test part and of a validation part; of corpora with valence and arousal different ones. With 10
to 30 test texts, the 95 % interval of a difference of two equal r, or accuracies, excludes 0 in 6 to 8 %. With 10
validation texts, a probe's strength and the pooling before training are chosen so badly that an encoder left as it is
seemed better in 2 of 8 draws."""
_FEW = 10  # texts of every class: with them a 95 % interval of macro F1 covers 93 %, with 5 of each 80 %


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation along the last axis; NaN where a side is constant."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    varies = (np.ptp(x, -1) > 0) & (np.ptp(y, -1) > 0)  # the mean of equal numbers may differ from them by rounding
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    scale = np.sqrt((x**2).sum(-1)) * np.sqrt((y**2).sum(-1))
    return np.where(varies & (scale > 0), (x * y).sum(-1) / np.where(scale > 0, scale, 1), np.nan)[()]


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman rank correlation along the last axis, ties given their mean rank; NaN where a side is constant."""
    from scipy.stats import rankdata

    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


def concordance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Concordance correlation along the last axis: 2 cov(x, y) / (var x + var y + (mean x - mean y)^2), population
    moments (Lin 1989, Biometrics 45, 255-268). Unlike Pearson r it is lowered by a difference of scale or mean; 0
    where one side is constant, NaN where both are the same constant."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    alike = (np.ptp(x, -1) == 0) & (np.ptp(y, -1) == 0) & (x[..., 0] == y[..., 0])
    mean_x, mean_y = x.mean(-1), y.mean(-1)
    covariance = ((x - mean_x[..., None]) * (y - mean_y[..., None])).mean(-1)
    total = x.var(-1) + y.var(-1) + (mean_x - mean_y) ** 2
    return np.where(alike, np.nan, 2 * covariance / np.where(total > 0, total, 1))[()]


def absolute_error(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean absolute error along the last axis."""
    return np.abs(x - y).mean(-1)


AGREEMENT = {"pearson": pearson, "spearman": spearman, "ccc": concordance, "mae": absolute_error}


def agreement(predictions_NK: np.ndarray, references_NK: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Pearson r, Spearman rho, concordance correlation and mean absolute error of each of K dimensions.

    Returns:
        {name: {"pearson", "spearman", "ccc", "mae"}}; see [`defined`].

    Raises:
        ValueError: for different shapes, no rows, a value that is not finite, or another number of names than K.
    """
    predictions_NK, references_NK = np.asarray(predictions_NK, dtype=float), np.asarray(references_NK, dtype=float)
    shapes = predictions_NK.shape, references_NK.shape
    if shapes[0] != shapes[1] or predictions_NK.ndim != 2 or len(predictions_NK) == 0:
        raise ValueError(
            f"Predictions {shapes[0]} and references {shapes[1]} must be (N, K) arrays of one shape, N at least 1."
        )
    for what, values in (("prediction", predictions_NK), ("reference", references_NK)):
        if not np.isfinite(values).all():
            raise ValueError(f"The {what} in row {int((~np.isfinite(values)).any(1).argmax())} is not finite.")
    if len(names) != predictions_NK.shape[1]:
        raise ValueError(f"Each text has {predictions_NK.shape[1]} numbers, named {listed(names)}: name each.")
    result = {}
    for name, x, y in zip(names, predictions_NK.T, references_NK.T, strict=True):
        constant = [what for what, values in (("predictions", x), ("references", y)) if np.ptp(values) == 0]
        result[name] = defined({key: float(metric(x, y)) for key, metric in AGREEMENT.items()}, constant)
    return result


def defined(metrics: dict[str, float], constant: Sequence[str]) -> dict[str, Any]:
    """Metrics with None in place of NaN, and the reason as "<metric>_reason": what is `constant`."""
    result: dict[str, Any] = {}
    for key, value in metrics.items():
        result[key] = value if np.isfinite(value) else None
        if result[key] is None:
            result[f"{key}_reason"] = f"undefined: the {' and '.join(constant) or 'values'} are constant"
    return result


def resample_rows(size: int, seed: int) -> np.ndarray:
    """(RESAMPLES, size) row indices drawn with replacement. The same size and seed give the same rows, so that two
    models measured on one test set are paired."""
    return np.random.default_rng(seed).integers(size, size=(RESAMPLES, size))


def resample_counts(size: int, seed: int) -> np.ndarray:
    """(RESAMPLES, size): how often each text occurs in the resamples of [`resample_rows`]."""
    counts_RN = np.empty((RESAMPLES, size))
    for counts_N, rows_N in zip(counts_RN, resample_rows(size, seed), strict=True):
        counts_N[:] = np.bincount(rows_N, minlength=size)
    return counts_RN


def interval(values: np.ndarray) -> list[float] | None:
    """95 % percentile interval of a metric over the resamples; None if it is undefined in all of them."""
    values = values[np.isfinite(values)]
    return [float(v) for v in np.quantile(values, [0.025, 0.975])] if len(values) else None


def correlation_gain(
    name: str, before_N: np.ndarray, after_N: np.ndarray, labels_N: np.ndarray, *, seed: int, constant: str
) -> dict[str, Any]:
    """Gain in a correlation from one set of predictions to another on the same texts, by the paired bootstrap.

    Args:
        name: of [`AGREEMENT`]. constant: what is constant where the gain is undefined.

    Returns:
        {name: after - before, "<name>_interval": [low, high] (95 %)}; see [`defined`].
    """
    metric, rows_RN = AGREEMENT[name], resample_rows(len(labels_N), seed)
    gain = float(metric(after_N, labels_N) - metric(before_N, labels_N))
    resampled_R = metric(after_N[rows_RN], labels_N[rows_RN]) - metric(before_N[rows_RN], labels_N[rows_RN])
    return {**defined({name: gain}, [constant]), f"{name}_interval": interval(resampled_R)}


def one_hot(labels_N: np.ndarray, classes: int) -> np.ndarray:
    """Class indices as (N, C) booleans."""
    return np.asarray(labels_N)[:, None] == np.arange(classes)


def class_metrics(predictions_NC: np.ndarray, references_NC: np.ndarray) -> dict[str, float]:
    """Accuracy (exact matches, percent), macro precision, recall and F1. A class that is never predicted has precision
    0, one that does not occur has recall 0.

    Args:
        predictions_NC, references_NC: (N, C) booleans, of single labels as from [`one_hot`].
    """
    macro = _macro_metrics(predictions_NC, references_NC, np.ones((1, len(references_NC))))
    accuracy = 100 * float((predictions_NC == references_NC).all(1).mean())
    return {"accuracy": accuracy, **{name: float(values[0]) for name, values in macro.items()}}


def resampled_class_metrics(predictions_NC: np.ndarray, references_NC: np.ndarray, *, seed: int) -> dict[str, Any]:
    """{"accuracy", "precision", "recall", "f1"} of each bootstrap resample, (R,) each."""
    counts_RN = resample_counts(len(references_NC), seed)
    exact_N = (predictions_NC == references_NC).all(1)
    return {
        "accuracy": 100 * counts_RN @ exact_N / len(exact_N),
        **_macro_metrics(predictions_NC, references_NC, counts_RN),
    }


def _class_intervals(predictions_NC: np.ndarray, references_NC: np.ndarray, *, seed: int) -> dict[str, Any]:
    resampled = resampled_class_metrics(predictions_NC, references_NC, seed=seed)
    return {f"{name}_interval": interval(resampled[name]) for name in ("accuracy", "f1")}


def _macro_metrics(
    predictions_NC: np.ndarray, references_NC: np.ndarray, counts_SN: np.ndarray
) -> dict[str, np.ndarray]:
    """The means over the classes in each of S samples, (S,) each; text n occurs counts_SN[s, n] times in sample s.

    A class of which a sample has neither a text nor a prediction counts there with its value over all texts: counted
    as 0, or left out, it would move the interval away from the metric itself where classes have one or two texts.
    """
    tables = predictions_NC & references_NC, predictions_NC, references_NC
    hits_SC, predicted_SC, actual_SC = (counts_SN @ table_NC for table_NC in tables)
    whole = _of_each_class(*(table_NC.sum(0) for table_NC in tables))
    values, there_SC = _of_each_class(hits_SC, predicted_SC, actual_SC), predicted_SC + actual_SC > 0
    return {name: np.where(there_SC, value_SC, whole[name]).mean(-1) for name, value_SC in values.items()}


def _of_each_class(hits_SC: np.ndarray, predicted_SC: np.ndarray, actual_SC: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "precision": hits_SC / np.maximum(predicted_SC, 1),
        "recall": hits_SC / np.maximum(actual_SC, 1),
        "f1": 2 * hits_SC / np.maximum(predicted_SC + actual_SC, 1),
    }


def few_texts(smallest_class: int | None) -> str:
    """What is to be known of macro F1 and its interval where a class has few of the texts; "" where none has."""
    if smallest_class is None or smallest_class >= _FEW:
        return ""
    return f"a class has {smallest_class} of the texts: macro F1 is uncertain, and its interval too narrow" + (
        " (the class counts as F1 0)" if smallest_class == 0 else ""
    )


def classification_metrics(
    predictions_N: np.ndarray, references_N: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """[`class_metrics`] of class indices, 0 to C - 1, and their confusion matrix (rows true, columns predicted).

    Raises:
        ValueError: for different lengths, no rows, or an index that is no class.
    """
    if len(predictions_N) != len(references_N) or len(references_N) == 0:
        raise ValueError(
            f"{len(predictions_N)} predictions and {len(references_N)} references must be of one length, at least 1."
        )
    for low, high in ((np.min(values), np.max(values)) for values in (predictions_N, references_N)):
        if low < 0 or high >= len(classes):
            raise ValueError(f"Classes must be numbers from 0 to {len(classes) - 1}, got {low} to {high}.")
    predictions_NC, references_NC = one_hot(predictions_N, len(classes)), one_hot(references_N, len(classes))
    confusion_CC = references_NC.T.astype(int) @ predictions_NC
    return {**class_metrics(predictions_NC, references_NC), "confusion": confusion_CC.tolist()}


def classification_report(
    predictions_N: np.ndarray, references_N: np.ndarray, classes: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """[`classification_metrics`] with bootstrap intervals of accuracy and F1, the majority class's accuracy, and how
    many of the texts the smallest class has: see [`few_texts`]."""
    tables = one_hot(predictions_N, len(classes)), one_hot(references_N, len(classes))
    return {
        **classification_metrics(predictions_N, references_N, classes),
        **_class_intervals(*tables, seed=seed),
        "majority": 100 * float(np.bincount(references_N).max() / len(references_N)),
        "classes": list(classes),
        "smallest_class": int(tables[1].sum(0).min()),
        "texts": len(references_N),
    }


def multi_label_report(
    predictions_NC: np.ndarray, references_NC: np.ndarray, classes: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """[`class_metrics`] of texts that may have several of the named classes, and F1 over all texts and classes
    together ("micro_f1"), with intervals of accuracy and both F1."""
    hits_NC = predictions_NC & references_NC
    f1_C = 2 * hits_NC.sum(0) / np.maximum(predictions_NC.sum(0) + references_NC.sum(0), 1)
    hits_N, named_N = hits_NC.sum(1), predictions_NC.sum(1) + references_NC.sum(1)
    counts_RN = resample_counts(len(references_NC), seed)
    return {
        "micro_f1": float(2 * hits_N.sum() / max(named_N.sum(), 1)),
        "micro_f1_interval": interval(2 * counts_RN @ hits_N / np.maximum(counts_RN @ named_N, 1)),
        **class_metrics(predictions_NC, references_NC),
        **_class_intervals(predictions_NC, references_NC, seed=seed),
        "classes": list(classes),
        "f1_per_class": dict(zip(classes, f1_C.tolist(), strict=True)),
        "smallest_class": int(references_NC.sum(0).min()),
        "texts": len(references_NC),
    }
