"""Gradients that are known before the backward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor


class _PrecomputedGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, count, *gradients_and_parameters):
        ctx.gradients = gradients_and_parameters[:count]
        return value.clone()

    @staticmethod
    def backward(ctx, grad_output):
        gradients, ctx.gradients = ctx.gradients, None  # given away, so scaled in place, and only once
        torch._foreach_mul_(gradients, grad_output.to(gradients[0].dtype))
        return None, None, *([None] * len(gradients)), *gradients


def with_gradients(value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """`value` as a function of `parameters` whose gradients are already known: its backward costs no pass.

    The gradients are given away: the backward pass scales them in place. A parameter with the gradient None has no
    part in `value`.
    """
    known = [(parameter, g) for parameter, g in zip(parameters, gradients, strict=True) if g is not None]
    if not known:
        return value
    parameters, gradients = zip(*known, strict=True)
    return _PrecomputedGradients.apply(value, len(gradients), *gradients, *parameters)
