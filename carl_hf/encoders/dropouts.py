"""The dropout of an encoder: its layers', and that which some modules hold as a number."""

from torch import nn
from transformers import PreTrainedModel

_NUMBERS = ("attention_dropout", "dropout")  # of ModernBERT, Longformer, XLM


def set_dropout(encoder: PreTrainedModel, probability: float) -> None:
    """Gives all dropout one probability, in [0, 1); a ValueError for another."""
    if not 0 <= probability < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {probability}.")
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in _numbers(module):
            setattr(module, name, probability)


def dropout_probabilities(encoder: PreTrainedModel) -> list[float]:
    """Those that occur, in order."""
    layers = {module.p for module in encoder.modules() if isinstance(module, nn.Dropout)}
    return sorted(layers | {float(getattr(m, name)) for m in encoder.modules() for name in _numbers(m)})


def _numbers(module: nn.Module) -> list[str]:
    return [name for name in _NUMBERS if isinstance(getattr(module, name, None), (int, float))]
