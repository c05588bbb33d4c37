"""The task `space` on spaces that are known: feelings on some axes, topics on others."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import words_of
from scipy.stats import spearmanr

from carl_hf.data.labelled import ClassCorpus, VaCorpus, read_va
from carl_hf.evaluation import space
from carl_hf.evaluation.before_after import nearest_texts
from carl_hf.evaluation.comparison import compare
from carl_hf.evaluation.space import (
    label_nearness,
    measure_emoji_pairs,
    measure_feeling,
    measure_nearness,
    nearness_report,
    sgts_pairs,
    space_gain,
)
from carl_hf.evaluation.suite import run_tasks
from carl_hf.evaluation.tasks import Settings

pytest.importorskip("sklearn")
RNG = np.random.default_rng(0)
FEELINGS, TOPICS = ("love", "hate"), ("phone", "tea", "rain")


def space_of(feeling):
    """Embeds "love phone" with a cosine of `feeling` to "love tea" and of 1 - `feeling` to "hate phone"."""

    def encode(texts):
        words = [text.split() for text in texts]
        axes = np.array([[*(w[0] == f for f in FEELINGS), *(w[1] == t for t in TOPICS)] for w in words], dtype=float)
        return 7 * axes * np.sqrt([feeling] * 2 + [1 - feeling] * 3)

    return encode


def triplets():
    rows = [
        (f"{f}s", f"{f} {t}", f"{f} {other}", f"{FEELINGS[f == 'love']} {t}")
        for f in FEELINGS for t in TOPICS for other in TOPICS if other != t
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["kind", "anchor", "same_feeling", "opposite_feeling"])


@pytest.mark.parametrize(("feeling", "share"), [(0.9, 100), (0.51, 100), (0.5, 0), (0.2, 0)])
def test_feeling_over_topic_of_a_known_space(feeling, share):
    found, items = measure_feeling(space_of(feeling), triplets(), seed=0)
    assert found["accuracy"] == share and found["accuracy_interval"] == [share, share]
    assert found["margin"] == pytest.approx(2 * feeling - 1) and found["texts"] == len(items["margin"]) == 12
    assert found["kinds"] == {
        kind: {"accuracy": share, "margin": pytest.approx(2 * feeling - 1), "texts": 6} for kind in ("loves", "hates")
    }


def test_each_kind_counts_its_own_triplets():
    mixed = triplets()
    wrong = mixed["kind"] == "hates"
    columns = ["same_feeling", "opposite_feeling"]
    mixed.loc[wrong, columns] = mixed.loc[wrong, columns[::-1]].to_numpy()
    found, _ = measure_feeling(space_of(0.9), mixed, seed=0)
    assert found["accuracy"] == 50 and found["margin"] == pytest.approx(0)
    assert [found["kinds"][kind]["accuracy"] for kind in ("loves", "hates")] == [100, 0]
    low, high = found["accuracy_interval"]
    assert low == pytest.approx(50 - 1.96 * 50 / 12**0.5, abs=9) and high == pytest.approx(100 - low, abs=9)


def test_emoji_pairs_are_ordered_by_the_dimension_that_they_name():
    def encode(texts):  # "^" raises the axis of valence; nothing raises arousal's but noise below a tie
        return np.array([[text.count("^"), len(text) % 3, 1 + 1e-8 * len(text)] for text in texts], dtype=float)

    texts = [f"{'^' * (i % 4)}{'b' * (i % 5)}" for i in range(60)]
    labels = np.array([[text.count("^") / 4, len(text) % 3 / 3, 0] for text in texts])
    split = np.array(["train"] * 40 + ["validation"] * 20)
    corpus = VaCorpus(texts, labels, ("valence", "arousal", "dominance"), split)
    rows = [("valence", "a^", "ax"), ("valence", "bx", "b^"), ("arousal", "c^", "cx"), ("arousal", "bbbbb", "bbb")]
    pairs = pd.DataFrame(rows, columns=["dimension", "higher", "lower"])
    found, items = measure_emoji_pairs(encode, pairs, corpus, seed=0)
    assert items["accuracy"].tolist() == [100, 0, 0, 100]
    np.testing.assert_allclose(items["margin"], [0.25, -0.25, 0, 2 / 3], atol=0.01)
    assert found["accuracy"] == 50 and found["kinds"]["arousal"]["texts"] == 2


def pairwise(embeddings, labels, rows):
    """Label nearness by a loop over pairs and SciPy's rank correlation."""
    cosines, near = [], []
    for a, i in enumerate(rows):
        for j in rows[a + 1 :]:
            if i != j:
                x, y = embeddings[i], embeddings[j]
                cosines.append(round(x @ y / np.linalg.norm(x) / np.linalg.norm(y), 7))
                v, a_ = np.abs(labels[i] - labels[j])
                near.append([round(-v, 9), round(-a_, 9), round(-np.hypot(v, a_), 9)])
    return [spearmanr(cosines, column).statistic for column in zip(*near, strict=True)]


def test_label_nearness_and_its_interval_agree_with_loops():
    labels = RNG.integers(-4, 5, size=(40, 2)) / 4  # many distances are equal
    embeddings = np.column_stack([labels, RNG.normal(size=(40, 2))])
    expected = pairwise(embeddings, labels, range(40))
    np.testing.assert_allclose(list(label_nearness(embeddings, labels).values()), expected, atol=1e-12)

    corpus = VaCorpus([str(i) for i in range(40)], labels, ("valence", "arousal"), np.array(["train", "test"] * 20))
    found, items = measure_nearness(lambda texts: embeddings[list(map(int, texts))], corpus, seed=3)
    rows = np.arange(1, 40, 2)
    drawn = np.random.default_rng(3).integers(20, size=(200, 20))
    resampled = np.array([pairwise(embeddings, labels, rows[draw]) for draw in drawn])
    bounds = np.quantile(resampled - resampled.mean(0), [0.025, 0.975], axis=0)
    for k, name in enumerate(("valence", "arousal", "both")):
        low_high = pairwise(embeddings, labels, rows)[k] + bounds[:, k]
        np.testing.assert_allclose(found["nearness"][f"{name}_interval"], low_high, atol=1e-9)
    assert items["nearness"].shape == (201, 3) and found["texts"] == 20


@pytest.mark.parametrize("size", range(1, 6))
def test_a_few_texts_have_a_nearness_or_none(size):
    vectors, labels = RNG.normal(size=(size, 8)), RNG.normal(size=(size, 2))
    found = nearness_report(vectors, labels, labels, constant=labels.mean(0), seed=0)[0]["nearness"]
    assert (found["both"] is None) == (size < 3) == ("both_reason" in found)


def test_the_interval_from_subsets_is_as_wide_as_label_nearness_varies_between_corpora(monkeypatch):
    monkeypatch.setattr(space, "_SUBSET", 60)

    def corpus(seed):
        rng = np.random.default_rng(seed)
        labels = rng.uniform(-1, 1, size=(240, 2))
        return np.column_stack([labels, rng.normal(size=(240, 2))]), labels

    spread = np.std([label_nearness(*corpus(seed))["both"] for seed in range(40)], ddof=1)
    embeddings, labels = corpus(99)
    whole = VaCorpus([str(i) for i in range(240)], labels, ("valence", "arousal"), None)
    found, _ = measure_nearness(lambda texts: embeddings[list(map(int, texts))], whole, seed=0)
    low, high = found["nearness"]["both_interval"]
    assert (high - low) / 3.92 == pytest.approx(spread, rel=0.4)


def test_label_nearness_of_many_texts_is_that_of_some(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.uniform(-1, 1, size=(400, 2))
    vectors = np.column_stack([labels, rng.normal(size=(400, 2))])
    whole = nearness_report(vectors, labels, labels, constant=labels.mean(0), seed=0)[0]
    monkeypatch.setattr("carl_hf.evaluation.space._MOST", 200)
    some = nearness_report(vectors, labels, labels, constant=labels.mean(0), seed=0)[0]
    assert 0 < abs(some["nearness"]["both"] - whole["nearness"]["both"]) < 0.1
    widths = [np.diff(found["nearness"]["both_interval"])[0] for found in (whole, some)]
    assert widths[1] == pytest.approx(2**0.5 * widths[0], rel=0.3) and some["texts"] == 400


def test_neighbours_come_from_the_training_part_of_the_split_or_fold():
    labels = RNG.uniform(-1, 1, size=(100, 2))
    embed = {str(i): [*label, 1.5] for i, label in enumerate(labels)}
    for split in (None, np.array(["train", "test", "validation", "test"] * 25)):
        corpus = VaCorpus(list(embed), labels, ("valence", "arousal"), split)
        found, items = measure_nearness(lambda texts: np.array([embed[t] for t in texts]), corpus, seed=0)
        assert found["texts"] == (100 if split is None else 50) and found["knn"]["valence"]["pearson"] > 0.9
        assert np.abs(items["knn"] - items["labels"]).min() > 0  # no text is among its own neighbours


def test_sgts_pairs_are_as_many_as_its_authors_draw_and_no_text_is_used_twice():
    counts = (139, 289, 229, 279, 165)  # of SST5's validation split, from which they get 170 and 170
    labels = np.repeat(np.arange(5), counts)
    texts = [f"{label} {i}" for i, label in enumerate(labels)]
    first, second, score = sgts_pairs(ClassCorpus(texts, labels, list("abcde"), None), seed=0)
    assert len({*first, *second}) == 2 * len(score) == 680 and score.sum() == 170
    equal = [one[0] == two[0] for one, two in zip(first, second, strict=True)]
    np.testing.assert_array_equal(equal, score == 1)
    per_class = [sum(one[0] == c for one, same in zip(first, equal, strict=True) if same) for c in "01234"]
    assert per_class == [139 // 4] * 5


def test_the_suite_measures_and_compares_the_space(small_corpora):
    settings = Settings(tasks=("space",), data_dir=small_corpora)
    good, bad = (run_tasks(words_of(noise), settings, trained_on=["facebook"]) for noise in (0.1, 2.0))
    measured = good.metrics["space"]
    assert set(measured) == {
        "feeling-over-topic", "emoji-pairs", "emobank", "facebook", "goemotions-six", "mr", "sst5",
    }  # fmt: skip
    assert measured["facebook"]["seen_in_training"] and measured["emobank"]["knn"]["valence"]["pearson"] > 0.9
    assert measured["goemotions-six"]["precision_at_10"] > 0.95 and measured["mr"]["spearman"] > 0.8
    assert "space/isear" in good.metrics["skipped"] and "space" in good.metrics["seconds"]
    json.dumps(good.metrics, allow_nan=False)
    gains = compare(bad, good, seed=0)["space"]
    for path in (("emobank", "nearness", "both"), ("emobank", "knn", "valence", "pearson"), ("mr", "spearman"),
                 ("goemotions-six", "precision_at_10"), ("feeling-over-topic", "margin")):  # fmt: skip
        one, two, gain = bad.metrics["space"], measured, gains
        for name in path[:-1]:
            one, two, gain = one[name], two[name], gain[name]
        assert gain[path[-1]] == pytest.approx(two[path[-1]] - one[path[-1]])
        low, high = gain[f"{path[-1]}_interval"]
        assert low <= gain[path[-1]] <= high and (path[0] == "feeling-over-topic" or low > 0)
    assert gains["facebook"]["seen_in_training"]
    same = space_gain(good.items["space/emobank"], good.items["space/emobank"], seed=0)
    assert same["nearness"]["both_interval"] == [0, 0]


def test_the_example_shows_texts_of_the_encoder_s_own_order_and_no_emoji():
    demo = read_va("demo", None)
    valence = dict(zip(demo.texts, demo.labels[:, 0], strict=True))

    def by_valence(texts):
        angles = [valence.get(text, 0.9) for text in texts]  # the anchor's and its neighbours' in the triplet
        return np.column_stack([np.cos(angles), np.sin(angles)])

    found = nearest_texts(by_valence)
    assert [text["cosine"] for text in found] == sorted((text["cosine"] for text in found), reverse=True)
    assert len(found) == 5 and found[0]["cosine"] == pytest.approx(1)
    tests = {demo.texts[i] for i in demo.rows("test")}
    for text in found:
        if text["text"] in valence:
            assert text["text"] in tests and text["feeling"] == "pleasant" and text["text"].isascii()
    far = nearest_texts(lambda texts: -by_valence(texts) * ([[-1, -1]] + [[1, 1]] * (len(texts) - 1)), 400)
    feelings = [text["feeling"] for text in far if text["text"] in valence]
    assert feelings[0] == "unpleasant" and {"neutral", "pleasant"} <= set(feelings)
