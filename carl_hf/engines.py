"""Which engines of accelerate and torch.distributed train CARL, and which are refused before they start."""

import os
from typing import Any

from accelerate.utils import str_to_bool
from transformers import TrainingArguments

_REFUSED = {
    "FSDP": ("fsdp", "ACCELERATE_USE_FSDP"),
    "DeepSpeed": ("deepspeed", "ACCELERATE_USE_DEEPSPEED"),
    "Megatron-LM": (None, "ACCELERATE_USE_MEGATRON_LM"),
    "tensor, context or sequence parallelism (parallelism_config)":
        ("parallelism_config", "ACCELERATE_USE_PARALLELISM_CONFIG"),
}  # fmt: skip


def check_engine(args: TrainingArguments | Any) -> None:
    """Refuses what has not been made to work: a step takes gradients inside the forward pass, for which the engine has
    to hold whole parameters there.

    Args:
        args: arguments with `fsdp`, `deepspeed`, `parallelism_config`, `torch_compile`. What `accelerate launch` asks
            for is read from its environment variables.

    Raises:
        ValueError: it names the engine and the remedy.
    """
    for engine, (argument, variable) in _REFUSED.items():
        if (argument and getattr(args, argument)) or str_to_bool(os.environ.get(variable, "false")):
            raise ValueError(
                f"CARL does not train under {engine}. Choose data parallelism (DDP): accelerate launch "
                "--multi_gpu, or torchrun, with the whole encoder on each device; gradient_cache_parts saves memory."
            )
    if args.torch_compile or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper() != "NO":
        raise ValueError(
            "torch_compile (dynamo) must be off: every batch of packed texts has a new shape, for which torch "
            "compiles anew (tried on a CPU: minutes a step)."
        )
