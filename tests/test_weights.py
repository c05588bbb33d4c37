"""Weights of texts in the losses and through training; weights from the agreement of raters."""

import functools
import json
import logging
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_trainer, tiny_encoder, toy_dataset, weighted, without_some_numbers
from datasets import Dataset
from transformers import set_seed

from carl_hf import CarlDataCollator, CarlModel, load_va_dataset
from carl_hf.commands.pretrain import PretrainArguments
from carl_hf.commands.pretrain_data import PretrainData
from carl_hf.data import agreement_weights, mix_datasets
from carl_hf.data.loading import NoRatingsError, find_bad_rows
from carl_hf.data.mixing import check_dataset
from carl_hf.data.streaming import stream_va_dataset
from carl_hf.losses import (
    circular_loss,
    class_cross_entropy,
    mccl_loss,
    proxy_anchor_loss,
    rank_n_contrast_loss,
    supervised_contrastive_loss,
    va_regression_loss,
)

NAN = math.nan
VA = torch.tensor([[0.5, -0.2], [0.3, NAN], [NAN, 0.8], [-0.7, 0.1], [NAN, NAN], [-0.1, -0.9]], dtype=torch.float64)
CLASSES = torch.tensor([0, 1, 0, -1, 1, 0])
WEIGHTS = torch.tensor([1.0, 2, 3, 1, 2, 2], dtype=torch.float64)
OPTIONS = {"temperature": 0.2, "label_temperature": 0.3}


def numbers(rows, columns, seed=0):
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


Z, TARGET, PROXIES = numbers(6, 4), numbers(6, 4, 1), numbers(2, 4, 2)
ANGLES = torch.tensor([0.1, 2.0, NAN, 4.0, 1.0, 5.0], dtype=torch.float64)
LOSSES = {
    "mccl": lambda z, w: mccl_loss(z, TARGET.to(z), VA, VA, weight_G=w, **OPTIONS),
    "regression": lambda z, w: va_regression_loss(z[:, :2], VA, w),
    "rank_n_contrast": lambda z, w: rank_n_contrast_loss(z, VA, weight_B=w),
    "circular": lambda z, w: circular_loss(z, ANGLES, weight_B=w),
    "supcon": lambda z, w: supervised_contrastive_loss(z, CLASSES, weight_B=w),
    "cross_entropy": lambda z, w: class_cross_entropy(z[:, :2], CLASSES, weight_B=w),
    "proxy_anchor": lambda z, w: proxy_anchor_loss(z, CLASSES, PROXIES.to(z), weight_B=w),
}


@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_one_change_no_bit_and_a_common_factor_nothing(name):
    for z in (Z, Z.float()):
        z, loss = z.clone().requires_grad_(), LOSSES[name]
        plain, ones = (loss(z, w) for w in (None, torch.ones(6)))
        assert torch.equal(plain, ones)
        assert torch.equal(*(torch.autograd.grad(value, z)[0] for value in (plain, ones)))
    if name != "proxy_anchor":
        torch.testing.assert_close(LOSSES[name](Z, 7 * WEIGHTS), LOSSES[name](Z, WEIGHTS))
        assert LOSSES[name](Z, WEIGHTS) != LOSSES[name](Z, None)


@pytest.mark.parametrize("name", ["regression", "cross_entropy", "proxy_anchor"])
def test_a_text_of_weight_two_is_two_texts(name):
    again = torch.repeat_interleave(torch.arange(6), WEIGHTS.long())
    twice = {
        "regression": lambda z: va_regression_loss(z[:, :2], VA[again]),
        "cross_entropy": lambda z: class_cross_entropy(z[:, :2], CLASSES[again]),
        "proxy_anchor": lambda z: proxy_anchor_loss(z, CLASSES[again], PROXIES),
    }[name]
    z = Z.clone().requires_grad_()
    found, expected = LOSSES[name](z, WEIGHTS), twice(z[again])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z)[0] for loss in (found, expected)))


def test_pairs_have_the_product_and_anchors_their_own_weight():
    unit = Z / Z.norm(dim=1, keepdim=True)
    known = [i for i in range(6) if not ANGLES[i].isnan()]
    pairs = [(i, j) for i in known for j in known if i < j]
    error = [(unit[i] @ unit[j] - (ANGLES[i] - ANGLES[j]).cos()) ** 2 for i, j in pairs]
    products = [WEIGHTS[i] * WEIGHTS[j] for i, j in pairs]
    expected = sum(p * e for p, e in zip(products, error, strict=True)) / sum(products)
    torch.testing.assert_close(LOSSES["circular"](Z, WEIGHTS), expected)

    of_class = {c: [i for i in range(6) if CLASSES[i] == c] for c in (0, 1)}
    total = weight = 0.0
    for c, members in of_class.items():
        for i in members:
            negatives = sum((unit[i] @ unit[n] / 0.05).exp() for n in of_class[1 - c])
            terms = [(unit[i] @ unit[p] / 0.05).exp() for p in members if p != i]
            total += WEIGHTS[i] * sum(-(term / (term + negatives)).log() for term in terms) / len(terms)
            weight += WEIGHTS[i]
    torch.testing.assert_close(LOSSES["supcon"](Z, WEIGHTS), total / weight)

    whole = VA[[0, 3, 5]]
    each = [rank_n_contrast_loss(Z[:3], whole, weight_B=torch.eye(3)[i].double() + 1e-14) for i in range(3)]
    found = rank_n_contrast_loss(Z[:3], whole, weight_B=WEIGHTS[:3])
    torch.testing.assert_close(found, sum(w * e for w, e in zip(WEIGHTS[:3], each, strict=True)) / WEIGHTS[:3].sum())
    torch.testing.assert_close(sum(each) / 3, rank_n_contrast_loss(Z[:3], whole))


def test_a_training_with_weights_counts_texts_so(tmp_path, tokenizer):
    def train(data, **settings):
        set_seed(0)
        encoder = tiny_encoder(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = CarlModel.from_encoder(encoder, projection_dim=8, heads=["regressor"])
        trainer = make_trainer(tmp_path, tokenizer, model=model, data=data, objectives=["regression=1"], **settings)
        trainer.train()
        return trainer, [h["loss"] for h in trainer.state.log_history if "loss" in h]

    plain = toy_dataset(16)
    assert train(plain)[1] == train(plain.add_column("weight", [1.0] * 16))[1]
    double = plain.select(range(8)).add_column("weight", [2.0] * 4 + [1.0] * 4)
    one_batch = {"max_steps": 1, "train_sampling_strategy": "sequential"}
    _, (heavy,) = train(double, **one_batch)
    repeated = plain.select([0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7])
    _, (twice,) = train(repeated, per_device_train_batch_size=12, **one_batch)
    assert heavy == pytest.approx(twice, rel=1e-5)

    dev = weighted(without_some_numbers(toy_dataset(20, seed=5)))
    trainer, _ = train(weighted(plain))
    predicted = trainer.predict(dev)
    answers, truth = (part["valence_arousal"] for part in (predicted.predictions, predicted.label_ids))
    weights = np.array([1.0 if w is None else w for w in dev["weight"]])[:, np.newaxis] * ~np.isnan(truth)
    expected = (weights * np.nan_to_num(answers - truth) ** 2).sum() / weights.sum()
    assert trainer.evaluate(dev)["eval_regression"] == pytest.approx(expected, rel=1e-5)


def test_a_column_of_weights_is_read_checked_and_mixed(tmp_path, tokenizer, caplog):
    path = tmp_path / "own.csv"
    path.write_text("text,valence,arousal,weight\na,1,1,0.5\nb,2,2,\nc,3,3,2\n")
    with caplog.at_level(logging.WARNING):
        own = load_va_dataset(path, scale=(1, 5))
    assert own["weight"] == [0.5, None, 2.0] and "own.csv: texts are weighted, by 0.5 to 2" in caplog.text
    assert list(stream_va_dataset([str(path)], scale=(1, 5), shuffle_buffer=1)) == own.to_list()
    named = load_va_dataset(path, scale=(1, 5), columns={"weight": "arousal"})  # arousal is missing then
    assert named["weight"] == [1.0, 2.0, 3.0] and "arousal" not in named.column_names
    mixed = mix_datasets([(own, 1), (toy_dataset(2), 1)], seed=0)
    assert mixed["weight"] == [0.5, None, 2.0, None, None]
    assert CarlDataCollator(tokenizer)(list(own))["weight"].tolist() == [0.5, 1.0, 2.0]
    path.write_text("text,valence,arousal,weight\na,1,1,1\nb,2,2,0\nc,3,3,inf\nd,3,3,-1\n")
    assert [(row.number, row.reason) for row in find_bad_rows(path, scale=(1, 5))] == [
        (2, "weight is not positive"), (3, "weight is no number"), (4, "weight is not positive"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="row 2: column 'weight' holds 0: weights are greater than 0"):
        load_va_dataset(path, scale=(1, 5))
    with pytest.raises(ValueError, match="train_dataset, row 1: column 'weight' holds -1"):
        check_dataset(
            Dataset.from_dict({"text": ["a", "b"], "valence": [0.0] * 2, "weight": [1, -1]}), "train_dataset"
        )
    with pytest.raises(ValueError, match="The weight -1 of the text 'a' must be a positive number"):
        CarlDataCollator(tokenizer)([{"text": "a", "weight": -1}])


# mean, deviation and number of ratings, by hand from the ratings 1 3 / 3 3 3 3 / 5 5 5 1
RATINGS = {"valence": [2.0, 3.0, 4.0], "valence_sd": [1.0, 0.0, math.sqrt(3)], "raters": [2, 4, 4]}


def test_agreement_weights_are_reliabilities():
    pooled = (2 * 1 + 4 * 0 + 4 * 3) / (1 + 3 + 3)
    errors = [(1 + pooled / 2) / 2, (pooled / 4) / 4, (3 + pooled / 4) / 4]
    signal = max(2 / 3 - sum(errors) / 3, 2 / 30)
    reliability = np.array([signal / (signal + e) for e in errors])
    columns = [np.array(RATINGS[name], dtype=float) for name in RATINGS]
    found = agreement_weights(columns[0][:, None], columns[1][:, None], columns[2])
    np.testing.assert_allclose(found, reliability / reliability.mean())
    # a dimension that a text lacks does not count; one without deviations weighs 1
    labels = np.stack([columns[0], [NAN, 3.0, 1.0]], axis=1)
    deviations = np.stack([columns[1], [0.5, NAN, 0.5]], axis=1)
    labels, deviations = np.vstack([labels, [3.0, 3.0]]), np.vstack([deviations, [NAN, NAN]])
    found = agreement_weights(labels, deviations, np.array([2, 4, 4, 3]))
    assert found[3] == 1 and found[:3].mean() == pytest.approx(1) and found[1] == found.max()
    assert agreement_weights(np.full((2, 1), 3.0), np.full((2, 1), 1.0), np.array([2, 3])).tolist() == [1, 1]


def emobank_like(folder, joined):
    """Four texts, their ratings as published or joined."""
    folder.mkdir()
    table = pd.DataFrame({
        "id": list("abcd"), "split": ["train", "train", "train", "test"], "V": [2.0, 3.0, 4.0, 3.0],
        "A": [3.0, 2.5, 3.5, 2.0], "D": [3.0] * 4, "text": ["one", "two", "three", "four"],
    })  # fmt: skip
    table.to_csv(folder / "emobank.csv", index=False)
    ratings = pd.DataFrame({"id": list("dcba")})
    whole = {}
    for shift, who in ((0.2, "reader"), (-0.2, "writer")):
        half = ratings.assign(
            V=[3.0 + shift, 4.0, 3.0, 2.0], A=[2.0, 3.5, 2.5, 3.0], D=3.0, stdV=[0.5, 1.0, 0.0, 0.5], stdA=0.4,
            stdD=0.1, N=[4, 4, 4, 2],
        )  # fmt: skip
        whole |= {f"{c.replace('std', 'sd')}_{who}": half[c] for c in half.columns[1:]}
        if not joined:
            half.to_csv(folder / f"{who}.csv", index=False, quoting=1)
    if joined:
        ratings.assign(**whole).to_csv(folder / "emobank_reader_writer.csv", index=False)
    return folder


@pytest.mark.parametrize("joined", [True, False])
def test_emobank_weighs_by_the_ratings_of_readers_and_writers(joined, tmp_path, caplog):
    folder = emobank_like(tmp_path / "data", joined)
    found = load_va_dataset("emobank", data_dir=folder, agreement_weights=True)
    deviations = [math.hypot(0.5, 0.0), 0.0, 1.0, math.hypot(0.5, 0.2)]  # within each half, and between them
    columns = np.stack([[2.0, 3, 4, 3], [3, 2.5, 3.5, 2]], 1), np.stack([deviations, [0.4] * 4], 1)
    np.testing.assert_allclose(found["weight"], agreement_weights(*columns, np.array([4, 8, 8, 8])), rtol=1e-6)
    assert "weight" not in load_va_dataset("emobank", data_dir=folder).column_names
    pd.DataFrame({"id": ["a"]}).to_csv(folder / "writer.csv")
    for file in folder.glob("*er.csv"):
        file.unlink()
    with pytest.raises(ValueError, match="ratings of EmoBank are not beside .*reader.csv and writer.csv"):
        load_va_dataset("emobank", data_dir=folder, agreement_weights=True)


def test_the_ratings_of_facebook_posts_are_its_two_columns(tmp_path):
    table = pd.DataFrame({"Anonymized Message": ["a", "b", "c"], "Valence1": [2, 5, 8], "Valence2": [4, 5, 8],
                          "Arousal1": [1, 5, 9], "Arousal2": [1, 7, 9]})  # fmt: skip
    table.to_csv(tmp_path / "dataset-fb-valence-arousal-anon.csv", index=False)
    found = load_va_dataset("facebook", data_dir=tmp_path, agreement_weights=True)
    labels, deviations = np.array([[3.0, 1], [5, 6], [8, 9]]), np.array([[1.0, 0], [0, 1], [0, 0]])
    np.testing.assert_allclose(found["weight"], agreement_weights(labels, deviations, np.full(3, 2.0)))


def test_files_with_ratings_and_corpora_without(tmp_path, caplog):
    path, other = tmp_path / "own.csv", tmp_path / "other.csv"
    rows = pd.DataFrame({"text": ["a", "b", "c"], **RATINGS, "weight": [1.0, 1.0, 2.0]})
    rows.to_csv(path, index=False)
    rows[["text", "valence"]].assign(text=["d", "e", "f"]).to_csv(other, index=False)
    load = functools.partial(load_va_dataset, scale=(1, 5), agreement_weights=True)
    plain = agreement_weights(
        *(rows[[name]].to_numpy() for name in ("valence", "valence_sd")), rows["raters"].to_numpy()
    )
    np.testing.assert_allclose(load(path)["weight"], plain * [1, 1, 2])
    for source, settings in ((other, {}), ("demo", {"scale": None})):
        with pytest.raises(NoRatingsError, match="does not say how its raters agree.*'raters', a number, and"):
            load(source, **settings)
    script = PretrainArguments(corpora=[str(path), str(other)], scale=[1, 5], agreement_weights=True,
                               normalization="standardized")  # fmt: skip
    with caplog.at_level(logging.INFO):
        train = PretrainData(script, seed=1).train
    assert train["weight"][3:] == [None] * 3 and "other.csv does not say" in caplog.text
    np.testing.assert_allclose(train["weight"][:3], plain * [1, 1, 2])
    assert script.provenance("x").settings["agreement_weights"] is True
    script = PretrainArguments(corpora=[str(other)], scale=[1, 5], agreement_weights=True, normalization="scale")
    with pytest.raises(ValueError, match="none of the corpora says how its raters agree"):
        PretrainData(script, seed=1)
    with pytest.raises(ValueError, match="a stream takes a column weight"):
        PretrainArguments(agreement_weights=True, shuffle_buffer=10)
    rows.assign(raters=[2, 0, 4]).to_json(tmp_path / "bad.jsonl", orient="records", lines=True)
    with pytest.raises(ValueError, match=r"row 2: raters is 0, outside the scale [^;]*; correct or remove"):
        load(tmp_path / "bad.jsonl")
    assert json.loads((tmp_path / "bad.jsonl").read_text().splitlines()[1])["raters"] == 0
    assert len(load_va_dataset(tmp_path / "bad.jsonl", scale=(1, 5))) == 3  # where they are not needed
