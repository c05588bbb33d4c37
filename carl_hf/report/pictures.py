"""The pictures of an evaluation, drawn from its results and test items."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from carl_hf.report import plots as figures
from carl_hf.report.circumplex_plot import plot_circumplex
from carl_hf.report.tables import short_names

_BARS = (
    ("valence r", ("va", "emobank", "valence"), "pearson"),
    ("arousal r", ("va", "emobank", "arousal"), "pearson"),
    ("valence r, demo", ("va", "demo", "valence"), "pearson"),
    ("arousal r, demo", ("va", "demo", "arousal"), "pearson"),
    ("STS benchmark, rho", ("semantics", "stsb"), "spearman"),
    ("MR", ("polarity", "mr"), "accuracy"),
    ("CR", ("polarity", "cr"), "accuracy"),
    ("SST5", ("polarity", "sst5"), "accuracy"),
    ("IMDB", ("polarity", "imdb"), "accuracy"),
    ("GoEmotions six", ("emotion", "goemotions-six"), "accuracy"),
    ("ISEAR", ("emotion", "isear"), "accuracy"),
    ("EmoLit-12", ("emotion", "emolit12"), "accuracy"),
    ("emotion, demo", ("emotion", "demo"), "accuracy"),
)


def draw_pictures(
    folder: Path, results: Mapping[str, Any], items: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
) -> list[Path]:
    """Draws what the results hold into `folder`, as PNG and SVG.

    Args:
        results: as in results.json. items: model -> "task/corpus" -> arrays, see [`carl_hf.evaluation.suite`].

    Returns:
        the PNG files.
    """
    short = short_names(list(results["models"]))
    models = {short[name]: found for name, found in results["models"].items()}
    items = {short[name]: arrays for name, arrays in items.items()}
    drawn: list[Path] = []

    def path(name: str) -> Path:
        drawn.append(folder / f"{name}.png")
        return drawn[-1]

    folder.mkdir(parents=True, exist_ok=True)
    bars = {
        title: {
            name: (found[figure], *(found[f"{figure}_interval"] or [found[figure]] * 2))
            for name, found in rows.items()
        }
        for title, keys, figure in _BARS
        if (rows := _having(models, keys, figure))
    }
    if bars:
        figures.plot_bars(path("scores"), bars)
    for corpus in ("emobank", "facebook", "demo"):
        key = f"va/{corpus}"
        panels = {name: arrays[key]["predictions"][:, :2] for name, arrays in items.items() if key in arrays}
        if panels:
            truth = next(arrays[key]["references"][:, :2] for arrays in items.values() if key in arrays)
            for suffix in (".svg", ".png"):
                plot_circumplex((folder / f"circle-{corpus}").with_suffix(suffix), panels, truth)
            path(f"circle-{corpus}")
    for corpus in ("goemotions-six", "emolit12", "demo"):
        key = f"geometry/{corpus}"
        panels = {name: (a[key]["embeddings"], a[key]["labels"].tolist()) for name, a in items.items() if key in a}
        if panels:
            figures.plot_emotion_pca(path(f"pca-{corpus}"), panels)
        points = {
            name: (found["alignment"], found["uniformity"], score["accuracy"])
            for name, found in _having(models, ("geometry", corpus), "alignment").items()
            if (score := _at(models[name], ("emotion", corpus)))
        }
        if points:
            figures.plot_alignment_uniformity(path(f"alignment-{corpus}"), points)
        confusions = {
            name: (np.array(found["confusion"]), found["classes"])
            for name, found in _having(models, ("emotion", corpus), "confusion").items()
        }
        if confusions:
            figures.plot_confusion(path(f"confusion-{corpus}"), confusions)
    for what in ("va", "emotion"):
        curves = _having(models, ("geometry", "dimensions", what), "kept")
        if curves:
            first = next(iter(curves.values()))
            title = f"{first['figure']} on {first['corpus']} against kept dimensions"
            figures.plot_dimension_curves(path(f"dimensions-{what}"), curves, title, first["figure"])
    return drawn


def _at(figures_of_model: Mapping[str, Any], keys: tuple[str, ...]) -> Mapping[str, Any]:
    for key in keys:
        figures_of_model = figures_of_model.get(key, {})
    return figures_of_model


def _having(models: Mapping[str, Any], keys: tuple[str, ...], figure: str) -> dict[str, Mapping[str, Any]]:
    """The models' entries at `keys` in which the figure is defined."""
    entries = {name: _at(found, keys) for name, found in models.items()}
    return {name: entry for name, entry in entries.items() if entry.get(figure) is not None}
