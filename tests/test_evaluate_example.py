"""examples/evaluate.py and benchmarks/studies/va_regression.py as a user starts them."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_encoder

from carl_hf import CarlModel, Provenance, export_encoder

pytestmark = pytest.mark.usefixtures("measuring_packages")
ROOT = Path(__file__).parents[1]
EVALUATE = [sys.executable, str(ROOT / "examples" / "evaluate.py"), "--num_threads", "1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """Three exports, as if of three seeds, and a checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8)
        for parameter in model.encoder.encoder.parameters():
            parameter.data.mul_(1 + 0.2 * seed)
        export_encoder(model, tokenizer, folder / f"run-{seed}" / "encoder")
    model.save_pretrained(folder / "checkpoint-3")
    tokenizer.save_pretrained(folder / "checkpoint-3")
    return folder


@pytest.fixture
def data(small_corpora):
    return ("--data_dir", small_corpora)


def run(*arguments, expect=0, command=EVALUATE, cwd=ROOT):
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=300, cwd=cwd)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def test_three_models_with_report_figures_comparison_and_cache(models, tmp_path, data):
    names = [models / "checkpoint-3", f"{models / 'run-0' / 'encoder'}@mean", models / "run-1" / "encoder"]
    common = ("--model", *names, *data, "--cache_dir", tmp_path / "cache", "--shots", "2")
    done = run(*common, "--output_dir", tmp_path / "a")
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert list(results["models"]) == [str(name) for name in names]
    checkpoint, mean, _ = results["models"].values()
    assert checkpoint["pooling"] == "cls" and mean["pooling"] == "mean" and checkpoint["dimensions"] == 16
    assert {"va", "emotion", "geometry", "detector"} <= set(checkpoint) and "detector" not in mean
    assert "no CARL checkpoint" in mean["skipped"]["detector"] and "polarity/cr" in mean["skipped"]
    assert set(checkpoint["emotion"]["goemotions-six"]["few_shot"]) == {"2"}
    gain = results["comparisons"][f"{names[1]} minus {names[0]}"]["va"]["emobank"]["valence"]
    assert gain["pearson"] == pytest.approx(
        mean["va"]["emobank"]["valence"]["pearson"] - checkpoint["va"]["emobank"]["valence"]["pearson"]
    )
    report = (tmp_path / "a" / "report.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", report)
    assert len(pictures) >= 7 and all((tmp_path / "a" / picture).stat().st_size > 5000 for picture in pictures)
    assert all((tmp_path / "a" / picture).with_suffix(".svg").exists() for picture in pictures)
    assert "checkpoint-3" in done.stdout and "nan" not in done.stdout.lower()

    again = run(*common, "--output_dir", tmp_path / "b")  # from the cache: the same figures
    second = json.loads((tmp_path / "b" / "results.json").read_text())
    for name, found in results["models"].items():
        assert {k: v for k, v in found.items() if k != "seconds"} == {
            k: v for k, v in second["models"][name].items() if k != "seconds"
        }
    assert again.stdout.splitlines()[0] == f"[1/3] {names[0]}"

    refused = run(*common, "--output_dir", tmp_path / "a", expect=1)
    assert "holds the results of another evaluation" in refused.stderr


def test_spread_over_seeds(models, tmp_path, data):
    pattern = f"{models}/run-{{seed}}/encoder"
    arguments = (*data, "--tasks", "va", "--no_cache", "true", "--output_dir", tmp_path / "out")
    run("--model", pattern, "--seeds", "3", *arguments)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    runs = [f["va"]["emobank"]["valence"]["pearson"] for f in results["models"].values()]
    figures = results["spread"][pattern]["figures"]["va"]["emobank"]["valence"]["pearson"]
    assert len(set(runs)) == 3 and figures["mean"] == pytest.approx(sum(runs) / 3) and figures["std"] > 0
    few = run("--model", pattern, "--seeds", "4", *arguments, "--overwrite_output_dir", "true", expect=1)
    assert "--seeds 4, but there are 3 such folders" in few.stderr
    none = run("--model", models / "run-0" / "encoder", "--seeds", "2", *arguments, expect=1)
    assert (
        json.loads((tmp_path / "out" / "results.json").read_text()) == results and "holds the results" in none.stderr
    )


def test_the_regression_baseline_trains_and_its_head_is_measured(models, tmp_path, tokenizer):
    tiny_encoder().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    baseline = [sys.executable, str(ROOT / "benchmarks" / "studies" / "va_regression.py")]
    run("--encoder", tmp_path / "tiny", "--max_steps", "3", "--output_dir", tmp_path / "head", command=baseline)
    run("--model", tmp_path / "head", "--tasks", "va", "--no_cache", "true", "--output_dir", tmp_path / "out")
    (figures,) = json.loads((tmp_path / "out" / "results.json").read_text())["models"].values()
    assert figures["va"]["demo direct"]["protocol"] == "the model's own head"
    assert figures["va"]["demo direct"]["valence"]["mae"] < 1
    again = run("--output_dir", tmp_path / "head", command=baseline, expect=1)
    assert "holds a model" in again.stderr


def test_a_model_that_fails_costs_the_others_nothing(models, tmp_path, tokenizer, data):
    broken = tmp_path / "broken"
    model = tiny_encoder()
    model.embeddings.LayerNorm.weight.data.fill_(float("nan"))
    model.save_pretrained(broken)
    tokenizer.save_pretrained(broken)
    names = [models / "run-0" / "encoder", broken, models / "run-1" / "encoder"]
    arguments = (*data, "--tasks", "va", "--no_cache", "true", "--output_dir", tmp_path / "out")
    done = run("--model", *names, *arguments, expect=1)
    assert f"error: {broken}: {broken} gives vectors that are not finite" in done.stderr
    assert done.stderr.strip().splitlines()[-1] == f"error: not measured: {broken}" and "Traceback" not in done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["models"]) == [str(names[0]), str(names[2])] and len(results["comparisons"]) == 1
    assert (tmp_path / "out" / "report.md").exists()


@pytest.fixture
def script(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("evaluate_example", EVALUATE[1])
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "evaluate_example", module)
    spec.loader.exec_module(module)
    return module


def test_what_a_model_was_trained_on_is_read_from_its_record(models, tmp_path, script):
    assert script.trained_on("minilm-l6") == [] and script.trained_on(str(models / "run-0" / "encoder")) == []
    (tmp_path / "encoder").mkdir()
    for on_test, seen in ((False, ["facebook"]), (True, ["emobank", "facebook"])):
        provenance = Provenance(corpora=["emobank", "facebook"], trained_on_test_rows=on_test)
        (tmp_path / "encoder" / "carl_export.json").write_text(json.dumps({"provenance": provenance.record()}))
        assert (
            script.trained_on(str(tmp_path / "encoder")) == script.trained_on(str(tmp_path / "checkpoint-3")) == seen
        )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "nobody/nothing"], "Cannot load the model 'nobody/nothing'"),
        (["--tasks", "vaa"], "Unknown task 'vaa'"),
        (["--data_dir", "nowhere"], "--data_dir nowhere is not a folder"),
        (["--model", "runs/{seed}/x"], "say with --seeds N"),
        (["--seeds", "3"], "--seeds needs a model whose name holds {seed}"),
        (["--polarity", "imbd"], "Unknown polarity corpus 'imbd'"),
        (["--emotion", "nowhere.csv"], "There is no file nowhere.csv"),
        (["--comparators", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", "nowhere.yaml"], "Cannot read the configuration"),
    ],
)
def test_bad_arguments_end_in_one_clear_line(arguments, message, models, tmp_path, script, monkeypatch):
    own = [] if "--model" in arguments else ["--model", str(models / "run-0" / "encoder")]
    flags = [*own, "--tasks", "emotion", "--output_dir", str(tmp_path), "--no_cache", "true", *arguments]
    monkeypatch.setattr(sys, "argv", [*EVALUATE[1:], *flags])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert str(stop.value.code).startswith("error: ") and message in str(stop.value.code)
