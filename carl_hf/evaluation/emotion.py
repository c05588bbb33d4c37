"""Emotion recognition from frozen embeddings: logistic regression on standardised embeddings."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.splits import SPLITS, split_rows
from carl_hf.evaluation.geometry import dimension_curve
from carl_hf.evaluation.probes import fit_logistic, fit_multi_label
from carl_hf.evaluation.statistics import classification_report, multi_label_report
from carl_hf.evaluation.tasks import Encode, Measured

FEW_SHOT_DRAWS = 10
_CURVE_STRENGTH = 1e-2  # of the probe in dimension curves, the same for every point


def class_dataset(corpus: ClassCorpus, rows: np.ndarray) -> Dataset:
    """Rows of a corpus as `text` and `label`, to train on; of a corpus whose texts may have several classes, those
    that have one."""
    texts, labels = corpus.part(rows)
    if labels.ndim == 2:
        single = np.flatnonzero(labels.sum(1) == 1)
        texts, labels = [texts[i] for i in single], labels[single].argmax(1)
    return Dataset.from_dict({"text": texts, "label": [corpus.classes[label] for label in labels]})


def measure_emotion(
    encode: Encode, corpus: ClassCorpus, *, seed: int, shots: Sequence[int] = (),
    class_weights: Literal["equal", "balanced"] = "equal",
) -> Measured:  # fmt: skip
    """Test metrics of a probe on a corpus of emotions, and of probes on `shots` training texts a class.

    `shots` and `class_weights` (see [`carl_hf.evaluation.probes.fit_logistic`]) apply where a text has one class.
    """
    embeddings, labels = encode(corpus.texts), corpus.labels
    train, dev, test = split_rows(corpus)
    fitted, truth = (embeddings[train], labels[train], embeddings[dev], labels[dev]), labels[test]
    if corpus.multi_label:
        probe, thresholds = fit_multi_label(*fitted)
        predictions = probe(embeddings[test]) >= thresholds
        report = multi_label_report(predictions, truth, corpus.classes, seed=seed)
        return report, {"predictions": predictions, "references": truth}
    probe, strength = fit_logistic(*fitted, class_weights=class_weights)
    predictions = probe(embeddings[test]).argmax(axis=1)
    report = classification_report(predictions, truth, corpus.classes, seed=seed) | {"strength": strength}
    few = {str(count): few_shot(*fitted[:2], embeddings[test], truth, count, seed=seed) for count in shots}
    return report | ({"few_shot": few} if few else {}), {"predictions": predictions, "references": truth}


def few_shot(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, shots: int, *, seed: int
) -> dict[str, Any]:
    """Accuracy (percent) of probes on `shots` random training texts a class, mean and standard deviation over draws;
    None where a class has fewer texts. With no validation texts to choose by, C is 1."""
    rng = np.random.default_rng(seed)
    by_class = [np.flatnonzero(train_labels == c) for c in np.unique(train_labels)]
    smallest = min(map(len, by_class))
    if smallest < shots:
        reason = f"undefined: a class has {smallest} training texts only"
        return {
            "accuracy_mean": None,
            "accuracy_mean_reason": reason,
            "accuracy_std": None,
            "accuracy_std_reason": reason,
            "draws": 0,
        }
    accuracies = []
    for _ in range(FEW_SHOT_DRAWS):
        rows = np.concatenate([rng.choice(members, shots, replace=False) for members in by_class])
        few, labels = train[rows], train_labels[rows]
        probe, _ = fit_logistic(few, labels, few, labels, strengths=(1.0,))
        accuracies.append(100 * (probe(test).argmax(axis=1) == test_labels).mean())
    mean, deviation = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    return {"accuracy_mean": mean, "accuracy_std": deviation, "draws": FEW_SHOT_DRAWS}


def emotion_curve(embeddings_NH: np.ndarray, corpus: ClassCorpus, *, seed: int) -> dict[str, Any]:
    """Test accuracy (percent) of a logistic probe against the number of kept dimensions, for a corpus whose texts have
    one class. See [`carl_hf.evaluation.geometry.dimension_curve`]."""
    rows = dict(zip(SPLITS, split_rows(corpus), strict=True))
    labels = {name: corpus.labels[chosen] for name, chosen in rows.items()}

    def score(splits: dict[str, np.ndarray]) -> float:
        fitted = splits["train"], labels["train"], splits["validation"], labels["validation"]
        probe, _ = fit_logistic(*fitted, strengths=(_CURVE_STRENGTH,))
        return 100 * float((probe(splits["test"]).argmax(axis=1) == labels["test"]).mean())

    return dimension_curve(score, {name: embeddings_NH[chosen] for name, chosen in rows.items()}, seed=seed)
