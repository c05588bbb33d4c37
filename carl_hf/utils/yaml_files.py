"""YAML files of plain values."""

from pathlib import Path
from typing import Any

import yaml

_MOST_VALUES = 100_000  # with those that aliases (`*name`) repeat: a few nested ones make billions


def read_yaml(path: Path, what: str) -> Any:
    """The names, numbers, lists and mappings of a YAML file; never a Python object.

    Args:
        what: for messages, such as "the configuration".

    Raises:
        ValueError: if the file cannot be read, is no such YAML, or its aliases make it too large.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if root is not None and _values(root, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"more than {_MOST_VALUES:,} values, aliases (*name) written out: remove some.")
        return None if root is None else loader.construct_document(root)
    except OSError as error:
        raise ValueError(f"Cannot read {what} {path}: {error.strerror}.") from error
    except Exception as error:  # beside YAMLError what a value raises that does not fit its tag, as in `!!bool x`
        raise ValueError(f"{path} is not valid YAML: {type(error).__name__}: {str(error)[:500]}") from error


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds, a long text counted as several, and those of an alias wherever it stands."""
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value) // 100
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # of a node inside itself, which has no end
        pairs = node.value if isinstance(node, yaml.SequenceNode) else (child for pair in node.value for child in pair)
        known[id(node)] = 1 + sum(_values(child, known) for child in pairs)
    return known[id(node)]
