"""The task `space`: what an embedding is worth by cosine, with no probe fitted on it. Does a text lie nearer to the
same feeling than to the same topic, the nearer the closer its label, and do its neighbours tell its feeling?

Shape suffixes: N texts, triplets or pairs, H embedding width, D valence and arousal, R resamples.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from carl_hf.data.feeling import read_emoji_pairs
from carl_hf.data.labelled import ClassCorpus, VaCorpus
from carl_hf.data.splits import split_rows
from carl_hf.evaluation.geometry import unit_rows
from carl_hf.evaluation.neighbours import knn_predictions, mean_metrics, measure_retrieval
from carl_hf.evaluation.semantics import measure_sts
from carl_hf.evaluation.statistics import correlation_gain, defined, interval, spearman
from carl_hf.evaluation.tasks import Corpora, Encode, Measured
from carl_hf.evaluation.valence_arousal import DIMENSIONS, ridge_predictions, seeded_folds, va_gain, va_metrics

FEELING, EMOJI = "feeling-over-topic", "emoji-pairs"
TIE = 1e-5  # differences up to it are ties: what float32 leaves between embeddings of the same tokens in two batches
_RESAMPLES, _SUBSET = 200, 200  # of the intervals of label nearness
_MOST = 3000  # texts whose pairs are compared: 1 GB
_NEARNESS = (*DIMENSIONS, "both")


def measure_space(encode: Encode, corpora: Corpora, *, seed: int) -> Iterator[tuple[str, Measured]]:
    """The test parts of all corpora of the task; a corpus with ratings and classes has both metrics under its name."""
    if corpora.triplets is not None:
        yield FEELING, measure_feeling(encode, corpora.triplets, seed=seed)
    for corpus in corpora.space_probe.values():
        yield EMOJI, measure_emoji_pairs(encode, read_emoji_pairs("test"), corpus, seed=seed)
    for name in {**corpora.space_va, **corpora.space_emotion}:
        metrics, items = {}, {}
        for measure, found in ((measure_nearness, corpora.space_va), (measure_retrieval, corpora.space_emotion)):
            if name in found:
                more, arrays = measure(encode, found[name], seed=seed)
                metrics, items = {**metrics, **more}, {**items, **arrays}
        yield name, (metrics, items)
    for name, corpus in corpora.space_polarity.items():
        yield name, measure_sts(encode, sgts_pairs(corpus, seed=seed), seed=seed)


def measure_feeling(encode: Encode, triplets: pd.DataFrame, *, seed: int) -> Measured:
    """Whether feeling counts for more than topic: the share of triplets whose anchor is nearer, by cosine, to a text
    of the same feeling on another topic than to one of the opposite feeling on the same topic; a tie (`TIE`) fails.

    Args:
        triplets: as [`carl_hf.data.feeling.read_feeling_triplets`] gives them. seed: of the bootstrap over triplets.

    Returns:
        {"accuracy": the share in percent, "margin": mean of cos(anchor, same) - cos(anchor, opposite), each with
        "<metric>_interval"; "kinds": {kind: {"accuracy", "margin", "texts"}}; "texts": number of triplets}; and
        accuracy (0 or 100) and margin of each triplet.
    """
    names = ("anchor", "same_feeling", "opposite_feeling")
    anchors, same, opposite = _encoded(encode, [triplets[name].tolist() for name in names])
    margin_N = (unit_rows(anchors) * (unit_rows(same) - unit_rows(opposite))).sum(1)
    return _in_order(margin_N, triplets["kind"], seed=seed)


def measure_emoji_pairs(encode: Encode, pairs: pd.DataFrame, corpus: VaCorpus, *, seed: int) -> Measured:
    """The share of pairs of texts, alike but for their emoji, that a ridge probe puts in the right order of valence or
    arousal; a tie fails.

    Args:
        pairs: as [`carl_hf.data.feeling.read_emoji_pairs`] gives them. corpus: has splits; the probe is fitted on its
            training texts, its strength chosen on the validation texts.

    Returns:
        as [`measure_feeling`]; the margin is the difference of the predictions, the kinds are the dimensions.
    """
    fitted = [corpus.rows(name) for name in ("train", "validation")]
    texts = [[corpus.texts[i] for i in rows] for rows in fitted]
    train, dev, higher, lower = _encoded(encode, [*texts, pairs["higher"].tolist(), pairs["lower"].tolist()])
    labels = [corpus.labels[rows, :2] for rows in fitted]
    predictions = ridge_predictions(train, labels[0], dev, labels[1], np.concatenate([higher, lower]))
    margin_ND = predictions[: len(pairs)] - predictions[len(pairs) :]
    dimension_N = [DIMENSIONS.index(name) for name in pairs["dimension"]]
    return _in_order(margin_ND[np.arange(len(pairs)), dimension_N], pairs["dimension"], seed=seed)


def _in_order(margin_N: np.ndarray, kinds: pd.Series, *, seed: int) -> Measured:
    items = {"accuracy": 100.0 * (margin_N > TIE), "margin": margin_N}
    by_kind = {
        kind: {name: float(values[rows].mean()) for name, values in items.items()} | {"texts": len(rows)}
        for kind, rows in kinds.reset_index(drop=True).groupby(kinds.to_numpy(), sort=False).groups.items()
    }
    return mean_metrics(items, seed=seed) | {"kinds": by_kind, "texts": len(margin_N)}, items


def label_nearness(embeddings_NH: np.ndarray, labels_ND: np.ndarray) -> dict[str, float]:
    """Spearman rank correlation, over all pairs of texts, of the cosine of their embeddings with minus the distance of
    their labels: does the whole space lie in the order of feelings?

    Args:
        embeddings_NH: any scale. labels_ND: valence and arousal.

    Returns:
        {"valence", "arousal": by the difference in one of them; "both": by the Euclidean distance}; NaN where cosines
        or distances are constant.

    Raises:
        ValueError: for an embedding row that is zero or not finite, and unless each text has a label.
    """
    if len(labels_ND) != len(embeddings_NH):
        raise ValueError(f"{len(embeddings_NH)} texts have {len(labels_ND)} labels: give one for each.")
    return dict(zip(_NEARNESS, _nearness(unit_rows(embeddings_NH), labels_ND).tolist(), strict=True))


def _nearness(unit_NH: np.ndarray, labels_ND: np.ndarray, rows_N: np.ndarray | None = None) -> np.ndarray:
    """(3,) rank correlations in the order of `_NEARNESS`. Pairs of one text with itself, by `rows_N`, do not count."""
    left, right = np.triu_indices(len(unit_NH), 1)
    if rows_N is not None:
        others = rows_N[left] != rows_N[right]
        left, right = left[others], right[others]
    if len(left) == 0:
        return np.full(len(_NEARNESS), np.nan)
    # to 7 and 9 decimals: what rounding leaves between equal values must not rank the pairs
    cosines = (unit_NH @ unit_NH.T)[left, right].round(7)
    apart = np.abs(labels_ND[left] - labels_ND[right]).T
    return spearman(cosines, -np.vstack([apart, np.hypot(*apart)]).round(9))


def _nearness_deviations(unit_NH: np.ndarray, labels_ND: np.ndarray, seed: int) -> np.ndarray:
    """(R, 3) deviations from their mean of the correlations in 200 bootstrap samples of at most 200 texts, scaled to
    the whole number: an error falls with the square root of the number of texts (m out of n bootstrap)."""
    size = min(len(unit_NH), _SUBSET)
    rows_RN = np.random.default_rng(seed).integers(len(unit_NH), size=(_RESAMPLES, size))
    values_R3 = np.array([_nearness(unit_NH[rows], labels_ND[rows], rows) for rows in rows_RN])
    values_R3 = np.ma.masked_invalid(values_R3)  # samples of one text alone
    return ((values_R3 - values_R3.mean(0)) * np.sqrt(size / len(unit_NH))).filled(np.nan)


def measure_nearness(encode: Encode, corpus: VaCorpus, *, seed: int) -> Measured:
    """[`label_nearness`] of the test texts, and their valence and arousal as the mean of the ten nearest training
    texts. A corpus without splits is measured whole, its neighbours from the training part of each fold of
    [`carl_hf.evaluation.valence_arousal.measure_corpus`].

    Returns:
        as [`nearness_report`].
    """
    labels = corpus.labels[:, :2]
    if corpus.split is None:
        rows, folds = np.arange(len(labels)), [fold[::2] for fold in seeded_folds(len(labels), seed)]
    else:
        rows = corpus.rows("test")
        folds = [(corpus.rows("train"), rows)]
    embeddings = encode(corpus.texts)
    predictions = np.empty_like(labels)
    for train, queries in folds:
        predictions[queries] = knn_predictions(embeddings[train], labels[train], embeddings[queries])
    constant = labels[folds[0][0]].mean(0)
    return nearness_report(embeddings[rows], labels[rows], predictions[rows], constant=constant, seed=seed)


def nearness_report(
    embeddings_NH: np.ndarray, labels_ND: np.ndarray, predictions_ND: np.ndarray, *, constant: np.ndarray, seed: int
) -> Measured:
    """[`label_nearness`] of texts, a random 3,000 where there are more, and the metrics of what their neighbours say.

    Args:
        predictions_ND: as [`carl_hf.evaluation.neighbours.knn_predictions`]. constant: see `va_metrics`.

    Returns:
        {"nearness": {"valence", "arousal", "both", each with "<name>_interval"}, "knn": {"valence", "arousal": as
        [`carl_hf.evaluation.valence_arousal.va_metrics`]}, "texts"}; and predictions, labels and resampled nearness.
    """
    compared = np.arange(len(labels_ND))
    if len(compared) > _MOST:
        compared = np.random.default_rng(seed).permutation(compared)[:_MOST]
    unit_NH, compared_ND = unit_rows(embeddings_NH[compared]), labels_ND[compared]
    rho_3, deviations_R3 = _nearness(unit_NH, compared_ND), _nearness_deviations(unit_NH, compared_ND, seed)
    knn = va_metrics(predictions_ND, labels_ND, constant=constant, seed=seed)
    metrics = {"nearness": _nearness_metrics(rho_3, deviations_R3, "cosines or distances"),
               "knn": {name: knn[name] for name in DIMENSIONS}, "texts": len(labels_ND)}  # fmt: skip
    nearness = np.vstack([rho_3, rho_3 + deviations_R3])
    return metrics, {"knn": predictions_ND, "labels": labels_ND, "nearness": nearness}


def _nearness_metrics(rho_3: np.ndarray, deviations_R3: np.ndarray, constant: str) -> dict[str, Any]:
    metrics = defined(dict(zip(_NEARNESS, rho_3.tolist(), strict=True)), [constant])
    bounds = (
        interval((rho + deviations_R).clip(-1, 1)) for rho, deviations_R in zip(rho_3, deviations_R3.T, strict=True)
    )
    return metrics | dict(zip((f"{name}_interval" for name in _NEARNESS), bounds, strict=True))


def sgts_pairs(corpus: ClassCorpus, *, seed: int) -> tuple[list[str], list[str], np.ndarray]:
    """Pairs for sentiment-guided textual similarity (SgTS; SentiCSE, arXiv 2404.01104): Spearman rank correlation of
    cosine with 1 for a pair of one polarity and 0 for another. Drawn as its authors draw them (utils/ in
    github.com/nayohan/SentiCSE): no text twice; of each class a quarter as many pairs as the smallest class has texts,
    then of each two classes as many pairs as the smallest class has texts left for.

    Args:
        corpus: its test split is drawn from; all texts where it has no splits. seed: of the draw.

    Returns:
        first texts, second texts, (N,) 1 or 0.
    """
    rows = np.arange(len(corpus.texts)) if corpus.split is None else split_rows(corpus)[2]
    rows = np.random.default_rng(seed).permutation(rows)
    stacks = [rows[corpus.labels[rows] == c].tolist() for c in range(len(corpus.classes))]
    smallest = min(map(len, stacks))
    same = [(stack.pop(), stack.pop()) for stack in stacks for _ in range(smallest // 4)]
    left = min(map(len, stacks)) // (len(stacks) - 1)  # every class stands in that many combinations
    two_classes = [(one, other) for i, one in enumerate(stacks) for other in stacks[i + 1 :]]
    other = [(one.pop(), two.pop()) for one, two in two_classes for _ in range(left)]
    first, second = zip(*same, *other, strict=True)
    score_N = np.repeat([1.0, 0.0], [len(same), len(other)])
    return [corpus.texts[i] for i in first], [corpus.texts[i] for i in second], score_N


def space_gain(one: dict[str, np.ndarray], two: dict[str, np.ndarray], *, seed: int) -> dict[str, Any]:
    """Differences two - one of a corpus's metrics with their intervals, by the paired bootstrap; label nearness by the
    same samples of texts for both.

    Args:
        one, two: arrays by item as the functions of this module and [`measure_retrieval`] return them.
    """
    gain: dict[str, Any] = {}
    if "references" in one:
        return correlation_gain(
            "spearman", one["predictions"], two["predictions"], one["references"], seed=seed,
            constant="cosines of one model",
        )  # fmt: skip
    for name in one:
        if name == "knn":
            gain[name] = va_gain(one[name], two[name], one["labels"], seed=seed)
        elif name == "nearness":
            rho_3, *deviations_R3 = two[name] - one[name]
            gain[name] = _nearness_metrics(rho_3, np.array(deviations_R3) - rho_3, "cosines of one model")
        elif name != "labels":
            gain |= mean_metrics({name: two[name] - one[name]}, seed=seed)
    return gain


def _encoded(encode: Encode, parts: list[list[str]]) -> list[np.ndarray]:
    """The embeddings of each part, all encoded by one call, each text once."""
    texts = list(dict.fromkeys(text for part in parts for text in part))
    row, vectors = {text: i for i, text in enumerate(texts)}, np.asarray(encode(texts))
    return [vectors[[row[text] for text in part]] for part in parts]
