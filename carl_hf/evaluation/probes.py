"""Linear probes on frozen embeddings: ridge and logistic regression on standardised embeddings, each strength chosen
on development texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from carl_hf.evaluation.statistics import pearson

_RIDGE_STRENGTHS = tuple(10.0**k for k in range(-1, 6))
_LOGISTIC_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C: the inverse of the penalty


@dataclass(frozen=True)
class LinearProbe:
    """x -> weight x + bias, for embeddings as the encoder gives them: `weight` (K, H), `bias` (K,)."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, embeddings_NH: np.ndarray) -> np.ndarray:
        return np.asarray(embeddings_NH, dtype=np.float64) @ self.weight.T + self.bias


def fit_ridge(train: np.ndarray, train_labels: np.ndarray, dev: np.ndarray, dev_labels: np.ndarray) -> LinearProbe:
    """Ridge regression; each of the K labels has a strength of its own, chosen on dev by Pearson r.

    Args:
        train, dev: embeddings (N, H) of disjoint sets of texts. train_labels, dev_labels: (N, K).
    """
    from sklearn.linear_model import Ridge

    scale = _Standardizer(train)
    train, dev = scale(train), scale(dev)
    probes = [Ridge(alpha=alpha).fit(train, train_labels) for alpha in _RIDGE_STRENGTHS]  # all K labels at once
    on_dev = [probe.predict(dev).reshape(len(dev), -1) for probe in probes]
    weights, biases = [], []
    for k in range(train_labels.shape[1]):
        # a constant prediction has no r and never wins
        scores = [np.nan_to_num(pearson(p[:, k], dev_labels[:, k]), nan=-1.0) for p in on_dev]
        best = probes[int(np.argmax(scores))]
        weights.append(best.coef_.reshape(train_labels.shape[1], -1)[k])
        biases.append(np.ravel(best.intercept_)[k])
    return scale.unscaled(np.stack(weights), np.array(biases))


def fit_logistic(
    train: np.ndarray, train_labels: np.ndarray, dev: np.ndarray, dev_labels: np.ndarray,
    strengths: Sequence[float] = _LOGISTIC_STRENGTHS, class_weights: Literal["equal", "balanced"] = "equal",
) -> tuple[LinearProbe, float]:  # fmt: skip
    """Multinomial logistic regression, and its strength, chosen on dev by accuracy.

    Args:
        train_labels, dev_labels: (N,) numbers of classes. class_weights: whether in training every text weighs the
            same, or every class.

    Returns:
        the probe gives logits (N, C) for the classes 0 to the greatest of the training labels; one that no training
        text has gets -inf.
    """
    from sklearn.linear_model import LogisticRegression

    scale = _Standardizer(train)
    train, dev = scale(train), scale(dev)
    best, best_accuracy, chosen = None, -1.0, strengths[0]
    for strength in strengths:
        balance = "balanced" if class_weights == "balanced" else None
        probe = LogisticRegression(C=strength, max_iter=1000, class_weight=balance).fit(train, train_labels)
        accuracy = (probe.predict(dev) == dev_labels).mean()
        if accuracy > best_accuracy:
            best, best_accuracy, chosen = probe, accuracy, strength
    weight, bias = np.zeros((best.classes_.max() + 1, train.shape[1])), np.full(best.classes_.max() + 1, -np.inf)
    if len(best.classes_) == 2:  # scikit-learn keeps the second class's logit against a first of 0
        weight[best.classes_[1]], bias[best.classes_] = best.coef_[0], (0, best.intercept_[0])
    else:
        weight[best.classes_], bias[best.classes_] = best.coef_, best.intercept_
    return scale.unscaled(weight, bias), chosen


def fit_multi_label(
    train: np.ndarray, train_labels: np.ndarray, dev: np.ndarray, dev_labels: np.ndarray
) -> tuple[LinearProbe, np.ndarray]:
    """A logistic regression for each class, its strength and threshold chosen on dev by F1.

    Args:
        train_labels, dev_labels: (N, C) booleans.

    Returns:
        the probe of logits (N, C), and the thresholds (C,) on them: a text has a class where its logit reaches it.
    """
    from sklearn.linear_model import LogisticRegression

    scale = _Standardizer(train)
    train, dev = scale(train), scale(dev)
    chosen = []
    for c in range(train_labels.shape[1]):
        candidates = []
        for strength in _LOGISTIC_STRENGTHS:
            # with far more texts than dimensions, Newton steps need seconds where lbfgs needs minutes
            probe = LogisticRegression(C=strength, solver="newton-cholesky").fit(train, train_labels[:, c])
            f1, threshold = best_threshold(probe.decision_function(dev), dev_labels[:, c])
            candidates.append((f1, threshold, probe))
        chosen.append(max(candidates, key=lambda candidate: candidate[0]))
    weight = np.stack([probe.coef_[0] for _, _, probe in chosen])
    bias = np.array([probe.intercept_[0] for _, _, probe in chosen])
    return scale.unscaled(weight, bias), np.array([threshold for _, threshold, _ in chosen])


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(F1, threshold) that is best for `score >= threshold` on these texts."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + labels.sum())
    last_of_tie = np.append(scores[order][1:] < scores[order][:-1], True)
    best = int(np.argmax(np.where(last_of_tie, f1, -1)))
    return float(f1[best]), float(scores[order][best])


class _Standardizer:
    def __init__(self, train: np.ndarray):
        from sklearn.preprocessing import StandardScaler

        self._scaler = StandardScaler().fit(np.asarray(train, dtype=np.float64))

    def __call__(self, embeddings_NH: np.ndarray) -> np.ndarray:
        return self._scaler.transform(np.asarray(embeddings_NH, dtype=np.float64))

    def unscaled(self, weight_KH: np.ndarray, bias_K: np.ndarray) -> LinearProbe:
        """The probe on embeddings as they were, of one on standardised embeddings."""
        weight_KH = weight_KH / self._scaler.scale_
        return LinearProbe(weight_KH, bias_K - weight_KH @ self._scaler.mean_)
