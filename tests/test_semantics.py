import json
import math

import numpy as np
import pytest

from carl_hf.evaluation.semantics import measure_sts

stats = pytest.importorskip("scipy.stats")


def measured(left, right, scores, seed=4):
    """The task on texts "0", "1", ... whose embeddings are the rows of `left`, then of `right`."""
    vectors, texts = np.concatenate([left, right]), [str(i) for i in range(len(left) + len(right))]
    pairs = texts[: len(left)], texts[len(left) :], scores
    return measure_sts(lambda asked: vectors[[int(text) for text in asked]], pairs, seed=seed)[0]


def cosines(left, right):
    return [sum(a * b) / math.sqrt(sum(a * a) * sum(b * b)) for a, b in zip(left, right, strict=True)]


def test_metric_equals_scipy_and_interval_a_loop():
    rng = np.random.default_rng(0)
    left, noise = rng.normal(size=(2, 40, 6))
    mix = rng.uniform(size=(40, 1))
    right, scores = mix * left + (1 - mix) * noise, np.round(5 * mix[:, 0] + 0.3 * rng.normal(size=40))
    found = measured(3 * left, right, scores)
    similar = np.array(cosines(left, right))
    assert found["spearman"] == pytest.approx(stats.spearmanr(similar, scores).statistic, abs=1e-12)
    assert len(set(scores)) < len(scores), "no ties among the scores: their mean ranks are not tested"
    rows = np.random.default_rng(4).integers(40, size=(1000, 40))
    looped = [stats.spearmanr(similar[r], scores[r]).statistic for r in rows]
    assert found["spearman_interval"] == pytest.approx(np.quantile(looped, [0.025, 0.975]).tolist(), abs=1e-12)
    assert found["texts"] == 40
    right[7] = 0
    with pytest.raises(ValueError, match="row 7"):
        measured(left, right, scores)


def test_constant_cosines_or_scores_have_no_correlation():
    rng = np.random.default_rng(1)
    left, scores = rng.normal(size=(30, 7)), rng.uniform(0, 5, size=30)
    # cosine 1 up to rounding, which must not be ranked
    scaled = left * rng.uniform(0.5, 2, size=(30, 1))
    assert len(set(cosines(left, scaled))) > 1
    found = measured(left, scaled, scores)
    assert found["spearman"] is None and "cosines" in found["spearman_reason"]
    assert found["spearman_interval"] is None
    json.dumps(found, allow_nan=False)
    flat = measured(left, rng.normal(size=(30, 7)), np.full(30, 2.5))
    assert flat["spearman"] is None and "scores" in flat["spearman_reason"]
