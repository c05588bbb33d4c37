"""What predictors without a model score, beside the measured ones."""

from collections.abc import Mapping
from typing import Any


def constant_predictor(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Of a predictor that always says the means of the training labels."""
    result = {name: (metrics.get(name) or {}).get("constant") or {} for name in ("valence", "arousal", "dominance")}
    for name, unit in (("angle_error", "degrees"), ("intensity_error", "mae")):
        result[name] = {unit: (metrics.get(name) or {}).get("constant")}
    return result


def majority_class(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Of a predictor that always says the most frequent class: the macro metrics of all its other classes are 0."""
    if metrics.get("majority") is None:
        return {}
    result = {"accuracy": metrics["majority"]}
    if metrics.get("classes"):
        share, classes = metrics["majority"] / 100, len(metrics["classes"])
        result |= {"precision": share / classes, "recall": 1 / classes, "f1": 2 * share / (1 + share) / classes}
    return result
