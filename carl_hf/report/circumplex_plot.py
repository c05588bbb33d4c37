"""Figures, drawn with matplotlib."""

import io
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
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 5.2), layout="constrained", squeeze=False)
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
        axis.set_title(title, parse_math=False, fontsize=13)
        axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        axis.set_xlabel("valence: unpleasant to pleasant", fontsize=12)
        axis.set_ylabel("arousal: calm to agitated", fontsize=12)
    if labels is not None:
        handles, texts = axes[0][0].get_legend_handles_labels()
        columns = min(len(texts), 3 * len(panels))
        figure.legend(
            handles, texts, loc="outside lower center", ncols=columns, frameon=False, markerscale=2, fontsize=12
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def circle_svg(points_N2: np.ndarray, references: Mapping[str, tuple[float, float]]) -> str:
    """Numbered texts on the circle of valence and arousal beside the names of emotions, as an SVG for a web page.

    Args:
        points_N2: (N, 2) valence and arousal in [-1, 1]; point i is the group with the id `text-<i + 1>`, and the
            circle the one with the id `circle`.
        references: name -> (valence, arousal); drawn as a dot, its name further out.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    figure = Figure(figsize=(4.4, 3.8), layout="constrained")
    axis = figure.add_subplot()
    axis.add_patch(Circle((0, 0), 1, fill=False, color="0.6", gid="circle"))
    axis.axhline(0, color="0.85", lw=0.8, zorder=0)
    axis.axvline(0, color="0.85", lw=0.8, zorder=0)
    for name, (valence, arousal) in references.items():
        axis.plot(valence, arousal, "o", color="0.45", markersize=4)
        side = "center" if abs(valence) < 0.1 else "left" if valence > 0 else "right"
        axis.text(1.1 * valence, 1.15 * arousal, name, ha=side, va="center", color="0.2", fontsize=11)
    for i, (valence, arousal) in enumerate(points_N2.tolist(), start=1):
        axis.plot(valence, arousal, "o", color="#1b4f8a", markersize=14, markeredgecolor="white", gid=f"text-{i}")
        axis.annotate(
            str(i), (valence, arousal), color="white", fontsize=9, ha="center", va="center_baseline", weight="bold"
        )
    axis.set(xlim=(-1.55, 1.55), ylim=(-1.25, 1.25), aspect="equal", xticks=[], yticks=[])
    axis.set_xlabel("valence: unpleasant to pleasant", fontsize=11)
    axis.set_ylabel("arousal: calm to agitated", fontsize=11)
    for spine in axis.spines.values():
        spine.set_visible(False)
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]
