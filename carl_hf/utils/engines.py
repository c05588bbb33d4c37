"""The engines of accelerate and torch.distributed that cannot train CARL, refused before they start."""

import os
from collections.abc import Mapping
from typing import Any

_REFUSED = {  # name: (argument, variable by which `accelerate launch` asks for it)
    "FSDP": ("fsdp", "ACCELERATE_USE_FSDP"),
    "DeepSpeed": ("deepspeed", "ACCELERATE_USE_DEEPSPEED"),
    "Megatron-LM": (None, "ACCELERATE_USE_MEGATRON_LM"),
    "tensor, context or sequence parallelism (parallelism_config)":
        ("parallelism_config", "ACCELERATE_USE_PARALLELISM_CONFIG"),
}  # fmt: skip
_TRUE = ("1", "true", "yes", "y", "t", "on")  # as accelerate reads it


def check_engine(settings: Mapping[str, Any]) -> None:
    """Refuses engines that do not hold whole parameters in the forward pass, where a step takes gradients.

    Args:
        settings: training arguments by name.

    Raises:
        ValueError: it names the engine and the remedy.
    """
    for engine, (argument, variable) in _REFUSED.items():
        if settings.get(argument) or os.environ.get(variable, "false").lower() in _TRUE:
            raise ValueError(
                f"CARL does not train under {engine}. Choose data parallelism (DDP): accelerate launch "
                "--multi_gpu, or torchrun, with the whole encoder on each device; gradient_cache_parts saves memory."
            )
    if settings.get("torch_compile") or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper() != "NO":
        raise ValueError(
            "torch_compile (dynamo) must be off: every batch of packed texts has a new shape, for which torch "
            "compiles anew (tried on a CPU: minutes a step)."
        )
