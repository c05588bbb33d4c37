"""Checkpoints that are whole or recognised as torn, and a Trainer that resumes from the newest whole one."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

logger = logging.getLogger(__name__)

SEAL = "checkpoint.json"
"""Written last: the sizes of a checkpoint's files, and the texts of the batch that it was trained with."""


def seal(folder: str | Path, *, batch_texts: int) -> None:
    """Marks a checkpoint as whole, when all its files are on the disk.

    Args:
        batch_texts (`int`): texts of an optimizer step, of all processes and accumulated batches.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    for path in files:
        _to_disk(path)
    content = {"batch_texts": batch_texts, "bytes": {str(p.relative_to(folder)): p.stat().st_size for p in files}}
    partial = folder / f"{SEAL}.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _to_disk(partial)
    partial.replace(folder / SEAL)
    _to_disk(folder)


def _to_disk(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_seal(folder: str | Path) -> dict[str, Any]:
    """What [`seal`] has written.

    Raises:
        ValueError: if the checkpoint is torn: not sealed, or a file of it is missing or of another size.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        sizes = dict(content["bytes"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder} is torn: it was never finished (no whole {SEAL}).") from error
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(f"{folder} is torn: {name} is missing or cut short.")
    return content


def last_checkpoint(folder: str | Path) -> str:
    """The newest whole checkpoint of a run; each torn one, which a kill while saving leaves, is passed over with a
    warning.

    Raises:
        ValueError: if there is none.
    """
    checkpoints = [path for path in Path(folder).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for path in sorted(checkpoints, key=lambda path: -int(path.name.split("-")[-1])):
        try:
            read_seal(path)
        except ValueError as error:
            logger.warning("%s It is passed over.", error)
            continue
        return str(path)
    raise ValueError(f"There is no whole checkpoint in {folder} to resume from.")


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints are sealed when they are whole. An older one is only deleted after that.

    Attributes:
        start_step (`int`): optimizer steps made before the present training.
    """

    start_step = 0

    @property
    def batch_texts(self) -> int:
        """Texts of an optimizer step, of all processes and accumulated batches."""
        return self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As `Trainer.train`; `resume_from_checkpoint=True` or `"last"` takes the newest whole checkpoint.

        Raises:
            ValueError: if the checkpoint is torn, or there is none, or it was trained with batches of another number
                of texts (processes times texts of each times accumulation): its position in the data would not fit.
        """
        if resume_from_checkpoint in (True, "last"):
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
        self.start_step = 0
        if resume_from_checkpoint:
            trained = read_seal(resume_from_checkpoint)["batch_texts"]
            if trained != self.batch_texts:
                raise ValueError(
                    f"{resume_from_checkpoint} was trained with {trained} texts a step, and now a step has "
                    f"{self.batch_texts}. Keep the product of processes, --per_device_train_batch_size and "
                    "--gradient_accumulation_steps, or start anew from its model."
                )
            self.start_step = TrainerState.load_from_json(
                str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME)
            ).global_step
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        keep, self.args.save_total_limit = self.args.save_total_limit, None  # nothing is deleted before this is whole
        try:
            if self.args.should_save:
                (folder / SEAL).unlink(missing_ok=True)  # of an earlier training that came this far
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save and not self.args.save_only_model:
                seal(folder, batch_texts=self.batch_texts)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
            raise OSError(
                f"The checkpoint {folder} could not be written ({error}). Checkpoints before it are untouched: free "
                "space on the disk, and continue with --resume_from_checkpoint last."
            ) from error
        finally:
            self.args.save_total_limit = keep
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(folder.parent), save_total_limit=keep,
                best_model_checkpoint=self.state.best_model_checkpoint, use_mtime=True,
            )  # fmt: skip
