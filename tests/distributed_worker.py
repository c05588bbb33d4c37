"""Cases of test_distributed.py, trained in its process or under torchrun, in float64; results go into files."""

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import TOY_NAMES, tiny_encoder, toy_dataset, weighted, without_some_numbers
from transformers import PreTrainedTokenizerFast, TrainerCallback, set_seed

from carl_hf import CarlDataCollator, CarlModel, CarlTrainer, CarlTrainingArguments
from carl_hf.commands.environment import leave_at_once

TEXTS_OF_A_STEP, STEPS = 8, 10


class DoubleLabels(CarlDataCollator):
    def __call__(self, rows):
        batch = super().__call__(rows)
        return {**batch, "va": batch["va"].double(), "angle": batch["angle"].double()}


class Observer(TrainerCallback):
    """Keeps the gradient of the first step, and stops at a step."""

    def __init__(self, stop_at: int | None):
        self.stop_at = stop_at
        self.gradient: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.stop_at


def run(folder: Path, tokenizer: Any, processes: int, name: str, case: dict[str, Any]) -> dict[str, Any]:
    """Trains one case. Two processes see the global batches of one, for the texts come in their own order: one sees
    rows 0 to 7, two see rows 0 to 3 and 4 to 7."""
    settings = copy.deepcopy(case)
    streamed, poisoned, resume = (settings.pop(key, None) for key in ("streamed", "poisoned", "resume"))
    stop_at, evaluated, partial = (settings.pop(key, None) for key in ("stop_at", "evaluated", "partial"))
    words = ["mccl=0.8", "ptd=0.8", "regression=1"]  # gradient descent needs this weight of the regression
    words = settings.setdefault("objectives", words)
    named = not all(word.startswith(("mccl", "ptd", "regression")) for word in words)
    set_seed(0)
    encoder = tiny_encoder(hidden_dropout_prob=0.1 if evaluated else 0.0, attention_probs_dropout_prob=0.0)
    args = CarlTrainingArguments(
        str(folder / f"{name}-{processes}"), per_device_train_batch_size=TEXTS_OF_A_STEP // processes, optim="sgd",
        max_grad_norm=0.0, weight_decay=0.0, disable_tqdm=True, logging_steps=1, use_cpu=True,
        dataloader_pin_memory=False, train_sampling_strategy="sequential", perturb_half=bool(evaluated),
        **{"max_steps": STEPS, "learning_rate": 0.05, "save_strategy": "no", **settings},
    )  # fmt: skip
    classes = sorted(TOY_NAMES.values())
    architecture = {"projection_dim": 8, "contrast_layers": "prediction"}
    model = CarlModel.from_encoder(encoder, heads=args.heads, classes=classes, **architecture).double()
    data = toy_dataset(64, mixed=named)
    data = weighted(without_some_numbers(data)) if partial else data
    if poisoned is not None:
        with torch.no_grad():
            for branch in (model.online.encoder, model.target.encoder):
                branch.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids("q")] = math.nan
        data = data.map(lambda row, i: {"text": "qqq"} if i == poisoned else row, with_indices=True)
    observer = Observer(stop_at)
    trainer = CarlTrainer(
        model=model, args=args, train_dataset=data.to_iterable_dataset() if streamed else data,
        processing_class=tokenizer, callbacks=[observer],
        data_collator=DoubleLabels(
            tokenizer, slices=2, chunks=args.gradient_cache_parts, classes=classes,
            angles={"joy": 0.5, "sadness": 3.5},
        ),
    )  # fmt: skip
    assert trainer.accelerator.num_processes == processes
    if evaluated:
        dev = toy_dataset(evaluated, seed=9, mixed=True)
        dev = weighted(without_some_numbers(dev)) if partial else dev
        predicted = trainer.predict(dev)
        arrays = {**predicted.predictions, **{f"label of {k}": v for k, v in predicted.label_ids.items()}}
        metrics = {k: v for k, v in trainer.evaluate(dev).items() if not k.endswith(("_second", "_runtime", "_time"))}
        return {"metrics": metrics, "arrays": {name: torch.from_numpy(array) for name, array in arrays.items()}}
    losses: list[torch.Tensor] = []
    step = trainer.training_step
    trainer.training_step = lambda *given: losses.append(step(*given)) or losses[-1]
    trainer.train(resume_from_checkpoint=resume and str(folder / resume))
    joint = trainer.accelerator.reduce(torch.stack(losses), "mean")  # a process's loss is that of its own rows
    logs = [{k: h[k] for k in args.weights if k in h} for h in trainer.state.log_history if "loss" in h]
    return {
        "model": model.state_dict(), "gradient": observer.gradient, "losses": joint, "logs": logs,
        "skipped": trainer.nonfinite.total, "steps": trainer.state.global_step,
    }  # fmt: skip


def run_cases(folder: Path, processes: int, cases: dict[str, dict[str, Any]]) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    for name, case in cases.items():
        found = run(folder, tokenizer, processes, name, case)
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            torch.save(found, folder / f"{name}-{processes}.pt")


if __name__ == "__main__":
    run_cases(Path(sys.argv[1]), 2, json.loads((Path(sys.argv[1]) / "cases.json").read_text()))
    leave_at_once()  # before anything of it is torn down
