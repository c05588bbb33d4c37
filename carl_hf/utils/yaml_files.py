"""YAML files of plain values."""

from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path, what: str) -> Any:
    """What a YAML file holds: names, numbers, lists and mappings; never an object of Python's.

    Args:
        what: the file is, for messages, such as "the configuration".

    Raises:
        ValueError: if the file cannot be read or is no such YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"Cannot read {what} {path}: {error.strerror}.") from error
    except Exception as error:  # beside YAMLError any that a value raises which does not fit its tag, as in `!!bool x`
        raise ValueError(f"{path} is not valid YAML: {type(error).__name__}: {str(error)[:500]}") from error
