"""The suite on small made-up corpora, with an encoder that reads features out of the text."""

import json

import numpy as np
import pandas as pd
import pytest

from carl_hf import evaluate_encoder
from carl_hf.evaluation.comparison import compare, spread
from carl_hf.evaluation.suite import Settings, run_tasks

pytest.importorskip("sklearn")

WORDS = ("anger", "disgust", "fear", "joy", "sadness", "surprise")


def encode(texts):
    """Feelings by the words a text holds, and noise by its letters."""
    rows = []
    for text in texts:
        noise = np.random.default_rng(sum(map(ord, text))).normal(size=3)
        rows.append([*(3.0 * text.count(word) for word in WORDS), *noise])
    return np.array(rows)


def noise_only(texts):
    return encode(texts)[:, 6:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(0)

    def texts(count, tag, classes=6):
        kinds = rng.integers(classes, size=count)
        return [f"{tag} {WORDS[k]} {i}" for i, k in enumerate(kinds)], kinds

    def write(name, **columns):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        frame = pd.DataFrame(columns)
        frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)

    split = ["train"] * 120 + ["dev"] * 30 + ["test"] * 50
    words, kinds = texts(200, "e")
    values = {"V": 1 + 4 * (kinds == 3), "A": 1 + kinds * 0.6, "D": 3 + 0.1 * kinds}
    write("emobank/emobank.csv", text=words, split=split, **values)
    words, kinds = texts(80, "f")
    write("facebook_va/facebook_va.csv", text=words, valence1=1 + 8 * (kinds == 3), valence2=1 + 8 * (kinds == 3),
          arousal1=1 + kinds, arousal2=2 + kinds)  # fmt: skip
    words, kinds = texts(200, "g")
    write("goemotions/goemotions.parquet", text=words, split=split, label=[WORDS[k] for k in kinds],
          ekman=[WORDS[k] for k in kinds])  # fmt: skip
    words, kinds = texts(150, "m", classes=2)
    write("mr/mr.csv", text=words, label=kinds)
    words, kinds = texts(200, "s", classes=5)
    write("sst5/sst5.csv", text=words, label=kinds, split=split)
    write("stsb/stsb_test.csv", text1=["joy a", "joy b", "fear c", "anger"], text2=["joy c", "fear d", "joy", "anger"],
          score=[5, 1, 0, 4])  # fmt: skip
    return root


@pytest.fixture(scope="module")
def good(folder):
    return run_tasks(encode, Settings(tasks=("va", "polarity", "emotion", "geometry", "semantics"), data_dir=folder))


def test_every_task_that_has_its_corpus_is_measured_and_the_others_are_listed(good):
    figures = good.figures
    assert figures["va"]["emobank"]["valence"]["pearson"] > 0.95 and "dominance" in figures["va"]["emobank"]
    assert set(figures["va"]) == {"emobank", "facebook", "emobank to facebook", "facebook to emobank"}
    assert figures["va"]["emobank to facebook"]["valence"]["pearson"] > 0.95
    assert figures["polarity"]["mr"]["accuracy"] > 95 and figures["polarity"]["sst5"]["accuracy"] > 95
    assert (
        figures["emotion"]["goemotions-six"]["accuracy"] > 95 and figures["emotion"]["goemotions-ekman"]["f1"] > 0.95
    )
    assert figures["geometry"]["goemotions-six"]["positive_random_ratio"] < 0.5
    assert figures["geometry"]["dimensions"]["emotion"]["kept"] == [2, 4, 8, 9]
    assert figures["semantics"]["stsb"]["texts"] == 4
    assert set(figures["skipped"]) == {
        "va/iemocap", "va/emotales", "polarity/cr", "polarity/imdb", "emotion/isear", "emotion/emolit12",
        "geometry/emolit12",
    }  # fmt: skip
    assert "cr.csv does not exist" in figures["skipped"]["polarity/cr"]
    assert {"embedding", "va", "polarity", "emotion", "geometry", "semantics"} == set(figures["seconds"])
    json.dumps(figures, allow_nan=False)


def test_strict_makes_a_missing_corpus_an_error_and_unknown_tasks_are_named(folder):
    with pytest.raises(ValueError, match="polarity/cr: .*cr.csv does not exist. Without --strict"):
        run_tasks(encode, Settings(tasks=("polarity",), data_dir=folder, strict=True))
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
        good.figures["emotion"]["goemotions-six"]["accuracy"] - bad.figures["emotion"]["goemotions-six"]["accuracy"]
    )
    assert gain["accuracy"] == pytest.approx(expected) and gain["accuracy_interval"][0] > 0
    f1 = good.figures["emotion"]["goemotions-six"]["f1"] - bad.figures["emotion"]["goemotions-six"]["f1"]
    assert gain["f1"] == pytest.approx(f1)
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
