"""Are emotions arranged in a circle? Order of class centroids round the best plane, and radius against intensity.

Shape suffixes: N texts or angles, H embedding width, C classes.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from carl_hf.evaluation.geometry import ROUNDING, class_centroids, principal_axes, unit_rows
from carl_hf.evaluation.statistics import pearson

_PERMUTATIONS = 200


def circular_order(
    embeddings_NH: np.ndarray, labels_N: Sequence[str] | np.ndarray, angles: Mapping[str, float], *, seed: int
) -> dict[str, Any]:
    """Whether the class centroids lie around a circle in the order of given angles.

    In the plane of the first two principal components of the centroids, rotation and reflection are chosen to fit: the
    rotation as the circular mean of the differences, the reflection with the smaller error. With few classes that
    alone fits much: compare with the error of permuted labels.

    Args:
        embeddings_NH: (N, H), any scale. labels_N: a class name for each text; classes without an angle are left out.
        angles: class name -> degrees, such as `read_label_space("circle12").angles`. seed: of the permutations.

    Returns:
        {"angular_error": mean absolute difference to the given angles in degrees, 0 to 180; "chance_error": its mean
        over permutations of the labels; "order_agreement": fraction of unordered triples of classes that run the same
        way round, in the better reflection, so that chance is above one half; "plane_share": fraction of the
        centroids' variance that lies in the plane; "circular_correlation": of found and given angles, without its
        sign; "angles": {class: degrees in [0, 360) after alignment}}.
        {"angular_error": None, "angular_error_reason"} with fewer than four distinct angles, or if the centroids
        coincide or lie on a line.
    """
    labels_N = np.asarray(labels_N)
    known_N = np.isin(labels_N, list(angles))
    distinct = {float(angles[name]) % 360 for name in np.unique(labels_N[known_N]).tolist()}
    if len(distinct) < 4:
        reason = f"undefined: {len(distinct)} distinct angles among the classes, at least 4 are needed"
        return {"angular_error": None, "angular_error_reason": reason}
    names, centroids_CH = class_centroids(np.asarray(embeddings_NH)[known_N], labels_N[known_N])
    variance_H, axes_HH = principal_axes(centroids_CH)
    if variance_H.sum() < ROUNDING:
        return {"angular_error": None, "angular_error_reason": "undefined: the class centroids coincide"}
    if variance_H[1:2].sum() < ROUNDING * variance_H[0]:  # of an encoder with one dimension too
        return {"angular_error": None, "angular_error_reason": "undefined: the class centroids lie on a line"}
    plane_C2 = (centroids_CH - centroids_CH.mean(0)) @ axes_HH[:, :2]
    found_C = np.arctan2(plane_C2[:, 1], plane_C2[:, 0])
    given_C = np.radians([angles[name] % 360 for name in names])
    rng = np.random.default_rng(seed)
    orders = np.stack([np.arange(len(names)), *(rng.permutation(len(names)) for _ in range(_PERMUTATIONS))])
    errors, aligned = _aligned(found_C[orders], given_C)
    # the inner remainder of a tiny negative number is 360 itself
    degrees_C = np.degrees(aligned[0]) % 360 % 360
    return {
        "angular_error": float(np.degrees(errors[0])),
        "chance_error": float(np.degrees(errors[1:].mean())),
        "order_agreement": _order_agreement(found_C, given_C),
        "plane_share": float(variance_H[:2].sum() / variance_H.sum()),
        "circular_correlation": abs(circular_correlation(found_C, given_C)),
        "angles": dict(zip(names, degrees_C.tolist(), strict=True)),
    }


def circular_correlation(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Correlation of two sets of angles in radians, from -1 to 1; rotating either changes nothing, reflecting one
    turns the sign (Fisher and Lee 1983, Biometrika 70(2)). Over pairs i < j: sum sin(a_i - a_j) sin(b_i - b_j) /
    sqrt(sum sin^2(a_i - a_j) sum sin^2(b_i - b_j)); NaN where all angles of a set are equal or opposite."""
    i, j = np.triu_indices(len(first_N), 1)
    first, second = np.sin(first_N[i] - first_N[j]), np.sin(second_N[i] - second_N[j])
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale > ROUNDING else math.nan


def radius_against_intensity(embeddings_NH: np.ndarray, va_N2: np.ndarray) -> float:
    """Whether more intense texts lie further out: Pearson r between the distance of a text's embedding from the
    centre of all, in the plane of the first two principal components, and its intensity sqrt(v^2 + a^2). NaN where
    distances or intensities are constant."""
    unit_NH = unit_rows(embeddings_NH)
    _, axes_HH = principal_axes(unit_NH)
    radius_N = np.linalg.norm((unit_NH - unit_NH.mean(0)) @ axes_HH[:, :2], axis=1)
    return float(pearson(radius_N, np.linalg.norm(va_N2, axis=1)))


def _aligned(found: np.ndarray, given_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute error (...) and angles (..., C), in radians, of `found` (..., C) after the best rotation of it or
    of its mirror image."""
    both = np.stack([found, -found])
    both = both + np.angle(np.exp(1j * (given_C - both)).mean(-1, keepdims=True))
    errors = np.abs(np.angle(np.exp(1j * (both - given_C)))).mean(-1)
    mirrored = errors[1] < errors[0]
    return np.where(mirrored, errors[1], errors[0]), np.where(mirrored[..., None], both[1], both[0])


def _order_agreement(found_C: np.ndarray, given_C: np.ndarray) -> float:
    """Fraction of unordered triples that run the same way round, in the better reflection; triples of which two share
    a given angle run no way round and do not count."""
    triples = np.array(list(itertools.combinations(range(len(found_C)), 3))).T

    def turn(angle_C: np.ndarray) -> np.ndarray:
        """Sign of the area of the inscribed triangle: 1 counter-clockwise, -1 clockwise."""
        x, y, z = angle_C[triples]
        return np.sign(np.sin(y - x) + np.sin(z - y) + np.sin(x - z))

    found, given = turn(found_C), turn(given_C)
    found, given = found[given != 0], given[given != 0]
    return float(max((found == given).mean(), (found == -given).mean()))
