"""The fast measurement inside training: linear probes from some training texts to the validation texts."""

from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset

from carl_hf.data.splits import divide
from carl_hf.evaluation.probes import fit_logistic
from carl_hf.evaluation.statistics import pearson
from carl_hf.evaluation.valence_arousal import DIMENSIONS, ridge_predictions

_NUMBERS = (*DIMENSIONS, "dominance")
_FEWEST = 4  # texts that a probe is fitted to


class DevProbe:
    """Metrics on validation texts, from frozen embeddings of the present encoder.

    Args:
        train: training texts, of which at most `texts` are drawn by `seed` (the same each time). A probe is fitted on
            four fifths of them and its strength chosen on the rest, so that the validation texts only judge.
    """

    def __init__(self, train: Dataset, *, texts: int, seed: int):
        self._train = train.select(np.random.default_rng(seed).permutation(len(train))[:texts])
        self._rows = {column: _labelled(self._train, column) for column in (*_NUMBERS, "label")}

    def __call__(self, encode: Callable[[Sequence[str]], np.ndarray], dev: Dataset) -> dict[str, float]:
        """Where training and validation texts have valence, {"valence_pearson"}, and likewise for arousal and
        dominance; with valence and arousal, {"va_pearson": their mean}; -1 where r is undefined or an embedding is not
        finite. Where both have class labels, {"label_accuracy": percent of the validation texts whose class is among
        the training texts'}, 0 where an embedding is not finite.

        Every text is embedded once.
        """
        names, metrics = self.metrics_for(dev), {}
        embeddings = encode([*self._train["text"], *dev["text"]])
        if not np.isfinite(embeddings).all():  # training has diverged: the worst score, and no crash
            return {name: 0.0 if name == "label_accuracy" else -1.0 for name in names}
        train, held_out = np.split(embeddings, [len(self._train)])
        for dimension in _NUMBERS:
            if f"{dimension}_pearson" in names:
                metrics[f"{dimension}_pearson"] = self._correlation(dimension, train, held_out, dev)
        if "va_pearson" in names:
            metrics["va_pearson"] = sum(metrics[f"{name}_pearson"] for name in DIMENSIONS) / len(DIMENSIONS)
        if "label_accuracy" in names:
            metrics["label_accuracy"] = self._accuracy(train, held_out, dev)
        return metrics

    def metrics_for(self, dev: Dataset) -> list[str]:
        """Names of the metrics that training and validation texts have the labels for."""
        found = [name for name in _NUMBERS if len(self._rows[name]) >= _FEWEST and len(_labelled(dev, name))]
        va = [*found, "va"] if {*DIMENSIONS} <= {*found} else found
        classes = len(self._rows["label"]) >= _FEWEST and len(self._known_classes(dev))
        return [*(f"{name}_pearson" for name in va), *(["label_accuracy"] if classes else [])]

    def _known_classes(self, dev: Dataset) -> np.ndarray:
        """Rows of the validation texts whose class is among the training texts'."""
        rows = _labelled(dev, "label")
        return rows[np.isin(_classes(dev, rows), _classes(self._train, self._rows["label"]))]

    def _correlation(self, dimension: str, train: np.ndarray, held_out: np.ndarray, dev: Dataset) -> float:
        """Pearson r on the validation texts that have this number, by a probe from the training texts that have it."""
        fitted, chosen = divide(self._rows[dimension], 8)
        judged = _labelled(dev, dimension)
        labels, truth = (np.array(data[dimension], dtype=float)[:, np.newaxis] for data in (self._train, dev))
        predicted = ridge_predictions(train[fitted], labels[fitted], train[chosen], labels[chosen], held_out[judged])
        return float(np.nan_to_num(pearson(predicted.T, truth[judged].T), nan=-1.0)[0])

    def _accuracy(self, train: np.ndarray, held_out: np.ndarray, dev: Dataset) -> float:
        judged, (fitted, chosen) = self._known_classes(dev), divide(self._rows["label"], 8)
        classes, labels = np.unique(_classes(self._train, self._rows["label"]), return_inverse=True)
        of_fitted, of_chosen = labels[: len(fitted)], labels[len(fitted) :]
        if len(set(of_fitted)) == 1:  # nothing to tell apart
            predicted = np.full(len(judged), classes[of_fitted[0]])
        else:
            predict = fit_logistic(train[fitted], of_fitted, train[chosen], of_chosen)[0]
            predicted = classes[predict(held_out[judged]).argmax(axis=1)]
        return 100 * float(np.mean(predicted == _classes(dev, judged)))


def _labelled(dataset: Dataset, column: str) -> np.ndarray:
    """Rows that have a value, None and NaN are none, in a column; none without that column."""
    values = dataset[column] if column in dataset.column_names else []
    return np.array([row for row, value in enumerate(values) if value is not None and value == value], dtype=int)


def _classes(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    names = list(dataset["label"]) if len(rows) else []
    return np.array([str(names[row]) for row in rows], dtype=str)
