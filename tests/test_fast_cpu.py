"""Attention of packed slices against attention of one text after another, written out."""

import pytest
import torch

from carl_hf.encoders.fast_cpu import draw_kept, slice_attention
from carl_hf.encoders.packing import TokenLayout

HEADS, WIDTH = 3, 4
LENGTHS = {"padded": [7, 5, 4, 4, 2, 1], "even": [5, 5, 3, 3]}


def layout_of(lengths, texts_of_slice=2):
    return TokenLayout.of_lengths(lengths, texts_of_slice=texts_of_slice, device=torch.device("cpu"))


def tensors(lengths, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(sum(lengths), HEADS, WIDTH, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def text_by_text(q, k, v, lengths, *, scale, kept=None, factor=1.0):
    """softmax(scale q k^T) v of every text and head alone; `kept` holds a mask (texts, heads, L, L) for every text."""
    found, first = [], 0
    for number, length in enumerate(lengths):
        of_text = slice(first, first + length)
        for_heads = []
        for head in range(HEADS):
            weights = (scale * q[of_text, head] @ k[of_text, head].T).softmax(-1)
            if kept is not None:
                weights = weights * kept[number][head, :length, :length] * factor
            for_heads.append(weights @ v[of_text, head])
        found.append(torch.stack(for_heads, dim=1))
        first += length
    return torch.cat(found)


def compare(found, expected, inputs, atol):
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9)).to(expected.dtype)
    gradients = [torch.autograd.grad((value * weights).sum(), inputs) for value in (found, expected)]
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=0)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_values_and_gradients_are_those_of_texts_alone(lengths):
    inputs = tensors(lengths)
    found = slice_attention(*inputs, layout_of(lengths).of_heads(HEADS), scale=0.7, dropout=0.0)
    compare(found, text_by_text(*inputs, lengths, scale=0.7), inputs, atol=1e-13)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_with_dropout_they_are_those_of_the_same_masks(lengths):
    inputs, p = tensors(lengths), 0.25
    torch.manual_seed(4)
    found = slice_attention(*inputs, layout_of(lengths).of_heads(HEADS), scale=0.7, dropout=p)
    torch.manual_seed(4)
    kept = []
    for width in lengths[::2]:
        mask, factor = draw_kept((2 * HEADS, width, width), p)
        kept += mask.view(2, HEADS, width, width).unbind()
    expected = text_by_text(*inputs, lengths, scale=0.7, kept=kept, factor=factor)
    compare(found, expected, inputs, atol=1e-13)
    assert not torch.equal(found, text_by_text(*inputs, lengths, scale=0.7))


@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_queries_of_first_tokens_alone(lengths, p):
    q, k, v = tensors(lengths)
    firsts = [sum(lengths[:number]) for number in range(len(lengths))]
    layout = layout_of(lengths).of_heads(HEADS)
    torch.manual_seed(4)
    found = slice_attention(q[firsts], k, v, layout, scale=0.7, dropout=p, first_tokens=True)
    torch.manual_seed(4)
    kept, factor = [], 1.0
    for width in lengths[::2] if p else ():
        mask, factor = draw_kept((2 * HEADS, 1, width), p)
        kept += mask.view(2, HEADS, 1, width).expand(2, HEADS, width, width).unbind()
    expected = text_by_text(q, k, v, lengths, scale=0.7, kept=kept or None, factor=factor)[firsts]
    compare(found, expected, [q, k, v], atol=1e-13)


def test_what_stands_beside_a_short_text_has_no_part_in_it():
    """Not even a value that is not finite leaves its text, forward or backward."""
    lengths, layout = [4, 2, 1], layout_of([4, 2, 1], texts_of_slice=3).of_heads(HEADS)
    for spoilt, others in ((slice(0, 4), slice(4, 7)), (slice(4, 6), [0, 1, 2, 3, 6])):
        clean = tensors(lengths)
        q, k, v = (tensor.detach().clone() for tensor in clean)
        q[spoilt], k[spoilt], v[spoilt] = torch.nan, torch.inf, torch.nan
        inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
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
    found = slice_attention(*rounded, layout_of(lengths).of_heads(HEADS), scale=scale, dropout=0.0)
    assert found.dtype == torch.bfloat16
    peer = torch.cat(
        [
            torch.nn.functional.scaled_dot_product_attention(*(t.transpose(0, 1) for t in parts), scale=scale)
            for parts in zip(*(tensor.split(lengths) for tensor in rounded), strict=True)
        ],
        dim=1,
    ).transpose(0, 1)

    def error(value):
        return (value.double() - expected).square().mean().sqrt()

    assert error(found) < 1.5 * error(peer)
    gradients = torch.autograd.grad(found.float().square().sum(), rounded)
    of_exact = torch.autograd.grad(expected.square().sum(), exact)
    for one, other in zip(gradients, of_exact, strict=True):
        assert (one.double() - other).norm() < 0.02 * other.norm()


def test_everything_can_be_dropped():
    q, k, v = tensors([3, 2])
    assert not slice_attention(q, k, v, layout_of([3, 2]).of_heads(HEADS), scale=1.0, dropout=1.0).any()


def test_gradients_agree_with_differences():
    lengths = [3, 2]
    layout = layout_of(lengths).of_heads(HEADS)
    assert torch.autograd.gradcheck(
        lambda q, k, v: slice_attention(q, k, v, layout, scale=0.7, dropout=0.0), tensors(lengths)
    )
