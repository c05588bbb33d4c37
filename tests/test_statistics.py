import numpy as np
import pytest

from carl_hf.evaluation.statistics import (
    absolute_error,
    agreement,
    concordance,
    interval,
    pearson,
    resample_rows,
    spearman,
)

stats = pytest.importorskip("scipy.stats")


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


def test_undefined_figures_are_null_with_the_reason():
    figures = agreement(np.array([[1.0, 0.2], [1.0, 0.4]]), np.array([[0.0, 0.1], [1.0, 0.9]]), ["valence", "arousal"])
    constant = figures["valence"]
    assert constant["pearson"] is None and constant["spearman"] is None
    assert constant["pearson_reason"] == "undefined: the predictions are constant"
    assert constant["ccc"] == 0 and constant["mae"] == 0.5 and "pearson_reason" not in figures["arousal"]
    with pytest.raises(ValueError, match="row 1 is not finite"):
        agreement(np.array([[1.0], [np.nan]]), np.zeros((2, 1)), ["valence"])
    with pytest.raises(ValueError, match="one shape"):
        agreement(np.zeros((2, 1)), np.zeros((3, 1)), ["valence"])


def test_resamples_are_paired_and_intervals_skip_the_undefined():
    assert (resample_rows(20, 3, 5) == resample_rows(20, 3, 5)).all() and resample_rows(20, 3, 5).max() < 20
    assert (resample_rows(20, 3, 5) != resample_rows(20, 4, 5)).any()
    values = np.append(np.arange(101.0), np.nan)
    assert interval(values) == pytest.approx([2.5, 97.5]) and interval(np.array([np.nan])) is None
