"""Figures that tell how training goes: detection AUC and signs of collapse."""

import torch
from torch import Tensor, nn


def detection_auc(logits: Tensor, positive: Tensor, eligible: Tensor) -> Tensor:
    """Area under the ROC curve over the eligible entries, ties counted half; NaN without both classes.

    Args:
        logits, positive, eligible (`Tensor`): scores and two boolean masks of one shape.

    Returns:
        scalar `Tensor`. No host-device synchronisation.
    """
    scores = logits.detach().float().flatten()
    positive, negative = (positive & eligible).flatten(), (~positive & eligible).flatten()
    sorted_negatives = torch.where(negative, scores, torch.inf).sort().values
    below = torch.searchsorted(sorted_negatives, scores, side="left")
    not_above = torch.searchsorted(sorted_negatives, scores, side="right")
    twice_the_wins = torch.where(positive, below + not_above, 0).sum()
    return twice_the_wins / (2 * positive.sum() * negative.sum())


def embedding_spread(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Two signs of collapse for embeddings (N, H): spread and effective rank.

    Returns:
        the mean standard deviation of the coordinates of length-1 embeddings, times sqrt(H): 1 if they fill the sphere
        evenly, 0 if all are one (Chen and He, arXiv 2011.10566, section 4.1); and the effective rank of the centred
        embeddings, exp of the entropy of their normalised singular values, from 1 to min(N, H) (Roy and Vetterli
        2007).
    """
    unit = nn.functional.normalize(embeddings.detach().float(), dim=-1)
    if not unit.isfinite().all():
        undefined = torch.full((), torch.nan, device=unit.device)
        return undefined, undefined
    spread = unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5
    singular = torch.linalg.svdvals(unit - unit.mean(0))
    share = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny)
    return spread, torch.exp(-torch.special.xlogy(share, share).sum())


@torch.no_grad()
def parameter_distance(target: nn.Module, online: nn.Module) -> Tensor:
    """|| theta_target - theta_online || / || theta_online || over all parameters of two modules of one structure."""
    online_parameters = [p.detach().float() for p in online.parameters()]
    difference = torch._foreach_sub([p.detach().float() for p in target.parameters()], online_parameters)
    distance = torch.stack(torch._foreach_norm(difference)).norm()
    return distance / torch.stack(torch._foreach_norm(online_parameters)).norm()
