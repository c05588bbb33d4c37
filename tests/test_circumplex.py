"""Order on a circle against loops, and angles made to fit."""

import itertools
import json
import math

import numpy as np
import pytest

from carl_hf.data.label_spaces import read_label_space
from carl_hf.evaluation.circumplex import circular_correlation, circular_order, radius_against_intensity

ANGLES = read_label_space("circle12").angles


def on_a_circle(degrees, *, turn=0.0, mirror=1, width=8, seed=0):
    """Unit vectors whose centroids lie on a circle in a random plane, at given angles."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(width, 3)))[0].T
    angles = mirror * np.radians(degrees) + turn
    return np.stack([np.cos(angles), np.sin(angles), np.full(len(angles), 0.8)], axis=1) @ axes


@pytest.mark.parametrize("turn, mirror", [(0.0, 1), (1.0, -1), (4.5, 1)])
def test_points_on_a_circle_keep_their_order_under_rotation_and_reflection(turn, mirror):
    names = list(ANGLES) * 3 + ["none of them"]
    degrees = [ANGLES.get(name, 77) for name in names]
    found = circular_order(on_a_circle(degrees, turn=turn, mirror=mirror), names, ANGLES, seed=0)
    assert found["angular_error"] == pytest.approx(0, abs=1e-6)
    assert found["order_agreement"] == 1 and found["plane_share"] == pytest.approx(1)
    assert found["circular_correlation"] == pytest.approx(1)  # without its sign
    assert set(found["angles"]) == set(ANGLES)
    for name, angle in found["angles"].items():
        assert 0 <= angle < 360
        assert math.cos(math.radians(angle - ANGLES[name])) == pytest.approx(1)
    assert 30 < found["chance_error"] < 90
    json.dumps(found, allow_nan=False)


def test_a_shuffled_order_and_uneven_angles_against_loops():
    names = list(ANGLES)
    rng = np.random.default_rng(4)
    degrees = rng.permutation([ANGLES[name] for name in names]) + rng.uniform(-14, 14, size=12)
    found = circular_order(on_a_circle(degrees), names, ANGLES, seed=0)
    assert found["angular_error"] > 30 and found["order_agreement"] < 0.8 and 0 < found["circular_correlation"] < 0.9

    def clockwise(x, y, z):
        return (y - x) % 360 < (z - x) % 360

    same = [
        clockwise(*(degrees[i] for i in triple)) == clockwise(*(ANGLES[names[i]] for i in triple))
        for triple in itertools.combinations(range(12), 3)
    ]
    assert found["order_agreement"] == pytest.approx(max(np.mean(same), 1 - np.mean(same)))

    rows = on_a_circle(degrees)
    plane = (rows - rows.mean(0)) @ np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:2].T
    errors = []
    for sign in (1, -1):
        differences = [
            ANGLES[n] - sign * math.degrees(math.atan2(y, x)) for n, (x, y) in zip(names, plane, strict=True)
        ]
        sines, cosines = (sum(f(math.radians(d)) for d in differences) for f in (math.sin, math.cos))
        rotation = math.degrees(math.atan2(sines, cosines))
        errors.append(np.mean([abs((d - rotation + 180) % 360 - 180) for d in differences]))
    assert found["angular_error"] == pytest.approx(min(errors))


def test_the_chance_error_is_the_error_of_permuted_labels():
    names = list(ANGLES)[:6]
    embeddings = on_a_circle([ANGLES[name] * 2 for name in names])
    found = circular_order(embeddings, names, ANGLES, seed=0)
    rng = np.random.default_rng(9)
    permuted = [circular_order(embeddings, rng.permutation(names), ANGLES, seed=0) for _ in range(300)]
    errors = [p["angular_error"] for p in permuted]
    standard_error = np.std(errors) * math.sqrt(1 / 200 + 1 / 300)
    assert abs(found["chance_error"] - np.mean(errors)) < 4 * standard_error
    assert circular_order(embeddings, names, ANGLES, seed=0) == found
    assert circular_order(embeddings, names, ANGLES, seed=1)["chance_error"] != found["chance_error"]


def test_circular_order_needs_four_angles_and_centroids_apart():
    names = ["joy", "anger", "fear", "neutral", "neutral"]
    few = circular_order(np.eye(5), names, ANGLES, seed=0)
    assert few["angular_error"] is None and "3 distinct angles" in few["angular_error_reason"]
    same = circular_order(np.ones((5, 3)), ["joy", "anger", "fear", "disgust", "love"], ANGLES, seed=0)
    assert same["angular_error"] is None and "coincide" in same["angular_error_reason"]


def test_circular_correlation_equals_a_loop_and_ignores_rotation():
    rng = np.random.default_rng(3)
    a, b = rng.uniform(0, 2 * math.pi, size=(2, 9))
    above = first = second = 0.0
    for i, j in itertools.combinations(range(9), 2):
        x, y = math.sin(a[i] - a[j]), math.sin(b[i] - b[j])
        above, first, second = above + x * y, first + x * x, second + y * y
    assert circular_correlation(a, b) == pytest.approx(above / math.sqrt(first * second))
    assert circular_correlation(a, a + 1.7) == pytest.approx(1)
    assert circular_correlation(a, 2 - a) == pytest.approx(-1)
    assert circular_correlation(a + 1, b - 2) == pytest.approx(circular_correlation(a, b))
    assert math.isnan(circular_correlation(np.zeros(4), a[:4]))


def test_radius_follows_intensity_where_it_does():
    rng = np.random.default_rng(4)
    va = rng.uniform(-1, 1, size=(200, 2))
    # a constant third coordinate keeps the distance from the centre when rows are scaled to length 1
    embeddings = np.column_stack([0.1 * va, np.ones(200)])
    assert radius_against_intensity(embeddings, va) > 0.95
    assert abs(radius_against_intensity(embeddings, rng.permutation(va))) < 0.25
    turned = embeddings @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert radius_against_intensity(turned, va) == pytest.approx(radius_against_intensity(embeddings, va))
