"""Which room of carl_hf may import which: docs/architecture.md."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "carl_hf"
RANKS = {"utils": 1, "encoders": 2, "data": 2, "losses": 2, "method": 3, "evaluation": 4, "report": 5, "export": 6,
         "training": 7, "use": 8, "inference": 9, "commands": 10}  # fmt: skip
USE = {"carl_hf", "carl_hf.trainer", "carl_hf.explain"}


def modules() -> dict[str, Path]:
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules of carl_hf that a file imports, also inside functions; those for type checkers alone left out."""
    found, pending = set(), [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
    return found & known


def room(module: str) -> str:
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in RANKS:
        return parts[1]
    return "use" if module in USE else "method"


def test_a_module_imports_its_own_room_and_those_before_it():
    known = modules()
    assert len(known) > 40
    for module, path in known.items():
        own = room(module)
        for other in imports(path, set(known)):
            there = room(other)
            if module == "carl_hf" or other == "carl_hf.version" or (other == "carl_hf" and own == "commands"):
                continue  # the package itself names what it hands out; its version is a number
            assert own == there or RANKS[there] < RANKS[own], f"{module} ({own}) imports {other} ({there})"


def test_no_modules_import_each_other_in_a_circle():
    known = modules()
    TopologicalSorter({module: imports(path, set(known)) - {module} for module, path in known.items()}).prepare()


def test_every_room_says_what_it_is_for():
    for name in RANKS:
        folder = PACKAGE / name
        if folder.is_dir():
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), name


def test_the_top_level_holds_the_paper_and_its_use():
    method = {"adversary", "momentum", "objectives", "configuration_carl", "modeling_carl", "collator",
              "training_args", "trainer", "explain", "version", "__init__", "__main__"}  # fmt: skip
    assert {path.stem for path in PACKAGE.glob("*.py")} == method
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} <= set(RANKS)
