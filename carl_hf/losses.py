"""The losses of CARL as pure functions on tensors.

Shape suffixes: B texts of this process, G texts of the global batch, L tokens, D projection width, 2 (valence,
arousal).

Every loss is the mean over its B rows, so that the average over processes of equal batches equals the value (and,
since the columns of other processes enter without gradient, the gradient) of one process on the joint batch.

Source: Son, Saurez, Har, "Continuous Adversarial Text Representation Learning for Affective Recognition",
arXiv 2502.20613. Equation numbers are the paper's.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

LabelKernel = Literal["cosine", "distance"]
_Loss = TypeVar("_Loss", bound=Callable[..., Tensor])


def _in_full_precision(loss: _Loss) -> _Loss:
    """Runs `loss` outside autocast, half-precision arguments widened to float32 (float64 stays)."""

    def widen(value: object) -> object:
        if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
            return value.float()
        return value

    @functools.wraps(loss)
    def wrapped(*arguments, **named):
        device = next(a.device for a in (*arguments, *named.values()) if isinstance(a, Tensor))
        with torch.autocast(device.type, enabled=False):
            return loss(*map(widen, arguments), **{name: widen(value) for name, value in named.items()})

    return wrapped


def _own_column(num_rows: int, num_columns: int, row_offset: int, device: torch.device) -> Tensor:
    """Boolean (rows, columns): True where the column is the row's own text, column `row_offset + i` of row i."""
    rows = torch.arange(num_rows, device=device).unsqueeze(1) + row_offset
    return rows == torch.arange(num_columns, device=device)


@_in_full_precision
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


@_in_full_precision
def symmetric_cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """CE(p, q) + CE(q, p), mean over rows (Eq 6, both cross-entropies positive).

    At p = q the value is twice the entropy of p. That is not its minimum over p: a slightly sharper p scores lower.

    Args:
        log_p, log_q (`Tensor`): log-probabilities of shape (B, G), each row summing to 1 after `exp`.

    Returns:
        scalar `Tensor`.
    """
    return -(log_p.exp() * log_q + log_q.exp() * log_p).sum(-1).mean()


@_in_full_precision
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
) -> Tensor:
    """Momentum continuous contrastive loss (Eq 3 to 6): similarities of embeddings follow those of the labels.

    Args:
        online_BD (`Tensor`): predictions of the online branch for this process's texts, any scale.
        target_GD (`Tensor`): projections of the target branch for the global batch, without gradient.
        va_B2, va_G2 (`Tensor`): valence and arousal in [-1, 1] of the same texts.
        temperature (`float`): divides the cosine of embeddings (the paper's 0.05).
        label_temperature (`float`): divides the similarity of labels.
        kernel (`str`): see `label_similarity`.
        row_offset (`int`): column of row 0's own text, that is rank * B under data parallelism.

    Returns:
        scalar `Tensor`, 0 for a batch of one text (which has nothing to be contrasted with).
    """
    cosine_BG = F.normalize(online_BD, dim=-1) @ F.normalize(target_GD, dim=-1).T  # Eq 3
    labels_BG = label_similarity(va_B2, va_G2, kernel=kernel, row_offset=row_offset)  # Eq 4
    log_p_sim_BG = F.log_softmax(cosine_BG / temperature, dim=-1)  # Eq 5
    log_p_va_BG = F.log_softmax(labels_BG / label_temperature, dim=-1)
    return symmetric_cross_entropy(log_p_sim_BG, log_p_va_BG)  # Eq 6


@_in_full_precision
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
    focal_BL = (1 - probability_BL).clamp_min(0) ** gamma * cross_entropy_BL
    eligible_BL = eligible_BL.to(logits_BL.dtype)
    return ((focal_BL * eligible_BL).sum(-1) / eligible_BL.sum(-1).clamp_min(1)).mean()
