"""The global batch: rows of all processes.

Shape suffixes: B texts of this process, G texts of the global batch (ranks in order), D any width.
"""

from typing import Any

import torch
from torch import Tensor


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor) -> Tensor:
        ctx.world, ctx.rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        parts = [torch.empty_like(rows_BD) for _ in range(ctx.world)]
        torch.distributed.all_gather(parts, rows_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient_GD: Tensor) -> Tensor:
        return gradient_GD.chunk(ctx.world)[ctx.rank] * ctx.world


def gather_with_gradient(rows_BD: Tensor) -> Tensor:
    """The rows of all processes (G, D), this process's own with gradient.

    For a loss that every process computes on the same global batch. The gradient that reaches a process's rows is
    multiplied by the number of processes, by which data parallelism divides when it averages: the parameters get the
    gradient of one process on the global batch. The backward pass needs no communication.

    Args:
        rows_BD (`Tensor`): as many rows on every process.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return rows_BD
    return _GatherWithGradient.apply(rows_BD)
