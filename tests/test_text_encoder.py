import logging

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_encoder
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM

from carl_hf import CarlModel, export_encoder
from carl_hf.evaluation.encoder import TextEncoder, load_text_encoder, load_va_head

TEXTS = ["ab", "a longer text, really", "c", "ab", "zz top"]


@pytest.fixture
def folder(tmp_path, tokenizer):
    tiny_encoder().save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def expected(folder, tokenizer, pooling):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in TEXTS:
        with torch.no_grad():
            output = model(**tokenizer(text, return_tensors="pt"))
        hidden = output.last_hidden_state[0]
        rows.append({"cls": hidden[0], "mean": hidden.mean(0), "pooler": output.pooler_output[0]}[pooling])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_vectors_equal_one_text_at_a_time(folder, tokenizer, pooling, tmp_path):
    encoder = load_text_encoder(str(folder), pooling=pooling, cache_dir=tmp_path / "cache", batch_size=2)
    np.testing.assert_allclose(encoder(TEXTS), expected(folder, tokenizer, pooling), atol=1e-5)
    assert encoder.pooling == pooling and encoder.width == 16 and encoder([]).shape == (0, 16)


def test_auto_pooling_is_what_the_folder_states(folder, tokenizer, tmp_path):
    assert load_text_encoder(str(folder)).pooling == "cls"  # nothing stated
    model = CarlModel.from_encoder(tiny_encoder(), pooling="mean", projection_dim=8)
    export_encoder(model, tokenizer, tmp_path / "export")
    model.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    exported, checkpoint = (load_text_encoder(str(tmp_path / name)) for name in ("export", "checkpoint"))
    assert exported.pooling == checkpoint.pooling == "mean"
    np.testing.assert_allclose(exported(TEXTS), checkpoint(TEXTS), atol=1e-6)


def test_sentence_transformers_models_with_modules_of_their_own_run_through_that_library(tmp_path, tokenizer):
    library = pytest.importorskip("sentence_transformers")
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8)
    export_encoder(model, tokenizer, tmp_path / "export")
    plain = library.SentenceTransformer(str(tmp_path / "export"), device="cpu")
    dense = library.models.Dense(16, 5)
    wide = library.SentenceTransformer(modules=[plain[0], plain[1], dense], device="cpu")
    wide.save(str(tmp_path / "dense"))
    encoder = load_text_encoder(str(tmp_path / "dense"), cache_dir=tmp_path / "cache")
    assert encoder.width == 5 and encoder.pooling == "sentence-transformers"
    np.testing.assert_allclose(encoder(TEXTS), wide.encode(TEXTS), atol=1e-5)
    assert load_text_encoder(str(tmp_path / "dense"), pooling="cls").width == 16


def counting(cache_dir, fingerprint="f", pooling="cls"):
    asked = []

    def embed(texts):
        asked.extend(texts)
        vectors = torch.tensor([[float(len(t)), 1.0] for t in texts])
        return {"cls": vectors, "mean": -vectors}

    return TextEncoder("x", embed, width=2, pooling=pooling, fingerprint=fingerprint, cache_dir=cache_dir), asked


@pytest.mark.parametrize("cached", [True, False])
def test_a_text_is_embedded_once(tmp_path, cached):
    encoder, asked = counting(tmp_path if cached else None)
    first, again = encoder(TEXTS), encoder(["c", "new"])
    assert asked == ["ab", "a longer text, really", "c", "zz top", "new"]
    np.testing.assert_array_equal(first[:, 0], [len(t) for t in TEXTS])
    np.testing.assert_array_equal(again[:, 0], [1, 3])
    fresh, asked = counting(tmp_path if cached else None)  # another process, later
    np.testing.assert_array_equal(fresh(TEXTS), first)
    assert asked == ([] if cached else list(dict.fromkeys(TEXTS)))
    mean, asked = counting(tmp_path if cached else None, pooling="mean")  # kept along with cls
    np.testing.assert_array_equal(mean(TEXTS), -first)
    assert asked == ([] if cached else list(dict.fromkeys(TEXTS)))
    other, asked = counting(tmp_path, fingerprint="g")
    other(["c"])
    assert asked == ["c"]


def test_a_cache_of_another_version_or_damaged_is_passed_over_and_said(tmp_path, caplog):
    encoder, _ = counting(tmp_path)
    values = encoder(TEXTS)
    (file,) = (tmp_path / "f" / "cls").glob("*.safetensors")
    save_file(load_file(file), file, metadata={"format": "0"})
    with caplog.at_level(logging.WARNING):
        encoder, asked = counting(tmp_path)
        np.testing.assert_array_equal(encoder(TEXTS), values)
    assert "another version" in caplog.text and len(asked) == 4
    file.write_bytes(file.read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        encoder, asked = counting(tmp_path)
        np.testing.assert_array_equal(encoder(TEXTS), values)
    assert "cannot be read" in caplog.text and len(asked) == 4


def test_the_fingerprint_follows_weights_and_length(folder):
    prints = [load_text_encoder(str(folder), max_length=length).fingerprint for length in (8, 9)]
    model = tiny_encoder()
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias[3] += 1e-3
    model.save_pretrained(folder)
    prints.append(load_text_encoder(str(folder), max_length=8).fingerprint)
    assert len(set(prints)) == 3
    assert load_text_encoder(str(folder), pooling="mean", max_length=8).fingerprint == prints[-1]


def test_a_pooler_that_the_weights_lack_is_neither_measured_nor_part_of_the_fingerprint(tmp_path, tokenizer):
    BertForMaskedLM(tiny_config()).save_pretrained(tmp_path / "mlm")  # has no pooler, as roberta-base
    tokenizer.save_pretrained(tmp_path / "mlm")
    first, second = (load_text_encoder(str(tmp_path / "mlm")) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    with pytest.raises(ValueError, match="has no pooler"):
        load_text_encoder(str(tmp_path / "mlm"), pooling="pooler")


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_cache(tmp_path, caplog):
    (tmp_path / "f").write_text("a file where a folder should be")
    encoder, _ = counting(tmp_path)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(encoder(TEXTS)[:, 0], [len(t) for t in TEXTS])
    assert "cannot be written" in caplog.text


def test_errors_name_the_model_and_the_remedy(folder, tmp_path, tokenizer):
    with pytest.raises(ValueError, match="Cannot load the model 'nobody/nothing'"):
        load_text_encoder("nobody/nothing")
    tiny_encoder().save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="Cannot load a tokenizer for"):
        load_text_encoder(str(tmp_path / "bare"))
    tiny_encoder("distilbert").save_pretrained(tmp_path / "distil")
    tokenizer.save_pretrained(tmp_path / "distil")
    with pytest.raises(ValueError, match="has no pooler"):
        load_text_encoder(str(tmp_path / "distil"), pooling="pooler")
    with pytest.raises(ValueError, match="64 positions, fewer than --max_length"):
        tokenizer_long = AutoTokenizer.from_pretrained(folder, model_max_length=200)
        tokenizer_long.save_pretrained(folder)
        load_text_encoder(str(folder), max_length=100)
    encoder = TextEncoder(
        "bad",
        lambda t: {"cls": torch.full((len(t), 2), torch.nan)},
        width=2,
        pooling="cls",
        fingerprint="n",
        cache_dir=tmp_path,
    )
    with pytest.raises(ValueError, match="bad gives vectors that are not finite"):
        encoder(["a"])
    assert not (tmp_path / "n").exists()  # nothing of it is kept


def test_a_trained_head_predicts_in_minus_one_to_one(folder, tokenizer, tmp_path):
    assert load_va_head(str(folder)) is None
    config = AutoConfig.from_pretrained(folder)
    config.problem_type, config.id2label = "regression", {0: "valence", 1: "arousal"}
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "head")
    tokenizer.save_pretrained(tmp_path / "head")
    predicted = load_va_head(str(tmp_path / "head"), batch_size=2)(TEXTS)
    for row, text in zip(predicted, TEXTS, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        np.testing.assert_allclose(row, (2 * logits - 1).clamp(-1, 1), atol=1e-5)
