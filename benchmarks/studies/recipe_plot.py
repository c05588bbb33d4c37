"""Plot of the tested recipes: gain in affect against general meaning that is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

MARKERS = "osD^v<>PX*dph8"
PANELS = ("mean r of valence and arousal, EmoBank", "mean accuracy of the four transfer tasks, %")


def draw_tradeoff(path: Path, points: Mapping[str, Sequence[np.ndarray]], joined: Sequence[str]) -> None:
    """A panel for each of two gains, over Spearman's rho on the STS benchmark, and a legend; PNG or SVG by suffix.

    Args:
        points: recipe -> for every seed, (3,): rho, mean r of valence and arousal, mean accuracy of the transfer tasks
            (percent). Drawn are the means, with bars of one standard deviation.
        joined: recipes that a line joins, in this order: averages of one encoder with the plain one.
    """
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(1, 2)
    means = {name: np.mean(runs, axis=0) for name, runs in points.items()}
    others = [name for name in points if name not in joined]
    colours = {name: f"C{1 + place % 9}" for place, name in enumerate(others)}
    for number, (axis, title) in enumerate(zip(axes, PANELS, strict=True), start=1):
        axis.plot(*np.transpose([means[name][[0, number]] for name in joined]), "-", color="0.7", zorder=0)
        for place, (name, runs) in enumerate(points.items()):
            x, y = means[name][[0, number]]
            spread = np.std(runs, axis=0, ddof=1) if len(runs) > 1 else np.zeros(3)
            axis.errorbar(
                x, y, xerr=spread[0], yerr=spread[number], fmt=MARKERS[place % len(MARKERS)], capsize=2, label=name,
                color=colours.get(name, "#1b4f8a"),
            )  # fmt: skip
        axis.set(title=title, xlabel="what is kept of meaning: rho on the STS benchmark")
        axis.margins(0.1)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
