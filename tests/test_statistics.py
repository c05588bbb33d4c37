"""Metrics and their bootstraps against scipy, scikit-learn and loops."""

import numpy as np
import pytest

from carl_hf.evaluation import before_after, finetuning
from carl_hf.evaluation.statistics import (
    absolute_error,
    agreement,
    classification_metrics,
    classification_report,
    concordance,
    few_texts,
    interval,
    multi_label_report,
    one_hot,
    pearson,
    resample_rows,
    resampled_class_metrics,
    spearman,
)

stats = pytest.importorskip("scipy.stats")
metrics = pytest.importorskip("sklearn.metrics")


def test_correlations_equal_scipy_also_in_batches_and_with_ties():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 50)).round(1)  # rounded: ties
    assert pearson(x, y) == pytest.approx([stats.pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert spearman(x, y) == pytest.approx([stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])


def test_concordance_and_error_equal_double_loops():
    """CCC through pairs: cov = sum_ij (x_i - x_j)(y_i - y_j) / 2 N^2, and the variances likewise."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=30), 0.5 * rng.normal(size=30) + 0.3
    covariance = variance_x = variance_y = 0.0
    for i in range(30):
        for j in range(30):
            covariance += (x[i] - x[j]) * (y[i] - y[j]) / 1800
            variance_x += (x[i] - x[j]) ** 2 / 1800
            variance_y += (y[i] - y[j]) ** 2 / 1800
    expected = 2 * covariance / (variance_x + variance_y + (sum(x) / 30 - sum(y) / 30) ** 2)
    assert concordance(x, y) == pytest.approx(expected, abs=1e-12)
    assert concordance(x, x) == pytest.approx(1) and concordance(x, x + 1) < 0.9 and pearson(x, x + 1) > 0.999
    assert absolute_error(x, y) == pytest.approx(sum(abs(a - b) for a, b in zip(x, y, strict=True)) / 30)


def test_undefined_metrics_are_null_with_the_reason():
    found = agreement(np.array([[1.0, 0.2], [1.0, 0.4]]), np.array([[0.0, 0.1], [1.0, 0.9]]), ["valence", "arousal"])
    constant = found["valence"]
    assert constant["pearson"] is None and constant["spearman"] is None
    assert constant["pearson_reason"] == "undefined: the predictions are constant"
    assert constant["ccc"] == 0 and constant["mae"] == 0.5 and "pearson_reason" not in found["arousal"]
    with pytest.raises(ValueError, match="row 1 is not finite"):
        agreement(np.array([[1.0], [np.nan]]), np.zeros((2, 1)), ["valence"])
    with pytest.raises(ValueError, match="one shape"):
        agreement(np.zeros((2, 1)), np.zeros((3, 1)), ["valence"])


def test_resamples_are_paired_and_intervals_skip_the_undefined():
    assert (resample_rows(20, 3) == resample_rows(20, 3)).all() and resample_rows(20, 3).max() < 20
    assert (resample_rows(20, 3) != resample_rows(20, 4)).any()
    values = np.append(np.arange(101.0), np.nan)
    assert interval(values) == pytest.approx([2.5, 97.5]) and interval(np.array([np.nan])) is None


def test_classification_metrics_equal_sklearn():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(4, size=90), rng.integers(3, size=90)  # class 3 is never predicted
    found = classification_metrics(predicted, truth, list("abcd"))
    settings = {"average": "macro", "labels": range(4), "zero_division": 0}
    macro = metrics.precision_recall_fscore_support(truth, predicted, **settings)[:3]
    assert found["accuracy"] == pytest.approx(100 * metrics.accuracy_score(truth, predicted))
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(macro)
    np.testing.assert_array_equal(found["confusion"], metrics.confusion_matrix(truth, predicted))
    with pytest.raises(ValueError, match="from 0 to 1"):
        classification_metrics(predicted, truth, ["a", "b"])
    with pytest.raises(ValueError, match="one length"):
        classification_metrics(predicted[:5], truth, list("abcd"))


def test_bootstraps_equal_loops():
    rng = np.random.default_rng(1)
    rows = np.random.default_rng(5).integers(40, size=(1000, 40))[:20]
    single, several = rng.integers(3, size=(2, 40)), rng.random((2, 40, 3)) < 0.4
    for (truth, predicted), tables in ((single, [one_hot(labels, 3) for labels in single]), (several, several)):
        resampled = resampled_class_metrics(tables[1], tables[0], seed=5)
        for k, r in enumerate(rows):
            f1 = metrics.f1_score(truth[r], predicted[r], average="macro", labels=range(3), zero_division=0)
            assert resampled["f1"][k] == pytest.approx(f1)
            assert resampled["accuracy"][k] == pytest.approx(100 * metrics.accuracy_score(truth[r], predicted[r]))
    report = multi_label_report(several[1], several[0], list("abc"), seed=5)
    each = metrics.f1_score(*several, average=None, zero_division=0)
    assert list(report["f1_per_class"].values()) == pytest.approx(each.tolist())
    assert report["precision"] == pytest.approx(metrics.precision_score(*several, average="macro"))
    assert report["f1_interval"][0] <= report["f1"] <= report["f1_interval"][1]
    assert report["micro_f1"] == pytest.approx(metrics.f1_score(*several, average="micro"))
    rows = np.random.default_rng(5).integers(40, size=(1000, 40))
    resampled = [metrics.f1_score(several[0][r], several[1][r], average="micro") for r in rows]
    assert report["micro_f1_interval"] == pytest.approx(np.percentile(resampled, [2.5, 97.5]).tolist())
    assert classification_report(single[0], single[0], "abc", seed=1)["accuracy_interval"] == [100, 100]
    assert report["smallest_class"] == several[0].sum(0).min()
    found = classification_report(np.array([0, 0, 1]), np.array([0, 0, 1]), "abc", seed=1)
    assert found["f1"] == pytest.approx(2 / 3) and found["smallest_class"] == 0
    assert "(the class counts as F1 0)" in few_texts(0) and "a class has 9 of" in few_texts(9) and not few_texts(10)


def test_a_class_that_a_resample_lacks_counts_as_in_all_texts():
    """With one text a class, a resample lacks a third of the classes: as F1 0, or left out, they would move the
    interval away."""
    truth, predicted = np.arange(10), np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 1])
    whole = metrics.f1_score(truth, predicted, average=None, labels=range(10), zero_division=0)
    rows = np.random.default_rng(5).integers(10, size=(1000, 10))[:20]
    resampled = resampled_class_metrics(one_hot(predicted, 10), one_hot(truth, 10), seed=5)
    for k, r in enumerate(rows):
        present = sorted({*truth[r], *predicted[r]})
        f1 = whole.copy()
        f1[present] = metrics.f1_score(truth[r], predicted[r], average=None, labels=present, zero_division=0)
        assert resampled["f1"][k] == pytest.approx(f1.mean())
    for answers in (predicted, truth):
        found = classification_report(answers, truth, "abcdefghij", seed=5)
        assert found["f1_interval"][0] <= found["f1"] <= found["f1_interval"][1]
    assert found["f1_interval"] == [1, 1]
    nothing = np.zeros((4, 2), dtype=bool)
    assert resampled_class_metrics(nothing, nothing, seed=5)["f1"].max() == 0


def test_rare_classes_that_are_never_found_move_no_interval_upwards():
    truth = np.array([0] * 100 + [1] * 100 + list(range(2, 12)))
    common = np.concatenate([np.random.default_rng(0).permutation(truth[:200]), np.zeros(10, dtype=int)])
    found = classification_report(common, truth, [str(c) for c in range(12)], seed=3)
    assert found["f1_interval"][0] <= found["f1"] <= found["f1_interval"][1] < found["f1"] + 0.02
    names_them = np.concatenate([common[:200], np.roll(truth[200:], 1)])  # each rare class, always wrongly
    resampled = [
        resampled_class_metrics(one_hot(p, 12), one_hot(truth, 12), seed=3)["f1"] for p in (names_them, common)
    ]
    assert np.abs(resampled[1] - resampled[0]).max() < 0.01


def test_a_few_test_texts_allow_no_verdict():
    gain = {name: {"pearson": 2.0, "pearson_interval": [2.0, 2.0]} for name in ("valence", "arousal")}
    for test, validation, message in (
        (29, 30, "own.csv has only 29 different test texts, from which nothing can be concluded."),
        (29, 9, "only 29 different test texts and 9 different validation texts, from"),
        (500, 9, "only 9 different validation texts, from"),
        (30, 30, "improved both beyond chance"),
    ):
        assert message in before_after.verdict(
            {"own.csv": gain}, {"own.csv": {"test": test, "validation": validation}}
        )
    gain = {"accuracy": 50.0, "accuracy_interval": [50.0, 50.0]}
    few, unchosen, enough = (finetuning.verdict(gain, "frozen", *texts) for texts in ((2, 30), (30, 2), (30, 30)))
    assert "only 2 test texts, from" in few and "beats the frozen encoder" in enough
    assert "only 2 validation texts, from" in unchosen


@pytest.mark.parametrize(
    "lows, expected",
    [
        ((0.1, 0.2), "improved both beyond chance"),
        ((0.1, -0.4), "improved valence only and made arousal worse beyond chance"),
        ((-0.1, -0.1), "improved neither beyond chance"),
        ((-0.4, -0.4), "improved neither and made valence and arousal worse beyond chance"),
    ],
)
def test_a_verdict_says_what_became_worse(lows, expected):
    gain = {
        name: {"pearson": low + 0.1, "pearson_interval": [low, low + 0.2]}
        for name, low in zip(("valence", "arousal"), lows, strict=True)
    }
    assert expected in before_after.verdict({"own.csv": gain}, {"own.csv": {"test": 30, "validation": 30}})
