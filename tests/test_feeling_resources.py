"""The texts written to test whether embeddings follow feeling rather than topic."""

import pandas as pd
import pytest

from carl_hf import load_va_dataset
from carl_hf.data.feeling import read_emoji_pairs, read_feeling_triplets

SPLITS = ("validation", "test")
EMOTIONS = ("joy", "sadness", "anger", "fear", "disgust", "surprise")
KINDS = {"valence": 60, "arousal": 40, "negation": 24, "emoji": 24} | dict.fromkeys(EMOTIONS, 12)
TEXTS = ["anchor", "same_feeling", "opposite_feeling"]


@pytest.fixture(scope="module")
def triplets():
    return pd.concat([read_feeling_triplets(split) for split in SPLITS])


@pytest.fixture(scope="module")
def pairs():
    return pd.concat([read_emoji_pairs(split) for split in SPLITS])


def test_the_splits_have_the_counts_of_the_data_sheet(triplets, pairs):
    assert list(triplets) == ["id", "split", "kind", *TEXTS]
    assert list(pairs) == ["id", "split", "dimension", "higher", "lower"]
    for split in SPLITS:
        assert triplets[triplets["split"] == split]["kind"].value_counts().to_dict() == KINDS
        assert pairs[pairs["split"] == split]["dimension"].value_counts().to_dict() == {"valence": 45, "arousal": 15}
    assert set(triplets["split"]) == set(pairs["split"]) == set(SPLITS)
    assert triplets["id"].is_unique and pairs["id"].is_unique


def test_no_text_stands_twice_or_in_the_demo_corpus(triplets, pairs):
    texts = [
        text for table, names in ((triplets, TEXTS), (pairs, ["higher", "lower"])) for n in names for text in table[n]
    ]
    assert len({" ".join(text.lower().split()) for text in texts}) == len(texts) and all(map(str.strip, texts))
    demo = {text for split in ("train", "validation", "test") for text in load_va_dataset("demo", split=split)["text"]}
    assert not demo & set(texts)


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="validation and test, not 'train'"):
        read_emoji_pairs("train")
