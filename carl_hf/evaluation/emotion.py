"""Emotion recognition from frozen embeddings: logistic regression on standardised embeddings."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.splits import split_rows
from carl_hf.evaluation.geometry import dimension_curve
from carl_hf.evaluation.probes import fit_logistic, fit_multi_label
from carl_hf.evaluation.statistics import classification_report, multi_label_report

FEW_SHOT_DRAWS = 10
_PROBE_OF_CURVES = (1e-2,)  # strength of the logistic probe in dimension curves, the same for every point
_DRAWS_OF_CURVES = 3
Items = dict[str, np.ndarray]


def class_dataset(corpus: ClassCorpus, rows: np.ndarray) -> Dataset:
    """Rows of a corpus as `text` and `label`, to train on; of a corpus whose texts may have several classes, those
    that have one."""
    texts, labels = corpus.part(rows)
    if labels.ndim == 2:
        single = np.flatnonzero(labels.sum(1) == 1)
        texts, labels = [texts[i] for i in single], labels[single].argmax(1)
    return Dataset.from_dict({"text": texts, "label": [corpus.classes[label] for label in labels]})


def measure_emotion(
    encode: Callable[[Sequence[str]], np.ndarray], corpus: ClassCorpus, *, seed: int, shots: Sequence[int] = (),
    class_weights: Literal["equal", "balanced"] = "equal",
) -> tuple[dict[str, Any], Items]:  # fmt: skip
    """A corpus of emotions: test figures of the probe, and of probes on `shots` training texts a class.

    `class_weights` is that of [`carl_hf.evaluation.probes.fit_logistic`], where a text has one class.
    """
    embeddings, labels = encode(corpus.texts), corpus.labels
    train, dev, test = split_rows(corpus)
    parts = embeddings[train], labels[train], embeddings[dev], labels[dev]
    if labels.ndim == 2:
        probe, thresholds = fit_multi_label(*parts)
        predictions = probe(embeddings[test]) >= thresholds
        report = multi_label_report(predictions, labels[test], corpus.classes, seed=seed)
        return report, {"predictions": predictions, "references": labels[test]}
    probe, strength = fit_logistic(*parts, class_weights=class_weights)
    predictions = probe(embeddings[test]).argmax(axis=1)
    report = classification_report(predictions, labels[test], corpus.classes, seed=seed)
    report["strength"] = strength
    if shots:
        report["few_shot"] = {
            str(count): few_shot(embeddings[train], labels[train], embeddings[test], labels[test], count, seed=seed)
            for count in shots
        }
    return report, {"predictions": predictions, "references": labels[test]}


def few_shot(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, shots: int, *, seed: int
) -> dict[str, Any]:
    """Accuracy (percent) of probes on `shots` random training texts a class, mean and standard deviation over draws;
    None where a class has fewer texts. There is no dev part to choose by: C is 1."""
    rng = np.random.default_rng(seed)
    by_class = [np.flatnonzero(train_labels == c) for c in np.unique(train_labels)]
    smallest = min(map(len, by_class))
    if smallest < shots:
        reason = f"undefined: a class has {smallest} training texts only"
        return {"accuracy_mean": None, "accuracy_mean_reason": reason, "accuracy_std": None, "draws": 0}
    accuracies = []
    for _ in range(FEW_SHOT_DRAWS):
        rows = np.concatenate([rng.choice(members, shots, replace=False) for members in by_class])
        few, labels = train[rows], train_labels[rows]
        probe, _ = fit_logistic(few, labels, few, labels, strengths=(1.0,))
        accuracies.append(100 * (probe(test).argmax(axis=1) == test_labels).mean())
    return {"accuracy_mean": float(np.mean(accuracies)), "accuracy_std": float(np.std(accuracies, ddof=1)),
            "draws": FEW_SHOT_DRAWS}  # fmt: skip


def emotion_curve(embeddings: np.ndarray, corpus: ClassCorpus, *, seed: int) -> dict[str, Any]:
    """Test accuracy (percent) of a logistic probe against the number of kept dimensions, for a corpus whose texts have
    one class. See [`carl_hf.evaluation.geometry.dimension_curve`].

    Args:
        embeddings: (N, H) of the corpus's texts.
    """
    rows = dict(zip(("train", "dev", "test"), split_rows(corpus), strict=True))
    labels = {part: corpus.labels[chosen] for part, chosen in rows.items()}

    def score(parts: dict[str, np.ndarray]) -> float:
        probe, _ = fit_logistic(parts["train"], labels["train"], parts["dev"], labels["dev"], _PROBE_OF_CURVES)
        return 100 * float((probe(parts["test"]).argmax(axis=1) == labels["test"]).mean())

    return finite_curve(score, embeddings, rows, seed=seed)


def finite_curve(
    score: Callable[[dict[str, np.ndarray]], float], embeddings: np.ndarray, rows: dict[str, np.ndarray], *, seed: int
) -> dict[str, Any]:
    """The dimension curve of a score over parts of `embeddings` (N, H), None where it is undefined."""
    parts = {part: embeddings[chosen] for part, chosen in rows.items()}
    curve = dimension_curve(score, parts, seed=seed, draws=_DRAWS_OF_CURVES)
    return {key: [v if np.isfinite(v) else None for v in values] for key, values in curve.items()}
