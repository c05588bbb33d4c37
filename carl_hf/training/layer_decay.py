"""Smaller learning rates for lower layers (Howard and Ruder, arXiv 1801.06146, "discriminative fine-tuning")."""

import re
from collections import defaultdict

from torch import nn
from torch.optim import Optimizer

_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.(\d+\.)?")


def layer_depths(encoder: nn.Module) -> dict[str, int]:
    """Name of a parameter -> its depth: 0 for the embeddings, k for the k-th layer of the stack, and for what follows
    the stack (a final norm, a pooler) as for its last layer. Tables of relative positions count as embeddings.

    Raises:
        ValueError: if the names of the parameters do not show one stack of layers.
    """
    names = [name for name, _ in encoder.named_parameters()]
    matches = {name: match for name in names if (match := _LAYER.search(name))}
    stacks = {name[: match.start()] for name, match in matches.items()}
    nested = any(match[2] for match in matches.values())
    if len(stacks) != 1 or nested:
        raise ValueError(
            f"layer_decay needs one stack of numbered layers, and {type(encoder).__name__} has "
            f"{'nested ones' if nested else len(stacks)}: leave --layer_decay at 1."
        )
    found = {name: int(match[1]) + 1 for name, match in matches.items()}
    first = min(names.index(name) for name in found)

    def outside(number: int, name: str) -> int:
        return 0 if number < first or "rel_embeddings" in name or "relative_attention" in name else max(found.values())

    return {name: found[name] if name in found else outside(n, name) for n, name in enumerate(names)}


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
