import numpy as np
import pytest
from datasets import Dataset

from carl_hf.export.bias import EXCHANGES, measure_bias
from carl_hf.export.task_heads import calibration_error, class_probabilities, fit_temperature, with_development


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("truth", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_the_logits_is_found_again(truth, several):
    pytest.importorskip("scipy")
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 4))  # of labels drawn from them; then they are sharpened or dulled
    probabilities = class_probabilities(logits, multi_label=several)
    if several:
        labels = rng.random(probabilities.shape) < probabilities
    else:
        labels = (probabilities.cumsum(1) > rng.random((len(logits), 1))).argmax(1)
    found = fit_temperature(logits * truth, labels)
    assert found == pytest.approx(truth, rel=0.05)
    honest = calibration_error(class_probabilities(logits * truth / found, multi_label=several), labels)
    assert honest < 0.02
    if truth == 3.0:
        assert calibration_error(class_probabilities(logits * truth, multi_label=several), labels) > 3 * honest


def test_calibration_error_equals_a_loop_over_bins():
    rng = np.random.default_rng(1)
    probabilities = class_probabilities(rng.normal(size=(200, 3)), multi_label=False)
    labels = rng.integers(3, size=200)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = [i for i in range(200) if low <= probabilities[i].max() < low + 1 / 15]
        if inside:
            right = np.mean([probabilities[i].argmax() == labels[i] for i in inside])
            expected += len(inside) / 200 * abs(np.mean([probabilities[i].max() for i in inside]) - right)
    assert calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-12)
    assert class_probabilities(np.array([[0.0, np.log(3)]]), multi_label=False)[0] == pytest.approx([0.25, 0.75])
    assert class_probabilities(np.array([[0.0, np.log(3)]]), multi_label=True)[0] == pytest.approx([0.5, 0.75])


def test_bias_is_the_shift_that_was_built_in():
    """A predictor that adds .3 for "She" and nothing else, and one that knows no group at all."""

    def partial(texts):
        return np.array([[0.3 * text.startswith("She ") + 0.01 * len(text.split()), 0.5] for text in texts])

    found = measure_bias(partial, ["valence", "arousal"])
    assert set(found) == set(EXCHANGES)
    pronouns = found["pronouns"]["valence"]
    assert pronouns["shift"]["she"] == pytest.approx([0.2, 0], abs=1e-9)
    assert pronouns["shift"]["he"] == pytest.approx([-0.1, 0], abs=1e-9)
    assert pronouns["largest"] == pytest.approx(0.3)
    for kind, outputs in found.items():
        assert outputs["arousal"]["largest"] == 0
        if kind not in ("pronouns", "religion", "disability"):  # "not religious" and "not disabled" are two words
            assert outputs["valence"]["largest"] == pytest.approx(0)


def test_a_text_with_several_rows_is_in_one_part_of_a_draw():
    texts = [f"joy {i}" for i in range(40)]
    rows = Dataset.from_dict({"text": [*texts, *map(str.upper, texts)], "valence": [0.0] * 80, "arousal": [0.0] * 80})
    train, dev = with_development(rows, None, seed=0)
    parts = [{text.lower() for text in part["text"]} for part in (train, dev)]
    assert len(train) + len(dev) == 80 and len(parts[1]) == 4 and not parts[0] & parts[1]
    for few, message in ((rows.select(range(19)), "needs at least 20 texts with labels, got 19"),
                         (rows.select([3, 43] * 20), "all the same")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            with_development(few, None, seed=0)
    with pytest.raises(ValueError, match="dev is empty"):
        with_development(rows, rows.select([]), seed=0)
