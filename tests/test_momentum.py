import math

import pytest
import torch
from torch import nn

from carl_hf.momentum import cosine_momentum, momentum_from_half_life, update_target


def test_schedule_runs_from_the_initial_momentum_to_one():
    assert cosine_momentum(0, 100, 0.9996) == pytest.approx(0.9996, abs=1e-15)
    assert cosine_momentum(50, 100, 0.9996) == pytest.approx(1 - 0.0004 / 2, abs=1e-15)
    assert cosine_momentum(100, 100, 0.9996) == 1.0
    values = [cosine_momentum(k, 10, 0.9) for k in range(11)]
    assert values == sorted(values)


def test_half_life():
    assert momentum_from_half_life(20) ** 20 == pytest.approx(0.5, abs=1e-12)
    with pytest.raises(ValueError, match="half-life"):
        momentum_from_half_life(0)


def test_share_of_initial_weights_left_after_382_steps():
    """method: m_0 = .9996 leaves 92.6 % of the initial target, .996 46 %, .99 15 %."""
    for initial, share in ((0.9996, 0.926), (0.996, 0.46), (0.99, 0.15)):
        left = math.prod(cosine_momentum(k, 382, initial) for k in range(382))
        assert left == pytest.approx(share, abs=0.006)


def test_a_float32_target_follows_a_bfloat16_branch_that_bfloat16_could_not():
    online = nn.Linear(4, 4).bfloat16()
    target = nn.Linear(4, 4)
    start = target.weight.detach().clone()
    update_target(target, online, 0.9996)
    assert target.weight.dtype == torch.float32 and not torch.equal(target.weight, start)
