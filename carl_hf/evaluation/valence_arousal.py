"""Valence and arousal (and dominance) from frozen embeddings: a ridge probe, its figures, transfer between corpora."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from carl_hf.data.labelled import VaCorpus
from carl_hf.data.splits import divide
from carl_hf.evaluation.probes import fit_ridge
from carl_hf.evaluation.statistics import AGREEMENT, RESAMPLES, agreement, defined, interval, pearson, resample_rows

DIMENSIONS = ("valence", "arousal")
FOLDS = 5
Items = dict[str, np.ndarray]


def ridge_predictions(
    train: np.ndarray, train_labels: np.ndarray, dev: np.ndarray, dev_labels: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Predictions of a ridge regression on standardised embeddings, its strength chosen on dev by Pearson r.

    Args:
        train, dev, test: embeddings (N, H) of three disjoint sets of texts. train_labels, dev_labels: (N, K).

    Returns:
        (N of test, K); each of the K labels has a strength of its own.
    """
    return fit_ridge(train, train_labels, dev, dev_labels)(test)


def va_metrics(
    predictions: np.ndarray,
    labels: np.ndarray,
    *,
    constant: np.ndarray,
    dimensions: Sequence[str] = DIMENSIONS,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Figures of predicted valence, arousal and what else `dimensions` names, with intervals over the texts.

    Args:
        predictions, labels: (N, K) in [-1, 1], valence and arousal first. constant: (K,) the constant predictor's
            values, means of the training labels. seed, resamples: of the bootstrap over texts.

    Returns:
        {"valence": {"pearson", "spearman", "ccc", "mae", each with "<figure>_interval" (95 %), and "constant": the
        constant predictor's figures}, ...; "angle_error": mean angle in degrees between the predicted and the true
        (valence, arousal), over texts with a label other than (0, 0); "intensity_error": mean absolute error of the
        radius}. A figure that is undefined is None, with "<figure>_reason".
    """
    rows = resample_rows(len(labels), seed, resamples)
    result: dict[str, Any] = agreement(predictions, labels, dimensions)
    for k, name in enumerate(dimensions):
        x, y = predictions[:, k][rows], labels[:, k][rows]
        for figure, function in AGREEMENT.items():
            result[name][f"{figure}_interval"] = interval(function(x, y))
        fixed = np.full(len(labels), constant[k])
        result[name]["constant"] = defined(
            {figure: float(function(fixed, labels[:, k])) for figure, function in AGREEMENT.items()}, ["predictions"]
        )
    errors = _circle_errors(predictions, labels)
    fixed = _circle_errors(np.broadcast_to(constant, labels.shape), labels)
    for name, unit in (("angle_error", "degrees"), ("intensity_error", "mae")):
        resampled = np.array([_mean(errors[name][r]) for r in rows])
        means = {unit: _mean(errors[name]), "constant": _mean(fixed[name])}
        result[name] = {**defined(means, ["labels at (0, 0)"]), f"{unit}_interval": interval(resampled)}
    return result


def va_gain(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, *, dimensions: Sequence[str] = DIMENSIONS, seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:  # fmt: skip
    """Gain in Pearson r from one set of predictions to another on the same texts, by the paired bootstrap.

    Returns:
        {"valence": {"pearson": after - before, "pearson_interval": [low, high] (95 %)}, "arousal": {...}}; None where
        one of the two is undefined.
    """
    rows = resample_rows(len(labels), seed, resamples)
    return {
        name: {
            **defined(
                {"pearson": float(pearson(after[:, k], labels[:, k]) - pearson(before[:, k], labels[:, k]))},
                ["predictions of one model"],
            ),
            "pearson_interval": interval(
                pearson(after[rows, k], labels[rows, k]) - pearson(before[rows, k], labels[rows, k])
            ),
        }
        for k, name in enumerate(dimensions)
    }


def measure_corpus(
    encode: Callable[[Sequence[str]], np.ndarray], corpus: VaCorpus, *, seed: int
) -> tuple[dict, Items]:
    """A corpus by itself: by its official splits, or by five seeded folds where it has none (each text is predicted
    once, by a probe that has seen neither it nor the tenth of the other texts on which the strength is chosen)."""
    embeddings = encode(corpus.texts)
    labels = corpus.labels
    if corpus.split is not None:
        train, dev, test = (corpus.rows(part) for part in ("train", "validation", "test"))
        predictions = ridge_predictions(
            embeddings[train], labels[train], embeddings[dev], labels[dev], embeddings[test]
        )
        truth, constant, protocol = labels[test], labels[train].mean(0), "official splits"
    else:
        predictions = np.empty_like(labels)
        for train, dev, test in seeded_folds(len(labels), seed):
            predictions[test] = ridge_predictions(
                embeddings[train], labels[train], embeddings[dev], labels[dev], embeddings[test]
            )
        truth, constant, protocol = labels, labels.mean(0), f"{FOLDS} folds, seed {seed}"
    metrics = va_metrics(predictions, truth, constant=constant, dimensions=corpus.dimensions, seed=seed)
    return {"protocol": protocol, "texts": len(truth), **metrics}, {"predictions": predictions, "references": truth}


def measure_transfer(
    encode: Callable[[Sequence[str]], np.ndarray], source: VaCorpus, target: VaCorpus, *, seed: int
) -> tuple[dict, Items]:
    """Probe fitted on the training part of one corpus (all of it but a tenth where it has no splits), measured on the
    test part of another (all of it where it has none)."""
    if source.split is not None:
        train, dev = source.rows("train"), source.rows("validation")
    else:
        train, dev = divide(np.random.default_rng(seed).permutation(len(source.texts)), 9)
    test = target.rows("test") if target.split is not None else np.arange(len(target.texts))
    fitted, measured = encode(source.texts), encode(target.texts)
    predictions = ridge_predictions(
        fitted[train], source.labels[train, :2], fitted[dev], source.labels[dev, :2], measured[test]
    )
    truth = target.labels[test, :2]
    metrics = va_metrics(predictions, truth, constant=source.labels[train, :2].mean(0), seed=seed)
    return {"protocol": "another corpus", "texts": len(test), **metrics}, {
        "predictions": predictions, "references": truth,
    }  # fmt: skip


def measure_head(predict: Callable[[Sequence[str]], np.ndarray], corpus: VaCorpus, *, seed: int) -> tuple[dict, Items]:
    """A trained head's own valence and arousal on the test part of a corpus (all of it where it has none)."""
    test = corpus.rows("test") if corpus.split is not None else np.arange(len(corpus.texts))
    train = corpus.rows("train") if corpus.split is not None else test
    predictions, truth = predict([corpus.texts[i] for i in test]), corpus.labels[test, :2]
    metrics = va_metrics(predictions, truth, constant=corpus.labels[train, :2].mean(0), seed=seed)
    return {"protocol": "the model's own head", "texts": len(test), **metrics}, {
        "predictions": predictions, "references": truth,
    }  # fmt: skip


def seeded_folds(size: int, seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(train, dev, test) rows for each of five folds; dev is a tenth of the rows outside test."""
    order = np.random.default_rng(seed).permutation(size)
    folds = []
    for test in np.array_split(order, FOLDS):
        rest = order[~np.isin(order, test)]
        dev, train = divide(rest, 1, fewest=1)
        folds.append((train, dev, test))
    return folds


def labels_of(dataset: Mapping[str, Any]) -> np.ndarray:
    """(N, 2) valence and arousal of a dataset."""
    return np.stack([np.asarray(dataset[name], dtype=float) for name in DIMENSIONS], axis=1)


def _circle_errors(predictions: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Per text: angle in degrees between the first two dimensions (NaN for a label (0, 0)), difference of radius."""
    (v, a), (true_v, true_a) = predictions[:, :2].T, labels[:, :2].T
    difference = np.degrees(np.arctan2(a, v) - np.arctan2(true_a, true_v))
    angle = np.abs((difference + 180) % 360 - 180)
    return {
        "angle_error": np.where(np.hypot(true_v, true_a) > 0, angle, np.nan),
        "intensity_error": np.abs(np.hypot(v, a) - np.hypot(true_v, true_a)),
    }


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")
