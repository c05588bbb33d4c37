"""Nearest texts, retrieval and clusters against loops and scikit-learn."""

import numpy as np
import pytest
from conftest import emotions

from carl_hf.evaluation.neighbours import (
    cluster_agreement,
    knn_predictions,
    mean_metrics,
    measure_retrieval,
    nearest,
    retrieval,
    v_measure,
)

metrics = pytest.importorskip("sklearn.metrics")
neighbors = pytest.importorskip("sklearn.neighbors")
RNG = np.random.default_rng(0)
STOCK, QUERIES = RNG.normal(size=(60, 5)), RNG.normal(size=(1100, 5))  # more queries than one chunk holds
CLASSES, ASKED = RNG.integers(4, size=60), RNG.integers(4, size=1100)


def test_nearest_and_knn_agree_with_scikit_learn():
    found = neighbors.NearestNeighbors(n_neighbors=10, metric="cosine").fit(STOCK)
    expected = found.kneighbors(QUERIES, return_distance=False)
    np.testing.assert_array_equal(nearest(QUERIES, STOCK), expected)
    np.testing.assert_array_equal(nearest(3 * QUERIES[:2], STOCK[:4]).shape, (2, 4))  # fewer texts than neighbours
    labels = RNG.uniform(-1, 1, size=(60, 2))
    model = neighbors.KNeighborsRegressor(10, metric="cosine").fit(STOCK, labels)
    np.testing.assert_allclose(knn_predictions(STOCK, labels, QUERIES), model.predict(QUERIES), atol=1e-12)


def test_retrieval_agrees_with_loops_and_with_scikit_learn():
    classes = CLASSES.copy()
    classes[classes == 3] = 2
    classes[:4] = 3  # a class of four texts cannot fill ten places
    found = retrieval(QUERIES, ASKED, STOCK, classes)
    unit = STOCK / np.linalg.norm(STOCK, axis=1, keepdims=True)
    for q in range(40):
        order = np.argsort(-(unit @ QUERIES[q]))
        relevant = (classes == ASKED[q]).astype(float)
        assert found["precision_at_10"][q] == pytest.approx(relevant[order[:10]].mean())
        score = metrics.ndcg_score(relevant[None], (unit @ QUERIES[q])[None], k=10)
        assert found["ndcg_at_10"][q] == pytest.approx(score)


@pytest.mark.parametrize("seed", range(4))
def test_v_measure_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    classes, clusters = rng.integers(4, size=50), rng.integers(4, size=50) * (seed > 0)  # seed 0: one cluster
    counts = np.zeros((4, 4))
    np.add.at(counts, (classes, clusters), 1)
    assert v_measure(counts[None])[0] == pytest.approx(metrics.v_measure_score(classes, clusters), abs=1e-12)
    assert v_measure(np.diag([3.0, 2, 5])[None])[0] == pytest.approx(1)


def test_clusters_that_are_the_classes_and_clusters_that_are_not():
    classes = np.arange(90) % 3
    points = 8 * np.eye(3)[classes] + 0.1 * RNG.normal(size=(90, 3))
    assert cluster_agreement(points, classes, 3, seed=0)["v_measure"] == pytest.approx(1)
    chance = cluster_agreement(points, RNG.permutation(classes), 3, seed=0)
    low, high = chance["v_measure_interval"]
    assert low < chance["v_measure"] < high < 0.2
    assert chance["v_measure_chance"] == pytest.approx(chance["v_measure"], abs=0.05)
    random = [cluster_agreement(RNG.normal(size=(30, 5)), RNG.integers(7, size=30), 7, seed=s) for s in range(10)]
    means = [np.mean([found[name] for found in random]) for name in ("v_measure", "v_measure_chance")]
    assert means[0] > 0.3 and means[1] == pytest.approx(means[0], abs=0.05)


def test_the_interval_of_a_mean_is_that_of_the_central_limit_theorem():
    values = RNG.normal(2, 3, size=400)
    found = mean_metrics({"x": values}, seed=1)
    error = 1.96 * values.std() / 20
    np.testing.assert_allclose(found["x_interval"], [found["x"] - error, found["x"] + error], atol=0.1 * error)


@pytest.mark.parametrize("multi_label", [False, True])
def test_retrieval_of_a_corpus_searches_among_the_training_texts_alone(multi_label):
    corpus = emotions(multi_label=multi_label)
    seen: list[str] = []

    def encode(texts):
        seen.extend(texts)
        return np.array([np.eye(8)["abcdefgh".index(text[0])] + 0.01 for text in texts])

    found, items = measure_retrieval(encode, corpus, seed=0)
    np.testing.assert_allclose([found[name] for name in ("precision_at_10", "ndcg_at_10", "v_measure")], 1)
    assert found["texts"] == len(items["precision_at_10"]) == 0.1 * 120
    assert len(seen) == 0.9 * 120 and 0.1 < found["chance"] < 0.3
