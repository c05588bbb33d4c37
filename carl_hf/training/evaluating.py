"""A Trainer whose evaluation is that of the whole set on any number of processes, with scores and probes.

Shape suffixes: B texts of this process, H width of the encoder, C classes, 2 (valence, arousal).
"""

import copy
import importlib.util
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer

from carl_hf.collator import CarlDataCollator
from carl_hf.losses import NO_CLASS
from carl_hf.modeling_carl import CarlModel
from carl_hf.training.checks import evaluation_sets, rows_of
from carl_hf.training.dev_probe import DevProbe
from carl_hf.training.monitor import RunningMeans
from carl_hf.training.step import positions
from carl_hf.training.streams import is_stream
from carl_hf.utils.devices import kept_random_state

logger = logging.getLogger(__name__)


class EvaluatingTrainer(Trainer):
    """Evaluates and predicts. Of the subclass it takes `weights` (objective -> weight), and `compute_loss` and
    `_end_step(means)`, which adds the metrics of a batch.

    Predictions, for `predict` and `compute_metrics`, are a dictionary of arrays with a row for every text, in the
    order of the texts: `embedding` (N, H); `valence_arousal` (N, 2), in [-1, 1] but for errors of the regressor, and
    `class_scores` (N, C), logits of the classifier or cosines with the proxies, where the model has these heads.
    The labels are one too: `valence_arousal` (N, 2), NaN if missing, and `class` (N,), -1 if missing. Of a model with
    dominance, `valence_arousal` is (N, 3).
    """

    args: Any
    weights: Mapping[str, float]
    dev_probe: DevProbe | None = None
    _evaluation_means: RunningMeans
    _unknown: set[Any]  # labels that were said to be unknown
    given_eval_dataset: Any = None  # as the caller has it
    _of_training = False  # whether the set that is evaluated is that of training

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        own = (None, self.eval_dataset, self.given_eval_dataset)  # a name is one of a dictionary of sets
        self._of_training = isinstance(eval_dataset, str) or any(eval_dataset is dataset for dataset in own)
        if not isinstance(eval_dataset, str):
            eval_dataset = self._rows_of(eval_dataset, "eval_dataset")
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        self._of_training = False
        return super().get_test_dataloader(self._rows_of(test_dataset, "test_dataset"))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In their order, whatever that of training is: predictions have it too."""
        return SequentialSampler(eval_dataset)

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        """A loader that, but for training, leaves no text out and keeps their order."""
        if is_training:
            return super()._get_dataloader(dataset, *args, is_training=True, **kwargs)
        given = self.args
        self.args = copy.copy(given)
        self.args.dataloader_drop_last, self.args.dataloader_in_order = False, True
        self.args.dataloader_persistent_workers = False  # the Trainer would take the loader of the set before
        try:
            return super()._get_dataloader(dataset, *args, **kwargs)
        finally:
            self.args = given

    def _rows_of(self, dataset: Any, name: str) -> Any:
        return rows_of(dataset, name, any_rows=not isinstance(self.data_collator, CarlDataCollator))

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, dict[str, Tensor] | None, dict[str, Tensor] | None]:
        batch = self._without_repeats(self._prepare_inputs(inputs))
        with torch.enable_grad():  # saliency needs a gradient also when nothing is trained
            loss, output = self.compute_loss(model, batch, return_outputs=True)
        self._end_step(self._evaluation_means)
        if prediction_loss_only:
            return loss.detach(), None, None
        order_B = positions(batch).argsort()  # the collator has sorted the texts by length
        labels = {"valence_arousal": batch["va"], "class": batch.get("class", positions(batch) * 0 + NO_CLASS)}
        inputs["input_ids"] = inputs["input_ids"][order_B.to(inputs["input_ids"].device)]  # for include_for_metrics
        scores = head_scores(self.model, output.embedding)
        return loss.detach(), *({name: x[order_B] for name, x in found.items()} for found in (scores, labels))

    def _without_repeats(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, in which texts that only fill up the last global batch have no label and count nowhere."""
        processes, state = self.accelerator.num_processes, self.accelerator.gradient_state
        if processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return batch
        own = state.remainder - self.accelerator.process_index * len(batch["input_ids"])
        repeated_B = positions(batch) >= own
        for name, nothing in (("va", math.nan), ("angle", math.nan), ("class", NO_CLASS)):
            if name in batch:
                label = batch[name]
                batch[name] = label.masked_fill(repeated_B.view(-1, *[1] * (label.dim() - 1)), nothing)
        return {**batch, "eligible": batch["eligible"] & ~repeated_B.unsqueeze(-1), "counted": ~repeated_B}

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        if is_stream(dataloader.dataset) and self.accelerator.num_processes > 1:
            raise ValueError("Several processes would repeat texts of a stream in evaluation: load them first, "
                             "eval_dataset=datasets.Dataset.from_list(list(stream)).")  # fmt: skip
        self._evaluation_means = RunningMeans(self._gather, strict=self.weights)  # nothing of one before
        self._say_unknown(dataloader.dataset)
        with kept_random_state(self.args.device):  # the same draws each time, which leave those of training alone
            torch.manual_seed(self.args.seed)
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        metrics = self._evaluation_means.take()
        prefix = metric_key_prefix
        undefined = [name for name in self.weights if name not in metrics]
        plain_loss = output.metrics.pop(f"{prefix}_loss", math.nan)  # counts texts without a label as 0
        if undefined and not math.isfinite(plain_loss):  # the model has diverged
            metrics["loss"] = plain_loss
        elif len(undefined) < len(self.weights):
            metrics["loss"] = sum(w * metrics[name] for name, w in self.weights.items() if name in metrics)
        if undefined and math.isfinite(plain_loss):
            logger.warning(
                "No text that is evaluated counts for %s (no label, or none in its batch to be compared with): %s.",
                " and ".join(undefined),
                f"{prefix}_loss is without" if "loss" in metrics else f"there is no {prefix}_loss",
            )  # fmt: skip
        metrics |= self._probe_dev(dataloader.dataset)
        if taken := [name for name in metrics if f"{prefix}_{name}" in output.metrics]:
            raise ValueError(f"compute_metrics returns {', '.join(taken)}, as the trainer's own: name it otherwise.")
        output.metrics.update({f"{prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        try:
            return super()._determine_best_metric(metrics, trial)
        except KeyError as error:
            raise ValueError(str(error.args[0])) from error

    def _can_probe(self) -> bool:
        sets = [self.train_dataset, *evaluation_sets(self.eval_dataset).values()]
        held = len(sets) > 1 and all(isinstance(d, datasets.Dataset) and "text" in d.column_names for d in sets)
        return held and self.processing_class is not None and importlib.util.find_spec("sklearn") is not None

    def _say_unknown(self, dataset: Any) -> None:
        """Logs, once, labels that are no classes of the model: they count as missing."""
        classes = getattr(self.data_collator, "class_indices", None)
        if classes and isinstance(dataset, datasets.Dataset) and "label" in dataset.column_names:
            unknown = {*dataset.unique("label")} - {None, *classes, *self._unknown}
            if unknown:
                self._unknown |= unknown
                logger.warning(
                    "The texts that are evaluated have labels that are none of the model's classes, and count as "
                    "missing: %s.", ", ".join(map(repr, sorted(unknown, key=str))),
                )  # fmt: skip

    def _probe_dev(self, dev: Any) -> dict[str, float]:
        """Metrics of probes on the current encoder's embeddings of the validation texts. The seconds they took are
        there for the validation texts of training alone: by them a card knows those metrics."""
        if self.dev_probe is None or not isinstance(dev, datasets.Dataset):
            return {}
        start = time.perf_counter()
        tokenizer, max_length = self.processing_class, self.args.max_length

        def encode(texts: Sequence[str]) -> np.ndarray:
            return self.model.embed(texts, tokenizer, max_length=max_length).numpy()

        metrics = self.dev_probe(encode, dev)
        return {**metrics, "probe_seconds": round(time.perf_counter() - start, 2)} if self._of_training else metrics


@torch.no_grad()
def head_scores(model: CarlModel, embedding_BH: Tensor) -> dict[str, Tensor]:
    """The embeddings, and what the heads of the model make of them: see [`EvaluatingTrainer`]."""
    embedding_BH = embedding_BH.to(model.detector.weight.dtype)
    scores = {"embedding": embedding_BH}
    if model.regressor is not None:
        scores["valence_arousal"] = model.regressor(embedding_BH)
    if model.classifier is not None:
        scores["class_scores"] = model.classifier(embedding_BH)
    elif model.proxies is not None:
        scores["class_scores"] = model.proxy_similarity(embedding_BH)
    return scores
