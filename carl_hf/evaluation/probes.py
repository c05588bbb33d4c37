"""Linear probes on frozen embeddings: ridge and logistic regression on standardised embeddings, each strength chosen
on validation ("dev") texts.

Shape suffixes: N texts, H embedding width, K labels, C classes.
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from carl_hf.evaluation.statistics import FEWEST_FOR_A_VERDICT, pearson

_RIDGE_STRENGTHS = tuple(10.0**k for k in range(-1, 6))
_LOGISTIC_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C: the inverse of the penalty


@dataclass(frozen=True)
class LinearProbe:
    """x -> weight x + bias, for embeddings as the encoder gives them: `weight` (K, H), `bias` (K,)."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, embeddings_NH: np.ndarray) -> np.ndarray:
        return np.asarray(embeddings_NH, dtype=np.float64) @ self.weight.T + self.bias


def fit_ridge(
    train: np.ndarray, train_labels: np.ndarray, dev: np.ndarray, dev_labels: np.ndarray, *,
    chosen_by: Literal["pearson", "squared_error"] = "pearson",
) -> LinearProbe:  # fmt: skip
    """Ridge regression; each of the K labels has a strength of its own, chosen on dev.

    Args:
        train, dev: embeddings (N, H) of disjoint sets of texts. train_labels, dev_labels: (N, K).
        chosen_by: Pearson r is blind to the scale of the predictions; the squared error is not. The latter chooses
            in any case on fewer than `FEWEST_FOR_A_VERDICT` texts, and where every r is undefined.
    """
    from sklearn.linear_model import Ridge

    scale, (_, number) = _Standardizer(train), train_labels.shape
    train, dev = scale(train), scale(dev)
    probes = [Ridge(alpha=alpha).fit(train, train_labels) for alpha in _RIDGE_STRENGTHS]  # all K labels at once
    predictions = [probe.predict(dev).reshape(len(dev), number) for probe in probes]
    score_SK = -np.array([np.square(table - dev_labels).mean(0) for table in predictions])
    if chosen_by == "pearson" and len(dev) >= FEWEST_FOR_A_VERDICT:
        r_SK = np.array([pearson(table.T, dev_labels.T) for table in predictions])
        # a constant prediction has no r and never wins
        score_SK = np.where(np.isfinite(r_SK).any(0), np.nan_to_num(r_SK, nan=-1.0), score_SK)
    best_K = [probes[strength] for strength in score_SK.argmax(0)]
    weight_KH = np.stack([probe.coef_.reshape(number, -1)[k] for k, probe in enumerate(best_K)])
    return scale.unscaled(weight_KH, np.array([np.ravel(probe.intercept_)[k] for k, probe in enumerate(best_K)]))


def fit_logistic(
    train: np.ndarray, train_labels: np.ndarray, dev: np.ndarray, dev_labels: np.ndarray,
    strengths: Sequence[float] = _LOGISTIC_STRENGTHS, class_weights: Literal["equal", "balanced"] = "equal",
) -> tuple[LinearProbe, float]:  # fmt: skip
    """Multinomial logistic regression, and its strength, chosen on dev by accuracy.

    Args:
        train_labels, dev_labels: (N,) class indices. class_weights: whether in training every text weighs the same
            ("equal"), or every class ("balanced").

    Returns:
        the probe gives logits (N, C) for the classes 0 to the greatest of the training labels; one that no training
        text has gets -inf.
    """
    from sklearn.linear_model import LogisticRegression

    scale, balance = _Standardizer(train), None if class_weights == "equal" else class_weights
    train, dev = scale(train), scale(dev)
    probes = [
        LogisticRegression(C=strength, max_iter=1000, class_weight=balance).fit(train, train_labels)
        for strength in strengths
    ]
    chosen = int(np.argmax([(probe.predict(dev) == dev_labels).mean() for probe in probes]))
    best, classes = probes[chosen], probes[chosen].classes_
    weight_CH, bias_C = np.zeros((classes.max() + 1, train.shape[1])), np.full(classes.max() + 1, -np.inf)
    if len(classes) == 2:  # scikit-learn keeps the second class's logit against a first of 0
        weight_CH[classes[1]], bias_C[classes] = best.coef_[0], (0, best.intercept_[0])
    else:
        weight_CH[classes], bias_C[classes] = best.coef_, best.intercept_
    return scale.unscaled(weight_CH, bias_C), strengths[chosen]


def fit_multi_label(
    train: np.ndarray, train_labels: np.ndarray, dev: np.ndarray, dev_labels: np.ndarray
) -> tuple[LinearProbe, np.ndarray]:
    """A logistic regression for each class, its strength and threshold chosen on dev by F1.

    Args:
        train_labels, dev_labels: (N, C) booleans.

    Returns:
        the probe of logits (N, C), and the thresholds (C,) on them: a text has a class where its logit reaches it. A
        class that all training texts have, or none, has the logit 10 or -10.
    """
    from sklearn.linear_model import LogisticRegression

    scale = _Standardizer(train)
    train, dev = scale(train), scale(dev)
    chosen = []
    for c in range(train_labels.shape[1]):
        if len(np.unique(train_labels[:, c])) == 1:
            chosen.append((np.zeros(train.shape[1]), 10.0 if train_labels[0, c] else -10.0, 0.0))
            continue
        # with far more texts than dimensions, Newton steps need seconds where lbfgs needs minutes; each strength
        # begins where the one before has ended, which saves half of the steps
        newton, probes = LogisticRegression(solver="newton-cholesky", warm_start=True), []
        with warnings.catch_warnings():  # where it begins at the optimum, lbfgs takes over
            warnings.filterwarnings("ignore", "Line search of Newton solver")
            for strength in _LOGISTIC_STRENGTHS:
                probes.append(copy.copy(newton.set_params(C=strength).fit(train, train_labels[:, c])))
        cuts = [best_threshold(probe.decision_function(dev), dev_labels[:, c]) for probe in probes]
        best = int(np.argmax([f1 for f1, _ in cuts]))
        chosen.append((probes[best].coef_[0], probes[best].intercept_[0], cuts[best][1]))
    weights, biases, thresholds = zip(*chosen, strict=True)
    return scale.unscaled(np.stack(weights), np.array(biases)), np.array(thresholds)


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(F1, threshold) that is best for `score >= threshold` on these texts."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + labels.sum())
    last_of_tie = np.append(scores[order][1:] < scores[order][:-1], True)
    best = int(np.argmax(np.where(last_of_tie, f1, -1)))
    return float(f1[best]), float(scores[order][best])


class _Standardizer:
    """Scales embeddings to mean 0 and deviation 1 in training, and folds that into a probe's weights."""

    def __init__(self, train: np.ndarray):
        from sklearn.preprocessing import StandardScaler

        self._scaler = StandardScaler().fit(np.asarray(train, dtype=np.float64))

    def __call__(self, embeddings_NH: np.ndarray) -> np.ndarray:
        return self._scaler.transform(np.asarray(embeddings_NH, dtype=np.float64))

    def unscaled(self, weight_KH: np.ndarray, bias_K: np.ndarray) -> LinearProbe:
        weight_KH = weight_KH / self._scaler.scale_
        return LinearProbe(weight_KH, bias_K - weight_KH @ self._scaler.mean_)
