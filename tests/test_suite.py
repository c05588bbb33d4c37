"""The suite on small made-up corpora, with an encoder that reads features out of the text."""

import json

import numpy as np
import pytest
import torch
from conftest import EMOTIONS

from carl_hf import evaluate_encoder
from carl_hf.evaluation.comparison import compare, spread
from carl_hf.evaluation.suite import run_tasks
from carl_hf.evaluation.tasks import Settings
from carl_hf.report.page import write_report

pytest.importorskip("sklearn")
pytestmark = pytest.mark.xdist_group("suite")  # one fixture measures every task


def encode(texts):
    """Feelings by the words a text holds, and noise by its letters."""
    rows = []
    for text in texts:
        noise = np.random.default_rng(sum(map(ord, text))).normal(size=3)
        rows.append([*(3.0 * text.count(word) for word in EMOTIONS), *noise])
    return np.array(rows)


def noise_only(texts):
    return encode(texts)[:, 6:]


@pytest.fixture(scope="module")
def folder(small_corpora):
    return small_corpora


@pytest.fixture(scope="module")
def good(folder):
    return run_tasks(encode, Settings(tasks=("va", "polarity", "emotion", "geometry", "semantics"), data_dir=folder))


def test_every_task_that_has_its_corpus_is_measured_and_the_others_are_listed(good):
    figures = good.metrics
    assert figures["va"]["emobank"]["valence"]["pearson"] > 0.95 and "dominance" in figures["va"]["emobank"]
    assert set(figures["va"]) == {"emobank", "facebook", "emobank to facebook", "facebook to emobank"}
    assert figures["va"]["emobank to facebook"]["valence"]["pearson"] > 0.95
    assert figures["polarity"]["mr"]["accuracy"] > 95 and figures["polarity"]["sst5"]["accuracy"] > 95
    assert (
        figures["emotion"]["goemotions-six"]["accuracy"] > 95 and figures["emotion"]["goemotions-ekman"]["f1"] > 0.95
    )
    assert figures["geometry"]["goemotions-six"]["positive_random_ratio"] < 0.5
    assert figures["geometry"]["dimensions"]["emotion"]["kept"] == [2, 4, 8, 9]
    assert -1 <= figures["geometry"]["dimensions"]["va"]["radius_intensity"] <= 1
    assert figures["semantics"]["stsb"]["texts"] == 4
    assert set(figures["skipped"]) == {
        "polarity/cr", "polarity/imdb", "emotion/isear", "emotion/emolit12", "geometry/emolit12",
    }  # fmt: skip
    assert "cr.csv does not exist" in figures["skipped"]["polarity/cr"]
    assert {"embedding", "va", "polarity", "emotion", "geometry", "semantics"} == set(figures["seconds"])
    json.dumps(figures, allow_nan=False)


def test_each_text_is_embedded_once_and_what_training_has_seen_is_marked(folder):
    asked = []

    def counting(texts):
        asked.extend(texts)
        return torch.tensor(encode(texts))

    tasks = ("va", "emotion", "geometry")
    run = run_tasks(counting, Settings(tasks=tasks, data_dir=folder), trained_on=["facebook"])
    assert len(asked) == len(set(asked)) > 400
    marked = [name for name, figures in run.metrics["va"].items() if figures.get("seen_in_training")]
    assert marked == ["facebook", "emobank to facebook"]
    gains = compare(run, run, seed=0)["va"]
    assert gains["facebook"]["seen_in_training"] and "seen_in_training" not in gains["emobank"]
    report = {"models": {"x": run.metrics}, "comparisons": {"x minus x": {"va": gains}}}
    write_report(report, folder / "report.md")
    text = (folder / "report.md").read_text()
    assert "| facebook | x †" in text and "| emobank  | x  " in text and "† The encoder was trained on these" in text


@pytest.mark.parametrize("vectors", [np.ones((3, 2)), np.full((400, 2), np.nan), np.ones(400)])
def test_what_an_encoder_returns_is_checked(folder, vectors):
    with pytest.raises(ValueError, match="The encoder"):
        evaluate_encoder(lambda texts: vectors[: len(texts)], tasks=("va",), data_dir=folder)


def test_wrong_files_are_found_before_any_work(folder, tmp_path):
    def never(texts):
        raise AssertionError("nothing is to be embedded")

    own = tmp_path / "own.csv"
    own.write_text("text,label\na,x\n,y\n")
    with pytest.raises(ValueError, match="own.csv, row 2: column 'text' is empty"):
        run_tasks(never, Settings(data_dir=folder, emotion=(str(own),)))
    own.write_text("text,label\n" + "".join(f"t{i},{'xy'[i % 2]}\n" for i in range(9)))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "own.csv").write_text(own.read_text())
    with pytest.raises(ValueError, match="Two corpora are called 'own'"):
        run_tasks(never, Settings(data_dir=folder, emotion=(str(own), str(tmp_path / "b" / "own.csv"))))
    for wrong in ({"emotion": ("isaer",)}, {"va": ("emobnk",)}, {"protocol": "quick"}, {"shots": (0,)}):
        with pytest.raises(ValueError, match="choose from|at least 1"):
            Settings(**wrong)


def test_strict_makes_a_missing_corpus_an_error_and_unknown_tasks_are_named(folder):
    with pytest.raises(ValueError, match="polarity/cr: .*cr.csv does not exist. Without --strict"):
        run_tasks(encode, Settings(tasks=("polarity",), data_dir=folder, strict=True))
    run_tasks(encode, Settings(tasks=("va",), data_dir=folder, strict=True))  # what cannot be had is not asked for
    with pytest.raises(ValueError, match="Unknown task 'vaa': choose from va, polarity"):
        evaluate_encoder(encode, tasks=("vaa",))


def test_constant_embeddings_give_null_with_a_reason_and_no_nan(folder):
    figures = evaluate_encoder(
        lambda texts: np.ones((len(texts), 4)), tasks=("va", "emotion", "semantics"), data_dir=folder
    )
    valence = figures["va"]["emobank"]["valence"]
    assert valence["pearson"] is None and "constant" in valence["pearson_reason"] and valence["mae"] > 0
    assert figures["semantics"]["stsb"]["spearman"] is None
    assert figures["emotion"]["goemotions-six"]["accuracy"] < 50
    json.dumps(figures, allow_nan=False)


def test_two_encoders_are_compared_on_the_same_items(folder, good):
    bad = run_tasks(noise_only, Settings(tasks=("va", "polarity", "emotion"), data_dir=folder))
    gains = compare(bad, good, seed=1)
    for gain in (gains["va"]["emobank"]["valence"]["pearson"], gains["polarity"]["mr"]["accuracy"] / 100,
                 gains["emotion"]["goemotions-ekman"]["f1"]):  # fmt: skip
        assert gain > 0.3
    gain = gains["emotion"]["goemotions-six"]
    expected = (
        good.metrics["emotion"]["goemotions-six"]["accuracy"] - bad.metrics["emotion"]["goemotions-six"]["accuracy"]
    )
    assert gain["accuracy"] == pytest.approx(expected) and gain["accuracy_interval"][0] > 0
    f1 = good.metrics["emotion"]["goemotions-six"]["f1"] - bad.metrics["emotion"]["goemotions-six"]["f1"]
    assert gain["f1"] == pytest.approx(f1)
    worse = run_tasks(noise_only, Settings(tasks=("semantics",), data_dir=folder))
    stsb = compare(worse, good, seed=1)["semantics"]["stsb"]
    one, two = (run.metrics["semantics"]["stsb"]["spearman"] for run in (worse, good))
    assert stsb["spearman"] == pytest.approx(two - one) and len(stsb["spearman_interval"]) == 2
    same = compare(good, good, seed=1)["polarity"]["mr"]
    assert same == {"accuracy": 0.0, "accuracy_interval": [0.0, 0.0], "f1": 0.0, "f1_interval": [0.0, 0.0]}


def test_spread_over_runs():
    runs = [{"va": {"emobank": {"valence": {"pearson": r, "pearson_interval": [0, 1], "constant": {"mae": 1.0}},
                                "texts": 9}}} for r in (0.5, 0.7, 0.6)]  # fmt: skip
    figures = spread(runs)
    assert figures == {
        "va": {"emobank": {"valence": {"pearson": {"mean": pytest.approx(0.6), "std": pytest.approx(0.1)}}}}
    }


def test_without_a_folder_the_demo_corpus_is_measured():
    rng = np.random.default_rng(0)
    figures = evaluate_encoder(lambda texts: rng.normal(size=(len(texts), 3)), tasks=("va", "emotion", "geometry"))
    assert set(figures["va"]) == {"demo"} and figures["va"]["demo"]["texts"] == 512
    assert figures["geometry"]["dimensions"]["va"]["corpus"] == "demo" and figures["emotion"]["demo"]["texts"] == 512
    assert abs(figures["va"]["demo"]["valence"]["pearson"]) < 0.2
