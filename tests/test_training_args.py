import dataclasses

import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from transformers import HfArgumentParser

from carl_hf import CarlTrainingArguments
from carl_hf.training_args import PAPER_SETTINGS

PAPER = {  # setting: (value, where the paper, or our decision where it is silent, says so)
    "num_train_epochs": (2, "paper, training details: 2 epochs"),
    "per_device_train_batch_size": (128, "paper, training details: batch size 128"),
    "optim": ("adamw_torch", "paper, training details: AdamW"),
    "learning_rate": (2e-5, "paper, training details: learning rate 2e-5"),
    "lr_scheduler_type": ("cosine_with_restarts", "paper, training details: cosine annealing with warm restarts"),
    "lr_scheduler_kwargs": ({"num_cycles": 2}, "decision: one cycle an epoch, of the paper's 2"),
    "warmup_steps": (0.1, "paper, training details: 10 % warm-up"),
    "max_length": (128, "paper, training details: maximum length 128"),
    "temperature": (0.05, "paper, Eq 5: temperature 0.05"),
    "label_temperature": (1.0, "decision: 0.05 on the similarity side, 1.0 on the label side"),
    "label_kernel": ("cosine", "paper, Eq 4: cosine of (valence, arousal)"),
    "momentum": (0.9996, "paper, Eq 2: m_0 = 0.9996"),
    "momentum_half_life": (None, "m_0 is given as such"),
    "objectives": (["mccl", "ptd"], "paper, Eq 11: no third term"),
    "salient_fraction": (0.1, "paper, section on PTD: 10 % of the tokens"),
    "token_choice": ("salient", "paper, Eq 7: by saliency"),
    "perturb_half": (False, "paper: all of S is perturbed"),
    "perturbation_radius": (5e-9, "paper, Eq 8: eps = 5e-9"),
    "perturbation_relative": (False, "paper, Eq 8: an absolute radius"),
    "pgd_step_size": (5.0, "paper, Eq 8: alpha = 5"),
    "pgd_steps": (1, "decision: one step"),
    "focal_gamma": (2.0, "decision: the usual gamma of the focal loss"),
    "bf16": (False, "decision: full precision, or nothing of the perturbation is left"),
}


def test_paper_preset_is_the_paper(tmp_path):
    args = CarlTrainingArguments(str(tmp_path), preset="paper")
    assert set(PAPER) == set(PAPER_SETTINGS)
    for name, (value, source) in PAPER.items():
        assert getattr(args, name) == value, source
    assert args.initial_momentum == 0.9996 and args.weights == {"mccl": 0.8, "ptd": 0.2}  # paper, Eq 11


def test_explicit_settings_win_over_the_preset(tmp_path):
    args = CarlTrainingArguments(str(tmp_path), preset="paper", learning_rate=3e-5, momentum_half_life=10)
    assert args.learning_rate == 3e-5 and args.temperature == 0.05
    assert args.momentum is None and args.initial_momentum**10 == pytest.approx(0.5)
    assert CarlTrainingArguments(str(tmp_path), momentum=0.99).initial_momentum == 0.99


def test_the_paper_s_schedule_keeps_its_cycles_when_it_is_spelled_out(tmp_path):
    for given, expected in (("cosine_with_restarts", {"num_cycles": 2}), ("linear", None)):
        args = CarlTrainingArguments(str(tmp_path), preset="paper", lr_scheduler_type=given)
        assert args.lr_scheduler_kwargs == expected


def test_settings_that_belong_together(tmp_path):
    def paper(**settings):
        return CarlTrainingArguments(str(tmp_path), preset="paper", **settings)

    assert paper(num_train_epochs=3).lr_scheduler_kwargs == {"num_cycles": 3}  # one cycle an epoch
    assert not paper(lr_scheduler_type="linear").lr_scheduler_kwargs
    assert paper(per_device_train_batch_size=16).per_device_eval_batch_size == 16


@pytest.mark.parametrize(
    "machine, capability, warned",
    [
        ("x86_64", "AVX2", True),
        ("x86_64", "DEFAULT", True),
        ("x86_64", "AVX512", False),
        ("aarch64", "DEFAULT", False),
    ],
)
def test_bfloat16_on_a_cpu_that_lacks_it_is_told(machine, capability, warned, monkeypatch, caplog):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    CarlTrainingArguments("out", bf16=True, use_cpu=True)
    assert ("Leave --bf16 off here" in caplog.text) == warned


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"preset": "papr"}, "did you mean 'paper'"),
        ({"temprature": 0.1}, "did you mean 'temperature'"),
        ({"zzz": 1}, "Unknown training argument 'zzz'"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"label_temperature": -1.0}, "label_temperature must be positive"),
        ({"layer_decay": 0.9}, "layer_decay was removed: it had no effect"),
        ({"pgd_steps": 0}, "pgd_steps must be a whole number, at least 1"),
        ({"salient_fraction": 0.0}, "salient_fraction"),
        ({"token_choice": "best"}, "'salient' or 'random'"),
        ({"label_kernel": "dot"}, "'cosine' or 'distance'"),
        ({"momentum": 0.9, "momentum_half_life": 3.0}, "not both"),
        ({"momentum": 1.5}, "momentum must be in"),
        ({"momentum_half_life": -1.0}, "momentum_half_life must be positive"),
        ({"momentum_half_life": None}, "exactly one"),
        ({"fp16": True}, "fp16 needs a GPU"),
        ({"max_length": 2}, "max_length"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches must be off"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches must be off"),
        ({"accelerator_config": {"even_batches": False}}, "even_batches must be on"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size must be off"),
        ({"train_sampling_strategy": "batch_rebalance"}, "batch_rebalance must be off"),
        ({"bf16_full_eval": True}, "bf16_full_eval must be off"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 50, "save_steps": 100},
            "every 50 steps, might not be saved, every 100 steps",
        ),
        ({"torch_compile": True}, "torch_compile .* must be off"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha must be off"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor must be off"),
        ({"use_liger_kernel": True}, "use_liger_kernel must be off"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant must be false"),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant must be false"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CarlTrainingArguments(str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("settings", "environment", "engine"),
    [
        ({"fsdp": True}, {}, "FSDP"),
        ({"deepspeed": "zero.json"}, {}, "DeepSpeed"),
        ({"parallelism_config": ParallelismConfig(tp_size=2)}, {}, "tensor"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "FSDP"),  # what accelerate launch sets
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({}, {"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({}, {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "tensor"),
        ({}, {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo"),
    ],
    ids=str,
)
def test_engines_that_do_not_work_are_refused_before_training(settings, environment, engine, tmp_path, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=engine):
        CarlTrainingArguments(str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize("metric", ["mccl", "eval_ptd", "regression", "simcse", "first_set_cross_entropy", "loss"])
def test_of_a_loss_the_lower_is_the_better_checkpoint(metric, tmp_path):
    settings = {"eval_strategy": "steps", "save_steps": 100, "load_best_model_at_end": True, "use_cpu": True}
    args = CarlTrainingArguments(str(tmp_path), metric_for_best_model=metric, **settings)
    assert args.greater_is_better is False
    with pytest.raises(ValueError, match="lower is better"):
        CarlTrainingArguments(str(tmp_path), metric_for_best_model=metric, greater_is_better=True, **settings)
    assert CarlTrainingArguments(str(tmp_path), metric_for_best_model="va_pearson", **settings).greater_is_better


def test_an_hf_argument_parser_reads_what_was_given_and_no_preset_is_lost(tmp_path):
    def parsed(*flags):
        return HfArgumentParser(CarlTrainingArguments).parse_args_into_dataclasses(
            ["--output_dir", str(tmp_path), "--use_cpu", "true", *flags]
        )[0]

    args = parsed("--per_device_train_batch_size", "16", "--momentum", "0.99", "--objectives", "mccl", "ptd=0.5")
    assert vars(parsed()).keys() == vars(args).keys()
    assert args.per_device_eval_batch_size == 16 and args.initial_momentum == 0.99
    assert args.weights == {"mccl": 1.0, "ptd": 0.5} and not args.remove_unused_columns
    expected = CarlTrainingArguments(str(tmp_path), use_cpu=True)
    assert parsed().to_dict() == expected.to_dict()
    with pytest.raises(ValueError, match="preset 'paper'.*parse_arguments"):
        parsed("--preset", "paper")


def test_arguments_with_objectives_are_replaced(tmp_path):
    args = CarlTrainingArguments(str(tmp_path), objectives=["mccl", "supcon=2"], momentum=0.9, use_cpu=True)
    replaced = dataclasses.replace(args, seed=7, learning_rate=1e-5)
    assert replaced.weights == args.weights and replaced.initial_momentum == 0.9
    assert (replaced.seed, replaced.learning_rate) == (7, 1e-5)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="bf16 runs on the accelerator")
def test_bf16_on_a_cpu_needs_no_use_cpu(tmp_path):
    args = CarlTrainingArguments(str(tmp_path), bf16=True)
    assert args.bf16 and args.device.type == "cpu"


def test_batches_are_copied_without_waiting_where_their_memory_is_pinned(tmp_path):
    assert CarlTrainingArguments(str(tmp_path)).accelerator_config.non_blocking
    for settings in ({"dataloader_pin_memory": False}, {"accelerator_config": {}}, {"use_cpu": True}):
        assert not CarlTrainingArguments(str(tmp_path), **settings).accelerator_config.non_blocking
