"""The whole way of a model, as its maker and its users go it: pytest -m slow (minutes, installs packages)."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

from carl_hf import CarlModel
from carl_hf.encoders.loading import load_tokenizer

ROOT = Path(__file__).parents[1]
TEXTS = ["I am so happy today!", "Leave me alone, you liar.", "The report is due on Monday. " * 60]
PULL = """
import importlib.util, json, sys, warnings
assert importlib.util.find_spec("carl_hf") is None
warnings.simplefilter("error")
import torch
from transformers import AutoModel, AutoTokenizer, pipeline
texts = json.loads(sys.argv[1])
model, info = AutoModel.from_pretrained("org/carl-demo", output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained("org/carl-demo")
with torch.no_grad():
    states = model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).last_hidden_state
warnings.simplefilter("ignore")
from sentence_transformers import SentenceTransformer
print("RESULT " + json.dumps({
    "odd": {key: sorted(map(str, value)) for key, value in info.items() if value},
    "embeddings": states[:, 0].tolist(),
    "units": SentenceTransformer("org/carl-demo", device="cpu").encode(texts).tolist(),
    "va": pipeline("text-classification", "org/carl-demo-va", top_k=None)(texts[:2]),
    "emotion": pipeline("text-classification", "org/carl-demo-emotion", top_k=None)(texts[:2]),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_the_demo_trained_exported_pushed_and_loaded_without_carl_hf(xet, tmp_path, demo_run, bare_python):
    with LoopbackHub(tmp_path / "hub") as hub:
        for kind, name in (("encoder", "carl-demo"), ("va", "carl-demo-va"), ("emotion", "carl-demo-emotion")):
            head = [] if kind == "encoder" else ["--head", kind]
            push = [ROOT / "examples" / "push_to_hub.py", "--export", demo_run, "--repo_id", f"org/{name}", *head]
            env = hub.env(tmp_path / f"maker-{kind}", xet=xet)
            subprocess.run([sys.executable, *map(str, push)], check=True, env=env)
        done = subprocess.run(
            [bare_python, "-c", PULL, json.dumps(TEXTS)], capture_output=True, text=True, cwd=tmp_path,
            env=hub.env(tmp_path / "user", xet=xet),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not initialized" not in done.stderr and "arning" not in done.stderr
    found = json.loads(done.stdout.rsplit("RESULT ", 1)[1])
    checkpoint = max(demo_run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    vectors = CarlModel.from_pretrained(checkpoint).embed(TEXTS, load_tokenizer("minilm-l6"))
    assert found["odd"] == {}
    assert found["embeddings"] == [pytest.approx(row, abs=1e-5) for row in vectors.tolist()]
    units = vectors / vectors.norm(dim=1, keepdim=True)
    assert found["units"] == [pytest.approx(row, abs=1e-5) for row in units.tolist()]
    valence = [{a["label"]: a["score"] for a in answer}["valence"] for answer in found["va"]]
    assert valence[0] > 0.6 > 0.4 > valence[1]
    assert [len(answer) for answer in found["emotion"]] == [7, 7]
    assert [answer[0]["label"] for answer in found["emotion"]] == ["joy", "anger"]


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """The README's first command, trained whole."""
    folder = tmp_path_factory.mktemp("demo")
    launch = ["-m", "accelerate.commands.launch", ROOT / "examples" / "pretrain.py", "--output_dir", folder]
    subprocess.run([sys.executable, *map(str, launch)], check=True)
    return folder


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter with the constrained torch, transformers and sentence-transformers, and no carl_hf."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    python, constraints = folder / "bin" / "python", ROOT / "constraints.txt"
    for names in (["torch"], ["transformers", "sentence-transformers", "hf-xet"]):
        subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, *names], check=True)
    return python
