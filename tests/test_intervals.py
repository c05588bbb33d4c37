"""Intervals around valence and arousal: against a loop, and whether they hold."""

import numpy as np
import pytest
from conftest import tiny_encoder, toy_dataset
from transformers import AutoConfig, AutoModelForSequenceClassification

from carl_hf import CarlModel, export_va_regressor
from carl_hf.encoders.embedding import classifier_outputs
from carl_hf.export.folder import read_record
from carl_hf.export.intervals import conformal_intervals

DIMENSIONS = ("valence", "arousal")


@pytest.mark.parametrize("texts", [9, 10, 25, 301])
def test_the_half_width_is_the_smallest_that_enough_errors_reach(texts):
    rng = np.random.default_rng(texts)
    answers, labels = rng.random((2, texts, 2))
    found = conformal_intervals(answers, labels, DIMENSIONS)
    for k, name in enumerate(DIMENSIONS):
        errors = [abs(a - b) for a, b in zip(answers[:, k], labels[:, k], strict=True)]
        within = [e for e in errors if sum(other <= e for other in errors) >= 0.9 * (texts + 1) - 1e-9]
        assert found[name] == pytest.approx(min(within)) and found["level"] == 0.9
    assert conformal_intervals(answers[:8], labels[:8], DIMENSIONS) is None


def test_nine_in_ten_new_texts_lie_within():
    rng, held = np.random.default_rng(0), []
    for _ in range(20):
        errors = rng.exponential(size=(1300, 2)) * [0.1, 0.02]
        found = conformal_intervals(errors[:300], 0 * errors[:300], DIMENSIONS)
        held.append([(errors[300:, k] <= found[name]).mean() for k, name in enumerate(DIMENSIONS)])
    assert np.all(np.abs(np.mean(held, axis=0) - 0.9) < 0.02)


def test_an_export_keeps_its_intervals_and_counts_what_they_cover(tokenizer, tmp_path):
    pytest.importorskip("sklearn")
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8).eval()
    dev, test, other = toy_dataset(60, seed=1), toy_dataset(50, seed=2), toy_dataset(30, seed=3)
    other = other.map(lambda row: {"valence": 1.0})
    folder = export_va_regressor(
        model, tokenizer, tmp_path / "va", train=toy_dataset(80), dev=dev, test={"toy": test, "other": other},
        corpora=["toy"],
    )  # fmt: skip
    record, loaded = read_record(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    assert record["intervals"] == AutoConfig.from_pretrained(folder).intervals and record["intervals"]["level"] == 0.9

    def errors(data):
        labels = (np.stack([data["valence"], data["arousal"]], axis=1) + 1) / 2
        return np.abs(classifier_outputs(loaded, data["text"], tokenizer).numpy().clip(0, 1) - labels)

    widths = [record["intervals"][name] for name in DIMENSIONS]
    assert ((errors(dev) <= np.array(widths) + 1e-6).sum(0) == 55).all()  # ceil(.9 * 61)
    rows = {(row["dataset"], row["name"]): row["value"] for row in record["results"] if row["metric"] == "coverage"}
    for corpus, data in (("toy", test), ("other", other)):
        for k, name in enumerate(DIMENSIONS):
            assert rows[corpus, f"{name}, within the 90 % interval"] == (errors(data)[:, k] <= widths[k]).mean()
    card = (folder / "README.md").read_text()
    assert f"within {widths[0]:.3f} (valence) and {widths[1]:.3f} (arousal) of the output" in card
    assert "like those of toy" in card

    again = export_va_regressor(loaded, tokenizer, tmp_path / "again", test={"toy": test})  # as it is
    assert read_record(again)["intervals"] == record["intervals"]
    few = export_va_regressor(model, tokenizer, tmp_path / "few", train=toy_dataset(30))  # 3 development texts
    assert read_record(few)["intervals"] is None and "How sure" not in (few / "README.md").read_text()
