"""Attention of packed texts for training on a CPU: forward and backward pass of all slices as one operation.

torch's own scaled dot-product attention is slow there in two cases: with dropout it computes in float32 step by step,
and its fast backward pass is slower than plain matrix products for heads of an encoder's size. This one makes matrix
products, in the dtype of its input but for the scores, and reads its dropout masks from NumPy. It holds the weights of
all pairs of tokens of a text, as eager attention does.

Shape suffixes: B texts, T tokens of all texts, A attention heads, D width of a head, N texts times heads of a slice, L
tokens of its longest text, Q queries: those tokens, or the first of each text alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from carl_hf.encoders.dropout import draw_kept


@dataclass(frozen=True)
class HeadSlice:
    """A slice of texts whose attention is computed together, one row for each token and head.

    Args:
        rows_N_L: row (token * A + head) of the packed tensor for every place; on padding that of the text's own first
            token, so that a value that is not finite stays within its text.
        bias_N1L, real_NL1: 0 and 1 for tokens, -inf and 0 on padding; both None where there is no padding.
    """

    rows_N_L: Tensor
    bias_N1L: Tensor | None
    real_NL1: Tensor | None

    def take(self, values_TAD: Tensor) -> Tensor:
        """(N, L, D) of packed values; on padding stand those of a text's first token."""
        rows = values_TAD.reshape(-1, values_TAD.shape[-1]).index_select(0, self.rows_N_L.flatten())
        return rows.view(*self.rows_N_L.shape, -1)


@dataclass(frozen=True)
class HeadLayout:
    """All slices of a batch, and `places_TA`: of every token and head, its place among those of all slices."""

    slices: list[HeadSlice]
    places_TA: Tensor

    def firsts(self, values_BAD: Tensor) -> list[Tensor]:
        """Slices (N, 1, D) of values that stand for the first token of each text."""
        heads = values_BAD.shape[1]
        texts = [len(part.rows_N_L) // heads for part in self.slices]
        return [part.flatten(0, 1).unsqueeze(1) for part in values_BAD.split(texts)]

    def pack(self, slices_NLD: list[Tensor]) -> Tensor:
        """Packed values (T, A, D) from those of the slices."""
        width = slices_NLD[0].shape[-1]
        places = torch.cat([values.reshape(-1, width) for values in slices_NLD])
        return places.index_select(0, self.places_TA.flatten()).view(*self.places_TA.shape, width)


class _SliceAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k_TAD, v_TAD, layout: HeadLayout, scale: float, p: float, first_tokens: bool) -> Tensor:
        found, saved, factor, keeps = [], [], 1.0, any(ctx.needs_input_grad)
        with torch.autocast(q.device.type, enabled=False):  # the inputs' dtype it is
            queries = layout.firsts(q) if first_tokens else [part.take(q) for part in layout.slices]
            for part, q_NQD in zip(layout.slices, queries, strict=True):
                k_NLD, v_NLD = part.take(k_TAD), part.take(v_TAD)
                wide = torch.promote_types(q.dtype, torch.float32)  # a rounded score is a wrong weight
                if part.bias_N1L is None:
                    scores_NQL = torch.bmm(q_NQD.to(wide), k_NLD.to(wide).mT).mul_(scale)
                else:
                    bias = part.bias_N1L.to(wide)
                    scores_NQL = torch.baddbmm(bias, q_NQD.to(wide), k_NLD.to(wide).mT, alpha=scale)
                weights_NQL = scores_NQL.softmax(-1).to(q.dtype)
                if p:
                    kept_NQL, factor = draw_kept(weights_NQL.shape, p)
                    found.append(torch.bmm(weights_NQL * kept_NQL, v_NLD).mul_(factor))
                else:
                    kept_NQL = None
                    found.append(torch.bmm(weights_NQL, v_NLD))
                if keeps:
                    saved += [q_NQD, k_NLD, v_NLD, weights_NQL, kept_NQL]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.scale, ctx.factor, ctx.first_tokens = layout, scale, factor, first_tokens
        return torch.cat(found).view_as(q) if first_tokens else layout.pack(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        of_q, of_k, of_v, layout = [], [], [], ctx.layout
        saved = ctx.saved_tensors  # looked up once: activation checkpointing makes them then
        saved = [saved[first : first + 5] for first in range(0, len(saved), 5)]
        with torch.autocast(gradient.device.type, enabled=False):
            gradient = gradient * ctx.factor
            gradients = (
                layout.firsts(gradient) if ctx.first_tokens else [part.take(gradient) for part in layout.slices]
            )
            for part, of_found_NQD, (q_NQD, k_NLD, v_NLD, weights_NQL, kept_NQL) in zip(
                layout.slices, gradients, saved, strict=True
            ):
                if part.real_NL1 is not None and not ctx.first_tokens:
                    of_found_NQD.mul_(part.real_NL1.to(gradient.dtype))
                dropped_NQL, of_weights_NQL = weights_NQL, torch.bmm(of_found_NQD, v_NLD.mT)
                if kept_NQL is not None:
                    dropped_NQL = weights_NQL * kept_NQL
                    of_weights_NQL.mul_(kept_NQL)
                of_v.append(torch.bmm(dropped_NQL.mT, of_found_NQD))
                # of the softmax: weights * (of_weights - their mean under the weights)
                of_scores_NQL = torch._softmax_backward_data(of_weights_NQL, weights_NQL, -1, weights_NQL.dtype)
                of_q.append(torch.bmm(of_scores_NQL, k_NLD).mul_(ctx.scale))
                of_k.append(torch.bmm(of_scores_NQL.mT, q_NQD).mul_(ctx.scale))
        of_queries = torch.cat(of_q).view_as(gradient) if ctx.first_tokens else layout.pack(of_q)
        return of_queries, layout.pack(of_k), layout.pack(of_v), None, None, None, None


def slice_attention(
    q: Tensor,
    k_TAD: Tensor,
    v_TAD: Tensor,
    layout: HeadLayout,
    *,
    scale: float,
    dropout: float,
    first_tokens: bool = False,
) -> Tensor:
    """softmax(scale q k^T) v within every text, with dropout of the weights.

    Args:
        q, k_TAD, v_TAD (`Tensor`): packed queries, keys and values, of one dtype. q is (T, A, D), or (B, A, D) with
            `first_tokens`.
        layout: of the batch. scale (`float`): of the scores. dropout (`float`): probability in [0, 1] that a weight
            is left out. first_tokens (`bool`): whether the queries are those of each text's first token alone.

    Returns:
        `Tensor` of q's shape. Its gradient can be taken once, not differentiated again.
    """
    return _SliceAttention.apply(q, k_TAD, v_TAD, layout, scale, dropout, first_tokens)
