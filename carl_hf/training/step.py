"""The three passes of a training step: sentences (Eq 3 to 6), perturbation (Eq 7 to 9), detection (Eq 10).

Shape suffixes: B texts of this process, G texts of the global batch, L tokens of the longest text, T tokens of all
texts (packed, see encoders/packing.py), E width of the word embeddings, H width of the encoder, D projection width,
C classes, P proxies (one a class), 2 (valence, arousal).

Source: Son, Saurez, Har, arXiv 2502.20613; equation numbers are the paper's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from carl_hf.adversary import pgd_perturbation, select_salient_tokens, token_saliency
from carl_hf.encoders.packing import TokenLayout
from carl_hf.losses import (
    NO_CLASS,
    circular_loss,
    class_cross_entropy,
    focal_detection_loss,
    mccl_loss,
    proxy_anchor_loss,
    rank_n_contrast_loss,
    simcse_loss,
    supervised_contrastive_loss,
    va_regression_loss,
)
from carl_hf.modeling_carl import CarlModel, CarlOutput
from carl_hf.training.distributed import gather_with_gradient
from carl_hf.training.gradient_cache import CachedPass, Gradients, cached_backward, with_gradients
from carl_hf.training_args import CarlTrainingArguments


@dataclass(frozen=True)
class BatchLabels:
    """Labels of this process's texts and of the global batch.

    Args:
        va_B2, va_G2: valence and arousal in [-1, 1], each NaN if missing. class_G: class indices, -1 for a text
            without a class. angle_G: radians, NaN for a text without an angle. weight_G: > 0. counted_G: booleans,
            false for a text that only fills up a batch (in evaluation). row_offset: index in the global batch of this
            process's first text.
    """

    va_B2: Tensor
    va_G2: Tensor
    class_G: Tensor
    angle_G: Tensor
    weight_G: Tensor
    counted_G: Tensor
    row_offset: int

    @classmethod
    def of(cls, batch: Mapping[str, Any], gather: Callable[[Tensor], Tensor], rank: int) -> "BatchLabels":
        """The labels of a collated batch, gathered over processes, each of which has as many texts.

        Args:
            batch: of [`carl_hf.CarlDataCollator`]. gather: returns the rows of all processes, without gradient.
            rank: of this process.
        """
        va_B2 = batch["va"]
        class_B = batch.get("class", torch.full_like(va_B2[:, 0], NO_CLASS, dtype=torch.long))
        angle_B = batch.get("angle", torch.full_like(va_B2[:, 0], torch.nan))
        weight_B = batch.get("weight", torch.ones_like(va_B2[:, 0]))
        counted_B = batch.get("counted", torch.ones_like(class_B, dtype=torch.bool))
        return cls(va_B2, *map(gather, (va_B2, class_B, angle_B, weight_B, counted_B)), rank * len(va_B2))  # type: ignore[call-arg]


@dataclass
class Step:
    """State shared by the passes of a step; each fills in what it has computed.

    Args:
        args: the recipe. weights: objective -> its weight in the loss. sentence_weights: the same without PTD, or MCCL
            where PTD is trained alone. batch: of [`carl_hf.CarlDataCollator`]. labels: of the batch.
        gather: returns the rows of all processes, without gradient.
        class_weights_C: for cross-entropy. loss_scale: factor on a loss before `torch.autograd.grad` is called on it
            within the step, so that small gradients do not underflow in fp16.
    """

    args: CarlTrainingArguments
    weights: Mapping[str, float]
    sentence_weights: Mapping[str, float]
    batch: Mapping[str, Any]
    labels: BatchLabels
    gather: Callable[[Tensor], Tensor]
    class_weights_C: Tensor | None = None
    loss_scale: float = 1.0

    # set by encode_target()
    carl: CarlModel = field(init=False)
    layout: TokenLayout = field(init=False)
    words_TE: Tensor = field(init=False)  # word embeddings
    trained: list[Tensor] = field(init=False)  # all but the word embeddings' table, whose gradient comes by words_TE
    target_GD: Tensor | None = field(init=False, default=None)  # projections by the target branch
    dtype: torch.dtype = field(init=False)  # in which the encoder computes, for the log
    # by sentence_pass()
    embedding_BH: Tensor = field(init=False)
    losses: dict[str, Tensor] = field(init=False)  # of every objective, unweighted; detection_pass() adds "ptd"
    gradients: Gradients | None = field(init=False, default=None)  # of the losses so far
    # by perturb()
    delta_TE: Tensor | None = field(init=False, default=None)
    perturbed_BL: Tensor = field(init=False)
    judged_BL: Tensor = field(init=False)  # tokens that the detector is trained on
    # by detection_pass()
    judged_count: Tensor = field(init=False)  # texts of the global batch that have such tokens
    logits_BL: Tensor = field(init=False)

    @property
    def trains_sentences(self) -> bool:
        """Whether a sentence objective is trained: always but with PTD alone."""
        return set(self.weights) != {"ptd"}


def encode_target(step: Step, carl: CarlModel) -> None:
    """Packs the batch, looks up its word embeddings, and computes the target branch's projections."""
    step.carl, step.layout = carl, TokenLayout.of(step.batch)
    input_ids_T = step.layout.pack(step.batch["input_ids"])
    step.words_TE = carl.word_embeddings(input_ids_T)
    device = step.words_TE.device.type
    autocast = torch.is_autocast_enabled(device)
    step.dtype = torch.get_autocast_dtype(device) if autocast else step.words_TE.dtype
    table = carl.get_input_embeddings().weight
    step.trained = [p for p in carl.online_parameters() if p.requires_grad and p is not table] if carl.training else []
    if "mccl" in step.sentence_weights:
        step.target_GD = step.gather(carl.project_target(input_ids_T, step.layout))


def sentence_pass(step: Step) -> Tensor:
    """The weighted sentence loss and its gradients: MCCL (Eq 3 to 6), regression, or other objectives.

    One backward pass gives the gradients of the parameters, and those of the word embeddings for saliency and PGD; the
    loss is returned without graph. With PTD alone nothing is trained here: the loss returned is 0.
    """
    if step.carl.training or "ptd" in step.weights:
        step.gradients = Gradients.zero(step.words_TE, step.trained if step.trains_sentences else [])
    loss, step.losses, step.embedding_BH = _sentence_loss(step, step.words_TE, step.gradients)
    return loss if step.trains_sentences else torch.zeros_like(loss)


def perturb(step: Step) -> None:
    """Chooses the salient tokens (Eq 7) and the perturbation of their word embeddings (Eq 8).

    Both raise the whole sentence loss that is trained, the paper's L_MCCL among its terms.
    """
    args, layout, gradient_TE = step.args, step.layout, step.gradients.of_embeds_TE
    saliency_BL = layout.unpack(token_saliency(gradient_TE))  # Eq 7
    # a text without a label for any sentence objective has no gradient, and is left out
    eligible_BL = step.batch["eligible"] & (saliency_BL > 0).any(-1, keepdim=True)
    if args.token_choice == "random":
        saliency_BL = _uniform(step, saliency_BL)
    salient_BL = select_salient_tokens(saliency_BL, eligible_BL, fraction=args.salient_fraction)
    step.perturbed_BL, step.judged_BL = salient_BL, eligible_BL
    if args.perturb_half:
        step.perturbed_BL, step.judged_BL = salient_BL & (_uniform(step, saliency_BL) < 0.5), salient_BL

    def score(embeds_TE: Tensor) -> Tensor:  # the loss with its gradient attached: encoding in chunks keeps no graph
        gradients = Gradients.zero(embeds_TE, [])
        loss, _, _ = _sentence_loss(step, embeds_TE, gradients)
        return with_gradients(loss, [embeds_TE], [gradients.of_embeds_TE])

    step.delta_TE = pgd_perturbation(
        score, step.words_TE, layout.pack(step.perturbed_BL), radius=args.perturbation_radius,
        relative=args.perturbation_relative, step_size=args.pgd_step_size, steps=args.pgd_steps,
        first_gradient=gradient_TE,
    )  # Eq 8  # fmt: skip


def positions(batch: Mapping[str, Any]) -> Tensor:
    """(B,) positions of the texts before the collator sorted them; a custom collator may keep their order."""
    ids_BL = batch["input_ids"]
    return batch.get("row", torch.arange(len(ids_BL), device=ids_BL.device))


def _uniform(step: Step, like_BL: Tensor) -> Tensor:
    """Random numbers in [0, 1) for all tokens. In evaluation several processes draw those of one: for the texts of the
    global batch, longest first."""
    labels, (texts, width) = step.labels, like_BL.shape
    if step.carl.training or texts == len(labels.va_G2):
        return torch.rand_like(like_BL)
    lengths_G = step.gather(step.batch["attention_mask"].sum(-1)).masked_fill(~labels.counted_G, 0)
    rows_G = torch.arange(len(lengths_G), device=like_BL.device) // texts * texts + step.gather(positions(step.batch))
    order_G = rows_G.argsort()
    order_G = order_G[lengths_G[order_G].argsort(descending=True, stable=True)][: labels.counted_G.sum()]
    drawn = torch.rand(len(order_G), lengths_G.max(), dtype=like_BL.dtype, device=like_BL.device)
    found_GL = like_BL.new_ones(len(lengths_G), max(width, drawn.shape[1]))
    found_GL[order_G, : drawn.shape[1]] = drawn
    return found_GL[labels.row_offset : labels.row_offset + texts, :width]


def detection_pass(step: Step) -> Tensor:
    """The unweighted loss of the detector on the perturbed texts (Eq 9, 10), without graph; adds its gradients.

    It is the mean over those texts of the global batch that have tokens to judge. focal_detection_loss gives the mean
    over all texts of a chunk, which is weighted by the chunk's share of this process's texts and scaled to the former.
    """
    carl, training = step.carl, step.carl.training
    if not step.trains_sentences:
        step.gradients = Gradients.zero(step.words_TE, step.trained)
    step.judged_count = step.gather(step.judged_BL.any(-1)).sum()
    scale_to_judged = len(step.labels.va_G2) / step.judged_count.clamp_min(1)
    perturbed_TE = step.words_TE + step.delta_TE  # Eq 9
    total, logits = torch.zeros((), device=perturbed_TE.device), []
    with torch.set_grad_enabled(training):
        for chunk in step.layout.chunks:
            leaf_TE = perturbed_TE[chunk.tokens].detach().requires_grad_()
            logits_BL = chunk.unpack(carl.detect(carl.encode(leaf_TE, chunk)))
            perturbed_BL, judged_BL = step.perturbed_BL[chunk.texts], step.judged_BL[chunk.texts]
            loss = focal_detection_loss(logits_BL, perturbed_BL, judged_BL, gamma=step.args.focal_gamma)  # Eq 10
            loss = loss * scale_to_judged * (len(logits_BL) / len(step.judged_BL))
            if training:
                step.gradients.add(loss * (step.weights["ptd"] * step.loss_scale), leaf_TE, chunk)
            total = total + loss.detach()
            logits.append(logits_BL.detach())
    step.losses["ptd"], step.logits_BL = total, torch.cat(logits)
    return total


def attach_gradients(step: Step, loss: Tensor) -> CarlOutput:
    """The loss as a function of the parameters: its backward pass hands out the gradients found already."""
    if step.carl.training:
        known = step.gradients.scaled(1 / step.loss_scale)
        parameters = [*step.trained, step.words_TE]
        loss = with_gradients(loss, parameters, [*known.of_parameters, known.of_embeds_TE])
    return CarlOutput(loss=loss, embedding=step.embedding_BH)


def _sentence_loss(
    step: Step, embeds_TE: Tensor, gradients: Gradients | None
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The weighted sentence loss of these word embeddings; every objective's loss; the embeddings (B, H) of the texts.

    All without graph. The weighted loss's gradients, times the loss scale, are added to `gradients`.
    """
    weights = step.sentence_weights
    views = [
        CachedPass(step.carl.embed_packed, embeds_TE, step.layout, backward_follows=gradients is not None)
        for _ in range(2 if "simcse" in weights else 1)
    ]
    losses = _objective_losses(step, views[0].pooled_BH, views[-1].pooled_BH)
    loss = sum(weights[name] * value for name, value in losses.items())
    if gradients is not None:
        cached_backward(loss * step.loss_scale, views, gradients)
    return loss.detach(), {name: value.detach() for name, value in losses.items()}, views[0].pooled_BH.detach()


def _objective_losses(step: Step, pooled_BH: Tensor, view_BH: Tensor) -> dict[str, Tensor]:
    """The unweighted losses of the sentence objectives.

    MCCL compares this process's rows with the target's projections of the global batch; the others see the global
    batch. `view_BH` holds the same texts under another dropout mask, for SimCSE.
    """
    carl, args, labels, names = step.carl, step.args, step.labels, set(step.sentence_weights)
    weight_G = labels.weight_G
    losses: dict[str, Tensor] = {}
    if "mccl" in names:
        losses["mccl"] = mccl_loss(
            carl.predict(pooled_BH), step.target_GD, labels.va_B2, labels.va_G2, temperature=args.temperature,
            label_temperature=args.label_temperature, kernel=args.label_kernel, row_offset=labels.row_offset,
            widths=carl.config.contrast_widths, weight_G=weight_G,
        )  # fmt: skip
    if names == {"mccl"}:
        return losses
    pooled_GH = gather_with_gradient(pooled_BH)
    if "proxy_anchor" in names:
        losses["proxy_anchor"] = proxy_anchor_loss(
            pooled_GH, labels.class_G, carl.proxies.weight_PH, alpha=args.proxy_alpha, margin=args.proxy_margin,
            weight_B=weight_G,
        )  # fmt: skip
    if "circular" in names:
        losses["circular"] = circular_loss(
            pooled_GH, labels.angle_G, same_label_margin=args.same_label_margin, weight_B=weight_G
        )
    if "cross_entropy" in names:
        logits_GC = carl.classifier(pooled_GH)
        losses["cross_entropy"] = class_cross_entropy(
            logits_GC, labels.class_G, weights_C=step.class_weights_C, weight_B=weight_G
        )
    if "supcon" in names:
        losses["supcon"] = supervised_contrastive_loss(
            pooled_GH, labels.class_G, temperature=args.temperature, weight_B=weight_G
        )
    if "regression" in names:
        losses["regression"] = va_regression_loss(carl.regressor(pooled_GH), labels.va_G2, weight_G)
    if "rank_n_contrast" in names:
        losses["rank_n_contrast"] = rank_n_contrast_loss(
            pooled_GH, labels.va_G2, temperature=args.temperature, similarity="cosine", weight_B=weight_G
        )
    if "rank_n_contrast_l2" in names:
        losses["rank_n_contrast_l2"] = rank_n_contrast_loss(pooled_GH, labels.va_G2, weight_B=weight_G)
    if "simcse" in names:
        views = (pooled_GH, gather_with_gradient(view_BH))
        if "counted" in step.batch:
            views = (views[0][labels.counted_G], views[1][labels.counted_G])
        losses["simcse"] = simcse_loss(*views, temperature=args.temperature)
    return losses
