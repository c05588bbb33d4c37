"""Valence and arousal (and dominance) from frozen embeddings: a ridge probe, its metrics, transfer between corpora.

Shape suffixes: N texts, K dimensions (valence and arousal first), H embedding width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from carl_hf.data.labelled import VaCorpus
from carl_hf.data.mixing import on_scale
from carl_hf.data.splits import SPLITS, divide
from carl_hf.evaluation.geometry import dimension_curve
from carl_hf.evaluation.probes import fit_ridge
from carl_hf.evaluation.statistics import (
    AGREEMENT,
    agreement,
    correlation_gain,
    defined,
    interval,
    pearson,
    resample_rows,
)
from carl_hf.evaluation.tasks import Encode, Measured

DIMENSIONS = ("valence", "arousal")
FOLDS = 5
RATER_CEILINGS = {"emobank": {"valence": 0.894, "arousal": 0.66}}
"""Pearson r with the test labels that no prediction can be expected to exceed, since they are means of few raters: the
square root of their reliability (.80 and .43, computed from EmoBank's single ratings)."""


def ridge_predictions(
    train: np.ndarray, train_labels: np.ndarray, dev: np.ndarray, dev_labels: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Predictions (N, K) for the embeddings `test` by the probe of [`carl_hf.evaluation.probes.fit_ridge`]."""
    return fit_ridge(train, train_labels, dev, dev_labels)(test)


def va_metrics(
    predictions_NK: np.ndarray, labels_NK: np.ndarray, *, constant: np.ndarray,
    dimensions: Sequence[str] = DIMENSIONS, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Metrics of predicted valence, arousal and what else `dimensions` names, with intervals over the texts.

    Args:
        predictions_NK, labels_NK: in [-1, 1], valence and arousal first. constant: (K,) the constant predictor's
            values, means of the training labels. seed: of the bootstrap over texts.

    Returns:
        {"valence": {"pearson", "spearman", "ccc", "mae", each with "<metric>_interval" (95 %), and "constant": the
        constant predictor's metrics}, ...; "angle_error": mean angle in degrees between the predicted and the true
        (valence, arousal), over texts with a label other than (0, 0); "intensity_error": mean absolute error of the
        radius}. A metric that is undefined is None, with "<metric>_reason".
    """
    rows_RN = resample_rows(len(labels_NK), seed)
    result: dict[str, Any] = agreement(predictions_NK, labels_NK, dimensions)
    for k, name in enumerate(dimensions):
        x_N, y_N, fixed_N = predictions_NK[:, k], labels_NK[:, k], np.full(len(labels_NK), constant[k])
        for key, metric in AGREEMENT.items():
            result[name][f"{key}_interval"] = interval(metric(x_N[rows_RN], y_N[rows_RN]))
        baseline = {key: float(metric(fixed_N, y_N)) for key, metric in AGREEMENT.items()}
        result[name]["constant"] = defined(baseline, ["predictions"])
    errors = _circle_errors(predictions_NK, labels_NK)
    fixed = _circle_errors(np.broadcast_to(constant, labels_NK.shape), labels_NK)
    for name, unit in (("angle_error", "degrees"), ("intensity_error", "mae")):
        resampled = np.array([_mean(errors[name][rows_N]) for rows_N in rows_RN])
        means = {unit: _mean(errors[name]), "constant": _mean(fixed[name])}
        result[name] = {**defined(means, ["labels at (0, 0)"]), f"{unit}_interval": interval(resampled)}
    return result


def va_gain(
    before_NK: np.ndarray, after_NK: np.ndarray, labels_NK: np.ndarray, *, dimensions: Sequence[str] = DIMENSIONS,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """{dimension: {"pearson": after - before, "pearson_interval": [low, high] (95 %)}}, the gain from one set of
    predictions to another on the same texts; None where one of the two is undefined."""
    columns = zip(before_NK.T, after_NK.T, labels_NK.T, strict=True)
    constant = "predictions of one model"
    return {
        name: correlation_gain("pearson", *column, seed=seed, constant=constant)
        for name, column in zip(dimensions, columns, strict=True)
    }


def measure_corpus(encode: Encode, corpus: VaCorpus, *, seed: int) -> Measured:
    """A corpus by itself: by its official splits, or by five seeded folds where it has none (each text is predicted
    once, by a probe that has seen neither it nor the tenth of the other texts on which the strength is chosen)."""
    embeddings, labels, measured = encode(corpus.texts), corpus.labels, _rows(corpus, "test")
    if corpus.split is not None:
        folds = [(corpus.rows("train"), corpus.rows("validation"), corpus.rows("test"))]
        protocol = "official splits"
    else:
        folds, protocol = seeded_folds(len(labels), seed), f"{FOLDS} folds, seed {seed}"
    predictions = np.empty_like(labels)
    for train, dev, test in folds:
        parts = embeddings[train], labels[train], embeddings[dev], labels[dev]
        predictions[test] = ridge_predictions(*parts, embeddings[test])
    constant = labels[_rows(corpus, "train")].mean(0)
    return _report(protocol, predictions[measured], labels[measured], constant, seed, corpus.dimensions)


def measure_transfer(encode: Encode, source: VaCorpus, target: VaCorpus, *, seed: int) -> Measured:
    """Probe fitted on the training split of one corpus (all of it but a tenth where it has no splits), measured on the
    test split of another (all of it where it has none)."""
    if source.split is not None:
        train, dev = source.rows("train"), source.rows("validation")
    else:
        train, dev = divide(np.random.default_rng(seed).permutation(len(source.texts)), 9)
    fitted, labels, test = encode(source.texts), source.labels[:, :2], _rows(target, "test")
    predictions = ridge_predictions(fitted[train], labels[train], fitted[dev], labels[dev], encode(target.texts)[test])
    return _report("another corpus", predictions, target.labels[test, :2], labels[train].mean(0), seed)


def measure_head(predict: Callable[[Sequence[str]], np.ndarray], corpus: VaCorpus, *, seed: int) -> Measured:
    """A trained head's own valence and arousal on the test split of a corpus (all of it where it has none)."""
    test = _rows(corpus, "test")
    predictions = predict([corpus.texts[i] for i in test])
    constant = corpus.labels[_rows(corpus, "train"), :2].mean(0)
    return _report("the model's own head", predictions, corpus.labels[test, :2], constant, seed)


def valence_curve(embeddings_NH: np.ndarray, corpus: VaCorpus, *, seed: int) -> dict[str, Any]:
    """Pearson r of a ridge probe for valence against the number of kept dimensions, for a corpus with splits.

    See [`carl_hf.evaluation.geometry.dimension_curve`].
    """
    rows = {name: corpus.rows(name) for name in SPLITS}
    labels = {name: corpus.labels[chosen, :1] for name, chosen in rows.items()}

    def score(splits: dict[str, np.ndarray]) -> float:
        fitted = splits["train"], labels["train"], splits["validation"], labels["validation"]
        return float(pearson(ridge_predictions(*fitted, splits["test"])[:, 0], labels["test"][:, 0]))

    return dimension_curve(score, {name: embeddings_NH[chosen] for name, chosen in rows.items()}, seed=seed)


def seeded_folds(size: int, seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(train, dev, test) rows for each of five folds; dev is a tenth of the rows outside test."""
    order = np.random.default_rng(seed).permutation(size)
    folds = []
    for test in np.array_split(order, FOLDS):
        dev, train = divide(order[~np.isin(order, test)], 1, fewest=1)
        folds.append((train, dev, test))
    return folds


def dimensions_of(dataset: Dataset) -> tuple[str, ...]:
    """Valence and arousal, and dominance where each text has it."""
    whole = "dominance" in dataset.column_names and None not in dataset.with_format(None)["dominance"][:]
    return (*DIMENSIONS, "dominance") if whole and len(dataset) else DIMENSIONS


def labels_of(
    dataset: Mapping[str, Any], *, any_unit: bool = False, dimensions: Sequence[str] = DIMENSIONS
) -> np.ndarray:
    """(N, 2) valence and arousal of a dataset, or (N, K) of other `dimensions`.

    Args:
        any_unit: also labels in another unit than the corpus's scale: for correlations alone.

    Raises:
        ValueError: for labels that were standardized or normalized by the observed range, unless `any_unit`; for a
            text that lacks one, or has one outside [-1, 1].
    """
    if not (any_unit or on_scale(dataset)):
        raise ValueError(
            "These valence and arousal labels are not on their corpus's scale, so a head or an error would be in "
            'another unit: load the texts by load_va_dataset(..., normalization="scale"); the encoder may be trained '
            "on the others."
        )
    there = dataset.column_names if isinstance(dataset, Dataset) else dataset
    columns = [np.asarray(dataset[name], dtype=float) if name in there else np.nan for name in dimensions]
    if any(np.isnan(column).any() for column in columns):
        raise ValueError("A text lacks valence or arousal, and both are needed here: pass rows_with_va(dataset).")
    if any((np.abs(column) > 1 + 1e-6).any() for column in columns):
        raise ValueError("A label is outside [-1, 1]: load_va_dataset(..., scale=(least, greatest)) normalises.")
    return np.stack(columns, axis=1)


def _rows(corpus: VaCorpus, split: str) -> np.ndarray:
    """Those of a split, or all of a corpus without splits."""
    return np.arange(len(corpus.texts)) if corpus.split is None else corpus.rows(split)


def _report(
    protocol: str, predictions: np.ndarray, truth: np.ndarray, constant: np.ndarray, seed: int,
    dimensions: Sequence[str] = DIMENSIONS,
) -> Measured:  # fmt: skip
    metrics = va_metrics(predictions, truth, constant=constant, dimensions=dimensions, seed=seed)
    items = {"predictions": predictions, "references": truth}
    return {"protocol": protocol, "texts": len(truth), **metrics}, items


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
