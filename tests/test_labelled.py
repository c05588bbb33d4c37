"""The readers of the evaluation's corpora, and the division of a corpus into splits."""

import json

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import write_table

from carl_hf.data.bad_rows import BadCell, class_names
from carl_hf.data.labelled import MissingCorpus, read_emotion, read_polarity, read_sts, read_va
from carl_hf.data.splits import split_rows


def write(folder, name, **columns):
    return write_table(folder / name, columns)


def test_valence_arousal_dominance_in_minus_one_to_one_and_no_leak(tmp_path):
    write(
        tmp_path, "emobank/emobank.csv", split=["train", "train", "dev", "test"], text=["a", "B  b", "c", "b b"],
        V=[1, 3, 5, 2], A=[3, 3, 3, 4], D=[5, 1, 3, 3], id=list("wxyz"),
    )  # fmt: skip
    corpus = read_va("emobank", tmp_path)
    assert corpus.dimensions == ("valence", "arousal", "dominance")
    assert corpus.texts == ["a", "c", "b b"]  # the second training text is in test
    np.testing.assert_allclose(corpus.labels, [[-1, 0, 1], [1, 0, 0], [-0.5, 0.5, 0]])
    assert list(corpus.split) == ["train", "validation", "test"] and corpus.rows("test").tolist() == [2]
    demo = read_va("demo", None)
    assert demo.dimensions == ("valence", "arousal") and np.abs(demo.labels).max() <= 1


def test_names_of_the_validation_split_its_overlap_with_test_and_a_missing_one(tmp_path):
    for texts, validation in (("abcdefghijklmnopTrst", 3), ("abcdefghijklmnopqrst", 0)):  # one is in test, too
        split = ["train"] * (18 - validation) + ["val"] * validation + ["test"] * 2
        write(tmp_path, "emobank/emobank.csv", split=split, V=[1, 2, 3, 4, 5] * 4, A=[3] * 20, text=list(texts))
        sizes = pd.Series(read_va("emobank", tmp_path).split).value_counts()
        assert sizes.to_dict() == {"train": 15 + (not validation), "validation": 2, "test": 2}


def test_missing_corpora_are_told_from_wrong_ones(tmp_path):
    readers = {
        "emobank/emobank.csv": lambda: read_va("emobank", tmp_path),
        "cr/cr.csv": lambda: read_polarity("cr", tmp_path), "mr/mr.csv": lambda: read_polarity("mr", tmp_path),
        "sst5/sst5.csv": lambda: read_polarity("sst5", tmp_path),
        "stsb/stsb_test.csv": lambda: read_sts(tmp_path), "isear/isear.csv": lambda: read_emotion("isear", tmp_path),
        "goemotions/goemotions.parquet": lambda: read_emotion("goemotions-ekman", tmp_path),
    }  # fmt: skip
    for read in [
        *list(readers.values())[1:],
        lambda: read_va("iemocap", tmp_path),
        lambda: read_emotion("isear", None),
    ]:
        with pytest.raises(MissingCorpus):
            read()
    rated = {"split": ["train", "dev", "test"], "text": list("abc"), "V": [1, 3, 5], "A": [3, 3, 3], "D": [5, 1, 3]}
    many = {"text": list("abc"), "label": ["anger"] * 3, "ekman": ["anger"] * 3, "split": ["train"] * 3}
    for name, columns, message in (
        ("emobank/emobank.csv", {**rated, "V": [1, 3, 9]}, "row 3: valence is 9, outside"),
        ("emobank/emobank.csv", {**rated, "D": ["", 1, 3]}, "row 1: column 'dominance' holds"),
        ("emobank/emobank.csv", {**rated, "text": ["a", " ", "c"]}, "row 2: column 'text' is empty"),
        ("emobank/emobank.csv", {**rated, "split": ["train", "train", "dev"]}, "no rows 'test'"),
        ("cr/cr.csv", {"text": ["a"], "polarity": [1]}, "no column 'label'"),
        ("mr/mr.csv", {"text": ["a", "b"], "label": [1, 7]}, "row 2: label is 7, outside"),
        ("mr/mr.csv", {"text": ["a", "b"], "label": [1, 0.5]}, "row 2: the label is none of 0 to 1"),
        ("mr/mr.csv", {"text": list("abcdef"), "label": [0] * 6}, "class 'positive' has 0 example"),
        ("sst5/sst5.csv", {"text": list("abc"), "label": [0, 1, 2], "split": ["train"] * 3}, "no rows 'test'"),
        ("stsb/stsb_test.csv", {"text1": ["a"], "text2": ["b"], "score": ["x"]}, "row 1: column 'score' holds 'x'"),
        ("isear/isear.csv", {"text": list("abcd"), "label": ["joy"] * 3 + ["shame"]}, "class 'shame' has 1 example"),
        ("goemotions/goemotions.parquet", {**many, "text": ["a", None, "c"]}, "row 2: column 'text' is empty"),
        ("goemotions/goemotions.parquet", {**many, "ekman": ["anger", "", "joy"]}, "row 2: column 'ekman' is empty"),
    ):
        write(tmp_path, name, **columns)
        with pytest.raises(ValueError, match=message) as error:
            readers[name]()
        assert not isinstance(error.value, MissingCorpus) and name.split("/")[1][:7] in str(error.value)


def test_goemotions_in_its_three_forms(tmp_path):
    labels = ["anger", "joy", "joy,love", "neutral", "fear", "sadness", "surprise", "disgust"] * 4
    ekman = [label.split(",")[0] for label in labels]
    split = ["train"] * 16 + ["dev"] * 8 + ["test"] * 8
    texts = [f"t{i}" for i in range(32)]
    write(tmp_path, "goemotions/goemotions.parquet", text=texts, label=labels, ekman=ekman, split=split)
    six = read_emotion("goemotions-six", tmp_path)
    assert len(six.texts) == 24 and six.classes == ["anger", "disgust", "fear", "joy", "sadness", "surprise"]
    assert [six.classes[i] for i in six.labels[:3]] == ["anger", "joy", "fear"] and not six.multi_label
    seven, every = read_emotion("goemotions-ekman", tmp_path), read_emotion("goemotions-28", tmp_path)
    assert seven.labels.shape == (32, 7) and seven.labels.sum() == 32 and seven.multi_label
    assert every.labels.sum() == 36 and every.labels[2].sum() == 2


def test_a_file_of_your_own(tmp_path):
    path = write(tmp_path, "own.csv", text=["a", "b", "A ", *"cdef"], label=["x", "y", "y", "x", "y", "x", "y"])
    missing = write(tmp_path, "missing.csv", text=list("abcdefgh"), label=["x", "y"] * 3 + ["NA", " N/A"])
    with pytest.raises(ValueError, match="row 7: column 'label' is empty .1 more"):
        read_emotion(missing, None)
    assert read_emotion(missing, None, skip_bad_rows=True).classes == ["x", "y"]
    corpus = read_emotion(path, None)
    assert corpus.texts == list("abcdef") and corpus.split is None  # the repeated text is left out
    assert [corpus.classes[i] for i in corpus.labels] == ["x", "y"] * 3
    one = write(tmp_path, "one.csv", text=["a", "b"], label=["x", "x"])
    named = write(tmp_path, "named.csv", words=list("abcdef"), feels=["x", "y"] * 3, label=list("uvwuvw"))
    corpus = read_emotion(named, None, {"text": "words", "label": "feels"})
    assert corpus.texts == list("abcdef") and corpus.classes == ["x", "y"]
    for name, columns, message in (
        (one, None, "at least two"), ("nowhere.csv", None, "There is no file"),
        ("emolit", None, "Unknown emotion corpus 'emolit': choose demo, .*emolit12, a file"),
        (named, {"text": "sentence"}, "no column 'sentence'; it has words, feels, label"),
        (one, {"label": "text"}, "column 'text' cannot be both label and text"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_emotion(name, None, columns)


def test_repeated_texts_and_columns_that_are_called_almost_right_are_said(tmp_path, caplog):
    path = tmp_path / "my.csv"
    rows = [(f"text {i}", ["joy", "fear"][i % 2], "test") for i in range(12)] + [("text 0", "fear", "train")]
    pd.DataFrame(rows, columns=["content", "text", "Split"]).to_csv(path, index=False)  # a label called text
    corpus = read_emotion(path.as_posix(), None, {"text": "content", "label": "text"})
    assert len(corpus.texts) == 12 and corpus.split is None
    assert "1 rows repeat a text and are left out, 1 of them with another label" in caplog.text
    assert "the column 'Split' is not read; call it 'split' if it is meant" in caplog.text
    rows = [(f"text {i}", ["joy", "fear"][i % 2], ["train", "test"][i % 4 // 2]) for i in range(12)]
    pd.DataFrame([*rows, ("text 3", "joy", "test")], columns=["text", "label", "split"]).to_csv(path, index=False)
    assert len(read_emotion(path.as_posix(), None).texts) == 13
    assert "1 rows repeat a text of their split with another label, and count too" in caplog.text


def test_a_hub_data_set_gives_the_names_of_its_classes(monkeypatch):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["sad", "glad"])}
    )
    splits = {"train": {"text": list("abcd"), "label": [0, 1, 0, 1]}, "test": {"text": list("ef"), "label": [1, 0]}}
    published = {name: datasets.Dataset.from_dict(rows, features) for name, rows in splits.items()}
    monkeypatch.setattr("datasets.load_dataset", lambda name: published)
    corpus = read_emotion("someone/feelings", None)
    assert [corpus.classes[i] for i in corpus.labels] == ["sad", "glad", "sad", "glad", "glad", "sad"]
    assert corpus.split.tolist() == ["train"] * 4 + ["test"] * 2


@pytest.mark.parametrize("kind", ["python", "json", "numpy", "lists", "parquet"])
def test_lists_of_labels_are_several_classes_of_a_text(kind, tmp_path):
    several = [["joy", " sad"], ["sad"], [], ["joy"], ["fear", "joy"], ["sad", "fear"], ["fear", "sad"]]
    path = tmp_path / (
        "own.csv" if kind in ("python", "json", "numpy") else f"own.{'jsonl' if kind == 'lists' else kind}"
    )
    if kind == "parquet":
        names = ["joy", "sad", "fear"]
        numbers = [[names.index(name.strip()) for name in labels] for labels in several]
        features = {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=names))}
        rows = {"text": list("abcdefg"), "label": numbers}
        datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(path)
    elif kind == "lists":
        pd.DataFrame({"text": list("abcdefg"), "label": several}).to_json(path, orient="records", lines=True)
    else:
        written = {"python": repr, "json": json.dumps, "numpy": lambda labels: f"[{' '.join(map(repr, labels))}]"}[
            kind
        ]
        write(tmp_path, path.name, text=list("abcdefg"), label=list(map(written, several)))
    corpus = read_emotion(path, None)
    assert corpus.multi_label and corpus.classes == ["fear", "joy", "sad"]
    found = [{corpus.classes[i] for i in row.nonzero()[0]} for row in corpus.labels]
    assert found == [{name.strip() for name in labels} for labels in several]


@pytest.mark.parametrize("cell, names", [
    ("[mixed feelings, joy]", ["mixed feelings", "joy"]), ("[don't know, can't tell]", ["don't know", "can't tell"]),
    ("[1 2]", ["1", "2"]), ('["don\'t know", "joy"]', ["don't know", "joy"]), ("[]", []), (["joy", "joy"], ["joy"]),
    ('["say \\"hi\\"", "b"]', ['say "hi"', "b"]), ("[joy]", ["joy"]), ("[1, 1]", ["1"]),
    ("['joy' 'sad']", ["joy", "sad"]),
])  # fmt: skip
def test_names_in_a_list_are_taken_whole(cell, names):
    assert class_names("label", cell) == tuple(names)


@pytest.mark.parametrize(
    "cell", ["[joy; calm]", "['don't know', 'joy']", "[joy sad]", "[1 0 0]", [0, 0, 1], "[ True False False]"]
)
def test_what_is_no_list_of_names_is_refused(cell):
    with pytest.raises(BadCell):
        class_names("label", cell)


def test_marks_of_two_classes_are_no_classes_and_a_class_of_few_lists_is_said(tmp_path, caplog):
    marks = write(tmp_path, "marks.csv", text=list("abcdefgh"), label=["[1 0]", "[0 1]"] * 4)
    with pytest.raises(ValueError, match="every text has all classes, 0, 1, .* write the names of the classes"):
        read_emotion(marks, None)
    mostly = write(tmp_path, "mostly.csv", text=[f"t{i}" for i in range(24)], weight=[1.0] * 24,
                   label=["joy", "fear"] * 11 + ["['joy', 'fear']", "joy"])  # fmt: skip
    assert read_emotion(mostly, None).multi_label
    assert "1 of 24 texts have no class or several, such as 't22'" in caplog.text
    assert "the column weight is not read" in caplog.text
    none = write(tmp_path, "none.csv", text=list("abcdefgh"), label=["joy", "None"] * 4)
    assert read_emotion(none, None).classes == ["None", "joy"] and "'None' is a class like any other" in caplog.text


def test_a_hub_data_set_with_train_alone_is_divided(monkeypatch):
    rows = {"text": [f"text {i}" for i in range(40)], "label": ["sad", "glad"] * 20}
    monkeypatch.setattr("datasets.load_dataset", lambda name: {"train": datasets.Dataset.from_dict(rows)})
    corpus = read_emotion("someone/feelings", None)
    assert corpus.split is None and list(map(len, split_rows(corpus))) == [32, 4, 4]


def test_public_corpora_have_their_published_sizes(corpora_dir):
    six, sst = read_emotion("goemotions-six", corpora_dir), read_polarity("sst5", corpora_dir)
    assert (six.split == "test").sum() == 554 and 4300 < (six.split == "train").sum() <= 4343
    assert len(read_polarity("mr", corpora_dir).texts) == 10662 and len(read_sts(corpora_dir)[2]) == 1379
    assert (sst.split == "test").sum() == 2210 and sst.labels.max() == 4
    emobank = read_va("emobank", corpora_dir)
    assert (emobank.split == "test").sum() == 1000 and emobank.labels.shape[1] == 3
