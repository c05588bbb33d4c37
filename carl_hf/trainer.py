"""CarlTrainer: a transformers Trainer whose compute_loss is the algorithm of the paper, or of other objectives.

Shape suffixes: B texts of this process, G texts of the global batch, L tokens of the longest, T tokens of all texts,
E width of the word embeddings, H width of the encoder, D projection width.

Source: Son, Saurez, Har, arXiv 2502.20613; equation numbers are the paper's.
"""

import importlib.util
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from carl_hf.adversary import pgd_perturbation, select_salient_tokens, token_saliency
from carl_hf.collator import CarlDataCollator
from carl_hf.data.mixing import check_dataset
from carl_hf.encoders.fast_cpu import limit_primitive_cache, use_fast_dropout
from carl_hf.encoders.packing import TokenLayout
from carl_hf.export.provenance import Provenance
from carl_hf.export.trainer_mixin import PublishingTrainer
from carl_hf.modeling_carl import CarlModel, CarlOutput
from carl_hf.momentum import TargetUpdateCallback, cosine_momentum
from carl_hf.objectives import OBJECTIVES
from carl_hf.training.checkpoints import ResumableTrainer
from carl_hf.training.checks import (
    HeadWarmupCallback,
    check_batches,
    check_metric,
    class_weights,
    classes_of,
    label_angles,
    steps_per_epoch,
)
from carl_hf.training.dev_probe import DevProbe
from carl_hf.training.gradient_cache import Gradients
from carl_hf.training.gradients import with_gradients
from carl_hf.training.layer_decay import decay_by_layer
from carl_hf.training.levels import SentenceLevel, detection_level
from carl_hf.training.monitor import detection_auc, embedding_spread, parameter_distance
from carl_hf.training.nonfinite import SkipNonFiniteSteps
from carl_hf.training.sentence_losses import BatchLabels
from carl_hf.training.streams import EndlessRows, StreamEpochCallback, is_stream
from carl_hf.training_args import CarlTrainingArguments

logger = logging.getLogger(__name__)


class CarlTrainer(PublishingTrainer, ResumableTrainer):
    """Trains a [`CarlModel`] on texts with valence and arousal, or with names of emotions, or a mixture.

    Args:
        model ([`CarlModel`]): the model. args ([`CarlTrainingArguments`]): the recipe.
        train_dataset, eval_dataset (`datasets.Dataset`; for training also a `datasets.IterableDataset`, see
            [`carl_hf.training.streams.EndlessRows`]): columns `text`, and `valence` and `arousal` (in [-1, 1]) or
            `label` (a name) or all of them; a text without one has None there. Every objective uses the texts that
            carry what it needs.
        processing_class: the tokenizer; needed unless a `data_collator` is given.
        provenance ([`Provenance`]): base model and corpora, for the card of what is pushed to the Hub.
        Everything else as for `transformers.Trainer`.

    Logs, besides the Trainer's own: every objective's loss under its name, such as `mccl` and `ptd`; `detector_auc`,
    `momentum`, `zero_label_fraction` (share of the texts with numbers whose label is (0, 0)), `changed_coordinates`
    (share of the perturbed tokens' coordinates that differ from the clean ones in the dtype the encoder computes in),
    `embedding_std`, `effective_rank` and `target_distance` (training/monitor.py); and `skipped_steps`, how many so
    far, when the loss or gradient of a step is not finite (training/nonfinite.py). An evaluation logs the same
    losses on `eval_dataset`, and `eval_valence_pearson`, `eval_arousal_pearson` and their mean from a ridge
    probe, `eval_label_accuracy` (percent) from a logistic one, each where the texts carry such labels (see
    `probe_texts`), with the cost of both, `eval_probe_seconds`.

    Raises:
        ValueError: if a dataset lacks a column or holds a value that cannot be trained on (the row is named), or the
            objectives need labels or heads that are not there, or the contrastive batch would hold fewer than two
            texts, or the training data less than one batch.
    """

    loss_is_scaled_for_ga = False  # compute_loss returns a mean over the batch; the Trainer averages accumulated ones

    def __init__(
        self,
        model: CarlModel | None = None,
        args: CarlTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        provenance: Provenance | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, CarlTrainingArguments):
            raise ValueError(f"CarlTrainer needs CarlTrainingArguments, got {type(args).__name__}.")
        if not isinstance(model, CarlModel):
            raise ValueError(
                f"CarlTrainer trains a CarlModel, got {type(model).__name__}: CarlModel.from_encoder(...)."
            )
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process would split the contrastive batch: start one process each with "
                "accelerate launch or torchrun, or choose one GPU with CUDA_VISIBLE_DEVICES=0."
            )
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            if isinstance(dataset, datasets.Dataset):
                needs = args.label_kinds if name == "train_dataset" or args.label_kinds == {"va"} else ()
                check_dataset(dataset, name, needs)
        classes = classes_of(model, args, train_dataset)
        if data_collator is None:
            if processing_class is None:
                raise ValueError("CarlTrainer needs the encoder's tokenizer: pass processing_class=tokenizer.")
            data_collator = CarlDataCollator(
                processing_class, max_length=args.max_length, slices=args.encode_slices,
                parts=args.gradient_cache_parts, classes=classes, angles=label_angles(args, train_dataset),
            )  # fmt: skip
            positions = model.config.encoder.to_dict().get("max_position_embeddings")
            if positions is not None and data_collator.max_length > positions:
                raise ValueError(
                    f"The encoder has {positions} positions, fewer than max_length {data_collator.max_length}: lower "
                    "--max_length."
                )
        if args.ddp_find_unused_parameters is None:  # what no objective uses gets no gradient
            uses_all = {"mccl", "ptd"} <= set(args.weights) and model.config.heads == args.heads
            uses_all = uses_all and model.config.contrast_layers != "none"  # else the pooler stays idle
            args.ddp_find_unused_parameters = None if uses_all else True
        super().__init__(
            model, args, data_collator, train_dataset, eval_dataset, processing_class=processing_class, **kwargs
        )
        self.provenance = self._complete(provenance)
        if args.push_to_hub and processing_class is None:
            raise ValueError("--push_to_hub needs the tokenizer, which is published too: processing_class=tokenizer.")
        check_batches(self.args, train_dataset)
        self.dev_probe: DevProbe | None = None
        if args.probe_texts and self._can_probe():
            self.dev_probe = DevProbe(train_dataset, texts=args.probe_texts, seed=args.seed)
        check_metric(self.args, self.dev_probe, eval_dataset)
        self.faults = SkipNonFiniteSteps(self.accelerator, processing_class, args.max_skipped_steps, self.log)
        self.add_callback(self.faults)
        self.add_callback(TargetUpdateCallback(args.initial_momentum, lambda: self.faults.skipped))
        if args.warmup_epochs_of_heads > 0:
            self.add_callback(HeadWarmupCallback(args.warmup_epochs_of_heads * steps_per_epoch(args, train_dataset)))
        if is_stream(train_dataset):
            args.ignore_data_skip = True  # the stream begins where the checkpoint stands
            self.add_callback(StreamEpochCallback())
        limit_primitive_cache()
        self.model.use_packed_attention()
        use_fast_dropout(self.model.online.encoder)
        self._class_weights = class_weights(args, classes, train_dataset)
        self._records: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # (figure of a batch, its weight)
        self._last_embedding_BH: Tensor | None = None
        self._warned_of_lost_perturbation = False

    # ---- the step

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, CarlOutput]:
        """The weighted sum of MCCL and PTD (Eq 11) and regression over one batch, or of the objectives in their place.

        The whole step runs inside one call of the (wrapped) model. One backward pass of the sentence objectives gives
        the gradients of the parameters, the saliency, and the gradient of the first PGD step; its graph is freed
        before the perturbed pass.
        """
        args, weights = self.args, self.args.weights
        labels = BatchLabels.of(inputs, self._gather, self.accelerator.process_index)
        counts = labels.counts()
        # with PTD alone, saliency comes from MCCL, which is not trained on
        sentence_weights = {name: w for name, w in weights.items() if name != "ptd"} or {"mccl": 1.0}
        trains_sentences = set(weights) != {"ptd"}
        loss_scale = self._loss_scale()

        def algorithm(carl: CarlModel) -> CarlOutput:
            layout = TokenLayout.of(inputs)
            input_ids_T = layout.pack(inputs["input_ids"])
            words_TE = carl.word_embeddings(input_ids_T)
            table = carl.get_input_embeddings().weight  # its gradient comes through words_TE
            trained = [p for p in carl.online_parameters() if p.requires_grad and p is not table and carl.training]
            target_GD = None
            if "mccl" in sentence_weights:
                target_GD = self._gather(carl.project_target_packed(input_ids_T, layout))

            # Sentence level: online against target branch (Eq 3 to 6), or another objective. One backward pass gives
            # the gradients of the parameters and of the word embeddings; its graph is freed
            sentences = SentenceLevel(
                carl, args, layout, sentence_weights, target_GD, labels, self._class_weights, loss_scale
            )
            gradients = None
            if carl.training or "ptd" in weights:
                gradients = Gradients.none_yet(words_TE, trained if trains_sentences else [])
            l_sentence, losses, pooled_BH = sentences(words_TE, gradients)
            output = CarlOutput(loss=l_sentence, embedding=pooled_BH)
            for name, loss in losses.items():
                self._record(counts[OBJECTIVES[name].label], **{name: loss})
            zero_labels = (labels.va_G2 == 0).all(-1).sum()
            self._record(counts["va"], zero_label_fraction=zero_labels / counts["va"])

            if "ptd" in weights:
                # Token level: choose salient tokens, perturb them, detect them
                saliency_BL = layout.unpack(token_saliency(gradients.of_embeds_TE))  # Eq 7
                # a text without a label for any sentence objective has no gradient to be attacked by: it is left out
                eligible_BL = inputs["eligible"] & (saliency_BL > 0).any(-1, keepdim=True)
                if args.token_choice == "random":
                    saliency_BL = torch.rand_like(saliency_BL)
                salient_BL = select_salient_tokens(saliency_BL, eligible_BL, fraction=args.salient_fraction)
                perturbed_BL, judged_BL = salient_BL, eligible_BL
                if args.perturb_half:
                    perturbed_BL, judged_BL = salient_BL & (torch.rand_like(saliency_BL) < 0.5), salient_BL

                delta_TE = pgd_perturbation(
                    sentences.score, words_TE, layout.pack(perturbed_BL),
                    radius=args.perturbation_radius, relative=args.perturbation_relative,
                    step_size=args.pgd_step_size, steps=args.pgd_steps, first_gradient=gradients.of_embeds_TE,
                )  # Eq 8  # fmt: skip
                if not trains_sentences:
                    gradients = Gradients.none_yet(words_TE, trained)
                judged_texts = self._gather(judged_BL.any(-1)).sum()
                l_ptd, logits_BL = detection_level(
                    carl, words_TE + delta_TE, layout, perturbed_BL, judged_BL, gamma=args.focal_gamma,  # Eq 9, 10
                    factor=counts[None] / judged_texts.clamp_min(1),  # the mean over the texts that were attacked
                    loss_scale=weights["ptd"] * loss_scale, gradients=gradients if carl.training else None,
                )  # fmt: skip
                output.loss = weights["ptd"] * l_ptd + (l_sentence if trains_sentences else 0)  # Eq 11
                self._record(
                    judged_texts,
                    ptd=l_ptd,
                    detector_auc=detection_auc(logits_BL, perturbed_BL, judged_BL),
                    changed_coordinates=_changed_coordinates(words_TE, delta_TE, layout.pack(perturbed_BL)),
                )
            if carl.training:
                known = gradients.scaled(1 / loss_scale)
                output.loss = with_gradients(
                    output.loss, [*trained, words_TE], [*known.of_parameters, known.of_embeds_TE]
                )
            return output

        output = model(inputs["input_ids"], objective=algorithm)
        self._last_embedding_BH = output.embedding
        return (output.loss, output) if return_outputs else output.loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        return self.faults.watch(inputs, self._last_embedding_BH, loss)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        self.faults.grad_norm = super()._get_grad_norm(model, grad_norm)
        return self.faults.grad_norm

    def _loss_scale(self) -> float:
        """Factor on a loss before an inner backward pass: the scaler's under fp16, where small gradients underflow."""
        return self.accelerator.scaler.get_scale() if self.accelerator.scaler is not None else 1.0

    def _gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of their ranks, without gradient."""
        return self.accelerator.gather(rows) if self.accelerator.num_processes > 1 else rows

    # ---- logging and evaluation

    def _record(self, weight: Tensor, **figures: Tensor) -> None:
        prefix = "" if self.model.training else "eval_"
        for name, figure in figures.items():
            self._records[prefix + name].append((figure.detach().float(), weight))

    def _take_means(self, prefix: str) -> dict[str, float]:
        """Means over the batches since the last call and over processes, each batch with the weight of the texts that
        the figure is of; one that is undefined in a batch is left out there."""
        names = [n for n in self._records if n.startswith("eval_") == (prefix == "eval_")]
        means = {}
        for name in names:
            values, weights = (torch.stack(column) for column in zip(*self._records.pop(name), strict=True))
            weights, values = weights * values.isfinite(), values.nan_to_num(posinf=0, neginf=0)
            total = self._gather(torch.stack([(values * weights).sum(), weights.sum()]).unsqueeze(0)).sum(0)
            if total[1] > 0:
                means[name.removeprefix("eval_")] = (total[0] / total[1]).item()
        return means

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # the entry of a training interval, not of an evaluation or of the end
            means = self._take_means("")
            self._warn_if_perturbation_is_lost(means)
            spread, rank = embedding_spread(self._last_embedding_BH)
            logs |= means
            logs |= {
                "momentum": cosine_momentum(self.state.global_step, self.state.max_steps, self.args.initial_momentum),
                "embedding_std": spread.item(),
                "effective_rank": rank.item(),
                "target_distance": parameter_distance(self.model.target, self.model.online).item(),
            }
        super().log(logs, start_time)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        inputs = self._prepare_inputs(inputs)
        with torch.enable_grad():  # saliency needs a gradient also when nothing is trained
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        with torch.random.fork_rng():  # random choices are the same each time and leave those of training untouched
            torch.manual_seed(self.args.seed)
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        figures = self._take_means("eval_")
        if set(self.args.weights) <= set(figures):  # the plain mean over batches counts those without a label as 0
            figures["loss"] = sum(weight * figures[name] for name, weight in self.args.weights.items())
        figures |= self._probe_dev(dataloader.dataset)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
        return output

    def _can_probe(self) -> bool:
        held = all(isinstance(dataset, datasets.Dataset) for dataset in (self.train_dataset, self.eval_dataset))
        return held and self.processing_class is not None and importlib.util.find_spec("sklearn") is not None

    def _probe_dev(self, dev: Any) -> dict[str, float]:
        """Valence and arousal on the validation texts by a probe on the present encoder, and the seconds it took."""
        if self.dev_probe is None or not isinstance(dev, datasets.Dataset):
            return {}
        start = time.perf_counter()
        tokenizer, max_length = self.processing_class, self.args.max_length

        def encode(texts: Sequence[str]) -> np.ndarray:
            return self.model.embed(texts, tokenizer, max_length=max_length).numpy()

        return {**self.dev_probe(encode, dev), "probe_seconds": round(time.perf_counter() - start, 2)}

    def _warn_if_perturbation_is_lost(self, means: dict[str, float]) -> None:
        share = means.get("changed_coordinates", 1.0)
        if share < 0.5 and self.args.perturbation_radius > 0 and not self._warned_of_lost_perturbation:
            self._warned_of_lost_perturbation = True
            logger.warning(
                "The perturbation does not survive the dtype: only %.1f %% of the perturbed coordinates differ "
                "from the clean ones (perturbation_radius=%g, %s). The detector can learn where salient tokens are, "
                "but cannot see a perturbation. A relative radius of 1 or 2 is visible: --perturbation_relative true "
                "--perturbation_radius 2 --pgd_step_size 2.",
                100 * share,
                self.args.perturbation_radius,
                "relative" if self.args.perturbation_relative else "absolute",
            )

    # ---- heads and data

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.model.proxies is not None and not given:
            proxies_PH = self.model.proxies.weight_PH
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if p is not proxies_PH]
            group = {"params": [proxies_PH], "lr": self.args.proxy_learning_rate, "weight_decay": 0.0}
            optimizer.add_param_group(group)
        if self.args.layer_decay < 1 and not given:
            decay_by_layer(optimizer, self.model.online.encoder, self.args.layer_decay)
        return optimizer

    def get_train_dataloader(self) -> Any:
        if is_stream(self.train_dataset):
            rows = EndlessRows(
                self.train_dataset, batch=self.args.train_batch_size, process=self.args.process_index,
                processes=self.args.world_size, start=self.start_step * self.batches.batch_texts,
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


def _changed_coordinates(clean_TE: Tensor, delta_TE: Tensor, perturbed_T: Tensor) -> Tensor:
    """Share of the perturbed tokens' coordinates that change, compared in the dtype in which the encoder computes."""
    device = clean_TE.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else clean_TE.dtype
    changed_TE = (clean_TE + delta_TE).to(dtype) != clean_TE.to(dtype)
    return (changed_TE & perturbed_T.unsqueeze(-1)).sum() / (perturbed_T.sum() * clean_TE.shape[-1])
