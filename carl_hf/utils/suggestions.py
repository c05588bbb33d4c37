"""For messages: names that do not exist, and errors of libraries."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the most similar valid one, if any is similar."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f": did you mean {close[0]!r}?" if close else "."


def listed(names: Iterable[object]) -> str:
    """Names for a message, at most 500 characters of them."""
    text = ", ".join(map(str, names))
    return text if len(text) <= 500 else f"{text[:500]} ..."


def first_line(error: BaseException) -> str:
    """Of an error's message; its class where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
