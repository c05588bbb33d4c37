"""Packed tokens against padded batches, and the layout between the two."""

import pytest
import torch
from conftest import tiny_encoder, toy_dataset
from test_modeling import FAMILIES

from carl_hf import CarlDataCollator, CarlModel
from carl_hf.encoders.embedding import embed_texts
from carl_hf.encoders.packing import TokenLayout, encode_tokens, use_packed_attention

PACKED = {"bert", "roberta", "xlm-roberta", "electra", "distilbert", "camembert"}


def batch_of(tokenizer, texts=8, *, slices=3, parts=2):
    return CarlDataCollator(tokenizer, slices=slices, parts=parts)(list(toy_dataset(texts, seed=5)))


def packed_states(encoder, batch, layout):
    words = encoder.get_input_embeddings()(layout.pack(batch["input_ids"]))
    return encode_tokens(encoder, words, layout)


@pytest.mark.parametrize("family", [*FAMILIES, "camembert"])
def test_packed_texts_have_the_states_and_gradients_of_padded_ones(family, tokenizer):
    encoder = tiny_encoder(family).double().eval()
    batch = batch_of(tokenizer)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    weights = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), list(encoder.parameters()), allow_unused=True)
    layout = TokenLayout.of(batch)
    torch.testing.assert_close(packed_states(encoder, batch, layout), expected, atol=1e-12, rtol=0)  # by slices
    assert use_packed_attention(encoder) == (family in PACKED)
    found = packed_states(encoder, batch, layout)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    gradients = torch.autograd.grad((found * weights).sum(), list(encoder.parameters()), allow_unused=True)
    for (name, _), gradient, other in zip(encoder.named_parameters(), gradients, expected_gradients, strict=True):
        assert (gradient is None) == (other is None), name
        if gradient is not None:
            torch.testing.assert_close(gradient, other, atol=1e-11, rtol=0, msg=name)
    # part by part, and calls on padded texts as before
    words = encoder.get_input_embeddings()(layout.pack(ids))
    parts = [encode_tokens(encoder, words[part.tokens], part) for part in layout.parts]
    torch.testing.assert_close(torch.cat(parts), expected, atol=1e-12, rtol=0)
    again = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(again, expected, atol=1e-12, rtol=0)


def test_attention_stays_within_a_text(tokenizer):
    encoder = tiny_encoder().double().eval()
    use_packed_attention(encoder)
    batch = batch_of(tokenizer)
    layout = TokenLayout.of(batch)
    words = encoder.get_input_embeddings()(layout.pack(batch["input_ids"])).detach().requires_grad_()
    text = torch.cat([torch.full((length,), i) for i, length in enumerate(batch["attention_mask"].sum(1).tolist())])
    (gradient,) = torch.autograd.grad(encode_tokens(encoder, words, layout)[text == 2].square().sum(), words)
    assert (gradient.abs().sum(-1) > 0).equal(text == 2)


def test_packed_texts_train_under_activation_checkpointing(tokenizer):
    encoder = tiny_encoder(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double().train()
    use_packed_attention(encoder)
    batch = batch_of(tokenizer)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            encoder.activation_checkpointing_enable({"use_reentrant": False})
        encoder.zero_grad()
        packed_states(encoder, batch, TokenLayout.of(batch)).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-12, rtol=0)


def test_a_causal_encoder_is_refused_and_not_packed():
    decoder = tiny_encoder(is_decoder=True)
    assert not use_packed_attention(decoder)
    with pytest.raises(ValueError, match="is_decoder"):
        CarlModel.from_encoder(decoder)


def test_padded_batches_of_unequal_texts_stay_small(tokenizer):
    encoder, seen = tiny_encoder("mpnet"), []
    encoder.register_forward_pre_hook(lambda m, a, given: seen.append(given["input_ids"].numel()), with_kwargs=True)
    embed_texts(encoder, ["x" * 50, *["y"] * 40], tokenizer, pooling="cls", batch_size=4)
    assert max(seen) <= 4 * 32 and len(seen) > 1


def test_another_attention_is_left_alone_and_nothing_is_saved(tmp_path):
    encoder = tiny_encoder()
    encoder.set_attn_implementation("eager")
    assert not use_packed_attention(encoder) and encoder.config._attn_implementation == "eager"
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8)
    model.use_packed_attention()
    model.save_pretrained(tmp_path)
    model.encoder.save_pretrained(tmp_path / "encoder")
    for file in tmp_path.rglob("config.json"):
        assert "packed" not in file.read_text(encoding="utf-8")
    assert CarlModel.from_pretrained(tmp_path).encoder.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
@pytest.mark.parametrize("family", ["roberta", "mpnet"])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_embedding_equals_that_of_each_text_alone(family, pooling, batch_size, tokenizer):
    encoder = tiny_encoder(family).double().train()
    texts = list(toy_dataset(20)["text"])
    found = embed_texts(encoder, texts, tokenizer, pooling=pooling, batch_size=batch_size)
    assert encoder.training
    encoder.eval()
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            output = encoder(**tokenizer(text, return_tensors="pt").to(encoder.device))
        states = output.last_hidden_state[0]
        alone = {"cls": states[0], "mean": states.mean(0), "pooler": output.pooler_output[0]}[pooling]
        torch.testing.assert_close(vector, alone.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("texts", "slices", "parts"), [(1, 8, 1), (7, 3, 1), (24, 2, 3), (5, 8, 9)])
def test_the_layout_holds_every_token_once(texts, slices, parts, tokenizer):
    batch = batch_of(tokenizer, texts, slices=slices, parts=parts)
    mask = batch["attention_mask"]
    layout = TokenLayout.of(batch)
    tokens = layout.pack(batch["input_ids"])
    assert tokens.equal(batch["input_ids"][mask.bool()])
    assert layout.unpack(tokens).equal(batch["input_ids"] * mask)
    assert layout.pack_slices(layout.pad_slices(tokens)).equal(tokens)
    assert sum(rows for rows, _, _ in batch["slices"]) == texts and sum(batch["parts"]) == len(batch["slices"])
    made = layout.parts
    assert len(made) <= parts and made[0].texts.start == 0 and made[-1].texts.stop == texts
    for part, following in zip(made, made[1:], strict=False):
        assert (part.texts.stop, part.tokens.stop) == (following.texts.start, following.tokens.start)
    for part in made:
        assert tokens[part.tokens].equal(part.pack(batch["input_ids"][part.texts]))
        assert part.unpack(tokens[part.tokens]).equal((batch["input_ids"] * mask)[part.texts])


def test_parts_hold_about_as_many_tokens(tokenizer):
    layout = TokenLayout.of(batch_of(tokenizer, 200, parts=4))
    longest = layout.mask_BL.shape[1]
    counts = [part.tokens.stop - part.tokens.start for part in layout.parts]
    assert len(counts) == 4 and max(counts) - min(counts) <= longest
