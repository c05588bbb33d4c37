"""What fine-tuning on class labels has changed: linear heads on frozen and on trained embeddings of one corpus."""

import dataclasses
from typing import Any, Literal

import numpy as np
import torch

from carl_hf.data.label_spaces import read_label_space
from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.splits import split_rows
from carl_hf.evaluation.circumplex import circular_order
from carl_hf.evaluation.emotion import measure_emotion
from carl_hf.evaluation.statistics import FEWEST_FOR_A_VERDICT, classification_report
from carl_hf.evaluation.tasks import Measured
from carl_hf.modeling_carl import CarlModel


def measure_linear_head(
    vectors_NH: np.ndarray, corpus: ClassCorpus, *, seed: int, class_weights: Literal["equal", "balanced"] = "equal",
    label_space: str | None = None,
) -> Measured:  # fmt: skip
    """Test metrics of a linear head on embeddings of the corpus's texts and, where each has one class, how far the
    classes lie in the order of the circumplex. See [`measure_emotion`] and [`circular_order`].

    Args:
        label_space: gives the classes their angles; circle12 by default.

    Raises:
        ValueError: if an embedding is not finite.
    """
    if not np.isfinite(vectors_NH).all():
        raise ValueError("The encoder gives vectors that are not finite: its weights are damaged.")
    report, items = measure_emotion(lambda _: vectors_NH, corpus, seed=seed, class_weights=class_weights)
    if not corpus.multi_label:
        test = split_rows(corpus)[2]
        angles = read_label_space(label_space or "circle12").known_angles(corpus.classes)
        names = np.array(corpus.classes)[corpus.labels[test]]
        report["circular_order"] = circular_order(vectors_NH[test], names, angles, seed=seed)
    return report, items


def measure_trained_head(
    model: CarlModel, vectors_NH: np.ndarray, corpus: ClassCorpus, *, seed: int
) -> Measured | None:
    """Test metrics of the classifier, or of the nearest proxy, that was trained with the encoder; None if there is
    none, or if a text may have several classes."""
    test = split_rows(corpus)[2]
    found = model.classify(torch.from_numpy(vectors_NH[test]).to(model.device))
    if found is None or corpus.multi_label:
        return None
    indices = np.array([corpus.classes.index(name) for name in model.config.classes])
    predictions, references = indices[found.cpu().numpy()], corpus.labels[test]
    report = classification_report(predictions, references, corpus.classes, seed=seed)
    return report, {"predictions": predictions, "references": references}


def validation_accuracy(vectors_NH: np.ndarray, corpus: ClassCorpus, *, seed: int) -> float:
    """Accuracy (percent) on the validation split of a head fitted on the train split, to choose a pooling by."""
    train, validation, _ = split_rows(corpus)
    split = np.full(len(corpus.texts), "none", dtype=object)
    split[train], split[validation] = "train", "test"
    report, _ = measure_emotion(lambda _: vectors_NH, dataclasses.replace(corpus, split=split), seed=seed)
    return report["accuracy"]


def verdict(gain: dict[str, Any], frozen: str, test: int, validation: int) -> str:
    """Whether the trained embedding beats the one named `frozen`; `gain` is as [`class_gain`] returns it, of so many
    test texts. By so many validation texts `frozen` was chosen, and the strengths of the heads."""
    parts = {"test": test, "validation": validation}
    few = [f"{texts} {part} texts" for part, texts in parts.items() if texts < FEWEST_FOR_A_VERDICT]
    if few:
        return f"Verdict: there are only {' and '.join(few)}, from which nothing can be concluded."
    low, high = gain["accuracy_interval"]
    how = "beats" if low > 0 else "is worse than" if high < 0 else "is not told apart from"
    return (
        f"Verdict: the trained embedding {how} the frozen encoder ({frozen}): accuracy {gain['accuracy']:+.1f} points "
        f"[{low:+.1f}, {high:+.1f}]."
    )
