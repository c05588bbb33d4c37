"""The Trainer's own ways to push, changed to publish the clean export and nothing else."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from carl_hf.data.mixing import COLUMNS, on_scale, rows_with_va
from carl_hf.encoders.dropouts import dropout_probabilities
from carl_hf.encoders.packaged import packaged_name
from carl_hf.export.cards import Result
from carl_hf.export.exports import export_encoder
from carl_hf.export.folder import with_earlier_training
from carl_hf.export.hub import Push, check_repository, errors_explained, push_export
from carl_hf.export.provenance import Provenance, differing_settings, run_settings
from carl_hf.export.task_heads import FEWEST_TEXTS
from carl_hf.objectives import describe_objectives

logger = logging.getLogger(__name__)


class PublishingTrainer(Trainer):
    """A Trainer whose `push_to_hub` and `hub_strategy` publish the exported encoder.

    The plain Trainer uploads its output folder: target network, heads, training_args.bin and, with some strategies,
    the optimizer's state. Here every strategy but "end" pushes the export at each save ("checkpoint" and
    "all_checkpoints" do the same as "every_save").
    """

    provenance: Provenance
    given_optimizer: str | None  # class of an optimizer that was passed instead of `args.optim`
    _counted: tuple[datasets.Dataset, str] | None = None
    _best_step: int | None = None  # that of the weights, after training has loaded its best checkpoint

    @property
    def run_settings(self) -> dict[str, Any]:
        """See [`carl_hf.training.checkpoints`]: a checkpoint is resumed by the run that it is of, whose corpora and
        licence stand on the card."""
        config = self.model.config
        model = {"pooling": config.pooling, "contrast_layers": config.contrast_layers, "objectives": self.args.weights}
        encoder = self.model.encoder.name_or_path
        model |= {} if self.given_optimizer is None else {"optimizer": self.given_optimizer}
        model |= {"dropout_probabilities": dropout_probabilities(self.model.encoder)}
        model |= {"training_texts": self._training_texts()}
        if self.args.load_best_model_at_end:  # the best value so far is one of this metric
            model |= {"metric_for_best_model": self.args.metric_for_best_model.removeprefix("eval_")}
        return {**run_settings(self.provenance, encoder), **json.loads(json.dumps(model))}

    def _training_texts(self) -> str | None:
        """The number and a checksum of the training texts with their labels; None of a stream, or of rows that a
        collator of the caller's reads."""
        train = self.train_dataset
        if not isinstance(train, datasets.Dataset) or "text" not in train.column_names:
            return None
        if self._counted is None or self._counted[0] is not train:
            digest = hashlib.sha256()
            known = train.select_columns([column for column in COLUMNS if column in train.column_names])
            for rows in known.with_format(None).iter(10_000):
                cells = [rows.get(column, [None] * len(rows["text"])) for column in COLUMNS]
                digest.update(repr(cells).encode("utf-8", "surrogatepass"))
            self._counted = train, f"{len(train)} (checksum {digest.hexdigest()[:12]})"
        return self._counted[1]

    def export(self, folder: str | Path, *, measure_bias: bool = True) -> Path:
        """Writes the encoder as it is now, with its card. See [`carl_hf.export_encoder`].

        Args:
            measure_bias: for the card, with a probe on training texts; needs scikit-learn and `datasets.Dataset`s.
        """
        measurable = isinstance(self.train_dataset, datasets.Dataset) and importlib.util.find_spec("sklearn")
        train = rows_with_va(self.train_dataset) if measure_bias and measurable else None
        if train is not None and (len(train) < FEWEST_TEXTS or not on_scale(train)):
            train = None
        return export_encoder(
            self.model, self.processing_class, folder, max_length=self.args.max_length, provenance=self.provenance,
            results=self._dev_results(), train=train,
        )  # fmt: skip

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository, or checks before training that the export may be pushed to it later.

        Raises:
            ValueError: if not; see [`carl_hf.export.hub.check_repository`].
        """
        branch = self.args.hub_revision or "main"
        with errors_explained(self.args.hub_model_id or Path(self.args.output_dir).name, branch, sending=False):
            super().init_hf_repo(token, private)
        if self.is_world_process_zero():
            check_repository(
                self.hub_model_id, "encoder", private=self.args.hub_private_repo if private is None else private,
                branch=branch, token=token or self.args.hub_token,
            )  # fmt: skip

    def push_to_hub(
        self, commit_message: str | None = "End of training", blocking: bool = True, token: str | None = None,
        revision: str | None = None, private: bool | None = None,
    ) -> Push | Future | None:  # fmt: skip
        """Exports the encoder and makes the repository `hub_model_id` hold exactly that export.

        The arguments are those of `Trainer.push_to_hub`, without the ones for its card: here the card follows from
        training and evaluation. If not `blocking`, a future of the result is returned. `private`, by default
        `hub_private_repo`, is the visibility that the repository has already or gets.

        Raises:
            ValueError: if there is no tokenizer to export, or the push fails (see [`carl_hf.push_export`]).
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        return self._publish(
            commit_message, blocking=blocking, measure_bias=True, token=token, revision=revision, private=private
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not self.args.hub_always_push:
                return
            self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            self._publish(f"Training in progress, step {self.state.global_step}", blocking=False, measure_bias=False)
        except (ValueError, OSError) as error:
            logger.warning("Nothing was pushed; training goes on. %s", error)

    def _publish(
        self, message: str | None, *, blocking: bool, measure_bias: bool, token: str | None = None,
        revision: str | None = None, private: bool | None = None,
    ) -> Push | Future:  # fmt: skip
        if self.processing_class is None:
            raise ValueError("Without a tokenizer there is nothing to publish: pass processing_class=tokenizer.")
        push = functools.partial(
            push_export,
            self.export(Path(self.args.output_dir) / "hub", measure_bias=measure_bias),
            self.hub_model_id,
            private=self.args.hub_private_repo if private is None else private,
            branch=revision or self.args.hub_revision or "main",
            commit_message=message,
            token=token or self.args.hub_token,
        )
        if blocking:
            return push()
        future = HfApi().run_as_future(push)
        future.add_done_callback(_log_failure)
        self.push_in_progress = PushInProgress([future])  # the next export waits for it
        return future

    def _dev_results(self) -> list[Result]:
        """The metrics of the evaluation during training that belong to the current weights."""
        step = self.state.global_step if self._best_step is None else self._best_step
        metrics: dict[str, float] = {}
        for entry in self.state.log_history:
            if "eval_probe_seconds" in entry and entry["step"] == step:
                metrics = entry
        results = []
        for dimension in ("valence", "arousal", "dominance"):
            value = metrics.get(f"eval_{dimension}_pearson", -1.0)
            if value > -1.0:  # which stands for "undefined"
                results.append(Result("validation texts", "validation", "pearson", f"{dimension}, Pearson r", value))
        if (accuracy := metrics.get("eval_label_accuracy")) is not None:
            results.append(Result("validation texts", "validation", "accuracy", "emotion, accuracy", accuracy))
        return results

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._best_step = int(str(self.state.best_model_checkpoint).rpartition("-")[2])

    def _complete(self, provenance: Provenance | None) -> Provenance:
        """With the settings of this run, and its objectives if no method is named. Without a provenance, the base
        model is the encoder that the model was made from."""
        if provenance is None:
            name = self.model.encoder.name_or_path
            provenance = Provenance(base_model=packaged_name(name) or name or None)
        complete = dataclasses.replace(
            provenance,
            settings={**(provenance.settings or {}), **differing_settings(self.args)},
            method=describe_objectives(self.args.weights) if provenance.method == "CARL" else provenance.method,
        )
        return with_earlier_training(complete, complete.base_model) if complete.base_model else complete


def _log_failure(push: Future) -> None:
    if push.exception() is not None:
        logger.warning("A push failed; training goes on. %s", push.exception())
