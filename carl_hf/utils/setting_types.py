"""Whether a value has the type that a setting is declared with."""

import math
import numbers
import reprlib
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "nothing"}
_UNIONS = (Union, types.UnionType)


def check_setting_types(settings: Mapping[str, Any], owner: type) -> None:
    """Checks settings against the annotations of the class that declares them: numbers, texts, choices and lists of
    these. Mappings are checked by what reads them.

    Raises:
        ValueError: for the first that does not fit; it names the setting and what it must be.
    """
    hints = get_type_hints(owner)
    for name, value in settings.items():
        if not _fits(value, hints[name]):
            shown = "" if name.endswith("token") else f", got {reprlib.repr(value)}"
            raise ValueError(f"{name} must be {_described(hints[name])}{shown}.")


def at_least(name: str, value: Any, least: int) -> None:
    """Raises a ValueError unless a value is a whole number of at least so much."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {reprlib.repr(value)}.")


def _fits(value: Any, hint: Any) -> bool:
    kind, options = get_origin(hint) or hint, get_args(hint)
    if kind is Any:  # a type for isinstance from Python 3.11 on, which refuses it
        return True
    if kind in _UNIONS:
        return any(_fits(value, option) for option in options)
    if kind is Literal:
        return any(value == option for option in options)
    if kind is list:
        return isinstance(value, (list, tuple)) and all(_fits(item, options[0]) for item in value)
    if kind is dict:  # or the object that its reader makes of it
        return not isinstance(value, (str, list, tuple, numbers.Real))
    if kind in (int, float):
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return number and (kind is float or (math.isfinite(value) and value == int(value)))
    if not isinstance(kind, type):
        return True
    return isinstance(value, (kind, str) if issubclass(kind, Enum) else kind)


def _described(hint: Any) -> str:
    kind, options = get_origin(hint) or hint, get_args(hint)
    if kind in _UNIONS:
        return " or ".join(dict.fromkeys(_described(option) for option in options))
    if kind is Literal:
        return " or ".join(map(repr, options))
    if kind is list:
        return f"a list (each {_described(options[0])})"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(member.value for member in kind)
    return _WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")
