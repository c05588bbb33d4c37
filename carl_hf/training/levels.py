"""The two levels of a training step, sentences and tokens, each with its gradients.

Shape suffixes: B texts of this process, G texts of the global batch, L tokens of the longest, T tokens of all texts,
2 (valence, arousal), D projection width, E width of the word embeddings, H width of the encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from carl_hf.encoders.packing import TokenLayout
from carl_hf.losses import focal_detection_loss
from carl_hf.modeling_carl import CarlModel
from carl_hf.training.gradient_cache import CachedPass, Gradients, cached_backward
from carl_hf.training.gradients import with_gradients
from carl_hf.training.sentence_losses import BatchLabels, sentence_losses
from carl_hf.training_args import CarlTrainingArguments


@dataclass
class SentenceLevel:
    """The weighted sum of the sentence objectives over a batch.

    Args:
        model, args, layout: what encodes, how it is trained, where the tokens of the batch stand.
        weights: objective (all but "ptd") -> its weight.
        target_GD: projections of the target branch for the global batch, for "mccl". labels: of the batch.
        class_weights (C,): for "cross_entropy". loss_scale: factor on the loss before its backward pass.
    """

    model: CarlModel
    args: CarlTrainingArguments
    layout: TokenLayout
    weights: Mapping[str, float]
    target_GD: Tensor | None
    labels: BatchLabels
    class_weights: Tensor | None
    loss_scale: float

    def __call__(
        self, embeds_TE: Tensor, gradients: Gradients | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss over the texts of these word embeddings, without graph.

        Args:
            gradients: where the loss's gradients, times the loss scale, are added, if given.

        Returns:
            the loss; the loss of every objective, unweighted; the embeddings (B, H) of the texts.
        """
        views = [
            CachedPass(self._embed, embeds_TE, self.layout, keeps_graph=gradients is not None)
            for _ in range(2 if "simcse" in self.weights else 1)
        ]
        pooled_BH, view_BH = views[0].pooled_BH, views[-1].pooled_BH
        losses = sentence_losses(
            self.weights, self.model, self.args, pooled_BH, view_BH, self.target_GD, self.labels, self.class_weights
        )
        loss = sum(self.weights[name] * value for name, value in losses.items())
        if gradients is not None:
            cached_backward(loss * self.loss_scale, views, gradients)
        return loss.detach(), {name: value.detach() for name, value in losses.items()}, pooled_BH.detach()

    def _embed(self, embeds_TE: Tensor, part: TokenLayout) -> Tensor:
        return self.model.embed_packed(embeds_TE, part)

    def score(self, embeds_TE: Tensor) -> Tensor:
        """The loss as a function of the word embeddings alone, with its gradient: what PGD raises."""
        gradients = Gradients.none_yet(embeds_TE, [])
        loss, _, _ = self(embeds_TE, gradients)
        return with_gradients(loss, [embeds_TE], [gradients.of_embeds_TE])


def detection_level(
    model: CarlModel,
    embeds_TE: Tensor,
    layout: TokenLayout,
    perturbed_BL: Tensor,
    judged_BL: Tensor,
    *,
    gamma: float,
    factor: Tensor,
    loss_scale: float,
    gradients: Gradients | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of the perturbed-token detector (Eq 10) over a batch, part by part, without graph.

    Args:
        embeds_TE: perturbed word embeddings. perturbed_BL, judged_BL: see `focal_detection_loss`, gamma too.
        factor: of the loss. loss_scale: further factor on the loss before its backward pass.
        gradients: where its gradients, times both factors, are added, if given.

    Returns:
        the loss times `factor`, and the detector's logits (B, L), 0 on padding.
    """
    loss, logits = torch.zeros((), device=embeds_TE.device), []
    with torch.set_grad_enabled(gradients is not None):
        for part in layout.parts:
            leaf_TE = embeds_TE[part.tokens].detach().requires_grad_()
            logits_BL = part.unpack(model.detect(model.encode_packed(leaf_TE, part)))
            of_part = focal_detection_loss(logits_BL, perturbed_BL[part.texts], judged_BL[part.texts], gamma=gamma)
            of_part = of_part * factor * (len(logits_BL) / len(perturbed_BL))
            if gradients is not None:
                gradients.add(of_part * loss_scale, leaf_TE, part)
            loss = loss + of_part.detach()
            logits.append(logits_BL.detach())
    return loss, torch.cat(logits)
