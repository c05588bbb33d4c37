"""The shape of an embedding space: alignment and uniformity, separation of classes, and how few dimensions keep a
score.

Shape suffixes: N texts, H embedding width, S samples of texts, C classes. Cosines and distances are of embeddings
scaled to length 1; "distance" is Euclidean, between 0 and 2.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from carl_hf.evaluation.statistics import interval, resample_counts

ROUNDING = 1e-12  # squared or cosine distances below it are what rounding leaves between equal embeddings


class NoDirectionError(ValueError):
    """An embedding is zero or not finite, and so has no direction."""


def unit_rows(embeddings_NH: np.ndarray) -> np.ndarray:
    """Embeddings scaled to length 1, in float64.

    Raises:
        ValueError: if the array is not (N, H); [`NoDirectionError`] for a row that is zero or not finite.
    """
    embeddings_NH = np.asarray(embeddings_NH, dtype=np.float64)
    if embeddings_NH.ndim != 2:
        raise ValueError(f"Embeddings must be a (texts, dimensions) array, got shape {embeddings_NH.shape}.")
    length_N1 = np.linalg.norm(embeddings_NH, axis=1, keepdims=True)
    bad_N = ~(np.isfinite(length_N1) & (length_N1 > 0)).ravel()
    if bad_N.any():
        raise NoDirectionError(
            f"Embedding row {int(bad_N.argmax())} is zero or not finite and has no direction: leave this text out or "
            "look for what is wrong with the encoder."
        )
    return embeddings_NH / length_N1


def principal_axes(rows_NH: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H,) population variances along the principal axes, falling, and the axes as (H, H) orthonormal columns.

    The largest entry of each axis is positive, so that a plot looks the same on every machine.
    """
    centred_NH = rows_NH - rows_NH.mean(0)
    variance_H, axes_HH = np.linalg.eigh(centred_NH.T @ centred_NH / len(rows_NH))
    variance_H, axes_HH = variance_H[::-1].clip(min=0), axes_HH[:, ::-1]
    largest_H = np.take_along_axis(axes_HH, np.abs(axes_HH).argmax(0)[None], axis=0)
    return variance_H, axes_HH * np.sign(largest_H)


def alignment_uniformity(
    embeddings_NH: np.ndarray, labels_N: Sequence[Any] | np.ndarray, *, seed: int | None = None
) -> dict[str, Any]:
    """Alignment is the mean squared distance of pairs of texts with the same label, 0 to 4, smaller where classes lie
    closer together. Uniformity is the log of the mean of exp(-2 squared distance) of all pairs, -8 to 0, smaller where
    texts are spread more evenly (Wang and Isola 2020, arXiv 2005.10242). Their ratio is alignment over the mean
    squared distance of all pairs: 1 if the classes are not told apart, 0 if each is one point; unlike alignment it
    does not shrink with the whole space.

    Args:
        embeddings_NH: (N, H), any scale. labels_N: N class indices or names. seed: of the bootstrap over texts, in
            which a text makes no pair with itself; None: no intervals.

    Returns:
        {"alignment", "uniformity", "positive_random_ratio", each with "<metric>_interval" (95 %)}. A metric that is
        undefined is None, and "<metric>_reason" says why.

    Raises:
        ValueError: for an embedding row that is zero or not finite, or another number of labels than of texts.
    """
    number = len(embeddings_NH)
    if len(labels_N) != number:
        raise ValueError(f"{number} embeddings but {len(labels_N)} labels: give one label for each text.")
    counts_SN = np.vstack([np.ones((1, number)), *([] if seed is None else [resample_counts(number, seed)])])
    samples = _pair_means(unit_rows(embeddings_NH), np.asarray(labels_N), counts_SN)
    reason = "all embeddings are the same"
    if number < 2:
        reason = "fewer than two texts"
    elif np.isnan(samples["alignment"][0]):
        reason = "no two texts have the same label"
    result: dict[str, Any] = {}
    for name, values_S in samples.items():
        result[name] = float(values_S[0]) if np.isfinite(values_S[0]) else None
        if result[name] is None:
            result[f"{name}_reason"] = f"undefined: {reason}"
        if seed is not None:
            result[f"{name}_interval"] = interval(values_S[1:])
    return result


def _pair_means(unit_NH: np.ndarray, labels_N: np.ndarray, counts_SN: np.ndarray) -> dict[str, np.ndarray]:
    """The three metrics, (S,) each, of samples in which text n occurs counts_SN[s, n] times; NaN where undefined."""
    same_NC = labels_N[:, None] == np.unique(labels_N)
    squared_NN = (2 - 2 * unit_NH @ unit_NH.T).clip(min=0)
    kernel_NN = np.exp(-2.0 * squared_NN)
    # texts i and j != i meet counts_i counts_j times; the diagonal, text i with itself, counts nowhere
    np.fill_diagonal(squared_NN, 0)
    np.fill_diagonal(kernel_NN, 0)
    itself_S = (counts_SN**2).sum(1)
    random_pairs_S = counts_SN.sum(1) ** 2 - itself_S
    positive_pairs_S = ((counts_SN @ same_NC) ** 2).sum(1) - itself_S

    def mean(values_NN: np.ndarray, pairs_S: np.ndarray) -> np.ndarray:
        return _quotient(((counts_SN @ values_NN) * counts_SN).sum(1), pairs_S)

    positive_S = mean(squared_NN * (same_NC @ same_NC.T), positive_pairs_S)
    random_S = mean(squared_NN, random_pairs_S)
    random_S[random_S < ROUNDING] = 0
    return {
        "alignment": positive_S,
        "uniformity": np.log(mean(kernel_NN, random_pairs_S)),
        "positive_random_ratio": _quotient(positive_S, random_S),
    }


def _quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x / y; NaN where y is 0."""
    return np.divide(x, y, out=np.full(len(y), np.nan), where=y != 0)


def class_centroids(embeddings_NH: np.ndarray, labels_N: Sequence[Any] | np.ndarray) -> tuple[list[Any], np.ndarray]:
    """The labels in sorted order and the (C, H) means of their texts' embeddings, each scaled to length 1 before."""
    unit_NH, labels_N = unit_rows(embeddings_NH), np.asarray(labels_N)
    names = np.unique(labels_N)
    return names.tolist(), np.stack([unit_NH[labels_N == name].mean(0) for name in names])


def centroid_separation(embeddings_NH: np.ndarray, labels_N: Sequence[Any] | np.ndarray) -> float | None:
    """Mean cosine distance between the class centroids over the mean cosine distance of texts to their own centroid.

    0 where the classes share one centroid, unbounded above; it does not change if all distances shrink together. None
    with fewer than two classes, if every class is one point, or if a class's embeddings cancel out.
    """
    names, centroids_CH = class_centroids(embeddings_NH, labels_N)
    length_C1 = np.linalg.norm(centroids_CH, axis=1, keepdims=True)
    if len(names) < 2 or (length_C1 < ROUNDING).any():
        return None
    centroids_CH = centroids_CH / length_C1
    between = (1 - centroids_CH @ centroids_CH.T)[np.triu_indices(len(names), 1)].mean()
    own_N = np.searchsorted(names, np.asarray(labels_N))
    within = (1 - (unit_rows(embeddings_NH) * centroids_CH[own_N]).sum(1)).mean()
    return float(max(between, 0) / within) if within > ROUNDING else None


def dimension_curve(
    score: Callable[[dict[str, np.ndarray]], float], splits: dict[str, np.ndarray], *, seed: int, draws: int = 3
) -> dict[str, Any]:
    """A score against the number of kept dimensions, by principal components and by random coordinates: how robust
    an embedding is to dimensionality reduction (arXiv 2601.06575).

    Args:
        score: called with the reduced splits. splits: "train" and others -> (N, H) embeddings; the components are
            fitted on "train" alone. seed, draws: of the random subsets of coordinates.

    Returns:
        {"kept": [2, 4, 8, ..., H], "pca": [...], "random": mean over draws, "random_std": sample deviation, 0 at H};
        None where a score is not finite. At H a score that scales each coordinate by itself differs between "pca", a
        rotation, and "random". Directions in which "train" does not vary are never kept: with fewer training texts
        than H the last PCA points are equal.
    """
    splits = {name: np.asarray(rows_NH, dtype=np.float64) for name, rows_NH in splits.items()}
    width = splits["train"].shape[1]
    variance_H, axes_HH = principal_axes(splits["train"])
    rank = max(1, int((variance_H > 1e-12 * variance_H[0]).sum()))
    centre_H = splits["train"].mean(0)
    rotated = {name: (rows_NH - centre_H) @ axes_HH for name, rows_NH in splits.items()}
    rng = np.random.default_rng(seed)
    kept = [2**power for power in range(1, math.ceil(math.log2(width)))] + [width]
    curve: dict[str, Any] = {"kept": kept, "pca": [], "random": [], "random_std": []}
    for count in kept:
        curve["pca"].append(float(score({name: rows[:, : min(count, rank)] for name, rows in rotated.items()})))
        subsets = [rng.choice(width, count, replace=False) for _ in range(draws)] if count < width else [slice(None)]
        scores = [score({name: rows[:, subset] for name, rows in splits.items()}) for subset in subsets]
        curve["random"].append(float(np.mean(scores)))
        curve["random_std"].append(float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0)
    return {key: [value if np.isfinite(value) else None for value in values] for key, values in curve.items()}
