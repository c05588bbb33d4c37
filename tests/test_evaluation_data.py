import datasets
import numpy as np
import pandas as pd
import pytest

from carl_hf.data.labelled import MissingCorpus, read_emotion, read_polarity, read_sts, read_va


def write(folder, name, **columns):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(columns)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


def test_valence_arousal_dominance_in_minus_one_to_one_and_no_leak(tmp_path):
    write(
        tmp_path, "emobank/emobank.csv", split=["train", "train", "dev", "test"], text=["a", "B  b", "c", "b b"],
        V=[1, 3, 5, 2], A=[3, 3, 3, 4], D=[5, 1, 3, 3], id=list("wxyz"),
    )  # fmt: skip
    corpus = read_va("emobank", tmp_path)
    assert corpus.dimensions == ("valence", "arousal", "dominance")
    assert corpus.texts == ["a", "c", "b b"]  # the second training text stands in test
    np.testing.assert_allclose(corpus.labels, [[-1, 0, 1], [1, 0, 0], [-0.5, 0.5, 0]])
    assert list(corpus.split) == ["train", "validation", "test"] and corpus.rows("test").tolist() == [2]
    demo = read_va("demo", None)
    assert demo.dimensions == ("valence", "arousal") and np.abs(demo.labels).max() <= 1


def test_missing_corpora_are_told_from_wrong_ones(tmp_path):
    for read in (lambda: read_va("iemocap", tmp_path), lambda: read_polarity("mr", tmp_path),
                 lambda: read_emotion("isear", None), lambda: read_sts(tmp_path)):  # fmt: skip
        with pytest.raises(MissingCorpus):
            read()
    wrong = {
        "cr/cr.csv": (lambda: read_polarity("cr", tmp_path), {"text": ["a"], "polarity": [1]}, "no column 'label'"),
        "mr/mr.csv": (lambda: read_polarity("mr", tmp_path), {"text": ["a", "b"], "label": [1, 7]}, "row 2: label"),
        "sst5/sst5.csv": (
            lambda: read_polarity("sst5", tmp_path),
            {"text": list("abc") * 5, "label": [0, 1, 2] * 5, "split": ["train"] * 15},
            "no rows 'test'",
        ),
        "stsb/stsb_test.csv": (
            lambda: read_sts(tmp_path), {"text1": ["a"], "text2": ["b"], "score": ["x"]}, "row 1: column 'score'",
        ),
        "isear/isear.csv": (
            lambda: read_emotion("isear", tmp_path),
            {"text": list("abcdefg"), "label": ["joy"] * 3 + ["fear"] * 3 + ["shame"]},
            r"class 'shame' has 1 example",
        ),
    }  # fmt: skip
    for name, (read, columns, message) in wrong.items():
        write(tmp_path, name, **columns)
        with pytest.raises(ValueError, match=message) as error:
            read()
        assert not isinstance(error.value, MissingCorpus) and name.split("/")[1] in str(error.value)


def test_labels_off_the_scale_and_gaps_are_refused(tmp_path):
    good = {"split": ["train", "dev", "test"], "text": list("abc"), "V": [1, 3, 5], "A": [3, 3, 3], "D": [5, 1, 3]}
    for change, message in (
        ({"V": [1, 3, 9]}, "row 3: valence is 9, outside"),
        ({"D": ["", 1, 3]}, "row 1: column 'dominance' holds"),
        ({"text": ["a", " ", "c"]}, "row 2: column 'text' is empty"),
        ({"split": ["train", "train", "dev"]}, "no rows 'test'"),
    ):
        write(tmp_path, "emobank/emobank.csv", **{**good, **change})
        with pytest.raises(ValueError, match=message) as error:
            read_va("emobank", tmp_path)
        assert not isinstance(error.value, MissingCorpus)


def test_names_of_the_dev_part_overlap_of_dev_with_test_and_a_missing_dev_part(tmp_path):
    columns = {"V": [1, 2, 3, 4, 5] * 4, "A": [3] * 20, "text": [f"t{i}" for i in range(20)]}
    split = ["train"] * 15 + ["val"] * 3 + ["test"] * 2
    columns["text"][16] = "T19 "  # a validation text that stands in test
    write(tmp_path, "emobank/emobank.csv", split=split, **columns)
    corpus = read_va("emobank", tmp_path)
    assert [int((corpus.split == part).sum()) for part in ("train", "validation", "test")] == [15, 2, 2]
    write(
        tmp_path,
        "emobank/emobank.csv",
        split=["train"] * 18 + ["test"] * 2,
        **{**columns, "text": list("abcdefghijklmnopqrst")},
    )
    corpus = read_va("emobank", tmp_path)
    assert [int((corpus.split == part).sum()) for part in ("train", "validation", "test")] == [16, 2, 2]


def test_a_class_without_examples_and_missing_cells_are_refused(tmp_path):
    write(tmp_path, "mr/mr.csv", text=list("abcdef"), label=[0] * 6)
    with pytest.raises(ValueError, match="class 'positive' has 0 example"):
        read_polarity("mr", tmp_path)
    frame = {"text": ["a", None, "c"], "label": ["anger"] * 3, "ekman": ["anger"] * 3, "split": ["train"] * 3}
    write(tmp_path, "goemotions/goemotions.parquet", **frame)
    with pytest.raises(ValueError, match="row 2: column 'text' is empty"):
        read_emotion("goemotions-ekman", tmp_path)
    write(tmp_path, "goemotions/goemotions.parquet", **{**frame, "text": list("abc"), "ekman": ["anger", "", "joy"]})
    with pytest.raises(ValueError, match="row 2: column 'ekman' is empty"):
        read_emotion("goemotions-ekman", tmp_path)


def test_goemotions_in_its_three_forms(tmp_path):
    labels = ["anger", "joy", "joy,love", "neutral", "fear", "sadness", "surprise", "disgust"] * 4
    ekman = ["anger", "joy", "joy", "neutral", "fear", "sadness", "surprise", "disgust"] * 4
    split = ["train"] * 16 + ["dev"] * 8 + ["test"] * 8
    write(
        tmp_path, "goemotions/goemotions.parquet", text=[f"t{i}" for i in range(32)], label=labels, ekman=ekman,
        split=split, n_labels=[label.count(",") + 1 for label in labels],
    )  # fmt: skip
    six = read_emotion("goemotions-six", tmp_path)
    assert len(six.texts) == 24 and six.classes == ["anger", "disgust", "fear", "joy", "sadness", "surprise"]
    assert [six.classes[i] for i in six.labels[:3]] == ["anger", "joy", "fear"]
    seven = read_emotion("goemotions-ekman", tmp_path)
    assert seven.labels.shape == (32, 7) and seven.labels.sum() == 32
    every = read_emotion("goemotions-28", tmp_path)
    assert every.labels.sum() == 36 and every.labels[2].sum() == 2


def test_a_file_of_one_s_own(tmp_path):
    path = write(
        tmp_path, "own.csv", text=["a", "b", "A ", "c", "d", "e", "f"], label=["x", "y", "y", "x", "y", "x", "y"]
    )
    corpus = read_emotion(str(path), None)
    assert corpus.texts == ["a", "b", "c", "d", "e", "f"] and corpus.split is None  # the repeated text is left out
    assert [corpus.classes[i] for i in corpus.labels] == ["x", "y", "x", "y", "x", "y"]
    path = write(tmp_path, "one.csv", text=["a", "b"], label=["x", "x"])
    with pytest.raises(ValueError, match="at least two"):
        read_emotion(str(path), None)
    with pytest.raises(ValueError, match="There is no file"):
        read_emotion("nowhere.csv", None)
    with pytest.raises(ValueError, match="Unknown emotion corpus 'emolit': choose demo, .*emolit12, a file"):
        read_emotion("emolit", None)
    named = write(tmp_path, "named.csv", words=list("abcdef"), feels=["x", "y"] * 3, label=list("uvwuvw"))
    corpus = read_emotion(str(named), None, {"text": "words", "label": "feels"})
    assert corpus.texts == list("abcdef") and corpus.classes == ["x", "y"]
    with pytest.raises(ValueError, match="no column 'sentence' for 'text'; it has words, feels, label"):
        read_emotion(str(named), None, {"text": "sentence"})


def test_a_hub_data_set_gives_the_names_of_its_classes(monkeypatch):
    def parts(texts, labels):
        classes = datasets.ClassLabel(names=["sad", "glad"])
        features = datasets.Features({"text": datasets.Value("string"), "label": classes})
        return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)

    published = {"train": parts(list("abcd"), [0, 1, 0, 1]), "test": parts(list("ef"), [1, 0])}
    monkeypatch.setattr("datasets.load_dataset", lambda name: published)
    corpus = read_emotion("someone/feelings", None)
    assert [corpus.classes[i] for i in corpus.labels] == ["sad", "glad", "sad", "glad", "glad", "sad"]
    assert corpus.split.tolist() == ["train"] * 4 + ["test"] * 2


def test_public_corpora_have_their_published_sizes(corpora_dir):
    six = read_emotion("goemotions-six", corpora_dir)
    assert (six.split == "test").sum() == 554 and 4300 < (six.split == "train").sum() <= 4343
    assert len(read_polarity("mr", corpora_dir).texts) == 10662
    sst = read_polarity("sst5", corpora_dir)
    assert (sst.split == "test").sum() == 2210 and sst.labels.max() == 4
    assert len(read_sts(corpora_dir)[2]) == 1379
    emobank = read_va("emobank", corpora_dir)
    assert (emobank.split == "test").sum() == 1000 and emobank.labels.shape[1] == 3
