"""What README and guides show runs: their Python, the flags and files of their commands, their links."""

import argparse
import dataclasses
import functools
import hashlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT, load_script
from torch.distributed.run import get_args_parser

from carl_hf import CarlTrainingArguments, __version__, load_va_dataset
from carl_hf.commands.before_after import print_before_after
from carl_hf.encoders import packaged
from carl_hf.objectives import describe_objectives
from carl_hf_cli import SCRIPTS as COMMAND_SCRIPTS


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


GUIDES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "model_cards" / "README.md", *sorted((ROOT / "benchmarks").glob("**/*.md")),
    ROOT / "examples" / "browser" / "README.md",
    ROOT / "examples" / "space" / "README.md", *sorted((ROOT / "carl_hf" / "evaluation" / "metrics").glob("*/*.md")),
    *sorted((ROOT / "carl_hf" / "data" / "resources").glob("*.md")),
    ROOT / "carl_hf" / "data" / "label_spaces" / "SOURCES.md",
]  # fmt: skip
SCRIPTS = sorted(
    name_of(path)
    for folder in ("examples", "benchmarks", "model_cards")
    for path in (ROOT / folder).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
PACKAGES = {
    "examples/mteb_task.py": "mteb", "examples/space/app.py": "gradio", "examples/explain.py": "captum",
    "examples/cluster/score_ray.py": "ray", "examples/cluster/score_spark.py": "pyspark",
}  # fmt: skip


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


NEEDED = {"sentence_transformers": "sentence_transformers", "carl_hf.explain": "captum", "load_metric": "evaluate",
          "CarlVectorizer": "sklearn"}  # fmt: skip
SNIPPETS = [
    pytest.param(code, id=f"{name_of(path)}-{number}")
    for path in GUIDES
    for number, code in enumerate(blocks(path, "python"), 1)
]
COMMANDS = {  # those that stand in several guides once
    line: name_of(path)
    for path in GUIDES
    for block in blocks(path, "bash")
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
}


# ---- Python


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, exports, tiny) -> Path:
    """A folder with what the snippets name: exports of a tiny model, a CSV file, and a tiny encoder as minilm-l6."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(exports[0], folder / "runs" / "carl-demo")
    frame = load_va_dataset("demo", split="test").to_pandas().head(40)
    frame[["valence", "arousal"]] = 5 + 4 * frame[["valence", "arousal"]]
    frame.to_csv(folder / "my.csv", index=False)
    shutil.copytree(tiny, folder / "tiny_minilm" / "model")
    (folder / "tiny_minilm" / "__init__.py").touch()
    return folder


@pytest.mark.parametrize("code", SNIPPETS)
def test_python_runs(code, workplace, tmp_path, monkeypatch, capsys, measuring_packages):
    """As it stands, on tiny models; training makes one step."""
    for word, package in NEEDED.items():
        if word in code:
            pytest.importorskip(package)
    weights = workplace / "tiny_minilm" / "model" / "model.safetensors"
    monkeypatch.syspath_prepend(str(workplace))
    monkeypatch.setattr(packaged, "_MINILM_MODULE", "tiny_minilm")
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setitem(packaged._WEIGHTS_SHA256, packaged.PACKAGED_ENCODER, sha256)
    prepare = CarlTrainingArguments.__init__

    def one_step(self, output_dir=None, **settings):
        prepare(self, output_dir, **{**settings, "max_steps": 1, "head_warmup_epochs": 0, "disable_tqdm": True})

    monkeypatch.setattr(CarlTrainingArguments, "__init__", one_step)
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("my.csv", "runs"):  # what a snippet writes stays its own
        (shutil.copytree if (workplace / name).is_dir() else shutil.copy)(workplace / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "snippet", "exec"), names)
    check(names, code, capsys.readouterr().out, tmp_path)


def check(names: dict, code: str, printed: str, folder: Path) -> None:
    """Where a comment or the text says what comes out, that it does."""
    shown = re.search(re.escape(code) + r"```\n\n```text\n(.*?)```", text_of("README.md"), re.S)
    if shown:  # the values are the demo run's; the tiny model here gives others
        answers = r"(?m)\d\.\d\d|\w+$"  # numbers, and the emotion at a line's end
        assert re.sub(answers, "#", printed) == re.sub(answers, "#", shown[1])
    if "# (2, 384)" in code:
        assert names["embeddings"].shape == (2, 16)  # the tiny model's width
    if "to_html" in code:
        assert "<figure" in names["page"] and names["one"].target == "similarity"
    if "table = " in code and "AffectPipeline" in code:
        assert names["table"]["valence"].notna().tolist() == [True, True, False]
    for word, files in {
        '"runs/mine/encoder")': ["runs/mine/encoder/model.safetensors"],
        "out/emotion": [f"out/{kind}/carl_export.json" for kind in ("encoder", "va", "emotion")],
        "objectives=": ["runs/mine/checkpoint-1/model.safetensors"],
    }.items():
        assert word not in code or all((folder / file).is_file() for file in files), word


def test_the_shown_report_is_what_the_script_prints(capsys):
    """The README's metrics, read from its report and printed anew as examples/pretrain.py does."""
    shown = next(block for block in blocks(ROOT / "README.md", "text") if "held-out texts" in block)
    results = {
        "run": {"encoder": "minilm-l6", "method": describe_objectives(["mccl", "rank_n_contrast", "regression"])},
        "verdict": shown.strip().splitlines()[-1],
    }
    for key, pooling in (("before", "mean"), ("after", "cls"), ("gain", "")):
        line = re.search(rf"^{key} .*$", shown, re.M)[0]
        numbers = [float(number) for number in re.findall(r"[-+]?\d\.\d{3}", line)]
        results[key] = {"demo": {"pooling": pooling}}
        for dimension, (r, low, high) in zip(("valence", "arousal"), (numbers[:3], numbers[3:]), strict=True):
            results[key]["demo"][dimension] = {"pearson": r, "pearson_interval": [low, high]}
    if found := re.search(r"^feeling over topic: (\d+)", shown, re.M):
        feeling = results["feeling_over_topic"] = {}
        for key in ("before", "after", "gain"):
            line = re.findall(rf"^{key} .*$", shown, re.M)[-1]
            share, *shares, margin, low, high = map(float, re.findall(r"[-+]?\d+\.\d+", line))
            feeling[key] = {"accuracy": share, "accuracy_interval": shares, "margin": margin,
                            "margin_interval": [low, high], "pooling": "cls" if ", cls" in line else "mean",
                            "texts": int(found[1])}  # fmt: skip
    print_before_after(results, {"demo": int(re.search(r"^demo: (\d+)", shown, re.M)[1])})
    assert capsys.readouterr().out.strip() == shown.strip()


# ---- commands


class Found(Exception):
    """Carries the parser that a script would have parsed its command line with."""


@functools.cache
def parser_of(script: str) -> argparse.ArgumentParser:
    """The script's parser, from its `main` in this process."""
    pytest.importorskip(PACKAGES.get(script, "torch"))

    def stop(self, *arguments, **named):
        raise Found(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Found) as found:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        load_script(script).main()
    return found.value.args[0]


def check_launcher(words: list[str], script: int) -> None:
    """Python, or a launcher that takes the words before the script."""
    if words[:script] == ["python"]:
        return
    if words[:2] == ["accelerate", "launch"]:
        found = launch_command_parser().parse_args(words[2:])
        assert found.config_file is None or load_config_from_file(str(ROOT / found.config_file))
    else:
        assert words[0] == "torchrun", words
        found = get_args_parser().parse_args(words[1:])
    assert [found.training_script, *found.training_script_args] == words[script:]


@pytest.mark.parametrize("line", COMMANDS, ids=[f"{name}: {line[:60]}" for line, name in COMMANDS.items()])
def test_commands_name_scripts_flags_and_files_that_exist(line, capsys):
    for command in re.split(r" && | \| ", line):
        words = shlex.split(command, comments=True)
        if words[:1] == ["carl-hf"] and words[1] in COMMAND_SCRIPTS:
            words = ["python", f"examples/{COMMAND_SCRIPTS[words[1]][0]}", *words[2:]]
        script = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
        for word in words:
            if re.match(r"(examples|benchmarks|model_cards|carl_hf|tests)/", word) and "{" not in word:
                assert (ROOT / word).exists(), word
        if script is None:
            known = ("python3", ".", "pip", "ruff", "python", "hf", "git", "cd", "npm")
            assert not words or words[0] in known, command
            continue
        check_launcher(words, script)
        try:
            parser_of(words[script]).parse_args(words[script + 1 :])
        except SystemExit:
            pytest.fail(f"{command}: {capsys.readouterr().err}")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_each_flag_is_and_a_mistake_ends_in_one_line(script, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    parser = parser_of(script)
    with pytest.raises(SystemExit, match="0"):
        argparse.ArgumentParser.parse_args(parser, ["--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 119
    assert parser.description.strip().splitlines()[0] in text  # what the script is for
    helps = {action.dest: action.help for action in parser._actions if action.nargs != 0}
    assert [name for name, words in helps.items() if not words or words.startswith(" (default")] == [], "without help"
    for field in (f for dataclass in getattr(parser, "dataclass_types", []) for f in dataclasses.fields(dataclass)):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        assert not field.init or default in (None, "", []) or "(default: " in helps[field.name], field.name
    if script in ("examples/mteb_task.py", "model_cards/collect.py") or "cluster" in script:
        return
    mistake = "Cannot read the configuration" if "--config" in text else "2"  # 2 is argparse's
    for flags, message in (["--no_such_flag"], "2"), (["--config", "none.yaml"], mistake):
        monkeypatch.setattr(sys, "argv", [script, *flags])
        with pytest.raises(SystemExit, match=message):
            load_script(script).main()
    assert "unrecognized arguments: --no_such_flag" in capsys.readouterr().err


# ---- links


def anchors_of(path: Path) -> set[str]:
    """The anchors that GitHub gives to a file's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = next(n for n in range(100) if (f"{anchor}-{n}" if n else anchor) not in found)
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


@pytest.mark.parametrize("path", [*GUIDES, *sorted((ROOT / "model_cards").glob("*/README.md"))], ids=name_of)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    assert "@@" not in text and "TODO" not in text
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        assert goal.exists() and goal.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors_of(goal), target
    for target in re.findall(r"(?<![\w/])(?:examples|benchmarks|docs|tests|carl_hf|model_cards)/[\w/.-]+\.\w+", text):
        assert (ROOT / target).exists(), target


def test_guides_and_scripts_are_listed():
    for guide in (ROOT / "docs").glob("*.md"):
        assert guide.name == "README.md" or f"({guide.name})" in text_of("docs/README.md"), guide.name
    text = "".join(path.read_text(encoding="utf-8") for path in GUIDES)
    assert [script for script in SCRIPTS if script not in text and not script.startswith("benchmarks/")] == []


def test_the_readme_sets_up_in_two_lines():
    text = text_of("README.md")
    lines = [line for line in text.splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2 and "accelerate launch -q examples/pretrain.py" in lines[0] and "pytest" in lines[1]
    assert text.index(lines[1]) < 2500  # on the first screen


def test_metrics_of_the_model_cards_in_the_guides_are_those_of_their_records():
    for model in ("carl-demo", "carl-minilm", "carl-mpnet"):
        record = yaml.safe_load(text_of(f"model_cards/{model}/carl_export.json"))
        for row in (row for row in record["results"] if row["metric"] == "pearson"):
            by_probe = row["name"] in ("valence, Pearson r", "arousal, Pearson r")
            for value in (row["value"], row["baseline"]):
                shown = f"{value:.3f}".removeprefix("0")
                for guide in ["docs/paper.md"] + ["README.md"] * by_probe:
                    assert shown in text_of(guide), (guide, model, row["name"], shown)


def test_the_citation_names_this_version():
    assert yaml.safe_load(text_of("CITATION.cff"))["version"] == __version__
