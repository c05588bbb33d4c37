"""The losses on sentence level of one batch, by objective.

Shape suffixes: B texts of this process, G texts of the global batch, H width of the encoder, D projection width,
2 (valence, arousal).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carl_hf.losses import (
    NO_CLASS,
    circular_loss,
    class_cross_entropy,
    mccl_loss,
    proxy_anchor_loss,
    simcse_loss,
    supervised_contrastive_loss,
    va_regression_loss,
)
from carl_hf.modeling_carl import CarlModel
from carl_hf.objectives import LabelKind
from carl_hf.training.distributed import gather_with_gradient
from carl_hf.training_args import CarlTrainingArguments


@dataclass(frozen=True)
class BatchLabels:
    """Labels of this process's texts and of the global batch.

    Args:
        va_B2, va_G2: valence and arousal in [-1, 1], NaN where a text has none. class_G: number of the class, -1
            without. angle_G: radians, NaN without. row_offset: row of the global batch that is this process's first.
    """

    va_B2: Tensor
    va_G2: Tensor
    class_G: Tensor
    angle_G: Tensor
    row_offset: int

    @classmethod
    def of(cls, batch: dict[str, Any], gather: Callable[[Tensor], Tensor], rank: int) -> "BatchLabels":
        """From a batch of [`carl_hf.CarlDataCollator`]; `gather` gives the rows of all processes. A collator of one's
        own may leave out `class` and `angle`."""
        va_B2 = batch["va"]
        class_B = batch.get("class", torch.full_like(va_B2[:, 0], NO_CLASS, dtype=torch.long))
        angle_B = batch.get("angle", torch.full_like(va_B2[:, 0], torch.nan))
        return cls(va_B2, gather(va_B2), gather(class_B), gather(angle_B), rank * len(va_B2))

    def counts(self) -> dict[LabelKind | None, Tensor]:
        """How many texts of the global batch carry each kind of label; under None, how many there are."""
        return {
            "va": (~self.va_G2.isnan().any(-1)).sum(),
            "class": (self.class_G != NO_CLASS).sum(),
            "angle": (~self.angle_G.isnan()).sum(),
            None: torch.full_like(self.class_G[0], len(self.class_G)),
        }


def sentence_losses(
    names: Iterable[str],
    model: CarlModel,
    args: CarlTrainingArguments,
    pooled_BH: Tensor,
    view_BH: Tensor | None,
    target_GD: Tensor | None,
    labels: BatchLabels,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """The losses of the named objectives (all but "ptd"), unweighted.

    MCCL compares this process's rows with the target's projections of all; the others see the joint batch.

    Args:
        pooled_BH: embeddings of this process's texts. view_BH: the same under another dropout mask, for "simcse".
        target_GD: projections of the target branch for the global batch, for "mccl".
        class_weights (C,): for "cross_entropy".
    """
    names = set(names)
    losses: dict[str, Tensor] = {}
    if "mccl" in names:
        losses["mccl"] = mccl_loss(
            model.predict(pooled_BH), target_GD, labels.va_B2, labels.va_G2, temperature=args.temperature,
            label_temperature=args.label_temperature, kernel=args.label_kernel, row_offset=labels.row_offset,
        )  # fmt: skip
    if names == {"mccl"}:
        return losses
    pooled_GH = gather_with_gradient(pooled_BH)
    if "proxy_anchor" in names:
        losses["proxy_anchor"] = proxy_anchor_loss(
            pooled_GH, labels.class_G, model.proxies.weight_PH, alpha=args.proxy_alpha, margin=args.proxy_margin
        )
    if "circular" in names:
        losses["circular"] = circular_loss(
            pooled_GH, labels.angle_G, same_label_margin=args.same_label_margin
        )  # fmt: skip
    if "cross_entropy" in names:
        losses["cross_entropy"] = class_cross_entropy(
            model.classifier(pooled_GH), labels.class_G, weights_C=class_weights
        )
    if "supcon" in names:
        losses["supcon"] = supervised_contrastive_loss(pooled_GH, labels.class_G, temperature=args.temperature)
    if "regression" in names:
        losses["regression"] = va_regression_loss(model.regressor(pooled_GH), labels.va_G2)
    if "simcse" in names:
        losses["simcse"] = simcse_loss(pooled_GH, gather_with_gradient(view_BH), temperature=args.temperature)
    return losses
