"""Whole trainings: resumed to the same bits, with a target that follows Eq 1, in half precision, without waiting."""

import collections
import math
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from gpu_parts.inputs import Report, encoder, rows, tokenizer
from transformers import PrinterCallback, TrainerCallback, set_seed

from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments, load_va_dataset
from carl_hf.encoders.loading import load_encoder, load_tokenizer
from carl_hf.momentum import cosine_momentum


class Recurrence(TrainerCallback):
    """Computes the target's weights on the CPU, in float64 (Eq 1)."""

    def __init__(self, model: CarlModel):
        self.target = [p.detach().cpu().double() for p in model.target.parameters()]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        m = cosine_momentum(state.global_step, state.max_steps, args.initial_momentum)
        pairs = zip(self.target, model.online.parameters(), strict=True)
        self.target = [m * old + (1 - m) * p.detach().cpu().double() for old, p in pairs]

    def error(self, model: CarlModel) -> float:
        pairs = zip(self.target, model.target.parameters(), strict=True)
        return max((p.cpu() - expected).abs().max().item() for expected, p in pairs)


class Waits(TrainerCallback):
    """Counts where the host waits for the GPU from the end of step `first` to that of step `last`."""

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last
        self.places: collections.Counter[str] = collections.Counter()

    def on_step_end(self, args, state, control, **kwargs):
        if not torch.cuda.is_available():
            return
        if state.global_step == self.first:
            torch.cuda.set_sync_debug_mode("warn")
            self.caught = warnings.catch_warnings(record=True)
            self.found = self.caught.__enter__()
            warnings.simplefilter("always")
        if state.global_step == self.last:
            torch.cuda.set_sync_debug_mode("default")
            self.caught.__exit__(None, None, None)
            waits = [warning for warning in self.found if "synchroniz" in str(warning.message)]
            self.places.update(f"{'/'.join(Path(w.filename).parts[-3:])}:{w.lineno}" for w in waits)


def train(
    folder: str, model: CarlModel, *callbacks: TrainerCallback, resume: str | None = None, **settings: Any
) -> CarlTrainer:
    """A trainer after training; `data` and `words` (the tokenizer) among the settings, or synthetic ones."""
    set_seed(0)
    data, words = settings.pop("data", None), settings.pop("words", None)
    args = CarlTrainingArguments(
        folder, report_to="none", disable_tqdm=True, use_cpu=not torch.cuda.is_available(), head_warmup_epochs=0,
        **{"save_strategy": "no", "per_device_train_batch_size": 16, "logging_steps": 1000, **settings},
    )  # fmt: skip
    trainer = CarlTrainer(
        model, args, train_dataset=data or rows(96), processing_class=words or tokenizer(), callbacks=[*callbacks]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def small_model() -> CarlModel:
    set_seed(0)
    return CarlModel.from_encoder(encoder("roberta"), projection_dim=16)


def resumed_training() -> dict[str, float]:
    """Checks of short trainings, name -> value that is 0 where all is well; for a process of its own.

    To the same bits only where operations are deterministic, which torch and cuBLAS must be told before they begin.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.filterwarnings("ignore", message=".*deterministic")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "bf16": False}
        model = small_model()
        recurrence = Recurrence(model)
        whole = train(f"{folder}/whole", model, recurrence, **settings)
        found["the target against Eq 1"] = recurrence.error(model)
        again = train(f"{folder}/again", small_model(), **settings)
        resumed = train(f"{folder}/resumed", small_model(), resume=f"{folder}/whole/checkpoint-2", **settings)
        for name, other in (("a repeated training", again), ("a resumed training", resumed)):
            pairs = zip(whole.model.state_dict().values(), other.model.state_dict().values(), strict=True)
            found[f"{name}: weights that differ by a bit"] = sum(not torch.equal(*pair) for pair in pairs)
        for dtype in ("bf16", "fp16") if torch.cuda.is_available() else ("bf16",):
            model, before = small_model(), small_model().state_dict()
            train(f"{folder}/{dtype}", model, max_steps=12, learning_rate=1e-3, **{dtype: True})
            after = {name: p.cpu() for name, p in model.encoder.state_dict().items()}
            finite = all(p.isfinite().all() for p in after.values())
            moved = any((p != before[f"online.encoder.{name}"]).any() for name, p in after.items())
            found[f"{dtype}: a training that does not move, or not to numbers"] = float(not (finite and moved))
    torch.use_deterministic_algorithms(False)
    return found


def check_training(report: Report, folders: dict[str, str], texts: str, *, steps: int, batch: int) -> None:
    """The recipe of the README's first line at MiniLM's size, and that of carl-roberta.yaml at roberta-base's."""
    data = load_va_dataset(texts, split="train", scale=(-1, 1))
    for name, preset in (("minilm-l6", "default"), ("roberta-base", "paper")):
        model, waits = CarlModel.from_encoder(load_encoder(folders[name])), Waits(steps // 2, steps - 1)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            trainer = train(
                folder, model, waits, preset=preset, data=data, words=load_tokenizer(folders[name]), max_steps=steps,
                per_device_train_batch_size=batch,
            )  # fmt: skip
            seconds = time.perf_counter() - start
        report.check(f"{name}, {preset}: steps skipped", trainer.nonfinite.total, 0)
        loss = trainer.state.log_history[-1]["train_loss"]
        report.check(f"{name}, {preset}: loss is no number", not math.isfinite(loss), 0)
        counted = waits.last - waits.first
        where = ", ".join(f"{place} {times / counted:.2g}" for place, times in waits.places.most_common(8))
        report.check(f"{name}, {preset}: waits of the host in a step", waits.places.total() / counted, 1, where)
        report.figure(f"{name}, {preset}: seconds of {steps} steps of {batch} texts, with start", round(seconds, 1))
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**20
            report.figure(f"{name}, {preset}: peak MiB", round(peak))
