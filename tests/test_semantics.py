import json
import math

import numpy as np
import pytest

from carl_hf.evaluation.semantics import sts_spearman

stats = pytest.importorskip("scipy.stats")


def pairs(seed, number=40, width=6):
    rng = np.random.default_rng(seed)
    left, noise = rng.normal(size=(2, number, width))
    mix = rng.uniform(size=(number, 1))
    return 3 * left, mix * left + (1 - mix) * noise, np.round(5 * mix[:, 0] + 0.3 * rng.normal(size=number))


def cosines(left, right):
    return [sum(a * b) / math.sqrt(sum(a * a) * sum(b * b)) for a, b in zip(left, right, strict=True)]


def test_figure_equals_scipy_and_interval_a_loop():
    left, right, scores = pairs(0)
    found = sts_spearman(left, right, scores, seed=4, resamples=150)
    similar = np.array(cosines(left, right))
    assert found["spearman"] == pytest.approx(stats.spearmanr(similar, scores).statistic, abs=1e-12)
    assert len(set(scores)) < len(scores), "no ties among the scores: their mean ranks are not tested"
    rows = np.random.default_rng(4).integers(40, size=(150, 40))
    looped = [stats.spearmanr(similar[r], scores[r]).statistic for r in rows]
    assert found["spearman_interval"] == pytest.approx(np.quantile(looped, [0.025, 0.975]).tolist(), abs=1e-12)
    assert found["texts"] == 40


def test_constant_cosines_or_scores_have_no_correlation():
    rng = np.random.default_rng(1)
    left = rng.normal(size=(30, 7))
    scores = rng.uniform(0, 5, size=30)
    # cosine 1 up to rounding, which must not be ranked
    scaled = left * rng.uniform(0.5, 2, size=(30, 1))
    assert len(set(cosines(left, scaled))) > 1
    found = sts_spearman(left, scaled, scores, seed=0, resamples=20)
    assert found["spearman"] is None and "cosines" in found["spearman_reason"]
    assert found["spearman_interval"] is None
    json.dumps(found, allow_nan=False)
    flat = sts_spearman(left, rng.normal(size=(30, 7)), np.full(30, 2.5), seed=0, resamples=20)
    assert flat["spearman"] is None and "scores" in flat["spearman_reason"]


def test_wrong_input_is_named():
    left, right, scores = pairs(2)
    with pytest.raises(ValueError, match="same pairs"):
        sts_spearman(left, right[1:], scores, seed=0)
    with pytest.raises(ValueError, match="same pairs"):
        sts_spearman(left, right, scores[1:], seed=0)
    right[7] = 0
    with pytest.raises(ValueError, match="row 7"):
        sts_spearman(left, right, scores, seed=0)
    scores[5] = np.nan
    with pytest.raises(ValueError, match="row 5"):
        sts_spearman(left, left, scores, seed=0)
