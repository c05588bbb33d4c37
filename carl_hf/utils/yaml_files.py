"""YAML files of plain values."""

from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path, what: str) -> Any:
    """The names, numbers, lists and mappings of a YAML file; never a Python object.

    Args:
        what: for messages, such as "the configuration".

    Raises:
        ValueError: if the file cannot be read or is no such YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"Cannot read {what} {path}: {error.strerror}.") from error
    except Exception as error:  # beside YAMLError what a value raises that does not fit its tag, as in `!!bool x`
        raise ValueError(f"{path} is not valid YAML: {type(error).__name__}: {str(error)[:500]}") from error
