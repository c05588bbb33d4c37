"""Losses on angles of the circumplex, and on no labels at all."""

import torch
import torch.nn.functional as F
from torch import Tensor

from carl_hf.losses.common import in_full_precision


@in_full_precision
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
