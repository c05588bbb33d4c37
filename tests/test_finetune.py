"""examples/finetune_emotion.py: one real start, the rest by main(argv) in this process."""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest
from conftest import EMOTIONS, ROOT, emotions, load_script
from transformers import AutoModel, pipeline

from carl_hf import CarlModel, Provenance, export_encoder
from carl_hf.export.folder import read_record

pytestmark = pytest.mark.usefixtures("measuring_packages")
SCRIPT = "examples/finetune_emotion.py"


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    corpus = emotions(size=300)
    path = tmp_path_factory.mktemp("data") / "feelings.csv"
    frame = pd.DataFrame({"sentence": corpus.texts, "emotion": [corpus.classes[label] for label in corpus.labels]})
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def flags(tiny, csv):
    def flags(out, *more, encoder=tiny):
        words = [
            "--encoder", encoder, "--corpus", csv, "--text_column", "sentence", "--label_column", "emotion",
            "--output_dir", out, "--max_steps", 6, "--learning_rate", "5e-3", "--per_device_train_batch_size", 24,
            "--num_threads", 1, "--use_cpu", "true", "--eval_strategy", "steps", "--eval_steps", 2,
            "--save_strategy", "steps", "--save_steps", 2, *more,
        ]  # fmt: skip
        return list(map(str, words))

    return flags


@pytest.fixture
def finetune(flags):
    """The script's main in this process; returns results.json."""

    def run(out, *more, **settings):
        load_script(SCRIPT).main(flags(out, *more, **settings))
        return json.loads((out / "results.json").read_text())

    return run


def test_proxy_anchor_on_a_file_with_its_own_columns(finetune, flags, tmp_path, capsys):
    out = tmp_path / "out"
    anchor = ("--objectives", "proxy_anchor", "ptd=0.1", "--patience", 0, "--head_warmup_epochs", 0)
    started = flags(out, *anchor, "--class_weights", "balanced")
    done = subprocess.run([sys.executable, ROOT / SCRIPT, *started], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
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
    assert re.search(rf"exported classifier +{on_card['accuracy']:.1f} %", done.stdout)

    answer = pipeline("text-classification", str(out / "emotion"), top_k=None)(["aaaaaa 1"])[0]
    assert {entry["label"] for entry in answer} == set(EMOTIONS)
    assert sum(entry["score"] for entry in answer) == pytest.approx(1, abs=1e-4)
    assert record["provenance"]["method"] == "PTD and Proxy-Anchor" and record["head"]["corpora"] == ["feelings.csv"]
    _, info = AutoModel.from_pretrained(out / "encoder", output_loading_info=True)
    assert not any(info.values())
    folder = sorted(out.glob("checkpoint-*"))[0]
    checkpoint = CarlModel.from_pretrained(folder)
    assert checkpoint.config.classes == sorted(EMOTIONS) and checkpoint.proxies.weight_PH.shape == (6, 16)

    with pytest.raises(SystemExit, match="holds another run"):
        finetune(out)
    resumed = (*anchor, "--resume_from_checkpoint", "last", "--max_steps", 8, "--hub_token", "hf_secret")
    with pytest.raises(SystemExit, match="was trained with class_weights balanced, now the default"):
        finetune(out, *resumed)
    more = finetune(out, *resumed, "--class_weights", "balanced")
    assert more["run"]["steps"] == 8 and "Training" in capsys.readouterr().out
    assert "hf_secret" not in str(more) and "--hub_token ***" in more["run"]["command"]
    with pytest.raises(SystemExit, match="checkpoint of CARL training: name its export"):
        finetune(tmp_path / "b", "--objectives", "supcon", encoder=folder)


def test_training_stops_when_validation_texts_gain_nothing(finetune, tmp_path):
    run = finetune(tmp_path, "--learning_rate", "1e-9", "--max_steps", 20, "--patience", 2)["run"]
    assert run["steps"] == 6 and run["best_step"] == 2  # evaluated at 2, 4 and 6: the same accuracy


def test_a_frozen_encoder_keeps_its_weights(finetune, tiny, tmp_path, tokenizer, capsys):
    results = finetune(tmp_path, "--frozen", "true")
    assert set(results["models"]) == {"frozen encoder, cls", "frozen encoder, mean"} and "gain" not in results
    assert "Verdict" not in capsys.readouterr().out and not (tmp_path / "encoder").exists()
    assert not list(tmp_path.glob("checkpoint-*"))
    classifier = AutoModel.from_pretrained(tmp_path / "emotion")
    for name, value in AutoModel.from_pretrained(tiny).state_dict().items():
        assert classifier.state_dict()[name].equal(value), name
    assert "not trained further" in (tmp_path / "emotion" / "README.md").read_text()

    # an encoder that has been trained before brings its corpora and their licence with it
    earlier = tmp_path / "earlier"
    origin = Provenance(base_model="someone/bert", corpora=["facebook"], trained_on_test_rows=True)
    export_encoder(CarlModel.from_encoder(str(tiny)), tokenizer, earlier, max_length=32, provenance=origin)
    finetune(tmp_path / "b", "--frozen", "true", encoder=earlier)
    found = read_record(tmp_path / "b" / "emotion")["provenance"]
    assert found["corpora"] == ["facebook"] and found["trained_on_test_rows"] and found["method"] == "CARL"
    assert found["base_model"] == "someone/bert" and found["licence"] == "unknown"  # feelings.csv has none


@pytest.mark.parametrize(
    "more, message",
    [
        (["--text_column", "words"], "has no column 'words'; it has sentence, emotion"),
        (["--objectives", "circular", "--label_space", "russell1980"], "russell1980 has no angle for 'anger'"),
        (["--patience", "-1"], "--patience must be zero or positive"),
        (["--push_to_hub", "true"], "carl-hf push --export DIR --head emotion"),
        (["--corpus", "demo"], "--text_column and --label_column are for files and Hub data sets, not demo"),
        (
            ["--corpus", "emolit12", "--text_column", "text", "--label_column", "label"],
            "needs emolit12/emolit12.csv in the folder that --data_dir names",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_written(more, message, finetune, tmp_path):
    with pytest.raises(SystemExit) as ended:
        finetune(tmp_path / "out", *more)
    assert str(ended.value).startswith("error:") and message in str(ended.value)
    assert not (tmp_path / "out").exists()
