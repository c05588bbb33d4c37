"""Figures, drawn with matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

COLOURS = {
    "anger": "#d62728", "disgust": "#8c6d31", "fear": "#7b4173", "joy": "#e6a700", "sadness": "#3f6fb5",
    "surprise": "#2ca089", "neutral": "#8a8a8a",
}  # fmt: skip


def plot_circumplex(
    path: Path, panels: Mapping[str, np.ndarray], truth: np.ndarray, labels: Sequence[str] | None = None
) -> None:
    """Texts on the valence-arousal plane, a panel for the labels and one for each set of predictions; PNG or SVG by
    suffix.

    Args:
        path: file to write. panels: title -> (N, 2) predicted valence and arousal. truth: (N, 2) labels in [-1, 1].
        labels: an emotion name for each text, drawn as colour; one that is not text is drawn as "unlabelled".
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = {"labels": truth, **panels}
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4.6), layout="constrained", squeeze=False)
    if labels is not None:
        labels = [label if isinstance(label, str) and label else "unlabelled" for label in labels]
    names = sorted(set(labels)) if labels is not None else [None]
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.8"))
        axis.axhline(0, color="0.85", lw=0.8, zorder=0)
        axis.axvline(0, color="0.85", lw=0.8, zorder=0)
        for name in names:
            chosen = np.array([label == name for label in labels]) if labels is not None else slice(None)
            axis.scatter(*points[chosen].T, s=11, alpha=0.75, lw=0, color=COLOURS.get(name), label=name)
        axis.set_title(title, parse_math=False)
        axis.set(xlabel="valence", ylabel="arousal", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    if labels is not None:
        handles, texts = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=len(texts), frameon=False, markerscale=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
