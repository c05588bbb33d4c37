"""The suite on small made-up corpora, with an encoder that reads features out of the text."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import words_of

from carl_hf import evaluate_encoder
from carl_hf.data.labelled import ClassCorpus
from carl_hf.evaluation.comparison import compare, spread
from carl_hf.evaluation.emotion import measure_emotion
from carl_hf.evaluation.suite import Evaluation, run_tasks
from carl_hf.evaluation.tasks import Corpora, Settings
from carl_hf.report.page import write_report

pytest.importorskip("sklearn")


encode = words_of(noise=1 / 3)


@pytest.fixture(scope="module")
def good(small_corpora):
    tasks = ("va", "polarity", "emotion", "geometry", "semantics")
    return run_tasks(encode, Settings(tasks=tasks, data_dir=small_corpora))


def test_every_task_that_has_its_corpus_is_measured_and_the_others_are_listed(good):
    metrics = good.metrics
    assert set(metrics["va"]) == {"emobank", "facebook", "emobank to facebook", "facebook to emobank"}
    for corpus in ("emobank", "emobank to facebook"):
        assert metrics["va"][corpus]["valence"]["pearson"] > 0.95
    assert "dominance" in metrics["va"]["emobank"]
    for task, corpus in (("polarity", "mr"), ("polarity", "sst5"), ("emotion", "goemotions-six")):
        assert metrics[task][corpus]["accuracy"] > 95
    assert metrics["emotion"]["goemotions-ekman"]["f1"] > 0.95
    assert metrics["geometry"]["goemotions-six"]["positive_random_ratio"] < 0.5
    assert metrics["geometry"]["dimensions"]["emotion"]["kept"] == [2, 4, 8, 10]
    assert -1 <= metrics["geometry"]["dimensions"]["va"]["radius_intensity"] <= 1
    assert metrics["semantics"]["stsb"]["texts"] == 4
    assert set(metrics["skipped"]) == {
        "polarity/cr", "polarity/imdb", "emotion/isear", "emotion/emolit12", "geometry/emolit12",
    }  # fmt: skip
    assert "cr.csv does not exist" in metrics["skipped"]["polarity/cr"]
    assert {"embedding", "va", "polarity", "emotion", "geometry", "semantics"} == set(metrics["seconds"])
    json.dumps(metrics, allow_nan=False)


def test_each_text_is_embedded_once_and_what_training_has_seen_is_marked(small_corpora, tmp_path):
    asked = []

    def counting(texts):
        asked.extend(texts)
        return torch.tensor(encode(texts))

    tasks = ("va", "emotion", "geometry")
    run = run_tasks(counting, Settings(tasks=tasks, data_dir=small_corpora), trained_on=["facebook"])
    assert len(asked) == len(set(asked)) > 400
    marked = [name for name, metrics in run.metrics["va"].items() if metrics.get("seen_in_training")]
    assert marked == ["facebook", "emobank to facebook"]
    gains = compare(run, run, seed=0)["va"]
    assert gains["facebook"]["seen_in_training"] and "seen_in_training" not in gains["emobank"]
    report = {"models": {"x": run.metrics}, "comparisons": {"x minus x": {"va": gains}}}
    write_report(report, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "| facebook | x †" in text and "| emobank  | x  " in text and "† The encoder was trained on these" in text


def test_all_tasks_on_seen_texts_are_marked_and_the_head_by_what_it_has_seen(small_corpora, tmp_path):
    settings = Settings(tasks=("va", "emotion", "geometry"), data_dir=small_corpora)
    predict = lambda texts: np.random.default_rng(0).uniform(-1, 1, (len(texts), 2))  # noqa: E731
    run = run_tasks(encode, settings, predict_va=predict, trained_on=["goemotions-six"], head_trained_on=["facebook"])
    marked = {
        f"{task}/{name}"
        for task in settings.tasks for name, metrics in run.metrics[task].items() if "seen_in_training" in metrics
    }  # fmt: skip
    assert marked == {"va/facebook direct", "emotion/goemotions-six", "geometry/goemotions-six"}
    curves = run.metrics["geometry"]["dimensions"]
    assert curves["emotion"]["seen_in_training"] and "seen_in_training" not in curves["va"]
    write_report({"models": {"x": run.metrics}}, tmp_path / "report.md")
    assert re.search(r"goemotions-six +\| x †", (tmp_path / "report.md").read_text())


@pytest.mark.parametrize("vectors", [np.ones((3, 2)), np.full((400, 2), np.nan), np.ones(400)])
def test_what_an_encoder_returns_is_checked(small_corpora, vectors):
    with pytest.raises(ValueError, match="The encoder"):
        evaluate_encoder(lambda texts: vectors[: len(texts)], tasks=("va",), data_dir=small_corpora)


@pytest.mark.parametrize("vectors", [np.full((400, 2), 1j), np.full((400, 2), "1")])
def test_what_are_no_numbers_is_said(small_corpora, vectors):
    with pytest.raises(ValueError, match="must return real numbers, got"):
        evaluate_encoder(lambda texts: vectors[: len(texts)], tasks=("va",), data_dir=small_corpora)


def test_a_vector_of_zeros_costs_only_the_tasks_that_need_its_direction(small_corpora):
    def bag(texts):
        return np.array(
            [[0.0, 0.0, 0.0] if "joy" in text else [1.0, len(text), sum(map(ord, text)) % 7] for text in texts]
        )

    tasks = ("va", "geometry", "semantics")
    metrics = run_tasks(bag, Settings(tasks=tasks, data_dir=small_corpora)).metrics
    assert metrics["va"]["emobank"]["valence"]["mae"] > 0
    for task in ("geometry", "semantics"):
        assert re.match(r"cut short: \d+ texts have a vector of zeros, .* such as '. joy", metrics["skipped"][task])


@pytest.mark.parametrize("width", [1, 2])
def test_one_number_a_text_has_no_circle(small_corpora, width):
    score = words_of(noise=1 / 3)
    metrics = evaluate_encoder(
        lambda texts: np.pad(score(texts)[:, 6:7], ((0, 0), (0, width - 1))), ("geometry",), small_corpora
    )
    assert "lie on a line" in metrics["geometry"]["goemotions-six"]["circular_order"]["angular_error_reason"]


def test_a_class_too_small_for_cross_validation_costs_its_corpus_alone(small_corpora, tmp_path):
    for name in ("mr", "emobank"):
        shutil.copytree(small_corpora / name, tmp_path / name)
    (tmp_path / "cr").mkdir()
    (tmp_path / "cr" / "cr.csv").write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(12)))
    metrics = evaluate_encoder(encode, ("polarity",), tmp_path)
    assert list(metrics["polarity"]) == ["mr"]
    assert metrics["skipped"]["polarity/cr"] == "class negative has 6 texts, cross-validation needs 7"
    with pytest.raises(ValueError, match="polarity/cr: class negative has 6 texts"):
        Corpora(Settings(tasks=("polarity",), data_dir=tmp_path, polarity=("cr",), strict=True))


def test_wrong_files_are_found_before_any_work(small_corpora, tmp_path):
    def never(texts):
        raise AssertionError("nothing is to be embedded")

    own, second = tmp_path / "own.csv", tmp_path / "b" / "own.csv"
    own.write_text("text,label\na,x\n,y\n")
    with pytest.raises(ValueError, match="own.csv, row 2: column 'text' is empty"):
        run_tasks(never, Settings(data_dir=small_corpora, emotion=(str(own),)))
    second.parent.mkdir()
    for path in (own, second):
        path.write_text("text,label\n" + "".join(f"t{i},{'xy'[i % 2]}\n" for i in range(9)))
    with pytest.raises(ValueError, match="Two corpora are called 'own'"):
        run_tasks(never, Settings(data_dir=small_corpora, emotion=(str(own), str(second))))
    known = own.rename(tmp_path / "isear.csv")
    with pytest.raises(ValueError, match="isear.csv would be taken for the corpus isear: rename it"):
        run_tasks(never, Settings(data_dir=small_corpora, emotion=(str(known),)))
    own.write_text(
        "text,label,split\n" + "".join(f"t{i // 2},{'xy'[i // 2 % 2]},{('train', 'test')[i % 2]}\n" for i in range(8))
    )
    with pytest.raises(ValueError, match="every text of the split 'train' is in another split too"):
        run_tasks(never, Settings(data_dir=small_corpora, emotion=(str(own),)))
    for wrong in ({"emotion": ("isaer",)}, {"va": ("emobnk",)}, {"protocol": "quick"}, {"shots": (0,)}):
        with pytest.raises(ValueError, match="choose from|at least 1"):
            Settings(**wrong)


def test_strict_makes_a_missing_corpus_an_error_and_unknown_tasks_are_named(small_corpora):
    with pytest.raises(ValueError, match="polarity/cr: .*cr.csv does not exist. Without --strict"):
        run_tasks(encode, Settings(tasks=("polarity",), data_dir=small_corpora, strict=True))
    run_tasks(encode, Settings(tasks=("va",), data_dir=small_corpora, strict=True))  # no corpus of it is missing
    with pytest.raises(ValueError, match="Unknown task 'vaa': choose from va, polarity"):
        evaluate_encoder(encode, tasks=("vaa",))


def test_constant_embeddings_give_null_with_a_reason_and_no_nan(small_corpora):
    tasks = ("va", "emotion", "semantics", "space")
    metrics = evaluate_encoder(lambda texts: np.ones((len(texts), 4)), tasks=tasks, data_dir=small_corpora)
    valence = metrics["va"]["emobank"]["valence"]
    assert valence["pearson"] is None and "constant" in valence["pearson_reason"] and valence["mae"] > 0
    assert metrics["semantics"]["stsb"]["spearman"] is None
    assert metrics["emotion"]["goemotions-six"]["accuracy"] < 50
    space = metrics["space"]
    assert space["emobank"]["nearness"]["both"] is None
    assert space["emobank"]["nearness"]["both_reason"] == "undefined: the cosines or distances are constant"
    assert space["feeling-over-topic"]["accuracy"] == space["emoji-pairs"]["accuracy"] == 0
    json.dumps(metrics, allow_nan=False)


def test_two_encoders_are_compared_on_the_same_items(small_corpora, good):
    tasks = ("va", "polarity", "emotion", "semantics")
    bad = run_tasks(lambda texts: encode(texts)[:, 6:], Settings(tasks=tasks, data_dir=small_corpora))
    gains = compare(bad, good, seed=1)
    assert gains["va"]["emobank"]["valence"]["pearson"] > 0.3 and gains["polarity"]["mr"]["accuracy"] > 30
    for task, corpus, name in (("emotion", "goemotions-six", "accuracy"), ("emotion", "goemotions-six", "f1"),
                               ("emotion", "goemotions-ekman", "f1"), ("semantics", "stsb", "spearman")):  # fmt: skip
        gain, (one, two) = gains[task][corpus], (run.metrics[task][corpus][name] for run in (bad, good))
        assert gain[name] == pytest.approx(two - one) and len(gain[f"{name}_interval"]) == 2
    assert gains["emotion"]["goemotions-six"]["accuracy_interval"][0] > 0
    same = compare(good, good, seed=1)["polarity"]["mr"]
    assert same.pop("texts") == len(good.items["polarity/mr"]["references"])
    assert same == {"accuracy": 0.0, "accuracy_interval": [0.0, 0.0], "f1": 0.0, "f1_interval": [0.0, 0.0]}


def test_a_class_that_no_test_text_has_counts_in_gains_as_in_reports():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [40, 40, 10]))
    split = np.where(labels == 2, "train", np.resize(["train", "validation", "test"], 90)).astype(object)
    corpus = ClassCorpus([f"text {i}" for i in range(90)], labels, list("xyz"), split)
    vectors = np.eye(3)[labels] + np.random.default_rng(1).normal(scale=0.2, size=(90, 3))
    runs = []
    for table in (vectors, 0 * vectors):
        report, items = measure_emotion(lambda _, table=table: table, corpus, seed=0)
        runs.append(Evaluation({"emotion": {"own": report}}, {"emotion/own": items}))
    gain = compare(*runs, seed=1)["emotion"]["own"]
    two, one = (run.metrics["emotion"]["own"]["f1"] for run in runs)
    assert gain["f1"] == pytest.approx(one - two) and gain["f1_interval"][0] <= gain["f1"] <= gain["f1_interval"][1]


def test_spread_over_runs():
    runs = [{"va": {"emobank": {"valence": {"pearson": r, "pearson_interval": [0, 1], "constant": {"mae": 1.0}},
                                "texts": 9}}} for r in (0.5, 0.7, 0.6)]  # fmt: skip
    expected = {"pearson": {"mean": pytest.approx(0.6), "std": pytest.approx(0.1)}}
    assert spread(runs) == {"va": {"emobank": {"valence": expected}}}
    named = [{"va": {"texts": run["va"]["emobank"]}} for run in runs]  # of a file texts.csv
    assert spread(named) == {"va": {"texts": {"valence": expected}}}


def test_classes_called_as_statistics_are_reported(tmp_path):
    figures = {"emotion": {"own": {"f1_per_class": {name: {"mean": 0.5, "std": 0.25} for name in ("mean", "std")}}}}
    write_report({"models": {}, "spread": {"r-{seed}": {"runs": ["a", "b"], "figures": figures}}}, tmp_path / "r.md")
    report = (tmp_path / "r.md").read_text()
    assert re.search(r"own, f1\\_per\\_class, mean +\| +2 \| +.500 ± .250", report)


def test_a_file_whose_texts_have_several_classes_is_measured_but_for_retrieval(tmp_path):
    path = tmp_path / "several.jsonl"
    rows = [{"text": f"text {i}", "label": ["joy", "fear"] if i % 2 else ["fear", "woe"]} for i in range(120)]
    path.write_text("\n".join(map(json.dumps, rows)))
    corpora = Corpora(Settings(tasks=("emotion", "space"), emotion=(str(path),), va=("demo", "demo")))
    assert list(corpora.emotion) == ["demo", "several"] and list(corpora.space_emotion) == ["demo"]
    assert corpora.skipped["space/several"] == "no training text has one class alone"


def test_without_a_folder_the_demo_corpus_is_measured():
    rng = np.random.default_rng(0)
    metrics = evaluate_encoder(lambda texts: rng.normal(size=(len(texts), 3)), tasks=("va", "emotion", "geometry"))
    assert set(metrics["va"]) == {"demo"} and metrics["va"]["demo"]["texts"] == 569
    assert metrics["geometry"]["dimensions"]["va"]["corpus"] == "demo" and metrics["emotion"]["demo"]["texts"] == 569
    assert abs(metrics["va"]["demo"]["valence"]["pearson"]) < 0.2
    named = Corpora(Settings(tasks=("emotion", "space"), emotion=("demo",)))  # also where it is asked for by name
    assert [*named.emotion] == [*named.space_emotion] == ["demo"]
