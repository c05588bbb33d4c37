import numpy as np
import pytest

from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.splits import split_rows, with_validation
from carl_hf.evaluation.emotion import few_shot, measure_emotion
from carl_hf.evaluation.probes import best_threshold, fit_logistic, fit_multi_label, fit_ridge

linear_model = pytest.importorskip("sklearn.linear_model")
preprocessing = pytest.importorskip("sklearn.preprocessing")


def clusters(size=300, classes=3, spread=0.3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=size)
    return np.eye(6)[labels] + spread * rng.normal(size=(size, 6)), labels


def test_probes_find_clusters_and_guess_without_them():
    x, y = clusters()
    probe, _ = fit_logistic(x[:200], y[:200], x[200:240], y[200:240])
    assert (probe(x[240:]).argmax(1) == y[240:]).mean() > 0.95
    noise = np.random.default_rng(3).normal(size=x.shape)
    probe, _ = fit_logistic(noise[:200], y[:200], noise[200:240], y[200:240])
    assert (probe(noise[240:]).argmax(1) == y[240:]).mean() < 0.6  # chance is 1/3, and 60 texts
    table = np.stack([y == 0, y != 2], axis=1)
    probe, thresholds = fit_multi_label(x[:200], table[:200], x[200:240], table[200:240])
    assert ((probe(x[240:]) >= thresholds) == table[240:]).mean() > 0.95
    odd = np.column_stack([table, np.zeros(len(y), bool), np.ones(len(y), bool)])  # classes of no text and of all
    probe, thresholds = fit_multi_label(x[:200], odd[:200], x[200:240], odd[200:240])
    assert np.array_equal((probe(x[240:]) >= thresholds)[:, 2:], odd[240:, 2:])
    few = few_shot(x[:200], y[:200], x[240:], y[240:], 8, seed=0)
    assert few["accuracy_mean"] > 80 and few["accuracy_std"] > 0 and few["draws"] == 10
    none = few_shot(x[:20], y[:20], x[240:], y[240:], 15, seed=0)
    assert none["accuracy_mean"] is None and "training texts only" in none["accuracy_mean_reason"]


def test_multi_label_probes_are_scikit_learn_s_of_each_class_and_strength_alone():
    """Each strength begins where the one before has ended, and ends where it would by itself."""
    x, y = clusters(size=600, spread=0.9)
    train, dev = slice(0, 400), slice(400, None)
    table = np.stack([y == 0, y != 2, (x[:, 3] > 0.4) & (y == 1)], axis=1)
    probe, thresholds = fit_multi_label(x[train], table[train], x[dev], table[dev])
    scaler = preprocessing.StandardScaler().fit(x[train])
    chosen = set()
    for c in range(3):
        fits = [
            linear_model.LogisticRegression(C=strength, tol=1e-8).fit(scaler.transform(x[train]), table[train, c])
            for strength in (1e-3, 1e-2, 1e-1, 1.0)
        ]
        scores = [fit.decision_function(scaler.transform(x[dev])) for fit in fits]
        f1 = [best_threshold(score, table[dev, c]) for score in scores]
        best = int(np.argmax([value for value, _ in f1]))
        chosen.add(best)
        assert np.abs(probe(x[dev])[:, c] - scores[best]).max() < 5e-3
        assert abs(thresholds[c] - f1[best][1]) < 5e-3
    assert len(chosen) > 1  # neither the first nor the last fit alone


@pytest.mark.parametrize("classes", [2, 3])
def test_probes_are_scikit_learn_s_on_standardised_embeddings(classes):
    """The folded weights give, on raw embeddings, what the pipeline of scaler and model gives."""
    x, y = clusters(classes=classes)
    x = 5 * x + np.arange(6)
    train, dev, test = slice(0, 200), slice(200, 240), slice(240, None)
    scaler = preprocessing.StandardScaler().fit(x[train])
    probe, strength = fit_logistic(x[train], y[train], x[dev], y[dev])
    model = linear_model.LogisticRegression(C=strength, max_iter=1000).fit(scaler.transform(x[train]), y[train])
    logits = probe(x[test])
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, model.predict_proba(scaler.transform(x[test])), atol=1e-6)
    values = x @ np.random.default_rng(1).normal(size=(6, 2)) + 3
    ridge = fit_ridge(x[train], values[train], x[dev], values[dev])
    np.testing.assert_allclose(ridge(x[test]), values[test], atol=0.05)  # a linear truth is found again
    # a class that no training text has is never chosen
    probe, _ = fit_logistic(x[train], 2 * y[train], x[dev], 2 * y[dev])
    assert set(probe(x[test]).argmax(1)) <= {0, 2, 4}


def test_splits_are_disjoint_stratified_and_the_corpus_s_own():
    _, labels = clusters()
    texts = [str(i) for i in range(300)]
    rows = split_rows(ClassCorpus(texts, labels, list("abc"), None))
    assert sorted(np.concatenate(rows)) == list(range(300)) and [len(part) for part in rows[1:]] == [30, 30]
    for part in rows[1:]:
        assert np.abs(np.bincount(labels[part]) / 30 - np.bincount(labels) / 300).max() < 0.05
    own = np.array(["train"] * 250 + ["test"] * 50)
    train, dev, test = split_rows(ClassCorpus(texts, labels, list("abc"), own))
    assert (test == np.arange(250, 300)).all() and len(dev) == 25 and not set(train) & set(dev)


@pytest.mark.parametrize("own", [False, True])
def test_all_rows_of_a_text_are_in_one_drawn_part(own):
    """A file may have a row for each rater: validation must not be chosen by texts that were trained on."""
    texts = [f"Text {i % 60}" if i < 60 else f"text  {i % 60} " for i in range(180)]
    split = np.where(np.arange(180) % 60 < 50, "train", "test").astype(object) if own else None
    corpus = ClassCorpus(texts, np.random.default_rng(0).integers(2, size=180), ["a", "b"], split)
    parts = split_rows(corpus)
    assert sorted(np.concatenate(parts)) == list(range(180))
    numbers = [{int(i) % 60 for i in part} for part in parts]
    assert [len(part) for part in numbers] == ([45, 5, 10] if own else [48, 6, 6]) and sum(map(len, numbers)) == 60
    if own:
        drawn = with_validation(split, texts)
        assert {i % 60 for i in np.flatnonzero(drawn == "validation")}.isdisjoint(
            {i % 60 for i in np.flatnonzero(drawn == "train")}
        )
        assert (drawn == "validation").sum() == 15


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("own", [False, True])
def test_a_class_of_later_rows_alone_is_in_training_too(rows, own):
    """The first row of these texts has another class."""
    for position in range(0, 50, 7):
        later = [(position + 16 * k) % 50 for k in range(rows)]
        texts = [f"text {i}" for i in [*range(60), *later]]
        labels = np.append(np.arange(60) % 2, np.full(rows, 2))
        split = np.array(["train"] * 50 + ["test"] * 10 + ["train"] * rows, dtype=object) if own else None
        corpus = ClassCorpus(texts, labels, ["a", "b", "c"], split)
        train, validation, _ = split_rows(corpus)
        assert 2 in labels[train] and (rows == 1 or 2 in labels[validation])


@pytest.mark.parametrize("own", [False, True])
def test_a_class_of_three_texts_has_one_in_every_part_that_is_drawn(own):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 100, 3]))
    split = None
    if own:  # a training and a test split: validation is drawn
        split = np.full(203, "train", dtype=object)
        split[[*np.flatnonzero(labels < 2)[:20], np.flatnonzero(labels == 2)[0]]] = "test"
    rows = split_rows(ClassCorpus([str(i) for i in range(203)], labels, list("abc"), split))
    assert sorted(np.concatenate(rows)) == list(range(203))
    assert [int((labels[part] == 2).sum()) for part in rows] == [1, 1, 1]
    if own:
        assert (rows[2] == np.flatnonzero(split == "test")).all()


def test_a_corpus_is_measured():
    x, y = clusters()
    corpus = ClassCorpus([str(i) for i in range(300)], y, ["joy", "fear", "anger"], None)
    report, items = measure_emotion(lambda texts: x[[int(t) for t in texts]], corpus, seed=0, shots=(4,))
    assert report["accuracy"] == 100 * (items["predictions"] == items["references"]).mean()
    assert set(report["few_shot"]) == {"4"} and report["classes"] == ["joy", "fear", "anger"]
