"""Packed texts: tokens concatenated without padding, attention stays within each text.

Shape suffixes: B texts, L tokens of the longest, T tokens of all texts, E width of the word embeddings, H width of the
encoder, A attention heads, D width of an attention head; 1 an axis of length 1.

Layers that treat every token by itself (most of an encoder's work) run once over (T, H). Attention is computed
- on CUDA, without a position bias, by torch's memory-efficient kernel for texts of variable length, in one operation
  that needs no padding and drops attention weights as the encoder says;
- else in slices of consecutive texts of similar length, padded to the longest of the slice: by `fast_cpu.py` where a
  CPU trains, or by torch's scaled dot-product attention.
Encoders that are loaded with one of transformers' flash implementations get the bounds of the texts. Encoders of other
families, or with another attention implementation, are called once for every padded slice, with the same result.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from carl_hf.encoders import fast_cpu
from carl_hf.encoders.layout import Pooling, TokenLayout

logger = logging.getLogger(__name__)

VARIABLE_LENGTH_DEVICES = {"cuda"}
"""Kinds of device whose attention takes texts of variable length, if it is as it should be there."""

_PACKED = "carl_packed"
_FROM_ZERO = ("bert", "electra", "distilbert", "modernbert")  # position of the first token: 0
_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")  # the number after that of the padding token
_NO_MASKS = {"full_attention": None, "sliding_attention": None}  # or transformers makes them for T * T tokens
_BERT_LAYERS = ("bert", "roberta", "xlm-roberta", "camembert")  # families whose layers are BERT's


def _packed_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    layout: TokenLayout | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Scaled dot-product attention; with a layout, of packed tokens (1, A, T, D) within their texts.

    transformers hands keyword arguments of an encoder's forward pass down to here: `encode_tokens` passes `layout`.
    The mask that transformers makes is for padded texts; packed ones are masked by their layout.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    q_TAD, k_TAD, v_TAD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    window, longest = options.get("sliding_window"), layout.slices[0].width
    bias_1LL = None if window is None or longest <= window else _window_bias(longest, window, query)
    attended_TAD = _attend(
        q_TAD, k_TAD, v_TAD, layout, scale=options["scaling"], dropout=options.get("dropout", 0.0), bias_ALL=bias_1LL
    )
    return attended_TAD.unsqueeze(0), None


def _window_bias(longest: int, window: int, like: Tensor) -> Tensor:
    """(1, L, L): 0 on tokens less than `window` apart, else a number so low that their weight is 0."""
    columns_L = torch.arange(longest, device=like.device)
    far_LL = (columns_L - columns_L.unsqueeze(1)).abs() >= window
    return torch.zeros_like(far_LL, dtype=like.dtype).masked_fill(far_LL, torch.finfo(like.dtype).min / 2).unsqueeze(0)


def _attend(
    q_TAD: Tensor, k_TAD: Tensor, v_TAD: Tensor, layout: TokenLayout,
    *, scale: float, dropout: float, bias_ALL: Tensor | None,
) -> Tensor:  # fmt: skip
    """Attention (T, A, D) within every text, as [`fast_cpu.slice_attention`] defines it."""
    if bias_ALL is None and q_TAD.device.type in VARIABLE_LENGTH_DEVICES:
        if _variable_length_works(q_TAD.device, q_TAD.dtype, q_TAD.shape[-1]):
            return _attend_variable_length(q_TAD, k_TAD, v_TAD, layout, scale=scale, dropout=dropout)
    if q_TAD.device.type == "cpu" and (torch.is_grad_enabled() or dropout):  # with dropout the same, graph or not
        return fast_cpu.slice_attention(
            q_TAD, k_TAD, v_TAD, layout.of_heads(q_TAD.shape[1]), scale=scale, dropout=dropout, bias_ALL=bias_ALL
        )
    return _attend_padded(q_TAD, k_TAD, v_TAD, layout, scale=scale, dropout=dropout, bias_ALL=bias_ALL)


def _attend_variable_length(
    q_TAD: Tensor, k_TAD: Tensor, v_TAD: Tensor, layout: TokenLayout, *, scale: float, dropout: float
) -> Tensor:
    """What scaled dot-product attention on nested tensors calls; those cost more time of the CPU than padding does."""
    bounds, longest = layout.bounds, layout.slices[0].width
    attended_1TAD, *_ = torch.ops.aten._efficient_attention_forward(
        q_TAD.unsqueeze(0), k_TAD.unsqueeze(0), v_TAD.unsqueeze(0), None, bounds, bounds, longest, longest, dropout,
        0, torch.is_grad_enabled(), scale=scale,
    )  # fmt: skip
    return attended_1TAD[0]


@functools.cache
def _variable_length_works(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether attention at variable length equals that of padded slices on this device, forward and backward.

    It is an operation that torch does not document, so it is tried before it is used; else the log has a warning.
    """
    generator, problem = torch.Generator().manual_seed(0), "its result is wrong"
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        layout = TokenLayout.of_lengths([5, 3, 2], texts_of_slice=2, device=device)
        *inputs, of_attended = (torch.randn(10, 2, width, generator=generator).to(device, dtype) for _ in range(4))
        inputs = [tensor.requires_grad_() for tensor in inputs]
        found = []
        try:
            for attend in (_attend_variable_length, _attend_padded):
                attended = attend(inputs[0], inputs[1], inputs[2], layout, scale=width**-0.5, dropout=0.0)
                found.append(torch.stack([attended, *torch.autograd.grad(attended, inputs, of_attended)]).float())
            if (found[0] - found[1]).norm() <= (1e-3 if dtype.itemsize >= 4 else 3e-2) * found[1].norm():
                return True
        except (RuntimeError, AttributeError) as error:
            problem = str(error).partition("\n")[0]
    logger.warning("Attention in padded slices: that of variable length cannot be used on %s (%s).", device, problem)
    return False


def _attend_padded(
    q_TAD: Tensor, k_TAD: Tensor, v_TAD: Tensor, layout: TokenLayout,
    *, scale: float, dropout: float, bias_ALL: Tensor | None = None,
) -> Tensor:  # fmt: skip
    slices = [layout.pad_slices(tensor) for tensor in (q_TAD, k_TAD, v_TAD)]
    attended_slices = []
    for q, k, v, mask, (texts, width, tokens) in zip(*slices, layout.masks, layout.slices, strict=True):
        seen = mask[:, None, None].bool() if tokens < texts * width else None
        if bias_ALL is not None:
            bias = bias_ALL[None, :, :width, :width].to(q.dtype)
            seen = bias if seen is None else bias.masked_fill(~seen, -torch.inf)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=seen, dropout_p=dropout, scale=scale
        )
        attended_slices.append(attended.transpose(1, 2))
    return layout.pack_slices(attended_slices)


AttentionInterface.register(_PACKED, _packed_attention)
AttentionMaskInterface.register(_PACKED, sdpa_mask)


def use_packed_attention(encoder: PreTrainedModel) -> bool:
    """Lets `encode_tokens` run an encoder on packed tokens, where its family and its attention (sdpa, or one of
    transformers' flash implementations) allow it.

    Calls on padded texts work as before. The setting stays with this object (another thread may be using it) and is
    not saved.

    Returns:
        whether it runs on packed tokens.
    """
    if _hands_down(encoder) and encoder.config._attn_implementation == "sdpa":
        encoder.set_attn_implementation(_PACKED)
    return _is_packed(encoder)


def _hands_down(encoder: PreTrainedModel) -> bool:
    """Whether its family hands keyword arguments down to attention, and its positions are known."""
    config = encoder.config
    known = config.model_type in _FROM_ZERO + _AFTER_PADDING and config.model_type != "mpnet"
    return known and not config.to_dict().get("is_decoder")


def _is_packed(encoder: PreTrainedModel) -> bool:
    return encoder.config._attn_implementation == _PACKED or _is_mpnet(encoder) or _uses_flash(encoder)


def _uses_flash(encoder: PreTrainedModel) -> bool:
    """Whether it was loaded with one of transformers' implementations, such as flash_attention_2."""
    return "flash" in (encoder.config._attn_implementation or "") and _hands_down(encoder)


def _is_mpnet(encoder: PreTrainedModel) -> bool:
    return encoder.config.model_type == "mpnet" and type(encoder).__module__.startswith("transformers.")


def _positions(encoder: PreTrainedModel, layout: TokenLayout) -> Tensor:
    """Position ids (1, T) of packed texts, as the encoder's family counts them."""
    first = encoder.embeddings.padding_idx + 1 if encoder.config.model_type in _AFTER_PADDING else 0
    return (layout.column_T + first).unsqueeze(0)


def encode_tokens(encoder: PreTrainedModel, embeds_TE: Tensor, layout: TokenLayout) -> Tensor:
    """Last hidden states (T, H) of an encoder over the word embeddings (T, E) of packed texts."""
    if _is_mpnet(encoder):
        return _mpnet_states(encoder, embeds_TE, layout)
    if _is_packed(encoder):
        texts: dict[str, Any] = {"layout": layout}
        if _uses_flash(encoder):
            texts = dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), layout.bounds)
            texts |= dict.fromkeys(("max_length_q", "max_length_k"), layout.slices[0].width)
        if encoder.config.model_type == "modernbert":
            texts["attention_mask"] = _NO_MASKS
        output = encoder(inputs_embeds=embeds_TE.unsqueeze(0), position_ids=_positions(encoder, layout), **texts)
        return output.last_hidden_state[0]
    padded = zip(layout.pad_slices(embeds_TE), layout.masks, strict=True)
    return layout.pack_slices(
        [encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state for embeds, mask in padded]
    )


def encode_first_tokens(encoder: PreTrainedModel, embeds_TE: Tensor, layout: TokenLayout) -> Tensor:
    """Last hidden states (B, H) of the first tokens of packed texts, all that CLS pooling reads.

    On a CPU the last layer of BERT's families and MPNet leaves out what nobody reads
    ([`fast_cpu.first_token_states`]). Hooks on the encoder itself, on its last layer as a whole and on that layer's
    attention are not called there, nor is the pooler; activation checkpointing leaves the last layer out.
    """
    if _is_mpnet(encoder):
        return _mpnet_states(encoder, embeds_TE, layout, first_tokens=True)
    # a subclass may have other layers
    known = encoder.config.model_type in _BERT_LAYERS and type(encoder).__module__.startswith("transformers.")
    if embeds_TE.device.type != "cpu" or encoder.config._attn_implementation != _PACKED or not known:
        return encode_tokens(encoder, embeds_TE, layout)[layout.first_B]
    *layers, last = encoder.encoder.layer
    hidden_1TH = encoder.embeddings(inputs_embeds=embeds_TE.unsqueeze(0), position_ids=_positions(encoder, layout))
    for layer in layers:
        hidden_1TH = layer(hidden_1TH, layout=layout)
    return fast_cpu.first_token_states(last, hidden_1TH[0], layout)


def _mpnet_states(
    encoder: PreTrainedModel, embeds_TE: Tensor, layout: TokenLayout, first_tokens: bool = False
) -> Tensor:
    """Last hidden states of MPNet, whose layers compute attention themselves: (T, H), or (B, H) of first tokens.

    Its relative position bias is a function of two positions, so that all texts share that of the longest. The parts
    of a layer are called one by one: hooks on whole layers, on their attention and on the encoder are not called.
    """
    hidden_TH = encoder.embeddings(inputs_embeds=embeds_TE.unsqueeze(0), position_ids=_positions(encoder, layout))[0]
    bias_ALL = encoder.encoder.compute_position_bias(hidden_TH.new_empty(1, layout.slices[0].width))[0]
    *layers, last = encoder.encoder.layer
    for layer in layers:
        hidden_TH = _mpnet_layer(layer, hidden_TH, hidden_TH, layout, bias_ALL, _attend)
    if first_tokens and hidden_TH.device.type == "cpu":
        attend = functools.partial(fast_cpu.slice_attention, first_tokens=True)
        heads = layout.of_heads(last.attention.attn.num_attention_heads)
        return _mpnet_layer(last, hidden_TH[layout.first_B], hidden_TH, heads, bias_ALL, attend)
    hidden_TH = _mpnet_layer(last, hidden_TH, hidden_TH, layout, bias_ALL, _attend)
    return hidden_TH[layout.first_B] if first_tokens else hidden_TH


def _mpnet_layer(
    layer: torch.nn.Module, of_queries: Tensor, hidden_TH: Tensor, layout: TokenLayout | fast_cpu.HeadLayout,
    bias_ALL: Tensor, attend: Callable[..., Tensor],
) -> Tensor:  # fmt: skip
    """What a layer makes of the states `of_queries`: (T, H), or (B, H) of first tokens."""
    block, own = layer.attention, layer.attention.attn
    projected = (own.q(of_queries), own.k(hidden_TH), own.v(hidden_TH))
    attended = attend(
        *(states.unflatten(-1, (own.num_attention_heads, own.attention_head_size)) for states in projected), layout,
        scale=own.attention_head_size**-0.5, dropout=own.dropout.p if layer.training else 0.0, bias_ALL=bias_ALL,
    )  # fmt: skip
    states = block.LayerNorm(block.dropout(own.o(attended.flatten(1))) + of_queries)
    return layer.output(layer.intermediate(states), states)


def check_pooling(pooling: str) -> None:
    if pooling not in get_args(Pooling):
        raise ValueError(f"Unknown pooling {pooling!r}: choose 'cls' or 'mean'.")


def pool(hidden_BLH: Tensor, attention_mask_BL: Tensor, pooling: Pooling) -> Tensor:
    """Embeddings (B, H): the first token's state, or the mean over all tokens but padding."""
    check_pooling(pooling)
    if pooling == "cls":
        return hidden_BLH[:, 0]
    weight_BL1 = attention_mask_BL.unsqueeze(-1).to(hidden_BLH.dtype)
    return (hidden_BLH * weight_BL1).sum(1) / weight_BL1.sum(1).clamp_min(1)


def pool_packed(hidden_TH: Tensor, layout: TokenLayout, pooling: Pooling) -> Tensor:
    """[`pool`] for the hidden states of packed texts."""
    if pooling == "cls":
        return hidden_TH[layout.first_B]
    padded = zip(layout.pad_slices(hidden_TH), layout.masks, strict=True)
    return torch.cat([pool(hidden, mask, pooling) for hidden, mask in padded])


def embed_packed(encoder: PreTrainedModel, embeds_TE: Tensor, layout: TokenLayout, pooling: Pooling) -> Tensor:
    """Embeddings (B, H) of packed texts from their word embeddings."""
    if pooling == "cls":
        return encode_first_tokens(encoder, embeds_TE, layout)
    return pool_packed(encode_tokens(encoder, embeds_TE, layout), layout, pooling)
