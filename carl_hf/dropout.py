"""Dropout whose masks are drawn faster on a CPU than torch draws them."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16


class FastDropout(nn.Dropout):
    """`nn.Dropout` that, on a CPU, compares 16 random bits for each value with the probability p.

    p is rounded to a multiple of 2^-16. The bits come from NumPy's SFC64, seeded anew for every mask from torch's
    generator: the same state of torch's generator gives the same masks. Elsewhere it is `nn.Dropout` itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * _LEVELS)
        if not self.training or dropped == 0:
            return x
        if x.device.type != "cpu" or dropped == _LEVELS:
            return F.dropout(x, self.p)
        seed = int(torch.randint(2**63 - 1, ()))
        bits = np.random.Generator(np.random.SFC64(seed)).bytes(2 * math.prod(x.shape))
        kept = torch.from_numpy(np.frombuffer(bits, dtype=np.uint16) >= dropped).view(x.shape)
        return (x * kept).mul_(_LEVELS / (_LEVELS - dropped))


def use_fast_dropout(encoder: nn.Module) -> None:
    """Replaces every `nn.Dropout` of an encoder, in place."""
    for module in encoder.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p).train(child.training))
