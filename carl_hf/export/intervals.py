"""How sure valence and arousal are: intervals that hold for a stated share of texts, by split conformal prediction
(Lei et al. 2018, JASA 113).

Shape suffixes: N texts, K dimensions.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from carl_hf.evaluation.statistics import interval, resample_rows
from carl_hf.export.cards import Result, measured_row

LEVEL = 0.9
FEWEST = 9
"""Texts that intervals need at least."""


def conformal_intervals(
    answers_NK: np.ndarray, labels_NK: np.ndarray, dimensions: Sequence[str]
) -> dict[str, float] | None:
    """Half-widths of intervals around the answers: the ceil((N + 1) LEVEL)-th least of the absolute errors on texts
    that the model was not fitted to. The label of another text like them lies within with a probability of at least
    `LEVEL`.

    Args:
        answers_NK, labels_NK: in the units of the answers, [0, 1].

    Returns:
        {"level": LEVEL, dimension: half-width for each}; None for 8 texts or fewer.
    """
    if len(labels_NK) < FEWEST:
        return None
    rank = math.ceil((len(labels_NK) + 1) * LEVEL)
    errors_NK = np.sort(np.abs(answers_NK - labels_NK), axis=0)
    return {"level": LEVEL, **dict(zip(dimensions, errors_NK[rank - 1].tolist(), strict=True))}


def coverage_results(
    corpus: str, answers_NK: np.ndarray, labels_NK: np.ndarray, dimensions: Sequence[str],
    intervals: Mapping[str, float] | None, *, seed: int,
) -> list[Result]:  # fmt: skip
    """Rows for a card: the share of a corpus's test texts whose label lies within the interval, for each dimension."""
    if intervals is None:
        return []
    what, results = f"within the {100 * intervals['level']:.0f} % interval", []
    for name, answers_N, labels_N in zip(dimensions, answers_NK.T, labels_NK.T, strict=False):
        held_N = np.abs(answers_N - labels_N) <= intervals[name]
        bounds = interval(held_N[resample_rows(len(held_N), seed)].mean(1))
        results.append(measured_row(corpus, "coverage", f"{name}, {what}", float(held_N.mean()), bounds))
    return results
