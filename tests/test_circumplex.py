"""Order on a circle against loops, and angles made to fit."""

import itertools
import json
import math

import numpy as np
import pytest

from carl_hf.evaluation.circumplex import circular_order
from carl_hf.label_spaces import read_label_space

ANGLES = read_label_space("circle12").angles


def on_a_circle(degrees, *, turn=0.0, mirror=1, width=8, seed=0):
    """Unit vectors whose centroids lie on a circle in a random plane, at given angles."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(width, 3)))[0].T
    angles = mirror * np.radians(degrees) + turn
    return np.stack([np.cos(angles), np.sin(angles), np.full(len(angles), 0.8)], axis=1) @ axes


@pytest.mark.parametrize("turn", [0.0, 1.0, 4.5])
@pytest.mark.parametrize("mirror", [1, -1])
def test_points_on_a_circle_keep_their_order_under_rotation_and_reflection(turn, mirror):
    names = list(ANGLES) * 3 + ["none of them"]
    degrees = [ANGLES.get(name, 77) for name in names]
    found = circular_order(on_a_circle(degrees, turn=turn, mirror=mirror), names, ANGLES, seed=0)
    assert found["angular_error"] == pytest.approx(0, abs=1e-6)
    assert found["order_agreement"] == 1
    assert found["plane_share"] == pytest.approx(1)
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
    assert found["angular_error"] > 30 and found["order_agreement"] < 0.8

    def clockwise(x, y, z):
        return (y - x) % 360 < (z - x) % 360

    same = [
        clockwise(*(degrees[i] for i in triple)) == clockwise(*(ANGLES[names[i]] for i in triple))
        for triple in itertools.combinations(range(12), 3)
    ]
    assert found["order_agreement"] == pytest.approx(max(np.mean(same), 1 - np.mean(same)))

    plane = principal_plane(on_a_circle(degrees))
    errors = []
    for sign in (1, -1):
        differences = [
            ANGLES[n] - sign * math.degrees(math.atan2(y, x)) for n, (x, y) in zip(names, plane, strict=True)
        ]
        sines = sum(math.sin(math.radians(d)) for d in differences)
        cosines = sum(math.cos(math.radians(d)) for d in differences)
        rotation = math.degrees(math.atan2(sines, cosines))
        errors.append(np.mean([abs((d - rotation + 180) % 360 - 180) for d in differences]))
    assert found["angular_error"] == pytest.approx(min(errors))


def principal_plane(rows):
    centred = rows - rows.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T


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


def test_the_angles_of_the_twelve_labels():
    assert list(ANGLES.values()) == list(range(0, 360, 30))
    assert [ANGLES[name] for name in ("love", "surprise", "disgust", "calmness")] == [0, 90, 180, 270]
