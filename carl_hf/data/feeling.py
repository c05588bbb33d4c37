"""The test of whether embeddings follow feeling rather than topic: carl_hf/data/resources/FEELING_OVER_TOPIC.md."""

from pathlib import Path
from typing import Literal

import pandas as pd

FeelingSplit = Literal["validation", "test"]
_RESOURCES = Path(__file__).with_name("resources")


def read_feeling_triplets(split: FeelingSplit) -> pd.DataFrame:
    """Triplets of texts. An encoder passes one if cosine(anchor, same_feeling) > cosine(anchor, opposite_feeling).

    Args:
        split: `"validation"`, for the choice of recipes, or `"test"`.

    Returns:
        220 rows with `id`, `split`, `kind` (valence, arousal, joy, sadness, anger, fear, disgust, surprise, negation,
        emoji) and the three texts: `same_feeling` is on another topic than `anchor`, `opposite_feeling` on the same.

    Raises:
        ValueError: for another split.
    """
    return _read("feeling_over_topic.csv", split)


def read_emoji_pairs(split: FeelingSplit) -> pd.DataFrame:
    """Pairs of texts that have the same words and other emoji.

    Args:
        split: as in [`read_feeling_triplets`].

    Returns:
        60 rows with `id`, `split`, `dimension` (valence or arousal) and two texts, `higher` and `lower` in it.

    Raises:
        ValueError: for another split.
    """
    return _read("emoji_pairs.csv", split)


def _read(name: str, split: str) -> pd.DataFrame:
    table = pd.read_csv(_RESOURCES / name, keep_default_na=False)
    if split not in set(table["split"]):
        raise ValueError(f"{name} has the splits validation and test, not {split!r}.")
    return table[table["split"] == split].reset_index(drop=True)
