"""Label spaces: where names of emotions lie in the plane of valence and arousal, as published.

One CSV file for each source, with the columns `name` and either `valence` and `arousal` (in [-1, 1]) or `angle`
(degrees, counter-clockwise from positive valence). SOURCES.md says where the numbers come from.
"""

import importlib.resources
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carl_hf.data.bad_rows import number_of
from carl_hf.data.files import read_table

LABEL_SPACES = ("circle12", "russell1980", "ekman6", "goemotions28")


@dataclass(frozen=True)
class LabelSpace:
    """Coordinates of names.

    Args:
        name: of the space. va: name -> (valence, arousal) in [-1, 1]; where the source gives angles only, the point
            on the unit circle. angles: name -> degrees in [0, 360); a name at (0, 0) has none.
    """

    name: str
    va: Mapping[str, tuple[float, float]]
    angles: Mapping[str, float]

    def va_of(self, names: Iterable[str]) -> dict[str, tuple[float, float]]:
        """Valence and arousal of these names, upper or lower case.

        Raises:
            ValueError: for a name without an entry; the message lists those that have one.
        """
        return self._find(names, self.va, "entry")

    def angles_of(self, names: Iterable[str]) -> dict[str, float]:
        """Degrees of these names, upper or lower case.

        Raises:
            ValueError: for a name without an angle; the message lists those that have one.
        """
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
    """A label space by name (see `LABEL_SPACES`), or from a CSV file of one's own.

    Raises:
        ValueError: for an unknown name, a missing column, a value that is no number or out of range, or a name that
            stands there twice.
    """
    if source in LABEL_SPACES:
        with importlib.resources.as_file(importlib.resources.files(__name__) / f"{source}.csv") as path:
            return _read(path, str(source))
    path = Path(source)
    if path.suffix.lower() != ".csv" or not path.is_file():
        raise ValueError(
            f"Unknown label space {str(source)!r}: choose {', '.join(LABEL_SPACES)}, or give a CSV file with the "
            "columns name, and valence and arousal in [-1, 1], or angle in degrees."
        )
    return _read(path, path.name)


def _read(path: Path, name: str) -> LabelSpace:
    frame = read_table(path, comment="#")
    columns = ["angle"] if "angle" in frame else ["valence", "arousal"]
    for column in ("name", *columns):
        if column not in frame:
            raise ValueError(
                f"{path} has no column {column!r}; a label space has name, and valence and arousal, or angle."
            )
    keys = [_key(entry) for entry in frame["name"]]
    if not all(keys):
        raise ValueError(f"{path}, row {keys.index('') + 1}: column 'name' is empty; name the emotion.")
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{path}: the name {reprlib.repr(twice)} stands there twice.")
    for column in columns:
        numbers = np.array([number_of(cell) for cell in frame[column]])
        bad = ~(np.abs(numbers) <= (360 if column == "angle" else 1))  # NaN fails the comparison
        if bad.any():
            row = int(bad.argmax())
            what = "degrees from 0 to 360" if column == "angle" else "a number in [-1, 1]"
            raise ValueError(
                f"{path}, row {row + 1}: {column} is {reprlib.repr(frame[column].iloc[row])}, not {what}."
            )
        frame[column] = numbers
    if columns == ["angle"]:
        radians = [math.radians(angle) for angle in frame["angle"]]
        points = [(math.cos(angle), math.sin(angle)) for angle in radians]
        angles = [angle % 360 for angle in frame["angle"]]
    else:
        points = list(zip(frame["valence"], frame["arousal"], strict=True))
        angles = [math.degrees(math.atan2(a, v)) % 360 if v or a else None for v, a in points]
    return LabelSpace(
        name,
        va=dict(zip(keys, points, strict=True)),
        angles={key: angle for key, angle in zip(keys, angles, strict=True) if angle is not None},
    )


def _key(name: str) -> str:
    return name.strip().lower()
