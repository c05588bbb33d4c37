"""The mean of an encoder's weights over the end of training (Izmailov et al., arXiv 1803.05407)."""

import torch
from transformers import TrainerCallback


class AverageLast(TrainerCallback):
    """When training ends, the online encoder gets the mean of its weights at the last `count` of `points` evenly
    spaced steps, the last step among them."""

    def __init__(self, count: int, points: int):
        self.count, self.points = count, points
        self.taken: list[list[torch.Tensor]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        passed, rest = divmod(state.max_steps - state.global_step, max(1, state.max_steps // self.points))
        if rest == 0 and passed < self.count:
            self.taken.append([p.detach().clone() for p in model.encoder.parameters()])

    @torch.no_grad()
    def on_train_end(self, args, state, control, model=None, **kwargs):
        for parameter, *values in zip(model.encoder.parameters(), *self.taken, strict=True):
            parameter.copy_(torch.stack(values).mean(0))
