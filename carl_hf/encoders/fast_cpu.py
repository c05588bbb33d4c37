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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from carl_hf.encoders.layout import TokenLayout

PRIMITIVE_CACHE_CAPACITY = 128
"""Compiled products that are kept: more than a step makes between two uses of one. oneDNN's own 1,024 take 100 MiB."""

_LEVELS = 2**16  # dropout probabilities are multiples of 1 / _LEVELS


# ---- attention of packed texts


class HeadLayout:
    """The tokens of a batch for attention with so many heads: one row for each token and head.

    Attributes:
        rows: of each slice (N, L) the rows of the packed tensor; on padding those of the text's own first token, so
            that a non-finite value stays within its text.
        biases: of each slice (N, 1, L), 0 on tokens and -inf on padding; None for a slice without padding.
    """

    def __init__(self, layout: "TokenLayout", heads: int):
        head_A1 = torch.arange(heads, device=layout.mask_BL.device).unsqueeze(1)
        self._texts = [len(mask) for mask in layout.masks]
        self.rows, self.biases = [], []
        padded = zip(layout.pad_slices(layout.column_T), layout.masks, layout.first_B.split(self._texts), strict=True)
        for column_BL, mask_BL, first_B in padded:
            token_BL = column_BL + first_B.unsqueeze(1)
            self.rows.append((token_BL.unsqueeze(1) * heads + head_A1).flatten(0, 1))
            bias_BL = torch.zeros(mask_BL.shape, device=mask_BL.device).masked_fill(mask_BL == 0, -torch.inf)
            self.biases.append(None if mask_BL.all() else bias_BL.repeat_interleave(heads, 0).unsqueeze(1))
        sizes = [rows_NL.numel() for rows_NL in self.rows]
        indices = torch.arange(sum(sizes), device=head_A1.device).split(sizes)
        self._index_TA = layout.pack_slices(
            [index.view(len(mask), heads, -1).mT for index, mask in zip(indices, layout.masks, strict=True)]
        )

    def pad(self, values: Tensor, first_tokens: bool = False) -> list[Tensor]:
        """Slices (N, L, D) of packed values (T, A, D); or (N, 1, D) of values (B, A, D) of each text's first token."""
        if first_tokens:
            return [part.flatten(0, 1).unsqueeze(1) for part in values.split(self._texts)]
        flat = values.reshape(-1, values.shape[-1])
        return [flat.index_select(0, rows_NL.flatten()).view(*rows_NL.shape, -1) for rows_NL in self.rows]

    def pack(self, slices_NLD: Sequence[Tensor]) -> Tensor:
        """Packed values (T, A, D) of slices: the reverse of `pad`."""
        width = slices_NLD[0].shape[-1]
        flat = torch.cat([values.reshape(-1, width) for values in slices_NLD])
        return flat.index_select(0, self._index_TA.flatten()).view(*self._index_TA.shape, width)


class _SliceAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k_TAD, v_TAD, bias_ALL, layout: HeadLayout, scale: float, p: float, first_tokens: bool):
        attended, saved, factor, keeps = [], [], 1.0, any(ctx.needs_input_grad)
        wide = torch.promote_types(q.dtype, torch.float32)  # a rounded score is a wrong weight
        inputs = layout.pad(q, first_tokens), layout.pad(k_TAD), layout.pad(v_TAD)
        with torch.autocast(q.device.type, enabled=False):  # the dtype is that of the inputs
            for q_NQD, k_NLD, v_NLD, bias_N1L in zip(*inputs, layout.biases, strict=True):
                if bias_N1L is None:
                    scores_NQL = torch.bmm(q_NQD.to(wide), k_NLD.to(wide).mT).mul_(scale)
                else:
                    scores_NQL = torch.baddbmm(bias_N1L.to(wide), q_NQD.to(wide), k_NLD.to(wide).mT, alpha=scale)
                if bias_ALL is not None:
                    _, queries, keys = scores_NQL.shape
                    scores_NQL.unflatten(0, (-1, q.shape[-2])).add_(bias_ALL[:, :queries, :keys])
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
        ctx.of_bias = torch.zeros_like(bias_ALL) if ctx.needs_input_grad[3] else None
        return torch.cat(attended).view_as(q) if first_tokens else layout.pack(attended)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        of_q, of_k, of_v, of_bias_ALL, layout = [], [], [], ctx.of_bias, ctx.layout
        saved = ctx.saved_tensors  # looked up once: activation checkpointing computes them at that moment
        gradients = layout.pad(gradient * ctx.factor, ctx.first_tokens)
        with torch.autocast(gradient.device.type, enabled=False):
            for number, (of_attended_NQD, bias_N1L) in enumerate(zip(gradients, layout.biases, strict=True)):
                q_NQD, k_NLD, v_NLD, weights_NQL, kept_NQL = saved[5 * number : 5 * number + 5]
                if bias_N1L is not None and not ctx.first_tokens:
                    of_attended_NQD.mul_((bias_N1L == 0).mT)
                dropped_NQL, of_weights_NQL = weights_NQL, torch.bmm(of_attended_NQD, v_NLD.mT)
                if kept_NQL is not None:
                    dropped_NQL = weights_NQL * kept_NQL
                    of_weights_NQL.mul_(kept_NQL)
                of_v.append(torch.bmm(dropped_NQL.mT, of_attended_NQD))
                # of the softmax: weights * (of_weights - their mean under the weights)
                of_scores_NQL = torch._softmax_backward_data(of_weights_NQL, weights_NQL, -1, weights_NQL.dtype)
                if of_bias_ALL is not None:
                    _, queries, keys = of_scores_NQL.shape
                    of_texts_ALL = of_scores_NQL.unflatten(0, (-1, len(of_bias_ALL))).sum(0, dtype=of_bias_ALL.dtype)
                    of_bias_ALL[:, :queries, :keys] += of_texts_ALL
                of_q.append(torch.bmm(of_scores_NQL, k_NLD).mul_(ctx.scale))
                of_k.append(torch.bmm(of_scores_NQL.mT, q_NQD).mul_(ctx.scale))
        of_queries = torch.cat(of_q).view_as(gradient) if ctx.first_tokens else layout.pack(of_q)
        return of_queries, layout.pack(of_k), layout.pack(of_v), of_bias_ALL, None, None, None, None


def slice_attention(
    q: Tensor, k_TAD: Tensor, v_TAD: Tensor, layout: HeadLayout,
    *, scale: float, dropout: float, bias_ALL: Tensor | None = None, first_tokens: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(scale q k^T + bias) v within every text, with dropout of the attention weights.

    Args:
        q, k_TAD, v_TAD (`Tensor`): packed queries, keys and values, of one dtype. q is (T, A, D), or (B, A, D) with
            `first_tokens`. layout: of the batch.
        scale (`float`): factor of the scores. dropout (`float`): probability in [0, 1].
        bias_ALL (`Tensor`, *optional*): by head and by the two tokens' positions in their text, (A, L, L) with L of
            the longest text; without a gradient also (1, L, L). Finite, so that no row of padding is empty.
        first_tokens (`bool`): whether the queries are those of each text's first token alone.

    Returns:
        `Tensor` of q's shape. Its gradient can be taken once, not differentiated again.
    """
    return _SliceAttention.apply(q, k_TAD, v_TAD, bias_ALL, layout, scale, dropout, first_tokens)


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
