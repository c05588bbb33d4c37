"""Which files of carl_hf one batch crosses on its way from texts to gradients, in the order of their first call.

    python benchmarks/trace_step.py

Prints one line for each file with the functions that ran there: a map for who reads the code, and a check that the way
stays short.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from types import FrameType

import carl_hf
from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments, load_va_dataset
from carl_hf.encoders import load_tokenizer

PACKAGE = Path(carl_hf.__file__).parent


def trace(trainer: CarlTrainer) -> dict[str, list[str]]:
    """File -> functions of it that were called, from collating a batch to the end of its backward pass."""
    seen: dict[str, list[str]] = {}

    def profile(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE) and frame.f_code.co_name[0] != "<":
            functions = seen.setdefault(str(path.relative_to(PACKAGE)), [])
            if frame.f_code.co_name not in functions:
                functions.append(frame.f_code.co_name)

    rows = [trainer.train_dataset[i] for i in range(trainer.args.per_device_train_batch_size)]
    trainer.model.train()
    sys.setprofile(profile)
    try:
        batch = trainer.data_collator(rows)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    finally:
        sys.setprofile(None)
    return seen


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args = CarlTrainingArguments(
            folder, objectives=["mccl", "ptd", "regression"], per_device_train_batch_size=16, use_cpu=True,
            report_to="none",
        )  # fmt: skip
        trainer = CarlTrainer(
            model=CarlModel.from_encoder("minilm-l6", contrast_layers="prediction"), args=args,
            train_dataset=load_va_dataset("demo", split="train"), processing_class=load_tokenizer("minilm-l6"),
        )  # fmt: skip
        seen = trace(trainer)
    for number, (file, functions) in enumerate(seen.items(), 1):
        print(f"{number:2} {file:32} {', '.join(functions)}")


if __name__ == "__main__":
    main()
