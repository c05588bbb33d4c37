"""CarlTrainer: a transformers Trainer whose compute_loss runs a step of CARL, or of other objectives.

Shape suffixes: B texts of this process, 2 (valence, arousal), H width of the encoder, C classes, P proxies.

Source: Son, Saurez, Har, arXiv 2502.20613; equation numbers are the paper's.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from carl_hf.collator import CarlDataCollator
from carl_hf.data.mixing import check_dataset
from carl_hf.encoders import check_no_adapters
from carl_hf.encoders.fast_cpu import limit_primitive_cache, use_fast_dropout
from carl_hf.export.provenance import Provenance
from carl_hf.export.trainer_mixin import PublishingTrainer
from carl_hf.modeling_carl import CarlModel, CarlOutput
from carl_hf.momentum import TargetUpdateCallback, cosine_momentum
from carl_hf.objectives import sentence_weights
from carl_hf.training import checks
from carl_hf.training.callbacks import HeadWarmupCallback
from carl_hf.training.checkpoints import ResumableTrainer
from carl_hf.training.dev_probe import DevProbe
from carl_hf.training.evaluating import EvaluatingTrainer
from carl_hf.training.monitor import RunningMeans, embedding_spread, parameter_distance, step_metrics, usable_texts
from carl_hf.training.nonfinite import SkipNonFiniteSteps
from carl_hf.training.step import (
    BatchLabels,
    Step,
    attach_gradients,
    detection_pass,
    encode_target,
    perturb,
    sentence_pass,
)
from carl_hf.training.streams import EndlessRows, StreamEpochCallback, is_stream
from carl_hf.training_args import CarlTrainingArguments

logger = logging.getLogger(__name__)


class CarlTrainer(PublishingTrainer, ResumableTrainer, EvaluatingTrainer):
    """Trains a [`CarlModel`] on texts with valence and arousal, with class labels, or with both.

    Args:
        model ([`CarlModel`]): the model. args ([`CarlTrainingArguments`]): the recipe; copied, not changed.
        train_dataset, eval_dataset (`datasets.Dataset`, or what [`carl_hf.training.checks.rows_of`] makes one of; for
            training also a `datasets.IterableDataset`, see [`carl_hf.training.streams.EndlessRows`]; for evaluation
            also a dictionary of sets): columns `text`, and `valence` and `arousal` (in [-1, 1]), or
            `label` (a class name), or all three; None marks a missing label. An objective uses the texts that have
            the labels it needs.
        processing_class: the tokenizer; needed unless a `data_collator` is given.
        provenance ([`Provenance`]): base model and corpora, for the model card of what is pushed to the Hub.
        Everything else as for `transformers.Trainer`.

    Logs, besides the Trainer's own: every objective's loss under its name, such as `mccl` and `ptd`; `detector_auc`;
    `momentum`; `zero_label_fraction` (share of the VA labels that are (0, 0)); `changed_coordinates` (share of the
    perturbed tokens' coordinates that change at the encoder's precision); `embedding_std`, `effective_rank` and
    `target_distance` (training/monitor.py); and `skipped_steps` after a non-finite step (training/nonfinite.py).
    An evaluation logs the same losses, of which it leaves out, with a warning, those that no text counts for.
    Where the labels allow, it adds the Pearson correlations of a ridge probe
    (`eval_valence_pearson`, `eval_arousal_pearson` and their mean `eval_va_pearson`), the accuracy in percent of a
    logistic probe (`eval_label_accuracy`) and, of the validation texts, the time they took, `eval_probe_seconds`.

    What `predict` returns and `compute_metrics` gets: [`carl_hf.training.evaluating.EvaluatingTrainer`].

    Raises:
        ValueError: if a dataset lacks a column or holds a value that cannot be trained on (the row is named), the
            objectives need labels or heads that are missing, the contrastive batch would hold fewer than two texts,
            or the training data do not fill one batch.
    """

    loss_is_scaled_for_ga = False  # compute_loss returns a mean over the batch; the Trainer averages accumulated ones

    def __init__(
        self, model: CarlModel | None = None, args: CarlTrainingArguments | None = None, data_collator: Any = None,
        train_dataset: Any = None, eval_dataset: Any = None, processing_class: Any = None,
        provenance: Provenance | None = None, **kwargs: Any,
    ):  # fmt: skip
        checks.check_model_and_arguments(model, args, **kwargs)
        train_dataset = checks.rows_of(train_dataset, "train_dataset", any_rows=data_collator is not None)
        held_out = {
            name: checks.rows_of(dataset, "eval_dataset", any_rows=data_collator is not None)
            for name, dataset in checks.evaluation_sets(eval_dataset).items()
        }
        given_eval_dataset = eval_dataset
        eval_dataset = held_out if isinstance(eval_dataset, Mapping) else held_out.get("")
        for name, dataset in [("train_dataset", train_dataset), *(("eval_dataset", p) for p in held_out.values())]:
            if isinstance(dataset, datasets.Dataset) and isinstance(data_collator, CarlDataCollator | None):
                # an evaluation leaves out the losses for which its texts have no labels
                needs = args.label_kinds if name == "train_dataset" or args.label_kinds == {"va"} else ()
                named = bool(args.label_kinds & {"class", "angle"})
                check_dataset(dataset, name, needs, dominance=model.config.dominance, named=named)
        classes = checks.classes_of(model, args, train_dataset)
        if data_collator is None and processing_class is None:
            raise ValueError("CarlTrainer needs the encoder's tokenizer: pass processing_class=tokenizer.")
        if data_collator is None or isinstance(data_collator, CarlDataCollator):
            angles = checks.label_angles(args, train_dataset)
            data_collator = data_collator or CarlDataCollator(
                processing_class, max_length=args.max_length, chunks=args.gradient_cache_parts, classes=classes,
                angles=angles, dominance=model.config.dominance,
            )  # fmt: skip
            checks.check_collator(model, args, data_collator, classes, angles)
        args = copy.copy(args)  # the caller's stay as they are
        if args.ddp_find_unused_parameters is None and checks.leaves_parameters_unused(model, args):
            args.ddp_find_unused_parameters = True
        args.ignore_data_skip |= is_stream(train_dataset)  # a stream starts at the checkpoint's position itself
        with checks.as_value_error():
            super().__init__(
                model, args, data_collator, train_dataset, eval_dataset, processing_class=processing_class, **kwargs
            )
        given = (self.optimizer_cls_and_kwargs or [None if self.optimizer is None else type(self.optimizer)])[0]
        self.given_eval_dataset, self._unknown = given_eval_dataset, set[Any]()
        self.given_optimizer = None if given is None else given.__name__
        self.provenance = self._complete(provenance)
        if args.push_to_hub and processing_class is None:
            raise ValueError("--push_to_hub needs the tokenizer, which is published too: processing_class=tokenizer.")
        checks.check_batches(args, train_dataset, eval_dataset)
        if args.probe_texts and self._can_probe():
            self.dev_probe = DevProbe(train_dataset, texts=args.probe_texts, seed=args.seed)
        more = self.compute_metrics is not None or type(self) is not CarlTrainer or kwargs.get("callbacks")
        checks.check_metric(args, self.dev_probe, eval_dataset, own_metrics=bool(more))
        self.nonfinite = SkipNonFiniteSteps(self.accelerator, processing_class, self.log)
        self.add_callback(self.nonfinite)
        self.add_callback(TargetUpdateCallback(args.initial_momentum, lambda: self.nonfinite.skipped))
        if args.warmup_epochs_of_heads > 0:
            self.add_callback(
                HeadWarmupCallback(args.warmup_epochs_of_heads * checks.steps_per_epoch(args, train_dataset))
            )
        if is_stream(train_dataset):
            self.add_callback(StreamEpochCallback())
        self.model.use_packed_attention()
        use_fast_dropout(self.model.online.encoder)  # the target has none in use
        self.weights = args.weights
        self._sentence_weights = sentence_weights(args.weights)
        self._class_weights_C = checks.class_weights(args, classes, train_dataset)
        self._training_means = RunningMeans(self._gather)
        self._step: Step | None = None
        self._last_embedding_BH: Tensor | None = None
        self._warned_of_lost_perturbation, self._without_labels = False, set[str]()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        check_no_adapters(self.model)
        limit_primitive_cache()
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in self.model.parameters()):
            self.model.float()  # bf16 and fp16 are autocast's: weights and target stay float32
        self._training_means, self._best_step = RunningMeans(self._gather), None
        return super().train(*args, **kwargs)

    # ---- the step

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, CarlOutput]:
        """Runs one step of CARL: L = w L_MCCL + w' L_PTD (Eq 11), by default with regression, or other objectives.

        The whole step runs inside one call of the (wrapped) model, where autocast and data parallelism are in force.
        One backward pass of the sentence objectives gives the gradients of the parameters, the saliency, and the
        gradient of the first PGD step; its graph is freed before the perturbed texts are encoded. The loss returned
        has the gradients attached, so that its own backward pass costs nothing.
        """
        labels = BatchLabels.of(inputs, self._gather, self.accelerator.process_index)
        step = self._step = Step(
            self.args, self.weights, self._sentence_weights, inputs, labels, self._gather,
            class_weights_C=self._class_weights_C, loss_scale=self._loss_scale(),
        )  # fmt: skip

        def run(carl: CarlModel) -> CarlOutput:
            encode_target(step, carl)
            loss = sentence_pass(step)  # Eq 3 to 6: momentum continuous contrastive learning, or other objectives
            if "ptd" in self.weights:
                perturb(step)  # Eq 7, 8: the most salient tokens, moved by PGD
                l_ptd = detection_pass(step)  # Eq 9, 10: which tokens were perturbed?
                loss = loss + self.weights["ptd"] * l_ptd  # Eq 11
            return attach_gradients(step, loss)

        output = model(inputs["input_ids"], step_fn=run)
        return (output.loss, output) if return_outputs else output.loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._last_embedding_BH, usable = self._step.embedding_BH, usable_texts(self._step)
        self._end_step(self._training_means)
        return self.nonfinite.watch(inputs, self._last_embedding_BH, loss, usable)

    def _end_step(self, means: RunningMeans) -> None:
        means.add(step_metrics(self._step))
        self._step = None  # frees its tensors

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        self.nonfinite.grad_norm = super()._get_grad_norm(model, grad_norm)
        return self.nonfinite.grad_norm

    def _loss_scale(self) -> float:
        """The fp16 scaler's factor, for losses whose gradients are taken within the step; else 1."""
        return self.accelerator.scaler.get_scale() if self.accelerator.scaler is not None else 1.0

    def _gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of their ranks, without gradient."""
        return self.accelerator.gather(rows) if self.accelerator.num_processes > 1 else rows

    # ---- logging and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # the entry of a training interval, not of an evaluation or of the end
            means = self._training_means.take()
            self._warn_if_perturbation_is_lost(means)
            self._warn_of_objectives_without_labels()
            spread, rank = embedding_spread(self._last_embedding_BH)
            logs |= means
            logs |= {
                "momentum": cosine_momentum(self.state.global_step, self.state.max_steps, self.args.initial_momentum),
                "embedding_std": spread.item(),
                "effective_rank": rank.item(),
                "target_distance": parameter_distance(self.model.target, self.model.online).item(),
            }
        super().log(logs, start_time)

    def _warn_if_perturbation_is_lost(self, means: dict[str, float]) -> None:
        share = means.get("changed_coordinates", 1.0)
        if share < 0.5 and self.args.perturbation_radius > 0 and not self._warned_of_lost_perturbation:
            self._warned_of_lost_perturbation = True
            kind = "relative" if self.args.perturbation_relative else "absolute"
            logger.warning(
                "The perturbation does not survive the dtype: only %.1f %% of the perturbed coordinates differ "
                "from the clean ones (perturbation_radius=%g, %s). The detector can learn where salient tokens are, "
                "but cannot see a perturbation. A relative radius of 1 or 2 is visible: --perturbation_relative true "
                "--perturbation_radius 2 --pgd_step_size 2.", 100 * share, self.args.perturbation_radius, kind,
            )  # fmt: skip

    def _warn_of_objectives_without_labels(self) -> None:
        idle = set(self._sentence_weights) - self._training_means.labelled - self._without_labels
        if idle:
            self._without_labels |= idle
            logger.warning("No text since the last log entry counts for %s (no label, or none in its batch to be "
                           "compared with): nothing was learnt of it.", " and ".join(sorted(idle)))  # fmt: skip

    # ---- optimizer and data

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        given = self.optimizer is not None
        with checks.as_value_error():
            optimizer = super().create_optimizer(model)
        if self.model.proxies is not None and not given:
            proxies_PH = self.model.proxies.weight_PH
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if p is not proxies_PH]
            group = {"params": [proxies_PH], "lr": self.args.proxy_learning_rate, "weight_decay": 0.0}
            optimizer.add_param_group(group)
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().create_scheduler(*args, **kwargs)
        except TypeError as error:  # a setting that the schedule lacks, or does not know
            name = getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)
            raise ValueError(f"The schedule {name} does not take these --lr_scheduler_kwargs: {error}.") from error

    def get_train_dataloader(self) -> Any:
        if is_stream(self.train_dataset):
            rows = EndlessRows(
                self.train_dataset, batch=self.args.train_batch_size, process=self.args.process_index,
                processes=self.args.world_size, start=self.start_step * self.completion_record.texts_per_step,
            )  # fmt: skip
            return DataLoader(
                rows, batch_size=rows.batch, collate_fn=self.data_collator,
                num_workers=self.args.dataloader_num_workers, pin_memory=self.args.dataloader_pin_memory,
                prefetch_factor=self.args.dataloader_prefetch_factor,
                generator=torch.Generator(),  # that of training, which a resumed run has restored, is left alone
            )  # fmt: skip
        # a partial last batch would be a contrast of another size, and accelerate would fill it with repeated texts
        keep, self.args.dataloader_drop_last = self.args.dataloader_drop_last, True
        try:
            return super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = keep
