"""The command `carl-hf` and `python -m carl_hf`, from a checkout and from a built wheel."""

import configparser
import os
import pickle
import re
import shutil
import subprocess
import sys
import venv
from unittest.mock import Mock

import pytest
from conftest import ROOT, load_script
from transformers import BertConfig

from carl_hf import CarlConfig, __version__
from carl_hf_cli import SCRIPTS, main


def run_main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["carl_hf", *words])
    main()


def test_it_lists_its_commands_and_suggests_one(monkeypatch, capsys):
    run_main(monkeypatch, "--help")
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in SCRIPTS) and printed.count("\n") < 24
    run_main(monkeypatch, "--version")
    assert capsys.readouterr().out.strip() == __version__
    with pytest.raises(SystemExit, match="error: there is no command 'pretran': did you mean 'pretrain'"):
        run_main(monkeypatch, "pretran")


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"mteb"}))
def test_each_command_runs_the_script_in_examples(name, monkeypatch, capsys, tmp_path):
    if name == "app":
        pytest.importorskip("gradio")
        pytest.importorskip("captum")
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds a folder to it
    with pytest.raises(SystemExit) as end:
        run_main(monkeypatch, name, "--help")
    script = ROOT / "examples" / SCRIPTS[name][0]
    printed, text = capsys.readouterr().out, script.read_text()
    assert end.value.code == 0 and f"usage: carl-hf {name} " in printed
    assert not re.search(r"examples/\S+\.py", printed)  # which a wheel's user does not see
    (tmp_path / "c.yaml").write_text("no_such: 1")
    with pytest.raises(SystemExit) as end:
        run_main(monkeypatch, name, "--config", str(tmp_path / "c.yaml"))
    assert "no_such" in str(end.value) or "no_such" in capsys.readouterr().err
    assert text.splitlines()[0].strip('"') in printed  # the script's own docstring


def test_each_start_loads_what_it_uses():
    code = """
import pickle, runpy, sys
def loaded(*names):
    print([name for name in names if name in sys.modules])
import carl_hf_cli
sys.argv = ["carl-hf", "--help"]
carl_hf_cli.main()
loaded("torch", "transformers", "carl_hf", "numpy")
import carl_hf
from transformers import AutoModel, BertConfig
torch_alone = "datasets", "emoji", "pandas", "pyarrow", "scipy", "transformers.modeling_utils", "transformers.trainer"
loaded("torch", *torch_alone)
sys.argv = ["carl_hf", "--version"]
runpy.run_module("carl_hf", run_name="__main__")
loaded("torch", *torch_alone)
config = pickle.loads({config!r})
model = AutoModel.from_config(config)
assert type(model) is carl_hf.CarlModel
loaded("transformers.modeling_utils", "datasets", "emoji", "pandas", "pyarrow", "transformers.trainer")
for script in {scripts!r}:
    runpy.run_path(script)
loaded("transformers.trainer", "evaluate", "gradio", "matplotlib", "onnx", "sentence_transformers", "sklearn")
"""
    encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    scripts = [str(ROOT / "examples" / SCRIPTS[name][0]) for name in sorted(set(SCRIPTS) - {"app", "explain", "mteb"})]
    code = code.format(config=pickle.dumps(CarlConfig(encoder=encoder, projection_dim=4)), scripts=scripts)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-6:] == [
        "[]", "['torch']", __version__, "['torch']", "['transformers.modeling_utils']", "['transformers.trainer']"
    ]  # fmt: skip


def test_all_packages_are_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "carl_hf").rglob("__init__.py")}
    expected = {".".join(folder.parts) for folder in folders} | {"carl_hf.examples"}
    assert set(config["options"]["packages"].split()) == expected
    (command,) = config["options.entry_points"]["console_scripts"].split("\n")[1:]
    name, module, function = re.fullmatch(r"(.*) = (.*):(.*)", command).groups()
    assert name == "carl-hf" and module in config["options"]["py_modules"] and (module, function) == (
        main.__module__, main.__name__
    )  # fmt: skip


def test_the_oldest_constraints_are_the_least_versions():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed, extras = config["options"]["install_requires"], config["options.extras_require"]["test"]
    least = dict(re.findall(r"^([\w-]+)>=([\d.]+)", f"{needed}\n{extras}", re.M))
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints-oldest.txt").read_text(), re.M))
    assert {name: least.get(name) for name in pinned} == pinned
    assert {*re.findall(r"^[\w-]+", needed, re.M)} <= set(pinned)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_built_works_in_a_fresh_environment(kind, tmp_path, tiny):
    """The environment has its own packages first, then those of this one, which spares the download of torch."""
    source = tmp_path / "source"  # without an earlier build's files
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words, cwd=tmp_path):
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    venv.create(tmp_path / "venv", with_pip=True)
    python, command = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "carl-hf"
    run(python, "-m", "pip", "install", "setuptools>=77")
    build = "import sys, setuptools.build_meta as m; getattr(m, 'build_' + sys.argv[1])(sys.argv[2])"
    run(python, "-c", build, kind, tmp_path, cwd=source)
    (built,) = tmp_path.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    run(python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", built)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))

    assert run(command, "--version").strip() == run(python, "-m", "carl_hf", "--version").strip() == __version__
    where = run(python, "-c", "import carl_hf, importlib.metadata as m; print(carl_hf.__file__, *m.files('carl_hf'))")
    assert where.startswith(str(site))
    for name in ("carl_hf/py.typed", "carl_hf/examples/space/analysis.py", "carl_hf/examples/configs/demo.yaml"):
        assert f" {name}" in where
    settings = ["--encoder", tiny, "--config", site / "carl_hf" / "examples" / "configs" / "demo.yaml"]
    settings += ["--output_dir", "out", "--max_steps", "1", "--num_threads", "1", "--use_cpu", "true"]
    assert "Verdict" in run(command, "pretrain", *settings)
    assert (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"app", "mteb"}))
def test_a_stopped_command_ends_in_one_line(name, monkeypatch, capsys):
    script = load_script(f"examples/{SCRIPTS[name][0]}")
    parse = "parse_arguments" if name in ("pretrain", "finetune") else "parse_script_arguments"
    monkeypatch.setattr(script, parse, Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit) as stop:
        script.main([])
    kept = {"pretrain": "--resume_from_checkpoint auto", "finetune": "--resume_from_checkpoint auto",
            "score": "the same command goes on", "embed": "the same command goes on"}  # fmt: skip
    said = capsys.readouterr().err
    assert stop.value.code == 130 and said.startswith("Stopped.") and len(said.splitlines()) == 1
    assert kept.get(name, "") in said
