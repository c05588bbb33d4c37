import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import saved, tiny_config, tiny_encoder
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertweetTokenizer,
)

from carl_hf import CarlModel, export_encoder
from carl_hf.encoders.checks import kept_length
from carl_hf.evaluation.encoder import TextEncoder, load_text_encoder, load_va_head, tokenizer_state

TEXTS = ["ab", "a longer text, really", "c", "ab", "zz top"]


@pytest.fixture
def save(tmp_path, tokenizer):
    """Saves a model and a tokenizer in a folder of that name, and gives its path."""
    return lambda model, name, tokenizer=tokenizer: str(saved(model, tokenizer, tmp_path / name))


def test_auto_pooling_is_what_the_folder_states(tiny, tokenizer, tmp_path, save):
    assert load_text_encoder(str(tiny)).pooling == "cls"  # nothing stated
    model = CarlModel.from_encoder(tiny_encoder(), pooling="mean", projection_dim=8)
    export_encoder(model, tokenizer, tmp_path / "export")
    exported, checkpoint = map(load_text_encoder, (str(tmp_path / "export"), save(model, "checkpoint")))
    assert exported.pooling == checkpoint.pooling == "mean"
    np.testing.assert_allclose(exported(TEXTS), checkpoint(TEXTS), atol=1e-6)


def test_the_first_token_of_a_decoder_is_not_measured(tmp_path, tokenizer):
    config = AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no bidirectional text encoder .* Its mean may be measured"):
        load_text_encoder(str(tmp_path))
    assert len(load_text_encoder(str(tmp_path), pooling="mean").embed(["a text"])) == 1


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
    prompted = library.SentenceTransformer(modules=[plain[0], plain[1]], device="cpu", prompts={"query": "joy joy "})
    prompted.default_prompt_name = "query"  # before every text
    prompted.save(str(tmp_path / "prompted"))
    vectors = load_text_encoder(str(tmp_path / "prompted"))(TEXTS)
    np.testing.assert_allclose(vectors, prompted.encode(TEXTS), atol=1e-5)
    assert np.abs(vectors - load_text_encoder(str(tmp_path / "prompted"), pooling="cls")(TEXTS)).max() > 1e-3
    prints = [load_text_encoder(str(tmp_path / "prompted")).fingerprint]
    prompted.prompts["query"] = "sad "  # its vectors are others, though no weight is
    prompted.save(str(tmp_path / "prompted"))
    assert load_text_encoder(str(tmp_path / "prompted")).fingerprint not in prints


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


def test_a_cache_that_cannot_be_used_or_written_is_ignored_and_said(tmp_path, caplog):
    values = counting(tmp_path)[0](TEXTS)
    (file,) = (tmp_path / "f" / "cls").glob("*.safetensors")

    def embedded_again(message):
        encoder, asked = counting(tmp_path)
        np.testing.assert_array_equal(encoder(TEXTS), values)
        assert message in caplog.text and len(asked) == 4

    save_file(load_file(file), file, metadata={"format": "0"})
    embedded_again("another version")
    file.write_bytes(file.read_bytes()[:40])
    embedded_again("cannot be read")
    for key, damaged, message in (
        ("vectors", np.ones((4, 3), np.float32), "not every text has a finite vector of 2 numbers"),
        ("vectors", np.full((4, 2), np.nan, np.float32), "not every text has a finite vector of 2 numbers"),
        ("vectors", np.ones((3, 2), np.float32), "not every text has a finite vector"),
        ("vectors", np.ones(4, np.float32), "not every text has a finite vector"),
        ("vectors", np.ones((4, 2), np.float16), "of another type"),
        ("keys", np.ones((4, 8), np.uint8), "of another type"),
    ):
        caplog.clear()
        save_file({**load_file(file), key: damaged}, file, metadata={"format": "1"})
        embedded_again(message)
    shutil.rmtree(tmp_path / "f")
    (tmp_path / "f").write_text("a file where a folder should be")
    embedded_again("cannot be written")


def test_the_fingerprint_follows_weights_and_length(save):
    def fingerprint(model, **settings):
        return load_text_encoder(save(model, "encoder"), **settings).fingerprint

    model = tiny_encoder()
    prints = [fingerprint(model, max_length=length) for length in (8, 9)]
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias[3] += 1e-3
    prints.append(fingerprint(model, max_length=8))
    assert len(set(prints)) == 3 and fingerprint(model, pooling="mean", max_length=8) == prints[-1]
    left = AutoTokenizer.from_pretrained(save(model, "encoder"), truncation_side="left")
    prints.append(load_text_encoder(save(model, "left", left), max_length=8).fingerprint)
    assert len(set(prints)) == 4
    without_pooler = BertForMaskedLM(tiny_config())  # as roberta-base: transformers would make up a pooler
    assert fingerprint(without_pooler) == fingerprint(without_pooler)


def test_settings_of_a_slow_tokenizer_are_part_of_the_fingerprint(tmp_path, monkeypatch):
    (tmp_path / "vocab.txt").write_text("\n".join(f"{word} 1" for word in ("a@@", "b", "HTTPURL", "@USER")))
    (tmp_path / "bpe.codes").write_text("a b 1\n")
    files, states = (str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes")), []
    for normalization in (False, True):
        folder = tmp_path / f"{normalization}"
        BertweetTokenizer(*files, normalization=normalization).save_pretrained(folder)
        moved = shutil.copytree(folder, tmp_path / f"{normalization} moved")
        for name, offline in ((folder, True), (folder, False), (moved, True)):
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
            states.append(tokenizer_state(AutoTokenizer.from_pretrained(name, local_files_only=offline)))
    assert len({*states[:3]}) == len({*states[3:]}) == 1 and states[0] != states[3]


def test_bfloat16_is_near_float32_and_has_a_cache_of_its_own(save, tmp_path):
    folder = save(tiny_encoder(), "encoder")
    exact, half, again = (
        load_text_encoder(folder, cache_dir=tmp_path / "cache", bf16=bf16)(TEXTS) for bf16 in (False, True, False)
    )
    assert half.dtype == np.float32 and 0 < np.abs(half - exact).max() < 0.05 * np.abs(exact).max()
    np.testing.assert_array_equal(again, exact)
    model = AutoModelForSequenceClassification.from_config(tiny_config(
        num_labels=2, problem_type="regression", id2label={0: "valence", 1: "arousal"}
    ))  # fmt: skip
    exact, half = (load_va_head(save(model, "va"), bf16=bf16)(TEXTS) for bf16 in (False, True))
    assert 0 < np.abs(half - exact).max() < 0.05


def test_errors_name_the_model_and_the_remedy(tmp_path, save):
    tiny_encoder().save_pretrained(tmp_path / "bare")
    long = AutoTokenizer.from_pretrained(save(tiny_encoder(), "short"), model_max_length=200)
    for name, settings, message in (
        ("nobody/nothing", {}, "Cannot load the model 'nobody/nothing'"),
        (str(tmp_path / "bare"), {}, "Cannot load a tokenizer for"),
        (save(tiny_encoder(), "run/encoder")[: -len("/encoder")], {}, "the folder of a run: name its .*run/encoder"),
        (save(tiny_encoder("distilbert"), "distil"), {"pooling": "pooler"}, "has no pooler"),
        (save(BertForMaskedLM(tiny_config()), "mlm"), {"pooling": "pooler"}, "has no pooler"),
        (save(tiny_encoder(), "long", long), {"max_length": 100}, "64 positions, fewer than max_length"),
    ):
        with pytest.raises(ValueError, match=message):
            load_text_encoder(name, **settings)
    nan = {"cls": torch.full((1, 2), torch.nan)}
    encoder = TextEncoder("bad", lambda t: nan, width=2, pooling="cls", fingerprint="n", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="bad gives vectors that are not finite"):
        encoder(["a"])
    assert not (tmp_path / "n").exists()  # nothing of it is kept


def test_a_limit_of_the_tokenizer_is_said(tiny, caplog):
    tokenizer = AutoTokenizer.from_pretrained(tiny, model_max_length=23)
    assert kept_length(23, tokenizer) == kept_length(57, tokenizer) == kept_length(57, tokenizer) == 23
    said = "Texts are read up to 23 tokens, the tokenizer's limit, not up to 57."
    assert [record.message for record in caplog.records] == [said]


@torch.no_grad()
def test_a_trained_head_predicts_in_minus_one_to_one(tiny, tokenizer, save):
    assert load_va_head(str(tiny)) is None
    config = AutoConfig.from_pretrained(tiny)
    config.problem_type, config.id2label = "regression", {0: "valence", 1: "arousal"}
    model = AutoModelForSequenceClassification.from_config(config).eval()
    predicted = load_va_head(save(model, "head"), batch_size=2)(TEXTS)
    for row, text in zip(predicted, TEXTS, strict=True):
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        np.testing.assert_allclose(row, (2 * logits - 1).clamp(-1, 1), atol=1e-5)
