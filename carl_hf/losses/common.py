"""What several losses stand on."""

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

NO_CLASS = -1
"""Class index of a text without a class label."""
NEVER = -1e9  # a logit whose probability is 0, finite so that a row of nothing else has no NaN in its gradient

_Loss = TypeVar("_Loss", bound=Callable[..., Tensor])


def weighted_mean(cost_N: Tensor, counted_N: Tensor, weight_N: Tensor | None) -> Tensor:
    """Mean of what is counted (booleans), each with its weight, or alike without weights; 0 where nothing is."""
    weight_N = counted_N if weight_N is None else weight_N * counted_N
    return (cost_N * weight_N).sum() / weight_N.sum().clamp_min(1e-12)


def in_full_precision(loss: _Loss) -> _Loss:
    """Runs `loss` outside autocast, half-precision arguments widened to float32 (float64 stays)."""

    def widen(value: object) -> object:
        if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
            return value.float()
        return value

    @functools.wraps(loss)
    def wrapped(*arguments, **named):
        device = next(a.device for a in (*arguments, *named.values()) if isinstance(a, Tensor))
        with torch.autocast(device.type, enabled=False):
            return loss(*map(widen, arguments), **{name: widen(value) for name, value in named.items()})

    return wrapped  # type: ignore[return-value]
