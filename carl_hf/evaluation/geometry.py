"""The shape of an embedding space: alignment and uniformity, separation of classes, and how few dimensions keep a
score.

Shape suffixes: N texts, H embedding width, R resamples, C classes. Cosines and distances are of embeddings scaled to
length 1; "distance" is Euclidean, between 0 and 2.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from carl_hf.evaluation.statistics import RESAMPLES, interval, resample_rows

ROUNDING = 1e-12  # squared or cosine distances below it are what rounding leaves between equal embeddings


def unit_rows(embeddings_NH: np.ndarray) -> np.ndarray:
    """Embeddings scaled to length 1, in float64.

    Raises:
        ValueError: if the array is not (N, H), or for a row that is zero or not finite.
    """
    embeddings_NH = np.asarray(embeddings_NH, dtype=np.float64)
    if embeddings_NH.ndim != 2:
        raise ValueError(f"Embeddings must be a (texts, dimensions) array, got shape {embeddings_NH.shape}.")
    length_N1 = np.linalg.norm(embeddings_NH, axis=1, keepdims=True)
    bad_N = ~(np.isfinite(length_N1) & (length_N1 > 0)).ravel()
    if bad_N.any():
        raise ValueError(
            f"Embedding row {int(bad_N.argmax())} is zero or not finite and has no direction: leave this text out or "
            "look for what is wrong with the encoder."
        )
    return embeddings_NH / length_N1


def principal_axes(rows_NH: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance along the principal axes, falling, and the axes themselves.

    Returns:
        (H,) population variances and (H, H) orthonormal columns; the entry of largest size in each is positive, so
        that a picture does not flip from one machine to another.
    """
    centred_NH = rows_NH - rows_NH.mean(0)
    variance_H, axes_HH = np.linalg.eigh(centred_NH.T @ centred_NH / len(rows_NH))
    variance_H, axes_HH = variance_H[::-1].clip(min=0), axes_HH[:, ::-1]
    largest_H = np.take_along_axis(axes_HH, np.abs(axes_HH).argmax(0)[None], axis=0)
    return variance_H, axes_HH * np.sign(largest_H)


def alignment(embeddings_NH: np.ndarray, labels_N: Sequence[Any] | np.ndarray) -> float:
    """Alignment (Wang and Isola 2020, arXiv 2005.10242, exponent 2): mean squared distance over all unordered pairs of
    two texts with the same label, 0 to 4; smaller means that a class lies closer together. NaN without such a pair."""
    return float(_pair_means(embeddings_NH, labels_N)["alignment"][0])


def uniformity(embeddings_NH: np.ndarray, t: float = 2.0) -> float:
    """Uniformity (Wang and Isola 2020, arXiv 2005.10242): log of the mean of exp(-t squared distance) over all
    unordered pairs of two texts, -4 t to 0; smaller means more evenly spread. NaN for fewer than two texts."""
    return float(_pair_means(embeddings_NH, np.zeros(len(embeddings_NH)), t=t)["uniformity"][0])


def positive_random_ratio(embeddings_NH: np.ndarray, labels_N: Sequence[Any] | np.ndarray) -> float:
    """Mean squared distance of pairs with the same label over that of all pairs: 1 if the classes are not told apart,
    0 if each is one point. In contrast to alignment it does not shrink with the whole space. NaN without a pair of one
    label, or if all embeddings are the same."""
    return float(_pair_means(embeddings_NH, labels_N)["positive_random_ratio"][0])


def alignment_uniformity(
    embeddings_NH: np.ndarray, labels_N: Sequence[Any] | np.ndarray, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """[`alignment`], [`uniformity`] (t = 2) and [`positive_random_ratio`] with 95 % bootstrap intervals over texts.

    A text that a resample holds twice makes no pair with itself: such a pair has distance 0 in any space.

    Args:
        embeddings_NH: (N, H), any scale. labels_N: N class numbers or names. seed, resamples: of the bootstrap.

    Returns:
        {"alignment", "alignment_interval", "uniformity", "uniformity_interval", "positive_random_ratio",
        "positive_random_ratio_interval"}. A figure that is undefined is None, and "<figure>_reason" says why.

    Raises:
        ValueError: for an embedding row that is zero or not finite, or another number of labels than of texts.
    """
    rows_RN = resample_rows(len(embeddings_NH), seed, resamples)
    counts_RN = np.stack([np.bincount(rows_N, minlength=len(embeddings_NH)) for rows_N in rows_RN])
    measured = _pair_means(embeddings_NH, labels_N, counts_RN)
    result: dict[str, Any] = {}
    for name, values in measured.items():
        result[name] = float(values[0]) if np.isfinite(values[0]) else None
        if result[name] is None and len(embeddings_NH) < 2:
            result[f"{name}_reason"] = "undefined: fewer than two texts"
        elif result[name] is None:
            no_pair = np.isnan(measured["alignment"][0])
            what = "no two texts have the same label" if no_pair else "all embeddings are the same"
            result[f"{name}_reason"] = f"undefined: {what}"
        result[f"{name}_interval"] = interval(values[1:])
    return result


def _pair_means(
    embeddings_NH: np.ndarray, labels_N: Sequence[Any] | np.ndarray, counts_RN: np.ndarray | None = None, t: float = 2
) -> dict[str, np.ndarray]:
    """The three figures, (1 + R,) each: of the texts as they are, then of resamples in which text i stands
    counts_RN[r, i] times. NaN where a figure is undefined."""
    unit_NH = unit_rows(embeddings_NH)
    number = len(unit_NH)
    if len(labels_N) != number:
        raise ValueError(f"{number} embeddings but {len(labels_N)} labels: give one label for each text.")
    weights_RN = np.ones((1, number)) if counts_RN is None else np.vstack([np.ones((1, number)), counts_RN])
    same_NC = np.asarray(labels_N)[:, None] == np.unique(labels_N)
    squared_NN = (2 - 2 * unit_NH @ unit_NH.T).clip(min=0)
    kernel_NN = np.exp(-t * squared_NN)
    # texts i and j != i meet counts_i counts_j times; the diagonal, text i with itself, counts nowhere
    np.fill_diagonal(squared_NN, 0)
    np.fill_diagonal(kernel_NN, 0)
    itself_R = (weights_RN**2).sum(1)
    random_pairs_R = weights_RN.sum(1) ** 2 - itself_R
    positive_pairs_R = ((weights_RN @ same_NC) ** 2).sum(1) - itself_R

    def mean(values_NN: np.ndarray, pairs_R: np.ndarray) -> np.ndarray:
        return _quotient(((weights_RN @ values_NN) * weights_RN).sum(1), pairs_R)

    positive_R = mean(squared_NN * (same_NC @ same_NC.T), positive_pairs_R)
    random_R = mean(squared_NN, random_pairs_R)
    random_R[random_R < ROUNDING] = 0
    return {
        "alignment": positive_R,
        "uniformity": np.log(mean(kernel_NN, random_pairs_R)),
        "positive_random_ratio": _quotient(positive_R, random_R),
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

    0 where the classes share one centroid, unbounded above; it does not change if all distances shrink together.

    Args:
        embeddings_NH: (N, H), any scale. labels_N: N class numbers or names.

    Returns:
        None with fewer than two classes, if every class is one point, or if a class's embeddings cancel out.
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
    score: Callable[[dict[str, np.ndarray]], float], parts: dict[str, np.ndarray], *, seed: int, draws: int = 5
) -> dict[str, Any]:
    """A score against the number of kept dimensions, by principal components and by random coordinates: how robust
    an embedding is to dimensionality reduction (arXiv 2601.06575).

    Args:
        score: called with the reduced parts, the same keys as `parts`. parts: "train" and others -> (N, H)
            embeddings; the components are fitted on "train" alone.
        seed, draws: of the random subsets of coordinates.

    Returns:
        {"kept": [2, 4, 8, ..., H], "pca": [...], "random": mean over draws, "random_std": sample deviation, 0 at H,
        where there is one subset}. Principal components are a rotation: at H a score that scales each coordinate by
        itself differs from that of the embedding. Directions in which "train" does not vary are never kept, so that
        with fewer training texts than H the last PCA points are equal.
    """
    parts = {name: np.asarray(part, dtype=np.float64) for name, part in parts.items()}
    width = parts["train"].shape[1]
    variance_H, axes_HH = principal_axes(parts["train"])
    rank = max(1, int((variance_H > 1e-12 * variance_H[0]).sum()))
    centre = parts["train"].mean(0)
    rotated = {name: (part - centre) @ axes_HH for name, part in parts.items()}
    rng = np.random.default_rng(seed)
    kept = [2**power for power in range(1, math.ceil(math.log2(width)))] + [width]
    curve: dict[str, Any] = {"kept": kept, "pca": [], "random": [], "random_std": []}
    for count in kept:
        curve["pca"].append(float(score({name: part[:, : min(count, rank)] for name, part in rotated.items()})))
        subsets = [rng.choice(width, count, replace=False) for _ in range(draws)] if count < width else [slice(None)]
        scores = [score({name: part[:, subset] for name, part in parts.items()}) for subset in subsets]
        curve["random"].append(float(np.mean(scores)))
        curve["random_std"].append(float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0)
    return curve
