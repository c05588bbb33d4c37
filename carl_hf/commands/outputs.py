"""Output folders of training scripts: what a run leaves there, when it may write, and how it is resumed."""

import shutil
import sys
from pathlib import Path

from transformers import Trainer

from carl_hf.training.checkpoints import last_checkpoint, read_completion_record
from carl_hf.training.nonfinite import SKIPPED_STEPS
from carl_hf.training_args import CarlTrainingArguments

_RESULTS = ("results.json", SKIPPED_STEPS, "encoder", "va", "emotion", "hub", "figures")


def results_of_a_run(folder: str | Path) -> list[Path]:
    """The checkpoints, exports, plots and results in a folder."""
    folder = Path(folder)
    return [folder / name for name in _RESULTS if (folder / name).exists()] + sorted(folder.glob("checkpoint-*"))


def remove_results(folder: str | Path) -> None:
    """Removes what [`results_of_a_run`] lists, and nothing else."""
    for path in results_of_a_run(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_output_dir(folder: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a folder that holds another run, unless that is to be resumed or overwritten.

    Raises:
        ValueError: if the folder holds a run, or is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file; name a folder.")
    old = results_of_a_run(folder)
    if old and not resume and not overwrite:
        raise ValueError(
            f"--output_dir {folder} holds another run ({', '.join(path.name for path in old)}). Name another folder, "
            "continue it with --resume_from_checkpoint last, or replace it with --overwrite_output_dir true."
        )


def prepare_output(args: CarlTrainingArguments, *, overwrite: bool) -> str | None:
    """Checks where a run may write, and finds the checkpoint that it resumes from, if any: `last` is the newest
    complete one, `auto` the same or, if there is none, a new run.

    Raises:
        ValueError: if the folder holds another run, or there is no such checkpoint, or it is incomplete.
    """
    resume = args.resume_from_checkpoint
    if args.process_index == 0:
        check_output_dir(args.output_dir, resume=bool(resume), overwrite=overwrite)
    if resume in ("last", "auto"):
        try:
            return last_checkpoint(args.output_dir)
        except ValueError:
            if resume == "last":
                raise
            # a folder with nothing but incomplete checkpoints is a run that has just begun
            unfinished = all(path.name.startswith("checkpoint-") for path in results_of_a_run(args.output_dir))
            check_output_dir(args.output_dir, resume=unfinished, overwrite=overwrite)
            return None
    if resume and not Path(resume).is_dir():
        raise ValueError(f"--resume_from_checkpoint {resume} is no checkpoint folder; 'last' finds the newest one.")
    if resume:
        read_completion_record(resume)
    return resume


def train_or_exit(trainer: Trainer, resume: str | None) -> None:
    """Trains. What a user can remedy (a full disk, a diverged loss, an unusable text) ends the program with one
    line."""
    try:
        trainer.train(resume_from_checkpoint=resume)
    except (ValueError, OSError, FloatingPointError) as error:
        message = str(error).strip()
        if message.startswith("Caught "):  # in a worker: torch adds its traceback
            message = message.splitlines()[-1].split(": ", 1)[-1]
        sys.exit(f"error: {message}")
