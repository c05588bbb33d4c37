"""All tasks of the evaluation for one encoder."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from carl_hf.data import labelled as data
from carl_hf.data.label_spaces import read_label_space
from carl_hf.data.splits import split_rows
from carl_hf.evaluation import geometry
from carl_hf.evaluation.circumplex import circular_order, radius_against_intensity
from carl_hf.evaluation.detector import measure_detector
from carl_hf.evaluation.emotion import emotion_curve, finite_curve, measure_emotion
from carl_hf.evaluation.polarity import measure_polarity
from carl_hf.evaluation.semantics import pair_cosines, sts_spearman
from carl_hf.evaluation.statistics import pearson
from carl_hf.evaluation.tasks import TASKS, Corpora, Settings
from carl_hf.evaluation.valence_arousal import measure_corpus, measure_head, measure_transfer, ridge_predictions
from carl_hf.modeling_carl import CarlModel

Encode = Callable[[Sequence[str]], np.ndarray]


@dataclass
class Evaluation:
    """`figures`: {task: {corpus: figures}}, as in results.json. `items`: {"task/corpus": arrays by test item}, what
    [`carl_hf.evaluation.comparison`] and the pictures need."""

    figures: dict[str, Any] = field(default_factory=dict)
    items: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


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
        tasks: `"va"`, `"polarity"`, `"emotion"`, `"geometry"`, `"semantics"`. data_dir: folder with local copies of
            the corpora (docs/evaluation.md); without one the bundled demo corpus alone is measured.
        seed: of folds, splits, draws and bootstraps. protocol: SentEval's, for polarity.

    Returns:
        {task: {corpus: figures}}, what results.json holds for a model; accuracies in percent, all else as fractions.
        A corpus that is not there stands under "skipped" with the reason.

    Raises:
        ValueError: for an unknown task, or a corpus file with missing columns or wrong values.
    """
    return run_tasks(encode, Settings(tasks=tasks, data_dir=data_dir, seed=seed, protocol=protocol)).figures


def run_tasks(
    encode: Encode,
    settings: Settings,
    corpora: Corpora | None = None,
    *,
    predict_va: Callable[[Sequence[str]], np.ndarray] | None = None,
    carl: tuple[CarlModel, PreTrainedTokenizerBase] | None = None,
    trained_on: Sequence[str] = (),
) -> Evaluation:
    """As [`evaluate_encoder`], with everything that can be set.

    Args:
        corpora: what [`Corpora`] has read for these settings, to read it once for several encoders.
        predict_va: a trained head, texts -> (N, 2) valence and arousal in [-1, 1]. carl: a checkpoint and its
            tokenizer, for the task `"detector"`.
        trained_on: valence-arousal corpora whose measured texts the encoder was trained on; their figures are marked
            "seen_in_training".
    """
    run = _Run(encode, settings, corpora or Corpora(settings), trained_on)
    run.va(predict_va)
    run.polarity()
    run.emotion()
    run.geometry()
    run.semantics()
    if "detector" in settings.tasks:
        run.detector(carl)
    figures = run.result.figures
    figures["skipped"] = run.skipped
    figures["seconds"] = {name: round(seconds, 1) for name, seconds in run.seconds.items()}
    return run.result


class _Run:
    def __init__(self, encode: Encode, settings: Settings, corpora: Corpora, trained_on: Sequence[str]):
        self.settings, self.corpora, self.trained_on = settings, corpora, trained_on
        self.result = Evaluation()
        self.skipped = dict(corpora.skipped)
        self.seconds: dict[str, float] = {"embedding": 0.0}
        self._encode = encode
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(N, H); each text is embedded once in a run."""
        with self._clock("embedding"):
            missing = [text for text in dict.fromkeys(texts) if text not in self._known]
            if missing:
                self._known.update(zip(missing, _checked_vectors(self._encode(missing), len(missing)), strict=True))
            return np.stack([self._known[text] for text in texts])

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def _task(self, task: str) -> Iterator[None]:
        """Counts a task's seconds without those of the embedding."""
        embedding = self.seconds["embedding"]
        with self._clock(task):
            yield
        self.seconds[task] -= self.seconds["embedding"] - embedding
        if task not in self.result.figures:  # every corpus was missing
            del self.seconds[task]

    def _keep(self, task: str, corpus: str, measured: tuple[dict[str, Any], dict[str, np.ndarray]]) -> None:
        self.result.figures.setdefault(task, {})[corpus], self.result.items[f"{task}/{corpus}"] = measured

    def va(self, predict_va: Callable[[Sequence[str]], np.ndarray] | None) -> None:
        seed, corpora = self.settings.seed, self.corpora.va
        with self._task("va"):
            for name, corpus in corpora.items():
                self._keep_va(name, name, measure_corpus(self.encode, corpus, seed=seed))
                if predict_va is not None:
                    self._keep_va(f"{name} direct", name, measure_head(predict_va, corpus, seed=seed))
            for source in corpora:
                for target in corpora:
                    if source != target:
                        measured = measure_transfer(self.encode, corpora[source], corpora[target], seed=seed)
                        self._keep_va(f"{source} to {target}", target, measured)

    def _keep_va(self, key: str, target: str, measured: tuple[dict[str, Any], dict[str, np.ndarray]]) -> None:
        if target in self.trained_on:
            measured[0]["seen_in_training"] = True
        self._keep("va", key, measured)

    def polarity(self) -> None:
        with self._task("polarity"):
            for name, corpus in self.corpora.polarity.items():
                self._keep("polarity", name, measure_polarity(self.encode, corpus, protocol=self.settings.protocol))
        if "polarity" in self.settings.tasks:
            for name in data.POLARITY:
                if name not in self.settings.polarity:
                    self.skipped[f"polarity/{name}"] = f"not asked for: --polarity {' '.join(data.POLARITY)}"

    def emotion(self) -> None:
        with self._task("emotion"):
            for name, corpus in self.corpora.emotion.items():
                measured = measure_emotion(self.encode, corpus, seed=self.settings.seed, shots=self.settings.shots)
                self._keep("emotion", name, measured)

    def geometry(self) -> None:
        seed = self.settings.seed
        with self._task("geometry"):
            for name, corpus in self.corpora.geometry.items():
                texts, labels = corpus.part(split_rows(corpus)[2])
                embeddings, words = self.encode(texts), np.array(corpus.classes)[labels]
                figures = geometry.alignment_uniformity(embeddings, labels, seed=seed)
                figures["centroid_separation"] = geometry.centroid_separation(embeddings, labels)
                figures["circular_order"] = circular_order(
                    embeddings, words, read_label_space("circle12").angles, seed=seed
                )
                self._keep("geometry", name, (figures, {"embeddings": embeddings, "labels": words}))
            curves = {}
            for name, corpus in self.corpora.curve.items():
                curves["va"] = {"corpus": name, "figure": "valence pearson", **self._va_curve(corpus)}
                test = corpus.rows("test")
                radius = radius_against_intensity(
                    self.encode([corpus.texts[i] for i in test]), corpus.labels[test][:, :2]
                )
                curves["va"]["radius_intensity"] = radius if np.isfinite(radius) else None
            for name, corpus in list(self.corpora.geometry.items())[:1]:
                curves["emotion"] = {
                    "corpus": name,
                    "figure": "accuracy",
                    **emotion_curve(self.encode(corpus.texts), corpus, seed=seed),
                }
            if curves:
                self.result.figures.setdefault("geometry", {})["dimensions"] = curves

    def _va_curve(self, corpus: data.VaCorpus) -> dict[str, Any]:
        rows = {part: corpus.rows(name) for part, name in _PARTS.items()}
        valence = corpus.labels[:, :1]

        def score(parts: dict[str, np.ndarray]) -> float:
            predicted = ridge_predictions(
                parts["train"], valence[rows["train"]], parts["dev"], valence[rows["dev"]], parts["test"]
            )
            return float(pearson(predicted[:, 0], valence[rows["test"], 0]))

        return finite_curve(score, self.encode(corpus.texts), rows, seed=self.settings.seed)

    def semantics(self) -> None:
        if self.corpora.sts is None:
            return
        with self._task("semantics"):
            left, right, scores = self.corpora.sts
            both = self.encode(left + right)
            one, two = both[: len(left)], both[len(left) :]
            figures = sts_spearman(one, two, scores, seed=self.settings.seed)
            items = {"predictions": pair_cosines(one, two), "references": scores}
            self._keep("semantics", "stsb", (figures, items))

    def detector(self, carl: tuple[CarlModel, PreTrainedTokenizerBase] | None) -> None:
        if carl is None:
            self.skipped["detector"] = "the model is no CARL checkpoint (a folder checkpoint-N of training)"
            return
        with self._task("detector"):
            for name, corpus in self.corpora.detector.items():
                figures = measure_detector(*carl, corpus, seed=self.settings.seed)
                self.result.figures["detector"] = {name: figures}


def _checked_vectors(vectors: Any, texts: int) -> np.ndarray:
    """What an encoder returned, as an array.

    Raises:
        ValueError: if it is not (texts, H) or holds a value that is not finite.
    """
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.detach().float().cpu().numpy()
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != texts:
        raise ValueError(
            f"The encoder must return an array (texts, dimensions), got {vectors.shape} for {texts} texts."
        )
    if not np.isfinite(vectors).all():
        raise ValueError("The encoder returned vectors that are not finite.")
    return vectors


_PARTS = {"train": "train", "dev": "validation", "test": "test"}
