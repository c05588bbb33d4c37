"""CarlTrainingArguments: how a CARL model is trained. CarlConfig holds its architecture.

Source: Son, Saurez, Har, arXiv 2502.20613; equation numbers are the paper's.
"""

import dataclasses
import logging
import math
import platform
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from carl_hf.data.label_spaces import read_label_space
from carl_hf.losses import LabelKernel
from carl_hf.momentum import momentum_from_half_life
from carl_hf.objectives import OBJECTIVES, PAPER_WEIGHTS, parse_objectives, sentence_weights
from carl_hf.utils.engines import check_batches_and_saves, check_engine
from carl_hf.utils.fields import setting
from carl_hf.utils.setting_types import check_setting_types
from carl_hf.utils.suggestions import did_you_mean

logger = logging.getLogger(__name__)

PAPER_SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 128,
    "optim": "adamw_torch",
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine_with_restarts",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "warmup_steps": 0.1,
    "max_length": 128,
    "temperature": 0.05,
    "label_temperature": 1.0,
    "label_kernel": "cosine",
    "momentum": 0.9996,
    "momentum_half_life": None,
    "objectives": ["mccl", "ptd"],
    "salient_fraction": 0.1,
    "token_choice": "salient",
    "perturb_half": False,
    "perturbation_radius": 5e-9,
    "perturbation_relative": False,
    "pgd_step_size": 5.0,
    "pgd_steps": 1,
    "focal_gamma": 2.0,
    "bf16": False,
}
"""The settings of the paper, with the decisions of docs/paper.md where the paper is silent."""

DEFAULT_OBJECTIVES = ["mccl", "rank_n_contrast", "regression"]

_INSTEAD = "use objectives, such as --objectives mccl=0.8 ptd=0.2"
REMOVED = {
    "mccl_weight": _INSTEAD,
    "ptd_weight": _INSTEAD,
    "regression_weight": _INSTEAD,
    "layer_decay": "it had no effect; leave it out",
    "encode_slices": "it changed no result; leave it out",
    "accumulate_contrast": "raise per_device_train_batch_size; gradient_cache_parts saves its memory",
    "max_skipped_steps": "training stops after 10 skipped steps in a row; leave it out",
}
"""Settings of version 0.1.0 that are gone -> what to do instead."""

PRESETS: dict[str, dict[str, Any]] = {"default": {}, "paper": PAPER_SETTINGS}


@dataclass(init=False, repr=False)  # TrainingArguments' own repr masks tokens
class CarlTrainingArguments(TrainingArguments):
    """Arguments of a [`CarlTrainer`]: all of `TrainingArguments`, with the defaults of this recipe, and those of CARL.

    `CarlTrainingArguments("out")` is the default recipe, `CarlTrainingArguments("out", preset="paper")` the paper's
    settings. What is passed explicitly wins over the preset.

    Raises:
        ValueError: for an unknown name or preset (the message names the nearest valid one), a value out of range, or
            settings that exclude each other.
    """

    preset: Literal["default", "paper"] = setting(
        "default", "Settings to start from: 'default' or 'paper'. Explicit ones win."
    )
    # TrainingArguments, with other defaults
    num_train_epochs: float = setting(3.0, "Passes over the training texts.")
    per_device_train_batch_size: int = setting(128, "Texts on each device; contrasted with those of all devices.")
    per_device_eval_batch_size: int = setting(
        128, "Texts of a contrastive batch in evaluation; by default as in training."
    )
    learning_rate: float = setting(1e-4, "Peak learning rate of AdamW.")
    lr_scheduler_type: str = setting("cosine", "Learning rate schedule.")
    warmup_steps: float = setting(0.1, "Warm-up: a share of all steps below 1, else steps.")
    bf16: bool | None = setting(None, "bfloat16 autocast. Unset: if CUDA supports it or, in scripts, a CPU gains.")
    logging_steps: float = setting(10, "Optimizer steps between two log entries.")
    eval_steps: float | None = setting(100, "Optimizer steps between two evaluations, with --eval_strategy steps.")
    probe_texts: int = setting(
        1000,
        "Training texts on which each evaluation fits a probe for the validation texts (va_pearson or "
        "label_accuracy, which choose the best checkpoint); 0: no probe.",
    )
    # Data
    max_length: int = setting(128, "Tokens kept of a text; the rest is cut off.")
    gradient_cache_parts: int = setting(
        1,
        "Chunks in which a batch is encoded with gradient, one after another, in the memory of one; the "
        "losses see the whole batch, the gradient is the same. More than 1 costs another forward pass.",
    )
    # What is trained
    objectives: list[str] | None = setting(
        None,
        f"Objectives of the loss, each a name or name=weight: {', '.join(OBJECTIVES)}. Unset: mccl "
        "rank_n_contrast regression (1, 1, 20), or mccl ptd (0.8, 0.2) with the preset 'paper'.",
    )
    # Sentence-level loss: momentum continuous contrastive learning (MCCL)
    temperature: float = setting(0.2, "Temperature of embedding similarities (Eq 5).")
    label_temperature: float = setting(1.0, "Temperature of label similarities (Eq 5).")
    label_kernel: LabelKernel = setting(
        "cosine", "Similarity of labels (Eq 4): 'cosine' (Eq 4, angle only) or 'distance' (intensity too)."
    )
    momentum: float | None = setting(None, "Initial momentum m_0 (Eq 2); 0: no target. Excludes momentum_half_life.")
    momentum_half_life: float | None = setting(
        20.0, "m_0 given as the optimizer steps in which a target weight's past halves. Excludes momentum."
    )
    # Token-level loss: gradient-based perturbed token detection (PTD)
    salient_fraction: float = setting(0.1, "Share of a text's tokens that are chosen as S.")
    token_choice: Literal["salient", "random"] = setting(
        "salient", "How S is chosen: 'salient' (Eq 7) or, as an ablation, 'random'."
    )
    perturb_half: bool = setting(
        True,
        "Perturb each token of S with probability 1/2 and train the detector on S alone, so that it must "
        "see the perturbation: saliency no longer tells.",
    )
    perturbation_radius: float = setting(2.0, "Radius eps of the ball round a token (Eq 8).")
    perturbation_relative: bool = setting(
        True, "Radius and step size in units of the token embedding's norm; off: absolute (the paper)."
    )
    pgd_step_size: float = setting(2.0, "Step size alpha of PGD (Eq 8).")
    pgd_steps: int = setting(1, "Steps of PGD; each after the first costs two passes.")
    focal_gamma: float = setting(2.0, "Exponent gamma of the focal loss (Eq 10).")
    # Other objectives
    proxy_alpha: float = setting(32.0, "Alpha of Proxy-Anchor: how much hard texts weigh.")
    proxy_margin: float = setting(0.1, "Margin delta of Proxy-Anchor, in cosine.")
    proxy_learning_rate: float = setting(1e-2, "Peak learning rate of the proxies.")
    head_warmup_epochs: float | None = setting(
        None, "Epochs in which all but the encoder learns. Unset: 1 with proxy_anchor, as its authors train, else 0."
    )
    same_label_margin: float = setting(
        0.0, "Circular loss: texts with one angle cost nothing above cosine 1 - margin."
    )
    label_space: str | None = setting(
        None,
        "Label space that gives names of emotions their angles, for the circular loss: circle12, "
        "russell1980, ekman6, goemotions28, or a CSV file.",
    )
    class_weights: Literal["equal", "balanced"] = setting(
        "equal", "Cross-entropy: every text weighs the same, or every class (by its training texts)."
    )

    def __init__(self, output_dir: str | None = None, *, preset: str = "default", **settings: Any):
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(
                f"Unknown preset {preset!r}{did_you_mean(str(preset), PRESETS)} Presets: {', '.join(PRESETS)}."
            )
        fields = [f for f in dataclasses.fields(self) if f.init]
        known = {f.name for f in fields}
        for name in settings:
            if name in REMOVED:
                raise ValueError(f"{name} was removed: {REMOVED[name]}.")
            if name not in known:
                raise ValueError(f"Unknown training argument {name!r}{did_you_mean(name, known)}")
        defaults = {
            f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory() for f in fields
        }
        if known <= {"output_dir", "preset", *settings} and not hasattr(
            settings["accelerator_config"], "even_batches"
        ):
            settings = _those_given(settings, defaults, preset)
        check_engine(settings)
        check_setting_types(settings, type(self))
        if settings.get("momentum") is not None and settings.get("momentum_half_life") is not None:
            raise ValueError("Give momentum or momentum_half_life, not both: the half-life is another form of m_0. "
                             "The other is None.")  # fmt: skip
        values = {**PRESETS[preset], **settings}
        if settings.get("momentum") is not None:
            values["momentum_half_life"] = None
        elif settings.get("momentum_half_life") is not None:
            values["momentum"] = None
        own = PRESETS[preset].get("lr_scheduler_type")
        if settings.get("lr_scheduler_type", own) != own and "lr_scheduler_kwargs" not in settings:
            values.pop("lr_scheduler_kwargs", None)  # those of the preset belong to its own schedule
        elif preset == "paper" and "lr_scheduler_kwargs" not in settings:
            values["lr_scheduler_kwargs"] = {"num_cycles": max(1, round(values["num_train_epochs"]))}
        if "per_device_train_batch_size" in values:  # a contrastive loss depends on the size of its batch
            values.setdefault("per_device_eval_batch_size", values["per_device_train_batch_size"])
        # the collator needs the columns of text and labels; a step whose loss is not finite is skipped, not hidden
        values = {"remove_unused_columns": False, "logging_nan_inf_filter": False} | values
        values.update(output_dir=output_dir, preset=preset)
        for name, default in defaults.items():
            setattr(self, name, values.get(name, default))
        self.__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        """Without the token: the Trainer pickles its arguments into every checkpoint."""
        return {**self.__dict__, "hub_token": None}

    def __copy__(self) -> "CarlTrainingArguments":
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __post_init__(self):
        self._check_ranges()
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size must be off: a smaller batch is another contrast. --gradient_cache_parts trains "
                "the same batch in less memory."
            )
        if self.fp16 and not torch.cuda.is_available():
            raise ValueError("fp16 needs a GPU; a CPU would silently compute in float32. Use --bf16 or neither.")
        if self.bf16 is None:
            self.bf16 = (
                torch.cuda.is_available()
                and torch.cuda.is_bf16_supported(including_emulation=False)
                and not self.fp16
                and not self.use_cpu
            )
        if self.load_best_model_at_end and self.metric_for_best_model is None and self.probe_texts:
            if "va" in self.label_kinds:
                self.metric_for_best_model = "va_pearson"
            elif "class" in self.label_kinds:
                self.metric_for_best_model = "label_accuracy"  # else transformers takes the loss
        if f"_{self.metric_for_best_model}".endswith(tuple(f"_{name}" for name in (*OBJECTIVES, "loss"))):
            if self.greater_is_better:
                raise ValueError(f"{self.metric_for_best_model} is a loss: lower is better. Omit greater_is_better.")
            self.greater_is_better = False  # transformers knows names with "loss" alone
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # transformers asks for it
        given = self.accelerator_config
        try:
            super().__post_init__()
        except (OSError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"The Trainer cannot take these settings: {type(error).__name__}: {error}") from error
        self.accelerator_config.non_blocking |= given is None and self.dataloader_pin_memory  # copies need not wait
        without = ("AVX2", "DEFAULT") if platform.machine().lower() in ("x86_64", "amd64") else ()
        if self.bf16 and self.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in without:
            logger.warning(
                "bf16: this CPU lacks AVX-512, and computes slower in bfloat16 than in float32. Leave --bf16 off here."
            )
        check_batches_and_saves(self)
        self.accelerator_config.dispatch_batches = False

    @property
    def weights(self) -> dict[str, float]:
        """Objective -> its weight in the loss, for those that are trained."""
        names = self.objectives
        if names is None:
            names = PRESETS[self.preset].get("objectives", DEFAULT_OBJECTIVES)
        return parse_objectives(names, PAPER_WEIGHTS if self.preset == "paper" else None)

    @property
    def heads(self) -> list[str]:
        """Heads that the objectives need of the model: `CarlModel.from_encoder(..., heads=args.heads)`."""
        return sorted(head for name in self.weights if (head := OBJECTIVES[name].head) is not None)

    @property
    def label_kinds(self) -> set[str]:
        """Kinds of labels that the objectives use: "va", "class", "angle"."""
        return {kind for name in sentence_weights(self.weights) if (kind := OBJECTIVES[name].label) is not None}

    @property
    def warmup_epochs_of_heads(self) -> float:
        """Epochs in which the encoder does not learn."""
        if self.head_warmup_epochs is not None:
            return self.head_warmup_epochs
        return 1.0 if "proxy_anchor" in self.weights else 0.0

    @property
    def initial_momentum(self) -> float:
        """m_0 of Eq 2, from `momentum` or from `momentum_half_life`."""
        if self.momentum is not None:
            return self.momentum
        return momentum_from_half_life(self.momentum_half_life)

    def _check_ranges(self) -> None:
        def require(holds: bool, name: str, what: str) -> None:
            if not holds:
                raise ValueError(f"{name} must be {what}, got {getattr(self, name)!r}.")

        def number(name: str) -> float:
            value = getattr(self, name)
            require(isinstance(value, (int, float)) and math.isfinite(value), name, "a number")
            return value

        for name in ("temperature", "label_temperature", "proxy_alpha", "proxy_learning_rate"):
            require(number(name) > 0, name, "positive")
        for name in ("perturbation_radius", "pgd_step_size", "focal_gamma", "proxy_margin", "same_label_margin"):
            require(number(name) >= 0, name, "zero or positive")
        require(self.head_warmup_epochs is None or number("head_warmup_epochs") >= 0, "head_warmup_epochs",
                "zero or positive")  # fmt: skip
        for name in ("pgd_steps", "gradient_cache_parts", "max_length", "gradient_accumulation_steps"):
            require(number(name) >= 1 and number(name) == int(number(name)), name, "a whole number, at least 1")
        for name in ("momentum", "momentum_half_life"):
            require(getattr(self, name) is None or math.isfinite(number(name)), name, "a number")
        require(number("probe_texts") == 0 or number("probe_texts") >= 10, "probe_texts", "0 or at least 10")
        require(self.max_length >= 3, "max_length", "at least 3 (two special tokens and one of the text)")
        require(0 < number("salient_fraction") <= 1, "salient_fraction", "in (0, 1]")
        require(not self.remove_unused_columns, "remove_unused_columns", "False: the collator needs the text column")
        if self.label_space is not None:
            read_label_space(self.label_space)  # a wrong one is refused at once
        if not self.weights:
            raise ValueError("objectives names nothing: nothing would be trained.")
        if (self.momentum is None) == (self.momentum_half_life is None):
            raise ValueError("Give exactly one of momentum and momentum_half_life.")
        if self.momentum is not None:
            require(0 <= self.momentum <= 1, "momentum", "in [0, 1]")
        else:
            require(self.momentum_half_life > 0, "momentum_half_life", "positive")


def _those_given(settings: dict[str, Any], defaults: dict[str, Any], preset: str) -> dict[str, Any]:
    """The settings that differ from the defaults: transformers' HfArgumentParser passes all of them, given or not."""
    if preset != "default":
        raise ValueError(f"An HfArgumentParser passes all defaults, which win over the preset {preset!r}: read "
                         "them by carl_hf.commands.arguments.parse_arguments.")  # fmt: skip
    return {n: v for n, v in settings.items() if v != defaults[n] and not (n == "debug" and v is None)}
