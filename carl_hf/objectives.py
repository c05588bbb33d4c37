"""The training objectives by name: what each needs of the model and of the data."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from carl_hf.utils.suggestions import did_you_mean

LabelKind = Literal["va", "class", "angle"]


@dataclass(frozen=True)
class Objective:
    """An objective of the training loss.

    Args:
        title: for cards. weight: in the loss, unless the user names one. head: the task head of
            [`carl_hf.CarlModel`] that it needs.
        label: which texts it uses: `"va"`, those with valence or arousal; `"class"`, those with a class label;
            `"angle"`, those with valence and arousal or with a class, which has an angle through a label space; None,
            all.
        by_itself: whether a text has a loss of its own; else texts of a batch are compared with each other.
    """

    title: str
    weight: float
    head: str | None = None
    label: LabelKind | None = None
    by_itself: bool = False


OBJECTIVES = {
    "mccl": Objective("MCCL", 1.0, label="va"),
    "ptd": Objective("PTD", 0.2, by_itself=True),
    "proxy_anchor": Objective("Proxy-Anchor", 1.0, head="proxies", label="class", by_itself=True),
    "circular": Objective("the circular loss", 1.0, label="angle"),
    "cross_entropy": Objective("cross-entropy", 1.0, head="classifier", label="class", by_itself=True),
    "supcon": Objective("supervised contrast (SINCERE)", 1.0, label="class"),
    "regression": Objective("regression of valence and arousal", 20.0, head="regressor", label="va", by_itself=True),
    "rank_n_contrast": Objective("Rank-N-Contrast", 1.0, label="va"),
    "rank_n_contrast_l2": Objective("Rank-N-Contrast on Euclidean distances", 1.0, label="va"),
    "simcse": Objective("SimCSE", 1.0),
}
"""MCCL and PTD are CARL's own; docs/recipe.md describes the others."""

PAPER_WEIGHTS = {"mccl": 0.8, "ptd": 0.2}
"""The weights of the paper (Eq 11), for the preset "paper"."""


def sentence_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights of the sentence objectives: all but PTD. PTD alone takes its saliency from MCCL, which it does not
    train."""
    return {name: weight for name, weight in weights.items() if name != "ptd"} or {"mccl": 1.0}


def describe_objectives(names: Collection[str]) -> str:
    """Name of the method for model cards: "CARL" for MCCL with PTD, "CARL with regression" for the two with the
    regression."""
    rest, titles = set(names), []
    if rest >= {"mccl", "ptd"}:
        titles = ["CARL with regression" if "regression" in rest else "CARL"]
        rest -= {"mccl", "ptd", "regression"}
    titles += [objective.title for name, objective in OBJECTIVES.items() if name in rest]
    return " and ".join(filter(None, [", ".join(titles[:-1]), titles[-1]]))


def parse_objectives(words: Sequence[str], weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """Weights from words of the form `name` or `name=weight`, such as `["mccl", "circular=2"]`.

    Args:
        weights: of names without one, in place of those in [`OBJECTIVES`].

    Raises:
        ValueError: for an unknown name (the message lists them), one named twice, or a weight that is not positive.
    """
    defaults = {name: objective.weight for name, objective in OBJECTIVES.items()} | dict(weights or {})
    found: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in OBJECTIVES:
            hint = did_you_mean(name, OBJECTIVES)
            raise ValueError(f"Unknown objective {name!r}{hint} Objectives: {', '.join(OBJECTIVES)}.")
        if name in found:
            raise ValueError(f"The objective {name!r} is named twice.")
        try:
            found[name] = float(number) if number else defaults[name]
        except ValueError:
            found[name] = math.nan
        if not (math.isfinite(found[name]) and found[name] > 0):
            raise ValueError(f"The weight of an objective must be a positive number, got {word!r}.")
    return found
