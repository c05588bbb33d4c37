"""The rules for texts, class labels and numbers; the rows that break them are refused, or left out and counted."""

import contextlib
import json
import math
import numbers
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any

import pandas as pd

from carl_hf.utils.log_once import log_once
from carl_hf.utils.suggestions import listed

MAX_CHARACTERS = 100_000
"""Longest text of a corpus, about a book chapter. Anything longer is a broken file, and slow to tokenize."""
LEAST_WEIGHT, GREATEST_WEIGHT = 1e-30, 1e30
"""Of a text: what float32 can sum and divide by."""
REMEDY = "correct or remove the row"
TO_UTF8 = 'save the file as UTF-8 ("CSV UTF-8" in Excel, or iconv -f cp1252 -t utf-8)'
_FIRST = 5
_MISSING = ("NA", "<NA>", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null")
_LIST = re.compile(r"\s*\[(.*)\]\s*", re.DOTALL)
_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")
_ALL_QUOTED = re.compile(rf"\s*((?:{_QUOTED.pattern})[\s,]*)+")
_MARK = re.compile(r"[+-]?[\d.]+|True|False")
_ONE_HOT = ({"0", "1"}, {"0.0", "1.0"}, {"False", "True"})
_SPLITS = {
    name: split
    for split, names in {
        "train": "train training", "validation": "validation valid val dev devel development eval evaluation",
        "test": "test testing",
    }.items()
    for name in names.split()
}  # fmt: skip


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    number: int  # from 1; the header does not count
    reason: str  # in few words, the same for all rows of its kind
    detail: str  # what is wrong with this one, as the end of a sentence about it


Rows = tuple[pd.DataFrame, list[BadRow]]
"""Good rows, under their numbers as index, and the bad ones."""


class BadCell(ValueError):
    """A cell that breaks a rule: BadCell(reason, detail), as in a [`BadRow`]."""


Rule = Callable[[str, Any], Any]
"""(column, cell) -> the cell's value; raises [`BadCell`]."""


def is_blank(cell: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, NA, white space."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or cell is pd.NA or (isinstance(cell, numbers.Real) and cell != cell)


def is_missing(cell: Any) -> bool:
    """Whether a class label is: a blank cell, or what R, pandas and databases write for one."""
    return is_blank(cell) or (isinstance(cell, str) and cell.strip() in _MISSING)


def _filled(column: str, cell: Any, types: tuple[type, ...], what: str) -> Any:
    if is_blank(cell):
        raise BadCell(f"{column} is empty", f"column {column!r} is empty")
    if not isinstance(cell, types):
        raise BadCell(f"{column} is no {what}", f"column {column!r} holds {reprlib.repr(cell)}, not a {what}")
    return cell


def any_text(column: str, cell: Any) -> str:
    """A text that is not empty."""
    return _filled(column, cell, (str,), "text")


def optional_text(column: str, cell: Any) -> str | None:
    """The same; an empty cell is no text."""
    return None if is_blank(cell) else any_text(column, cell)


def corpus_text(column: str, cell: Any) -> str:
    """A text of a corpus: not empty, and at most `MAX_CHARACTERS` long."""
    if len(text := any_text(column, cell)) > MAX_CHARACTERS:
        detail = f"column {column!r} holds {len(text):,} characters, more than {MAX_CHARACTERS:,}"
        raise BadCell(f"{column} is too long", detail)
    return text


def class_names(column: str, cell: Any) -> tuple[str, ...]:
    """The classes of a text: a name without white space around it, or a number as a string; or a list of them, which
    in CSV is written `['joy', 'sad']`, `["joy", "sad"]`, `[joy, sad]` or `[1 2]`."""
    cells = cell if isinstance(cell, list) else [None if is_missing(cell) else cell]
    if isinstance(cell, str) and (listed := _LIST.fullmatch(cell)):
        cells = _listed(column, cell, listed[1])
    found = [str(_filled(column, name, (str, numbers.Number), "name")).strip() for name in cells]
    if len(set(found)) < len(found) and set(found) in _ONE_HOT:
        detail = f"column {column!r} holds {reprlib.repr(cell)}, marks of classes in place of the classes' names"
        raise BadCell(f"{column} has marks in place of names", detail)
    return tuple(dict.fromkeys(found))


def _listed(column: str, cell: str, inner: str) -> list[Any]:
    """The names in a list that is written as text, `inner` between its brackets."""
    with contextlib.suppress(ValueError):
        return json.loads(cell)
    if _ALL_QUOTED.fullmatch(inner):
        return [single or double for single, double in _QUOTED.findall(inner)]
    words, names = inner.split(), [name.strip() for name in inner.split(",")]
    if "," not in inner and (len(words) < 2 or all(map(_MARK.fullmatch, words))):
        return words
    if "," not in inner or any(name.startswith(("'", '"')) or ";" in name or "|" in name for name in names):
        detail = f"column {column!r} holds {reprlib.repr(cell)}: a list of names is written ['joy', 'sad']"
        raise BadCell(f"{column} is no list of names", detail)
    return names


def class_name(column: str, cell: Any) -> str:
    """The same of a text that has one."""
    names = class_names(column, cell)
    if len(names) != 1:
        detail = f"column {column!r} holds {reprlib.repr(cell)}, and a text has one label here"
        raise BadCell(f"{column} is not one name", detail)
    return names[0]


def optional_class_name(column: str, cell: Any) -> str | None:
    """The same; an empty cell is a missing label."""
    return None if is_missing(cell) else class_name(column, cell)


def usual_split(name: str) -> str | None:
    """`train`, `validation` or `test`, if this is a usual name of one, numbered or not."""
    return _SPLITS.get(re.sub(r"[\s_-]*\d*$", "", name.strip().lower()))


def split_name(column: str, cell: Any) -> str:
    """`train`, `validation` or `test`, from the usual names of these splits, numbered or not."""
    name = str(_filled(column, cell, (str,), "name of a split"))
    found = usual_split(name)
    if found is None:
        detail = f"column {column!r} holds {reprlib.repr(name)}, which is none of train, validation (or dev), test"
        raise BadCell(f"{column} is unknown", detail)
    return found


@dataclass(frozen=True)
class Number:
    """The rule for numbers between two bounds; strings of numbers count. If `optional`, an empty cell is NaN."""

    least: float = -math.inf
    greatest: float = math.inf
    optional: bool = False

    def __call__(self, column: str, cell: Any) -> float:
        if self.optional and is_blank(cell):
            return math.nan
        try:
            is_number = isinstance(cell, (numbers.Real, Decimal, str)) and not isinstance(cell, bool)
            value = float(cell) if is_number and "_" not in str(cell) else math.nan  # 1_000 is Python's notation alone
        except (ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            raise BadCell(f"{column} is no number", f"column {column!r} holds {reprlib.repr(cell)}, not a number")
        if not self.least <= value <= self.greatest:
            detail = f"{column} is {value:g}, outside the scale [{self.least:g}, {self.greatest:g}]"
            raise BadCell(f"{column} is outside the scale", detail)
        return value


@dataclass(frozen=True)
class Weight(Number):
    """The rule for weights: numbers > 0 between the bounds of float32; an empty cell is NaN."""

    optional: bool = True

    def __call__(self, column: str, cell: Any) -> float:
        value = super().__call__(column, cell)
        if value < LEAST_WEIGHT or value > GREATEST_WEIGHT:
            found = f"column {column!r} holds {value:g}: weights are greater than 0, and at most {GREATEST_WEIGHT:g}"
            raise BadCell(f"{column} is not positive", found)
        return value


def parse_rows(frame: pd.DataFrame, rules: Mapping[str, Rule], unread: Iterable[BadRow] = ()) -> Rows:
    """The good rows, with the values that the rules return for those of their columns that are there, and the bad
    rows in order, with those that could not be read. The index holds the row numbers."""
    frame, bad = frame.copy(), {row.number: row for row in unread}
    for column in (column for column in rules if column in frame):
        rule, values = rules[column], []
        for number, cell in frame[column].items():
            try:
                values.append(rule(column, cell))
            except BadCell as error:
                values.append(math.nan)
                bad.setdefault(number, BadRow(number, *error.args))
        dtype = float if isinstance(rule, Number) else object
        frame[column] = pd.Series(values, index=frame.index, dtype=dtype)
    return frame.drop(index=list(bad), errors="ignore"), [bad[number] for number in sorted(bad)]


def without_rows(rows: Rows, numbers: Iterable[int], reason: str, detail: str) -> Rows:
    """`rows`, of which the good ones with these numbers are bad."""
    frame, bad = rows
    found = [*bad, *(BadRow(number, reason, detail) for number in numbers)]
    return frame.drop(index=list(numbers)), sorted(found, key=lambda row: row.number)


def check_table(frame: pd.DataFrame, rules: Mapping[str, Rule], name: object) -> pd.DataFrame:
    """A table under a plain index, with the values that the rules return; a ValueError for a missing column, no rows,
    or the first bad row."""
    missing = [column for column in rules if column not in frame]
    if missing:
        raise ValueError(f"{name} has no column {', '.join(map(repr, missing))}; it has {listed(frame)}.")
    if frame.columns.has_duplicates:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(f"{name} has two columns that stand for {twice!r}: remove one.")
    if len(frame) == 0:
        raise ValueError(f"{name} has no rows.")
    frame, bad = parse_rows(frame.set_axis(range(1, len(frame) + 1)), rules)
    refuse(name, bad, REMEDY)
    return frame.reset_index(drop=True)


def refuse(name: object, bad: Sequence[BadRow], remedy: str) -> None:
    """Raises a ValueError that names the first of `bad`, if there is any."""
    if bad:
        first = min(bad, key=lambda row: row.number)
        remedy = f"{TO_UTF8}, or {remedy}" if first.reason == "not UTF-8" else remedy
        others = f" ({len(bad) - 1} more bad rows follow)" if len(bad) > 1 else ""
        raise ValueError(f"{name}, row {first.number}: {first.detail}{others}; {remedy}.")


@dataclass
class Skipped:
    """How many rows were left out, and reason -> {"rows": how many, "first": the numbers of the first five}."""

    rows: int = 0
    reasons: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, bad: Iterable[BadRow]) -> "Skipped":
        found = cls()
        for row in bad:
            found.add(row)
        return found

    def add(self, row: BadRow) -> None:
        """Counts a row; they come in order."""
        found = self.reasons.setdefault(row.reason, {"rows": 0, "first": []})
        self.rows += 1
        found["rows"] += 1
        found["first"] = [*found["first"], row.number][:_FIRST]

    def record(self) -> dict[str, Any]:
        """As results.json holds it."""
        return asdict(self)


def report_skipped(name: object, skipped: Skipped) -> None:
    """Logs how many rows were left out and why; once, however often the same file is read."""
    if skipped.rows:
        reasons = (
            f"{reason}: {found['rows']} (row {', '.join(map(str, found['first']))}"
            f"{', ...' if found['rows'] > len(found['first']) else ''})"
            for reason, found in skipped.reasons.items()
        )
        log_once(f"{name}: {skipped.rows} bad rows left out. {'; '.join(reasons)}.")


def log_missing(name: object, missing: Mapping[str, int], rows: int) -> None:
    """Logs, once, how many of the rows lack a number: column -> rows."""
    for column, number in missing.items():
        if number:
            log_once(f"{name}: {number:,} of {rows:,} texts have no {column}; what needs it leaves them out.")
