"""All tasks of the evaluation for one encoder."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from carl_hf.evaluation import data, geometry
from carl_hf.evaluation.agreement import pearson
from carl_hf.evaluation.detector import measure_detector
from carl_hf.evaluation.emotion import logistic_probe, measure_emotion, split_rows
from carl_hf.evaluation.polarity import measure_polarity
from carl_hf.evaluation.semantics import sts_spearman
from carl_hf.evaluation.valence_arousal import measure_corpus, measure_head, measure_transfer, ridge_predictions
from carl_hf.modeling_carl import CarlModel

Encode = Callable[[Sequence[str]], np.ndarray]
Task = Literal["va", "polarity", "emotion", "geometry", "semantics", "detector"]
TASKS: tuple[Task, ...] = ("va", "polarity", "emotion", "geometry", "semantics", "detector")
_PROBE_OF_CURVES = (1e-2,)  # strength of the logistic probe in dimension curves, the same for every point


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Args:
        tasks: any of [`TASKS`]. data_dir: folder with local copies of the corpora; without one only the bundled demo
            corpus is measured. seed: of folds, splits, draws and bootstraps.
        protocol: SentEval's `"fast"` or `"test"` protocol for polarity. polarity: its corpora; IMDB has by far the
            most tokens, so that it is asked for by name.
        emotion: names or files (`text`, `label`, maybe `split`). shots: sizes of few-shot probes.
        strict: a corpus that is not there is an error.
    """

    tasks: Sequence[str] = TASKS[:-1]
    data_dir: str | Path | None = None
    seed: int = 42
    protocol: Literal["fast", "test"] = "fast"
    polarity: Sequence[str] = ("mr", "cr", "sst5")
    emotion: Sequence[str] = ("goemotions-six", "goemotions-ekman", "isear", "emolit12")
    shots: Sequence[int] = ()
    strict: bool = False

    def __post_init__(self):
        for what, given, known in (("task", self.tasks, TASKS), ("polarity corpus", self.polarity, data.POLARITY)):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ValueError(f"Unknown {what} {unknown[0]!r}: choose from {', '.join(known)}.")


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
    *,
    predict_va: Callable[[Sequence[str]], np.ndarray] | None = None,
    carl: tuple[CarlModel, PreTrainedTokenizerBase] | None = None,
) -> Evaluation:
    """As [`evaluate_encoder`], with everything that can be set.

    Args:
        predict_va: a trained head, texts -> (N, 2) valence and arousal in [-1, 1]. carl: a checkpoint and its
            tokenizer, for the task `"detector"`.
    """
    run = _Run(encode, settings)
    if "va" in settings.tasks:
        run.va(predict_va)
    if "polarity" in settings.tasks:
        run.polarity()
    if "emotion" in settings.tasks:
        run.emotion()
    if "geometry" in settings.tasks:
        run.geometry()
    if "semantics" in settings.tasks:
        run.semantics()
    if "detector" in settings.tasks:
        run.detector(carl)
    result = run.result
    result.figures["skipped"] = run.skipped
    result.figures["seconds"] = {name: round(seconds, 1) for name, seconds in run.seconds.items()}
    return result


class _Run:
    def __init__(self, encode: Encode, settings: Settings):
        self.settings = settings
        self.result = Evaluation()
        self.skipped: dict[str, str] = {}
        self.seconds: dict[str, float] = {"embedding": 0.0}
        self._encode = encode

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        with self._clock("embedding"):
            return np.asarray(self._encode(list(texts)))

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

    def _attempt(self, key: str, step: Callable[[], Any]) -> Any:
        """The step's result, or None if its corpus is missing."""
        try:
            return step()
        except data.MissingCorpus as error:
            if self.settings.strict:
                raise ValueError(f"{key}: {error} Without --strict it would be skipped.") from error
            self.skipped[key] = str(error)
            return None

    def _keep(self, task: str, corpus: str, measured: tuple[dict[str, Any], dict[str, np.ndarray]] | None) -> None:
        if measured is not None:
            self.result.figures.setdefault(task, {})[corpus], self.result.items[f"{task}/{corpus}"] = measured

    def va(self, predict_va: Callable[[Sequence[str]], np.ndarray] | None) -> None:
        seed, folder = self.settings.seed, self.settings.data_dir
        with self._task("va"):
            corpora = {}
            for name in ("demo",) if folder is None else ("emobank", "facebook", "iemocap", "emotales"):
                corpus = self._attempt(f"va/{name}", lambda name=name: data.read_va(name, folder))
                if corpus is not None:
                    corpora[name] = corpus
            for name, corpus in corpora.items():
                self._keep("va", name, measure_corpus(self.encode, corpus, seed=seed))
                if predict_va is not None:
                    self._keep("va", f"{name} direct", measure_head(predict_va, corpus, seed=seed))
            for source in corpora:
                for target in corpora:
                    if source != target:
                        measured = measure_transfer(self.encode, corpora[source], corpora[target], seed=seed)
                        self._keep("va", f"{source} to {target}", measured)

    def polarity(self) -> None:
        with self._task("polarity"):
            for name in data.POLARITY:
                if name not in self.settings.polarity:
                    self.skipped[f"polarity/{name}"] = f"not asked for: --polarity {' '.join(data.POLARITY)}"
                    continue
                corpus = self._attempt(
                    f"polarity/{name}", lambda name=name: data.read_polarity(name, self.settings.data_dir)
                )
                if corpus is not None:
                    self._keep(
                        "polarity", name, measure_polarity(self.encode, corpus, protocol=self.settings.protocol)
                    )

    def emotion(self) -> None:
        with self._task("emotion"):
            names = list(self.settings.emotion)
            if self.settings.data_dir is None:
                names = ["demo", *(name for name in names if Path(name).suffix)]
            for name in names:
                self._emotion(name)

    def _emotion(self, name: str) -> None:
        corpus = self._attempt(f"emotion/{name}", lambda: data.read_emotion(name, self.settings.data_dir))
        if corpus is not None:
            measured = measure_emotion(self.encode, corpus, seed=self.settings.seed, shots=self.settings.shots)
            self._keep("emotion", Path(name).stem if Path(name).suffix else name, measured)

    def geometry(self) -> None:
        seed, folder = self.settings.seed, self.settings.data_dir
        with self._task("geometry"):
            names = ("demo",) if folder is None else ("goemotions-six", "emolit12")
            corpora = {n: self._attempt(f"geometry/{n}", lambda n=n: data.read_emotion(n, folder)) for n in names}
            corpora = {name: corpus for name, corpus in corpora.items() if corpus is not None}
            for name, corpus in corpora.items():
                texts, labels = corpus.part(split_rows(corpus, seed)[2])
                embeddings, words = self.encode(texts), np.array(corpus.classes)[labels]
                figures = geometry.alignment_uniformity(embeddings, labels, seed=seed)
                figures["centroid_separation"] = geometry.centroid_separation(embeddings, labels)
                figures["circular_order"] = geometry.circular_order(
                    embeddings, words, geometry.LABEL_ANGLES, seed=seed
                )
                self._keep("geometry", name, (figures, {"embeddings": embeddings, "labels": words}))
            curves = {}
            va_name = "demo" if folder is None else "emobank"
            va = self._attempt("geometry/dimensions va", lambda: data.read_va(va_name, folder))
            if va is not None:
                curves["va"] = {"corpus": va_name, "figure": "valence pearson", **self._va_curve(va)}
            if corpora:
                name, corpus = next(iter(corpora.items()))
                curves["emotion"] = {"corpus": name, "figure": "accuracy", **self._emotion_curve(corpus)}
            if curves:
                self.result.figures.setdefault("geometry", {})["dimensions"] = curves

    def _va_curve(self, corpus: data.VaCorpus) -> dict[str, Any]:
        rows = {part: corpus.rows(name) for part, name in _PARTS.items()}
        embeddings = self.encode(corpus.texts)
        valence = corpus.labels[:, :1]

        def score(parts: dict[str, np.ndarray]) -> float:
            predicted = ridge_predictions(
                parts["train"], valence[rows["train"]], parts["dev"], valence[rows["dev"]], parts["test"]
            )
            return float(np.nan_to_num(pearson(predicted[:, 0], valence[rows["test"], 0])))

        parts = {part: embeddings[chosen] for part, chosen in rows.items()}
        return geometry.dimension_curve(score, parts, seed=self.settings.seed)

    def _emotion_curve(self, corpus: data.ClassCorpus) -> dict[str, Any]:
        rows = dict(zip(_PARTS, split_rows(corpus, self.settings.seed), strict=True))
        embeddings, labels = self.encode(corpus.texts), corpus.labels

        def score(parts: dict[str, np.ndarray]) -> float:
            predicted, _ = logistic_probe(
                parts["train"], labels[rows["train"]], parts["dev"], labels[rows["dev"]], parts["test"],
                strengths=_PROBE_OF_CURVES,
            )  # fmt: skip
            return 100 * float((predicted == labels[rows["test"]]).mean())

        parts = {part: embeddings[chosen] for part, chosen in rows.items()}
        return geometry.dimension_curve(score, parts, seed=self.settings.seed)

    def semantics(self) -> None:
        with self._task("semantics"):
            pairs = self._attempt("semantics/stsb", lambda: data.read_sts(self.settings.data_dir))
            if pairs is not None:
                left, right, scores = pairs
                both = self.encode(left + right)
                figures = sts_spearman(both[: len(left)], both[len(left) :], scores, seed=self.settings.seed)
                self.result.figures["semantics"] = {"stsb": figures}

    def detector(self, carl: tuple[CarlModel, PreTrainedTokenizerBase] | None) -> None:
        if carl is None:
            self.skipped["detector"] = "the model is no CARL checkpoint (a folder checkpoint-N of training)"
            return
        name = "demo" if self.settings.data_dir is None else "emobank"
        with self._task("detector"):
            corpus = self._attempt(f"detector/{name}", lambda: data.read_va(name, self.settings.data_dir))
            if corpus is not None:
                model, tokenizer = carl
                figures = measure_detector(model, tokenizer, corpus, seed=self.settings.seed)
                self.result.figures["detector"] = {name: figures}


_PARTS = {"train": "train", "dev": "validation", "test": "test"}
