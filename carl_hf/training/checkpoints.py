"""Checkpoints that are whole or recognised as torn, and a Trainer that resumes from the newest whole one."""

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from carl_hf.utils.atomic_files import fsync_path, write_json

logger = logging.getLogger(__name__)

SEAL = "checkpoint.json"
"""Written last: the sizes of a checkpoint's files, and the batches that it was trained with."""


@dataclass(frozen=True)
class Seal:
    """What a checkpoint's seal says.

    Args:
        joint_batch: texts that are contrasted with each other, of all processes. batches: of a step, accumulated.
        resumable: whether the optimizer's state is there (not under `--save_only_model`).
        layer_decay: by which the rates of the optimizer's groups were made.
    """

    joint_batch: int
    batches: int
    resumable: bool = True
    layer_decay: float = 1.0

    @property
    def batch_texts(self) -> int:
        """Texts of an optimizer step."""
        return self.joint_batch * self.batches


def seal(folder: str | Path, content: Seal) -> None:
    """Marks a checkpoint as whole, when all its files are on the disk."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    for path in files:
        fsync_path(path)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    write_json(folder / SEAL, {**asdict(content), "bytes": sizes})
    fsync_path(folder)


def read_seal(folder: str | Path) -> Seal:
    """What [`seal`] has written.

    Raises:
        ValueError: if the checkpoint is torn: not sealed, or a file of it is missing or of another size.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        found = Seal(
            int(content["joint_batch"]),
            int(content["batches"]),
            bool(content["resumable"]),
            float(content.get("layer_decay", 1.0)),
        )
        sizes = {str(name): int(size) for name, size in content["bytes"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{folder} is torn: it was never finished (no whole {SEAL}).") from error
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(f"{folder} is torn: {name} is missing or cut short.")
    return found


def last_checkpoint(folder: str | Path) -> str:
    """The newest checkpoint of a run that is whole and can be resumed from; each torn one, which a kill while saving
    leaves, is passed over with a warning.

    Raises:
        ValueError: if there is none.
    """
    for path in reversed(_checkpoints(folder)):
        try:
            if read_seal(path).resumable:
                return str(path)
            logger.warning("%s holds the model alone (--save_only_model). It is passed over.", path)
        except ValueError as error:
            logger.warning("%s It is passed over.", error)
    raise ValueError(f"There is no whole checkpoint in {folder} to resume from.")


def _checkpoints(folder: str | Path) -> list[Path]:
    """By their steps."""
    found = [path for path in Path(folder).glob("checkpoint-*") if _step(path) is not None and path.is_dir()]
    return sorted(found, key=_step)


def _step(path: Path) -> int | None:
    number = path.name.removeprefix("checkpoint-")
    return int(number) if number.isascii() and number.isdigit() else None


def remove_old_checkpoints(folder: str | Path, newest: Path, best: str | None, limit: int | None) -> None:
    """Leaves `limit` checkpoints of a run (None or 0: all), and in any case the newest and the best one.

    Those with more steps than the newest, which an earlier training has left that came further, go first; then the
    oldest.
    """
    kept = {newest.resolve(), *([Path(best).resolve()] if best else [])}
    others = [path for path in _checkpoints(folder) if path.resolve() not in kept]
    others.sort(key=lambda path: (_step(path) < _step(newest), _step(path)))
    surplus = len(others) + len(kept) - max(limit, len(kept)) if limit else 0
    for path in others[: max(0, surplus)]:
        shutil.rmtree(path, ignore_errors=True)


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints are sealed when they are whole. An older one is only deleted after that.

    Attributes:
        start_step (`int`): optimizer steps made before the present training.
    """

    start_step = 0

    @property
    def batches(self) -> Seal:
        """The batches of this training."""
        joint = self.args.train_batch_size * self.args.world_size
        return Seal(joint, self.args.gradient_accumulation_steps, resumable=not self.args.save_only_model)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; `resume_from_checkpoint=True` or `"last"` takes the newest whole checkpoint.

        Raises:
            ValueError: if the checkpoint is torn, or there is none, or it was trained with other batches (its position
                in the data and its contrast would not fit) or a layer_decay.
        """
        if resume_from_checkpoint in (True, "last"):
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
        self.start_step = 0
        if resume_from_checkpoint:
            trained, now = read_seal(resume_from_checkpoint), self.batches
            if not trained.resumable:
                raise ValueError(
                    f"{resume_from_checkpoint} holds the model alone: it was saved with --save_only_model."
                )
            if (trained.joint_batch, trained.batches) != (now.joint_batch, now.batches):
                raise ValueError(
                    f"{resume_from_checkpoint} was trained with {trained.joint_batch} texts in a contrastive batch "
                    f"and {trained.batches} batches a step, now it would be {now.joint_batch} and {now.batches}. Keep "
                    "processes times --per_device_train_batch_size (--gradient_cache_parts for less memory), and "
                    "--gradient_accumulation_steps; or start anew from its model."
                )
            if trained.layer_decay != 1:
                raise ValueError(
                    f"{resume_from_checkpoint} was trained with --layer_decay {trained.layer_decay:g}, which this "
                    "version has no more: start anew from the checkpoint's model."
                )
            self.start_step = TrainerState.load_from_json(
                str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME)
            ).global_step
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # what is resumed had made all its steps
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():  # of an earlier training that came this far
            (folder / SEAL).unlink(missing_ok=True)
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        keep, self.args.save_total_limit = self.args.save_total_limit, None  # nothing goes before this is whole
        try:
            with _write_errors(folder):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = keep
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with _write_errors(folder):
                torch.save(self.args, folder / TRAINING_ARGS_NAME)
                seal(folder, self.batches)
            remove_old_checkpoints(folder.parent, folder, self.state.best_model_checkpoint, keep)


@contextlib.contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Makes the errors of the libraries that write a checkpoint an OSError that names it."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("PytorchStreamWriter|unexpected pos", str(error)):
            raise
        raise OSError(
            f"The checkpoint {folder} could not be written ({error}). Checkpoints before it are untouched: free space "
            "on the disk, or mend what the message says, and continue with --resume_from_checkpoint last."
        ) from error
