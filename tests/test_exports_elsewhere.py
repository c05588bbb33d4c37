"""Exports in environments without carl_hf and with other versions: pytest -m slow (minutes, installs packages)."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from transformers import pipeline

LOAD = Path(__file__).with_name("load_exports.py")


def python_with(folder, *packages):
    """An interpreter with the constrained torch and other packages."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    for names in ([line for line in constraints if line.startswith("torch==")], packages):
        subprocess.run([python, "-m", "pip", "install", "-q", *names], check=True)
    return python


def load(python, sources, texts, cwd, *flags, env=None):
    """What load_exports.py finds."""
    command = [python, *flags, LOAD, json.dumps(sources), json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rsplit("RESULT ", 1)[1])
    assert found["odd"] == {}
    return found, done.stderr


def assert_embeddings(found, vectors):
    units = vectors / vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(torch.tensor(found["embeddings"]), vectors, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(found["unit_embeddings"]), units, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "packages",
    [
        ("transformers==4.49.0", "sentence-transformers==3.4.1"),
        ("transformers==4.57.6", "sentence-transformers==5.1.2"),
        ("transformers==5.23.0", "sentence-transformers==6.2.0"),
    ],
    ids=" ".join,
)
def test_exports_load_in_other_versions(packages, exports, tmp_path):
    folder, vectors = exports
    sources = {kind: str(folder / kind) for kind in ("encoder", "va", "emotion")}
    texts = ["joywow joywow", "woezzz"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found, _ = load(python_with(tmp_path / "venv", *packages), sources, texts, tmp_path, env=env)
    print(found["versions"], file=sys.stderr)
    assert found["max_length"] == 32
    assert_embeddings(found, vectors)
    for kind in ("va", "emotion"):
        for ours, theirs in zip(pipeline("text-classification", sources[kind], top_k=None)(texts), found[kind],
                                strict=True):  # fmt: skip
            assert [output["label"] for output in theirs] == [output["label"] for output in ours]
            scores = [output["score"] for output in ours]
            assert [output["score"] for output in theirs] == pytest.approx(scores, abs=1e-5)
