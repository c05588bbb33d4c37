"""Fields of argument dataclasses, for HfArgumentParser."""

from dataclasses import field
from typing import Any


def setting(default: Any, help: str) -> Any:
    """A field with a default (a list is copied for each object) and the text that `--help` shows."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def check_positive(arguments: Any, *names: str) -> None:
    """Raises a ValueError for the first of these settings that is below 1; None is no number."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be positive, got {value}.")
