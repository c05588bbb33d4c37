"""Attention of packed texts for training on a CPU: forward and backward pass of all slices as one operation.

torch's own scaled dot-product attention is slow there in two cases: with dropout it computes in float32 step by step,
and its fast backward pass is slower than plain matrix products for heads of an encoder's size. This one keeps to
matrix products in the dtype of its input, as eager attention does, and reads its dropout masks from NumPy.

Shape suffixes: T tokens of all texts, A attention heads, D width of a head, N texts times heads of a slice, L tokens
of its longest text.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from carl_hf.dropout import draw_kept


@dataclass(frozen=True)
class HeadSlice:
    """A slice of texts whose attention is computed together, one row for each token and head.

    Args:
        rows_N_L: row (token * A + head) of the packed tensor for every place; any row on padding. bias_N1L: 0 for
            tokens, -inf on padding, and real_NL1: 1 for tokens, 0 on padding; None without padding.
    """

    rows_N_L: Tensor
    bias_N1L: Tensor | None
    real_NL1: Tensor | None

    def take(self, values_TAD: Tensor) -> Tensor:
        """(N, L, D) of packed values; what stands on padding is not defined."""
        rows = values_TAD.reshape(-1, values_TAD.shape[-1]).index_select(0, self.rows_N_L.flatten())
        return rows.view(*self.rows_N_L.shape, -1)


@dataclass(frozen=True)
class HeadLayout:
    """All slices of a batch, and `places_TA`: of every token and head, its place among those of all slices."""

    slices: list[HeadSlice]
    places_TA: Tensor

    def pack(self, slices_NLD: list[Tensor]) -> Tensor:
        """Packed values (T, A, D) from those of the slices."""
        width = slices_NLD[0].shape[-1]
        places = torch.cat([values.reshape(-1, width) for values in slices_NLD])
        return places.index_select(0, self.places_TA.flatten()).view(*self.places_TA.shape, width)


class _SliceAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_TAD: Tensor, k_TAD: Tensor, v_TAD: Tensor, layout: HeadLayout, scale: float, p: float):
        found, saved, factor = [], [], 1.0
        with torch.autocast(q_TAD.device.type, enabled=False):  # the inputs' dtype it is
            for part in layout.slices:
                q, k, v = part.take(q_TAD), part.take(k_TAD), part.take(v_TAD)
                if part.bias_N1L is None:
                    scores = torch.bmm(q, k.mT).mul_(scale)
                else:
                    scores = torch.baddbmm(part.bias_N1L.to(q.dtype), q, k.mT, alpha=scale)
                weights_NLL = scores.softmax(-1)
                if p:
                    kept_NLL, factor = draw_kept(weights_NLL.shape, p)
                    found.append(torch.bmm(weights_NLL * kept_NLL, v).mul_(factor))
                else:
                    kept_NLL = None
                    found.append(torch.bmm(weights_NLL, v))
                saved += [q, k, v, weights_NLL, kept_NLL]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.scale, ctx.factor = layout, scale, factor
        return layout.pack(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TAD: Tensor):
        of_q, of_k, of_v = [], [], []
        saved = ctx.saved_tensors  # looked up once: activation checkpointing makes them then
        saved = [saved[first : first + 5] for first in range(0, len(saved), 5)]
        with torch.autocast(gradient_TAD.device.type, enabled=False):
            for part, (q, k, v, weights_NLL, kept_NLL) in zip(ctx.layout.slices, saved, strict=True):
                gradient = part.take(gradient_TAD)
                if part.real_NL1 is not None:
                    gradient.mul_(part.real_NL1.to(gradient.dtype))
                if kept_NLL is None:
                    dropped_NLL, of_weights = weights_NLL, torch.bmm(gradient, v.mT)
                else:
                    gradient.mul_(ctx.factor)
                    dropped_NLL, of_weights = weights_NLL * kept_NLL, torch.bmm(gradient, v.mT).mul_(kept_NLL)
                of_v.append(torch.bmm(dropped_NLL.mT, gradient))
                # of the softmax: weights * (of_weights - their mean under the weights)
                of_scores = torch._softmax_backward_data(of_weights, weights_NLL, -1, weights_NLL.dtype)
                of_q.append(torch.bmm(of_scores, k).mul_(ctx.scale))
                of_k.append(torch.bmm(of_scores.mT, q).mul_(ctx.scale))
        return *(ctx.layout.pack(found) for found in (of_q, of_k, of_v)), None, None, None


def slice_attention(
    q_TAD: Tensor, k_TAD: Tensor, v_TAD: Tensor, layout: HeadLayout, *, scale: float, dropout: float
) -> Tensor:
    """softmax(scale q k^T) v within every text, with dropout of the weights.

    Args:
        q_TAD, k_TAD, v_TAD (`Tensor`): packed queries, keys and values, of one dtype; on padding nothing is read.
        layout: of the batch. scale (`float`): of the scores. dropout (`float`): probability in [0, 1) that a weight
            is left out.

    Returns:
        `Tensor` (T, A, D). Its gradient can be taken once, not differentiated again.
    """
    return _SliceAttention.apply(q_TAD, k_TAD, v_TAD, layout, scale, dropout)
