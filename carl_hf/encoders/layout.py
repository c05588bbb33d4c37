"""The layout of a batch of packed texts: which token stands where, packed and padded.

Shape suffixes: B texts, L tokens of the longest, T tokens of all texts, X any width.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from carl_hf.encoders import fast_cpu

Pooling = Literal["cls", "mean"]
"""What a model is trained with: the first token's last state, or the mean over all tokens."""


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
        self.mask_BL, self.texts, self.tokens = attention_mask_BL, texts, tokens
        self.slices = tuple(Slice(*s) for s in slices)
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
    def of(cls, batch: Mapping[str, Any]) -> "TokenLayout":
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

    @functools.cached_property
    def bounds(self) -> Tensor:
        """(B + 1,) 32-bit integers: the index of each text's first token, and the number of all tokens."""
        return F.pad(self.mask_BL.sum(1).cumsum(0), (1, 0)).int()

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
