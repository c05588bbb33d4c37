"""Tokens for emoji: of a tokenizer, as vectors, through training and in every export."""

import logging
import string

import pytest
import torch
from conftest import emotions, make_trainer, tiny_encoder, toy_dataset
from emoji import EMOJI_DATA
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    MPNetTokenizer,
    RobertaTokenizer,
)

from carl_hf import CarlModel, export_emotion_classifier, export_encoder, export_va_regressor
from carl_hf.collator import CarlDataCollator
from carl_hf.encoders import embed_texts, load_tokenizer, with_emoji

CHARACTERS = string.ascii_letters + string.digits + string.punctuation + "♥©"
WORDS = "so smiling face with heart eyes flag Germany germany thumbs up medium skin tone".split()
VOCABULARY = [*CHARACTERS, *(f"##{c}" for c in CHARACTERS), *WORDS]
ANGRY, LOVING, ASTRONAUT, FAMILY = "😡", "😍", "👩🏽\u200d🚀", "👨\u200d👩\u200d👧"
HEART, FIRE, SELECTOR = "❤", "❤\ufe0f\u200d🔥", "\ufe0f"


def wordpiece(kind="uncased"):
    first = {"mpnet": ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]}.get(
        kind, ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    )
    vocabulary = {token: i for i, token in enumerate([*first, *VOCABULARY])}
    if kind == "mpnet":
        return MPNetTokenizer(vocab=vocabulary, model_max_length=60)
    return BertTokenizer(vocab=vocabulary, do_lower_case=kind == "uncased", model_max_length=60)


def pair(kind="uncased", **overrides):
    """Tokenizer and encoder before, and both with emoji."""
    size = len(wordpiece(kind))
    encoders = [
        tiny_encoder("mpnet" if kind == "mpnet" else "bert", **{"vocab_size": size, **overrides}).eval() for _ in "12"
    ]
    return wordpiece(kind), encoders[0], *with_emoji(wordpiece(kind), encoders[1])


@pytest.fixture
def folder(tmp_path):
    """Of an encoder that reads emoji as unknown."""
    tokenizer, encoder, *_ = pair()
    tokenizer.save_pretrained(tmp_path / "plain")
    encoder.save_pretrained(tmp_path / "plain")
    return str(tmp_path / "plain")


@pytest.mark.parametrize("kind", ["uncased", "cased", "mpnet"])
def test_every_emoji_is_a_token_split_off_from_words(kind):
    before, _, after, _ = pair(kind)
    assert before.tokenize(f"so{ANGRY}") == ["[UNK]"]
    for text in set(EMOJI_DATA) - {"©", "©\ufe0f", "®", "®\ufe0f", "™", "™\ufe0f"}:
        bare = text.rstrip(SELECTOR)
        for glued in (f"so{text}so", f"so {text} so"):
            assert after.tokenize(glued) in (["so", text, "so"], ["so", bare, "so"])
    row = f"{ANGRY}{FAMILY}{ASTRONAUT}👍🏽🇩🇪1\ufe0f\u20e3{FIRE}"
    assert after.tokenize(row) == [ANGRY, FAMILY, ASTRONAUT, "👍🏽", "🇩🇪", "1\ufe0f\u20e3", FIRE]
    assert after.tokenize("👨👩👧") == ["👨", "👩", "👧"]  # not joined
    assert after.tokenize("so♥so") == ["so", "♥", "so"]  # in the vocabulary
    for text in ("1 #2*3", "a©", "so a so"):
        assert after(text) == before(text)


def test_a_vector_begins_as_the_mean_of_the_names():
    before, old, after, new = pair()
    old, rows = old.get_input_embeddings().weight, new.get_input_embeddings().weight
    names = {LOVING: "smiling face with heart - eyes", "👍🏽": "thumbs up medium skin tone", "🇩🇪": "flag : germany"}
    for text, name in names.items():
        expected = old[before.convert_tokens_to_ids(name.split())].mean(0)
        torch.testing.assert_close(rows[after.convert_tokens_to_ids(text)], expected)
    assert torch.equal(rows[: len(old)], old) and len(rows) == len(after) == new.config.vocab_size
    assert before.get_vocab().items() <= after.get_vocab().items()
    assert new.config.emoji_tokens == len(after) - len(before)
    assert len(set(after.get_vocab().values())) == len(after)


@pytest.mark.parametrize("kind", ["uncased", "cased", "mpnet"])
def test_embeddings_of_texts(kind):
    before, old, after, new = pair(kind)
    for pooling in ("cls", "mean"):
        plain = ["so a smile", "medium thumbs, up so so!", "1 # 2"]
        assert torch.equal(*(embed_texts(e, plain, t, pooling=pooling) for t, e in ((before, old), (after, new))))
        texts = [f"so {ANGRY}", f"so{ANGRY}", f"so {LOVING}", f"so{HEART}", f"so{HEART}{SELECTOR}", "so♥", "so ♥"]
        angry, glued, loving, bare, selected, known, spaced = embed_texts(new, texts, after, pooling=pooling)
        assert torch.equal(angry, glued) and not torch.allclose(angry, loving)
        torch.testing.assert_close(bare, selected)
        assert torch.equal(known, spaced)
        # alone in both, as torch 2.6 rounds by the size of a batch
        as_before, alone = (embed_texts(e, ["so ♥"], t, pooling=pooling)[0] for t, e in ((before, old), (after, new)))
        assert torch.equal(alone, as_before)
        torch.testing.assert_close(spaced, alone, rtol=1e-6, atol=1e-6)
        assert torch.equal(*embed_texts(old, texts[1:2] + ["👍"], before, pooling=pooling))  # both unknown


def test_rows_that_fill_up_the_embedding_are_used():
    size = len(wordpiece())
    _, _, after, new = pair(vocab_size=size + 10)
    assert min(after.convert_tokens_to_ids([ANGRY, LOVING])) >= size
    assert new.get_input_embeddings().num_embeddings == len(after)
    _, _, after, roomy = pair(vocab_size=8192)
    assert roomy.get_input_embeddings().num_embeddings == 8192 > len(after)


def test_bytes_are_left_alone(caplog):
    tokenizer = RobertaTokenizer(
        vocab={t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *ByteLevel.alphabet()])},
        merges=[],
    )
    encoder, vocabulary = tiny_encoder("roberta", vocab_size=300), tokenizer.get_vocab()
    with caplog.at_level(logging.INFO, "carl_hf"):
        found = with_emoji(tokenizer, encoder)
    assert "knows most emoji" in caplog.text
    assert found[0].get_vocab() == vocabulary and found[1].get_input_embeddings().num_embeddings == 300


def test_a_second_time_changes_nothing():
    _, _, after, new = pair()
    with torch.no_grad():
        new.get_input_embeddings().weight.mul_(2)  # as if trained
    weights, size = new.get_input_embeddings().weight.clone(), len(after)
    with_emoji(after, new)
    assert len(after) == size and torch.equal(new.get_input_embeddings().weight, weights)


def test_one_without_the_other_is_refused(folder, tmp_path):
    before, old, after, new = pair()
    for pooling in ("cls", "mean"):
        with pytest.raises(ValueError, match="the tokenizer has none"):
            embed_texts(new, ["so"], before, pooling=pooling)
        with pytest.raises(ValueError, match="tokens, the model's embedding"):
            embed_texts(old, ["so"], after, pooling=pooling)
    with pytest.raises(ValueError, match="the tokenizer has none"):
        make_trainer(tmp_path, before, model=CarlModel.from_encoder(folder, emoji=True))
    with pytest.raises(ValueError, match="with_emoji"):
        CarlModel.from_encoder(old, emoji=True)
    with pytest.raises(ValueError, match="not a CarlModel"):
        with_emoji(before, CarlModel.from_encoder(old))


def test_emoji_are_eligible_for_perturbation():
    _, _, after, _ = pair()
    batch = CarlDataCollator(after)([{"text": f"so{ANGRY}", "valence": 0.0, "arousal": 0.0}])
    assert batch["eligible"].tolist() == [[False, True, True, False]]


def test_training_moves_emoji_and_a_checkpoint_keeps_them(folder, tmp_path):
    rows = toy_dataset(24).map(lambda row: {"text": f"{row['text']}{ANGRY if row['valence'] < 0 else LOVING}"})
    tokenizer = load_tokenizer(folder, emoji=True)
    settings = {
        "data": rows,
        "save_strategy": "steps",
        "save_steps": 4,
        "max_steps": 4,
        "objectives": ["mccl=1", "ptd=0.5", "regression=1"],
    }
    model = CarlModel.from_encoder(folder, emoji=True, projection_dim=8)
    start = model.encoder.get_input_embeddings().weight.detach().clone()
    make_trainer(tmp_path, tokenizer, model=model, **settings).train()
    used = tokenizer.convert_tokens_to_ids([ANGRY, LOVING])
    end = model.encoder.get_input_embeddings().weight
    moved = model.target.encoder.get_input_embeddings().weight
    assert not torch.isclose(end[used], start[used]).all(1).any() and not torch.equal(moved[used], start[used])
    saved = CarlModel.from_pretrained(tmp_path / "checkpoint-4")
    for branch in ("online", "target"):
        weights = [getattr(m, branch).encoder.get_input_embeddings().weight for m in (model, saved)]
        assert torch.equal(*weights)
    assert len(load_tokenizer(str(tmp_path / "checkpoint-4"))) == len(tokenizer)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_exports_have_them_without_carl_hf(pooling, folder, tmp_path):
    pytest.importorskip("sklearn")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model, tokenizer = CarlModel.from_encoder(folder, emoji=True, pooling=pooling), load_tokenizer(folder, emoji=True)
    encoder = export_encoder(model, tokenizer, tmp_path / "encoder", max_length=32)
    texts = [f"so {ANGRY}", f"so{ANGRY}", f"so{LOVING}"]
    expected = model.embed(texts, tokenizer, normalize=True)
    found = sentence_transformers.SentenceTransformer(str(encoder), device="cpu").encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(found, expected)
    assert torch.allclose(found[0], found[1]) and not torch.allclose(found[1], found[2])
    va = export_va_regressor(model, tokenizer, tmp_path / "va", train=toy_dataset(64))
    emotion = export_emotion_classifier(
        model, tokenizer, tmp_path / "emotion", corpus=emotions(), corpus_name="letters"
    )
    for path, auto in (
        (encoder, AutoModel),
        (va, AutoModelForSequenceClassification),
        (emotion, AutoModelForSequenceClassification),
    ):
        batch = AutoTokenizer.from_pretrained(path)(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            output = auto.from_pretrained(path).eval()(**batch)[0]
        assert torch.equal(output[0], output[1]) and not torch.allclose(output[1], output[2])
