"""What the README promises exists."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_two_lines_do_the_set_up():
    lines = [line for line in TEXT.splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2 and "accelerate launch examples/pretrain.py" in lines[0] and "pytest" in lines[1]
    assert TEXT.index(lines[1]) < 2500  # on the first screen


def test_configurations_are_those_that_the_readme_names():
    configs = {path.stem for path in (ROOT / "examples" / "configs").glob("*.yaml")}
    assert configs == {"demo", "carl-minilm", "carl-roberta", "carl-bert", "comparators", "emotion"}
    demo = yaml.safe_load((ROOT / "examples" / "configs" / "demo.yaml").read_text())
    assert demo["encoder"] == "minilm-l6" and demo["corpora"] == ["demo"]
