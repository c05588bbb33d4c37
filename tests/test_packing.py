"""Packed tokens against padded batches, and the layout between the two."""

import pytest
import torch
from conftest import tiny_encoder, toy_dataset
from test_modeling import FAMILIES

from carl_hf import CarlDataCollator, CarlModel
from carl_hf.encoders.embedding import embed_texts
from carl_hf.encoders.packing import (
    TokenLayout,
    embed_packed,
    encode_first_tokens,
    encode_tokens,
    use_packed_attention,
)

PACKED = {*FAMILIES, "camembert"} - {"deberta-v2"}
LIKE_BERT = {"bert", "roberta", "xlm-roberta", "camembert", "mpnet"}  # whose last layer computes first tokens alone


def batch_of(tokenizer, texts=8, *, slices=3, chunks=2):
    return CarlDataCollator(tokenizer, slices=slices, chunks=chunks)(list(toy_dataset(texts, seed=5)))


def words_of(encoder, batch):
    layout = TokenLayout.of(batch)
    return encoder.get_input_embeddings()(layout.pack(batch["input_ids"])), layout


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("family", [*FAMILIES, "camembert"])
def test_packed_texts_have_the_states_and_gradients_of_padded_ones(family, slices, tokenizer):
    encoder = tiny_encoder(family).double().eval()
    parameters = dict(encoder.named_parameters())
    batch = batch_of(tokenizer, slices=slices, chunks=min(2, slices))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    words, layout = words_of(encoder, batch)
    seen = []  # rows of what every module gives
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda *call: seen.append(call[2].shape[0] if isinstance(call[2], torch.Tensor) and call[2].dim() == 2 else 0)
    )

    def compare(states, wanted):
        torch.testing.assert_close(states, wanted, atol=1e-12, rtol=0)
        weights = torch.randn_like(wanted)
        gradients = [
            torch.autograd.grad((x * weights).sum(), parameters.values(), allow_unused=True, retain_graph=True)
            for x in (states, wanted)
        ]
        for name, found, other in zip(parameters, *gradients, strict=True):
            assert (found is None) == (other is None), name
            if found is not None:
                torch.testing.assert_close(found, other, atol=1e-11, rtol=0, msg=name)

    compare(encode_tokens(encoder, words, layout), expected)  # slice by slice
    assert use_packed_attention(encoder) == (family in PACKED)
    compare(encode_tokens(encoder, words, layout), expected)
    compare(torch.cat([encode_tokens(encoder, words[part.tokens], part) for part in layout.chunks]), expected)
    with torch.no_grad():
        torch.testing.assert_close(encode_tokens(encoder, words, layout), expected, atol=1e-12, rtol=0)
    seen.clear()
    compare(encode_first_tokens(encoder, words, layout), expected[layout.first_B])
    hook.remove()
    assert (seen.count(len(layout.first_B)) > 5) == (family in LIKE_BERT)  # the work that is saved
    again = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]  # padded texts as before
    torch.testing.assert_close(again, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_packed_texts_train_under_activation_checkpointing(family, tokenizer):
    encoder = tiny_encoder(family, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double().train()
    use_packed_attention(encoder)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            encoder.activation_checkpointing_enable({"use_reentrant": False})
        encoder.zero_grad()
        encode_tokens(encoder, *words_of(encoder, batch_of(tokenizer))).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("which", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
@pytest.mark.parametrize("layers", [1, 2])  # of one layer alone, which cls shortens, no other's dropout hides a lack
@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_each_dropout_acts_in_training_alone_and_follows_the_generator(family, layers, which, pooling, tokenizer):
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": layers}
    encoder = tiny_encoder(family, **{**off, which: 0.3}).double().train()
    use_packed_attention(encoder)
    words, layout = words_of(encoder, batch_of(tokenizer))

    def embed(seed):
        torch.manual_seed(seed)
        return embed_packed(encoder, words, layout, pooling)

    assert torch.equal(embed(1), embed(1)) and not torch.equal(embed(1), embed(2))
    encoder.eval()
    assert torch.equal(embed(1), embed(2))


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_an_encoder_class_of_one_s_own_computes_its_last_layer_whole(family, tokenizer):
    plain = tiny_encoder(family)

    class Own(type(plain)):
        pass

    encoder, calls = Own(plain.config).eval(), []
    assert use_packed_attention(encoder) == (family == "bert")
    encoder.register_forward_hook(lambda *_: calls.append(1))
    words, layout = words_of(encoder, batch_of(tokenizer))
    encode_first_tokens(encoder, words, layout)
    assert len(calls) == (1 if family == "bert" else len(layout.slices))


def test_a_causal_encoder_is_refused_and_not_packed():
    decoder = tiny_encoder(is_decoder=True)
    assert not use_packed_attention(decoder)
    with pytest.raises(ValueError, match="is_decoder"):
        CarlModel.from_encoder(decoder)


def test_padded_batches_of_unequal_texts_stay_small(tokenizer):
    encoder, seen = tiny_encoder("deberta-v2"), []
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
    texts = [*toy_dataset(20)["text"], "", "مرحبا 😀", "x" * 500]
    found = embed_texts(encoder, texts, tokenizer, pooling=pooling, batch_size=batch_size)
    assert encoder.training
    encoder.eval()
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            output = encoder(**tokenizer(text, truncation=True, return_tensors="pt"))
        states = output.last_hidden_state[0]
        alone = {"cls": states[0], "mean": states.mean(0), "pooler": output.pooler_output[0]}[pooling]
        torch.testing.assert_close(vector, alone.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("texts", "slices", "chunks"), [(1, 8, 1), (7, 3, 1), (24, 2, 3), (5, 8, 9), (200, 8, 4)])
def test_the_layout_holds_every_token_once(texts, slices, chunks, tokenizer):
    batch = batch_of(tokenizer, texts, slices=slices, chunks=chunks)
    ids, mask, layout = batch["input_ids"], batch["attention_mask"], TokenLayout.of(batch)
    tokens = layout.pack(ids)
    assert tokens.equal(ids[mask.bool()])
    assert layout.unpack(tokens).equal(ids * mask)
    assert layout.pack_slices(layout.pad_slices(tokens)).equal(tokens)
    assert sum(count for count, _, _ in batch["slices"]) == texts
    assert sum(batch["slices_per_chunk"]) == len(batch["slices"])
    made = layout.chunks
    assert len(made) <= chunks
    assert [i for chunk in made for i in range(texts)[chunk.texts]] == list(range(texts))
    assert [i for chunk in made for i in range(len(tokens))[chunk.tokens]] == list(range(len(tokens)))
    for chunk in made:
        assert tokens[chunk.tokens].equal(chunk.pack(ids[chunk.texts]))
        assert chunk.unpack(tokens[chunk.tokens]).equal((ids * mask)[chunk.texts])
    if texts == 200:  # chunks of many texts hold about equal numbers of tokens
        counts = [chunk.tokens.stop - chunk.tokens.start for chunk in made]
        assert len(counts) == 4 and max(counts) - min(counts) <= mask.shape[1]
