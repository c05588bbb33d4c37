"""Types: the package agrees with its annotations, and a user's type checker sees them."""

import subprocess
import sys

import pytest
from conftest import ROOT

USER = """
from carl_hf import AffectPipeline, load_va_dataset

answers = AffectPipeline.from_pretrained("runs/mine")(["What a lovely evening."])
AffectPipeline("runs/mine/va", batch_size="32")
load_va_dataset("my.csv", split="training")
"""


def test_mypy_finds_a_users_mistakes_and_none_in_the_package(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--warn-unused-ignores", "--cache-dir", tmp_path / "cache", "--no-pretty"]
    files = ["carl_hf", "carl_hf_cli.py", tmp_path / "user.py"]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line.split(":")[1] for line in errors if "user.py" in line] == ["5", "6"], done.stdout + done.stderr
    assert len(errors) == 2, "\n".join(errors)
