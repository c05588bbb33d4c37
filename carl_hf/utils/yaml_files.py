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
        ValueError: if the file cannot be read, is no such YAML, gives a name twice, or its aliases make it too large.
    """
    return read_as_written(path, what)[0]


def read_as_written(path: Path, what: str) -> tuple[Any, dict[str, str | list[str | None]]]:
    """The same, and of a file of names, name -> the value as it is written: a string, or those of a list; so `no` is
    "no", and not False. Names with null or a mapping are not in it."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if root is not None and _values(root, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"more than {_MOST_VALUES:,} values, aliases (*name) written out: remove some.")
        pairs = root.value if isinstance(root, yaml.MappingNode) else []
        names = [name.value for name, _ in pairs if isinstance(name, yaml.ScalarNode)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.YAMLError(f"{twice[0]} stands there twice: remove one.")
        content = None if root is None else loader.construct_document(root)
        written = {name.value: _written(value) for name, value in pairs if isinstance(name, yaml.ScalarNode)}
        return content, {name: value for name, value in written.items() if value is not None}
    except OSError as error:
        raise ValueError(f"Cannot read {what} {path}: {error.strerror}.") from error
    except Exception as error:  # beside YAMLError what a value raises that does not fit its tag, as in `!!bool x`
        raise ValueError(f"{path} is not valid YAML: {type(error).__name__}: {str(error)[:500]}") from error


def _written(node: yaml.Node) -> str | list[str | None] | None:
    """The string, or the strings of a list, that a node holds; None for null and all else."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag.endswith(":null") else node.value
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [_written(item) for item in node.value]  # type: ignore[misc]
    return None


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds, a long text counted as several, and those of an alias wherever it stands."""
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value) // 100
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # of a node inside itself, which has no end
        pairs = node.value if isinstance(node, yaml.SequenceNode) else (child for pair in node.value for child in pair)
        known[id(node)] = 1 + sum(_values(child, known) for child in pairs)
    return known[id(node)]
