"""Encoders whose weights, tokens or positions do not suffice: refused at every door, valid ones left as they are."""

import pytest
import torch
from conftest import saved, tiny_config, tiny_encoder, toy_dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, FNetConfig, FNetModel

from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments
from carl_hf.encoders import embed_poolings, embed_texts, load_classifier, load_encoder, load_measured_encoder, pool
from carl_hf.evaluation.encoder import load_text_encoder
from carl_hf.explain import Explainer
from carl_hf.utils.log_once import log_once

DOORS = {
    "load_encoder": load_encoder,
    "load_measured_encoder": load_measured_encoder,
    "from_encoder": CarlModel.from_encoder,
    "evaluation": load_text_encoder,
    "explain": Explainer.from_pretrained,
}
TEXTS = ["a b c", "d e"]


def rewrite_weights(folder, change):
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file(dict(filter(None, (change(key, value) for key, value in weights.items()))), file, {"format": "pt"})


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_weights_that_are_missing_but_for_a_pooler_or_prefixed_are_refused(door, tokenizer, tmp_path):
    folder = saved(tiny_encoder(), tokenizer, tmp_path / "model")
    rewrite_weights(folder, lambda key, value: None if "pooler" in key else (key, value))
    door(str(folder))
    for change, message in (
        (lambda key, value: None if "layer.1." in key else (key, value), r"lacks \d+ weights(?!.*pooler).*layer\.1\."),
        (lambda key, value: (f"module.{key}", value), "begin with 'module.'.*strip it"),
        (lambda key, value: (key.replace("module.", "_orig_mod."), value), "begin with '_orig_mod.'.*strip it"),
    ):
        rewrite_weights(folder, change)
        with pytest.raises(ValueError, match=message):
            door(str(folder))
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        door(str(folder))


def test_a_classifier_or_checkpoint_with_missing_weights_is_refused(tokenizer, tmp_path):
    encoder = saved(tiny_encoder(), tokenizer, tmp_path / "encoder")
    with pytest.raises(ValueError, match="lacks 2 weights.*classifier"):
        load_classifier(str(encoder))
    assert load_classifier(str(encoder), num_labels=3).num_labels == 3  # a new head was asked for
    carl = saved(CarlModel.from_encoder(tiny_encoder()), tokenizer, tmp_path / "carl")
    rewrite_weights(carl, lambda key, value: None if "detector" in key else (key, value))
    with pytest.raises(ValueError, match="lacks 2 weights.*detector"):
        CarlModel.from_pretrained(carl)


@pytest.mark.parametrize("pooling", ["max", "CLS", None])
def test_an_unknown_pooling_is_refused(pooling, tokenizer, tmp_path):
    encoder, states = tiny_encoder(), torch.zeros(1, 2, 3)
    folder = saved(encoder, tokenizer, tmp_path)
    for call in (
        lambda: embed_texts(encoder, TEXTS, tokenizer, pooling=pooling),
        lambda: embed_poolings(encoder, TEXTS, tokenizer, poolings=("cls", pooling)),
        lambda: pool(states, torch.ones(1, 2), pooling),
        lambda: load_text_encoder(str(folder), pooling=pooling),
        lambda: Explainer(encoder, tokenizer, pooling=pooling),
    ):
        with pytest.raises(ValueError, match="Unknown pooling"):
            call()


def trainer_of(model, tokenizer, folder, **settings):
    args = CarlTrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=8, use_cpu=True, report_to=[], save_strategy="no",
        probe_texts=0, **settings,
    )  # fmt: skip
    return CarlTrainer(model=model, args=args, train_dataset=toy_dataset(16), processing_class=tokenizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("door", ["to", "from_pretrained"])
def test_a_model_in_half_precision_is_trained_in_float32(door, dtype, tokenizer, tmp_path):
    model = CarlModel.from_encoder(tiny_encoder().to(dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    if door == "to":
        model.to(dtype)
    else:
        model.save_pretrained(tmp_path)
        model = CarlModel.from_pretrained(tmp_path, dtype=dtype)
    trainer_of(model, tokenizer, tmp_path / "out").train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_more_tokens_than_embeddings_are_refused_until_resized(tokenizer, tmp_path):
    small = tiny_encoder(vocab_size=len(tokenizer) - 1)
    folder = saved(small, tokenizer, tmp_path / "small")
    config = tiny_config(vocab_size=len(tokenizer) - 1, num_labels=2)
    config.problem_type, config.id2label = "regression", {0: "valence", 1: "arousal"}
    head = saved(AutoModelForSequenceClassification.from_config(config), tokenizer, tmp_path / "head")
    model = CarlModel.from_encoder(tiny_encoder(vocab_size=len(tokenizer) - 1))
    for call in (
        lambda: embed_texts(small, TEXTS, tokenizer, pooling="cls"),
        lambda: load_text_encoder(str(folder)),
        lambda: Explainer.from_pretrained(str(folder)),
        lambda: Explainer.from_pretrained(str(head)),
        lambda: model.embed(TEXTS, tokenizer),
        lambda: trainer_of(model, tokenizer, tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match="resize_token_embeddings"):
            call()
    before = model.target.encoder.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(len(tokenizer))
    online, target = (b.encoder.get_input_embeddings().weight for b in (model.online, model.target))
    torch.testing.assert_close(target[:-1], before, rtol=0, atol=0)
    torch.testing.assert_close(target, online, rtol=0, atol=0)
    assert online.requires_grad and not target.requires_grad
    trainer_of(model, tokenizer, tmp_path / "out").train()
    model.save_pretrained(tmp_path / "resized")
    assert CarlModel.from_pretrained(tmp_path / "resized").config.encoder.vocab_size == len(tokenizer)


def test_positions_of_roberta_begin_after_the_padding(tokenizer, tmp_path):
    roberta = tiny_encoder("roberta", max_position_embeddings=12, pad_token_id=tokenizer.pad_token_id)
    usable = 12 - tokenizer.pad_token_id - 1
    model, text = CarlModel.from_encoder(roberta), " ".join("abcdefgh" * 4)
    embed_texts(roberta, [text], tokenizer, pooling="cls", max_length=usable)
    folder = saved(roberta, tokenizer, tmp_path / "roberta")
    load_text_encoder(str(folder), max_length=usable)
    for call in (
        lambda: embed_texts(roberta, [text], tokenizer, pooling="cls", max_length=usable + 1),
        lambda: load_text_encoder(str(folder), max_length=usable + 1),
        lambda: Explainer(roberta, tokenizer, max_length=usable + 1).explain_similarity(text, text),
        lambda: trainer_of(model, tokenizer, tmp_path / "out", max_length=usable + 1),
    ):
        with pytest.raises(ValueError, match=f"has {usable} positions"):
            call()
    trainer_of(model, tokenizer, tmp_path / "out", max_length=usable).train()


@pytest.mark.parametrize("auto", [AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_the_encoder_of_a_model_with_a_head_is_taken(auto, tokenizer, tmp_path):
    whole = auto.from_config(tiny_config())
    model = CarlModel.from_encoder(whole)
    assert model.encoder is whole.base_model
    expected = embed_texts(whole.base_model, TEXTS, tokenizer, pooling="mean")
    torch.testing.assert_close(embed_texts(whole, TEXTS, tokenizer, pooling="mean"), expected)
    trainer_of(model, tokenizer, tmp_path).train()


def test_an_encoder_that_reads_padding_is_named(caplog):
    log_once.cache_clear()
    for family in ("bert", "roberta", "mpnet", "modernbert", "deberta-v2"):
        CarlModel.from_encoder(tiny_encoder(family))
    assert not caplog.records
    fnet = FNetModel(FNetConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, intermediate_size=16))
    CarlModel.from_encoder(fnet)
    assert "FNetModel reads padding: a text's vector depends on the texts of its batch." in caplog.text
