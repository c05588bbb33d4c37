import numpy as np
import pytest

from carl_hf.data.labelled import VaCorpus
from carl_hf.evaluation.statistics import pearson
from carl_hf.evaluation.valence_arousal import (
    labels_of,
    measure_corpus,
    measure_head,
    measure_transfer,
    ridge_predictions,
    seeded_folds,
    va_gain,
    va_metrics,
)

pytest.importorskip("sklearn")


def test_ridge_equals_its_closed_form_and_finds_a_linear_relation():
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(8, 2))
    x = {
        name: rng.normal(size=(n, 8)) * np.arange(1, 9) + 3 for name, n in (("train", 200), ("dev", 80), ("test", 60))
    }
    y = {name: value @ weights + 0.1 * rng.normal(size=(len(value), 2)) for name, value in x.items()}
    found = ridge_predictions(x["train"], y["train"], x["dev"], y["dev"], x["test"])
    assert (pearson(found.T, y["test"].T) > 0.999).all()

    scaled = {name: (value - x["train"].mean(0)) / x["train"].std(0) for name, value in x.items()}
    z, mean = scaled["train"], y["train"][:, 0].mean()
    closed = []
    for alpha in (10.0**k for k in range(-1, 6)):
        coefficients = np.linalg.solve(z.T @ z + alpha * np.eye(8), z.T @ (y["train"][:, 0] - mean))
        closed.append([scaled[name] @ coefficients + mean for name in ("dev", "test")])
    best = max(closed, key=lambda predicted: pearson(predicted[0], y["dev"][:, 0]))
    np.testing.assert_allclose(found[:, 0], best[1], atol=1e-8)


def test_metrics_and_gain_by_loops():
    rng = np.random.default_rng(2)
    truth = rng.uniform(-1, 1, size=(120, 3))
    weak, strong = truth + rng.normal(size=truth.shape), truth + 0.2 * rng.normal(size=truth.shape)
    constant = np.array([0.3, 0.4, -0.5])
    names = ("valence", "arousal", "dominance")
    metrics = va_metrics(strong, truth, constant=constant, dimensions=names, seed=3)
    rows = np.random.default_rng(3).integers(120, size=(1000, 120))
    for k, name in enumerate(names):
        resampled = [np.corrcoef(strong[r, k], truth[r, k])[0, 1] for r in rows]
        assert metrics[name]["pearson_interval"] == pytest.approx(np.quantile(resampled, [0.025, 0.975]).tolist())
        assert metrics[name]["constant"]["mae"] == pytest.approx(sum(abs(constant[k] - t) for t in truth[:, k]) / 120)
        assert metrics[name]["constant"]["pearson"] is None
        assert metrics[name]["constant"]["ccc"] == pytest.approx(0, abs=1e-12)
    gain = va_gain(weak, strong, truth, dimensions=names, seed=3)
    assert gain["dominance"]["pearson_interval"][0] > 0
    none = va_gain(weak, weak, truth, dimensions=names, seed=3)
    assert none["valence"] == {"pearson": 0.0, "pearson_interval": [0.0, 0.0]}
    undefined = va_gain(np.zeros_like(truth), weak, truth, dimensions=names, seed=3)
    assert undefined["valence"]["pearson"] is None and undefined["valence"]["pearson_interval"] is None


def test_angle_and_intensity_errors_by_hand():
    truth = np.array([[1.0, 0.0], [0.0, 0.5], [-0.5, 0.0], [0.0, 0.0]])
    predicted = np.array([[0.0, 1.0], [0.0, 0.3], [-0.3, -1e-9], [0.3, 0.4]])
    metrics = va_metrics(predicted, truth, constant=np.array([1.0, 0.0]), seed=0)
    # 90, 0, and a step across the cut of arctan2, which is no 360 degrees; the label (0, 0) has no angle
    assert metrics["angle_error"]["degrees"] == pytest.approx((90 + 0 + 0) / 3, abs=1e-5)
    assert metrics["angle_error"]["constant"] == pytest.approx((0 + 90 + 180) / 3)
    assert metrics["intensity_error"]["mae"] == pytest.approx((0 + 0.2 + 0.2 + 0.5) / 4)
    assert metrics["intensity_error"]["constant"] == pytest.approx((0 + 0.5 + 0.5 + 1) / 4)
    low, high = metrics["angle_error"]["degrees_interval"]
    assert 0 <= low <= 30 <= high <= 90


def linear_corpus(size=200, split=None, seed=0, noise=0.05):
    """Texts whose letters are the features, and an encoder that reads them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(size, 4))
    labels = (features @ np.array([[0.2, 0.0], [0.0, 0.2], [0.1, -0.1], [0.0, 0.0]])).clip(-1, 1)
    texts = [f"{seed}-{i}" for i in range(size)]
    table = dict(zip(texts, features + noise * rng.normal(size=features.shape), strict=True))
    corpus = VaCorpus(texts, labels, ("valence", "arousal"), None if split is None else np.array(split))
    return corpus, lambda asked: np.stack([table[text] for text in asked])


def test_folds_predict_every_text_once_by_probes_that_have_not_seen_it():
    folds = seeded_folds(53, seed=1)
    assert len(folds) == 5 and sorted(np.concatenate([test for _, _, test in folds])) == list(range(53))
    for rows in folds:
        assert sorted(np.concatenate(rows)) == list(range(53))
    corpus, encode = linear_corpus()
    metrics, items = measure_corpus(encode, corpus, seed=1)
    assert metrics["valence"]["pearson"] > 0.9 and metrics["texts"] == 200
    # a text's own label must not reach its prediction
    changed = corpus.labels.copy()
    changed[7] = [-1, 1]
    _, other = measure_corpus(encode, VaCorpus(corpus.texts, changed, corpus.dimensions, None), seed=1)
    np.testing.assert_array_equal(items["predictions"][7], other["predictions"][7])
    assert (items["predictions"] != other["predictions"]).any()


def test_official_splits_transfer_and_heads():
    corpus, encode = linear_corpus(split=["train"] * 140 + ["validation"] * 30 + ["test"] * 30)
    metrics, items = measure_corpus(encode, corpus, seed=1)
    assert metrics["texts"] == 30 and metrics["protocol"] == "official splits"
    assert items["references"].shape == (30, 2)
    other, encode_other = linear_corpus(seed=5)

    def both(texts):
        return np.stack([(encode if t.startswith("0-") else encode_other)([t])[0] for t in texts])

    for source, target, texts in ((corpus, other, 200), (other, corpus, 30)):
        metrics, _ = measure_transfer(both, source, target, seed=1)
        assert metrics["texts"] == texts and metrics["arousal"]["pearson"] > 0.9
    head, _ = measure_head(lambda texts: corpus.labels[[corpus.texts.index(t) for t in texts]], corpus, seed=1)
    assert head["valence"]["mae"] == 0 and head["texts"] == 30
    np.testing.assert_array_equal(labels_of({"valence": [0, 1], "arousal": [-1, 0.5]}), [[0, -1], [1, 0.5]])
    with pytest.raises(ValueError, match=r"outside \[-1, 1\]"):
        labels_of({"valence": [0, 2], "arousal": [0, 1]})
