"""Geometry against double loops over pairs, explicit resamples, circles with known angles and sklearn's PCA."""

import itertools
import json
import math

import numpy as np
import pytest

from carl_hf.evaluation.geometry import alignment_uniformity, centroid_separation, dimension_curve, principal_axes

PAIR_METRICS = ("alignment", "uniformity", "positive_random_ratio")


def pair_metrics(embeddings, labels, rows=None):
    """Alignment, uniformity and ratio of the texts `rows` by a loop; a text that occurs twice makes no pair with
    itself."""
    unit = [row / math.sqrt(sum(x * x for x in row)) for row in embeddings]
    positives, everything, kernel = [], [], []
    for i, j in itertools.combinations(range(len(unit)) if rows is None else rows, 2):
        if i == j:
            continue
        squared = sum((a - b) ** 2 for a, b in zip(unit[i], unit[j], strict=True))
        everything.append(squared)
        kernel.append(math.exp(-2 * squared))
        if labels[i] == labels[j]:
            positives.append(squared)
    mean_positive = sum(positives) / len(positives) if positives else math.nan
    mean_random = sum(everything) / len(everything)
    return mean_positive, math.log(sum(kernel) / len(kernel)), mean_positive / mean_random


def random_texts(seed, texts=23, width=5, classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=texts)
    return rng.normal(size=(texts, width)) * 3 + rng.normal(size=(classes, width))[labels], labels


@pytest.mark.parametrize("seed", [0, 1])
def test_pair_metrics_equal_a_double_loop(seed):
    embeddings, labels = random_texts(seed)
    expected = pytest.approx(pair_metrics(embeddings, labels), rel=1e-12)
    found = alignment_uniformity(embeddings, labels)
    assert list(found) == list(PAIR_METRICS) and tuple(found.values()) == expected
    names = np.array(["joy", "anger", "fear", "calm"])[labels]
    assert tuple(alignment_uniformity(embeddings * 7, names, seed=0)[name] for name in PAIR_METRICS) == expected


def test_bootstrap_equals_a_loop_over_resamples():
    embeddings, labels = random_texts(2, texts=9)[0], [0, 0, 1, 1, 2, 3, 4, 5, 6]
    found = alignment_uniformity(embeddings, labels, seed=5)
    rows = np.random.default_rng(5).integers(9, size=(1000, 9))
    looped = np.array([pair_metrics(embeddings, labels, rows=r) for r in rows])
    assert np.isnan(looped[:, 0]).any(), "no resample without a pair of one label: nothing is tested"
    for k, name in enumerate(PAIR_METRICS):
        defined = looped[~np.isnan(looped[:, k]), k]
        assert found[f"{name}_interval"] == pytest.approx(np.quantile(defined, [0.025, 0.975]).tolist(), rel=1e-10)


def test_undefined_metrics_are_none_and_bad_rows_are_named():
    alone = alignment_uniformity(np.eye(4), ["a", "b", "c", "d"], seed=0)
    assert alone["alignment"] is None and "same label" in alone["alignment_reason"]
    assert alone["alignment_interval"] is None and alone["positive_random_ratio"] is None
    assert alone["uniformity"] == pytest.approx(-4)  # squared distance 2 between all pairs
    rng = np.random.default_rng(0)
    line = rng.normal(size=7) * rng.uniform(1, 9, size=(5, 1))  # one direction, up to rounding
    collapsed = alignment_uniformity(line, [0, 0, 1, 1, 1], seed=0)
    assert collapsed["alignment"] == pytest.approx(0, abs=1e-12) == collapsed["uniformity"]
    assert collapsed["positive_random_ratio"] is None and "same" in collapsed["positive_random_ratio_reason"]
    single = alignment_uniformity(np.ones((1, 3)), [0], seed=0)
    assert single["uniformity"] is None and "two texts" in single["uniformity_reason"]
    for result in (alone, collapsed, single):
        json.dumps(result, allow_nan=False)
    for bad in (0.0, np.nan):
        embeddings = np.ones((5, 3))
        embeddings[3] = bad
        with pytest.raises(ValueError, match="row 3"):
            alignment_uniformity(embeddings, [0] * 5, seed=0)
    with pytest.raises(ValueError, match="5 embeddings but 4 labels"):
        alignment_uniformity(np.ones((5, 3)), [0] * 4)


def test_centroid_separation_equals_a_loop():
    embeddings, labels = random_texts(3)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    def distance(a, b):
        return 1 - sum(a * b) / math.sqrt(sum(a * a) * sum(b * b))

    centroids = {c: sum(u for u, label in zip(unit, labels, strict=True) if label == c) for c in set(labels.tolist())}
    between = [distance(centroids[a], centroids[b]) for a, b in itertools.combinations(centroids, 2)]
    within = [distance(u, centroids[c]) for u, c in zip(unit, labels.tolist(), strict=True)]
    expected = (sum(between) / len(between)) / (sum(within) / len(within))
    for same in (labels, np.array(list("wxyz"))[labels]):
        assert centroid_separation(embeddings, same) == pytest.approx(expected, rel=1e-10)
    assert centroid_separation(embeddings, labels * 0) is None  # one class
    assert centroid_separation(np.eye(3)[[0, 0, 1]], [0, 0, 1]) is None  # each class is one point


@pytest.mark.parametrize("width, kept", [(12, [2, 4, 8, 12]), (8, [2, 4, 8]), (2, [2]), (3, [2, 3]), (1, [1])])
def test_dimension_curve_keeps_powers_of_two_and_all(width, kept):
    rng = np.random.default_rng(0)
    splits = {name: rng.normal(size=(30, width)) for name in ("train", "test")}
    assert dimension_curve(lambda reduced: reduced["test"].shape[1], splits, seed=0) == {
        "kept": kept, "pca": kept, "random": kept, "random_std": [0.0] * len(kept),
    }  # fmt: skip


def test_dimension_curve_equals_sklearn_pca_and_seeded_subsets():
    decomposition = pytest.importorskip("sklearn.decomposition")
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(12, 12)) * np.arange(1, 13)
    splits = {n: rng.normal(size=(size, 12)) @ mixing + 5 for n, size in (("train", 60), ("dev", 20), ("test", 25))}
    seen = []

    def score(reduced):
        """A function of distances: neither rotation nor sign changes it."""
        seen.append(reduced)
        return float(np.linalg.norm(reduced["test"][:, None] - reduced["dev"], axis=-1).min(1).mean())

    curve = dimension_curve(score, splits, seed=3, draws=4)
    assert curve["pca"][-1] == pytest.approx(score(splits), rel=1e-10) == curve["random"][-1]
    assert curve["random_std"][-1] == 0 and min(curve["random_std"][:-1]) > 0
    calls = iter(seen)
    for k, point, mean, std in zip(*(curve[key][:3] for key in ("kept", "pca", "random", "random_std")), strict=True):
        pca = decomposition.PCA(k).fit(splits["train"])
        reduced = next(calls)
        for name, rows in splits.items():
            theirs = pca.transform(rows)
            signs = np.sign((reduced[name] * theirs).sum(0))
            np.testing.assert_allclose(reduced[name] * signs, theirs, atol=1e-8)
        assert point == pytest.approx(score({name: pca.transform(rows) for name, rows in splits.items()}))
        drawn = [next(calls) for _ in range(4)]
        for draw in drawn:
            columns = [int(np.abs(splits["test"] - column[:, None]).sum(0).argmin()) for column in draw["test"].T]
            assert len(set(columns)) == k
            for name, rows in splits.items():
                np.testing.assert_array_equal(draw[name], rows[:, columns])
        scores = [score(draw) for draw in drawn]
        assert (mean, std) == pytest.approx((np.mean(scores), np.std(scores, ddof=1)))
    assert dimension_curve(score, splits, seed=3, draws=4) == curve


def test_components_without_training_variance_are_left_out_and_undefined_scores_are_none():
    rng = np.random.default_rng(2)
    splits = {"train": rng.normal(size=(5, 16)), "test": rng.normal(size=(9, 16))}
    curve = dimension_curve(lambda reduced: reduced["test"].shape[1], splits, seed=0)
    assert curve["pca"] == [2, 4, 4, 4]  # five texts span four directions
    assert curve["random"] == [2, 4, 8, 16]
    assert dimension_curve(lambda reduced: math.nan, splits, seed=0)["pca"] == [None] * 4


def test_principal_axes_are_ordered_and_have_a_sign():
    rows = random_texts(7)[0]
    variance, axes = principal_axes(rows)
    np.testing.assert_allclose(variance, sorted(np.linalg.eigvalsh(np.cov(rows.T, bias=True)), reverse=True))
    np.testing.assert_allclose(((rows - rows.mean(0)) @ axes).var(0), variance)
    assert (axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] > 0).all()
    assert principal_axes(rows[::-1])[1] == pytest.approx(axes, abs=1e-8)
