"""CarlDataCollator: tokenizes texts, sorts them by length, pads them on the right, and divides them for encoding."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from carl_hf.data.bad_rows import GREATEST_WEIGHT, LEAST_WEIGHT
from carl_hf.data.corpora import DIMENSIONS
from carl_hf.data.mixing import VA
from carl_hf.encoders.checks import check_padding, check_unicode, kept_length
from carl_hf.losses import NO_CLASS
from carl_hf.utils.setting_types import at_least

logger = logging.getLogger(__name__)


class CarlDataCollator:
    """Tokenizes texts and makes the batch that [`CarlTrainer`] trains on.

    Texts are truncated to `max_length` and sorted, longest first. Slices of consecutive rows then need little padding:
    a slice is the unit of padding, a chunk of slices the unit of memory (encoded in one graph).

    Args:
        tokenizer: any fast or slow tokenizer. max_length (`int`): most tokens of a text, special ones included; at
            most the tokenizer's own `model_max_length`.
        slices (`int`): slices of (nearly) equal numbers of texts in each chunk; attention is padded within a slice.
        chunks (`int`): chunks of (nearly) equal numbers of tokens, which are encoded one after another.
        classes: class names in the order of their indices; a text with any other label counts as unlabelled.
        dominance (`bool`): whether the labels have a third dimension.
        angles: class name, as written or in lower case -> radians, for texts without valence and arousal.

    Returns (of a call on rows with `text` and some of `valence`, `arousal`, `label` and `weight`), for B texts and L
    tokens of the longest:
        `input_ids`, `attention_mask` (long, (B, L)); `eligible` (bool, (B, L)): neither special nor padding;
        `va` (float32, (B, 2) or with dominance (B, 3), in [-1, 1]), each NaN if missing; `class` (long, (B,)), -1 if
        missing; `angle` (float32, (B,), radians): of (valence, arousal) if both are there, else of the class, NaN if
        missing or if both are 0; `weight` (float32, (B,)), 1 if missing;
        `row` (long, (B,)): positions of the texts before they were sorted;
        `slices`: the numbers of a [`carl_hf.encoders.packing.Slice`] for each slice; `slices_per_chunk`.
        A custom collator may leave out `class`, `angle`, `weight` and, if it keeps the order of the texts, `row`.

    Raises (when called):
        ValueError: for a row without text, for valence or arousal outside [-1, 1], a weight that is not positive, or a
            label that is no name where names are needed; it names the text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 128, slices: int = 8, chunks: int = 1,
        classes: Sequence[str] | None = None, angles: Mapping[str, float] | None = None, dominance: bool = False,
    ):  # fmt: skip
        check_padding(tokenizer)
        for name, count in (("slices", slices), ("chunks", chunks)):
            at_least(name, count, 1)
        classes, angles = [classes] if isinstance(classes, str) else list(classes or ()), dict(angles or {})
        if not all(isinstance(name, str) for name in (*classes, *angles)) or len({*classes}) < len(classes):
            raise ValueError(f"Classes and angles need names, each class once: got {classes} and {[*angles]}.")
        if not all(math.isfinite(angle) for angle in angles.values()):
            raise ValueError(f"An angle must be a number of radians, got {angles}.")
        self.tokenizer = tokenizer
        self.max_length = kept_length(max_length, tokenizer)
        self.slices = slices
        self.dimensions = DIMENSIONS if dominance else VA
        self.chunks = chunks
        self.class_indices = {name: index for index, name in enumerate(classes)}
        self.angles = angles
        self._said_unknown = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if not rows or not all(isinstance(row, Mapping) for row in rows):
            raise ValueError("A batch is a list of one row or more, such as {'text': 'a text', 'valence': 0.5}.")
        if any("text" not in row for row in rows):
            raise ValueError(f"A row has no column 'text' (it has {', '.join(rows[0])}): rename the column.")
        wrong = next((row["text"] for row in rows if not isinstance(row["text"], str)), "")
        if wrong != "":
            raise ValueError(f"A row: column 'text' holds {wrong!r}, not a text; correct or remove the row.")
        check_unicode(row["text"] for row in rows)
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
            length = lengths[i]
            input_ids[position, :length] = torch.tensor(encoded["input_ids"][i])
            attention_mask[position, :length] = 1
            eligible[position, :length] = torch.tensor(encoded["special_tokens_mask"][i]) == 0
        slices, per_chunk = slices_of([lengths[i] for i in order], slices=self.slices, chunks=self.chunks)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "eligible": eligible,
            "va": torch.tensor([_va(rows[i], self.dimensions) for i in order], dtype=torch.float32),
            "class": torch.tensor([self._class(rows[i]) for i in order]),
            "angle": torch.tensor([self._angle(rows[i]) for i in order], dtype=torch.float32),
            "weight": torch.tensor([_weight(rows[i]) for i in order]),
            "row": torch.tensor(order),
            "slices": slices,
            "slices_per_chunk": per_chunk,
        }

    def _class(self, row: dict[str, Any]) -> int:
        label = self._label(row)
        if self.class_indices and label and label not in self.class_indices and not self._said_unknown:
            self._said_unknown = True
            logger.warning(
                "Texts have labels that are no classes of the model, such as %r: they count as missing.", label
            )
        return self.class_indices.get(label, NO_CLASS)

    def _label(self, row: dict[str, Any]) -> str:
        label = row.get("label")
        if isinstance(label, str) or label is None or (isinstance(label, float) and math.isnan(label)):
            return label if isinstance(label, str) else ""
        if self.class_indices or self.angles:
            raise ValueError(f"The label {label!r} of the text {row['text'][:80]!r} must be the name of a class.")
        return ""

    def _angle(self, row: dict[str, Any]) -> float:
        valence, arousal = _va(row, VA)
        if math.isnan(valence + arousal):
            label = self._label(row)
            return self.angles.get(label, self.angles.get(label.lower(), math.nan))
        return math.atan2(arousal, valence) if valence or arousal else math.nan


def _va(row: dict[str, Any], dimensions: Sequence[str]) -> list[float]:
    found = [math.nan if row.get(name) is None else row[name] for name in dimensions]
    if any(not isinstance(value, (int, float, np.number)) for value in found):
        raise ValueError(f"The labels of the text {row['text'][:80]!r} are no numbers, but {found}: convert them.")
    if any(abs(value) > 1 for value in found):
        stated = ", ".join(f"{name} {value}" for name, value in zip(dimensions, found, strict=True))
        raise ValueError(
            f"The labels of the text {row['text'][:80]!r} ({stated}) do not lie in [-1, 1]: load it with "
            "load_va_dataset(..., scale=(least, greatest)), which normalises."
        )
    return found


def _weight(row: dict[str, Any]) -> float:
    weight = row.get("weight")
    if weight is None or weight != weight:  # NaN
        return 1.0
    if not LEAST_WEIGHT <= weight <= GREATEST_WEIGHT:
        raise ValueError(f"The weight {weight} of the text {row['text'][:80]!r} must be a positive number.")
    return float(weight)


def slices_of(
    lengths: Sequence[int], *, slices: int, chunks: int
) -> tuple[tuple[tuple[int, int, int], ...], tuple[int, ...]]:
    """Divides texts into chunks of about equal numbers of tokens, and each chunk into slices of about equal numbers of
    texts (into fewer where there are not enough texts).

    Args:
        lengths: tokens of each text, longest first.

    Returns:
        (texts, width, tokens) of each slice; and how many slices each chunk has.
    """
    sizes_of_chunks = [_even_sizes(texts, slices) for texts in _even_tokens(lengths, chunks)]
    found, start = [], 0
    for size in (size for sizes in sizes_of_chunks for size in sizes):
        found.append((size, lengths[start], sum(lengths[start : start + size])))
        start += size
    return tuple(found), tuple(len(sizes) for sizes in sizes_of_chunks)


def _even_sizes(total: int, count: int) -> list[int]:
    """`total` as a sum of at most `count` positive integers that differ by at most 1."""
    return [len(part) for part in torch.arange(total).tensor_split(min(count, total))]


def _even_tokens(lengths: Sequence[int], count: int) -> list[int]:
    """How many consecutive texts each of at most `count` chunks takes, for about equal numbers of tokens."""
    before = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)  # a text belongs where its first token falls
    chunk = torch.div(before * count, sum(lengths), rounding_mode="floor")
    return chunk.unique_consecutive(return_counts=True)[1].tolist()
