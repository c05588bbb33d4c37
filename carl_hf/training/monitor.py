"""Metrics that tell how training goes: losses by objective, detection AUC, and signs of collapse.

Shape suffixes as in step.py.
"""

from collections import defaultdict
from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carl_hf.losses import NO_CLASS
from carl_hf.objectives import OBJECTIVES
from carl_hf.training.step import BatchLabels, Step


def labelled_texts(labels: BatchLabels) -> dict[str | None, Tensor]:
    """(G,) booleans: which texts of the global batch have each kind of label; under None, for objectives without
    labels, all."""
    return {
        "va": ~labels.va_G2.isnan().all(-1),
        "class": labels.class_G != NO_CLASS,
        "angle": ~labels.angle_G.isnan(),
        None: labels.counted_G,
    }


def usable_texts(step: Step) -> Tensor:
    """How many texts of the global batch have a label for one of the sentence objectives, at most."""
    labelled = labelled_texts(step.labels)
    return torch.stack([labelled[OBJECTIVES[name].label].sum() for name in step.sentence_weights]).max()


def step_metrics(step: Step) -> dict[str, tuple[Tensor, Tensor]]:
    """Metrics of a step: name -> (value, its weight: the number of texts, or numbers, that it is a mean over, or the
    sum of their weights; 0 where too few texts can be compared)."""
    labels, labelled, metrics = step.labels, labelled_texts(step.labels), {}
    for name, loss in step.losses.items():
        objective = OBJECTIVES[name]
        counted_G = labelled[objective.label]
        if name == "supcon":  # a mean over texts with another of their class, against those of other classes
            same_GG = labels.class_G.unsqueeze(1) == labels.class_G
            counted_G = counted_G & (same_GG.sum(1) > 1) & (~same_GG & counted_G).any(1)
        if name == "regression":  # a mean over numbers, of which a text may have one
            metrics[name] = (loss, ((~labels.va_G2.isnan()).sum(-1) * labels.weight_G).sum())
        elif name != "ptd":
            weight = (counted_G * (1 if objective.label is None else labels.weight_G)).sum()
            # of two texts, neither is the nearer one
            fewest = 1 if objective.by_itself else 3 if name.startswith("rank_n_contrast") else 2
            metrics[name] = (loss, weight * (counted_G.sum() >= fewest))
    zero_labels, count = labelled["va"] & (labels.va_G2.nan_to_num() == 0).all(-1), labelled["va"].sum()
    metrics["zero_label_fraction"] = (zero_labels.sum() / count, count)
    if "ptd" in step.losses:
        perturbed_T = step.layout.pack(step.perturbed_BL)
        changed_TE = (step.words_TE + step.delta_TE).to(step.dtype) != step.words_TE.to(step.dtype)
        changed_TE = changed_TE & perturbed_T.unsqueeze(-1)
        counted = torch.stack([changed_TE.sum(), perturbed_T.sum() * changed_TE.shape[-1]])
        changed, perturbed = step.gather(counted.unsqueeze(0)).sum(0)
        auc = detection_auc(*(
            _of_all_processes(step, rows_BL) for rows_BL in (step.logits_BL, step.perturbed_BL, step.judged_BL)
        ))  # fmt: skip
        found = {"ptd": step.losses["ptd"], "detector_auc": auc, "changed_coordinates": changed / perturbed}
        metrics |= {name: (value, step.judged_count) for name, value in found.items()}
    return metrics


def _of_all_processes(step: Step, rows_BL: Tensor) -> Tensor:
    if len(rows_BL) == len(step.labels.va_G2):
        return rows_BL
    return step.gather(F.pad(rows_BL, (0, step.args.max_length - rows_BL.shape[1])))  # of one width everywhere


class RunningMeans:
    """Means of metrics over batches and processes, each batch with its weight.

    Args:
        strict: metrics whose mean is not finite if that of a batch is not; of others such a batch is left out.
    """

    def __init__(self, gather: Callable[[Tensor], Tensor], *, strict: Collection[str] = ()):
        self._gather, self._strict = gather, strict
        self.labelled: set[str] = set()  # the metrics that had any weight in the last call of `take`
        self._entries: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def add(self, metrics: dict[str, tuple[Tensor, Tensor]]) -> None:
        for name, (value, weight) in metrics.items():
            self._entries[name].append((value.detach().float(), weight))

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means, self.labelled = {}, set()
        for name in list(self._entries):
            values, weights = (torch.stack(column) for column in zip(*self._entries.pop(name), strict=True))
            texts = weights.sum()
            if name not in self._strict:
                weights = weights * values.isfinite()
            values = torch.where(weights > 0, values, 0)
            total = self._gather(torch.stack([(values * weights).sum(), weights.sum(), texts]).unsqueeze(0)).sum(0)
            if total[2] > 0:
                self.labelled.add(name)
            if total[1] > 0:
                means[name] = (total[0] / total[1]).item()
        return means


def detection_auc(logits: Tensor, positive: Tensor, eligible: Tensor) -> Tensor:
    """Area under the ROC curve over the eligible entries, ties counted half; NaN without both classes, or
    where a score is not finite.

    Args:
        logits, positive, eligible (`Tensor`): scores and two boolean masks of one shape.

    Returns:
        scalar `Tensor`. No host-device synchronisation.
    """
    scores = logits.detach().float().flatten()
    positive, negative = (positive & eligible).flatten(), (~positive & eligible).flatten()
    sorted_negatives = torch.where(negative, scores, torch.inf).sort().values
    below = torch.searchsorted(sorted_negatives, scores, side="left")
    not_above = torch.searchsorted(sorted_negatives, scores, side="right")
    twice_the_wins = torch.where(positive, below + not_above, 0).sum()
    return torch.where(
        (scores.isfinite() | ~(positive | negative)).all(),
        twice_the_wins / (2 * positive.sum() * negative.sum()),
        torch.nan,
    )


def embedding_spread(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Two signs of collapse for embeddings (N, H): spread and effective rank.

    Returns:
        the mean standard deviation of the coordinates of length-1 embeddings, times sqrt(H): 1 if they fill the sphere
        evenly, 0 if all are one (Chen and He, arXiv 2011.10566, section 4.1); and the effective rank of the centred
        embeddings, exp of the entropy of their normalised singular values, from 1 to min(N, H) (Roy and Vetterli
        2007).
    """
    unit = nn.functional.normalize(embeddings.detach().float(), dim=-1)
    if not unit.isfinite().all():
        undefined = torch.full((), torch.nan, device=unit.device)
        return undefined, undefined
    spread = unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5
    singular = torch.linalg.svdvals(unit - unit.mean(0))
    share = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny)
    return spread, torch.exp(-torch.special.xlogy(share, share).sum())


@torch.no_grad()
def parameter_distance(target: nn.Module, online: nn.Module) -> Tensor:
    """|| theta_target - theta_online || / || theta_online || over all parameters of two modules of one structure."""
    online_parameters = [p.detach().float() for p in online.parameters()]
    difference = torch._foreach_sub([p.detach().float() for p in target.parameters()], online_parameters)
    distance = torch.stack(torch._foreach_norm(difference)).norm()
    return distance / torch.stack(torch._foreach_norm(online_parameters)).norm()
