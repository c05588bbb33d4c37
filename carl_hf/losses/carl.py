"""The paper's losses: contrast on continuous labels, detection of perturbed tokens; and regression of the labels."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from carl_hf.losses.common import NEVER, check_one_each, in_full_precision, weighted_mean

LabelKernel = Literal["cosine", "distance"]


def _own_column(num_rows: int, num_columns: int, row_offset: int, device: torch.device) -> Tensor:
    """Boolean (rows, columns): True where the column is the row's own text, column `row_offset + i` of row i."""
    rows = torch.arange(num_rows, device=device).unsqueeze(1) + row_offset
    return rows == torch.arange(num_columns, device=device)


@in_full_precision
def label_distance(va_B2: Tensor, va_G2: Tensor) -> Tensor:
    """Euclidean distance of labels in the dimensions that both texts have, times the root of (2 / their number).

    So distances in one dimension and in two are comparable: both are sqrt(2) times the root mean square difference.

    Args:
        va_B2, va_G2 (`Tensor`): valence and arousal; NaN marks a missing number.

    Returns:
        `Tensor` of shape (B, G); NaN where two texts share no dimension.
    """
    difference_BG2 = va_B2.unsqueeze(1) - va_G2
    squared_BG = difference_BG2.nan_to_num().square().sum(-1)
    shared_BG = (~difference_BG2.isnan()).sum(-1).to(squared_BG.dtype)
    return squared_BG.sqrt() * (va_B2.shape[1] / shared_BG).sqrt()


@in_full_precision
def label_similarity(va_B2: Tensor, va_G2: Tensor, *, kernel: LabelKernel = "cosine", row_offset: int = 0) -> Tensor:
    """Similarity of valence-arousal labels, the V of Eq 4.

    Args:
        va_B2 (`Tensor`): valence and arousal of this process's texts, each in [-1, 1], or NaN if missing.
        va_G2 (`Tensor`): valence and arousal of the global batch.
        kernel (`str`): `"cosine"`, Eq 4, compares the angle on the circumplex and ignores intensity. `"distance"`,
            `1 - d / sqrt(2)` of `label_distance`, respects intensity: 1 for equal labels, -1 for opposite corners of
            the plane.
        row_offset (`int`): the column of row i's own text is `row_offset + i`.

    Returns:
        `Tensor` of shape (B, G) in [-1, 1], NaN where two texts share no dimension. Under `"cosine"`, where Eq 4 is
        0/0 for a zero label vector, such a text has similarity 1 to itself and 0 to every other text. A missing number
        adds nothing to the product of two labels, and to the length of its own the root mean square of all numbers
        known in the batch: a label of valence alone is as similar to others as if its arousal were of usual size and
        perpendicular to theirs. So a small valence says little, and texts with one number are on average no more
        similar to others than texts with two.

    Raises:
        ValueError: if the kernel is unknown.
    """
    if kernel == "cosine":
        known_G2 = ~va_G2.isnan()
        mean_square = va_G2.nan_to_num().square().sum() / known_G2.sum().clamp_min(1)
        similarity_BG = _unit_labels(va_B2, mean_square) @ _unit_labels(va_G2, mean_square).T
        own_BG = _own_column(len(va_B2), len(va_G2), row_offset, va_B2.device)
        shared_BG = (~va_B2.isnan()).to(va_B2.dtype) @ known_G2.to(va_B2.dtype).T > 0
        return torch.where(own_BG, 1.0, similarity_BG).masked_fill(~shared_BG, math.nan)
    if kernel == "distance":
        return 1 - label_distance(va_B2, va_G2) / math.sqrt(va_B2.shape[1])
    raise ValueError(f"Unknown label kernel {kernel!r}: choose 'cosine' or 'distance'.")


def _unit_labels(va_N2: Tensor, mean_square: Tensor) -> Tensor:
    """Labels over their lengths, to which a missing number adds a square of `mean_square`; it is 0 itself."""
    known_N2 = va_N2.nan_to_num()
    length_N1 = torch.hypot(  # exact where nothing is missing
        known_N2.norm(dim=-1, keepdim=True), (mean_square * va_N2.isnan().sum(-1, keepdim=True)).sqrt()
    )
    return known_N2 / length_N1.clamp_min(1e-12)


@in_full_precision
def symmetric_cross_entropy(log_p: Tensor, log_q: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """CE(p, q) + CE(q, p), mean over rows (Eq 6, both cross-entropies positive).

    At p = q the value is twice the entropy of p. That is not its minimum over p: a slightly sharper p scores lower.

    Args:
        log_p, log_q (`Tensor`): log-probabilities of shape (B, G), each row summing to 1 after `exp`.
        weight_B (`Tensor`, *optional*): factors on the rows.

    Returns:
        scalar `Tensor`.
    """
    rows_B = (log_p.exp() * log_q + log_q.exp() * log_p).sum(-1)
    return -(rows_B if weight_B is None else rows_B * weight_B).mean()


@in_full_precision
def mccl_loss(
    online_BD: Tensor, target_GD: Tensor, va_B2: Tensor, va_G2: Tensor, *, temperature: float,
    label_temperature: float, kernel: LabelKernel = "cosine", row_offset: int = 0, widths: Sequence[int] | None = None,
    weight_G: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Momentum continuous contrastive loss (Eq 3 to 6): similarities of embeddings follow those of the labels.

    Args:
        online_BD (`Tensor`): predictions of the online branch for this process's texts, any scale.
        target_GD (`Tensor`): projections of the target branch for the global batch, without gradient.
        va_B2, va_G2 (`Tensor`): valence and arousal in [-1, 1] of the same texts; NaN marks a missing number. A row
            leaves out the texts that share no dimension with it; a text without any is neither row nor column.
        temperature (`float`): divides the cosine of embeddings (the paper's 0.05).
        label_temperature (`float`): divides the similarity of labels.
        kernel (`str`): see `label_similarity`.
        row_offset (`int`): column of row 0's own text, that is rank * B under data parallelism.
        widths (`list[int]`, *optional*): of several vectors that lie side by side in `online_BD` and `target_GD`: the
            loss is the mean of theirs.
        weight_G (`Tensor`, *optional*): of the texts of the global batch, as rows.

    Returns:
        scalar `Tensor`: the mean over labelled rows, each of the global batch with the same weight or its own; 0 for a
            batch of one text (which has nothing to be contrasted with).
    """
    labels_BG = label_similarity(va_B2, va_G2, kernel=kernel, row_offset=row_offset)  # Eq 4
    apart_BG = labels_BG.isnan()

    def log_probabilities(logits_BG: Tensor) -> Tensor:  # Eq 5; 0 where nothing is to be compared: adds 0 to Eq 6
        log_p_BG = F.log_softmax(logits_BG.masked_fill(apart_BG, NEVER), dim=-1)
        return log_p_BG.masked_fill(apart_BG, 0)

    log_labels_BG, widths = log_probabilities(labels_BG / label_temperature), widths or [online_BD.shape[-1]]
    weight_G = torch.ones_like(va_G2[:, 0]) if weight_G is None else weight_G
    weight_B = weight_G[row_offset : row_offset + len(va_B2)]
    losses = []
    for one_BD, other_GD in zip(online_BD.split(widths, -1), target_GD.split(widths, -1), strict=True):
        cosine_BG = F.normalize(one_BD, dim=-1) @ F.normalize(other_GD, dim=-1).T  # Eq 3
        log_cosine_BG = log_probabilities(cosine_BG / temperature)
        losses.append(symmetric_cross_entropy(log_cosine_BG, log_labels_BG, weight_B))  # Eq 6
    labelled_G = ~va_G2.isnan().all(-1)
    return sum(losses) / len(losses) * len(va_G2) / (weight_G * labelled_G).sum().clamp_min(1e-12)


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
def va_regression_loss(predicted_B2: Tensor, va_B2: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Mean squared error of predicted valence and arousal, over the numbers that are known.

    Args:
        predicted_B2 (`Tensor`): predictions. va_B2 (`Tensor`): valence and arousal in [-1, 1], or NaN if missing.
        weight_B (`Tensor`, *optional*): of the texts.

    Returns:
        scalar `Tensor` >= 0.
    """
    if predicted_B2.shape != va_B2.shape:
        raise ValueError(f"Predictions {tuple(predicted_B2.shape)} and labels {tuple(va_B2.shape)} differ in shape.")
    check_one_each(va_B2, weight_B=weight_B)
    squared_B2 = (predicted_B2 - va_B2.nan_to_num()).square()
    return weighted_mean(squared_B2, ~va_B2.isnan(), None if weight_B is None else weight_B.unsqueeze(1))
