"""Dominance as a third dimension, from a corpus's column to the exported regressor."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_trainer, tiny_encoder, toy_dataset
from datasets import Dataset
from transformers import pipeline

from carl_hf import CarlModel, export_va_regressor, load_va_dataset
from carl_hf.commands.pretrain import PretrainArguments
from carl_hf.commands.pretrain_data import PretrainData
from carl_hf.data import mix_datasets
from carl_hf.data.streaming import stream_va_dataset
from carl_hf.evaluation.encoder import load_va_head
from carl_hf.explain import Explainer
from carl_hf.export.folder import read_record


def with_dominance(size=40, seed=0) -> Dataset:
    """Toy texts whose dominance is the mean of valence and arousal."""
    data = toy_dataset(size, seed)
    return data.add_column("dominance", [(v + a) / 2 for v, a in zip(data["valence"], data["arousal"], strict=True)])


def test_dominance_is_read_where_it_is_asked_for(tmp_path):
    path, other = tmp_path / "own.csv", tmp_path / "other.csv"
    pd.DataFrame({"text": list("abc"), "valence": [1, 3, 5], "arousal": [1, 5, 3], "dominance": [5, None, 1]}).to_csv(
        path, index=False
    )
    other.write_text("text,valence,arousal,dominance\nd,1,1,high\n")
    assert "dominance" not in load_va_dataset(path, scale=(1, 5)).column_names
    assert load_va_dataset(other, scale=(1, 5)).column_names == ["text", "valence", "arousal"]
    own = load_va_dataset(path, scale=(1, 5), dominance=True)
    assert own["dominance"] == [1.0, None, -1.0]
    assert list(stream_va_dataset([str(path)], scale=(1, 5), shuffle_buffer=1, dominance=True)) == own.to_list()
    assert mix_datasets([(own, 1), (toy_dataset(1), 1)], seed=0)["dominance"] == [1.0, None, -1.0, None]
    with pytest.raises(ValueError, match="row 1: column 'dominance' holds 'high', not a number"):
        load_va_dataset(other, scale=(1, 5), dominance=True)


def test_a_model_with_dominance_trains_and_is_exported_with_three_outputs(tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    encoder = tiny_encoder()
    model = CarlModel.from_encoder(encoder, projection_dim=8, dominance=True)
    train, dev = with_dominance(64), with_dominance(24, seed=5)
    mixed = mix_datasets([(train, 1), (toy_dataset(16, seed=9), 1)], seed=0)
    trainer = make_trainer(tmp_path, tokenizer, model=model, data=mixed, dev=dev, probe_texts=60)
    before = model.regressor.weight.detach().clone()
    trainer.train()
    assert (model.regressor.weight - before).abs().sum(1).min() > 0
    figures = trainer.evaluate()
    assert figures["eval_va_pearson"] == pytest.approx(
        (figures["eval_valence_pearson"] + figures["eval_arousal_pearson"]) / 2
    )
    assert -1 <= figures["eval_dominance_pearson"] <= 1
    predicted = trainer.predict(dev)
    assert predicted.predictions["valence_arousal"].shape == predicted.label_ids["valence_arousal"].shape == (24, 3)
    np.testing.assert_allclose(predicted.label_ids["valence_arousal"][:, 2], dev["dominance"], rtol=1e-6)
    again = CarlModel.from_pretrained(trainer.model.save_pretrained(tmp_path / "kept") or tmp_path / "kept")
    assert again.config.dominance and torch.equal(again.regressor.weight, model.regressor.weight)

    folder = export_va_regressor(
        model, tokenizer, tmp_path / "va", train=train, dev=dev, test={"toy": dev, "two": toy_dataset(12, seed=7)}
    )
    scores = {
        s["label"]: s["score"] for s in pipeline("text-classification", str(folder), top_k=None)([dev["text"][0]])[0]
    }
    assert set(scores) == {"valence", "arousal", "dominance"}
    record = read_record(folder)
    assert record["head"]["labels"] == ["valence", "arousal", "dominance"]
    rows = [row["name"] for row in record["results"] if row["dataset"] == "toy"]
    assert "dominance, Pearson r" in rows
    assert not [row for row in record["results"] if row["dataset"] == "two" and "dominance" in row["name"]]
    assert "valence, arousal, dominance = (2 * model(**batch).logits - 1)" in (folder / "README.md").read_text()
    head = load_va_head(str(folder))(dev["text"])
    assert head.shape == (24, 2)
    np.testing.assert_allclose(head[0, 1], np.clip(2 * scores["arousal"] - 1, -1, 1), atol=2e-3)
    assert Explainer.from_pretrained(folder).explain(dev["text"][0], "arousal", "gradient_norm").target == "arousal"


def test_a_model_with_dominance_needs_texts_with_it(tmp_path, tokenizer):
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8, dominance=True)
    with pytest.raises(ValueError, match="no text has dominance, which the model needs"):
        make_trainer(tmp_path, tokenizer, model=model)
    with pytest.raises(ValueError, match="row 3: dominance is 2, outside"):
        make_trainer(
            tmp_path, tokenizer, model=model, data=toy_dataset(8).add_column("dominance", [0.0] * 3 + [2.0] * 5)
        )


def test_the_script_loads_dominance_where_a_corpus_has_it(tmp_path):
    files = []
    for name, has in (("three", True), ("two", False)):
        data = with_dominance(30).to_pandas().assign(split=["train", "dev", "test"] * 10)
        data["text"] += [f" {name} {i}" for i in range(30)]
        files.append(str(tmp_path / f"{name}.csv"))
        (data if has else data.drop(columns="dominance")).to_csv(files[-1], index=False)
    settings = {"scale": [-1, 1], "normalization": "standardized", "dominance": True}
    script = PretrainArguments(corpora=files, **settings)
    data = PretrainData(script, seed=1)
    assert sum(d is None for d in data.train["dominance"]) == 10 and len(data.train) == 20
    assert script.provenance("x").settings["dominance"] is True
    alone = PretrainData(PretrainArguments(corpora=files[:1], **settings), seed=1)
    assert math.isfinite(sum(alone.measured[files[0]]["train"]["dominance"]))
