"""Weights of texts by how well their raters agree; the ratings of EmoBank and of the Facebook posts."""

from pathlib import Path

import numpy as np
import pandas as pd

from carl_hf.data.bad_rows import Number, any_text, check_table
from carl_hf.data.files import read_table

_LEAST_SIGNAL = 0.1
_PERSPECTIVES = ("reader", "writer")
_PUBLISHED = {"V": "valence", "A": "arousal", "stdV": "valence_sd", "stdA": "arousal_sd", "N": "raters"}


def agreement_weights(labels_NK: np.ndarray, deviations_NK: np.ndarray, raters_N: np.ndarray) -> np.ndarray:
    """Weights of texts, whose mean is 1, from mean, standard deviation and number of their ratings.

    The mean of n ratings of variance s^2 has an error of variance s^2 / n. The weight is the reliability of the label,
    t / (t + s^2 / n), where t is the variance of the true labels: up to a factor, the inverse of true variance plus
    rater variance over n. It is averaged over the dimensions that the text has.

    Three raters who agree may agree by chance. So s^2 is d^2 + p / n, where d is the deviation within the text and p
    the variance of ratings about their text's mean, pooled over the corpus: it counts as one more rating. t is the
    variance of the labels less the mean of s^2 / n, and at least a tenth of it.

    Args:
        labels_NK, deviations_NK: of K dimensions, in one unit; NaN where a text has none. A deviation is the root of
            the mean square (over n, not n - 1).
        raters_N: numbers of ratings, >= 1.

    Returns:
        (N,) weights > 0; 1 for a text without any deviation.
    """
    reliability_NK = np.full(labels_NK.shape, np.nan)
    for k, known_N in enumerate(~np.isnan(labels_NK + deviations_NK).T):
        labels, squares, n = labels_NK[known_N, k], deviations_NK[known_N, k] ** 2, raters_N[known_N]
        pooled = (n * squares).sum() / max((n - 1).sum(), 1)
        errors = (squares + pooled / n) / n
        if len(labels) and (variance := labels.var()) > 0:
            signal = max(variance - errors.mean(), _LEAST_SIGNAL * variance)
            reliability_NK[known_N, k] = signal / (signal + errors)
    known_NK = ~np.isnan(reliability_NK)
    count_N = known_NK.sum(1)
    weight_N = np.where(known_NK, reliability_NK, 0).sum(1) / np.maximum(count_N, 1)
    if count_N.any():
        weight_N /= weight_N[count_N > 0].mean()
    return np.where(count_N > 0, weight_N, 1.0)


def emobank_ratings(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """EmoBank, read from `path`, with number and deviations of its ratings: readers' and writers' together, about the
    mean of both. They are in reader.csv and writer.csv (id, V, A, D, stdV, stdA, stdD, N) beside `path`, as published,
    or joined in emobank_reader_writer.csv (V_reader, sdV_reader, N_reader, V_writer, ...)."""
    joined = path.with_name("emobank_reader_writer.csv")
    files = [joined if joined.is_file() else path.with_name(f"{who}.csv") for who in _PERSPECTIVES]
    if "id" not in frame or not all(file.is_file() for file in files):
        raise ValueError(
            f"The ratings of EmoBank are not beside {path}: put reader.csv and writer.csv there, as published in the "
            "folder corpus of github.com/JULIELab/EmoBank (--data_dir), or train without agreement_weights."
        )
    rules = {name: Number(0) for name in _PUBLISHED.values()} | {"raters": Number(1)}
    halves = []
    for who, file in zip(_PERSPECTIVES, files, strict=True):
        names = {f"{name.replace('std', 'sd')}_{who}": ours for name, ours in _PUBLISHED.items()}
        half = read_table(file).rename(columns=names if file == joined else _PUBLISHED)
        half = check_table(half, {"id": any_text, **rules}, file).drop_duplicates("id").set_index("id")
        if missing := set(frame["id"]) - set(half.index):
            raise ValueError(f"{file} has no ratings of {min(missing)}, which is in {path}: fetch both again.")
        halves.append(half.loc[frame["id"], list(rules)].reset_index(drop=True))
    raters, ratings = sum(half["raters"] for half in halves), {}
    for name in ("valence", "arousal"):
        mean = sum(half["raters"] * half[name] for half in halves) / raters
        squares = sum(half["raters"] * (half[f"{name}_sd"] ** 2 + (half[name] - mean) ** 2) for half in halves)
        ratings[f"{name}_sd"] = np.sqrt(squares / raters)
    return frame.assign(raters=raters, **ratings)


def facebook_ratings(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """The Facebook posts, each of which two raters rated, with the deviations of their ratings."""
    deviations = {f"{name}_sd": (frame[f"{name}1"] - frame[f"{name}2"]).abs() / 2 for name in ("valence", "arousal")}
    return frame.assign(raters=2.0, **deviations)
