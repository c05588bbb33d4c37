"""Whether a value has the type that a setting is declared with."""

import math
import numbers
import reprlib
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "nothing"}


def check_setting_types(settings: Mapping[str, Any], owner: type) -> None:
    """Checks the values of settings against the annotations of the class that declares them: numbers, texts, choices
    and lists of these. What a mapping holds is its owner's to check.

    Raises:
        ValueError: for the first that does not fit; it names the setting and what it must be.
    """
    hints = get_type_hints(owner)
    for name, value in settings.items():
        if not _fits(value, hints[name]):
            shown = "" if name.endswith("token") else f", got {reprlib.repr(value)}"
            raise ValueError(f"{name} must be {_described(hints[name])}{shown}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, options = get_origin(hint), get_args(hint)
    if hint is dict or origin is dict:  # or what its owner makes of it
        return not isinstance(value, (str, list, tuple, numbers.Real))
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is Literal:
        return any(value == option for option in options)
    if origin is list:
        return isinstance(value, (list, tuple)) and all(_fits(item, options[0]) for item in value)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if hint in (int, float):
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return number and (hint is float or (math.isfinite(value) and value == int(value)))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return isinstance(value, (hint, str))
    return not isinstance(origin or hint, type) or isinstance(value, origin or hint)


def _described(hint: Any) -> str:
    options = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(option) for option in options))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, options))
    if get_origin(hint) is list:
        return f"a list (each {_described(options[0])})"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(member.value for member in hint)
    return _WORDS.get(hint, f"a {getattr(hint, '__name__', hint)}")
