"""Texts with one of valence and arousal: read, mixed, compared in the dimensions that two share, and trained on."""

import logging
import math

import pytest
import torch
from conftest import make_trainer, toy_dataset, without_some_numbers, write_table

from carl_hf import CarlModel, load_va_dataset
from carl_hf.data.mixing import mix_datasets, rows_with_va
from carl_hf.data.streaming import stream_va_dataset
from carl_hf.evaluation.valence_arousal import labels_of
from carl_hf.losses import label_similarity, va_regression_loss

NAN = math.nan
LABELS = [[0.5, -0.2], [0.3, NAN], [NAN, 0.8], [-0.7, NAN], [NAN, NAN], [-0.1, -0.9], [0.0, NAN]]


def test_one_number_is_neither_nearer_nor_farther_on_average_and_a_small_one_says_little():
    va = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-3, 3) / 3
    va[::2, 1] = NAN
    table = label_similarity(va, va)
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        for columns in (slice(0, None, 2), slice(1, None, 2)):
            assert table[rows, columns].mean().abs() < 0.01
    strong, weak, opposite = torch.tensor([[0.9, NAN], [0.02, NAN], [-0.9, NAN]], dtype=torch.float64).unbind()
    three = label_similarity(
        torch.stack([strong, weak, opposite, strong]), torch.stack([strong, weak, opposite, strong])
    )
    assert three[0, 3] > 0.5 > 0.1 > three[0, 1] > 0 and three[0, 2] == -three[0, 3]


def test_regression_is_the_mean_over_known_numbers():
    predicted = torch.linspace(-1, 1, 14, dtype=torch.float64).view(7, 2).requires_grad_()
    loss = va_regression_loss(predicted, torch.tensor(LABELS, dtype=torch.float64))
    squares = [(p - x) ** 2 for row, label in zip(predicted, LABELS, strict=True)
               for p, x in zip(row, label, strict=True) if x == x]  # fmt: skip
    torch.testing.assert_close(loss, sum(squares) / 8)
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert torch.equal(gradient == 0, torch.tensor(LABELS).isnan())
    assert va_regression_loss(predicted, torch.full((7, 2), NAN)).item() == 0


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_files_with_one_column_of_numbers_and_with_empty_cells(kind, tmp_path, caplog):
    stars = write_table(tmp_path / f"stars.{kind}", [{"text": f"review {i}", "stars": 1 + i % 5} for i in range(10)])
    both = write_table(tmp_path / f"both.{kind}", [
        {"text": "a", "valence": 1, "arousal": None}, {"text": "b", "valence": None, "arousal": 5},
        {"text": "c", "valence": 3, "arousal": 2},
    ])  # fmt: skip
    with caplog.at_level(logging.WARNING):
        rated = load_va_dataset(stars, scale=(1, 5), columns={"valence": "stars"})
        mixed = load_va_dataset(both, scale=(1, 5))
    assert rated.column_names == ["text", "valence"] and rated["valence"][:5] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert (
        f"{stars}: 10 of 10 texts have no arousal" in caplog.text and f"{both}: 1 of 3 texts have no v" in caplog.text
    )
    assert mixed["valence"] == [-1.0, None, 0.0] and mixed["arousal"] == [None, 1.0, -0.5]
    joined = mix_datasets([(rated, 1), (mixed, 1)], seed=0)
    assert joined["arousal"] == [None] * 11 + [1.0, -0.5] and rows_with_va(joined)["text"] == ["c"]
    standard = load_va_dataset(stars, scale=(1, 5), columns={"valence": "stars"}, normalization="standardized")
    assert standard["valence"][0] == pytest.approx(-2 / (3 * math.sqrt(2)))  # 1 to 5: mean 3, variance 2
    if kind == "json":
        return
    for path, loaded, columns in ((stars, rated, {"valence": "stars"}), (both, mixed, None)):
        streamed = list(stream_va_dataset([str(path)], scale=(1, 5), columns=columns, shuffle_buffer=1))
        assert streamed == [{"arousal": None, **row} for row in loaded.to_list()]
    together = stream_va_dataset([str(both), str(both)], scale=(1, 5), shuffle_buffer=4)
    assert len(list(together)) == 6


def test_texts_with_valence_alone_train_beside_others_and_each_dimension_has_its_probe(tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    stars = toy_dataset(16, seed=3).remove_columns("arousal")
    train = mix_datasets([(stars, 1), (without_some_numbers(toy_dataset(32)), 1)], seed=0)
    dev = without_some_numbers(toy_dataset(20, seed=8))

    def figures(data, dev):
        model = make_trainer(tmp_path, tokenizer).model
        model = CarlModel.from_encoder(model.encoder, projection_dim=8, heads=["regressor"])
        objectives = ["mccl", "ptd", "regression=1"]
        trainer = make_trainer(
            tmp_path, tokenizer, model=model, data=data, dev=dev, objectives=objectives, probe_texts=40
        )
        before = model.regressor.weight.detach().clone()
        trainer.train()
        return trainer.evaluate(), model.regressor.weight.detach() - before, trainer

    found, change, trainer = figures(train, dev)
    assert change.abs().sum(1).min() > 0 and all(math.isfinite(value) for value in found.values())
    assert found["eval_va_pearson"] == pytest.approx(
        (found["eval_valence_pearson"] + found["eval_arousal_pearson"]) / 2
    )
    predicted = trainer.predict(dev)
    answers, truth = (
        torch.from_numpy(part["valence_arousal"]) for part in (predicted.predictions, predicted.label_ids)
    )
    assert truth.isnan().sum(0).tolist() == [8, 4]
    error = (answers - truth)[~truth.isnan()].square().mean().item()  # over all texts, not a mean of batches
    assert found["eval_regression"] == pytest.approx(error, rel=1e-5)

    found, change, _ = figures(stars, dev)
    assert "eval_va_pearson" not in found and "eval_arousal_pearson" not in found and "eval_valence_pearson" in found
    assert change[0].abs().sum() > 0  # (weight decay changes the other row)


def test_what_needs_both_numbers_says_so(tmp_path, tokenizer):
    stars = toy_dataset(16).remove_columns("arousal")
    with pytest.raises(ValueError, match="lacks valence or arousal.*rows_with_va"):
        labels_of(stars)
    with pytest.raises(ValueError, match="no text has both valence and arousal, or a label"):
        make_trainer(tmp_path, tokenizer, data=stars, objectives=["circular"])
