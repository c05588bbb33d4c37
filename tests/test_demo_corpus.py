"""The bundled corpus keeps what its data sheet says."""

import collections
import csv
import importlib.resources
import re

import pytest

from carl_hf import load_va_dataset

LABELS = {"anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral"}


@pytest.fixture(scope="module")
def rows():
    text = (importlib.resources.files("carl_hf.data.resources") / "demo.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def words(text):
    return re.findall(r"[a-z']+", text.lower())


def test_size_splits_and_labels(rows):
    splits = collections.Counter(row["split"] for row in rows)
    assert len(rows) >= 1200 and splits["test"] >= 200 and set(splits) == {"train", "validation", "test"}
    for split in splits:
        assert {row["label"] for row in rows if row["split"] == split} == LABELS
    assert len({row["genre"] for row in rows}) >= 10
    assert all(3 <= len(row["text"].split()) <= 60 for row in rows)


def test_the_whole_plane_is_covered(rows):
    grid = collections.Counter(
        tuple(min(3, int(2 * (float(row[k]) + 1))) for k in ("valence", "arousal")) for row in rows
    )
    assert len(grid) == 16 and min(grid.values()) >= 15
    valence, arousal = ([float(row[k]) for row in rows] for k in ("valence", "arousal"))

    def moment(a, b):
        mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
        return sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))

    # one cannot be read from the other
    assert abs(moment(valence, arousal)) < 0.1 * (moment(valence, valence) * moment(arousal, arousal)) ** 0.5


def test_no_two_texts_are_alike(rows):
    sets = [set(words(row["text"])) for row in rows]
    holders = collections.defaultdict(set)
    for i, found in enumerate(sets):
        for word in found:
            holders[word].add(i)
    rare = {word: ids for word, ids in holders.items() if len(ids) <= 60}
    for i, found in enumerate(sets):
        candidates = {j for word in found & rare.keys() for j in rare[word] if j < i}
        for j in candidates:
            assert len(found & sets[j]) / len(found | sets[j]) < 0.4, (rows[i]["text"], rows[j]["text"])
    openers = collections.Counter(" ".join(words(row["text"])[:3]) for row in rows)
    assert openers.most_common(1)[0][1] <= 0.005 * len(rows)  # no frame that many sentences share


def test_it_loads_by_name(rows):
    parts = {split: load_va_dataset("demo", split=split) for split in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == len(rows)
    assert all(-1 <= v <= 1 for part in parts.values() for c in ("valence", "arousal") for v in part[c])
    assert set(parts["test"]["label"]) == LABELS
