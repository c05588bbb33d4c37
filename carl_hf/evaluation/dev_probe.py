"""The fast measurement inside training: linear probes from some training texts to the validation texts."""

from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset

from carl_hf.evaluation.agreement import pearson
from carl_hf.evaluation.probes import fit_logistic
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of, ridge_predictions


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
        percent}, 0 where an embedding is not finite.

        Every text is embedded once.
        """
        texts = list(self._train["text"]) + list(dev["text"])
        embeddings, size = encode(texts), len(self._train)
        train, held = embeddings[:size], embeddings[size:]
        finite = bool(np.isfinite(embeddings).all())  # else training has diverged: the worst score, and no crash
        figures: dict[str, float] = {}
        rows, judged = _rows_with(self._train, "valence"), _rows_with(dev, "valence")
        if len(rows) >= 4 and len(judged):
            scores = np.full(len(DIMENSIONS), -1.0)
            if finite:
                fitted, chosen = _four_fifths(rows)
                labels = labels_of(self._train)
                predictions = ridge_predictions(
                    train[fitted], labels[fitted], train[chosen], labels[chosen], held[judged]
                )
                scores = np.nan_to_num(pearson(predictions.T, labels_of(dev)[judged].T), nan=-1.0)
            figures |= {f"{name}_pearson": float(r) for name, r in zip(DIMENSIONS, scores, strict=True)}
            figures["va_pearson"] = float(scores.mean())
        rows, judged = _rows_with(self._train, "label"), _rows_with(dev, "label")
        if len(rows) >= 4 and len(judged):
            classes, labels = np.unique(np.array(self._train["label"])[rows], return_inverse=True)
            accuracy = 0.0
            if finite and len(classes) > 1:
                probe, _ = fit_logistic(*_parts(train[rows], labels))
                predicted = classes[probe(held[judged]).argmax(axis=1)]
                accuracy = 100 * float(np.mean(predicted == np.array(dev["label"])[judged]))
            figures["label_accuracy"] = accuracy
        return figures


def _rows_with(dataset: Dataset, column: str) -> np.ndarray:
    if column not in dataset.column_names:
        return np.array([], dtype=int)
    return np.flatnonzero([value is not None for value in dataset[column]])


def _four_fifths(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    fitted = max(2, len(rows) * 4 // 5)
    return rows[:fitted], rows[fitted:]


def _parts(train: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    fitted, chosen = _four_fifths(np.arange(len(train)))
    return train[fitted], labels[fitted], train[chosen], labels[chosen]
