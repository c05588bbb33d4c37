"""Plots of an evaluation, drawn with matplotlib, which is imported only then.

Each function writes its `path`, a .png, and beside it an SVG of the same stem. Equal results make equal files. Names
of models and metrics are shown as given: "$" and "_" have no special meaning in them.
"""

import itertools
import math
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from carl_hf.evaluation.geometry import principal_axes, unit_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLOURS = {
    "anger": "#d62728", "disgust": "#8c6d31", "fear": "#7b4173", "joy": "#e6a700", "sadness": "#3f6fb5",
    "surprise": "#2ca089", "neutral": "#8a8a8a", "unlabelled": "#1f77b4",
}  # fmt: skip
# two palettes for colour-blind readers: Okabe and Ito 2008 (yellow left out, black made grey), and Paul Tol's "muted"
# without what is close to one of COLOURS
_MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080")
_MODEL_MARKERS = "os^DvPX*"
_HATCHES = ("", "////", "....", "xxxx")
_LABEL_COLOURS = ("#332288", "#88CCEE", "#117733", "#CC6677", "#000000", "#999933", "#DDCC77")
_LABEL_MARKERS = "^sDvPX"
# beside the user's, for scripts that it lacks; those of Linux, macOS and Windows
_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "IPAexGothic", "WenQuanYi Zen Hei", "Noto Sans Devanagari",
    "Hiragino Sans", "PingFang SC", "Arial Unicode MS", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "Nirmala UI",
)  # fmt: skip
_MOST_COUNTED = 15  # number of classes up to which the cells of a confusion matrix have room for a count
_DPI = 150


def display_names(names: Sequence[str]) -> dict[str, str]:
    """name -> its form in a plot, in lines of at most 36 characters. A long name has "…" for its middle, since paths
    differ most at the end, unless two names would then look the same."""
    shown = {name: name if len(name) <= 56 else f"{name[:18]}…{name[-37:]}" for name in names}
    if len(set(shown.values())) < len(shown):
        shown = {name: name for name in names}
    return {name: re.sub("(?=.{37})(.{9,35}[/ ]|.{9,35}[_-]|.{36})", r"\1\n", text) for name, text in shown.items()}


def plot_circumplex(
    path: Path, panels: Mapping[str, np.ndarray], truth: np.ndarray, labels: Sequence[Any] | None = None
) -> None:
    """Texts on the plane of valence and arousal: a panel for the labels, and one for each set of predictions.

    Args:
        panels: title -> (N, 2) predicted valence and arousal. truth: (N, 2) labels in [-1, 1].
            Predictions beyond the panel are drawn on its edge.
        labels: an emotion name for each text, shown as colour; whatever is no string, or empty, is "unlabelled".
    """
    from matplotlib.patches import Circle

    panels = {"labels": truth, **panels}
    given = [None] * len(truth) if labels is None else labels
    names_N = np.array([label if isinstance(label, str) and label else "unlabelled" for label in given])
    styles = _label_styles(sorted(set(names_N.tolist())))
    with new_figure(path, len(panels), 4.2, 4.6, len(panels), "compressed") as (figure, axes):
        for axis, (title, points_N2) in zip(axes, panels.items(), strict=True):
            axis.add_patch(Circle((0, 0), 1, fill=False, color="0.8"))
            axis.axhline(0, color="0.85", lw=0.8, zorder=0)
            axis.axvline(0, color="0.85", lw=0.8, zorder=0)
            points_N2 = np.clip(points_N2, -1.05, 1.05)
            for name, (colour, marker) in styles.items():
                axis.scatter(*points_N2[names_N == name].T, s=11, alpha=0.75, lw=0, color=colour, marker=marker)
            axis.set_title(title, fontsize=13)
            axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
            axis.set_xlabel("valence: unpleasant to pleasant", fontsize=12)
            axis.set_ylabel("arousal: calm to agitated", fontsize=12)
        if labels is not None:
            _legend(figure, [_mark(*style) for style in styles.values()], list(styles), fontsize=12)


def plot_emotion_pca(path: Path, panels: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> None:
    """Texts on the first two principal components of each model's embeddings, coloured by emotion; large, the mean
    of each emotion (the paper's Fig 2).

    Args:
        panels: model -> (embeddings (N, H), drawn at length 1, and N names of emotions).
    """
    names = display_names(list(panels))
    styles = _label_styles(sorted({label for _, labels in panels.values() for label in labels}))
    with new_figure(path, len(panels), 3.7, 3.9) as (figure, axes):
        for axis, (model, (embeddings_NH, labels_N)) in zip(axes, panels.items(), strict=True):
            unit_NH, labels_N = unit_rows(embeddings_NH), np.asarray(labels_N)  # type: ignore[assignment]
            variance_H, axes_HH = principal_axes(unit_NH)
            points_N2 = (unit_NH - unit_NH.mean(0)) @ axes_HH[:, :2]
            # a seeded order, in which no emotion lies on top of all others
            order = np.random.default_rng(0).permutation(len(points_N2))
            for marker in dict.fromkeys(marker for _, marker in styles.values()):
                chosen = [i for i in order if styles[labels_N[i]][1] == marker]
                colours = [styles[labels_N[i]][0] for i in chosen]
                axis.scatter(*points_N2[chosen].T, s=13, alpha=0.5, lw=0, c=colours, marker=marker)
            for label in np.unique(labels_N).tolist():
                colour, marker = styles[label]
                mean_2 = points_N2[labels_N == label].mean(0)
                axis.scatter(*mean_2, s=110, color=colour, marker=marker, edgecolor="white", lw=1.4, zorder=3)
            share_H = 100 * variance_H / max(variance_H.sum(), np.finfo(float).tiny)
            axis.set(xlabel=f"component 1 ({share_H[0]:.0f} %)", ylabel=f"component 2 ({share_H[1]:.0f} %)")
            axis.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim", box_aspect=1)
            axis.set_title(names[model], fontsize=10)
        mean = _mark("0.5", "o", markersize=11, markeredgecolor="white")
        _legend(figure, [*(_mark(*style) for style in styles.values()), mean], [*styles, "mean"])


def plot_points(path: Path, points: Mapping[str, tuple[float, float, float]], xlabel: str, ylabel: str) -> None:
    """Models as named points on a plane, such as that of alignment and uniformity (the paper's Fig 3).

    Args:
        points: model -> (x, y, accuracy in percent, shown as colour).
    """
    names = display_names(list(points))
    x_N, y_N, accuracy_N = zip(*points.values(), strict=True)
    with new_figure(path, 1, 7.4, 5.4) as (figure, (axis,)):
        marks = axis.scatter(x_N, y_N, s=70, c=accuracy_N, cmap="viridis", edgecolor="0.25", zorder=3)
        figure.colorbar(marks, ax=axis, label="accuracy (%)")
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.margins(0.25)
        axis.grid(color="0.93")
        axis.set_axisbelow(True)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the names are placed for this layout
        _place_names(axis, np.stack([x_N, y_N], axis=1), [names[model] for model in points])


def _place_names(axis: "Axes", points_N2: np.ndarray, names: Sequence[str]) -> None:
    """Writes a name near each point, with a line to it: at the nearest position where, measured by the renderer, it
    covers no mark and no other name, and its line crosses none as far as there is room."""
    from matplotlib.path import Path as Line
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    renderer = axis.figure.canvas.get_renderer()
    frame, unit = axis.get_window_extent(renderer), axis.figure.dpi / 72  # pixels, pixels a point
    pixels_N2 = axis.transData.transform(points_N2)
    marks = [Bbox([pixel_2, pixel_2]).padded(7 * unit) for pixel_2 in pixels_N2]
    turns = [np.array([math.cos(turn), math.sin(turn)]) for turn in np.radians(np.arange(0, 360, 15))]
    style = {
        "textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 8.5,
        "arrowprops": {"arrowstyle": "-", "color": "0.55", "lw": 0.7, "shrinkA": 0, "shrinkB": 5},
        "bbox": {"facecolor": "white", "lw": 0, "pad": 1},  # a line that has to cross a name passes behind it
    }  # fmt: skip
    notes = [axis.annotate(name, points_N2[i], (0, 0), zorder=2 - i / 1000, **style) for i, name in enumerate(names)]
    placed: dict[int, tuple[Bbox, Line]] = {}
    for i in [*range(len(notes))] * 3:  # once each, then again with all others in place
        size_2 = np.array(Text.get_window_extent(notes[i], renderer).size)
        others = [place for j, place in placed.items() if j != i]
        taken, least = [*marks, *(box for box, _ in others)], math.inf
        for distance, turn_2 in itertools.product(range(8, 320, 8), turns):
            centre_2 = pixels_N2[i] + turn_2 * (size_2 / 2 + distance * unit)
            box, line = Bbox([centre_2 - size_2 / 2, centre_2 + size_2 / 2]), Line([pixels_N2[i], centre_2])
            outside = (box.min < frame.min).any() or (box.max > frame.max).any()
            cost = 1000 * outside + 100 * box.count_overlaps(taken)
            if cost < least:
                cost += sum(line.intersects_bbox(other, filled=False) for other in taken)
                cost += sum(other.intersects_bbox(box, filled=False) for _, other in others)
            if cost < least:
                least, placed[i] = cost, (box.padded(2 * unit), line)
                notes[i].set_position((centre_2 - pixels_N2[i]) / unit)


def plot_dimension_curves(path: Path, curves: Mapping[str, Mapping[str, Any]], title: str, ylabel: str) -> None:
    """A score against the number of kept dimensions: principal components solid, random coordinates dashed, with a
    band of one standard deviation.

    Args:
        curves: model -> what [`carl_hf.evaluation.geometry.dimension_curve`] returns.
    """
    names, handles = display_names(list(curves)), []
    with new_figure(path, 1, 7.4, 4.8) as (figure, (axis,)):
        for curve, colour, marker in zip(
            curves.values(), itertools.cycle(_MODEL_COLOURS), itertools.cycle(_MODEL_MARKERS), strict=False
        ):
            pca, random, std = (np.array(curve[key], dtype=float) for key in ("pca", "random", "random_std"))
            style = {"color": colour, "marker": marker, "markersize": 5}
            handles += axis.plot(curve["kept"], pca, **style)
            axis.plot(curve["kept"], random, ls="--", markerfacecolor="white", **style)
            axis.fill_between(curve["kept"], random - std, random + std, color=colour, alpha=0.15, lw=0)
        axis.set_xscale("log", base=2)
        widths = {curve["kept"][-1] for curve in curves.values()}
        powers = {kept for curve in curves.values() for kept in curve["kept"]} - widths
        # numbers half an octave apart run into each other: a power of two gives way to a full width, and of two full
        # widths the smaller is written one line lower
        ticks = sorted(widths | {power for power in powers if all(abs(math.log2(power / w)) > 0.5 for w in widths)})
        lower = {tick for tick in ticks if any(0 < math.log2(other / tick) < 0.5 for other in ticks)}
        axis.set_xticks(ticks, ["\n" * (tick in lower) + str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set(xlabel="kept dimensions", ylabel=ylabel)
        axis.set_title(title, fontsize=11)
        axis.grid(color="0.93")
        kinds = [_mark("0.3", "o", ls="-"), _mark("0.3", "o", ls="--", markerfacecolor="white")]
        kind_names = ["principal components", "random coordinates ± 1 std"]
        axis.legend(kinds, kind_names, frameon=False, fontsize=9, handlelength=4)
        _legend(figure, handles, [names[model] for model in curves])


def plot_bars(
    path: Path, rows: Mapping[str, Mapping[str, tuple[float, float, float]]], percentages: Collection[str]
) -> None:
    """Grouped bars with 95 % intervals: percentages in one panel, fractions in another.

    Args:
        rows: metric -> model -> (value, low, high). percentages: the metrics in percent; the others are fractions.
    """
    from matplotlib.patches import Patch

    models = list(dict.fromkeys(model for bars in rows.values() for model in bars))
    names = display_names(models)
    looks = itertools.cycle(itertools.product(_HATCHES, _MODEL_COLOURS))
    fills = [
        {"facecolor": colour, "alpha": 0.8, "edgecolor": "white", "lw": 0, "hatch": hatch}
        for _, (hatch, colour) in zip(models, looks, strict=False)
    ]
    parts = [[metric for metric in rows if (metric in percentages) is percent] for percent in (False, True)]
    kinds = (("correlation or share", "%.3f", parts[0]), ("accuracy (%)", "%.1f", parts[1]))
    panels = [panel for panel in kinds if panel[2]]
    titles = {metric: textwrap.fill(metric, 26) for metric in rows}
    bar, gap = 0.19, 0.24  # inches
    group = max(len(models), 2, *(title.count("\n") + 1 for title in titles.values())) * bar + gap
    heights = [len(metrics) * group for *_, metrics in panels]
    height = sum(heights) / len(panels) + 0.75
    with new_figure(path, len(panels), 7.4, height, most=1, height_ratios=heights) as (figure, axes):
        for axis, (kind, form, metrics) in zip(axes, panels, strict=True):
            for m, model in enumerate(models):
                y = np.array([i for i, metric in enumerate(metrics) if model in rows[metric]])
                value, low, high = np.array([rows[metrics[i]][model] for i in y], dtype=float).reshape(-1, 3).T
                # a value may lie outside its percentile interval, but no error bar may be negative
                errors = np.maximum([value - low, high - value], 0)
                y = y + (m - (len(models) - 1) / 2) * bar / group
                line = {"ecolor": "0.2", "elinewidth": 1, "capsize": 2}
                drawn = axis.barh(y, value, 0.88 * bar / group, xerr=errors, error_kw=line, **fills[m])
                axis.bar_label(drawn, fmt=form, padding=4, fontsize=7.5)
            axis.set_yticks(range(len(metrics)), [titles[metric] for metric in metrics])
            axis.set(xlabel=kind, ylim=(len(metrics) - 0.5, -0.5))
            axis.margins(x=0.1)
            axis.axvline(0, color="0.3", lw=0.8)
            axis.grid(axis="x", color="0.9")
            axis.set_axisbelow(True)
        _legend(figure, [Patch(**fill) for fill in fills], [names[model] for model in models])


def plot_confusion(path: Path, panels: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> None:
    """Confusion matrices: rows the true class, columns the predicted one, the shade a cell's share of its row. Counts
    are written up to 15 classes.

    Args:
        panels: model -> (counts (C, C), C names).
    """
    names = display_names(list(panels))
    most = max(len(classes) for _, classes in panels.values())
    side = max(2.6, most * (0.38 if most <= _MOST_COUNTED else 0.19))
    with new_figure(path, len(panels), side + 1.1, side + 1.3, 3 if most <= 8 else 2, "compressed") as (figure, axes):
        for axis, (model, (counts_CC, classes)) in zip(axes, panels.items(), strict=True):
            share_CC = counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
            image = axis.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
            axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
            axis.set_yticks(range(len(classes)), classes, fontsize=8)
            axis.set(xlabel="predicted", ylabel="true")
            axis.set_title(names[model], fontsize=10)
            for (i, j), count in np.ndenumerate(counts_CC) if len(classes) <= _MOST_COUNTED else ():
                colour = "white" if share_CC[i, j] > 0.71 else "black"  # contrast 4.5 or more on every shade
                axis.text(j, i, f"{count:d}", ha="center", va="center", fontsize=7.5, color=colour)
        figure.colorbar(image, ax=axes, label="share of the true class", aspect=30)


@contextmanager
def new_figure(
    path: Path, panels: int, width: float, height: float, most: int = 3,
    layout: Literal["constrained", "compressed"] = "constrained", **subplots: Any,
) -> "Iterator[tuple[Figure, list[Axes]]]":  # fmt: skip
    """A figure and its panels, at most so many in a row, each `width` x `height` inches with its margins. Written when
    the block ends; outside pyplot's state."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    families = [*matplotlib.rcParams["font.family"], *(name for name in _FONTS if name in installed)]
    columns = min(panels, most)
    rows = math.ceil(panels / columns)
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "carl", "font.family": families,
                                "axes.spines.right": False, "axes.spines.top": False}):  # fmt: skip
        figure = Figure(figsize=(columns * width, rows * height), layout=layout, dpi=_DPI)
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, **subplots).ravel().tolist()
        for axis in axes[panels:]:
            axis.remove()
        yield figure, axes[:panels]
        figure.draw_without_rendering()  # the layout finds room for axes of a fixed aspect in a second pass only
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path.with_suffix(".png"), dpi=_DPI)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _legend(figure: "Figure", handles: Sequence[Any], names: Sequence[str], fontsize: float = 10) -> None:
    """One legend below all panels, for which the figure grows."""
    longest = max(len(line) for name in names for line in name.split("\n"))
    columns = min(len(names), max(1, int(figure.get_figwidth() / (0.75 + 0.009 * fontsize * longest))))
    lines = max(name.count("\n") + 1 for name in names) * math.ceil(len(names) / columns)
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.02 * fontsize * lines)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=fontsize)


def _mark(colour: str, marker: str, **style: Any) -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"color": colour, "marker": marker, "ls": "", "markersize": 6, **style})


def _label_styles(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """label -> (colour, marker): circles in the colours that the emotions have everywhere, other shapes for others."""
    others = [label for label in labels if label not in COLOURS]
    looks = itertools.cycle((colour, marker) for marker in _LABEL_MARKERS for colour in _LABEL_COLOURS)
    return {label: (COLOURS[label], "o") for label in labels if label in COLOURS} | dict(
        zip(others, looks, strict=False)
    )
