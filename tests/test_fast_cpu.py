"""What only makes CPUs faster: slice attention against attention of one text after another, dropout, a small cache."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import tiny_encoder
from test_trainer import make_trainer
from torch import nn

from carl_hf.encoders.embedding import embed_texts
from carl_hf.encoders.fast_cpu import (
    PRIMITIVE_CACHE_CAPACITY,
    FastDropout,
    draw_kept,
    slice_attention,
    use_fast_dropout,
)
from carl_hf.encoders.packing import TokenLayout

HEADS, WIDTH = 3, 4


def layout_of(lengths, texts_of_slice=2):
    layout = TokenLayout.of_lengths(lengths, texts_of_slice=texts_of_slice, device=torch.device("cpu"))
    return layout.of_heads(HEADS)


def tensors(lengths):
    generator = torch.Generator().manual_seed(0)
    shape, kind = (sum(lengths), HEADS, WIDTH), torch.float64
    return [torch.randn(shape, generator=generator).to(kind).requires_grad_() for _ in range(3)]


def text_by_text(q, k, v, lengths, *, scale, kept=None, factor=1.0, bias=None):
    """softmax(scale q k^T + bias) v of every text and head alone; `kept` has a mask (heads, L, L) for every text."""
    found, first = [], 0
    for number, length in enumerate(lengths):
        of_text, of_heads = slice(first, first + length), []
        for head in range(HEADS):
            scores = scale * q[of_text, head] @ k[of_text, head].T
            weights = (scores if bias is None else scores + bias[head, :length, :length]).softmax(-1)
            if kept is not None:
                weights = weights * kept[number][head, :length, :length] * factor
            of_heads.append(weights @ v[of_text, head])
        found.append(torch.stack(of_heads, dim=1))
        first += length
    return torch.cat(found)


@pytest.mark.parametrize("first_tokens", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("lengths", [[7, 5, 4, 4, 2, 1], [5, 5, 3, 3]], ids=["padded", "even"])
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_are_those_of_each_text_alone_under_the_same_masks(biased, lengths, p, first_tokens):
    q, k, v = inputs = tensors(lengths)
    bias = torch.randn(HEADS, lengths[0], lengths[0], dtype=q.dtype, requires_grad=True) if biased else None
    rows = [sum(lengths[:text]) for text in range(len(lengths))] if first_tokens else range(sum(lengths))
    torch.manual_seed(4)
    found = slice_attention(
        q[rows], k, v, layout_of(lengths), scale=0.7, dropout=p, bias_ALL=bias, first_tokens=first_tokens
    )
    torch.manual_seed(4)
    kept, factor = [], 1.0
    for width in lengths[::2] if p else ():
        mask, factor = draw_kept((2 * HEADS, 1 if first_tokens else width, width), p)
        kept += mask.view(2, HEADS, -1, width).expand(2, HEADS, width, width).unbind()
    expected = text_by_text(*inputs, lengths, scale=0.7, kept=kept or None, factor=factor, bias=bias)[rows]
    inputs += [bias] if biased else []
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=0)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((values * weights).sum(), inputs) for values in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-13, rtol=0)


def test_a_value_that_is_not_finite_stays_within_its_text_forward_and_backward():
    lengths, layout = [4, 2, 1], layout_of([4, 2, 1], texts_of_slice=3)
    for spoilt, others in ((slice(0, 4), slice(4, 7)), (slice(4, 6), [0, 1, 2, 3, 6])):
        clean = tensors(lengths)
        inputs = [tensor.detach().clone() for tensor in clean]
        for tensor, value in zip(inputs, (torch.nan, torch.inf, torch.nan), strict=True):
            tensor[spoilt] = value
            tensor.requires_grad_()
        found = slice_attention(*inputs, layout, scale=1.0, dropout=0.0)
        torch.testing.assert_close(found[others], slice_attention(*clean, layout, scale=1.0, dropout=0.0)[others])
        for gradient in torch.autograd.grad(found.sum(), inputs):
            assert gradient[others].isfinite().all()


@pytest.mark.parametrize("sharpness", [1.0, 8.0])
def test_bfloat16_is_about_as_near_to_the_truth_as_torch_s_own(sharpness):
    lengths, scale = [12, 9, 6, 6], sharpness / WIDTH**0.5  # scores of that standard deviation
    exact = [tensor.detach().bfloat16().double().requires_grad_() for tensor in tensors(lengths)]
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    expected = text_by_text(*exact, lengths, scale=scale)
    found = slice_attention(*rounded, layout_of(lengths), scale=scale, dropout=0.0)
    assert found.dtype == torch.bfloat16
    peer = [
        nn.functional.scaled_dot_product_attention(*(t.transpose(0, 1) for t in text), scale=scale).transpose(0, 1)
        for text in zip(*(tensor.split(lengths) for tensor in rounded), strict=True)
    ]

    def error(value):
        return (value.double() - expected).square().mean().sqrt()

    assert error(found) < 1.5 * error(torch.cat(peer))
    gradients = torch.autograd.grad(found.float().square().sum(), rounded)
    of_exact = torch.autograd.grad(expected.square().sum(), exact)
    for one, other in zip(gradients, of_exact, strict=True):
        assert (one.double() - other).norm() < 0.02 * other.norm()


def test_everything_can_be_dropped():
    assert not slice_attention(*tensors([3, 2]), layout_of([3, 2]), scale=1.0, dropout=1.0).any()
    assert not FastDropout(1.0)(torch.ones(4, 4)).any()


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_draws_independent_zeros_with_probability_p_and_scales_the_rest(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(1000, 400, dtype=dtype, requires_grad=True)
    y = FastDropout(p)(x)
    y.sum().backward()
    zeros = y == 0
    assert y.dtype == dtype and torch.equal(x.grad, y.detach())  # of ones: value and gradient are mask / (1 - p)
    expected = torch.full_like(y[~zeros], 1 / (1 - p))
    torch.testing.assert_close(y[~zeros], expected, rtol=1e-4 if p == 0.1 else 0, atol=0)
    assert abs(zeros.double().mean() - p) < 5 * (p * (1 - p) / zeros.numel()) ** 0.5
    # independent in both directions: neighbours are both zero with probability p^2
    for both in (zeros[:, 1:] & zeros[:, :-1], zeros[1:] & zeros[:-1]):
        assert abs(both.double().mean() - p**2) < 5 * (p**2 / both.numel()) ** 0.5


def test_dropout_follows_torch_s_generator_and_leaves_it_alone_where_nothing_is_dropped():
    x, layer = torch.ones(50, 50), FastDropout(0.3)
    torch.manual_seed(5)
    first, second = layer(x), layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)
    state = torch.get_rng_state()
    assert FastDropout(0.0)(x) is x and FastDropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)
    assert FastDropout(0.5)(torch.ones(0, 3)).shape == (0, 3)


def test_every_dropout_of_an_encoder_is_replaced_and_its_results_stay():
    encoder = tiny_encoder().eval()
    ids = torch.randint(5, 30, (2, 7))
    before = encoder(ids).last_hidden_state
    use_fast_dropout(encoder)
    kinds = [type(module) for module in encoder.modules() if isinstance(module, nn.Dropout)]
    assert len(kinds) > 4 and set(kinds) == {FastDropout}
    assert torch.equal(encoder(ids).last_hidden_state, before)
    assert not torch.equal(encoder.train()(ids).last_hidden_state, before)


CACHE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
# as many shapes as fit, and one more; then the last of them again, and the first
PRODUCTS = """
import torch
from carl_hf.encoders.fast_cpu import PRIMITIVE_CACHE_CAPACITY, limit_primitive_cache
limit_primitive_cache()
weight, last = torch.zeros(32, 48, dtype=torch.bfloat16), PRIMITIVE_CACHE_CAPACITY + 8
for rows in [*range(8, last + 1), last, 8]:
    torch.nn.functional.linear(torch.zeros(rows, 48, dtype=torch.bfloat16), weight)
"""


def test_compiled_products_beyond_the_limit_are_forgotten():
    environment = {name: value for name, value in os.environ.items() if name != CACHE} | {"ONEDNN_VERBOSE": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS], capture_output=True, text=True, env=environment, check=True
    )
    made = [line for line in done.stdout.splitlines() if "create:" in line and "matmul" in line]
    if not made:
        pytest.skip("torch multiplies bfloat16 matrices without oneDNN here")
    assert len(made) == PRIMITIVE_CACHE_CAPACITY + 3
    assert [number for number, line in enumerate(made) if "cache_hit" in line] == [PRIMITIVE_CACHE_CAPACITY + 1]


@pytest.mark.parametrize("own", [None, "7"])
@pytest.mark.parametrize("use", ["embed", "train"])
def test_training_and_embedding_limit_the_cache_unless_the_user_does(use, own, tmp_path, monkeypatch, tokenizer):
    monkeypatch.setenv(CACHE, "7")
    if own is None:
        monkeypatch.delenv(CACHE)  # what is set below goes with the test
    if use == "embed":
        embed_texts(tiny_encoder(), ["a text"], tokenizer, pooling="cls")
    else:
        make_trainer(tmp_path, tokenizer, max_steps=1).train()
    assert os.environ[CACHE] == (own or str(PRIMITIVE_CACHE_CAPACITY))
