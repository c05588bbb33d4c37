"""The optional file: all that it does is make CPUs faster. `packing.py` computes the same with torch's own attention.

- [`slice_attention`]: attention of packed texts in training, all slices of a batch as one operation. torch's own is
  slow on a CPU in two cases: with dropout it computes in float32 step by step, and its backward pass is slower than
  plain matrix products for attention heads of an encoder's size. This one makes matrix products, in the dtype of its
  input but for the scores. It holds the weights of all pairs of tokens of a text, as eager attention does.
- [`first_token_states`]: the last layer where only first tokens are read (CLS pooling). It computes keys and values
  for all tokens, and the rest, ten twelfths of its work, for one token of each text.
- [`FastDropout`]: dropout masks from NumPy's generator.
- [`limit_primitive_cache`]: less memory for oneDNN's compiled matrix products.

Shape suffixes: B texts, T tokens of all texts, H width of the encoder, A attention heads, D width of a head, N texts
times heads of a slice, L tokens of its longest text, Q queries: those tokens, or the first of each text alone.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from carl_hf.encoders.packing import TokenLayout

PRIMITIVE_CACHE_CAPACITY = 128
"""Compiled products that are kept: more than a step makes between two uses of one. oneDNN's own 1,024 take 100 MiB."""

_LEVELS = 2**16  # dropout probabilities are multiples of 1 / _LEVELS


# ---- attention of packed texts


@dataclass(frozen=True)
class HeadSlice:
    """A slice of texts whose attention is computed together.

    Args:
        rows_N_L: for every position the row (token * A + head) of the packed tensor; on padding that of the text's own
            first token, so that a non-finite value stays within its text.
        bias_N1L, real_NL1: 0 and 1 on tokens, -inf and 0 on padding; both None where there is no padding.
    """

    rows_N_L: Tensor
    bias_N1L: Tensor | None
    real_NL1: Tensor | None

    def take(self, values_TAD: Tensor) -> Tensor:
        """(N, L, D) of packed values; padding holds those of the text's first token."""
        rows = values_TAD.reshape(-1, values_TAD.shape[-1]).index_select(0, self.rows_N_L.flatten())
        return rows.view(*self.rows_N_L.shape, -1)


@dataclass(frozen=True)
class HeadLayout:
    """The slices of a batch, and for every token and head its index among the rows (N, L) of all slices."""

    slices: list[HeadSlice]
    index_TA: Tensor

    @classmethod
    def of(cls, layout: "TokenLayout", heads: int) -> "HeadLayout":
        """For attention with so many heads."""
        slices, indices, first_token, first_row = [], [], 0, 0
        head_A = torch.arange(heads, device=layout.mask_BL.device)
        firsts = layout.first_B.split([texts for texts, _, _ in layout.slices])
        for mask, slots, first_B, (texts, width, tokens) in zip(
            layout.masks, layout.slots, firsts, layout.slices, strict=True
        ):
            token = first_B.repeat_interleave(width)
            token[slots] = torch.arange(first_token, first_token + tokens, device=slots.device)
            rows = token.view(texts, 1, width) * heads + head_A.view(heads, 1)
            text, column = (slots // width).unsqueeze(1), (slots % width).unsqueeze(1)
            indices.append(first_row + (text * heads + head_A) * width + column)
            bias = real = None
            if tokens < texts * width:
                on = mask.unsqueeze(1).expand(texts, heads, width).flatten(0, 1).bool()
                bias = torch.zeros(on.shape, device=on.device).masked_fill(~on, -torch.inf).unsqueeze(1)
                real = on.unsqueeze(2)
            slices.append(HeadSlice(rows.flatten(0, 1), bias, real))
            first_token, first_row = first_token + tokens, first_row + texts * heads * width
        return cls(slices, torch.cat(indices))

    def take(self, values: Tensor, first_tokens: bool) -> list[Tensor]:
        """Slices (N, L, D) of packed values (T, A, D); or (N, 1, D) of values (B, A, D) of each text's first token."""
        if not first_tokens:
            return [part.take(values) for part in self.slices]
        texts = [len(part.rows_N_L) // values.shape[1] for part in self.slices]
        return [part.flatten(0, 1).unsqueeze(1) for part in values.split(texts)]

    def pack(self, slices_NLD: list[Tensor]) -> Tensor:
        """Packed values (T, A, D) from those of the slices."""
        width = slices_NLD[0].shape[-1]
        rows = torch.cat([values.reshape(-1, width) for values in slices_NLD])
        return rows.index_select(0, self.index_TA.flatten()).view(*self.index_TA.shape, width)


class _SliceAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k_TAD, v_TAD, layout: HeadLayout, scale: float, p: float, first_tokens: bool) -> Tensor:
        attended, saved, factor, keeps = [], [], 1.0, any(ctx.needs_input_grad)
        with torch.autocast(q.device.type, enabled=False):  # the dtype is that of the inputs
            for part, q_NQD in zip(layout.slices, layout.take(q, first_tokens), strict=True):
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
                    attended.append(torch.bmm(weights_NQL * kept_NQL, v_NLD).mul_(factor))
                else:
                    kept_NQL = None
                    attended.append(torch.bmm(weights_NQL, v_NLD))
                if keeps:
                    saved += [q_NQD, k_NLD, v_NLD, weights_NQL, kept_NQL]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.scale, ctx.factor, ctx.first_tokens = layout, scale, factor, first_tokens
        return torch.cat(attended).view_as(q) if first_tokens else layout.pack(attended)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        of_q, of_k, of_v, layout = [], [], [], ctx.layout
        saved = ctx.saved_tensors  # looked up once: activation checkpointing computes them at that moment
        saved = [saved[first : first + 5] for first in range(0, len(saved), 5)]
        with torch.autocast(gradient.device.type, enabled=False):
            gradients = layout.take(gradient * ctx.factor, ctx.first_tokens)
            for part, of_attended_NQD, (q_NQD, k_NLD, v_NLD, weights_NQL, kept_NQL) in zip(
                layout.slices, gradients, saved, strict=True
            ):
                if part.real_NL1 is not None and not ctx.first_tokens:
                    of_attended_NQD.mul_(part.real_NL1.to(gradient.dtype))
                dropped_NQL, of_weights_NQL = weights_NQL, torch.bmm(of_attended_NQD, v_NLD.mT)
                if kept_NQL is not None:
                    dropped_NQL = weights_NQL * kept_NQL
                    of_weights_NQL.mul_(kept_NQL)
                of_v.append(torch.bmm(dropped_NQL.mT, of_attended_NQD))
                # of the softmax: weights * (of_weights - their mean under the weights)
                of_scores_NQL = torch._softmax_backward_data(of_weights_NQL, weights_NQL, -1, weights_NQL.dtype)
                of_q.append(torch.bmm(of_scores_NQL, k_NLD).mul_(ctx.scale))
                of_k.append(torch.bmm(of_scores_NQL.mT, q_NQD).mul_(ctx.scale))
        of_queries = torch.cat(of_q).view_as(gradient) if ctx.first_tokens else layout.pack(of_q)
        return of_queries, layout.pack(of_k), layout.pack(of_v), None, None, None, None


def slice_attention(
    q: Tensor, k_TAD: Tensor, v_TAD: Tensor, layout: HeadLayout,
    *, scale: float, dropout: float, first_tokens: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(scale q k^T) v within every text, with dropout of the attention weights.

    Args:
        q, k_TAD, v_TAD (`Tensor`): packed queries, keys and values, of one dtype. q is (T, A, D), or (B, A, D) with
            `first_tokens`. layout: of the batch.
        scale (`float`): factor of the scores. dropout (`float`): probability in [0, 1].
        first_tokens (`bool`): whether the queries are those of each text's first token alone.

    Returns:
        `Tensor` of q's shape. Its gradient can be taken once, not differentiated again.
    """
    return _SliceAttention.apply(q, k_TAD, v_TAD, layout, scale, dropout, first_tokens)


def first_token_states(layer: nn.Module, hidden_TH: Tensor, layout: "TokenLayout") -> Tensor:
    """What a layer of BERT's form makes of the states (T, H) of packed texts, for their first tokens alone: (B, H)."""
    attention, first_BH = layer.attention.self, hidden_TH[layout.first_B]

    def heads(states: Tensor) -> Tensor:
        return states.unflatten(-1, (attention.num_attention_heads, attention.attention_head_size))

    attended_BAD = slice_attention(
        heads(attention.query(first_BH)), heads(attention.key(hidden_TH)), heads(attention.value(hidden_TH)),
        layout.of_heads(attention.num_attention_heads), scale=attention.scaling,
        dropout=attention.dropout.p if layer.training else 0.0, first_tokens=True,
    )  # fmt: skip
    attended_BH = layer.attention.output(attended_BAD.flatten(1), first_BH)
    return layer.output(layer.intermediate(attended_BH), attended_BH)


# ---- dropout


def draw_kept(shape: Sequence[int], p: float) -> tuple[Tensor, float]:
    """A boolean mask on the CPU, false with probability p (a multiple of 2^-16), and the factor that scales what is
    kept. Drawn by NumPy's SFC64, seeded from torch's generator: the same state of it gives the same mask."""
    dropped = round(p * _LEVELS)
    seed = int(torch.randint(2**63 - 1, ()))
    bits = np.random.Generator(np.random.SFC64(seed)).bytes(2 * math.prod(shape))
    kept = torch.from_numpy(np.frombuffer(bits, dtype=np.uint16) >= dropped).view(shape)
    return kept, _LEVELS / max(1, _LEVELS - dropped)


class FastDropout(nn.Dropout):
    """`nn.Dropout` that draws its masks by [`draw_kept`] on a CPU. Elsewhere it is `nn.Dropout` itself."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or round(self.p * _LEVELS) == 0:
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


# ---- memory


def limit_primitive_cache() -> None:
    """Limits oneDNN, with which torch computes on CPUs, to [`PRIMITIVE_CACHE_CAPACITY`] compiled matrix products in
    place of 1,024, unless ONEDNN_PRIMITIVE_CACHE_CAPACITY is set.

    It compiles one for each shape. Packed batches rarely have the same number of tokens, so that old ones only fill
    the memory of a long run. oneDNN reads the variable at its first product; later calls change nothing.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVE_CACHE_CAPACITY))
