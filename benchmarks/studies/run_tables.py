"""File names of records, and means over seeds as text, for the tables of the studies."""

import re
from collections.abc import Sequence

import numpy as np

from carl_hf.report.tables import MISSING, fraction


def slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def number_text(value: float, digits: int, *, signed: bool = False) -> str:
    text = fraction(value, digits) if digits > 1 else f"{value:.{digits}f}"
    return f"+{text}" if signed and value > 0 else text


def mean_and_std(values: Sequence[float], digits: int, *, signed: bool = False) -> str:
    """Mean ± sample standard deviation; one value alone; a dash for none."""
    if not values:
        return MISSING
    mean = number_text(float(np.mean(values)), digits, signed=signed)
    return mean if len(values) == 1 else f"{mean} ± {number_text(float(np.std(values, ddof=1)), digits)}"
