"""The plain alternative to CARL: the same encoder, texts, batches and updates, trained to predict valence and arousal
by a linear head and the squared error.

    python benchmarks/studies/va_regression.py --corpora emobank facebook --data_dir DIR --output_dir runs/regression
    python examples/evaluate.py --model minilm-l6 runs/carl-minilm/encoder runs/regression --data_dir DIR

The folder holds a sequence-classification model with the labels valence and arousal and outputs in [0, 1];
examples/evaluate.py measures its encoder like any other, and its head as "... direct".
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Trainer, TrainingArguments, set_seed

from carl_hf import CarlDataCollator, Provenance, export_va_regressor, load_va_dataset
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import use_all_cores
from carl_hf.data.mixing import mix_datasets
from carl_hf.encoders.loading import load_classifier, load_tokenizer
from carl_hf.utils.progress import show_progress


@dataclass
class RegressionArguments:
    encoder: str = field(
        default="minilm-l6", metadata={"help": "Encoder to start from: Hub id, folder or 'minilm-l6'."}
    )
    corpora: list[str] = field(default_factory=lambda: ["demo"], metadata={"help": "Training corpora by name."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with local copies of the corpora."})
    output_dir: str = field(default="runs/regression", metadata={"help": "Folder for the trained model."})
    num_train_epochs: float = field(default=2.0, metadata={"help": "Passes over the training texts."})
    batch_size: int = field(default=128, metadata={"help": "Texts of a batch."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW; cosine, 10 % warm-up."})
    dropout: float | None = field(default=None, metadata={"help": "Dropout in training (default: the encoder's)."})
    max_length: int = field(default=128, metadata={"help": "Tokens kept of a text."})
    max_steps: int = field(default=-1, metadata={"help": "Steps, in place of epochs."})
    seed: int = field(default=42, metadata={"help": "Random seed."})


class RegressionTrainer(Trainer):
    """Squared error of the head's outputs; the batch is encoded in length-sorted slices."""

    loss_is_scaled_for_ga = False

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        rows, widths, _ = zip(*inputs["slices"], strict=True)
        ids, masks = (inputs[name].split(rows) for name in ("input_ids", "attention_mask"))
        logits_B2 = torch.cat(
            [
                model(input_ids=i[:, :width], attention_mask=m[:, :width]).logits
                for i, m, width in zip(ids, masks, widths, strict=True)
            ]
        )
        return F.mse_loss(logits_B2, (inputs["va"] + 1) / 2)


def main() -> None:
    try:
        args = parse_script_arguments(RegressionArguments)
        if (Path(args.output_dir) / "config.json").exists():
            raise ValueError(f"--output_dir {args.output_dir} holds a model: name another folder.")
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        use_all_cores(None)
        train = mix_datasets(
            [(load_va_dataset(corpus, split="train", data_dir=args.data_dir), 1.0) for corpus in args.corpora],
            seed=args.seed,
        )
        tokenizer = load_tokenizer(args.encoder)
        set_seed(args.seed)
        model = load_classifier(
            args.encoder, problem_type="regression", id2label={0: "valence", 1: "arousal"},
            label2id={"valence": 0, "arousal": 1},
        )  # fmt: skip
    except ValueError as error:
        sys.exit(f"error: {error}")
    if args.dropout is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = args.dropout
    training = TrainingArguments(
        args.output_dir, num_train_epochs=args.num_train_epochs, max_steps=args.max_steps, seed=args.seed,
        per_device_train_batch_size=args.batch_size, learning_rate=args.learning_rate, warmup_steps=0.1,
        lr_scheduler_type="cosine", save_strategy="no", report_to="none", logging_steps=10,
        remove_unused_columns=False, dataloader_drop_last=True, disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=torch.cuda.is_available(),
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False),
    )  # fmt: skip
    collator = CarlDataCollator(tokenizer, max_length=args.max_length)
    trainer = RegressionTrainer(model=model, args=training, train_dataset=train, data_collator=collator)
    show_progress(trainer)
    trainer.train()
    origin = Provenance(base_model=args.encoder, corpora=args.corpora, method="regression of valence and arousal")
    export_va_regressor(model, tokenizer, args.output_dir, max_length=args.max_length, provenance=origin)
    print(f"{len(train)} texts; the model is in {args.output_dir}")


if __name__ == "__main__":
    main()
