"""A sentence and its nearest texts under two encoders: what training a space for feelings means, in one picture."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carl_hf.report.plots import new_figure

_COLOURS = {"pleasant": "#0072B2", "neutral": "#808080", "unpleasant": "#D55E00"}  # Okabe and Ito's, as the models'
_WIDTH, _LINES = 54, 2  # of a text


def plot_nearest(path: Path, sentence: str, panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The nearest texts of a sentence, one panel an encoder: each text over a bar as long as its cosine, in the colour
    of its feeling, which is written beside it.

    Args:
        panels: title -> texts, the nearest first: {"text", "cosine", "feeling": pleasant, neutral or unpleasant}.
    """
    most = max(map(len, panels.values()))
    with new_figure(path, len(panels), 4.6, 0.4 + 0.78 * most) as (figure, axes):
        figure.suptitle("\n".join(textwrap.wrap(f"Nearest to: “{sentence}”", 2 * _WIDTH)), fontsize=11)
        for axis, (title, texts) in zip(axes, panels.items(), strict=True):
            axis.set_title(title, fontsize=10, loc="left")
            for row, found in enumerate(texts):
                length, colour = max(found["cosine"], 0), _COLOURS[found["feeling"]]
                axis.barh(row, length, 0.22, color=colour)
                label = f" {found['cosine']:.2f}  {found['feeling']}"
                axis.text(length, row, label, va="center", fontsize=8, color=colour)
                shown = textwrap.wrap(found["text"], _WIDTH, max_lines=_LINES, placeholder=" …")
                axis.text(0, row - 0.17, "\n".join(shown), va="bottom", fontsize=9)
            axis.set(xlim=(0, 1.35), ylim=(most - 0.7, -0.75), xticks=[], yticks=[])
            axis.spines["bottom"].set_visible(False)
