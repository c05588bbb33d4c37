"""Callbacks of a CARL training."""

from transformers import TrainerCallback


class HeadWarmupCallback(TrainerCallback):
    """Trains all but the encoder for the first `steps`: drops its gradients before each optimizer step."""

    def __init__(self, steps: float):
        self.steps = steps

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step < self.steps:
            for parameter in model.encoder.parameters():
                parameter.grad = None
