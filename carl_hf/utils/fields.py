"""Fields of argument dataclasses, for HfArgumentParser."""

from dataclasses import field
from typing import Any


def setting(default: Any, help: str) -> Any:
    """A field with a default (a list is copied for each object) and the text that `--help` shows."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})
