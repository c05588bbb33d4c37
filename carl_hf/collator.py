"""CarlDataCollator: texts with labels -> one length-sorted, right-padded batch, and the slices it is encoded in."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from carl_hf.losses import NO_CLASS


class CarlDataCollator:
    """Tokenizes texts and makes the batch that [`CarlTrainer`] computes on.

    The texts are sorted by length, so that consecutive rows form slices with little padding. A longer text is cut at
    `max_length`. Which tokens are special is the tokenizer's own answer.

    Args:
        tokenizer: any fast or slow tokenizer. max_length (`int`): tokens kept of a text, special ones included; at
            most those of the tokenizer.
        slices (`int`): number of length-sorted slices of (nearly) equal numbers of texts.
        classes: names of the classes, in the order of their numbers; any other name counts as none.
        angles: name of a class -> radians, for texts without valence and arousal.

    Returns (of a call on rows with `text` and `valence`, `arousal` and / or `label`), for B texts and L tokens of the
    longest:
        `input_ids`, `attention_mask` (long, (B, L)), `eligible` (bool, (B, L); neither special nor padding),
        `va` (float32, (B, 2), in [-1, 1], NaN where a text has none), `class` (long, (B,), -1 where a text has none),
        `angle` (float32, (B,), radians: of (valence, arousal), else of the label; NaN where there is neither, and for
        valence = arousal = 0, which has no angle) and `slices`, a tuple of (rows, width): the next `rows` rows need
        only their first `width` columns.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = 128,
        slices: int = 8,
        classes: Sequence[str] | None = None,
        angles: Mapping[str, float] | None = None,
    ):
        self.tokenizer = tokenizer
        self.max_length = min(max_length, tokenizer.model_max_length)
        self.slices = slices
        self.class_numbers = {name: number for number, name in enumerate(classes or ())}
        self.angles = dict(angles or {})

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        encoded = self.tokenizer(
            [row["text"] for row in rows], truncation=True, max_length=self.max_length, return_special_tokens_mask=True
        )
        lengths = [len(ids) for ids in encoded["input_ids"]]
        order = sorted(range(len(rows)), key=lambda i: -lengths[i])  # stable: equal lengths keep the sampler's order
        width = max(lengths)
        input_ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
        eligible = torch.zeros(len(rows), width, dtype=torch.bool)
        for position, i in enumerate(order):
            input_ids[position, : lengths[i]] = torch.tensor(encoded["input_ids"][i])
            attention_mask[position, : lengths[i]] = 1
            eligible[position, : lengths[i]] = torch.tensor(encoded["special_tokens_mask"][i]) == 0
        sizes = [len(part) for part in torch.arange(len(rows)).tensor_split(min(self.slices, len(rows)))]
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "eligible": eligible,
            "va": torch.tensor([_va(rows[i]) for i in order], dtype=torch.float32),
            "class": torch.tensor([self._class(rows[i]) for i in order]),
            "angle": torch.tensor([self._angle(rows[i]) for i in order], dtype=torch.float32),
            "slices": tuple((size, lengths[order[start]]) for size, start in zip(sizes, starts, strict=True)),
        }

    def _class(self, row: dict[str, Any]) -> int:
        return self.class_numbers.get(row.get("label"), NO_CLASS)

    def _angle(self, row: dict[str, Any]) -> float:
        valence, arousal = _va(row)
        if math.isnan(valence):
            return self.angles.get(row.get("label"), math.nan)
        return math.atan2(arousal, valence) if valence or arousal else math.nan


def _va(row: dict[str, Any]) -> tuple[float, float]:
    valence, arousal = row.get("valence"), row.get("arousal")
    return (math.nan, math.nan) if valence is None or arousal is None else (valence, arousal)


def length_slices(tensor_BL: Tensor, slices: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The rows of a length-sorted batch in slices, each cut to the (rows, width) that the collator found for it."""
    parts = tensor_BL.split([rows for rows, _ in slices])
    return [part[:, :width] for part, (_, width) in zip(parts, slices, strict=True)]


def join_slices(parts: Sequence[Tensor], width: int) -> Tensor:
    """Slices (rows, their width, ...) put together again to (B, width, ...), zeros where they were cut."""
    padded = [F.pad(part, (0, 0) * (part.ndim - 2) + (0, width - part.shape[1])) for part in parts]
    return torch.cat(padded)
