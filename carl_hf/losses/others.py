"""Losses on angles of the circumplex, on the order of distances between labels, and on no labels at all."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from carl_hf.losses.carl import label_distance
from carl_hf.losses.common import check_one_each, in_full_precision, weighted_mean


@in_full_precision
def circular_loss(
    z_BD: Tensor, angles_B: Tensor, *, same_label_margin: float = 0.0, weight_B: Tensor | None = None
) -> Tensor:
    """Circular loss: the cosine of two embeddings should equal the cosine of the angle between their labels.

    Mean over pairs i < j of (cos(z_i, z_j) - cos(angle_i - angle_j))^2.

    Args:
        z_BD (`Tensor`): embeddings, any scale. angles_B (`Tensor`): radians on the circumplex; NaN for a text without.
        same_label_margin (`float`): two texts with one angle cost nothing while their cosine is above 1 -
            same_label_margin.
        weight_B (`Tensor`, *optional*): of the texts; a pair has the product.

    Returns:
        scalar `Tensor` >= 0; 0 without a pair of texts that have angles.

    Source: Yamauchi and Aizawa, arXiv 2601.06575.
    """
    check_one_each(z_BD, angles_B=angles_B, weight_B=weight_B)
    known_B, angles_B = ~angles_B.isnan(), angles_B.nan_to_num().to(z_BD.dtype)
    unit_BD = F.normalize(z_BD, dim=-1)
    cosine_BB = unit_BD @ unit_BD.T
    difference_BB = angles_B.unsqueeze(1) - angles_B
    error_BB = cosine_BB - difference_BB.cos()
    if same_label_margin:
        same_BB = difference_BB == 0
        error_BB = torch.where(same_BB, (error_BB + same_label_margin).clamp_max(0), error_BB)
    pair_BB = (known_B.unsqueeze(1) & known_B).triu(1)
    return weighted_mean(error_BB.square(), pair_BB, None if weight_B is None else weight_B.outer(weight_B))


@in_full_precision
def rank_n_contrast_loss(
    z_BD: Tensor, va_B2: Tensor, *, temperature: float = 2.0, similarity: Literal["distance", "cosine"] = "distance",
    weight_B: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Rank-N-Contrast: each text is nearer to a second one than to all whose labels are at least as far from its own.

    Of anchor i and positive j != i, with s the similarity over the temperature and d the `label_distance`:
    -log(exp s_ij / sum of exp s_ik over the texts k != i with d_ik >= d_ij). Mean over all pairs that share
    a dimension. Distances that differ by less than rounding, 1e-5, are equal. Memory is that of a few (B, B) matrices.

    Args:
        z_BD (`Tensor`): embeddings, any scale. va_B2 (`Tensor`): valence and arousal, or NaN if missing.
        temperature (`float`): > 0. similarity (`str`): `"distance"`, minus the Euclidean distance of embeddings, as
            published, with temperature 2; or `"cosine"`. weight_B (`Tensor`, *optional*): of the texts, as anchors.

    Returns:
        scalar `Tensor` >= 0; 0 without two texts that have labels.

    Source: Zha et al., "Rank-N-Contrast", NeurIPS 2023, arXiv 2210.01189, Eq 1 and 2, without its second view of a
    text.
    """
    check_one_each(z_BD, weight_B=weight_B)
    if similarity == "cosine":
        unit_BD = F.normalize(z_BD, dim=-1)
        similarity_BB = unit_BD @ unit_BD.T
    elif similarity == "distance":
        similarity_BB = -torch.cdist(z_BD, z_BD, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        raise ValueError(f"Unknown similarity {similarity!r}: choose 'distance' or 'cosine'.")
    # from the farthest label to the nearest; a denominator ends with the last text of the same distance
    nearness_BB = (label_distance(va_B2, va_B2) / -1e-5).round().nan_to_num(nan=torch.inf)
    nearness_BB.fill_diagonal_(torch.inf)  # what is not comparable, and a text with itself: after all, not counted
    nearness_BB, order_BB = nearness_BB.sort(dim=-1)
    last_BB = torch.searchsorted(nearness_BB, nearness_BB, right=True) - 1
    logits_BB = (similarity_BB / temperature).gather(1, order_BB)
    cost_BB = logits_BB.logcumsumexp(-1).gather(1, last_BB) - logits_BB
    return weighted_mean(cost_BB, nearness_BB.isfinite(), None if weight_B is None else weight_B.unsqueeze(1))


@in_full_precision
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
