"""What a text's nearest texts by cosine say of it: valence and arousal, emotion, and clusters of emotions.

Shape suffixes: Q queries, N texts in which the neighbours are looked for, H embedding width, K neighbours, S samples,
C classes.
"""

from typing import Any

import numpy as np

from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.splits import split_rows
from carl_hf.evaluation.geometry import unit_rows
from carl_hf.evaluation.statistics import interval, one_hot, resample_counts, resample_rows
from carl_hf.evaluation.tasks import Encode, Measured

NEIGHBOURS = 10
_CHUNK = 1024  # queries whose cosines are held at once


def nearest(queries_QH: np.ndarray, texts_NH: np.ndarray, count: int = NEIGHBOURS) -> np.ndarray:
    """(Q, K) rows of `texts_NH`, the nearest by cosine first; K is `count`, or N if there are fewer texts.

    Raises:
        ValueError: for an embedding row that is zero or not finite.
    """
    queries_QH, texts_NH = unit_rows(queries_QH), unit_rows(texts_NH)
    count, found = min(count, len(texts_NH)), []
    for start in range(0, len(queries_QH), _CHUNK):
        distance_QN = -queries_QH[start : start + _CHUNK] @ texts_NH.T
        rows_QK = np.argpartition(distance_QN, count - 1, axis=1)[:, :count]
        order_QK = np.take_along_axis(distance_QN, rows_QK, axis=1).argsort(axis=1, kind="stable")
        found.append(np.take_along_axis(rows_QK, order_QK, axis=1))
    return np.concatenate(found)


def knn_predictions(train_NH: np.ndarray, labels_ND: np.ndarray, queries_QH: np.ndarray) -> np.ndarray:
    """(Q, D) means of the labels of the ten nearest training texts; a ValueError unless each text has a label."""
    if len(labels_ND) != len(train_NH):
        raise ValueError(f"{len(train_NH)} texts have {len(labels_ND)} labels: give one for each.")
    return labels_ND[nearest(queries_QH, train_NH)].mean(1)


def retrieval(
    queries_QH: np.ndarray, classes_Q: np.ndarray, texts_NH: np.ndarray, classes_N: np.ndarray
) -> dict[str, np.ndarray]:
    """How well the ten nearest texts have a query's class, each query by itself.

    Returns:
        {"precision_at_10": (Q,) share of the ten that have it; "ndcg_at_10": (Q,) sum of 1 / log2(rank + 1) over those
        that have it, divided by the largest sum that the texts allow (0 where no text has the class)}.
    """
    relevant_QK = classes_N[nearest(queries_QH, texts_NH)] == classes_Q[:, None]
    gain_K = 1 / np.log2(np.arange(relevant_QK.shape[1]) + 2)
    ideal = np.concatenate([[0], np.cumsum(gain_K)])
    texts_of_class = np.bincount(classes_N, minlength=classes_Q.max() + 1)
    ideal_Q = ideal[np.minimum(texts_of_class[classes_Q], len(gain_K))]
    ndcg_Q = np.divide(relevant_QK @ gain_K, ideal_Q, out=np.zeros(len(ideal_Q)), where=ideal_Q > 0)
    return {"precision_at_10": relevant_QK.mean(1), "ndcg_at_10": ndcg_Q}


def v_measure(counts_SCC: np.ndarray) -> np.ndarray:
    """(S,) harmonic means of homogeneity and completeness (Rosenberg and Hirschberg 2007) of tables that count the
    texts of each class (rows) in each cluster (columns): 1 if they are the same, 0 if they know nothing of each other
    and the texts are many; of few texts it is far above 0 by chance.
    """

    def entropy(counts: np.ndarray) -> np.ndarray:
        share = counts / counts.sum(-1, keepdims=True)
        return -(share * np.log(share, out=np.zeros_like(share), where=share > 0)).sum(-1)

    by_class_S, by_cluster_S = entropy(counts_SCC.sum(2)), entropy(counts_SCC.sum(1))
    both_S = by_class_S + by_cluster_S
    mutual_S = both_S - entropy(counts_SCC.reshape(len(counts_SCC), -1))
    return np.divide(2 * mutual_S, both_S, out=np.ones(len(both_S)), where=both_S > 0)


def cluster_agreement(embeddings_NH: np.ndarray, classes_N: np.ndarray, number: int, *, seed: int) -> dict[str, Any]:
    """V-measure of the classes and `number` k-means clusters of the embeddings at length 1 (the best of ten starts).

    Returns:
        {"v_measure", "v_measure_interval": over texts, the clusters as they are; moved to lie about the value, because
        repeated texts make it larger; "v_measure_chance": the mean over 100 permutations of the classes}.
    """
    from sklearn.cluster import KMeans

    clusters_N = KMeans(number, n_init=10, random_state=seed).fit_predict(unit_rows(embeddings_NH))
    random = np.random.default_rng(seed)
    permuted_SN = np.array([random.permutation(classes_N) for _ in range(100)]) * number + clusters_N
    chance_SC = np.array([np.bincount(cells_N, minlength=number * number) for cells_N in permuted_SN])
    cells_NC = one_hot(classes_N * number + clusters_N, number * number)
    counts_SN = np.vstack([np.ones((1, len(classes_N))), resample_counts(len(classes_N), seed)])
    values_S = v_measure((counts_SN @ cells_NC).reshape(-1, number, number))
    moved_S = values_S[1:] - values_S[1:].mean() + values_S[0]
    chance = float(v_measure(chance_SC.reshape(-1, number, number)).mean())
    return {"v_measure": float(values_S[0]), "v_measure_interval": interval(moved_S), "v_measure_chance": chance}


def mean_metrics(items: dict[str, np.ndarray], *, seed: int) -> dict[str, Any]:
    """The mean of each array over its items, and "<name>_interval" (95 %, bootstrap over the items)."""
    result: dict[str, Any] = {}
    for name, values_N in items.items():
        resampled = values_N[resample_rows(len(values_N), seed)].mean(1)
        result |= {name: float(values_N.mean()), f"{name}_interval": interval(resampled)}
    return result


def measure_retrieval(encode: Encode, corpus: ClassCorpus, *, seed: int) -> Measured:
    """[`retrieval`] of the test texts among the training texts, and [`cluster_agreement`] of the test texts. Of a
    corpus whose texts may have several classes, the texts that have one."""
    parts = split_rows(corpus)
    (train, known), (rows, classes) = (_single_class(corpus, part) for part in (parts[0], parts[2]))
    vectors = encode([corpus.texts[i] for i in np.concatenate([train, rows])])
    items = retrieval(vectors[len(train) :], classes, vectors[: len(train)], known)
    shares = (np.bincount(values, minlength=len(corpus.classes)) / len(values) for values in (known, classes))
    metrics = mean_metrics(items, seed=seed) | {"chance": float(np.multiply(*shares).sum()), "texts": len(rows)}
    return metrics | cluster_agreement(vectors[len(train) :], classes, len(corpus.classes), seed=seed), items


def _single_class(corpus: ClassCorpus, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose text has one class, and the classes."""
    if not corpus.multi_label:
        return rows, corpus.labels[rows]
    rows = rows[corpus.labels[rows].sum(1) == 1]
    return rows, corpus.labels[rows].argmax(1)
