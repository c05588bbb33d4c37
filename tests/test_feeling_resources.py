"""The texts written to test whether embeddings follow feeling rather than topic."""

import re

import pandas as pd
import pytest

from carl_hf import load_va_dataset
from carl_hf.data.feeling import read_emoji_pairs, read_feeling_triplets

SPLITS = ("validation", "test")
EMOTIONS = ("joy", "sadness", "anger", "fear", "disgust", "surprise")
KINDS = {"valence": 60, "arousal": 40, "negation": 24, "emoji": 24} | dict.fromkeys(EMOTIONS, 12)
TEXTS = ["anchor", "same_feeling", "opposite_feeling"]
STOP_WORDS = set(
    """a about after again all am an and another any are as at back be been before but by can can't could did do does
    down each even every ever few for from get got had has have he her him himself his how i i'd i'll i'm i've if in
    into is isn't it it's its just like many may me might more most much must my never no nobody not nothing now of off
    on one only or other our out over own same she should so some still than that the their them then there they this
    those through to too two under until up us very was we we're were what when where which while who whom will with
    without won't would you your""".split()
)


@pytest.fixture(scope="module")
def triplets():
    return pd.concat([read_feeling_triplets(split) for split in SPLITS])


@pytest.fixture(scope="module")
def pairs():
    return pd.concat([read_emoji_pairs(split) for split in SPLITS])


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower()))


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


def test_the_same_feeling_has_other_words_and_the_opposite_the_same_words(triplets):
    for anchor, same in zip(triplets["anchor"], triplets["same_feeling"], strict=True):
        assert len((words(anchor) & words(same)) - STOP_WORDS) <= 1, (anchor, same)
    wordy = triplets[triplets["kind"] != "emoji"]
    overlap = [
        len(words(anchor) & words(opposite)) / len(words(anchor) | words(opposite))
        for anchor, opposite in zip(wordy["anchor"], wordy["opposite_feeling"], strict=True)
    ]
    assert sum(overlap) / len(overlap) >= 0.4 and min(overlap) >= 0.2


def test_emoji_alone_make_the_difference(triplets, pairs):
    emoji = triplets[triplets["kind"] == "emoji"]
    both = [*zip(pairs["higher"], pairs["lower"], strict=True)]
    both += zip(emoji["anchor"], emoji["opposite_feeling"], strict=True)
    for first, second in both:  # emoticons such as :D and D: have a letter
        first, second = (re.sub(r"(:D|D:)$", "", text) for text in (first, second))
        assert re.findall(r"\w+", first) == re.findall(r"\w+", second)
    symbols = {
        character for text in [*pairs["higher"], *pairs["lower"]] for character in text if ord(character) > 0x2600
    }
    assert len(symbols) >= 90


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="validation and test, not 'train'"):
        read_emoji_pairs("train")
