"""What training has changed: ridge probes on the plain and on the trained encoder, the gain, and a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.encoders import Pooling, embed_poolings
from carl_hf.evaluation.statistics import pearson
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of, ridge_predictions, va_gain, va_metrics

Splits = Mapping[str, Dataset]
"""Split ("train", "validation", "test") -> texts with valence and arousal."""
POOLINGS: tuple[Pooling, ...] = ("cls", "mean")
"""Poolings of the plain encoder, of which the better one is compared with."""


@dataclass
class BeforeAfter:
    """Metrics of both encoders on test splits; a corpus is a key in every mapping.

    Args:
        before, after: {"pooling", "valence": {...}, ...} as [`va_metrics`] gives them. gain: as [`va_gain`].
        predictions: the plain and the trained encoder's (N, 2) valence and arousal of the test texts.
    """

    before: dict[str, dict[str, Any]] = field(default_factory=dict)
    after: dict[str, dict[str, Any]] = field(default_factory=dict)
    gain: dict[str, dict[str, Any]] = field(default_factory=dict)
    predictions: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def results(self, *, trained_on_test_rows: bool = False) -> dict[str, Any]:
        """The metrics and the verdict as in results.json."""
        marks = " (Trained on test rows.)" if trained_on_test_rows else ""
        metrics = {"before": self.before, "after": self.after, "gain": self.gain}
        return {**metrics, "verdict": verdict(self.gain, marks), "trained_on_test_rows": trained_on_test_rows}


def measure_before_after(
    plain: PreTrainedModel, trained: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    corpora: Mapping[str, Splits], *, pooling: Pooling = "cls", max_length: int = 128, seed: int = 42,
    plain_tokenizer: PreTrainedTokenizerBase | None = None,
) -> BeforeAfter:  # fmt: skip
    """Compares two encoders by probes on frozen embeddings, fitted on each corpus's train split.

    Args:
        plain: is read with the pooling of `POOLINGS` that is better on the validation split.
        trained: is read with `pooling`. tokenizer: of `trained`, and of `plain` unless `plain_tokenizer` is given.
        corpora: name -> train, validation and test splits.
        seed: of the bootstrap over test texts.
    """
    measured = BeforeAfter()
    for corpus, splits in corpora.items():
        truth, constant = labels_of(splits["test"]), labels_of(splits["train"]).mean(0)
        embeddings = _embeddings(plain, plain_tokenizer or tokenizer, splits, POOLINGS, max_length)
        better = _better_pooling(embeddings, splits)
        old = _probe(embeddings[better], splits, "test")
        embeddings = _embeddings(trained, tokenizer, splits, (pooling,), max_length)
        new = _probe(embeddings[pooling], splits, "test")
        measured.before[corpus] = {"pooling": better, **va_metrics(old, truth, constant=constant, seed=seed)}
        measured.after[corpus] = {"pooling": pooling, **va_metrics(new, truth, constant=constant, seed=seed)}
        measured.gain[corpus] = va_gain(old, new, truth, seed=seed)
        measured.predictions[corpus] = old, new
    return measured


def _embeddings(
    encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: Splits, poolings: Sequence[Pooling],
    max_length: int,
) -> dict[Pooling, dict[str, np.ndarray]]:  # fmt: skip
    """Pooling -> split -> embeddings (N, H)."""
    embedded = {
        split: embed_poolings(encoder, data["text"], tokenizer, poolings=poolings, max_length=max_length)
        for split, data in splits.items()
    }
    return {pooling: {split: found[pooling].numpy() for split, found in embedded.items()} for pooling in poolings}


def _probe(embeddings: Mapping[str, np.ndarray], splits: Splits, target: str) -> np.ndarray:
    """(N, 2) predicted valence and arousal of the split `target`."""
    return ridge_predictions(
        embeddings["train"], labels_of(splits["train"]), embeddings["validation"], labels_of(splits["validation"]),
        embeddings[target],
    )  # fmt: skip


def _better_pooling(embeddings: Mapping[Pooling, Mapping[str, np.ndarray]], splits: Splits) -> Pooling:
    """The pooling with the higher sum of both correlations on the validation split; undefined ones count as -1."""
    labels = labels_of(splits["validation"])

    def score(pooling: Pooling) -> float:
        predicted = _probe(embeddings[pooling], splits, "validation")
        return float(np.nan_to_num(pearson(predicted.T, labels.T), nan=-1.0).sum())

    return max(embeddings, key=score)


def verdict(gains: Mapping[str, Mapping[str, Any]], marks: str = "") -> str:
    """On which corpora both dimensions, one or none improved beyond chance: the gain's 95 % interval is above 0.

    Args:
        gains: corpus -> what [`va_gain`] returns. marks: stand behind the sentences.
    """
    if not gains:
        return "No verdict: no training corpus has a validation and a test split to measure on."
    sentences = []
    for corpus, gain in gains.items():
        if any(gain[d]["pearson"] is None for d in DIMENSIONS):
            sentences.append(
                f"On held-out texts of {corpus} the gain is undefined: predictions or labels are constant."
            )
            continue
        better = [d for d in DIMENSIONS if gain[d]["pearson_interval"][0] > 0]
        which = {2: "both", 1: f"{''.join(better)} only", 0: "neither"}[len(better)]
        what = " and ".join(f"{d} r {gain[d]['pearson']:+.3f}" for d in DIMENSIONS)
        sentences.append(f"On held-out texts of {corpus} training improved {which} beyond chance: {what}.")
    return f"Verdict: {' '.join(sentences)}{marks}"
