"""Losses on class labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from carl_hf.losses.common import NEVER, check_one_each, in_full_precision, weighted_mean


@in_full_precision
def proxy_anchor_loss(
    z_BD: Tensor, labels_B: Tensor, proxies_PD: Tensor, *, alpha: float = 32.0, margin: float = 0.1,
    weight_B: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Proxy-Anchor loss: every class's proxy draws the texts of its class and repels all others, hard ones most.

    With s the cosine, X_p+ and X_p- the texts with and without p's class, and P+ the proxies with a text in the batch:
    1/|P+| sum_{P+} log(1 + sum_{X_p+} exp(-alpha (s - margin))) + 1/|P| sum_P log(1 + sum_{X_p-} exp(alpha (s +
    margin))).

    Args:
        z_BD (`Tensor`): embeddings, any scale. labels_B (`Tensor`): classes, 0 to P - 1; below 0 for a text without.
        proxies_PD (`Tensor`): one vector a class, any scale. alpha (`float`): how much harder texts weigh, > 0.
        margin (`float`): by which the cosine to the own proxy is to exceed 0, and that to others to fall below it.
        weight_B (`Tensor`, *optional*): of the texts, factors in the inner sums.

    Returns:
        scalar `Tensor` >= 0.

    Source: Kim et al., CVPR 2020, arXiv 2003.13911, Eq 4; for emotions Park et al., ICAAI 2022.
    """
    check_one_each(z_BD, labels_B=labels_B, weight_B=weight_B)
    cosine_PB = F.normalize(proxies_PD, dim=-1) @ F.normalize(z_BD, dim=-1).T
    own_PB = torch.arange(len(proxies_PD), device=z_BD.device).unsqueeze(1) == labels_B
    other_PB = ~own_PB & (labels_B >= 0)

    def log_one_plus_sum_exp(exponents_PB: Tensor, counted_PB: Tensor) -> Tensor:
        exponents_PB = exponents_PB if weight_B is None else exponents_PB + weight_B.log()
        one_P1 = exponents_PB.new_zeros(len(exponents_PB), 1)  # the exponent of the 1
        return torch.logsumexp(torch.cat([one_P1, exponents_PB.masked_fill(~counted_PB, NEVER)], dim=1), dim=1)

    positive_P = log_one_plus_sum_exp(-alpha * (cosine_PB - margin), own_PB)  # 0 without a text of the class
    negative_P = log_one_plus_sum_exp(alpha * (cosine_PB + margin), other_PB)
    return positive_P.sum() / own_PB.any(1).sum().clamp_min(1) + negative_P.mean()


@in_full_precision
def supervised_contrastive_loss(
    z_BD: Tensor, labels_B: Tensor, *, temperature: float = 0.05, weight_B: Tensor | None = None
) -> Tensor:
    """Supervised contrastive loss in SINCERE's form: a text against its class, one positive at a time.

    Of anchor i and positive p, with s the cosine over the temperature: -log(exp s_ip / (exp s_ip + sum of exp s_in
    over the texts n of other classes)). The other positives are in no denominator, which is what distinguishes it
    from SupCon. Mean over the positives of an anchor, then over anchors that have one.

    Args:
        z_BD (`Tensor`): embeddings, any scale. labels_B (`Tensor`): classes >= 0, or below 0 for a text without.
        temperature (`float`): > 0. weight_B (`Tensor`, *optional*): of the texts, as anchors.

    Returns:
        scalar `Tensor` >= 0; 0 where no two texts share a class.

    Source: Feeney and Hughes, "SINCERE: Supervised Information Noise-Contrastive Estimation Revisited",
    arXiv 2309.14277.
    """
    check_one_each(z_BD, labels_B=labels_B, weight_B=weight_B)
    unit_BD = F.normalize(z_BD, dim=-1)
    logits_BB = unit_BD @ unit_BD.T / temperature
    known_BB = (labels_B.unsqueeze(1) >= 0) & (labels_B >= 0)
    same_BB = labels_B.unsqueeze(1) == labels_B
    positive_BB = same_BB & known_BB & ~torch.eye(len(z_BD), dtype=torch.bool, device=z_BD.device)
    negatives_B1 = torch.logsumexp(logits_BB.masked_fill(same_BB | ~known_BB, NEVER), dim=1, keepdim=True)
    cost_BB = torch.logaddexp(logits_BB, negatives_B1) - logits_BB
    count_B = positive_BB.sum(1)
    mean_B = (cost_BB * positive_BB).sum(1) / count_B.clamp_min(1)
    return weighted_mean(mean_B, count_B > 0, weight_B)


@in_full_precision
def class_cross_entropy(
    logits_BC: Tensor, labels_B: Tensor, *, weights_C: Tensor | None = None, weight_B: Tensor | None = None
) -> Tensor:
    """Cross-entropy of a linear classifier, over the texts that have a class.

    Args:
        logits_BC (`Tensor`): logits. labels_B (`Tensor`): classes, 0 to C - 1, or below 0 for a text without.
        weights_C (`Tensor`, *optional*): weight of every class; the mean is weighted too. weight_B (`Tensor`,
            *optional*): of the texts, times that of their class.

    Returns:
        scalar `Tensor` >= 0.
    """
    check_one_each(logits_BC, labels_B=labels_B, weight_B=weight_B)
    known_B = labels_B >= 0
    classes_B = labels_B.clamp_min(0)
    weight_B = torch.ones_like(logits_BC[:, 0]) if weight_B is None else weight_B
    if weights_C is not None:
        weight_B = weight_B * weights_C.to(logits_BC)[classes_B]
    return weighted_mean(F.cross_entropy(logits_BC, classes_B, reduction="none"), known_B, weight_B)
