"""The momentum target: schedule (Eq 2), update (Eq 1), and the callback that applies them after every optimizer step.

Source: Son, Saurez, Har, arXiv 2502.20613, Eq 1 and 2; the schedule is BYOL's (Grill et al., arXiv 2006.07733).
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import TrainerCallback


def cosine_momentum(step: int, total_steps: int, initial: float) -> float:
    """Momentum m_k = 1 - (1 - m_0) (cos(pi k / K) + 1) / 2 at step k of K (Eq 2): m_0 at the start, 1 at the end.

    An initial momentum of 0 stays 0: the target is the online branch, without dropout and gradient.

    Args:
        step (`int`): k, from 0 to `total_steps`.
        total_steps (`int`): K >= 1.
        initial (`float`): m_0 in [0, 1].

    Raises:
        ValueError: if one of them is out of its range.
    """
    if not 0 <= initial <= 1:
        raise ValueError(f"The initial momentum must lie in [0, 1], got {initial}.")
    if not 0 <= step <= total_steps or total_steps < 1:
        raise ValueError(
            f"Momentum step {step} of {total_steps}: needs 0 <= step <= total_steps and total_steps >= 1."
        )
    if initial == 0:
        return 0.0
    return 1 - (1 - initial) * (math.cos(math.pi * step / total_steps) + 1) / 2


def momentum_from_half_life(half_life: float) -> float:
    """The momentum with which the target forgets half of its past in `half_life` steps: 2^(-1 / half_life)."""
    if half_life <= 0:
        raise ValueError(f"The momentum's half-life must be positive (in optimizer steps), got {half_life}.")
    return 2 ** (-1 / half_life)


@torch.no_grad()
def update_target(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """theta_t <- m theta_t + (1 - m) theta_o for every parameter, in place (Eq 1).

    Args:
        target, online (`nn.Module`): of the same structure; the online parameters may be of a narrower dtype.
        momentum (`float`): m in [0, 1].
    """
    target_parameters = list(target.parameters())
    online_parameters = [p.to(t.dtype) for p, t in zip(online.parameters(), target_parameters, strict=True)]
    torch._foreach_mul_(target_parameters, momentum)
    torch._foreach_add_(target_parameters, online_parameters, alpha=1 - momentum)


class TargetUpdateCallback(TrainerCallback):
    """Updates `model.target` from `model.online` after every optimizer step that was taken.

    The momentum depends on `global_step / max_steps` alone (1 / max_steps after the first step), so that a resumed run
    continues exactly.

    Args:
        initial_momentum (`float`): m_0 in [0, 1]. skipped: called to learn whether the current step was skipped.
    """

    def __init__(self, initial_momentum: float, skipped: Callable[[], bool]):
        self.initial_momentum, self.skipped = initial_momentum, skipped

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        if self.skipped() or optimizer.step_was_skipped:  # the latter under fp16, where gradients overflowed
            return
        update_target(
            model.target, model.online, cosine_momentum(state.global_step, state.max_steps, self.initial_momentum)
        )
