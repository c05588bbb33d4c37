"""All tasks of the evaluation for one encoder."""

import reprlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.data.label_spaces import read_label_space
from carl_hf.data.labelled import POLARITY, VaCorpus
from carl_hf.data.splits import split_rows
from carl_hf.encoders.embedding import EncodeOnce
from carl_hf.evaluation.circumplex import circular_order, radius_against_intensity
from carl_hf.evaluation.detector import TooFewTokensError, measure_detector
from carl_hf.evaluation.emotion import emotion_curve, measure_emotion
from carl_hf.evaluation.geometry import NoDirectionError, alignment_uniformity, centroid_separation
from carl_hf.evaluation.polarity import measure_polarity
from carl_hf.evaluation.semantics import measure_sts
from carl_hf.evaluation.space import measure_space
from carl_hf.evaluation.tasks import TASKS, Corpora, Encode, Measured, Settings
from carl_hf.evaluation.valence_arousal import (
    RATER_CEILINGS,
    measure_corpus,
    measure_head,
    measure_transfer,
    valence_curve,
)
from carl_hf.modeling_carl import CarlModel


@dataclass
class Evaluation:
    """`metrics`: {task: {corpus: metrics}}, as in results.json. `items`: {"task/corpus": arrays by test text}, what
    [`carl_hf.evaluation.comparison`] and the plots need. `seed`: of the folds and draws."""

    metrics: dict[str, Any] = field(default_factory=dict)
    items: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    seed: int | None = None

    @property
    def figures(self) -> dict[str, Any]:
        """The name of `metrics` in version 0.1.0."""
        return self.metrics


def evaluate_encoder(
    encode: Encode,
    tasks: Sequence[str] = TASKS[:-1],
    data_dir: str | Path | None = None,
    seed: int = 42,
    protocol: Literal["fast", "test"] = "fast",
) -> dict[str, Any]:
    """Measures an encoder on the paper's tasks.

    Args:
        encode: list of N texts -> (N, H) array of finite numbers, such as `load_text_encoder("minilm-l6")` or
            `SentenceTransformer(...).encode`.
        tasks: of `"va"`, `"polarity"`, `"emotion"`, `"geometry"`, `"semantics"`, `"space"`. data_dir, seed, protocol:
            see [`carl_hf.evaluation.tasks.Settings`] and docs/evaluation.md.

    Returns:
        {task: {corpus: metrics}}, what results.json holds for a model; accuracies in percent, all else as fractions.
        Missing corpora are listed under "skipped" with the reason.

    Raises:
        ValueError: for an unknown task, an `encode` that is no function, or a corpus file with missing columns or
            wrong values.
    """
    if isinstance(encode, PreTrainedModel) or not callable(encode):
        got = repr(encode) if isinstance(encode, str) else type(encode).__name__
        raise ValueError(
            f"encode is a function from texts to vectors, got {got}: load_text_encoder(name), or lambda texts: "
            "model.embed(texts, tokenizer)."
        )
    return run_tasks(encode, Settings(tasks=tasks, data_dir=data_dir, seed=seed, protocol=protocol)).metrics


def run_tasks(
    encode: Encode, settings: Settings, corpora: Corpora | None = None, *,
    predict_va: Callable[[Sequence[str]], np.ndarray] | None = None,
    carl: tuple[CarlModel, PreTrainedTokenizerBase] | None = None, trained_on: Sequence[str] = (),
    head_trained_on: Sequence[str] = (),
) -> Evaluation:  # fmt: skip
    """As [`evaluate_encoder`], with everything that can be set.

    Args:
        corpora: what [`Corpora`] has read for these settings, to read it once for several encoders.
        predict_va: a trained head, texts -> (N, 2) valence and arousal in [-1, 1]. carl: a checkpoint and its
            tokenizer, for the task `"detector"`.
        trained_on: corpora whose measured texts the encoder was trained on; their metrics are marked
            "seen_in_training". head_trained_on: the same for the trained head.
    """
    corpora, seed, encode = corpora or Corpora(settings), settings.seed, EncodeOnce(encode)
    skipped: dict[str, str] = {}
    measured: dict[str, Iterator[tuple[str, Measured]]] = {
        "va": _va(encode, corpora.va, seed, predict_va, trained_on, {*trained_on, *head_trained_on}),
        "polarity": (
            (name, measure_polarity(encode, corpus, protocol=settings.protocol))
            for name, corpus in corpora.polarity.items()
        ),
        "emotion": (
            (name, measure_emotion(encode, corpus, seed=seed, shots=settings.shots))
            for name, corpus in corpora.emotion.items()
        ),
        "geometry": _geometry(encode, corpora, seed),
        "semantics": ((name, measure_sts(encode, pairs, seed=seed)) for name, pairs in corpora.semantics.items()),
        "space": measure_space(encode, corpora, seed=seed),
        "detector": _detector(carl, corpora.detector, seed, skipped),
    }
    run, seconds = Evaluation(seed=seed), {}
    for task, results in measured.items():
        start = time.perf_counter() - encode.seconds  # without those of the embedding
        try:
            for name, (metrics, items) in results:
                curves = metrics.values() if name == "dimensions" else ()
                for seen in [metrics] if name in trained_on else [c for c in curves if c["corpus"] in trained_on]:
                    seen["seen_in_training"] = True
                run.metrics.setdefault(task, {})[name] = metrics
                if items:
                    run.items[f"{task}/{name}"] = items
        except NoDirectionError:  # tasks without cosines are measured all the same
            if not (texts := encode.without_direction):
                raise
            skipped[task] = (
                f"cut short: {len(texts)} texts have a vector of zeros, which has no direction, such as "
                f"{reprlib.repr(texts[0])}"
            )
        if task in run.metrics:
            seconds[task] = round(time.perf_counter() - encode.seconds - start, 1)
    run.metrics["skipped"] = _skipped(settings, corpora, carl is not None) | skipped
    run.metrics["seconds"] = {"embedding": round(encode.seconds, 1), **seconds}
    return run


def _va(
    encode: Encode, corpora: Mapping[str, VaCorpus], seed: int,
    predict_va: Callable[[Sequence[str]], np.ndarray] | None, trained_on: Collection[str],
    head_trained_on: Collection[str],
) -> Iterator[tuple[str, Measured]]:  # fmt: skip
    def marked(target: str, measured: Measured, seen: Collection[str] = trained_on) -> Measured:
        if target in seen:
            measured[0]["seen_in_training"] = True
        for dimension, ceiling in RATER_CEILINGS.get(target, {}).items():
            r = measured[0][dimension]["pearson"]
            measured[0][dimension]["of_ceiling"] = None if r is None else r / ceiling
        return measured

    for name, corpus in corpora.items():
        yield name, marked(name, measure_corpus(encode, corpus, seed=seed))
        if predict_va is not None:
            yield f"{name} direct", marked(name, measure_head(predict_va, corpus, seed=seed), head_trained_on)
    for source in corpora:
        for target in corpora:
            if source != target:
                measured = measure_transfer(encode, corpora[source], corpora[target], seed=seed)
                yield f"{source} to {target}", marked(target, measured)


def _geometry(encode: Encode, corpora: Corpora, seed: int) -> Iterator[tuple[str, Measured]]:
    for name, corpus in corpora.geometry.items():
        texts, labels = corpus.part(split_rows(corpus)[2])
        embeddings, words = encode(texts), np.array(corpus.classes)[labels]
        metrics = alignment_uniformity(embeddings, labels, seed=seed)
        metrics["centroid_separation"] = centroid_separation(embeddings, labels)
        metrics["circular_order"] = circular_order(embeddings, words, read_label_space("circle12").angles, seed=seed)
        yield name, (metrics, {"embeddings": embeddings, "labels": words})
    curves: dict[str, dict[str, Any]] = {}
    for name, corpus in corpora.curve.items():
        embeddings, test = encode(corpus.texts), corpus.rows("test")
        radius = radius_against_intensity(embeddings[test], corpus.labels[test, :2])
        curves["va"] = {"corpus": name, "figure": "valence pearson"}
        curves["va"] |= valence_curve(embeddings, corpus, seed=seed)
        curves["va"]["radius_intensity"] = radius if np.isfinite(radius) else None
    for name, corpus in list(corpora.geometry.items())[:1]:
        curves["emotion"] = {"corpus": name, "figure": "accuracy"}
        curves["emotion"] |= emotion_curve(encode(corpus.texts), corpus, seed=seed)
    if curves:
        yield "dimensions", (curves, {})


def _detector(
    carl: tuple[CarlModel, PreTrainedTokenizerBase] | None, corpora: Mapping[str, VaCorpus], seed: int,
    skipped: dict[str, str],
) -> Iterator[tuple[str, Measured]]:  # fmt: skip
    """What cannot be measured is added to `skipped`."""
    for name, corpus in corpora.items() if carl is not None else ():
        try:
            yield name, (measure_detector(carl[0], carl[1], corpus, seed=seed), {})
        except TooFewTokensError as error:
            skipped[f"detector/{name}"] = str(error)


def _skipped(settings: Settings, corpora: Corpora, is_checkpoint: bool) -> dict[str, str]:
    """What is not measured, and why."""
    skipped = dict(corpora.skipped)
    if "polarity" in settings.tasks:
        reason = f"not asked for: --polarity {' '.join(POLARITY)}"
        skipped |= {f"polarity/{name}": reason for name in POLARITY if name not in settings.polarity}
    if "detector" in settings.tasks and not is_checkpoint:
        skipped["detector"] = "the model is no CARL checkpoint (a folder checkpoint-N of training)"
    return skipped
