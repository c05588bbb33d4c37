"""Engines and settings of transformers, accelerate and torch that cannot train CARL, refused before they start."""

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
_UNFIT = {
    "neftune_noise_alpha": "noise on word embeddings would stand in for the perturbation that the detector looks for",
    "label_smoothing_factor": "no objective would use it",
    "use_liger_kernel": "it has no kernels for these encoders",
    "bf16_full_eval": "an evaluation would round the weights that are trained; bf16 computes in bfloat16",
    "fp16_full_eval": "an evaluation would round the weights that are trained; fp16 computes in float16",
}
"""Settings of transformers that fail within a step, or would be ignored."""
_TRUE = ("1", "true", "yes", "y", "t", "on")  # as accelerate reads it


def check_engine(settings: Mapping[str, Any]) -> None:
    """Refuses engines that do not hold whole parameters in the forward pass, where a step takes gradients, and
    settings that do not go with such a step.

    Args:
        settings: training arguments by name.

    Raises:
        ValueError: it names the engine or setting and the remedy.
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
    if settings.get("train_sampling_strategy") == "batch_rebalance":
        raise ValueError("train_sampling_strategy: batch_rebalance must be off: batches of other sizes are another "
                         "contrast.")  # fmt: skip
    for name, why in _UNFIT.items():
        if settings.get(name):
            raise ValueError(f"{name} must be off: {why}.")
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        options = settings.get(name)
        if isinstance(options, Mapping) and options.get("use_reentrant"):
            raise ValueError(
                f"{name}: use_reentrant must be false, for a step takes gradients within the forward pass."
            )


def check_batches_and_saves(args: Any) -> None:
    """Refuses ways to deal out batches that would change the contrast, and to save that would lose the best weights.

    Args:
        args: complete training arguments.

    Raises:
        ValueError: it names the setting and the remedy.
    """
    # a contrastive batch is collated as a whole: each process makes its own, none is cut up and dealt out
    for name in ("dispatch_batches", "split_batches"):
        if getattr(args.accelerator_config, name):
            raise ValueError(f"accelerator_config: {name} must be off; each process reads its own texts.")
    if not args.accelerator_config.even_batches:
        raise ValueError("accelerator_config: even_batches must be on; processes compare equally many texts.")
    if args.load_best_model_at_end and args.save_strategy == "steps" and args.save_steps != args.eval_steps:
        raise ValueError(
            f"load_best_model_at_end: the best of the evaluations, every {args.eval_steps:g} steps, might not be "
            f"saved, every {args.save_steps:g} steps. Make them equal, or choose save_strategy='best'."
        )
