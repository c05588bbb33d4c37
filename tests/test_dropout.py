"""FastDropout against what dropout is: independent zeros of probability p, the rest scaled, the gradient too."""

import pytest
import torch
from conftest import tiny_encoder
from torch import nn

from carl_hf.encoders.fast_cpu import FastDropout, use_fast_dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zeros_are_drawn_with_probability_p_and_the_rest_is_scaled(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(1000, 400, dtype=dtype, requires_grad=True)
    y = FastDropout(p)(x)
    y.sum().backward()
    zeros = y == 0
    assert y.dtype == dtype and torch.equal(x.grad, y.detach())  # of ones: value and gradient are mask / (1 - p)
    torch.testing.assert_close(
        y[~zeros], torch.full_like(y[~zeros], 1 / (1 - p)), rtol=1e-4 if p == 0.1 else 0, atol=0
    )
    deviation = (p * (1 - p) / zeros.numel()) ** 0.5
    assert abs(zeros.double().mean() - p) < 5 * deviation
    # independent in both directions: neighbours are both zero with probability p^2
    for both in (zeros[:, 1:] & zeros[:, :-1], zeros[1:] & zeros[:-1]):
        assert abs(both.double().mean() - p**2) < 5 * (p**2 / both.numel()) ** 0.5


def test_masks_follow_torch_s_generator():
    x, layer = torch.ones(50, 50), FastDropout(0.3)
    torch.manual_seed(5)
    first, second = layer(x), layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)


def test_nothing_happens_where_nothing_is_to_be_dropped():
    x = torch.randn(4, 4)
    state = torch.get_rng_state()
    assert FastDropout(0.0)(x) is x and FastDropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)
    assert not FastDropout(1.0)(x).any()
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
