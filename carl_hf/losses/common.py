"""What several losses stand on."""

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

NO_CLASS = -1
"""Class index of a text without a class label; so are all below 0, such as -100, which PyTorch ignores."""
NEVER = -1e9  # a logit whose probability is 0, finite so that a row of nothing else has no NaN in its gradient

_Loss = TypeVar("_Loss", bound=Callable[..., Tensor])


def weighted_mean(cost_N: Tensor, counted_N: Tensor, weight_N: Tensor | None) -> Tensor:
    """Mean of what is counted (booleans), each with its weight, or alike without weights; 0 where nothing is."""
    weight_N = counted_N if weight_N is None else weight_N * counted_N
    return (cost_N * weight_N).sum() / weight_N.sum().clamp_min(1e-12)


def check_one_each(z_BD: Tensor, **given: Tensor | None) -> None:
    """Raises a ValueError unless each of these, if it is given, has one number for each row: shape (B,)."""
    for name, tensor in given.items():
        if tensor is not None and tensor.shape != z_BD.shape[:1]:
            raise ValueError(
                f"{name} must have the shape ({len(z_BD)},), one for each row, got {tuple(tensor.shape)}."
            )


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
