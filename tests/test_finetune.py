"""examples/finetune_emotion.py as a user starts it; pretrain.py on a mixed corpus."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import EMOTIONS, emotions
from transformers import AutoModel, pipeline

from carl_hf import CarlModel, Provenance, export_encoder
from carl_hf.export.folder import read_record

pytestmark = pytest.mark.usefixtures("measuring_packages")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    corpus = emotions(size=300)
    path = tmp_path_factory.mktemp("data") / "feelings.csv"
    frame = pd.DataFrame({"sentence": corpus.texts, "emotion": [corpus.classes[label] for label in corpus.labels]})
    frame.to_csv(path, index=False)
    return path


def run(script, *arguments, expect=0):
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)], capture_output=True, text=True, timeout=300,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def finetune_flags(tiny, csv, out, *more):
    return [
        "--encoder", tiny, "--corpus", csv, "--text_column", "sentence", "--label_column", "emotion",
        "--output_dir", out, "--max_steps", 6, "--learning_rate", "5e-3", "--per_device_train_batch_size", 24,
        "--num_threads", 1, "--use_cpu", "true", "--eval_strategy", "steps", "--eval_steps", 2,
        "--save_strategy", "steps", "--save_steps", 2, *more,
    ]  # fmt: skip


def finetune(tiny, csv, out, *more, expect=0):
    return run("examples/finetune_emotion.py", *finetune_flags(tiny, csv, out, *more), expect=expect)


def test_proxy_anchor_on_a_file_with_its_own_columns(tiny, csv, tmp_path):
    out = tmp_path / "out"
    done = finetune(
        tiny, csv, out, "--objectives", "proxy_anchor", "ptd=0.1", "--patience", 0, "--head_warmup_epochs", 0,
        "--class_weights", "balanced",
    )  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    assert set(results["models"]) == {
        "frozen encoder, cls", "frozen encoder, mean", "trained encoder, linear head", "trained encoder, its own head",
    }  # fmt: skip
    for report in results["models"].values():
        low, high = report["accuracy_interval"]
        assert low <= report["accuracy"] <= high and len(report["confusion"]) == len(EMOTIONS)
        assert sum(map(sum, report["confusion"])) == report["texts"] == 30  # a tenth of the file
    trained = results["models"]["trained encoder, linear head"]
    better = results["models"][results["better_frozen"]]
    assert results["gain"]["accuracy"] == pytest.approx(trained["accuracy"] - better["accuracy"])
    assert 0 <= trained["circular_order"]["circular_correlation"] <= 1
    assert results["verdict"] in done.stdout and results["run"]["objectives"] == {"proxy_anchor": 1.0, "ptd": 0.1}
    assert results["run"]["class_weights"] == "balanced" and results["run"]["best_step"] in (2, 4, 6)
    assert (out / "figures" / "confusion.png").stat().st_size > 10_000
    record = read_record(out / "emotion")
    on_card = {row["metric"]: row["value"] for row in record["results"]}
    assert results["exported_classifier"]["accuracy"]["value"] == on_card["accuracy"]
    assert f"exported classifier            {on_card['accuracy']:.1f} %" in done.stdout

    answer = pipeline("text-classification", str(out / "emotion"), top_k=None)(["aaaaaa 1"])[0]
    assert {entry["label"] for entry in answer} == set(EMOTIONS)
    assert sum(entry["score"] for entry in answer) == pytest.approx(1, abs=1e-4)
    assert record["provenance"]["method"] == "PTD and Proxy-Anchor" and record["head"]["corpora"] == ["feelings.csv"]
    _, info = AutoModel.from_pretrained(out / "encoder", output_loading_info=True)
    assert not any(info.values())
    folder = sorted(out.glob("checkpoint-*"))[0]
    checkpoint = CarlModel.from_pretrained(folder)
    assert checkpoint.config.classes == sorted(EMOTIONS) and checkpoint.proxies.weight_PH.shape == (6, 16)

    again = finetune(tiny, csv, out, expect=1)
    assert "holds another run" in again.stderr
    more = finetune(
        tiny, csv, out, "--objectives", "proxy_anchor", "ptd=0.1", "--patience", 0, "--head_warmup_epochs", 0,
        "--resume_from_checkpoint", "last", "--max_steps", 8, "--hub_token", "hf_secret",
    )  # fmt: skip
    assert "Training" in more.stdout
    text = (out / "results.json").read_text()
    assert json.loads(text)["run"]["steps"] == 8 and "hf_secret" not in text and "--hub_token ***" in text
    wrong = finetune(folder, csv, tmp_path / "b", "--objectives", "supcon", expect=1)
    assert "checkpoint of CARL training: name its export" in wrong.stderr


def test_training_stops_when_development_texts_gain_nothing(tiny, csv, tmp_path):
    finetune(tiny, csv, tmp_path, "--learning_rate", "1e-9", "--max_steps", 20, "--patience", 2)
    run = json.loads((tmp_path / "results.json").read_text())["run"]
    assert run["steps"] == 6 and run["best_step"] == 2  # evaluated at 2, 4 and 6: the same accuracy


def test_a_frozen_encoder_keeps_its_weights(tiny, csv, tmp_path, tokenizer):
    done = finetune(tiny, csv, tmp_path, "--frozen", "true")
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["models"]) == {"frozen encoder, cls", "frozen encoder, mean"} and "gain" not in results
    assert "Verdict" not in done.stdout and not (tmp_path / "encoder").exists()
    assert not list(tmp_path.glob("checkpoint-*"))
    classifier = AutoModel.from_pretrained(tmp_path / "emotion")
    for name, value in AutoModel.from_pretrained(tiny).state_dict().items():
        assert classifier.state_dict()[name].equal(value), name
    assert "as it was" in (tmp_path / "emotion" / "README.md").read_text()

    # an encoder that has been trained before brings its corpora and their licence with it
    earlier = tmp_path / "earlier"
    origin = Provenance(base_model="someone/bert", corpora=["facebook"], trained_on_test_rows=True)
    export_encoder(CarlModel.from_encoder(str(tiny)), tokenizer, earlier, max_length=32, provenance=origin)
    finetune(earlier, csv, tmp_path / "b", "--frozen", "true")
    found = read_record(tmp_path / "b" / "emotion")["provenance"]
    assert found["corpora"] == ["facebook"] and found["trained_on_test_rows"] and found["method"] == "CARL"
    assert found["base_model"] == "someone/bert" and found["licence"] == "unknown"  # feelings.csv has none


@pytest.mark.parametrize(
    "more, message",
    [
        (["--text_column", "words"], "has no column 'words' for 'text'; it has sentence, emotion"),
        (["--objectives", "proxy"], "did you mean 'proxy_anchor'"),
        (["--objectives", "circular", "--label_space", "russell1980"], "russell1980 has no angle for 'anger'"),
        (["--patience", "-1"], "--patience must be zero or positive"),
        (["--push_to_hub", "true"], "examples/push_to_hub.py --export DIR --head emotion"),
        (["--label_space", "circel"], "Unknown label space 'circel'"),
        (["--resume_from_checkpoint", "last"], "no whole checkpoint"),
        (["--corpus", "demo"], "--text_column and --label_column are for files and Hub data sets, not demo"),
        (
            ["--corpus", "emolit12", "--text_column", "text", "--label_column", "label"],
            "needs emolit12/emolit12.csv in the folder that --data_dir names",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_written(more, message, tiny, csv, tmp_path, monkeypatch):
    """In this process: the script's own main, which ends with one line."""
    script = runpy.run_path(str(ROOT / "examples" / "finetune_emotion.py"))
    flags = finetune_flags(tiny, csv, tmp_path / "out", *more)
    monkeypatch.setattr(sys, "argv", ["finetune_emotion.py", *map(str, flags)])
    with pytest.raises(SystemExit) as ended:
        script["main"]()
    assert str(ended.value).startswith("error:") and message in str(ended.value)
    assert not (tmp_path / "out").exists()


def test_a_mixed_corpus_trains_in_one_run(tiny, small_corpora, tmp_path):
    run(
        "examples/pretrain.py", "--encoder", tiny, "--corpora", "emobank", "goemotions-six",
        "--data_dir", small_corpora, "--objectives", "mccl", "regression", "cross_entropy",
        "--output_dir", tmp_path, "--max_steps", 4, "--per_device_train_batch_size", 16, "--num_threads", 1,
        "--use_cpu", "true", "--logging_steps", 1, "--eval_strategy", "steps", "--eval_steps", 4,
        "--va_from_names", "ekman6",
    )  # fmt: skip
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert {"mccl", "regression", "cross_entropy"} <= set(state[0])
    assert any({"eval_va_pearson", "eval_label_accuracy"} <= set(entry) for entry in state)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["after"]) == ["emobank"]
    origin = read_record(tmp_path / "encoder")["provenance"]
    assert origin["method"] == "MCCL, cross-entropy and regression of valence and arousal"
    settings = origin["settings"]
    assert settings["va_from_names"] == "ekman6" and settings["objectives"] == ["mccl", "regression", "cross_entropy"]
    assert (tmp_path / "va").is_dir()
