"""The training losses as pure functions on tensors.

Shape suffixes: B texts (of this process for `mccl_loss` and `focal_detection_loss`, else those that are passed),
G texts of the global batch, L tokens, D embedding or projection width, P proxies (one a class), C classes,
2 (valence, arousal).

Several processes: `mccl_loss` and `focal_detection_loss` are means over this process's rows. Their average over
processes with equal batches is the value and gradient of one process on the global batch (the columns of other
processes enter without gradient). The other losses depend on the whole batch at once: pass them the global batch,
gathered with gradient ([`carl_hf.training.distributed.gather_with_gradient`]).

A missing label is marked, and the loss leaves that row out: NaN for valence and arousal or an angle, -1 for a class.
A batch without any labelled row has loss 0.

Source, where nothing else is named: Son, Saurez, Har, "Continuous Adversarial Text Representation Learning for
Affective Recognition", arXiv 2502.20613. Equation numbers are the paper's.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

LabelKernel = Literal["cosine", "distance"]
NO_CLASS = -1
"""Class index of a text without a class label."""

_Loss = TypeVar("_Loss", bound=Callable[..., Tensor])
_NEVER = -1e9  # a logit whose probability is 0, finite so that a row of nothing else has no NaN in its gradient


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
        va_B2, va_G2 (`Tensor`): valence and arousal in [-1, 1] of the same texts; NaN marks a text without a label,
            which is neither row nor column.
        temperature (`float`): divides the cosine of embeddings (the paper's 0.05).
        label_temperature (`float`): divides the similarity of labels.
        kernel (`str`): see `label_similarity`.
        row_offset (`int`): column of row 0's own text, that is rank * B under data parallelism.

    Returns:
        scalar `Tensor`: the mean over labelled rows, each of the global batch with the same weight; 0 for a batch of
            one text (which has nothing to be contrasted with).
    """
    unlabelled_B1, unlabelled_G = va_B2.isnan().any(-1, keepdim=True), va_G2.isnan().any(-1)
    cosine_BG = F.normalize(online_BD, dim=-1) @ F.normalize(target_GD, dim=-1).T  # Eq 3
    labels_BG = label_similarity(
        va_B2.nan_to_num(), va_G2.nan_to_num(), kernel=kernel, row_offset=row_offset
    )  # Eq 4  # fmt: skip

    def log_probabilities(logits_BG: Tensor) -> Tensor:  # Eq 5; 0 where a label is missing: adds 0 to Eq 6
        log_p_BG = F.log_softmax(logits_BG.masked_fill(unlabelled_G, _NEVER), dim=-1)
        return log_p_BG.masked_fill(unlabelled_G | unlabelled_B1, 0)

    loss = symmetric_cross_entropy(  # Eq 6
        log_probabilities(cosine_BG / temperature), log_probabilities(labels_BG / label_temperature)
    )
    return loss * len(va_G2) / (~unlabelled_G).sum().clamp_min(1)


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
    # x^gamma has no finite derivative at 0 for gamma < 1, where a certain token would make the gradient NaN
    doubt_BL = (1 - probability_BL).clamp_min(torch.finfo(probability_BL.dtype).tiny)
    focal_BL = doubt_BL**gamma * cross_entropy_BL
    eligible_BL = eligible_BL.to(logits_BL.dtype)
    return ((focal_BL * eligible_BL).sum(-1) / eligible_BL.sum(-1).clamp_min(1)).mean()


@_in_full_precision
def proxy_anchor_loss(
    z_BD: Tensor, labels_B: Tensor, proxies_PD: Tensor, *, alpha: float = 32.0, margin: float = 0.1
) -> Tensor:
    """Proxy-Anchor loss: every class's proxy draws the texts of its class and repels all others, hard ones most.

    With s the cosine, X_p+ and X_p- the texts with and without p's class, and P+ the proxies with a text in the batch:
    1/|P+| sum_{P+} log(1 + sum_{X_p+} exp(-alpha (s - margin))) + 1/|P| sum_P log(1 + sum_{X_p-} exp(alpha (s +
    margin))).

    Args:
        z_BD (`Tensor`): embeddings, any scale. labels_B (`Tensor`): classes, 0 to P - 1, or -1 for a text without.
        proxies_PD (`Tensor`): one vector a class, any scale. alpha (`float`): how much harder texts weigh, > 0.
        margin (`float`): by which the cosine to the own proxy is to exceed 0, and that to others to fall below it.

    Returns:
        scalar `Tensor` >= 0.

    Source: Kim et al., CVPR 2020, arXiv 2003.13911, Eq 4; for emotions Park et al., ICAAI 2022.
    """
    cosine_PB = F.normalize(proxies_PD, dim=-1) @ F.normalize(z_BD, dim=-1).T
    own_PB = torch.arange(len(proxies_PD), device=z_BD.device).unsqueeze(1) == labels_B
    other_PB = ~own_PB & (labels_B != NO_CLASS)

    def log_one_plus_sum_exp(exponents_PB: Tensor, counted_PB: Tensor) -> Tensor:
        one_P1 = exponents_PB.new_zeros(len(exponents_PB), 1)  # the exponent of the 1
        return torch.logsumexp(torch.cat([one_P1, exponents_PB.masked_fill(~counted_PB, _NEVER)], dim=1), dim=1)

    positive_P = log_one_plus_sum_exp(-alpha * (cosine_PB - margin), own_PB)  # 0 without a text of the class
    negative_P = log_one_plus_sum_exp(alpha * (cosine_PB + margin), other_PB)
    return positive_P.sum() / own_PB.any(1).sum().clamp_min(1) + negative_P.mean()


@_in_full_precision
def circular_loss(z_BD: Tensor, angles_B: Tensor, *, same_label_margin: float = 0.0) -> Tensor:
    """Circular loss: the cosine of two embeddings should equal the cosine of the angle between their labels.

    Mean over pairs i < j of (cos(z_i, z_j) - cos(angle_i - angle_j))^2.

    Args:
        z_BD (`Tensor`): embeddings, any scale. angles_B (`Tensor`): radians on the circumplex; NaN for a text without.
        same_label_margin (`float`): two texts with one angle cost nothing while their cosine is above 1 -
            same_label_margin.

    Returns:
        scalar `Tensor` >= 0; 0 without a pair of texts that have angles.

    Source: Yamauchi and Aizawa, arXiv 2601.06575.
    """
    known_B, angles_B = ~angles_B.isnan(), angles_B.nan_to_num().to(z_BD.dtype)
    unit_BD = F.normalize(z_BD, dim=-1)
    cosine_BB = unit_BD @ unit_BD.T
    difference_BB = angles_B.unsqueeze(1) - angles_B
    error_BB = cosine_BB - difference_BB.cos()
    if same_label_margin:
        same_BB = difference_BB == 0
        error_BB = torch.where(same_BB, (error_BB + same_label_margin).clamp_max(0), error_BB)
    pair_BB = (known_B.unsqueeze(1) & known_B).triu(1)
    return (error_BB.square() * pair_BB).sum() / pair_BB.sum().clamp_min(1)


@_in_full_precision
def supervised_contrastive_loss(z_BD: Tensor, labels_B: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Supervised contrastive loss in SINCERE's form: a text against its class, one positive at a time.

    Of anchor i and positive p, with s the cosine over the temperature: -log(exp s_ip / (exp s_ip + sum of exp s_in
    over the texts n of other classes)). The other positives are in no denominator, which is what distinguishes it
    from SupCon. Mean over the positives of an anchor, then over anchors that have one.

    Args:
        z_BD (`Tensor`): embeddings, any scale. labels_B (`Tensor`): classes >= 0, or -1 for a text without.
        temperature (`float`): > 0.

    Returns:
        scalar `Tensor` >= 0; 0 where no two texts share a class.

    Source: Feeney and Hughes, "SINCERE: Supervised Information Noise-Contrastive Estimation Revisited",
    arXiv 2309.14277.
    """
    unit_BD = F.normalize(z_BD, dim=-1)
    logits_BB = unit_BD @ unit_BD.T / temperature
    known_BB = (labels_B.unsqueeze(1) != NO_CLASS) & (labels_B != NO_CLASS)
    same_BB = labels_B.unsqueeze(1) == labels_B
    positive_BB = same_BB & known_BB & ~torch.eye(len(z_BD), dtype=torch.bool, device=z_BD.device)
    negatives_B1 = torch.logsumexp(logits_BB.masked_fill(same_BB | ~known_BB, _NEVER), dim=1, keepdim=True)
    cost_BB = torch.logaddexp(logits_BB, negatives_B1) - logits_BB
    count_B = positive_BB.sum(1)
    mean_B = (cost_BB * positive_BB).sum(1) / count_B.clamp_min(1)
    return mean_B.sum() / (count_B > 0).sum().clamp_min(1)


@_in_full_precision
def simcse_loss(z_BD: Tensor, view_BD: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Unsupervised SimCSE: a text's two encodings under two dropout masks, against those of all other texts.

    Args:
        z_BD, view_BD (`Tensor`): the two embeddings of the same texts, any scale. temperature (`float`): > 0.

    Returns:
        scalar `Tensor` >= 0: the mean over rows of the cross-entropy of row i choosing view i.

    Source: Gao, Yao, Chen, "SimCSE", arXiv 2104.08821, Eq 4.
    """
    logits_BB = F.normalize(z_BD, dim=-1) @ F.normalize(view_BD, dim=-1).T / temperature
    return F.cross_entropy(logits_BB, torch.arange(len(z_BD), device=z_BD.device))


@_in_full_precision
def class_cross_entropy(logits_BC: Tensor, labels_B: Tensor, *, weights_C: Tensor | None = None) -> Tensor:
    """Cross-entropy of a linear classifier, over the texts that have a class.

    Args:
        logits_BC (`Tensor`): logits. labels_B (`Tensor`): classes, 0 to C - 1, or -1 for a text without.
        weights_C (`Tensor`, *optional*): weight of every class; the mean is weighted too.

    Returns:
        scalar `Tensor` >= 0.
    """
    known_B = labels_B != NO_CLASS
    classes_B = labels_B.clamp_min(0)
    weight_B = known_B.to(logits_BC.dtype) if weights_C is None else weights_C.to(logits_BC)[classes_B] * known_B
    cost_B = F.cross_entropy(logits_BC, classes_B, reduction="none")
    return (cost_B * weight_B).sum() / weight_B.sum().clamp_min(torch.finfo(weight_B.dtype).tiny)


@_in_full_precision
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
