"""States of the first tokens alone against those of all tokens."""

import pytest
import torch
from conftest import tiny_encoder
from test_modeling import FAMILIES
from test_packing import batch_of, packed_states

from carl_hf.first_tokens import encode_first_tokens
from carl_hf.packing import TokenLayout, use_packed_attention


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


def test_dropout_changes_them_in_training_alone_and_follows_the_generator(tokenizer):
    encoder = tiny_encoder().double().train()
    use_packed_attention(encoder)
    batch = batch_of(tokenizer)
    layout = TokenLayout.of(batch)
    words = encoder.get_input_embeddings()(layout.pack(batch["input_ids"]))
    with torch.no_grad():
        torch.manual_seed(1)
        first, second = (encode_first_tokens(encoder, words, layout) for _ in range(2))
        torch.manual_seed(1)
        assert torch.equal(encode_first_tokens(encoder, words, layout), first) and not torch.equal(first, second)
        encoder.eval()
        torch.testing.assert_close(
            encode_first_tokens(encoder, words, layout), encode_first_tokens(encoder, words, layout), atol=0, rtol=0
        )
