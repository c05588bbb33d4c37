"""Checkpoints with a completion record, so that incomplete ones are detected, and a Trainer that resumes from them."""

import json
import logging
import re
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from carl_hf.utils.atomic_files import apply_umask, fsync_path, write_errors, write_json

logger = logging.getLogger(__name__)

RECORD = "checkpoint.json"
"""File of the completion record, written last: the sizes of a checkpoint's files, and the batches of its training."""

_REMEDY = (
    "Checkpoints before it are untouched: free space on the disk, or mend what the message says, and continue with "
    "--resume_from_checkpoint last."
)


@dataclass(frozen=True)
class CompletionRecord:
    """What a complete checkpoint states of its training.

    Args:
        global_batch: texts that are contrasted with each other, of all processes. batches: accumulated in a step.
        resumable: whether the optimizer's state is there (not under `--save_only_model`).
        layer_decay: 1, or the value of a setting of version 0.1.0 that is gone.
        run: what else shapes the training: corpora, encoder, settings; None in checkpoints of earlier versions.
    """

    global_batch: int
    batches: int
    resumable: bool = True
    layer_decay: float = 1.0
    run: dict[str, Any] | None = None

    @property
    def texts_per_step(self) -> int:
        return self.global_batch * self.batches


def mark_complete(folder: str | Path, record: CompletionRecord) -> None:
    """Writes the completion record of a checkpoint, after all its files have reached the disk."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    for path in files:
        fsync_path(path)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    stated = {"joint_batch": record.global_batch, "batches": record.batches, "resumable": record.resumable}
    write_json(folder / RECORD, {**stated, "run": record.run, "bytes": sizes})
    fsync_path(folder)


def read_completion_record(folder: str | Path) -> CompletionRecord:
    """What [`mark_complete`] has written.

    Raises:
        ValueError: if the checkpoint is incomplete: it has no record, or a file is missing or of another size.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        record = CompletionRecord(
            int(content["joint_batch"]), int(content["batches"]), bool(content["resumable"]),
            float(content.get("layer_decay", 1.0)), None if content.get("run") is None else dict(content["run"]),
        )  # fmt: skip
        sizes = {str(name): int(size) for name, size in content["bytes"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{folder} is incomplete: it was never finished (no valid {RECORD}).") from error
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(f"{folder} is incomplete: {name} is missing or cut short.")
    return record


def foreign_files(folder: str | Path) -> list[str]:
    """The files in a checkpoint that its completion record does not name; "" if it has no valid record."""
    folder = Path(folder)
    try:
        read_completion_record(folder)
    except ValueError:
        return [""]
    named = {RECORD, *json.loads((folder / RECORD).read_text(encoding="utf-8"))["bytes"]}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return sorted(found - {Path(name).as_posix() for name in named})


def last_checkpoint(folder: str | Path) -> str:
    """The newest complete checkpoint of a run that can be resumed from. Others, such as those that a kill while saving
    leaves, are skipped with a warning.

    Raises:
        ValueError: if there is none.
    """
    for path in sorted(_checkpoints(folder), key=_step, reverse=True):
        try:
            if read_completion_record(path).resumable:
                return str(path)
            logger.warning("%s holds the model alone (--save_only_model). It is skipped.", path)
        except ValueError as error:
            logger.warning("%s It is skipped.", error)
    raise ValueError(f"There is no complete checkpoint in {folder} to resume from.")


def _checkpoints(folder: str | Path) -> list[Path]:
    found = Path(folder).glob("checkpoint-*")
    return [path for path in found if path.is_dir() and re.fullmatch("checkpoint-[0-9]+", path.name)]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def remove_old_checkpoints(folder: str | Path, newest: Path, best: str | None, limit: int | None) -> None:
    """Leaves `limit` checkpoints of a run (None or 0: all), and in any case the newest and the best one.

    Those with more steps than the newest, left by an earlier training that came further, go first; then the oldest.
    """
    kept = {newest.resolve(), *([Path(best).resolve()] if best else [])}
    others = [path for path in _checkpoints(folder) if path.resolve() not in kept]
    others.sort(key=lambda path: (_step(path) < _step(newest), _step(path)))
    surplus = len(others) + len(kept) - max(limit, len(kept)) if limit else 0
    for path in others[: max(0, surplus)]:
        shutil.rmtree(path, ignore_errors=True)


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints get a completion record. An older one is deleted only after that.

    Attributes:
        start_step (`int`): optimizer steps made before the present training.
    """

    start_step = 0

    @property
    def completion_record(self) -> CompletionRecord:
        """That of this training's checkpoints."""
        global_batch = self.args.train_batch_size * self.args.world_size
        resumable = not self.args.save_only_model
        return CompletionRecord(global_batch, self.args.gradient_accumulation_steps, resumable, run=self.run_settings)

    @property
    def run_settings(self) -> dict[str, Any] | None:
        """What a training must keep to be resumed, as in JSON; a missing entry is the default."""
        return None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; `resume_from_checkpoint=True` or `"last"` takes the newest complete checkpoint.

        Raises:
            ValueError: if the checkpoint is incomplete, or there is none, or it was trained with other batches (its
                position in the data and its contrast would not fit), another model, `run_settings` or a layer_decay.
        """
        if resume_from_checkpoint is True or resume_from_checkpoint == "last":
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
        self.start_step = 0
        if resume_from_checkpoint:
            self._check_resumable(resume_from_checkpoint)
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            self.start_step = state.global_step
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _check_resumable(self, checkpoint: str) -> None:
        trained, now = read_completion_record(checkpoint), self.completion_record
        if pickled := sorted(path.name for path in Path(checkpoint).glob("pytorch_model*")):
            raise ValueError(f"{checkpoint} holds {pickled[0]}, a pickle that is not opened: weights are safetensors.")
        if not trained.resumable:
            raise ValueError(f"{checkpoint} holds the model alone: it was saved with --save_only_model.")
        if (trained.global_batch, trained.batches) != (now.global_batch, now.batches):
            raise ValueError(
                f"{checkpoint} was trained with {trained.global_batch} texts in a contrastive batch and "
                f"{trained.batches} batches a step, now it would be {now.global_batch} and {now.batches}. Keep "
                "processes times --per_device_train_batch_size (--gradient_cache_parts for less memory), and "
                "--gradient_accumulation_steps; or start anew from its model."
            )
        if trained.layer_decay != 1:
            raise ValueError(
                f"{checkpoint} was trained with --layer_decay {trained.layer_decay:g}, which this version does not "
                "have: start anew from the checkpoint's model."
            )
        changed = []
        if trained.run is None and now.run is not None:
            logger.warning(
                "%s is of version 0.1.0 and does not state its settings. It continues with today's: %s.",
                checkpoint, ", ".join(f"{name} {_said(value)}" for name, value in now.run.items()),
            )  # fmt: skip
        elif trained.run is not None and now.run is not None:
            defaults = {field.name: field.default for field in fields(self.args)}
            pairs = {name: (trained.run.get(name), now.run.get(name)) for name in {**trained.run, **now.run}}
            # None: no name, a stream, nothing chosen
            unstated = {"encoder", "dropout_probabilities", "training_texts", "metric_for_best_model"}
            if "training_texts" not in trained.run:  # of an earlier version, which did not record these either
                unstated |= {"data_seed", "optim_args", "train_sampling_strategy"}
            pairs = {n: pair for n, pair in pairs.items() if n not in unstated or None not in pair}
            changed = [
                f"{name} {_said(a, defaults.get(name))}, now {_said(b, defaults.get(name))}"
                for name, (a, b) in pairs.items()
                if a != b
            ]
        if not changed:
            old, new = map(_architecture, (type(self.model.config).from_pretrained(checkpoint), self.model.config))
            changed = [
                f"{name} {_said(old.get(name))}, now {_said(new.get(name))}"
                for name in {**old, **new}
                if old.get(name) != new.get(name)
            ]
        if changed:
            raise ValueError(
                f"{checkpoint} was trained with {'; '.join(changed)}. A run is resumed as it was begun: give the "
                "same, or start anew from the export of its model."
            )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # a finished run is resumed
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():  # of an earlier training that came this far
            (folder / RECORD).unlink(missing_ok=True)
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        keep, self.args.save_total_limit = self.args.save_total_limit, None  # nothing goes before this is complete
        try:
            with write_errors(f"The checkpoint {folder}", _REMEDY):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = keep
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with write_errors(f"The checkpoint {folder}", _REMEDY):
                torch.save(self.args, folder / TRAINING_ARGS_NAME)
                apply_umask(folder)
                mark_complete(folder, self.completion_record)
            remove_old_checkpoints(folder.parent, folder, self.state.best_model_checkpoint, keep)


def _architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings of a model and, as `encoder.NAME`, of its encoder."""
    settings = config.to_dict()
    settings |= {f"encoder.{name}": value for name, value in settings.pop("encoder", {}).items()}
    others = ("architectures", "dtype", "use_cache", "name_or_path", "version", "_token_id")  # of files and tokenizers
    return {name: value for name, value in settings.items() if not name.endswith(others)}


def _said(value: Any, default: Any = None) -> str:
    if value is None:
        return "the default" + (f" ({default})" if isinstance(default, (str, int, float)) else "")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
