"""Packed texts: tokens concatenated without padding, attention stays within each text.

Shape suffixes: B texts, L tokens of the longest, T tokens of all texts, E width of the word embeddings, H width of the
encoder, A attention heads, D width of an attention head, X any width; 1 an axis of length 1.

Layers that treat every token by itself (most of an encoder's work) run once over (T, H). Attention is computed in
slices of consecutive texts of similar length, padded to the longest of the slice: by `fast_cpu.py` where a CPU trains,
else by torch's scaled dot-product attention. Encoders of other families, or with another attention implementation, are
called once for every padded slice, with the same result.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from carl_hf.encoders import fast_cpu

Pooling = Literal["cls", "mean"]
"""What a model is trained with: the first token's last state, or the mean over all tokens."""

_PACKED = "carl_packed"
_FROM_ZERO = ("bert", "electra", "distilbert")  # position of the first token: 0
_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")  # the number after that of the padding token
_BERT_LAYERS = ("bert", "roberta", "xlm-roberta", "camembert")  # families whose layers are BERT's


class Slice(NamedTuple):
    """Consecutive texts of a batch whose attention is padded to the longest of them."""

    texts: int
    width: int  # tokens of the longest text
    tokens: int  # of all texts, without padding


class TokenLayout:
    """Maps between padded (B, L) and packed (T,) tokens of a batch whose texts are sorted by length, longest first.

    A slice is the unit of padding. A chunk, some slices, is the unit of memory: what is encoded in one graph.

    Args:
        attention_mask_BL: 0 on padding, which is on the right. slices: those of the batch, in order,
            each a [`Slice`] or its three numbers.
        slices_per_chunk: how many slices each chunk has; by default one chunk has all.
        texts, tokens: ranges in the parent batch, for the layout of a chunk.

    Attributes:
        mask_BL, slices, texts, tokens: as given. first_B: index of each text's first token. column_T: a token's
            position in its text. masks: attention mask (texts, width) of each slice. slots: positions of the slice's
            tokens in its flattened padded grid of texts * width.
    """

    def __init__(
        self, attention_mask_BL: Tensor, slices: Sequence[tuple[int, int, int]],
        slices_per_chunk: Sequence[int] | None = None, texts: slice = slice(None), tokens: slice = slice(None),
    ):  # fmt: skip
        self.mask_BL, self.slices, self.texts, self.tokens = (
            attention_mask_BL,
            tuple(Slice(*s) for s in slices),
            texts,
            tokens,
        )
        self._slices_per_chunk = (len(self.slices),) if slices_per_chunk is None else tuple(slices_per_chunk)
        counts, widths, tokens_of_slices = zip(*self.slices, strict=True)
        device, (texts_of_batch, width) = attention_mask_BL.device, attention_mask_BL.shape
        lengths_B, total = attention_mask_BL.sum(1), sum(tokens_of_slices)
        self.first_B = lengths_B.cumsum(0) - lengths_B
        row_T = torch.repeat_interleave(torch.arange(texts_of_batch, device=device), lengths_B, output_size=total)
        self.column_T = torch.arange(total, device=device) - self.first_B[row_T]
        self._index_T = row_T * width + self.column_T
        self.masks = [mask[:, :w] for mask, w in zip(attention_mask_BL.split(counts), widths, strict=True)]
        first_rows = itertools.accumulate(counts[:-1], initial=0)
        rows, columns = row_T.split(tokens_of_slices), self.column_T.split(tokens_of_slices)
        self.slots = [
            (row - first) * w + column for row, first, w, column in zip(rows, first_rows, widths, columns, strict=True)
        ]
        self._of_heads: dict[int, fast_cpu.HeadLayout] = {}

    @classmethod
    def of(cls, batch: dict[str, Any]) -> "TokenLayout":
        """The layout of a batch of [`carl_hf.CarlDataCollator`]."""
        return cls(batch["attention_mask"], batch["slices"], batch["slices_per_chunk"])

    @classmethod
    def of_lengths(cls, lengths: Sequence[int], *, texts_of_slice: int, device: torch.device) -> "TokenLayout":
        """The layout of texts with these numbers of tokens, longest first, in slices of `texts_of_slice` texts."""
        lengths_B = torch.tensor(lengths)
        mask_BL = (torch.arange(int(lengths_B[0])) < lengths_B.unsqueeze(1)).long()
        sliced = [lengths[start : start + texts_of_slice] for start in range(0, len(lengths), texts_of_slice)]
        return cls(mask_BL.to(device), [(len(found), found[0], sum(found)) for found in sliced])

    @property
    def chunks(self) -> list["TokenLayout"]:
        """The layouts of the batch's chunks; itself if there is one."""
        return [self] if len(self._slices_per_chunk) == 1 else self._chunks

    @functools.cached_property
    def _chunks(self) -> list["TokenLayout"]:
        made, first_slice, first_text, first_token = [], 0, 0, 0
        for count in self._slices_per_chunk:
            slices = self.slices[first_slice : first_slice + count]
            texts = slice(first_text, first_text + sum(s.texts for s in slices))
            tokens = slice(first_token, first_token + sum(s.tokens for s in slices))
            made.append(TokenLayout(self.mask_BL[texts], slices, texts=texts, tokens=tokens))
            first_slice, first_text, first_token = first_slice + count, texts.stop, tokens.stop
        return made

    def of_heads(self, heads: int) -> fast_cpu.HeadLayout:
        """The layout by attention head, for [`fast_cpu.slice_attention`]; made once."""
        if heads not in self._of_heads:
            self._of_heads[heads] = fast_cpu.HeadLayout(self, heads)
        return self._of_heads[heads]

    def pack(self, values_BL: Tensor) -> Tensor:
        """The values of the tokens (T, ...) from a padded tensor (B, L, ...)."""
        return values_BL.flatten(0, 1).index_select(0, self._index_T)

    def unpack(self, values_T: Tensor) -> Tensor:
        """Padded (B, L) from the values of the tokens (T,); 0 on padding."""
        padded = values_T.new_zeros(self.mask_BL.numel())
        return padded.index_copy(0, self._index_T, values_T).view(self.mask_BL.shape)

    def pad_slices(self, values_TX: Tensor) -> list[Tensor]:
        """Slices (texts, width, X) of tokens (T, X), zeros on padding."""
        padded = []
        packed = values_TX.split([tokens for _, _, tokens in self.slices])
        for values, slots, (texts, width, tokens) in zip(packed, self.slots, self.slices, strict=True):
            if tokens < texts * width:
                values = values.new_zeros(texts * width, *values.shape[1:]).index_copy(0, slots, values)
            padded.append(values.unflatten(0, (texts, width)))
        return padded

    def pack_slices(self, slices: Sequence[Tensor]) -> Tensor:
        """Tokens (T, X) of slices (texts, width, X): the reverse of `pad_slices`."""
        packed = []
        for values, slots, (texts, width, tokens) in zip(slices, self.slots, self.slices, strict=True):
            flat = values.flatten(0, 1)
            packed.append(flat.index_select(0, slots) if tokens < texts * width else flat)
        return torch.cat(packed)


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
    dropout = options.get("dropout", 0.0)
    if query.device.type == "cpu" and (torch.is_grad_enabled() or dropout):  # with dropout the same, graph or not
        q_TAD, k_TAD, v_TAD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        attended_TAD = fast_cpu.slice_attention(
            q_TAD, k_TAD, v_TAD, layout.of_heads(q_TAD.shape[1]), scale=options["scaling"], dropout=dropout
        )  # fmt: skip
        return attended_TAD.unsqueeze(0), None
    slices = [layout.pad_slices(tensor.transpose(1, 2)[0]) for tensor in (query, key, value)]
    attended_slices = []
    for q, k, v, mask, (texts, width, tokens) in zip(*slices, layout.masks, layout.slices, strict=True):
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
            attn_mask=mask[:, None, None].bool() if tokens < texts * width else None,
            dropout_p=dropout, scale=options.get("scaling"),
        )  # fmt: skip
        attended_slices.append(attended.transpose(1, 2))
    return layout.pack_slices(attended_slices).unsqueeze(0), None


AttentionInterface.register(_PACKED, _packed_attention)
AttentionMaskInterface.register(_PACKED, sdpa_mask)


def use_packed_attention(encoder: PreTrainedModel) -> bool:
    """Lets `encode_tokens` run an encoder on packed tokens, where its family and its attention (sdpa) allow it.

    Calls on padded texts work as before. The setting stays with this object (another thread may be using it) and is
    not saved.

    Returns:
        whether it runs on packed tokens.
    """
    config = encoder.config
    can = config.model_type in _FROM_ZERO + _AFTER_PADDING and not config.to_dict().get("is_decoder")
    if can and config._attn_implementation == "sdpa":
        encoder.set_attn_implementation(_PACKED)
    return _is_packed(encoder)


def _is_packed(encoder: PreTrainedModel) -> bool:
    return encoder.config._attn_implementation == _PACKED


def _positions(encoder: PreTrainedModel, layout: TokenLayout) -> Tensor:
    """Position ids (1, T) of packed texts, as the encoder's family counts them."""
    config = encoder.config
    first = config.pad_token_id + 1 if config.model_type in _AFTER_PADDING else 0
    return (layout.column_T + first).unsqueeze(0)


def encode_tokens(encoder: PreTrainedModel, embeds_TE: Tensor, layout: TokenLayout) -> Tensor:
    """Last hidden states (T, H) of an encoder over the word embeddings (T, E) of packed texts."""
    if _is_packed(encoder):
        output = encoder(inputs_embeds=embeds_TE.unsqueeze(0), position_ids=_positions(encoder, layout), layout=layout)
        return output.last_hidden_state[0]
    padded = zip(layout.pad_slices(embeds_TE), layout.masks, strict=True)
    return layout.pack_slices(
        [encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state for embeds, mask in padded]
    )


def encode_first_tokens(encoder: PreTrainedModel, embeds_TE: Tensor, layout: TokenLayout) -> Tensor:
    """Last hidden states (B, H) of the first tokens of packed texts, all that CLS pooling reads.

    On a CPU the last layer of BERT's families leaves out what nobody reads ([`fast_cpu.first_token_states`]). Hooks on
    the encoder itself, on its last layer as a whole and on that layer's attention are not called there, nor is the
    pooler; activation checkpointing leaves the last layer out.
    """
    known = encoder.config.model_type in _BERT_LAYERS and type(encoder).__module__.startswith("transformers.")
    if embeds_TE.device.type != "cpu" or not _is_packed(encoder) or not known:  # a subclass may have other layers
        return encode_tokens(encoder, embeds_TE, layout)[layout.first_B]
    *layers, last = encoder.encoder.layer
    hidden_1TH = encoder.embeddings(inputs_embeds=embeds_TE.unsqueeze(0), position_ids=_positions(encoder, layout))
    for layer in layers:
        hidden_1TH = layer(hidden_1TH, layout=layout)
    return fast_cpu.first_token_states(last, hidden_1TH[0], layout)


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
