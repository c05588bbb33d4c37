"""The fast measurement inside training: a ridge probe from some training texts to the validation texts."""

from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset

from carl_hf.evaluation.agreement import pearson
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of, ridge_predictions


class DevProbe:
    """Pearson r of valence and arousal on validation texts, from frozen embeddings of the present encoder.

    Args:
        train: training texts, of which at most `texts` are drawn by `seed` (the same each time); the probe is fitted
            on four fifths of them, and its strength chosen on the rest, so that the validation texts only judge.
    """

    def __init__(self, train: Dataset, *, texts: int, seed: int):
        rows = np.random.default_rng(seed).permutation(len(train))[:texts]
        self._train = train.select(rows)
        self._fitted = max(2, len(rows) * 4 // 5)

    def __call__(self, encode: Callable[[Sequence[str]], np.ndarray], dev: Dataset) -> dict[str, float]:
        """{"valence_pearson", "arousal_pearson", "va_pearson": their mean}; -1 where r is undefined
        or an embedding is not finite.

        Every text is embedded once.
        """
        texts = list(self._train["text"]) + list(dev["text"])
        embeddings, size = encode(texts), len(self._train)
        if not np.isfinite(embeddings).all():  # training has diverged: the worst score, and no crash
            return dict.fromkeys([*(f"{name}_pearson" for name in DIMENSIONS), "va_pearson"], -1.0)
        labels = labels_of(self._train)
        fitted, chosen = slice(0, self._fitted), slice(self._fitted, size)
        predictions = ridge_predictions(
            embeddings[fitted], labels[fitted], embeddings[chosen], labels[chosen], embeddings[size:]
        )
        scores = np.nan_to_num(pearson(predictions.T, labels_of(dev).T), nan=-1.0)
        figures = {f"{name}_pearson": float(r) for name, r in zip(DIMENSIONS, scores, strict=True)}
        return {**figures, "va_pearson": float(scores.mean())}
