import numpy as np
import pytest

from carl_hf.evaluation.valence_arousal import labels_of, pearson, ridge_predictions, va_gain, va_metrics


def test_pearson_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50))
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert pearson(np.ones(5), np.arange(5.0)) == -1


def test_ridge_equals_its_closed_form_and_finds_a_linear_relation():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(8, 2))
    x = {
        part: rng.normal(size=(n, 8)) * np.arange(1, 9) + 3 for part, n in (("train", 200), ("dev", 80), ("test", 60))
    }
    y = {part: value @ weights + 0.1 * rng.normal(size=(len(value), 2)) for part, value in x.items()}
    found = ridge_predictions(x["train"], y["train"], x["dev"], y["dev"], x["test"])
    assert pearson(found[:, 0], y["test"][:, 0]) > 0.999 and pearson(found[:, 1], y["test"][:, 1]) > 0.999

    scaled = {part: (value - x["train"].mean(0)) / x["train"].std(0) for part, value in x.items()}
    closed = []
    for alpha in (10.0**k for k in range(-1, 6)):
        centred = y["train"][:, 0] - y["train"][:, 0].mean()
        coefficients = np.linalg.solve(
            scaled["train"].T @ scaled["train"] + alpha * np.eye(8), scaled["train"].T @ centred
        )
        closed.append([scaled[part] @ coefficients + y["train"][:, 0].mean() for part in ("dev", "test")])
    best = max(closed, key=lambda parts: pearson(parts[0], y["dev"][:, 0]))
    np.testing.assert_allclose(found[:, 0], best[1], atol=1e-8)


def test_metrics_and_gain_by_hand_and_by_loops():
    rng = np.random.default_rng(2)
    truth = rng.uniform(-1, 1, size=(120, 2))
    weak, strong = truth + rng.normal(size=truth.shape), truth + 0.2 * rng.normal(size=truth.shape)
    metrics = va_metrics(strong, truth, seed=3, resamples=300)
    assert metrics["arousal"]["mae"] == pytest.approx(
        sum(abs(a - b) for a, b in zip(strong[:, 1], truth[:, 1], strict=True)) / 120
    )
    rows = np.random.default_rng(3).integers(120, size=(300, 120))
    resampled = [np.corrcoef(strong[r, 0], truth[r, 0])[0, 1] for r in rows]
    assert metrics["valence"]["pearson_interval"] == pytest.approx(np.quantile(resampled, [0.025, 0.975]).tolist())
    gain = va_gain(weak, strong, truth, seed=3)
    assert gain["valence"]["pearson_interval"][0] > 0
    none = va_gain(weak, weak, truth, seed=3)
    assert none["valence"] == {"pearson": 0.0, "pearson_interval": [0.0, 0.0]}


def test_labels_of_a_dataset():
    np.testing.assert_array_equal(labels_of({"valence": [1, 2], "arousal": [3, 4]}), [[1, 3], [2, 4]])
