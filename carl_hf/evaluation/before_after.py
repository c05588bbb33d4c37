"""What training has changed: ridge probes on the plain and on the trained encoder, what their cosines are worth, the
gain, and a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.data.feeling import read_feeling_triplets
from carl_hf.data.labelled import read_va
from carl_hf.data.splits import SPLITS, text_keys
from carl_hf.encoders import Pooling, embed_poolings
from carl_hf.encoders.embedding import EncodeOnce
from carl_hf.evaluation.geometry import unit_rows
from carl_hf.evaluation.neighbours import knn_predictions, nearest
from carl_hf.evaluation.space import measure_feeling, nearness_report, space_gain
from carl_hf.evaluation.statistics import FEWEST_FOR_A_VERDICT, pearson
from carl_hf.evaluation.tasks import Encode
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of, ridge_predictions, va_gain, va_metrics

Splits = Mapping[str, Dataset]
"""Split ("train", "validation", "test") -> texts with valence and arousal."""
EXAMPLE = "valence-103"
"""The validation triplet whose anchor, a pleasant sentence, is shown with its nearest texts."""
POOLINGS: tuple[Pooling, ...] = ("cls", "mean")
"""Poolings of the plain encoder, of which the better one is compared with."""
_FIRST_SYMBOL = "\u2190"  # arrows; emoji come after them


@dataclass
class BeforeAfter:
    """Metrics of both encoders on test splits; a corpus is a key in every mapping.

    Args:
        before, after: {"pooling", "valence": {...}, ...} as [`va_metrics`] gives them, with "nearness" and "knn" of
            [`carl_hf.evaluation.space.nearness_report`]. gain: as [`va_gain`].
        feeling: {"before", "after": {"pooling", ...} as [`carl_hf.evaluation.space.measure_feeling`], "gain"}.
        nearest: {"sentence", "before", "after": as [`nearest_texts`]}.
        predictions: the plain and the trained encoder's (N, 2) valence and arousal of the test texts.
    """

    before: dict[str, dict[str, Any]] = field(default_factory=dict)
    after: dict[str, dict[str, Any]] = field(default_factory=dict)
    gain: dict[str, dict[str, Any]] = field(default_factory=dict)
    feeling: dict[str, dict[str, Any]] = field(default_factory=dict)
    nearest: dict[str, Any] = field(default_factory=dict)
    predictions: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    texts: dict[str, dict[str, int]] = field(default_factory=dict)

    def results(self, *, trained_on_test_rows: bool = False) -> dict[str, Any]:
        """The metrics and the verdict as in results.json."""
        marks = " (Trained on test rows.)" if trained_on_test_rows else ""
        metrics = {"before": self.before, "after": self.after, "gain": self.gain, "feeling_over_topic": self.feeling}
        metrics["nearest"] = self.nearest
        found = verdict(self.gain, self.texts, marks)
        return {**metrics, "verdict": found, "trained_on_test_rows": trained_on_test_rows}


def measure_before_after(
    plain: PreTrainedModel, trained: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    corpora: Mapping[str, Splits], *, pooling: Pooling = "cls", max_length: int = 128, seed: int = 42,
    plain_tokenizer: PreTrainedTokenizerBase | None = None,
) -> BeforeAfter:  # fmt: skip
    """Compares two encoders by probes on frozen embeddings, fitted on each corpus's train split, and by cosine.

    Args:
        plain: is read with the pooling of `POOLINGS` that is better on the validation split (of the corpus or of the
            triplets).
        trained: is read with `pooling`. tokenizer: of `trained`, and of `plain` unless `plain_tokenizer` is given.
        corpora: name -> train, validation and test splits.
        seed: of the bootstrap over test texts.

    Raises:
        ValueError: for a corpus that lacks a split.
    """
    for corpus, splits in corpora.items():
        if missing := [name for name in SPLITS if name not in splits]:
            raise ValueError(f"{corpus} has no split {missing[0]!r}: train, validation and test are needed.")
    measured = BeforeAfter()
    before = _Reader(plain, plain_tokenizer or tokenizer, POOLINGS, max_length)
    after = _Reader(trained, tokenizer, (pooling,), max_length)
    for corpus, splits in corpora.items():
        truth, constant = labels_of(splits["test"]), labels_of(splits["train"]).mean(0)
        better, predictions = _better_pooling(before, splits), []
        for found, read, name in ((measured.before, before, better), (measured.after, after, pooling)):
            embeddings = {split: read(data["text"], name) for split, data in splits.items()}
            predictions.append(_probe(embeddings, splits, "test"))
            neighbours = knn_predictions(embeddings["train"], labels_of(splits["train"]), embeddings["test"])
            space, _ = nearness_report(embeddings["test"], truth, neighbours, constant=constant, seed=seed)
            probed = va_metrics(predictions[-1], truth, constant=constant, seed=seed)
            found[corpus] = {"pooling": name, **probed, **space}
        measured.predictions[corpus] = old, new = predictions[0], predictions[1]
        measured.gain[corpus] = va_gain(old, new, truth, seed=seed)
        measured.texts[corpus] = {name: len(text_keys(data["text"], "texts")) for name, data in splits.items()}
    _measure_feeling(measured, before, after, pooling=pooling, seed=seed)
    return measured


class _Reader:
    """An encoder that embeds each text once, under all its poolings in one pass."""

    def __init__(
        self, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, poolings: Sequence[Pooling],
        max_length: int,
    ):  # fmt: skip
        def embed(texts: Sequence[str]) -> np.ndarray:
            found = embed_poolings(encoder, texts, tokenizer, poolings=poolings, max_length=max_length)
            return np.concatenate([found[pooling].numpy() for pooling in poolings], axis=1)

        self._poolings, self._embed = poolings, EncodeOnce(embed)

    def __call__(self, texts: Sequence[str], pooling: Pooling) -> np.ndarray:
        vectors = np.split(self._embed(texts), len(self._poolings), axis=1)
        return np.ascontiguousarray(vectors[self._poolings.index(pooling)])


def _measure_feeling(measured: BeforeAfter, before: _Reader, after: _Reader, *, pooling: Pooling, seed: int) -> None:
    """Feeling over topic on the test triplets, before and after training, and the gain; and the example."""

    def share_and_margin(pooling: Pooling) -> tuple[float, float]:
        triplets = read_feeling_triplets("validation")
        metrics, _ = measure_feeling(partial(before, pooling=pooling), triplets, seed=seed)
        return metrics["accuracy"], metrics["margin"]

    better, triplets = max(POOLINGS, key=share_and_margin), read_feeling_triplets("test")
    measured.nearest["sentence"], items = _example()["anchor"], []
    for name, read, read_by in (("before", before, better), ("after", after, pooling)):
        encode = partial(read, pooling=read_by)
        metrics, arrays = measure_feeling(encode, triplets, seed=seed)
        measured.feeling[name] = {"pooling": read_by, **metrics}
        measured.nearest[name] = nearest_texts(encode)
        items.append(arrays)
    measured.feeling["gain"] = space_gain(*items, seed=seed)


def nearest_texts(encode: Encode, count: int = 5) -> list[dict[str, Any]]:
    """The nearest texts of the sentence `EXAMPLE` among the demo corpus's test texts (those without emoji, which few
    fonts draw) and the two others of its triplet, the nearest first.

    Returns:
        {"text", "cosine", "feeling": "pleasant" or "unpleasant" if valence is beyond 0.2, else "neutral"} for each.
    """
    example, demo = _example(), read_va("demo", None)
    found = {example["same_feeling"]: 1.0, example["opposite_feeling"]: -1.0}
    found |= {
        demo.texts[i]: demo.labels[i, 0] for i in demo.rows("test") if max(demo.texts[i]) < _FIRST_SYMBOL
    }  # fmt: skip
    texts = list(found)
    vectors = unit_rows(encode([example["anchor"], *texts]))
    cosines = vectors[1:] @ vectors[0]
    return [
        {"text": texts[i], "cosine": float(cosines[i]),
         "feeling": "neutral" if abs(found[texts[i]]) <= 0.2 else "pleasant" if found[texts[i]] > 0 else "unpleasant"}
        for i in nearest(vectors[:1], vectors[1:], count)[0]
    ]  # fmt: skip


def _example() -> dict[str, str]:
    triplets = read_feeling_triplets("validation")
    return triplets[triplets["id"] == EXAMPLE].iloc[0].to_dict()


def _probe(embeddings: Mapping[str, np.ndarray], splits: Splits, target: str) -> np.ndarray:
    """(N, 2) predicted valence and arousal of the split `target`."""
    return ridge_predictions(
        embeddings["train"], labels_of(splits["train"]), embeddings["validation"], labels_of(splits["validation"]),
        embeddings[target],
    )  # fmt: skip


def _better_pooling(read: _Reader, splits: Splits) -> Pooling:
    """The pooling with the higher sum of both correlations on the validation split; undefined ones count as -1."""
    labels = labels_of(splits["validation"])

    def score(pooling: Pooling) -> float:
        embeddings = {split: read(splits[split]["text"], pooling) for split in ("train", "validation")}
        predicted = _probe(embeddings, splits, "validation")
        return float(np.nan_to_num(pearson(predicted.T, labels.T), nan=-1.0).sum())

    return max(POOLINGS, key=score)


def verdict(
    gains: Mapping[str, Mapping[str, Any]], texts: Mapping[str, Mapping[str, int]], marks: str = ""
) -> str:  # fmt: skip
    """On which corpora both dimensions, one or none improved beyond chance: the gain's 95 % interval is above 0; and
    which became worse.

    Args:
        gains: corpus -> what [`va_gain`] returns. texts: corpus -> {split: how many different texts it has}. marks:
            stand behind the sentences.
    """
    if not gains:
        return "No verdict: no training corpus has a validation and a test split to measure on."
    sentences = []
    for corpus, gain in gains.items():
        few = [name for name in ("test", "validation") if texts[corpus][name] < FEWEST_FOR_A_VERDICT]
        if few:
            which = " and ".join(f"{texts[corpus][name]} different {name} texts" for name in few)
            sentences.append(f"{corpus} has only {which}, from which nothing can be concluded.")
            continue
        if any(gain[d]["pearson"] is None for d in DIMENSIONS):
            sentences.append(
                f"On held-out texts of {corpus} the gain is undefined: predictions or labels are constant."
            )
            continue
        better = [d for d in DIMENSIONS if gain[d]["pearson_interval"][0] > 0]
        which = {2: "both", 1: f"{''.join(better)} only", 0: "neither"}[len(better)]
        if worse := [d for d in DIMENSIONS if gain[d]["pearson_interval"][1] < 0]:
            which += f" and made {' and '.join(worse)} worse"
        what = " and ".join(f"{d} r {gain[d]['pearson']:+.3f}" for d in DIMENSIONS)
        sentences.append(f"On held-out texts of {corpus} training improved {which} beyond chance: {what}.")
    return f"Verdict: {' '.join(sentences)}{marks}"
