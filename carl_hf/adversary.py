"""Eq 7 to 9 on tensors: token saliency, choice of the salient tokens, projected gradient ascent (PGD).

Shape suffixes: B texts, L tokens, H width of the word embeddings. Saliency and PGD take packed tokens (T, H), with
a mask (T,), as well.

Source: Son, Saurez, Har, arXiv 2502.20613, Eq 7 to 9.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def token_saliency(gradient_BLH: Tensor) -> Tensor:
    """Saliency g_t = || dL / d e_t ||_2 of every token (Eq 7).

    Args:
        gradient_BLH (`Tensor`): gradient of the sentence objective with respect to the word embeddings.

    Returns:
        `Tensor` of shape (B, L), >= 0, in float32 or wider.
    """
    return torch.linalg.vector_norm(_widen(gradient_BLH), dim=-1)


def select_salient_tokens(saliency_BL: Tensor, eligible_BL: Tensor, *, fraction: float) -> Tensor:
    """Chooses the set S of a text: the ceil(fraction * n) most salient of its n eligible tokens, at least one.

    Args:
        saliency_BL (`Tensor`): score of every token; higher is chosen first.
        eligible_BL (`Tensor`): boolean, the tokens that may be chosen.
        fraction (`float`): share in (0, 1]; the paper's 0.1.

    Returns:
        boolean `Tensor` of shape (B, L); no token of a text that has no eligible one.

    Raises:
        ValueError: if the fraction is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}.")
    scores_BL = _widen(saliency_BL).nan_to_num(0).masked_fill(~eligible_BL, -1)
    order_BL = scores_BL.argsort(dim=-1, descending=True, stable=True)
    rank_BL = order_BL.argsort(dim=-1)
    # less a hair: .1 * 30 must give 3, not 4
    count_B1 = torch.ceil(eligible_BL.sum(-1, keepdim=True) * fraction - 1e-4).clamp_min(1)
    return (rank_BL < count_B1) & eligible_BL


def pgd_perturbation(
    score_fn: Callable[[Tensor], Tensor], embeds_BLH: Tensor, token_mask_BL: Tensor, *, radius: float, relative: bool,
    step_size: float, steps: int, first_gradient: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Projected gradient ascent on the masked tokens (Eq 8): e <- Proj_ball(e, radius)(e + step * sign(grad)).

    The ball is the L2 ball round each token's own embedding. In absolute mode (the paper's) `radius` is its L2 radius
    and `step_size` moves every coordinate. In relative mode both are L2 lengths in units of the token embedding's own
    norm: a step is `step_size * ||e_t||` long in the direction of the gradient's sign.

    Args:
        score_fn (`Callable`): maps embeddings (B, L, H) to the scalar to raise. Not called if `first_gradient` is
            given and `steps` is 1.
        embeds_BLH (`Tensor`): clean embeddings; detached here.
        token_mask_BL (`Tensor`): boolean, the tokens to perturb.
        radius (`float`): >= 0, see above. step_size (`float`): >= 0. steps (`int`): >= 1.
        relative (`bool`): the unit of `radius` and `step_size`.
        first_gradient (`Tensor`, *optional*): gradient of the score at the clean embeddings, if it is known already.

    Returns:
        `Tensor` delta, shape and dtype of `embeds_BLH`: exactly zero off the mask, finite, at most `radius` long on
        every token. A token whose gradient is zero or not finite does not move.

    Raises:
        ValueError: if steps < 1, or radius or step_size is no number from 0 to 1e30.
    """
    if steps < 1 or not (0 <= radius <= 1e30 and 0 <= step_size <= 1e30):  # far from what overflows float32
        raise ValueError(f"PGD needs steps >= 1, radius >= 0 and step_size >= 0, got {steps}, {radius}, {step_size}.")
    embeds_BLH = embeds_BLH.detach()
    clean_BLH = _widen(embeds_BLH)
    mask_BL1 = token_mask_BL.unsqueeze(-1)
    width = embeds_BLH.shape[-1]
    if relative:
        norm_BL1 = torch.linalg.vector_norm(clean_BLH, dim=-1, keepdim=True)
        radius_BL1, step_BL1 = radius * norm_BL1, step_size * norm_BL1 / width**0.5
    else:
        radius_BL1 = clean_BLH.new_full((), radius)
        step_BL1 = clean_BLH.new_full((), step_size)
    # inside the ball in spite of rounding, also that of the cast to the embeddings' dtype
    radius_BL1 = radius_BL1 * (1 - 4 * torch.finfo(embeds_BLH.dtype).eps)

    delta_BLH = torch.zeros_like(clean_BLH)
    for step in range(steps):
        if step == 0 and first_gradient is not None:
            gradient_BLH = first_gradient
        else:
            moved_BLH = (clean_BLH + delta_BLH).to(embeds_BLH.dtype).requires_grad_()
            with torch.enable_grad():
                (gradient_BLH,) = torch.autograd.grad(score_fn(moved_BLH), moved_BLH)
        direction_BLH = _widen(gradient_BLH).nan_to_num(0, 0, 0).sign()
        delta_BLH = delta_BLH + step_BL1 * direction_BLH
        length_BL1 = torch.linalg.vector_norm(delta_BLH, dim=-1, keepdim=True)
        shrink_BL1 = radius_BL1 / length_BL1.clamp_min(torch.finfo(length_BL1.dtype).tiny)
        delta_BLH = torch.where(mask_BL1, delta_BLH * shrink_BL1.clamp_max(1), 0)
    return delta_BLH.to(embeds_BLH.dtype)


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
