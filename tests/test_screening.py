"""Main effects of a screening design against the coefficients of a linear model that is known."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks" / "studies"
ROW = [1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0]


@pytest.fixture
def screening(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import screening

    yield screening
    sys.modules.pop("screening", None)


def design():
    return np.array([[0] * 11] + [ROW[-n:] + ROW[:-n] for n in range(11)])


def test_effects_are_the_coefficients_of_a_linear_model(screening):
    runs, true = design(), np.array([3.0, -1.5, 0.5] + [0.0] * 8)
    settings = [{f"s{n}": ("off", "on")[high] for n, high in enumerate(run)} | {"same": 1} for run in runs]
    noise = np.random.default_rng(0).normal(scale=0.1, size=12)
    effects = screening.main_effects(settings, [{"score": y} for y in 10 + runs @ true + noise])
    assert [e.setting for e in effects] == [f"s{n}" for n in range(11)]
    assert {(e.low, e.high) for e in effects} == {("off", "on")}
    least_squares = np.linalg.lstsq(np.c_[np.ones(12), runs], 10 + runs @ true + noise, rcond=None)[0][1:]
    assert [e.gains["score"] for e in effects] == pytest.approx(least_squares)


def test_the_error_leaves_out_what_is_real(screening):
    # sizes 1 to 6 and 50: median 4, so what exceeds 2.5 * 1.5 * 4 = 15 goes; 1.5 times the median of the others
    assert screening.lenth_error([1, -2, 3, -4, 5, 6, -50]) == pytest.approx(1.5 * 3.5)
    assert screening.lenth_margin(9) == pytest.approx(3.182, abs=1e-3)  # Student's t with 3 degrees, from a table


def test_settings_that_change_together_have_one_effect_and_unbalanced_ones_none(screening):
    settings = [{"a": 0.5, "b": [1], "c": 1}, {"a": 2.0, "b": [1, 2], "c": 1}, {"a": 0.5, "b": [1], "c": 2},
                {"a": 2.0, "b": [1, 2], "c": 1}]  # fmt: skip
    (effect,) = screening.main_effects(settings, [{"score": y} for y in (1, 2, 3, 6)])
    assert (effect.setting, effect.low, effect.high) == ("a, b", "0.5, 1", "2, 1 + 2")
    assert effect.gains == {"score": 2.0}


def test_settings_that_cannot_be_told_apart_are_refused(screening):
    runs = [(0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (1, 1)]
    with pytest.raises(ValueError, match="does not tell b from another"):
        screening.main_effects([{"a": a, "b": b} for a, b in runs], [{"score": 0.0}] * 6)


def test_a_recipe_in_one_level(screening):
    recipe = {"training": {"objectives": ["mccl", "circular=2"], "learning_rate": 0.1}, "pooling": "cls"}
    assert screening.flat(recipe) == {
        "pooling": "cls", "learning_rate": 0.1, "weight of mccl": 0.8, "weight of circular": 2.0
    }  # fmt: skip
