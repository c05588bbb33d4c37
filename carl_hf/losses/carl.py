"""The paper's losses: contrast on continuous labels, detection of perturbed tokens; and regression of the labels."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from carl_hf.losses.common import NEVER, in_full_precision

LabelKernel = Literal["cosine", "distance"]


def _own_column(num_rows: int, num_columns: int, row_offset: int, device: torch.device) -> Tensor:
    """Boolean (rows, columns): True where the column is the row's own text, column `row_offset + i` of row i."""
    rows = torch.arange(num_rows, device=device).unsqueeze(1) + row_offset
    return rows == torch.arange(num_columns, device=device)


@in_full_precision
def label_similarity(va_B2: Tensor, va_G2: Tensor, *, kernel: LabelKernel = "cosine", row_offset: int = 0) -> Tensor:
    """Similarity of valence-arousal labels, the V of Eq 4.

    Args:
        va_B2 (`Tensor`): valence and arousal of this process's texts, each in [-1, 1].
        va_G2 (`Tensor`): valence and arousal of the global batch.
        kernel (`str`): `"cosine"`, Eq 4, compares the angle on the circumplex and ignores intensity. `"distance"`,
            `1 - ||a - b|| / sqrt(2)`, respects intensity: 1 for equal labels, -1 for opposite corners of the plane.
        row_offset (`int`): the column of row i's own text is `row_offset + i`.

    Returns:
        `Tensor` of shape (B, G) in [-1, 1]. Under `"cosine"`, where Eq 4 is 0/0 for a zero label vector, such a text
        has similarity 1 to itself and 0 to every other text.

    Raises:
        ValueError: if the kernel is unknown.
    """
    if kernel == "cosine":
        similarity_BG = F.normalize(va_B2, dim=-1) @ F.normalize(va_G2, dim=-1).T
        own_BG = _own_column(len(va_B2), len(va_G2), row_offset, va_B2.device)
        return torch.where(own_BG, 1.0, similarity_BG)
    if kernel == "distance":
        return 1 - (va_B2.unsqueeze(1) - va_G2).square().sum(-1).sqrt() / math.sqrt(2)
    raise ValueError(f"Unknown label kernel {kernel!r}: choose 'cosine' or 'distance'.")


@in_full_precision
def symmetric_cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """CE(p, q) + CE(q, p), mean over rows (Eq 6, both cross-entropies positive).

    At p = q the value is twice the entropy of p. That is not its minimum over p: a slightly sharper p scores lower.

    Args:
        log_p, log_q (`Tensor`): log-probabilities of shape (B, G), each row summing to 1 after `exp`.

    Returns:
        scalar `Tensor`.
    """
    return -(log_p.exp() * log_q + log_q.exp() * log_p).sum(-1).mean()


@in_full_precision
def mccl_loss(
    online_BD: Tensor,
    target_GD: Tensor,
    va_B2: Tensor,
    va_G2: Tensor,
    *,
    temperature: float,
    label_temperature: float,
    kernel: LabelKernel = "cosine",
    row_offset: int = 0,
    widths: Sequence[int] | None = None,
) -> Tensor:
    """Momentum continuous contrastive loss (Eq 3 to 6): similarities of embeddings follow those of the labels.

    Args:
        online_BD (`Tensor`): predictions of the online branch for this process's texts, any scale.
        target_GD (`Tensor`): projections of the target branch for the global batch, without gradient.
        va_B2, va_G2 (`Tensor`): valence and arousal in [-1, 1] of the same texts; NaN marks a text without a label,
            which is neither row nor column.
        temperature (`float`): divides the cosine of embeddings (the paper's 0.05).
        label_temperature (`float`): divides the similarity of labels.
        kernel (`str`): see `label_similarity`.
        row_offset (`int`): column of row 0's own text, that is rank * B under data parallelism.
        widths (`list[int]`, *optional*): of several vectors that lie side by side in `online_BD` and `target_GD`: the
            loss is the mean of theirs.

    Returns:
        scalar `Tensor`: the mean over labelled rows, each of the global batch with the same weight; 0 for a batch of
            one text (which has nothing to be contrasted with).
    """
    unlabelled_B1, unlabelled_G = va_B2.isnan().any(-1, keepdim=True), va_G2.isnan().any(-1)
    labels_BG = label_similarity(
        va_B2.nan_to_num(), va_G2.nan_to_num(), kernel=kernel, row_offset=row_offset
    )  # Eq 4  # fmt: skip

    def log_probabilities(logits_BG: Tensor) -> Tensor:  # Eq 5; 0 where a label is missing: adds 0 to Eq 6
        log_p_BG = F.log_softmax(logits_BG.masked_fill(unlabelled_G, NEVER), dim=-1)
        return log_p_BG.masked_fill(unlabelled_G | unlabelled_B1, 0)

    log_labels_BG, widths = log_probabilities(labels_BG / label_temperature), widths or [online_BD.shape[-1]]
    losses = []
    for one_BD, other_GD in zip(online_BD.split(widths, -1), target_GD.split(widths, -1), strict=True):
        cosine_BG = F.normalize(one_BD, dim=-1) @ F.normalize(other_GD, dim=-1).T  # Eq 3
        losses.append(symmetric_cross_entropy(log_probabilities(cosine_BG / temperature), log_labels_BG))  # Eq 6
    return sum(losses) / len(losses) * len(va_G2) / (~unlabelled_G).sum().clamp_min(1)


@in_full_precision
def focal_detection_loss(logits_BL: Tensor, perturbed_BL: Tensor, eligible_BL: Tensor, *, gamma: float) -> Tensor:
    """Focal loss of the perturbed-token detector (Eq 10): -(1 - p_t)^gamma log p_t.

    Args:
        logits_BL (`Tensor`): detector logits; positive means "perturbed".
        perturbed_BL (`Tensor`): boolean, the tokens that were perturbed.
        eligible_BL (`Tensor`): boolean, the tokens that count (neither special nor padding).
        gamma (`float`): focusing exponent >= 0; 0 is the binary cross-entropy.

    Returns:
        scalar `Tensor`: mean over the eligible tokens of a text, then over texts; a text without an eligible token
            adds 0.
    """
    cross_entropy_BL = F.binary_cross_entropy_with_logits(
        logits_BL, perturbed_BL.to(logits_BL.dtype), reduction="none"
    )
    probability_BL = torch.exp(-cross_entropy_BL)  # p_t, of the true class
    # x^gamma has no finite derivative at 0 for gamma < 1, where a certain token would make the gradient NaN
    doubt_BL = (1 - probability_BL).clamp_min(torch.finfo(probability_BL.dtype).tiny)
    focal_BL = doubt_BL**gamma * cross_entropy_BL
    eligible_BL = eligible_BL.to(logits_BL.dtype)
    return ((focal_BL * eligible_BL).sum(-1) / eligible_BL.sum(-1).clamp_min(1)).mean()


@in_full_precision
def va_regression_loss(predicted_B2: Tensor, va_B2: Tensor) -> Tensor:
    """Mean squared error of predicted valence and arousal, over the texts that have both.

    Args:
        predicted_B2 (`Tensor`): predictions. va_B2 (`Tensor`): valence and arousal in [-1, 1], or NaN.

    Returns:
        scalar `Tensor` >= 0.
    """
    known_B1 = ~va_B2.isnan().any(-1, keepdim=True)
    squared_B2 = (predicted_B2 - va_B2.nan_to_num()).square() * known_B1
    return squared_B2.sum() / (2 * known_B1.sum()).clamp_min(1)
