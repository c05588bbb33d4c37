"""The figures of an evaluation, drawn with matplotlib. Each function writes a PNG and, beside it, an SVG.

Names of models and figures stand as they are given: neither "$" nor "_" means anything in them.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from carl_hf.evaluation.geometry import principal_axes, unit_rows
from carl_hf.report.circumplex_plot import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation

_LINE = 28  # characters of a name in a line
# two palettes for colour-blind readers: Okabe and Ito 2008 (yellow left out, black made grey), and Paul Tol's "muted"
# without what is close to one of COLOURS; the shapes have another period than the colours
_MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080")
_MODEL_MARKERS = "os^DvPX*"
_HATCHES = ("", "////", "....", "xxxx")
_LABEL_COLOURS = ("#332288", "#88CCEE", "#117733", "#CC6677", "#000000", "#999933", "#DDCC77")
_LABEL_MARKERS = "^sDvPX"
_WRITE_COUNTS = 15  # number of classes up to which the cells of a confusion matrix have room for a count
_DPI = 150


def shorten(name: str, width: int) -> str:
    """The name; if longer than `width`, with "…" for its middle. The end, where paths differ most, keeps most."""
    head = (width - 1) // 3
    return name if len(name) <= width else f"{name[:head]}…{name[head + 1 - width :]}"


def display_names(names: Sequence[str]) -> dict[str, str]:
    """name -> its form in a figure: up to two lines, broken near the middle, at a separator if there is one. Where
    two names would be alike, the least width and number of lines at which they are not."""
    width, longest = 2 * _LINE, max(map(len, names), default=0)
    while width < longest and len({shorten(name, width) for name in names}) < len(set(names)):
        width += 1
    return {name: _broken(shorten(" ".join(name.split()), width)) for name in names}


def _broken(name: str) -> str:
    lines = []
    for left in range(math.ceil(len(name) / _LINE), 1, -1):
        even = math.ceil(len(name) / left)
        # after a separator at most 8 characters from even lines; "-" and "_" often stand within a word
        far = {
            i: abs(i - even) + 6 * (letter in "-_")
            for i, letter in enumerate(name, start=1)
            if letter in "/ -_" and abs(i - even) <= 8
        }
        cut = min(far, key=far.__getitem__, default=even)
        lines.append(name[:cut].rstrip())
        name = name[cut:]
    return "\n".join([*lines, name])


def plot_emotion_pca(path: Path, panels: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> None:
    """Texts on the first two principal components of each model's embeddings, coloured by emotion; large, the mean
    of each emotion (the paper's Fig 2).

    Args:
        path: file to write, .png; the SVG has the same stem.
        panels: model -> (embeddings (N, H), drawn at length 1, and N names of emotions).
    """
    names = display_names(list(panels))
    labels = sorted({label for _, labels in panels.values() for label in labels})
    styles = _label_styles(labels)
    with _figure(path) as figure:
        axes = _grid(figure, len(panels), 3.7, 3.9)
        for axis, (model, (embeddings_NH, labels_N)) in zip(axes, panels.items(), strict=True):
            unit_NH, labels_N = unit_rows(embeddings_NH), np.asarray(labels_N)
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
            middle_2, half = (points_N2.max(0) + points_N2.min(0)) / 2, 0.54 * np.ptp(points_N2, axis=0).max() or 1
            (left, bottom), (right, top) = middle_2 - half, middle_2 + half
            axis.set(xticks=[], yticks=[], xlim=(left, right), ylim=(bottom, top), aspect="equal")
            axis.set_title(names[model], fontsize=10)
        mean = _mark("0.5", "o", markersize=11, markeredgecolor="white")
        _legend(figure, [*(_mark(*styles[label]) for label in labels), mean], [*labels, "mean"])
        figure.draw_without_rendering()  # the layout finds room for axes of a fixed aspect in a second pass only


def plot_alignment_uniformity(path: Path, points: Mapping[str, tuple[float, float, float]]) -> None:
    """Models on the plane of alignment and uniformity, coloured by accuracy (the paper's Fig 3).

    Args:
        path: file to write, .png; the SVG has the same stem. points: model -> (alignment, uniformity, accuracy in
            percent).
    """
    _plot_points(
        path, points, "alignment (lower: a class lies closer together)", "uniformity (lower: texts spread more evenly)"
    )


def plot_circularity(path: Path, points: Mapping[str, tuple[float, float, float]]) -> None:
    """What a circle of emotions costs: models on the plane of circular correlation and accuracy at two kept
    dimensions, coloured by the accuracy of all dimensions.

    Args:
        path: file to write, .png; the SVG has the same stem. points: model -> (circular correlation of the class
            centroids with the labels' angles, accuracy in percent at 2 principal components, and at all dimensions).
    """
    _plot_points(path, points, "circular correlation with the labels' angles", "accuracy at 2 kept dimensions (%)")


def _plot_points(path: Path, points: Mapping[str, tuple[float, float, float]], xlabel: str, ylabel: str) -> None:
    """Named points (x, y), coloured by accuracy."""
    names = display_names(list(points))
    points_N2 = np.array([point[:2] for point in points.values()])
    with _figure(path) as figure:
        figure.set_size_inches(7.4, 5.4)
        axis = figure.add_subplot()
        marks = axis.scatter(
            *points_N2.T, s=70, c=[point[2] for point in points.values()], cmap="viridis", edgecolor="0.25", zorder=3
        )
        figure.colorbar(marks, ax=axis, label="accuracy (%)")
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.margins(0.25)
        axis.grid(color="0.93")
        axis.set_axisbelow(True)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the labels are placed for this layout
        place_labels(axis, points_N2, [names[model] for model in points])


def plot_dimension_curves(path: Path, curves: Mapping[str, Mapping[str, Any]], title: str, ylabel: str) -> None:
    """A score against the number of kept dimensions: principal components solid, random coordinates dashed, with a
    band of one standard deviation.

    Args:
        path: file to write, .png; the SVG has the same stem. curves: model -> what
            [`carl_hf.evaluation.geometry.dimension_curve`] returns. title, ylabel: as they are to be read.
    """
    names = display_names(list(curves))
    with _figure(path) as figure:
        figure.set_size_inches(7.4, 4.8)
        axis = figure.add_subplot()
        handles = []
        for m, curve in enumerate(curves.values()):
            colour = _MODEL_COLOURS[m % len(_MODEL_COLOURS)]
            pca, random, std = (np.array(curve[key], dtype=float) for key in ("pca", "random", "random_std"))
            style = {"color": colour, "marker": _MODEL_MARKERS[m % len(_MODEL_MARKERS)], "markersize": 5}
            handles += axis.plot(curve["kept"], pca, **style)
            axis.plot(curve["kept"], random, ls="--", markerfacecolor="white", **style)
            axis.fill_between(curve["kept"], random - std, random + std, color=colour, alpha=0.15, lw=0)
        axis.set_xscale("log", base=2)
        widths = {curve["kept"][-1] for curve in curves.values()}
        powers = {kept for curve in curves.values() for kept in curve["kept"]} - widths
        # numbers half an octave apart run into each other: a power of two gives way to a full width, and of two full
        # widths the smaller stands lower
        ticks = sorted(widths | {power for power in powers if all(abs(math.log2(power / w)) > 0.5 for w in widths)})
        lower = {tick for tick in ticks if any(0 < math.log2(other / tick) < 0.5 for other in ticks)}
        axis.set_xticks(ticks, ["\n" * (tick in lower) + str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set(xlabel="kept dimensions", ylabel=ylabel)
        axis.set_title(title, fontsize=11)
        axis.grid(color="0.93")
        kinds = [_mark("0.3", "o", ls="-"), _mark("0.3", "o", ls="--", markerfacecolor="white")]
        axis.legend(
            kinds, ["principal components", "random coordinates ± 1 std"], frameon=False, fontsize=9, handlelength=4
        )
        _legend(figure, handles, [names[model] for model in curves])


def plot_bars(path: Path, rows: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> None:
    """Grouped bars with 95 % intervals: percentages in one panel, fractions in another. A figure whose values and
    bounds all lie in [-1, 1] is a fraction.

    Args:
        path: file to write, .png; the SVG has the same stem. rows: figure -> model -> (value, low, high).
    """
    from matplotlib.patches import Patch

    models = list(dict.fromkeys(model for bars in rows.values() for model in bars))
    names = display_names(models)
    fills = [
        {"facecolor": _MODEL_COLOURS[m % len(_MODEL_COLOURS)], "alpha": 0.8, "edgecolor": "white", "lw": 0,
         "hatch": _HATCHES[m // len(_MODEL_COLOURS) % len(_HATCHES)]}
        for m in range(len(models))
    ]  # fmt: skip
    fractions = {name for name, bars in rows.items() if np.abs(np.array(list(bars.values()), dtype=float)).max() <= 1}
    panels = [("correlation", [name for name in rows if name in fractions]),
              ("accuracy (%)", [name for name in rows if name not in fractions])]  # fmt: skip
    panels = [(title, chosen) for title, chosen in panels if chosen]
    bar, gap = 0.19, 0.24  # inches
    titles = {name: textwrap.fill(name, 26) for name in rows}
    group = max(len(models), 2, *(title.count("\n") + 1 for title in titles.values())) * bar + gap
    with _figure(path) as figure:
        heights = [len(chosen) * group for _, chosen in panels]
        figure.set_size_inches(7.4, sum(heights) + 0.75 * len(panels))
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights).ravel()
        for axis, (title, chosen) in zip(axes, panels, strict=True):
            for m, model in enumerate(models):
                places = [i for i, name in enumerate(chosen) if model in rows[chosen[i]]]
                value, low, high = np.array([rows[chosen[i]][model] for i in places], dtype=float).reshape(-1, 3).T
                y = np.array(places) + (m - (len(models) - 1) / 2) * bar / group
                # a value may lie outside its percentile interval, but no error bar may be negative
                errors = np.maximum([value - low, high - value], 0)
                axis.barh(y, value, 0.88 * bar / group, **fills[m])
                axis.errorbar(value, y, xerr=errors, fmt="none", ecolor="0.2", elinewidth=1, capsize=2)
                for place, v, end in zip(y, value, np.maximum(value, high), strict=True):
                    text = f"{v:.3f}" if chosen[0] in fractions else f"{v:.1f}"
                    axis.annotate(text, (max(end, 0), place), (4, 0), textcoords="offset points", va="center",
                                  fontsize=7.5)  # fmt: skip
            axis.set_yticks(range(len(chosen)), [titles[name] for name in chosen])
            axis.set(xlabel=title, ylim=(len(chosen) - 0.5, -0.5))
            axis.margins(x=0.1)
            axis.axvline(0, color="0.3", lw=0.8)
            axis.grid(axis="x", color="0.9")
            axis.set_axisbelow(True)
        _legend(figure, [Patch(**fill) for fill in fills], [names[model] for model in models])


def plot_confusion(path: Path, panels: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> None:
    """Confusion matrices: rows the true class, columns the predicted one, the shade a cell's share of its row. Counts
    are written up to 15 classes.

    Args:
        path: file to write, .png; the SVG has the same stem. panels: model -> (counts (C, C), C names).
    """
    names = display_names(list(panels))
    most = max((len(classes) for _, classes in panels.values()), default=1)
    with _figure(path) as figure:
        figure.set_layout_engine("compressed")  # constrained, for square axes
        side = max(2.6, most * (0.38 if most <= _WRITE_COUNTS else 0.19))
        axes = _grid(figure, len(panels), side + 1.1, side + 1.3, most=3 if most <= 8 else 2)
        for axis, (model, (confusion, classes)) in zip(axes, panels.items(), strict=True):
            confusion = np.asarray(confusion)
            share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
            image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
            axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
            axis.set_yticks(range(len(classes)), classes, fontsize=8)
            axis.set(xlabel="predicted", ylabel="true")
            axis.set_title(names[model], fontsize=10)
            if len(classes) <= _WRITE_COUNTS:
                for (i, j), count in np.ndenumerate(confusion):
                    colour = "white" if share[i, j] > 0.71 else "black"  # contrast 4.5 or more on every shade
                    axis.text(j, i, f"{count:d}", ha="center", va="center", fontsize=7.5, color=colour)
        figure.colorbar(image, ax=axes, label="share of the true class", aspect=30)


def place_labels(axis: "Axes", points_N2: np.ndarray, names: Sequence[str]) -> "list[Annotation]":
    """Writes a name at each point so that no names cross, as far as the axes have room: the nearest free place around
    the point, measured by the renderer, with a line to it. The layout of the figure must be final."""
    from matplotlib.text import Text

    renderer = axis.figure.canvas.get_renderer()
    frame, unit = axis.get_window_extent(renderer), axis.figure.dpi / 72  # pixels, pixels a point
    pixels_N2 = axis.transData.transform(points_N2)
    turn_T = np.radians(np.arange(0, 360, 15))
    turns_T2 = np.stack([np.cos(turn_T), np.sin(turn_T)], axis=1)
    distances_D11 = unit * np.arange(8, 320, 8)[:, None, None]
    steps_S1 = np.linspace(0, 1, 40)[:, None]
    marks_N4 = np.hstack([pixels_N2 - 5 * unit, pixels_N2 + 5 * unit])  # boxes are left, bottom, right, top
    notes, candidates = [], []
    for i, (name, point, pixel_2) in enumerate(zip(names, points_N2, pixels_N2, strict=True)):
        note = axis.annotate(
            name, point, (0, 0), textcoords="offset points", ha="center", va="center", fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": "0.55", "lw": 0.7, "shrinkA": 0, "shrinkB": 5},
            # a line that has to cross another name passes behind it
            bbox={"facecolor": "white", "lw": 0, "pad": 1}, zorder=2 - i / 1000,
        )  # fmt: skip
        size_2 = np.array(Text.get_window_extent(note, renderer).size)  # an annotation's own extent holds its line too
        centres_K2 = (pixel_2 + turns_T2 * (size_2 / 2 + distances_D11)).reshape(-1, 2)
        candidates.append((centres_K2, np.hstack([centres_K2 - size_2 / 2, centres_K2 + size_2 / 2])))
        notes.append(note)
    boxes_N4, lines_NS2 = np.full((len(notes), 4), np.nan), np.full((len(notes), len(steps_S1), 2), np.nan)
    for i in [*range(len(notes))] * 3:  # once each, then again with all others in place; NaN lies nowhere
        (centres_K2, box_K4), pixel_2 = candidates[i], pixels_N2[i]
        boxes_N4[i] = lines_NS2[i] = np.nan
        taken_M4 = np.vstack([marks_N4, boxes_N4]) + 2 * unit * np.array([-1, -1, 1, 1])
        lines_KS2 = pixel_2 + steps_S1 * (centres_K2 - pixel_2)[:, None]
        outside_K = (box_K4[:, :2] < frame.min).any(1) | (box_K4[:, 2:] > frame.max).any(1)
        covers_KM = ((box_K4[:, None, :2] < taken_M4[:, 2:]) & (box_K4[:, None, 2:] > taken_M4[:, :2])).all(2)
        crosses_KM = _inside(lines_KS2[:, :, None], taken_M4).any(1)  # the point's own mark: the same for all
        crossed_KN = _inside(lines_NS2, box_K4[:, None, None]).any(2)
        cost_K = 1000 * outside_K + 100 * covers_KM.sum(1) + crosses_KM.sum(1) + crossed_KN.sum(1)
        best = int(np.argmin(cost_K))  # the first of equals: the nearest
        boxes_N4[i], lines_NS2[i] = box_K4[best], lines_KS2[best]
        notes[i].set_position((centres_K2[best] - pixel_2) / unit)
    return notes


def _inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    return ((points > boxes[..., :2]) & (points < boxes[..., 2:])).all(-1)


@contextmanager
def _figure(path: Path) -> "Iterator[Figure]":
    """A figure outside pyplot's state, written when the block ends; the same figure makes the same files again."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "carl", "axes.spines.right": False,
                                "axes.spines.top": False}):  # fmt: skip
        figure = Figure(layout="constrained", dpi=_DPI)
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path.with_suffix(".png"), dpi=_DPI)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _grid(figure: "Figure", panels: int, width: float, height: float, most: int = 3) -> "list[Axes]":
    """Axes for the panels, at most so many in a row, each `width` x `height` inches with its margins."""
    columns = min(panels, most)
    rows = math.ceil(panels / columns)
    figure.set_size_inches(columns * width, rows * height)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[panels:]:
        axis.remove()
    return axes[:panels]


def _legend(figure: "Figure", handles: Sequence[Any], names: Sequence[str]) -> None:
    """One legend below all panels, for which the figure grows."""
    longest = max(len(line) for name in names for line in name.split("\n"))
    columns = min(len(names), max(1, int(figure.get_figwidth() / (0.75 + 0.09 * longest))))
    lines = max(name.count("\n") + 1 for name in names)
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.2 * lines * math.ceil(len(names) / columns))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)


def _mark(colour: str, marker: str, **style: Any) -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"color": colour, "marker": marker, "ls": "", "markersize": 6, **style})


def _label_styles(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """label -> (colour, marker): circles in the colours that the emotions have everywhere, other shapes for others."""
    styles = {label: (COLOURS[label], "o") for label in labels if label in COLOURS}
    for i, label in enumerate(label for label in labels if label not in COLOURS):
        shape = _LABEL_MARKERS[i // len(_LABEL_COLOURS) % len(_LABEL_MARKERS)]
        styles[label] = (_LABEL_COLOURS[i % len(_LABEL_COLOURS)], shape)
    return styles
