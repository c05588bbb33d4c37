"""The fast measurement inside training: linear probes from some training texts to the validation texts."""

from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset

from carl_hf.data.splits import divide
from carl_hf.evaluation.probes import fit_logistic
from carl_hf.evaluation.statistics import pearson
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of, ridge_predictions

_FEWEST = 4  # texts that a probe is fitted to


class DevProbe:
    """Figures on validation texts, from frozen embeddings of the present encoder.

    Args:
        train: training texts, of which at most `texts` are drawn by `seed` (the same each time); a probe is fitted on
            four fifths of them, and its strength chosen on the rest, so that the validation texts only judge.
    """

    def __init__(self, train: Dataset, *, texts: int, seed: int):
        rows = np.random.default_rng(seed).permutation(len(train))[:texts]
        self._train = train.select(rows)

    def __call__(self, encode: Callable[[Sequence[str]], np.ndarray], dev: Dataset) -> dict[str, float]:
        """Where training and validation texts carry numbers, {"valence_pearson", "arousal_pearson", "va_pearson":
        their mean}, -1 where r is undefined or an embedding is not finite; where both carry names, {"label_accuracy":
        percent of the validation texts whose name stands in training}, 0 where an embedding is not finite.

        Every text is embedded once.
        """
        texts = list(self._train["text"]) + list(dev["text"])
        embeddings, size = encode(texts), len(self._train)
        train, held = embeddings[:size], embeddings[size:]
        finite = bool(np.isfinite(embeddings).all())  # else training has diverged: the worst score, and no crash
        wanted, figures = self.figures(dev), {}
        if "va_pearson" in wanted:
            scores = self._correlations(train, held, dev) if finite else np.full(len(DIMENSIONS), -1.0)
            figures |= {f"{name}_pearson": float(r) for name, r in zip(DIMENSIONS, scores, strict=True)}
            figures["va_pearson"] = float(scores.mean())
        if "label_accuracy" in wanted:
            figures["label_accuracy"] = self._accuracy(train, held, dev) if finite else 0.0
        return figures

    def figures(self, dev: Dataset) -> set[str]:
        """Names of the figures that training and validation texts carry the labels for."""
        found = set()
        if len(_numbered(self._train)) >= _FEWEST and len(_numbered(dev)):
            found |= {*(f"{name}_pearson" for name in DIMENSIONS), "va_pearson"}
        if len(_named(self._train)) >= _FEWEST and len(self._judged(dev)):
            found.add("label_accuracy")
        return found

    def _judged(self, dev: Dataset) -> np.ndarray:
        """Rows of the validation texts whose name stands in training."""
        if not len(_named(self._train)) or not len(_named(dev)):
            return np.array([], dtype=int)
        known, names = {str(name) for name in self._train["label"] if name is not None}, list(dev["label"])
        return np.array([i for i in _named(dev) if str(names[i]) in known], dtype=int)

    def _correlations(self, train: np.ndarray, held: np.ndarray, dev: Dataset) -> np.ndarray:
        fitted, chosen = divide(_numbered(self._train), 8)
        judged, labels = _numbered(dev), labels_of(self._train)
        predicted = ridge_predictions(train[fitted], labels[fitted], train[chosen], labels[chosen], held[judged])
        return np.nan_to_num(pearson(predicted.T, labels_of(dev)[judged].T), nan=-1.0)

    def _accuracy(self, train: np.ndarray, held: np.ndarray, dev: Dataset) -> float:
        judged, names = self._judged(dev), np.array([str(name) for name in self._train["label"]])
        fitted, chosen = divide(_named(self._train), 8)
        classes, labels = np.unique(names[np.concatenate([fitted, chosen])], return_inverse=True)
        if len(set(labels[: len(fitted)])) == 1:  # nothing to tell apart
            predicted = np.full(len(judged), classes[labels[0]])
        else:
            parts = train[fitted], labels[: len(fitted)], train[chosen], labels[len(fitted) :]
            predicted = classes[fit_logistic(*parts)[0](held[judged]).argmax(axis=1)]
        return 100 * float(np.mean(predicted == np.array([str(name) for name in dev["label"]])[judged]))


def _numbered(dataset: Dataset) -> np.ndarray:
    return _rows_with(dataset, "valence")


def _named(dataset: Dataset) -> np.ndarray:
    return _rows_with(dataset, "label")


def _rows_with(dataset: Dataset, column: str) -> np.ndarray:
    if column not in dataset.column_names:
        return np.array([], dtype=int)
    return np.flatnonzero([value is not None for value in dataset[column]])
