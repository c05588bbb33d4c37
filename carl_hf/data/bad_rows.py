"""Rows that cannot be used: what is wrong with them, and how they are refused, or left out and counted."""

import functools
import logging
import math
import numbers
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 100_000
"""Longest text of a corpus: a book chapter. What is longer is a file gone wrong, slow to tokenize and then cut off."""
_FIRST = 5  # rows of a reason that are named


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Args:
        number: of the row, from 1; the header does not count. reason: in few words, the same for all rows of its kind.
        detail: what is wrong with this one, as the end of a sentence about it.
    """

    number: int
    reason: str
    detail: str


Fault = tuple[str, str]
"""Reason and detail of a [`BadRow`]."""


def text_fault(column: str, cell: Any) -> Fault | None:
    """What is wrong with a cell that is to hold a text; None if nothing is."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return f"{column} is empty", f"column {column!r} is empty"
    if not isinstance(cell, str):
        return f"{column} is no text", f"column {column!r} holds {reprlib.repr(cell)}, not a text"
    if len(cell) > MAX_CHARACTERS:
        return (
            f"{column} is too long",
            f"column {column!r} holds {len(cell):,} characters, more than {MAX_CHARACTERS:,}",
        )
    return _encoding_fault(column, cell)


def name_fault(column: str, cell: Any) -> Fault | None:
    """The same for a cell that is to hold the name, or number, of a class."""
    if is_blank(cell):
        return f"{column} is empty", f"column {column!r} is empty"
    if not isinstance(cell, (str, numbers.Number)):
        return f"{column} is no name", f"column {column!r} holds {reprlib.repr(cell)}, not a name"
    return _encoding_fault(column, cell) if isinstance(cell, str) else None


def _encoding_fault(column: str, cell: str) -> Fault | None:
    if not is_unicode(cell):
        return "not UTF-8", f"column {column!r} is not UTF-8 text"
    return None


def is_unicode(cell: str) -> bool:
    """Whether a string is valid Unicode: bytes that are not UTF-8 were read as surrogates."""
    if cell.isascii():
        return True
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_blank(cell: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, white space."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or (isinstance(cell, numbers.Real) and cell != cell)


def number_of(cell: Any) -> float:
    """The number in a cell, NaN where it holds none."""
    if isinstance(cell, bool) or not isinstance(cell, (str, numbers.Real, Decimal)):
        return math.nan
    if isinstance(cell, str) and "_" in cell:  # 1_000 is Python's, no file's
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return math.nan
    except OverflowError:
        return math.inf


def refuse(name: object, bad: Sequence[BadRow], remedy: str) -> None:
    """Raises a ValueError that names the first of `bad`, if there is any."""
    if not bad:
        return
    first = min(bad, key=lambda row: row.number)
    others = f" ({len(bad) - 1} more bad rows follow)" if len(bad) > 1 else ""
    raise ValueError(f"{name}, row {first.number}: {first.detail}{others}; {remedy}.")


@dataclass
class Skipped:
    """How many rows were left out, and of each reason how many and the numbers of the first five; no more is kept."""

    rows: int = 0
    reasons: dict[str, tuple[int, list[int]]] = field(default_factory=dict)

    def add(self, row: BadRow) -> None:
        """Counts a row; they come in order."""
        count, first = self.reasons.get(row.reason, (0, []))
        self.rows += 1
        self.reasons[row.reason] = (count + 1, first if len(first) == _FIRST else [*first, row.number])

    def record(self) -> dict[str, Any]:
        kinds = {reason: {"rows": rows, "first": first} for reason, (rows, first) in self.reasons.items()}
        return {"rows": self.rows, "reasons": kinds}


def skipped(bad: Iterable[BadRow]) -> Skipped:
    found = Skipped()
    for row in sorted(bad, key=lambda row: row.number):
        found.add(row)
    return found


def skipped_record(bad: Iterable[BadRow]) -> dict[str, Any]:
    """For a record: how many rows, and of each reason how many and the numbers of the first five."""
    return skipped(bad).record()


def report_skipped(name: object, bad: Skipped) -> None:
    """Logs how many rows were left out and why; once, however often the same file is read."""
    if bad.rows:
        reasons = (
            f"{reason}: {rows} (row {', '.join(map(str, first))}{', ...' if rows > len(first) else ''})"
            for reason, (rows, first) in bad.reasons.items()
        )
        _log_once(f"{name}: {bad.rows} bad rows left out. {'; '.join(reasons)}.")


@functools.lru_cache(maxsize=10_000)
def _log_once(message: str) -> None:
    logger.warning("%s", message)
