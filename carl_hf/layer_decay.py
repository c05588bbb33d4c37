"""Smaller learning rates for lower layers (Howard and Ruder, arXiv 1801.06146, "discriminative fine-tuning")."""

import re
from collections import defaultdict

from torch import nn
from torch.optim import Optimizer

_LAYER = re.compile(r"\.(?:layers?|blocks?|h)\.(\d+)\.")


def layer_depths(encoder: nn.Module) -> dict[str, int]:
    """Name of a parameter -> its depth: 0 for the embeddings, k for the k-th layer of the stack, and for what follows
    the stack (a final norm, a pooler) as for its last layer.

    Raises:
        ValueError: if the names of the parameters show no stack of layers.
    """
    names = [name for name, _ in encoder.named_parameters()]
    found = {name: int(match[1]) + 1 for name in names if (match := _LAYER.search(f".{name}"))}
    if not found:
        raise ValueError(f"layer_decay finds no numbered layers in {type(encoder).__name__}: leave it at 1.")
    first = min(names.index(name) for name in found)
    return {name: found.get(name, 0 if n < first else max(found.values())) for n, name in enumerate(names)}


def decay_by_layer(optimizer: Optimizer, encoder: nn.Module, decay: float) -> None:
    """Splits the optimizer's groups so that the encoder's layer of depth d out of N learns at decay^(N - d) of the
    rate that its group had. What does not belong to the encoder keeps its rate."""
    depths = layer_depths(encoder)
    top = max(depths.values())
    steps_below = {parameter: top - depths[name] for name, parameter in encoder.named_parameters()}
    for group in list(optimizer.param_groups):
        parts = defaultdict(list)
        for parameter in group["params"]:
            parts[steps_below.get(parameter, 0)].append(parameter)
        group["params"] = parts.pop(0, [])
        for below, parameters in sorted(parts.items()):
            optimizer.add_param_group({**group, "params": parameters, "lr": group["lr"] * decay**below})
