"""Encoders beside each other: differences by the paired bootstrap over test items, spread over training seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from carl_hf.evaluation.statistics import (
    class_metrics,
    defined,
    interval,
    one_hot,
    resample_rows,
    resampled_class_metrics,
    spearman,
)
from carl_hf.evaluation.suite import Evaluation
from carl_hf.evaluation.valence_arousal import DIMENSIONS, va_gain


def compare(before: Evaluation, after: Evaluation, *, seed: int) -> dict[str, Any]:
    """Differences after - before on every corpus that both were measured on, by the paired bootstrap over test items.

    Returns:
        {task: {corpus: figures}}: Pearson r for each dimension of va, accuracy in percent, F1; each with a 95 %
        interval.
    """
    result: dict[str, Any] = {}
    for key in before.items:
        task, corpus = key.split("/", 1)
        if key not in after.items or task == "geometry":
            continue
        one, two = before.items[key], after.items[key]
        if one["references"].shape != two["references"].shape:
            raise ValueError(f"{key}: the two models were measured on different texts.")
        if task == "va":
            names = (*DIMENSIONS, "dominance")[: one["references"].shape[1]]
            figures = va_gain(one["predictions"], two["predictions"], one["references"], dimensions=names, seed=seed)
        elif task == "semantics":
            figures = _rank_gain(one["predictions"], two["predictions"], one["references"], seed)
        else:
            figures = class_gain(one, two, seed)
        if any(run.figures[task][corpus].get("seen_in_training") for run in (before, after)):
            figures["seen_in_training"] = True
        result.setdefault(task, {})[corpus] = figures
    return result


def _rank_gain(one: np.ndarray, two: np.ndarray, truth: np.ndarray, seed: int) -> dict[str, Any]:
    rows = resample_rows(len(truth), seed)
    resampled = spearman(two[rows], truth[rows]) - spearman(one[rows], truth[rows])
    point = {"spearman": float(spearman(two, truth) - spearman(one, truth))}
    return {**defined(point, ["cosines of one model"]), "spearman_interval": interval(resampled)}


def class_gain(one: dict[str, np.ndarray], two: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Differences two - one of accuracy (percent) and macro F1 with their intervals, by the paired bootstrap.

    Args:
        one, two: {"predictions", "references"} on the same texts, (N,) numbers of classes or (N, C) booleans.
    """
    truth = one["references"]
    tables = [two["predictions"], one["predictions"], truth]
    if truth.ndim == 1:
        classes = int(max(table.max() for table in tables)) + 1
        tables = [one_hot(table, classes) for table in tables]
    after, before, truth = tables
    point = {name: class_metrics(after, truth)[name] - value for name, value in class_metrics(before, truth).items()}
    resampled_before = resampled_class_metrics(before, truth, seed=seed)
    resampled_after = resampled_class_metrics(after, truth, seed=seed)
    return {
        key: value
        for name in ("accuracy", "f1")
        for key, value in (
            (name, point[name]),
            (f"{name}_interval", interval(resampled_after[name] - resampled_before[name])),
        )
    }


_NO_FIGURE = (
    "constant", "majority", "texts", "tokens", "seconds", "skipped", "confusion", "l2", "dimensions",
    "strength", "draws", "angles",
)  # fmt: skip


def spread(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) of every figure over runs that differ by seed alone.

    Args:
        runs: figures of at least two models, as in results.json.

    Returns:
        the same nesting, each figure {"mean", "std"}; figures that a run lacks, and what is no figure (intervals,
        counts, constant predictors), are left out.
    """
    result: dict[str, Any] = {}
    for key in runs[0]:
        if key in _NO_FIGURE or key.endswith("_interval") or any(key not in run for run in runs):
            continue
        values = [run[key] for run in runs]
        if all(isinstance(v, Mapping) for v in values):
            inner = spread(values)
            if inner:
                result[key] = inner
        elif all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            result[key] = {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
    return result
