"""Adapting va/ to a few rated texts: shifts that were built in are found again, and nothing is changed for nothing."""

import copy
import json
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT, run_script, tiny_carl, tiny_encoder, toy_dataset
from datasets import Dataset

from carl_hf import AffectPipeline
from carl_hf.commands.adapt import AdaptArguments, adapt, print_adaptation
from carl_hf.encoders.embedding import classifier_outputs
from carl_hf.evaluation.probes import LinearProbe
from carl_hf.export import adapting
from carl_hf.export.adapting import ALONE, FINETUNED, RIDGE, SCALED, WAYS, adapt_va_regressor, choose
from carl_hf.export.folder import export_files, read_record
from carl_hf.export.head_training import HeadTraining
from carl_hf.export.task_heads import fit_va_regressor

pytestmark = pytest.mark.usefixtures("measuring_packages")
SCRIPT = "examples/adapt.py"
QUICK = {"training": HeadTraining(epochs=1, batch_size=16)}


@pytest.fixture(scope="module")
def regressor(tokenizer):
    return fit_va_regressor(tiny_carl(), tokenizer, toy_dataset(200), toy_dataset(60, seed=1))


@pytest.fixture
def rated(regressor, tokenizer):
    """(texts rated by the model itself, in other words than it was made from; a change of its answers; noise)."""

    def rated(size, change=lambda answers: answers, seed=2, noise=0.05):
        texts = [f"{text} {i}" for i, text in enumerate(toy_dataset(size, seed=seed)["text"])]
        answers = classifier_outputs(regressor, texts, tokenizer).numpy().astype(float)
        answers = change(answers) + noise * np.random.default_rng(seed).normal(size=answers.shape)
        valence, arousal = (2 * answers - 1).clip(-1, 1).T
        return Dataset.from_dict({"text": texts, "valence": valence, "arousal": arousal})

    return rated


def error(model, tokenizer, data):
    answers = 2 * classifier_outputs(model, data["text"], tokenizer).numpy() - 1
    return np.abs(answers - np.stack([data["valence"], data["arousal"]], axis=1)).mean()


def test_the_ridge_s_strength_is_chosen_by_whole_texts():
    """Five raters agree on errors that no input explains: a ridge that leaves single rows out would learn them."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 60)).repeat(5, axis=0)
    labels = 0.5 + 0.1 * rng.normal(size=(40, 2)).repeat(5, axis=0) + 0.01 * rng.normal(size=(200, 2))
    texts = adapting._Texts([], inputs, labels, np.arange(40).repeat(5))
    layer = LinearProbe(np.zeros((2, 60)), np.full(2, 0.5))
    changed = adapting._ridge(layer, texts, np.arange(200))
    new = rng.normal(size=(500, 60))
    assert np.square(changed(new) - 0.5).mean() < 0.002  # by rows .02


@pytest.mark.parametrize("size", [20, 60])
def test_a_scale_and_an_offset_are_found_again(size, regressor, rated, tokenizer):
    def change(answers):
        return [0.5, 0.7] * answers + [0.35, 0.05]

    model = copy.deepcopy(regressor)
    found = adapt_va_regressor(model, tokenizer, rated(size, change), **QUICK)
    assert found["chosen"] == SCALED and found["texts"] == size and set(found["ways"]) == set(WAYS)
    new = rated(100, change, seed=3)
    least = 2 * 0.05 * np.sqrt(2 / np.pi)  # of the noise alone
    assert error(model, tokenizer, new) < 1.3 * least < error(regressor, tokenizer, new)
    expected = np.mean([found["ways"][SCALED][name]["mae"] for name in ("valence", "arousal")])
    assert error(model, tokenizer, new) / 2 == pytest.approx(expected, rel=0.35)
    assert regressor.base_model.state_dict().keys() == model.base_model.state_dict().keys()


def test_a_dimension_that_the_raters_agree_with_is_not_scaled(regressor, rated, tokenizer):
    def change(answers):  # of arousal alone
        return [1, 0.5] * answers + [0, 0.5]

    kept = []
    for seed in range(2, 7):
        model = copy.deepcopy(regressor)
        found = adapt_va_regressor(model, tokenizer, rated(30, change, seed=seed), **QUICK)
        old, new = regressor.classifier, model.classifier
        kept.append(found["chosen"] == SCALED and new.weight[0].equal(old.weight[0]) and new.bias[0] == old.bias[0])
        assert new.weight[1].detach() == pytest.approx(0.5 * old.weight[1].detach(), abs=0.3)
    assert kept.count(True) >= 3


def test_raters_who_agree_with_the_model_change_nothing(regressor, rated, tokenizer):
    chosen = []
    for seed in range(2, 7):
        model = copy.deepcopy(regressor)
        data = rated(40, seed=seed)
        chosen.append(adapt_va_regressor(model, tokenizer, data, **QUICK)["chosen"])
        if chosen[-1] == ALONE:
            assert all(a.equal(b) for a, b in zip(model.parameters(), regressor.parameters(), strict=True))
            errors = np.abs(classifier_outputs(model, data["text"], tokenizer).numpy().clip(0, 1) -
                            (np.stack([data["valence"], data["arousal"]], 1) + 1) / 2)  # fmt: skip
            held = (errors <= [model.config.intervals[name] + 1e-6 for name in ("valence", "arousal")]).sum(0)
            assert (held == 37).all()  # ceil(.9 * 41)
    assert chosen.count(ALONE) >= 4


def test_what_only_other_features_tell_is_learnt_by_a_ridge(regressor, rated, tokenizer):
    def change(answers):  # valence is what the model takes for arousal
        return answers[:, ::-1]

    model = copy.deepcopy(regressor)
    found = adapt_va_regressor(model, tokenizer, rated(120, change), **QUICK)
    assert found["chosen"] == RIDGE
    new = rated(100, change, seed=3)
    assert error(model, tokenizer, new) < 0.6 * error(regressor, tokenizer, new)


def test_what_no_last_layer_can_tell_is_learnt_by_fine_tuning(regressor, tokenizer):
    rng = np.random.default_rng(0)
    first, second = rng.integers(2, size=(2, 80))
    texts = [f"{'ab'[a] * 3} {'xy'[b] * 3} {rng.integers(10)}" for a, b in zip(first, second, strict=True)]
    odd = np.where(first != second, 0.5, -0.5)
    model, data = copy.deepcopy(regressor), Dataset.from_dict({"text": texts, "valence": odd, "arousal": odd})
    with torch.no_grad():
        model.bert.pooler.dense.weight[1:] = 0  # one number is all that the last layer sees
    training = HeadTraining(learning_rate=3e-3, epochs=10, batch_size=8)
    found = adapt_va_regressor(model, tokenizer, data, training=training)
    assert found["chosen"] == FINETUNED and error(model, tokenizer, data) < 0.7 * 0.5  # of a constant


def test_the_simplest_way_within_one_standard_error_is_chosen():
    labels = np.random.default_rng(0).normal(size=(100, 2))
    near, far = labels + 0.1, labels + 2.0
    doubtful = near + 0.2 * (np.arange(100) == 7)[:, None]  # worse on one text
    alone = np.arange(100)
    assert choose({"a": far, "b": near, "c": near}, labels, alone) == "b"
    assert choose({"a": doubtful, "b": near}, labels, alone) == "a"
    # nine raters of each text are no nine texts
    nine = [np.tile(values, (9, 1)) for values in (doubtful, near, labels)]
    assert choose({"a": nine[0], "b": nine[1]}, nine[2], np.tile(alone, 9)) == "a"


def test_rows_of_one_text_by_several_raters_are_in_one_fold(regressor, tokenizer):
    """Ratings that no word explains: a model that has seen the text under test would know them."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice([*"abcdefgh"], 6)) for _ in range(25)]
    valence, arousal = rng.uniform(-1, 1, size=(2, 25)).tolist()
    ratings = {"text": texts, "valence": valence, "arousal": arousal}
    all_three = {name: 3 * cells for name, cells in ratings.items()} | {
        "text": [*texts, *map(str.upper, texts), *texts]
    }
    found = []
    for rated in (ratings, all_three):
        found.append(adapt_va_regressor(copy.deepcopy(regressor), tokenizer, Dataset.from_dict(rated), **QUICK))
    for way in (ALONE, SCALED):
        once, thrice = (f["ways"][way]["valence"] for f in found)
        assert thrice == pytest.approx(once, abs=1e-3)
    once, thrice = (f["ways"][RIDGE]["valence"]["mae"] for f in found)
    assert thrice > 0.95 * once and [f["texts"] for f in found] == [25, 75]
    with pytest.raises(ValueError, match="takes a valence-arousal regressor.*got BertModel"):
        adapt_va_regressor(tiny_encoder(), tokenizer, Dataset.from_dict(ratings))
    ratings["valence"][3] = 7.0
    with pytest.raises(ValueError, match=r"outside \[-1, 1\]: load_va_dataset"):
        adapt_va_regressor(regressor, tokenizer, Dataset.from_dict(ratings))
    repeated = Dataset.from_dict({name: 30 * cells[:1] for name, cells in ratings.items()})
    with pytest.raises(ValueError, match="at least 20 texts with valence and arousal, got 1"):
        adapt_va_regressor(regressor, tokenizer, repeated)


def test_what_the_answers_do_not_follow_is_said(capsys):
    found = (("valence", 0.5), ("arousal", 0.15), ("dominance", None))  # 5 raters do not make 500 texts of 100
    metrics = {name: {"mae": 0.1, "pearson": r} for name, r in found}
    adaptation = {"chosen": ALONE, "texts": 500, "different_texts": 100, "folds": 5, "ways": {ALONE: metrics}}
    head = {"adaptation": adaptation, "labels": [*metrics], "corpora": ["mine.csv"]}
    print_adaptation({"head": head, "intervals": dict.fromkeys(metrics, 0.2)}, (0, 1))
    printed = capsys.readouterr().out
    assert [f"follow your ratings of {name} beyond" in printed for name in metrics] == [False, True, True]
    assert "No way was better beyond chance" in printed


def test_an_export_that_another_run_has_written_meanwhile_is_kept(tmp_path):
    args = AdaptArguments(labels="mine.csv", output=str(tmp_path / "out"))
    (tmp_path / "out" / "va").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a va/: name another"):
        adapt(args)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["va"]


def test_a_file_is_adapted_to_and_exported(exports, tmp_path, caplog):
    rows = [f"joy {i};7;8" if i % 2 else f"woe {i};2;3" for i in range(30)]
    labels, out = tmp_path / "mine.csv", tmp_path / "out"
    labels.write_text("\n".join(["comment;valence;arousal", *rows]))
    words = [labels, "--text_column", "comment", "--scale", 1, 9, "--model", exports[0], "--output", out]
    words += ["--licence", "mit"]
    command = [sys.executable, "-m", "carl_hf", "adapt", *words, "--num_threads", 1]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_record(out / "va")
    found, card = record["head"]["adaptation"], (out / "va" / "README.md").read_text()
    assert f"Chosen: {found['chosen']}, the simplest way within" in done.stdout and "do not follow" not in done.stdout
    assert "part 5 of 5" in done.stderr and f"carl-hf score my.csv --model {out} --output" in done.stderr
    assert found["chosen"] != ALONE
    assert "mine.csv: 30 texts, 5-fold cross-validation; errors on the scale from 1 to 9" in done.stdout
    mae = found["ways"][found["chosen"]]["valence"]["mae"]
    assert f"valence {8 * mae:.2g} (nine in ten at most {8 * record['intervals']['valence']:.2g})" in done.stdout
    rows = {(row["split"], row["name"]): row for row in record["results"]}
    row = rows["cross-validation", "valence, mean absolute error, in [0, 1]"]
    assert (row["dataset"], row["value"]) == ("mine.csv", mae)
    assert row["baseline"] == found["ways"][ALONE]["valence"]["mae"] > mae
    assert "adapted to 30 texts of mine.csv" in card and str(tmp_path) not in json.dumps(record)
    assert list(record["provenance"]["files"]) == ["mine.csv"] and record["provenance"]["licence"] == "mit"
    assert export_files(out / "va") and record["head"]["corpora"][-1] == "mine.csv"
    answers = AffectPipeline.from_pretrained(out)(["joy 31", "woe 32"])["valence"]
    assert answers[0] > 0.6 > 0.4 > answers[1]

    adapt = partial(run_script, SCRIPT)
    new = ["--model", exports[0], "--output", tmp_path / "new"]
    again = ["--text_column", "comment", "--scale", 1, 9, "--model", out]
    assert re.search(r"out was trained on .*mine\.csv", adapt(labels, *again, "--output", tmp_path / "new"))
    assert "holds a va/: name another, or replace it with --overwrite true" in adapt(*words)
    assert "There are no rated texts" in adapt(*new) and "--output is missing" in adapt(labels)
    off = adapt(labels, "--text_column", "comment", *new)  # not on a scale from 0 to 1
    assert "row 1: valence is 2, outside the scale" in off and "state the scale of its labels (--scale), or" in off
    missing = adapt(labels, "--arousal_column", "energy", *new)
    assert "has no column 'text', 'energy'; it has comment, valence, arousal." in missing
    assert "Name yours by --text_column, --arousal_column" in missing
    assert "is a file; name a folder" in adapt(labels, *new[:2], "--output", labels / "x")
    labels.write_text("text,valence,arousal\n" + "".join(f"joy {i},0.1,0.2\n" for i in range(10)))
    assert "at least 20 texts with valence and arousal, got 10" in adapt(labels, *new)
    labels.write_text("text,valence,arousal\n" + "".join(f"joy {i},0.1,\n" for i in range(30)))
    assert "at least 20 texts with valence and arousal, got 0" in adapt(labels, *new)
    labels.write_text("text,valence,arousal\n" + "".join(f"joy {i},0.1,0.2\n" for i in range(10)))
    assert "licence" in adapt(labels, *new, "--licence", "My Licence")
    splits = 15 * ["train"] + 4 * ["dev"] + 30 * ["test"]
    rows = "".join(f"joy {i},0.5,0.2,2,{split}\n" for i, split in enumerate(splits))
    labels.write_text(f"text,valence,arousal,weight,split\n{rows}")
    assert "at least 20 texts with valence and arousal, got 19" in adapt(labels, *new)
    assert "30 texts are of the split test, and left out" in caplog.text and "not use the column weight" in caplog.text
    labels.write_text("text,valence,arousal,split\n" + "".join(f"joy {i},0.1,0.2,test\n" for i in range(10)))
    assert "at least 20 texts with valence and arousal, got 10" in adapt(labels, *new)  # there are no others
    assert "has no valence-arousal regressor" in adapt(labels, *new[2:], "--model", exports[0] / "emotion")
    assert not (tmp_path / "new").exists()
