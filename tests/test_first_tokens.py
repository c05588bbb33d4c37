"""States of the first tokens alone against those of all tokens."""

import pytest
import torch
import transformers
from conftest import tiny_encoder
from test_modeling import FAMILIES
from test_packing import batch_of, packed_states

from carl_hf.encoders.packing import TokenLayout, embed_packed, encode_first_tokens, use_packed_attention


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("family", [*FAMILIES, "camembert"])
def test_they_have_the_states_and_gradients_of_the_whole_pass(family, slices, tokenizer):
    encoder = tiny_encoder(family).double().eval()
    packed = use_packed_attention(encoder)
    batch = batch_of(tokenizer, slices=slices, parts=1)
    layout = TokenLayout.of(batch)
    parameters = list(encoder.parameters())
    words = encoder.get_input_embeddings()(layout.pack(batch["input_ids"]))
    expected = packed_states(encoder, batch, layout)[layout.first_B]
    layers = []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *seen: layers.append(seen[2]))
    found = encode_first_tokens(encoder, words, layout)
    hook.remove()
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weights = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((states * weights).sum(), parameters, allow_unused=True) for states in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-11, rtol=0)
    # the work that is saved: the last layers of BERT's families see one row for each text
    narrow = [
        output for output in layers if isinstance(output, torch.Tensor) and output.shape[0] == len(layout.first_B)
    ]
    shortened = packed and family in ("bert", "roberta", "xlm-roberta", "camembert")
    assert (len([o for o in narrow if o.dim() == 2]) > 5) == shortened


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("which", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_each_dropout_acts_in_training_alone_and_follows_the_generator(which, pooling, tokenizer):
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = tiny_encoder(**{**off, which: 0.3}).double().train()
    use_packed_attention(encoder)
    layout = TokenLayout.of(batch := batch_of(tokenizer))
    words = encoder.get_input_embeddings()(layout.pack(batch["input_ids"])).detach()

    def embed(seed):
        torch.manual_seed(seed)
        return embed_packed(encoder, words, layout, pooling)

    assert torch.equal(embed(1), embed(1)) and not torch.equal(embed(1), embed(2))
    encoder.eval()
    assert torch.equal(embed(1), embed(2))


def test_the_last_layer_has_attention_dropout_of_its_own(tokenizer):
    """One layer alone, so that no other's dropout can stand in for it."""
    encoder = tiny_encoder(num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.3).train()
    use_packed_attention(encoder)
    layout = TokenLayout.of(batch := batch_of(tokenizer))
    words = encoder.get_input_embeddings()(layout.pack(batch["input_ids"])).detach()
    found = [encode_first_tokens(encoder, words, layout) for _ in range(2)]
    assert not torch.equal(*found)


def test_an_encoder_of_one_s_own_takes_the_whole_pass(tokenizer):
    class Own(transformers.BertModel):
        pass

    encoder = Own(tiny_encoder().config).eval()
    use_packed_attention(encoder)
    layout = TokenLayout.of(batch := batch_of(tokenizer))
    words = encoder.get_input_embeddings()(layout.pack(batch["input_ids"]))
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    encode_first_tokens(encoder, words, layout)
    assert calls == [1]
