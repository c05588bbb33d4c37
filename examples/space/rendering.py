"""The page's pieces of HTML: messages, the circle of valence and arousal, and what is said of each sentence."""

import html
import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from analysis import Reading
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from carl_hf.data.label_spaces import read_label_space

LEGENDS = {
    "integrated_gradients": "Blue words with a solid line raise the value; orange words with a broken line lower it.",
    "gradient_norm": "Purple words move the value most, whether up or down.",
}
SHOWN_EMOTIONS = 5
CIRCLE = read_label_space("circle12").va


def message_html(message: str, *, error: bool = False) -> str:
    return f'<p class="{"error" if error else "done"}">{html.escape(message)}</p>'


def circle_html(readings: Sequence[Reading]) -> str:
    """The circle; its text for those who do not see it names every sentence's coordinates."""
    points = np.array([[r.valence, r.arousal] for r in readings]).reshape(-1, 2)
    coordinates = (
        f"sentence {i}: valence {r.valence:+.2f}, arousal {r.arousal:+.2f}" for i, r in enumerate(readings, start=1)
    )
    alt = "; ".join(
        ["Circle of valence (left to right) and arousal (bottom to top) with names of emotions", *coordinates]
    )
    return f'<div class="circle" role="img" aria-label="{html.escape(alt)}">{circle_svg(points, CIRCLE)}</div>'


def readings_html(readings: Sequence[Reading]) -> str:
    """A list with all that is said of each sentence."""
    items = "".join(reading_html(number, reading) for number, reading in enumerate(readings, start=1))
    return f'<p>{LEGENDS[readings[0].attribution.method]}</p><ol class="readings">{items}</ol>'


def reading_html(number: int, reading: Reading) -> str:
    emotions = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{p:.0%}</td>'
        f'<td><meter min="0" max="1" value="{p:.3f}" aria-hidden="true"></meter></td></tr>'
        for name, p in list(reading.emotions.items())[:SHOWN_EMOTIONS]
    )
    neighbours = "".join(
        f"<li>{html.escape(n.text)} <small>({html.escape(n.label)}, cosine {n.cosine:.2f})</small></li>"
        for n in reading.neighbours
    )
    notes = []
    if reading.attribution.truncated:
        notes.append("It is long. The numbers above and the emotions are of the whole text; the colours, the value "
                     "below them and the nearest sentences are of its beginning alone.")  # fmt: skip
    if reading.unknown:
        notes.append(f"Tokens that the models do not know: {reading.unknown}. Their answers may mean little.")
    said = "" if reading.several is None else (
        f"<p>Several can hold at once. Over their thresholds: {html.escape(reading.several) or 'none'}.</p>"
    )  # fmt: skip
    return (
        f'<li id="reading-{number}"><h2>{number}. Valence {reading.valence:+.2f}, arousal {reading.arousal:+.2f}</h2>'
        f"{''.join(f'<p>{note}</p>' for note in notes)}{reading.attribution.to_html()}"
        f'<div class="more"><div><h3>Emotions</h3><table>{emotions}</table>{said}</div>'
        f"<div><h3>Nearest sentences of the demo corpus</h3><ul>{neighbours}</ul></div></div></li>"
    )


def circle_svg(points_N2: np.ndarray, references: Mapping[str, tuple[float, float]]) -> str:
    """Numbered texts on the circle of valence and arousal beside the names of emotions, as an SVG for a web page.

    Args:
        points_N2: (N, 2) valence and arousal in [-1, 1]; point i has the id `text-<i + 1>`.
        references: name -> (valence, arousal); drawn as a dot, its name further out.
    """
    figure = Figure(figsize=(4.4, 3.8), layout="constrained")
    axis = figure.add_subplot()
    axis.add_patch(Circle((0, 0), 1, fill=False, color="0.6", gid="circle"))
    axis.axhline(0, color="0.85", lw=0.8, zorder=0)
    axis.axvline(0, color="0.85", lw=0.8, zorder=0)
    for name, (valence, arousal) in references.items():
        axis.plot(valence, arousal, "o", color="0.45", markersize=4)
        side = "center" if abs(valence) < 0.1 else "left" if valence > 0 else "right"
        axis.text(1.1 * valence, 1.15 * arousal, name, ha=side, va="center", color="0.2", fontsize=11)
    for i, point in enumerate(points_N2.tolist(), start=1):
        axis.plot(*point, "o", color="#1b4f8a", markersize=14, markeredgecolor="white", gid=f"text-{i}")
        axis.annotate(str(i), point, color="white", fontsize=9, ha="center", va="center_baseline", weight="bold")
    axis.set(xlim=(-1.55, 1.55), ylim=(-1.25, 1.25), aspect="equal", xticks=[], yticks=[])
    axis.set_xlabel("valence: unpleasant to pleasant", fontsize=11)
    axis.set_ylabel("arousal: calm to agitated", fontsize=11)
    axis.spines[:].set_visible(False)
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]
