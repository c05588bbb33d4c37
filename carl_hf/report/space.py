"""What the report shows of the task `space`: its tables, and what they mean."""

from collections.abc import Mapping
from typing import Any

TABLES: tuple[tuple[str, str, dict[str, str], str], ...] = (
    (
        "Feeling over topic",
        "margin",
        {"in order, %": "accuracy", "mean margin": "margin"},
        "Share of triplets in which a text is nearer, by cosine, to one of the same feeling on another topic than to "
        "one of the opposite feeling on the same topic; the margin is the difference of the two cosines. An encoder "
        "that goes by topic gets near 0, one that goes by feeling near 100. Emoji pairs: share of pairs, alike but "
        "for their emoji, that a ridge probe puts in the right order. Ties fail.",
    ),
    (
        "Label nearness and nearest neighbours",
        "nearness",
        {"ρ": "nearness.both", "ρ V": "nearness.valence", "ρ A": "nearness.arousal", "k-NN V r": "knn.valence.pearson",
         "k-NN V CCC": "knn.valence.ccc", "k-NN A r": "knn.arousal.pearson", "k-NN A CCC": "knn.arousal.ccc"},
        "ρ: rank correlation, over all pairs of texts, of their cosine with the nearness of their labels, on the "
        "plane of valence and arousal and in each of the two. k-NN: a text's valence and arousal as the mean of its "
        "ten nearest training texts.",
    ),
    (
        "Neighbours and clusters of emotions",
        "precision_at_10",
        {"p@10": "precision_at_10", "nDCG@10": "ndcg_at_10", "p@10 by chance": "chance", "V-measure": "v_measure",
         "V by chance": "v_measure_chance"},
        "p@10: share of a text's ten nearest training texts that have its emotion; nDCG@10 counts the nearer ones "
        "more. V-measure: agreement of the emotions and as many k-means clusters, 0 to 1; by chance: of "
        "permuted emotions.",
    ),
    (
        "Sentiment-guided textual similarity",
        "spearman",
        {"SgTS": "spearman"},
        "Rank correlation of the cosine of two texts with 1 for one polarity, 0 for another (SentiCSE, arXiv "
        "2404.01104), on pairs drawn as its authors draw them.",
    ),
)  # fmt: skip
"""Title, the metric that a corpus has if it stands in the table, columns (title -> metric), explanation."""


def corpora_with(models: Mapping[str, Mapping[str, Any]], metric: str) -> list[str]:
    """The corpora of the task for which a model has the metric."""
    found = (item for tree in models.values() for item in (tree.get("space") or {}).items())
    return list(dict.fromkeys(corpus for corpus, metrics in found if metric in metrics))
