"""Metrics of emotion recognition with one class a text, as an `evaluate` metric."""

# evaluate reads this file's imports line by line and takes "import a, b" for one package: one module a line
import datasets
import evaluate
import numpy as np

from carl_hf.evaluation.statistics import classification_metrics

_DESCRIPTION = "Accuracy in percent, macro precision, recall and F1 over all named classes, and the confusion matrix."
_CITATION = "Son, Saurez and Har, Continuous Adversarial Text Representation Learning, 2025, arXiv 2502.20613"
_INPUTS = """
Args:
    predictions: list of N class indices, from 0.
    references: list of N class indices, from 0.
    classes (list of str): names of all classes, in the order of their indices. Macro metrics are means over all of
        them: one that is never predicted has precision 0, one that does not occur has recall 0.

Returns:
    dict with "accuracy" in percent, "precision", "recall" and "f1" as fractions, and "confusion": rows the true
    class, columns the predicted one.

Example:
    >>> from carl_hf.evaluation.metrics import load_metric
    >>> metric = load_metric("emotion_classification")
    >>> result = metric.compute(predictions=[0, 0, 1, 2], references=[0, 1, 1, 2], classes=["joy", "fear", "anger"])
    >>> result["accuracy"], round(result["f1"], 3), result["confusion"]
    (75.0, 0.778, [[1, 0, 0], [1, 1, 0], [0, 0, 1]])
"""
# as int64, the library would cut 0.7 to class 0 in silence
_FEATURES = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}


class EmotionClassification(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(_DESCRIPTION, _CITATION, datasets.Features(_FEATURES), inputs_description=_INPUTS)

    def _compute(self, predictions, references, classes):
        tables = [np.asarray(values) for values in (predictions, references)]
        if any((values % 1 != 0).any() for values in tables):
            raise ValueError(
                "Predictions and references must be class indices, such as 0 or 1: one is no whole number."
            )
        return classification_metrics(*(values.astype(int) for values in tables), list(classes))
