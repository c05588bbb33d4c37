"""`python -m carl_hf`, from a checkout and from a built wheel."""

import configparser
import os
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest
from conftest import ROOT

from carl_hf.__main__ import SCRIPTS, main


def run_main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["carl_hf", *words])
    main()


def test_it_lists_its_commands_and_suggests_one(monkeypatch, capsys):
    run_main(monkeypatch)
    printed = capsys.readouterr().out
    assert all(name in printed for name in SCRIPTS)
    with pytest.raises(SystemExit, match="error: there is no command 'pretran': did you mean 'pretrain'"):
        run_main(monkeypatch, "pretran")


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"mteb"}))
def test_each_command_runs_the_script_in_examples(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run_main(monkeypatch, name, "--help")
    printed, text = capsys.readouterr().out, (ROOT / "examples" / SCRIPTS[name]).read_text()
    assert end.value.code == 0 and f"usage: {SCRIPTS[name]}" in printed
    assert text.splitlines()[0].strip('"') in printed  # the script's own docstring


def test_all_packages_are_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "carl_hf").rglob("__init__.py")}
    expected = {".".join(folder.parts) for folder in folders} | {"carl_hf.examples"}
    assert set(config["options"]["packages"].split()) == expected


@pytest.mark.slow
def test_a_wheel_holds_the_scripts_and_their_configurations(tmp_path, tiny):
    pip = [sys.executable, "-m", "pip", "--quiet"]
    isolation = ["--no-build-isolation"] if "setuptools" in packages_distributions() else []
    subprocess.run([*pip, "wheel", "--no-deps", *isolation, "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    pretrain = [
        sys.executable, "-m", "carl_hf", "pretrain", "--output_dir", "out", "--max_steps", "1", "--num_threads", "1",
        "--encoder", tiny, "--config", tmp_path / "site" / "carl_hf" / "examples" / "configs" / "demo.yaml",
        "--use_cpu", "true",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(pretrain, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0 and "Verdict" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "out" / "results.json").exists()
