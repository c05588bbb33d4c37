"""Label spaces: coordinates of emotion names on the plane of valence and arousal, as published.

One CSV file for each source, with the columns `name` and `valence` and `arousal` (in [-1, 1]), `angle` (degrees,
counter-clockwise from positive valence), or all three. SOURCES.md names the sources.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from carl_hf.data.bad_rows import Number, check_table, class_name
from carl_hf.data.files import read_table

LABEL_SPACES = ("circle12", "russell1980", "ekman6", "goemotions28")


@dataclass(frozen=True)
class LabelSpace:
    """Coordinates of emotion names."""

    name: str  # of the space
    va: Mapping[str, tuple[float, float]]  # in [-1, 1]; of a source with angles only, points on the unit circle
    angles: Mapping[str, float]  # degrees in [0, 360); an emotion at (0, 0) has none

    def va_of(self, names: Iterable[str]) -> dict[str, tuple[float, float]]:
        """Valence and arousal of these names, in upper or lower case; a ValueError for a name without an entry."""
        return self._find(names, self.va, "entry")

    def angles_of(self, names: Iterable[str]) -> dict[str, float]:
        """Degrees of these names, in upper or lower case; a ValueError for a name without an angle."""
        return self._find(names, self.angles, "angle")

    def radians_of(self, names: Iterable[str]) -> dict[str, float]:
        """As [`angles_of`], in radians."""
        return {name: math.radians(degrees) for name, degrees in self.angles_of(names).items()}

    def known_angles(self, names: Iterable[str]) -> dict[str, float]:
        """Degrees of those of these names that have an angle."""
        return {name: self.angles[_key(name)] for name in names if _key(name) in self.angles}

    def _find(self, names: Iterable[str], known: Mapping[str, object], what: str) -> dict:
        names = sorted(names)
        missing = [name for name in names if _key(name) not in known]
        if missing:
            raise ValueError(
                f"The label space {self.name} has no {what} for {', '.join(map(repr, missing))}; it has "
                f"{', '.join(sorted(known))}. Choose another space ({', '.join(LABEL_SPACES)}), or give a CSV file "
                "with name, valence, arousal."
            )
        return {name: known[_key(name)] for name in names}


def read_label_space(source: str | Path) -> LabelSpace:
    """A label space by name (see `LABEL_SPACES`), or from a CSV file of your own.

    Raises:
        ValueError: for an unknown name, a missing column, a value that is no number or out of range, or a repeated
            name.
    """
    known = source in LABEL_SPACES
    path = Path(__file__).with_name(f"{source}.csv") if known else Path(source)
    if path.suffix.lower() != ".csv" or not path.is_file():
        raise ValueError(
            f"Unknown label space {str(source)!r}: choose {', '.join(LABEL_SPACES)}, or give a CSV file with the "
            "columns name, and valence and arousal in [-1, 1], or angle in degrees."
        )
    frame = read_table(path, comment="#")
    has_angle, has_va = "angle" in frame, not {"valence", "arousal"}.isdisjoint(frame)
    ranges = {"angle": Number(-360, 360)} if has_angle else {}
    if has_va or not has_angle:
        ranges |= dict.fromkeys(("valence", "arousal"), Number(-1, 1))
    frame = check_table(frame, {"name": class_name, **ranges}, path)
    keys = frame["name"].map(_key)
    if keys.duplicated().any():
        raise ValueError(f"{path}: the name {keys[keys.duplicated()].iloc[0][:80]!r} is there twice.")
    if "valence" in ranges:
        points = list(zip(frame["valence"], frame["arousal"], strict=True))
    else:
        points = [(math.cos(angle), math.sin(angle)) for angle in map(math.radians, frame["angle"])]
    if has_angle:
        angles = [angle % 360 for angle in frame["angle"]]
    else:
        angles = [math.degrees(math.atan2(a, v)) % 360 if v or a else None for v, a in points]
    return LabelSpace(
        str(source) if known else path.name,
        va=dict(zip(keys, points, strict=True)),
        angles={key: angle for key, angle in zip(keys, angles, strict=True) if angle is not None},
    )


def _key(name: str) -> str:
    return name.strip().lower()
