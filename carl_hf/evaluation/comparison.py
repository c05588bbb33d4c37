"""Encoders beside each other: differences by the paired bootstrap over test items, spread over training seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from carl_hf.evaluation.space import space_gain
from carl_hf.evaluation.statistics import class_metrics, interval, one_hot, resampled_class_metrics
from carl_hf.evaluation.suite import Evaluation
from carl_hf.evaluation.valence_arousal import DIMENSIONS, va_gain


def compare(before: Evaluation, after: Evaluation, *, seed: int) -> dict[str, Any]:
    """Differences after - before on every corpus that both were measured on, by the paired bootstrap over test texts.

    Returns:
        {task: {corpus: metrics}}: Pearson r for each dimension of va, Spearman rho of semantics, what
        [`carl_hf.evaluation.space.space_gain`] compares, accuracy in percent and F1; each with a 95 % interval.

    Raises:
        ValueError: if they were measured on different texts, or with different seeds, which draw other texts.
    """
    if None not in (before.seed, after.seed) and before.seed != after.seed:
        raise ValueError(f"The two models were measured with the seeds {before.seed} and {after.seed}: take one.")
    result: dict[str, Any] = {}
    for key in before.items:
        task, corpus = key.split("/", 1)
        if key not in after.items or task == "geometry":
            continue
        one, two = before.items[key], after.items[key]
        same = all(values.shape == two[name].shape for name, values in one.items())
        if not same or not np.array_equal(one.get("references", ()), two.get("references", ())):
            raise ValueError(f"{key}: the two models were measured on different texts.")
        if task == "va":
            truth = one["references"]
            names = (*DIMENSIONS, "dominance")[: truth.shape[1]]
            gain = va_gain(one["predictions"], two["predictions"], truth, dimensions=names, seed=seed)
        elif task in ("semantics", "space"):
            gain = space_gain(one, two, seed=seed)
        else:
            gain = class_gain(one, two, seed, len(before.metrics[task][corpus].get("confusion", ())))
        gain["texts"] = len(next(iter(one.values())))
        if any(run.metrics[task][corpus].get("seen_in_training") for run in (before, after)):
            gain["seen_in_training"] = True
        result.setdefault(task, {})[corpus] = gain
    return result


def class_gain(one: dict[str, np.ndarray], two: dict[str, np.ndarray], seed: int, classes: int = 0) -> dict[str, Any]:
    """Differences two - one of accuracy (percent) and macro F1 with their intervals, by the paired bootstrap.

    Args:
        one, two: {"predictions", "references"} on the same texts, (N,) class indices or (N, C) booleans.
        classes: C, for indices; at least as many as they name. One that no text has counts as F1 0, as in reports.
    """
    tables = [one["predictions"], two["predictions"], one["references"]]
    if tables[-1].ndim == 1:
        classes = max(classes, *(int(table.max()) + 1 for table in tables))
        tables = [one_hot(table, classes) for table in tables]
    *predictions, truth = tables
    before, after = (class_metrics(table, truth) for table in predictions)
    resampled_before, resampled_after = (resampled_class_metrics(table, truth, seed=seed) for table in predictions)
    gain: dict[str, Any] = {}
    for name in ("accuracy", "f1"):
        gain[name] = after[name] - before[name]
        gain[f"{name}_interval"] = interval(resampled_after[name] - resampled_before[name])
    return gain


_NOT_AVERAGED = (
    "constant", "majority", "texts", "tokens", "seconds", "skipped", "confusion", "l2", "dimensions",
    "strength", "draws", "angles", "smallest_class",
)  # fmt: skip


def spread(runs: Sequence[Mapping[str, Any]], depth: int = 0) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) of every metric over runs that differ by seed alone.

    Args:
        runs: metrics of at least two models, as in results.json. depth: 1 within a task, where names are those of
            corpora.

    Returns:
        the same nesting, each metric {"mean", "std"}, without those that a run lacks, intervals, counts and constant
        predictors; "seen_in_training" where it is True of a run.
    """
    result: dict[str, Any] = {}
    if any(run.get("seen_in_training") is True for run in runs):
        result["seen_in_training"] = True
    for key in runs[0]:
        left_out = key == "dimensions" if depth == 1 else key in _NOT_AVERAGED or key.endswith("_interval")
        if left_out or any(key not in run for run in runs):
            continue
        values = [run[key] for run in runs]
        if all(isinstance(v, Mapping) for v in values):
            inner = spread(values, depth + 1)
            if inner:
                result[key] = inner
        elif all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            result[key] = {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
    return result
