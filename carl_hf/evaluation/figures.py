"""The figures of an evaluation, drawn with matplotlib. Each function writes a PNG and an SVG beside it.

Names of models and figures stand as they are given: neither "$" nor "_" means anything.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from carl_hf.evaluation.geometry import principal_axes, unit_rows
from carl_hf.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

_NAME_WIDTH = 30
_MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
_MODEL_MARKERS = "os^DvPX*"  # not as many as colours, so that the pair repeats late
_LABEL_COLOURS = ("#332288", "#88CCEE", "#117733", "#CC6677", "#000000", "#999933", "#882255", "#DDCC77")  # Paul Tol
_LABEL_MARKERS = "^sDvPX*"
_WRITE_COUNTS = 15  # classes up to which a confusion matrix has room for numbers
_POINT = 1 / 72  # inches


def short_name(name: str, width: int = _NAME_WIDTH) -> str:
    """The name on one line, its middle left out where it is longer than `width`; the end, which tells a run's
    checkpoint, keeps most."""
    name = " ".join(name.split())
    head = (width - 1) // 3
    return name if len(name) <= width else f"{name[:head]}…{name[head + 1 - width :]}"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name shortened, to a width at which different names stay different; in lines of at most 30 characters."""
    width = _NAME_WIDTH
    while len({short_name(name, width) for name in names}) < len({" ".join(name.split()) for name in names}):
        width += 1
    lines = {name: short_name(name, width) for name in names}
    return {
        name: "\n".join(line[i : i + _NAME_WIDTH] for i in range(0, max(1, len(line)), _NAME_WIDTH))
        for name, line in lines.items()
    }


def plot_emotion_pca(path: Path, panels: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> None:
    """Texts on the first two principal components of each model's embeddings, coloured by emotion; large marks are the
    means of the emotions (the paper's Fig 2).

    Args:
        path: file to write; its suffix is replaced. panels: model -> (embeddings (N, H), drawn at length 1, and N
            emotion names).
    """
    names = short_names(list(panels))
    labels = sorted({label for _, labels in panels.values() for label in labels})
    style = _label_styles(labels)
    with _figure(path) as figure:
        for axis, (model, (embeddings_NH, labels_N)) in zip(_grid(figure, len(panels), 3.7, 3.7), panels.items(), strict=True):
            unit_NH, labels_N = unit_rows(embeddings_NH), np.asarray(labels_N)
            variance_H, axes_HH = principal_axes(unit_NH)
            points_N2 = (unit_NH - unit_NH.mean(0)) @ axes_HH[:, :2]
            share_2 = 100 * variance_H[:2] / max(variance_H.sum(), 1e-12)
            # in an order that lets no emotion lie on top of all others
            for i in np.random.default_rng(0).permutation(len(points_N2)):
                colour, marker = style[labels_N[i]]
                axis.scatter(*points_N2[i], s=12, alpha=0.55, lw=0, color=colour, marker=marker)
            for label in np.unique(labels_N).tolist():
                colour, marker = style[label]
                mean_2 = points_N2[labels_N == label].mean(0)
                axis.scatter(*mean_2, s=95, color=colour, marker=marker, edgecolor="white", lw=1.3, zorder=3)
            axis.set_title(names[model], fontsize=10)
            axis.set(xlabel=f"component 1 ({share_2[0]:.0f} %)", ylabel=f"component 2 ({share_2[1]:.0f} %)")
            axis.set(xticks=[], yticks=[])
            axis.set_aspect("equal", adjustable="datalim")
        handles = [_mark(*style[label]) for label in labels]
        columns = min(len(labels), max(3, int(figure.get_figwidth() / 1.15)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
