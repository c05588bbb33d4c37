"""The plots of an evaluation, from its results and test items."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from carl_hf.report import plots
from carl_hf.report.tables import short_names

_BARS = {
    "valence r": ("va", "emobank", "valence", "pearson"),
    "arousal r": ("va", "emobank", "arousal", "pearson"),
    "valence r, demo": ("va", "demo", "valence", "pearson"),
    "arousal r, demo": ("va", "demo", "arousal", "pearson"),
    "feeling over topic": ("space", "feeling-over-topic", "accuracy"),
    "label nearness, rho": ("space", "emobank", "nearness", "both"),
    "label nearness, demo, rho": ("space", "demo", "nearness", "both"),
    "valence r of 10 neighbours": ("space", "emobank", "knn", "valence", "pearson"),
    "arousal r of 10 neighbours": ("space", "emobank", "knn", "arousal", "pearson"),
    "GoEmotions six, p@10": ("space", "goemotions-six", "precision_at_10"),
    "STS benchmark, rho": ("semantics", "stsb", "spearman"),
    "MR": ("polarity", "mr", "accuracy"),
    "CR": ("polarity", "cr", "accuracy"),
    "SST5": ("polarity", "sst5", "accuracy"),
    "IMDB": ("polarity", "imdb", "accuracy"),
    "GoEmotions six": ("emotion", "goemotions-six", "accuracy"),
    "ISEAR": ("emotion", "isear", "accuracy"),
    "EmoLit-12": ("emotion", "emolit12", "accuracy"),
    "emotion, demo": ("emotion", "demo", "accuracy"),
}
_AXES = ("alignment (lower: a class lies closer together)", "uniformity (lower: texts spread more evenly)")


def draw(path: Path, plot: Callable[..., None], *arguments: Any) -> list[Path]:
    """Draws `plot(path, *arguments)`. An error costs this plot alone: it is logged, and there is no path then."""
    try:
        plot(path, *arguments)
    except Exception as error:
        logging.warning("%s could not be drawn: %s: %s", path, type(error).__name__, error)
        return []
    return [path]


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
    drawn: list[Path] = []

    def add(name: str, plot: Callable[..., None], *arguments: Any) -> None:
        drawn.extend(draw(folder / f"{name}.png", plot, *arguments))

    def measured(key: str) -> dict[str, Mapping[str, np.ndarray]]:
        return {short[name]: arrays[key] for name, arrays in items.items() if key in arrays}

    bars = {
        title: {
            name: (found[metric], *(found[f"{metric}_interval"] or [found[metric]] * 2))
            for name, found in _having(models, *keys, metric).items()
        }
        for title, (*keys, metric) in _BARS.items()
    }
    bars = {title: row for title, row in bars.items() if row}
    if bars:
        add("scores", plots.plot_bars, bars, [title for title, keys in _BARS.items() if keys[-1] == "accuracy"])
    for corpus in ("emobank", "facebook", "demo"):
        if arrays := measured(f"va/{corpus}"):
            panels = {name: found["predictions"][:, :2] for name, found in arrays.items()}
            add(f"circle-{corpus}", plots.plot_circumplex, panels, next(iter(arrays.values()))["references"][:, :2])
    for corpus in ("goemotions-six", "emolit12", "demo"):
        if arrays := measured(f"geometry/{corpus}"):
            panels = {name: (found["embeddings"], found["labels"].tolist()) for name, found in arrays.items()}  # type: ignore[misc]
            add(f"pca-{corpus}", plots.plot_emotion_pca, panels)
        accuracy = _having(models, "emotion", corpus, "accuracy")
        points = {
            name: (found["alignment"], found["uniformity"], accuracy[name]["accuracy"])
            for name, found in _having(models, "geometry", corpus, "alignment").items()
            if name in accuracy
        }
        if points:
            add(f"alignment-{corpus}", plots.plot_points, points, *_AXES)
        if confused := _having(models, "emotion", corpus, "confusion"):
            panels = {name: (np.array(found["confusion"]), found["classes"]) for name, found in confused.items()}  # type: ignore[misc]
            add(f"confusion-{corpus}", plots.plot_confusion, panels)
    for what in ("va", "emotion"):
        if curves := _having(models, "geometry", "dimensions", what, "kept"):
            first = next(iter(curves.values()))
            title = f"{first['figure']} on {first['corpus']} against kept dimensions"
            add(f"dimensions-{what}", plots.plot_dimension_curves, curves, title, first["figure"])
    return drawn


def _having(models: Mapping[str, Any], *path: str) -> dict[str, Mapping[str, Any]]:
    """The models' entries that hold the last name of the path."""
    found = {}
    for name, entry in models.items():
        for key in path[:-1]:
            entry = entry.get(key, {})
        if entry.get(path[-1]) is not None:
            found[name] = entry
    return found
