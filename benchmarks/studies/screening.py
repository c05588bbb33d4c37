"""Main effects of a two-level screening design: which settings matter, from few runs (Plackett and Burman, Biometrika
33, 1946), with Lenth's error of an effect where no run is repeated (Technometrics 31, 1989)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from carl_hf.objectives import parse_objectives


@dataclass(frozen=True)
class Effect:
    """How much the metrics gain, on average over all other settings, if a setting has its second value.

    Args:
        setting: its name; several if they change together. low, high: its values, `low` that of the first run.
        gains: metric -> mean over the runs at `high` minus mean over those at `low`.
    """

    setting: str
    low: str
    high: str
    gains: dict[str, float]


def main_effects(settings: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, float]]) -> list[Effect]:
    """Effects of all settings that have two values, each in half of the runs.

    Args:
        settings: of each run, as [`flat`] returns them. metrics: of each run, with the same keys.

    Raises:
        ValueError: if two such settings are not orthogonal, so that their effects could not be told apart.
    """
    effects, patterns = [], []
    for pattern, names in _patterns(settings).items():
        if 2 * sum(pattern) != len(settings):
            continue
        high = np.array(pattern)
        for other in patterns:
            if 4 * (high & other).sum() != len(settings):
                raise ValueError(f"The design does not tell {' and '.join(names)} from another setting.")
        patterns.append(high)
        first_high = int(high.argmax())
        effects.append(
            Effect(
                ", ".join(names),
                ", ".join(_level(settings[0].get(name)) for name in names),
                ", ".join(_level(settings[first_high].get(name)) for name in names),
                {key: _difference([f[key] for f in metrics], high) for key in metrics[0]},
            )
        )
    return effects


def lenth_error(effects: Sequence[float]) -> float:
    """Standard error of one effect, estimated from all: most of them are taken to be noise (Lenth 1989, Eq 2)."""
    sizes = np.abs(effects)
    first = 1.5 * np.median(sizes)
    return float(1.5 * np.median(sizes[sizes <= 2.5 * first]))


def lenth_margin(effects: int) -> float:
    """Margin of error at 95 %, in standard errors: Student's t with a third as many degrees of freedom as there are
    effects (Lenth 1989)."""
    return float(stats.t.ppf(0.975, effects / 3))


def flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a recipe as one flat dict, with a key for each objective's weight."""
    training = dict(recipe["training"])
    weights = parse_objectives(training.pop("objectives", []))
    of_recipe = {key: value for key, value in recipe.items() if key != "training"}
    return of_recipe | training | {f"weight of {name}": weight for name, weight in weights.items()}


def _patterns(settings: Sequence[Mapping[str, Any]]) -> dict[tuple[bool, ...], list[str]]:
    """Which runs differ from the first -> the settings with two values that do; several if they change together."""
    found: dict[tuple[bool, ...], list[str]] = {}
    for name in dict.fromkeys(name for run in settings for name in run):
        levels = [_level(run.get(name)) for run in settings]
        if len(set(levels)) == 2:
            found.setdefault(tuple(level != levels[0] for level in levels), []).append(name)
    return found


def _level(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " + ".join(map(str, value))
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _difference(values: Sequence[float], high: np.ndarray) -> float:
    values = np.asarray(values)
    return float(values[high].mean() - values[~high].mean())
