"""Run by test_distributed.py, alone or under torchrun: a few float64 training steps, the final weights to a file."""

import json
import sys
from pathlib import Path

import torch
from conftest import TOY_NAMES, tiny_encoder, toy_dataset
from transformers import PreTrainedTokenizerFast, set_seed

from carl_hf import CarlDataCollator, CarlModel, CarlTrainer, CarlTrainingArguments
from carl_hf.cli import leave_at_once


class DoubleLabels(CarlDataCollator):
    def __call__(self, rows):
        batch = super().__call__(rows)
        return {**batch, "va": batch["va"].double(), "angle": batch["angle"].double()}


def main(folder: Path, processes: int, settings: dict) -> None:
    streamed = settings.pop("streamed", False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    set_seed(0)
    encoder = tiny_encoder(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    args = CarlTrainingArguments(
        str(folder / f"out-{processes}"), max_steps=4, per_device_train_batch_size=8 // processes, optim="sgd",
        learning_rate=0.5, max_grad_norm=0.0, weight_decay=0.0, save_strategy="no", disable_tqdm=True, logging_steps=1,
        use_cpu=True, dataloader_pin_memory=False, train_sampling_strategy="sequential", **settings,
    )  # fmt: skip
    classes = sorted(TOY_NAMES.values())
    model = CarlModel.from_encoder(encoder, projection_dim=8, heads=args.heads, classes=classes).double()
    data = toy_dataset(64, mixed=bool(args.heads))
    # one process sees rows 0 to 7; two see 0 to 3 and 4 to 7, the same joint batch
    trainer = CarlTrainer(
        model=model, args=args, train_dataset=data.to_iterable_dataset() if streamed else data,
        processing_class=tokenizer,
        data_collator=DoubleLabels(
            tokenizer, slices=2, parts=args.gradient_cache_parts, classes=classes,
            angles={"joy": 0.5, "sadness": 3.5},
        ),
    )  # fmt: skip
    assert trainer.accelerator.num_processes == processes
    trainer.train()
    if trainer.is_world_process_zero():
        logs = [{name: h[name] for name in args.weights} for h in trainer.state.log_history if "mccl" in h]
        torch.save({"model": model.state_dict(), "logs": logs}, folder / f"weights-{processes}.pt")
    leave_at_once()  # before anything of it is torn down


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
