"""Dropout whose masks are drawn faster on a CPU than torch draws them."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16


def draw_kept(shape: Sequence[int], p: float) -> tuple[Tensor, float]:
    """A boolean mask on the CPU, false with probability p (a multiple of 2^-16), and the factor by which what is kept
    grows. From NumPy's SFC64, seeded from torch's generator: the same state of it gives the same mask."""
    dropped = round(p * _LEVELS)
    seed = int(torch.randint(2**63 - 1, ()))
    bits = np.random.Generator(np.random.SFC64(seed)).bytes(2 * math.prod(shape))
    kept = torch.from_numpy(np.frombuffer(bits, dtype=np.uint16) >= dropped).view(shape)
    return kept, _LEVELS / max(1, _LEVELS - dropped)


class FastDropout(nn.Dropout):
    """`nn.Dropout` that, on a CPU, draws its masks by [`draw_kept`]. Elsewhere it is `nn.Dropout` itself."""

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * _LEVELS)
        if not self.training or dropped == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        kept, factor = draw_kept(x.shape, self.p)
        return (x * kept).mul_(factor)


def use_fast_dropout(encoder: nn.Module) -> None:
    """Replaces every `nn.Dropout` of an encoder, in place."""
    for module in encoder.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p).train(child.training))
