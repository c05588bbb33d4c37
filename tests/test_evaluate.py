"""examples/evaluate.py, and benchmarks/studies/va_regression.py, whose models it measures."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, load_script, run_script, saved, tiny_encoder, toy_dataset

from carl_hf import CarlModel, Provenance, export_encoder
from carl_hf.commands.evaluate import EvaluateArguments, runs_of_models
from carl_hf.commands.pretrain import PretrainArguments
from carl_hf.evaluation.tasks import Corpora, Settings
from carl_hf.export.seen import head_trained_on, trained_on

pytestmark = pytest.mark.usefixtures("measuring_packages")
SCRIPT = "examples/evaluate.py"


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """Three exports, as if of three seeds, and a checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8)
        for parameter in model.encoder.encoder.parameters():
            parameter.data.mul_(1 + 0.2 * seed)
        export_encoder(model, tokenizer, folder / f"run-{seed}" / "encoder")
    saved(model, tokenizer, folder / "checkpoint-3")
    return folder


@pytest.fixture
def evaluate(monkeypatch):
    """The script's main in this process, without plots: the error that it ends with, or None."""
    monkeypatch.setattr(load_script(SCRIPT), "draw_pictures", lambda *arguments: [])
    return partial(run_script, SCRIPT, "--num_threads", 1)


def results_in(folder):
    return json.loads((folder / "results.json").read_text())


def test_two_models_with_report_plots_comparison_and_cache(models, small_corpora, tmp_path, evaluate):
    names = [models / "checkpoint-3", f"{models / 'run-0' / 'encoder'}@mean"]
    common = ("--model", *names, "--data_dir", small_corpora, "--cache_dir", tmp_path / "cache",
              "--emotion", "goemotions-six", "--polarity", "mr", "cr")  # fmt: skip
    command = [sys.executable, ROOT / SCRIPT, *common, "--output_dir", tmp_path / "a", "--num_threads", "1"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = results_in(tmp_path / "a")
    assert list(results["models"]) == [str(name) for name in names]
    checkpoint, mean = results["models"].values()
    assert checkpoint["pooling"] == "cls" and mean["pooling"] == "mean" and checkpoint["dimensions"] == 16
    assert {"va", "emotion", "geometry", "detector"} <= set(checkpoint) and "detector" not in mean
    assert "no CARL checkpoint" in mean["skipped"]["detector"] and "polarity/cr" in mean["skipped"]
    gain = results["comparisons"][f"{names[1]} minus {names[0]}"]["va"]["emobank"]["valence"]
    assert gain["pearson"] == pytest.approx(
        mean["va"]["emobank"]["valence"]["pearson"] - checkpoint["va"]["emobank"]["valence"]["pearson"]
    )
    assert results["run"]["command"] == " ".join(map(str, [SCRIPT, *command[2:]]))
    plots = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (tmp_path / "a" / "report.md").read_text())
    assert len(plots) >= 7 and all((tmp_path / "a" / plot).stat().st_size > 5000 for plot in plots)
    assert all((tmp_path / "a" / plot).with_suffix(".svg").exists() for plot in plots)
    assert "checkpoint-3" in done.stdout and "nan" not in done.stdout.lower()

    cached = set((tmp_path / "cache").rglob("*"))
    assert evaluate(*common, "--tasks", "va", "emotion", "--output_dir", tmp_path / "b") is None
    assert set((tmp_path / "cache").rglob("*")) == cached  # nothing was embedded again
    for name, found in results_in(tmp_path / "b")["models"].items():
        assert all(found[task] == results["models"][name][task] for task in ("va", "emotion"))
    assert "holds another run (results.json, report.md, figures)" in evaluate(*common, "--output_dir", tmp_path / "a")


def test_spread_over_seeds(models, small_corpora, tmp_path, evaluate):
    pattern = f"{models}/run-{{seed}}/encoder@mean"
    flags = ("--data_dir", small_corpora, "--tasks", "va", "--no_cache", "true", "--output_dir", tmp_path / "out")
    assert evaluate("--model", pattern, "--seeds", "3", *flags) is None
    results = results_in(tmp_path / "out")
    runs = [figures["va"]["emobank"]["valence"]["pearson"] for figures in results["models"].values()]
    spread = results["spread"][pattern]
    assert spread["runs"] == list(results["models"]) == [pattern.replace("{seed}", str(seed)) for seed in range(3)]
    figures = spread["figures"]["va"]["emobank"]["valence"]["pearson"]
    assert len(set(runs)) == 3 and figures["mean"] == pytest.approx(sum(runs) / 3) and figures["std"] > 0
    few = evaluate("--model", pattern, "--seeds", "4", *flags, "--overwrite_output_dir", "true")
    assert "--seeds 4, but there are 3 such folders" in few and results_in(tmp_path / "out") == results


def test_the_lowest_numbers_are_taken_with_their_leading_zeros(tmp_path):
    for number in ("10", "02", "1", "003"):
        (tmp_path / f"run-{number}" / "encoder").mkdir(parents=True)
    pattern = f"{tmp_path}/run-{{seed}}/encoder"
    names = [pattern.replace("{seed}", number) for number in ("1", "02", "003")]
    assert runs_of_models(EvaluateArguments([pattern], seeds=3)) == {pattern: names}


def test_the_regression_baseline_trains_and_its_head_is_measured(tiny, tmp_path, evaluate, monkeypatch):
    baseline = load_script("benchmarks/studies/va_regression.py")
    flags = ["--encoder", str(tiny), "--max_steps", "3", "--output_dir", str(tmp_path / "head")]
    monkeypatch.setattr(sys, "argv", ["va_regression.py", "--batch_size", "16", *flags])
    monkeypatch.setattr(baseline, "use_all_cores", lambda num_threads: None)
    baseline.main()
    assert (
        evaluate("--model", tmp_path / "head", "--tasks", "va", "--no_cache", "true", "--output_dir", tmp_path) is None
    )
    (figures,) = results_in(tmp_path)["models"].values()
    assert figures["va"]["demo direct"]["protocol"] == "the model's own head"
    assert figures["va"]["demo direct"]["valence"]["mae"] < 1
    with pytest.raises(SystemExit, match="holds a model"):
        baseline.main()


def test_a_model_that_fails_costs_the_others_nothing(models, small_corpora, tmp_path, tokenizer, evaluate, capsys):
    model = tiny_encoder()
    model.embeddings.LayerNorm.weight.data.fill_(float("nan"))
    broken = saved(model, tokenizer, tmp_path / "broken")
    names = [models / "run-0" / "encoder", broken, models / "run-1" / "encoder"]
    flags = ("--data_dir", small_corpora, "--tasks", "va", "--no_cache", "true", "--output_dir", tmp_path / "out")
    assert evaluate("--model", *names, *flags) == f"error: not measured: {broken}"
    assert f"error: {broken}: {broken} gives vectors that are not finite" in capsys.readouterr().err
    results = results_in(tmp_path / "out")
    assert list(results["models"]) == [str(names[0]), str(names[2])] and len(results["comparisons"]) == 1
    assert (tmp_path / "out" / "report.md").exists()


def test_columns_and_bad_rows_of_a_file_of_the_user_have_flags(models, tmp_path, evaluate, capsys):
    rows = "".join(f"{'joy' if i % 2 else 'woe'} {i},{'glad' if i % 2 else 'glum'}\n" for i in range(40))
    (tmp_path / "own.csv").write_text(f"comment,feels\n{rows}unsaid,\n")
    flags = ["--model", models / "run-0" / "encoder", "--tasks", "emotion", "--emotion", tmp_path / "own.csv",
             "--no_cache", "true", "--output_dir", tmp_path / "out"]  # fmt: skip
    assert "Name yours by --text_column, --label_column" in evaluate(*flags)
    flags += ["--text_column", "comment", "--label_column", "feels"]
    assert "row 41: column 'label' is empty" in evaluate(*flags)
    assert evaluate(*flags, "--skip_bad_rows", "true") is None
    results = results_in(tmp_path / "out")
    assert results["run"]["skipped_rows"]["own"]["rows"] == 1
    (found,) = results["models"].values()
    assert f"{found['emotion']['own']['accuracy']:.1f}" in capsys.readouterr().out


def test_what_a_model_was_trained_on_is_read_from_its_record(models, tmp_path):
    assert trained_on("minilm-l6") == trained_on(str(models / "run-0" / "encoder")) == []
    for name in ("encoder", "checkpoint-3"):
        (tmp_path / name).mkdir()
    for on_test, seen in ((False, ["facebook"]), (True, ["emobank", "facebook"])):
        provenance = Provenance(corpora=["emobank", "facebook"], trained_on_test_rows=on_test)
        (tmp_path / "encoder" / "carl_export.json").write_text(json.dumps({"provenance": provenance.record()}))
        assert trained_on(str(tmp_path / "encoder")) == trained_on(str(tmp_path / "checkpoint-3")) == seen
    origin = Provenance(corpora=["goemotions-six", "own.csv", "demo"], trained_on_test_rows=True).record()
    head = {"provenance": None, "head": {"corpora": ["emobank", "facebook"]}}
    for record, seen, by_head in (
        ({"provenance": origin}, ["goemotions-six", "own", "demo", "goemotions-ekman", "goemotions-28"], []),
        (head, [], ["facebook"]),
        ({**head, "provenance": origin}, None, ["emobank", "facebook"]),
    ):
        (tmp_path / "encoder" / "carl_export.json").write_text(json.dumps(record))
        assert seen is None or trained_on(str(tmp_path / "encoder")) == seen
        assert head_trained_on(str(tmp_path / "encoder")) == by_head


@pytest.mark.parametrize(
    "trained, splits, evaluated, seen",
    [
        ({}, False, "own.csv", True),  # all of it is trained on
        ({}, False, "elsewhere/renamed.csv", True),
        ({"corpora": ["*.csv"], "shuffle_buffer": 5}, False, "own.csv", True),
        ({"emotion_corpus": "own.csv"}, False, "own.csv", False),  # its test part was held out
        ({"emotion_corpus": "own.csv", "include_eval_rows": True}, False, "own.csv", True),
        ({}, True, "own.csv", False),
        ({"include_eval_rows": True}, True, "elsewhere/renamed.csv", True),
        ({"include_eval_rows": True}, True, "elsewhere/own.csv", False),  # another file of that name
        ({}, False, "elsewhere/other.csv", False),
    ],
)
def test_a_file_is_marked_where_training_has_seen_its_test_texts(
    trained, splits, evaluated, seen, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    frame = toy_dataset(60).to_pandas()
    frame["text"], frame["label"] = frame["text"] + [f" {i}" for i in range(60)], ["joy", "fear", "awe"] * 20
    if splits:
        frame["split"] = ["train", "train", "test", "test"] * 15
    Path("elsewhere").mkdir()
    for name, rows in (
        ("own", frame),
        ("elsewhere/renamed", frame),
        ("elsewhere/other", frame[::-1]),
        ("elsewhere/own", frame[::-1]),
    ):
        rows.to_csv(f"{name}.csv", index=False)
    script = PretrainArguments(**{"corpora": ["own.csv"], **trained}, scale=[-1, 1])
    Path("encoder").mkdir()
    Path("encoder/carl_export.json").write_text(json.dumps({"provenance": script.provenance("CARL").record()}))
    corpora = Corpora(Settings(tasks=["emotion"], emotion=[evaluated]))
    assert (Path(evaluated).stem in trained_on("encoder", corpora.emotion_files([evaluated]))) == seen


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--model nobody/nothing", "Cannot load the model 'nobody/nothing'"),
        ("--model {export} {export}", "--model names a model twice"),
        ("--tasks vaa", "Unknown task 'vaa'"),
        ("--data_dir nowhere", "--data_dir nowhere is not a folder"),
        ("--model runs/{{seed}}/x", "say with --seeds N"),
        ("--seeds 3", "--seeds needs a model whose name holds {seed}"),
        ("--comparators nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_bad_arguments_end_in_one_clear_line(flags, message, models, tmp_path, evaluate):
    export = models / "run-0" / "encoder"
    flags = flags.format(export=export).split(" ")
    given = {"--model": export, "--tasks": "emotion", "--output_dir": tmp_path, "--no_cache": "true"}
    others = [word for name, value in given.items() if name not in flags for word in (name, value)]
    assert message in evaluate(*others, *flags)
