"""Readers, normalisation, splits and mixing, on miniature files of the corpora's form and on bad files."""

import json
import logging
import math
import urllib.error

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from carl_hf import load_va_dataset
from carl_hf.data.corpora import CORPORA, content_sha256
from carl_hf.data.label_spaces import read_label_space
from carl_hf.data.loading import NoSplitError
from carl_hf.data.mixing import (
    check_dataset,
    class_names,
    mix_datasets,
    remove_overlap,
    rows_with_va,
    va_from_class_labels,
)

EMOBANK = (
    "id,split,V,A,D,text\na,train,1.0,5.0,3,first\n"
    "b,train,3.0,3.0,3,Shared  text\nc,dev,5.0,2.0,3,shared TEXT\nd,test,2.0,3.0,3,None\n"
)
FACEBOOK = (
    'Anonymized Message,Valence1,Valence2,Arousal1,Arousal2\n"one, two",9,8,1,2\n,6,6,3,1\nItâ€™s fine,5,5,5,5\n'
)


def write_emobank(folder, text=EMOBANK):
    (folder / "emobank").mkdir()
    (folder / "emobank" / "emobank.csv").write_text(text, encoding="utf-8")
    return folder


def test_emobank_as_published(tmp_path, caplog):
    write_emobank(tmp_path)
    everything = load_va_dataset("emobank", data_dir=tmp_path)
    assert everything["text"] == ["first", "Shared  text", "shared TEXT", "None"]
    assert everything["valence"] == [-1.0, 0.0, 1.0, -0.5] and everything["arousal"] == [1.0, 0.0, -0.5, 0.0]
    assert "not the published emobank" in caplog.text
    # a training text that stands in another split is left out
    assert load_va_dataset("emobank", split="train", data_dir=tmp_path)["text"] == ["first"]
    assert load_va_dataset("emobank", split="validation", data_dir=tmp_path)["text"] == ["shared TEXT"]
    assert load_va_dataset("emobank", split="test", data_dir=tmp_path)["text"] == ["None"]


def test_facebook_as_published(tmp_path):
    (tmp_path / "facebook_va").mkdir()
    (tmp_path / "facebook_va" / "dataset-fb-valence-arousal-anon.csv").write_text(FACEBOOK, encoding="utf-8")
    posts = load_va_dataset("facebook", split="train", data_dir=tmp_path)
    assert posts["text"] == ["one, two", "It’s fine"]  # the empty one is left out, the double encoding undone
    assert posts["valence"] == pytest.approx([2 * 7.5 / 8 - 1, 0.0]) and posts["arousal"] == pytest.approx(
        [-0.875, 0.0]
    )
    with pytest.raises(ValueError, match="no column 'split'"):
        load_va_dataset("facebook", split="test", data_dir=tmp_path)


def test_iemocap_from_its_release_folder(tmp_path, caplog):
    for session, turn, label in (
        (1, "Ses01F_impro01_F000", "[2.5000, 3.0000, 2.5000]"),
        (5, "Ses05M_script01_M003", "[5.5000, 1.0000, 2.0000]"),
    ):
        base = tmp_path / "IEMOCAP_full_release" / f"Session{session}" / "dialog"
        (base / "EmoEvaluation").mkdir(parents=True)
        (base / "transcriptions").mkdir()
        name = turn.rsplit("_", 1)[0] + ".txt"
        (base / "EmoEvaluation" / name).write_text(
            f"% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n[6.2901 - 8.2357]\t{turn}\tneu\t{label}\n"
            f"C-E2:\tNeutral;\t()\n"
            f"[9.0 - 9.9]\t{turn}X\txxx\t[2.0000, 2.0000, 2.0000]\n"
        )
        (base / "transcriptions" / name).write_text(
            f"{turn} [006.2901-008.2357]: Words of turn {session}.\nM: aside\n"
        )
    turns = load_va_dataset("iemocap", split="train", data_dir=tmp_path)
    assert turns["text"] == ["Words of turn 1.", "Words of turn 5."]  # the turn without a transcript is left out
    assert turns["valence"] == [-0.25, 1.0] and turns["arousal"] == [0.0, -1.0]
    assert "1 values of valence outside [1, 5] were clipped" in caplog.text


def test_emotales_from_its_workbook(tmp_path):
    pytest.importorskip("openpyxl")
    folder = tmp_path / "EmoTales" / "View #1"
    folder.mkdir(parents=True)
    head = [["", "Annotator 1", "", "", "Annotator 2", "", ""], ["Sentence", "EVA", "ACT", "POW", "EVA", "ACT", "POW"]]
    with pd.ExcelWriter(folder / "View#1_dimensions.xlsx") as writer:
        for tale, rows in {
            "One": [["It&#39;s<br>late.", 1, 9, 5, 3, 7, 5], ["Unrated."] + [None] * 6],
            "Two": [["End.", 9, 5, 5, None, None, None]],
        }.items():
            pd.DataFrame(head + rows).to_excel(writer, sheet_name=tale, header=False, index=False)
        pd.DataFrame().to_excel(writer, sheet_name="Empty")
        pd.DataFrame([["a"], ["b"], ["Unrated."]]).to_excel(writer, sheet_name="Unrated", header=False, index=False)
    tales = load_va_dataset("emotales", data_dir=tmp_path)
    assert tales["text"] == ["It's late.", "End."]
    assert tales["valence"] == [-0.75, 1.0] and tales["arousal"] == [0.75, 0.0]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "json", "jsonl", "array.json"])
def test_own_files_with_a_stated_scale(suffix, tmp_path):
    rows = [
        {"words": "null", "V": 1, "A": 9, "label": "joy"},
        {"words": "naïve 😀 שלום", "V": 5, "A": 3, "label": "fear"},
    ]
    path = tmp_path / f"own.{suffix}"
    frame = pd.DataFrame(rows)
    match suffix:
        case "csv":
            frame.to_csv(path, index=False)
        case "tsv":
            frame.to_csv(path, index=False, sep="\t")
        case "parquet":
            frame.to_parquet(path)
        case "array.json":
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        case _:
            path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    columns = {"text": "words", "valence": "V", "arousal": "A"}
    own = load_va_dataset(path, scale=(1, 9), columns=columns)
    assert own["text"] == ["null", "naïve 😀 שלום"] and own["valence"] == [-1.0, 0.0] and own["arousal"] == [1.0, -0.5]
    assert own["label"] == ["joy", "fear"]
    observed = load_va_dataset(path, scale=(1, 9), columns=columns, normalization="observed")
    assert observed["valence"] == [-1.0, 1.0] and observed["arousal"] == [1.0, -1.0]


def test_standardized_labels_have_the_mean_and_deviation_of_the_training_rows(tmp_path):
    path = tmp_path / "own.csv"
    rows = [("train", 1, 2), ("train", 3, 2), ("train", 5, 8), ("test", 9, 9)]
    path.write_text(
        "text,split,valence,arousal\n" + "".join(f"text {n},{r[0]},{r[1]},{r[2]}\n" for n, r in enumerate(rows))
    )
    train, test = (
        load_va_dataset(path, scale=(1, 9), split=split, normalization="standardized") for split in ("train", "test")
    )
    for name in ("valence", "arousal"):
        assert np.mean(train[name]) == pytest.approx(0, abs=1e-12)
        assert np.std(train[name]) == pytest.approx(1 / 3)
    assert test["valence"] == [1.0]  # (9 - 3) / (3 * 1.633) = 1.22, cut
    assert test["arousal"] == pytest.approx([(9 - 4) / (3 * 8**0.5)])


def test_labels_without_training_rows_cannot_be_standardized(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,split,valence,arousal\na,test,1,1\nb,test,2,2\n")
    with pytest.raises(NoSplitError, match="no training rows.*--normalization scale"):
        load_va_dataset(path, scale=(1, 9), split="test", normalization="standardized")


def test_a_named_column_wins_over_one_that_has_its_name_already(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,text_en,valence,v2,arousal\nuno,one,1,5,3\n")
    own = load_va_dataset(path, scale=(1, 5), columns={"text": "text_en", "valence": "v2"})
    assert own["text"] == ["one"] and own["valence"] == [1.0]


@pytest.mark.parametrize("broken", ["b,train,high,3.0,3,x\n", "b,train,,3.0,3,x\n"])
def test_a_bad_rating_in_a_corpus_is_named(broken, tmp_path):
    with pytest.raises(ValueError, match="emobank.csv, row 5: column 'valence' holds"):
        load_va_dataset("emobank", data_dir=write_emobank(tmp_path, EMOBANK + broken))


def test_a_hub_dataset_with_splits(monkeypatch):
    parts = {
        s: Dataset.from_dict({"text": [f"{s} text"], "valence": [0.0], "arousal": [1.0]}) for s in ("train", "test")
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(parts))
    assert load_va_dataset("someone/texts", scale=(-1, 1), split="test")["text"] == ["test text"]


BAD_FILES = {
    "a missing column": ("text,valence\na,1\n", "no column 'arousal'.*--arousal_column"),
    "a misnamed column": ("txt,valence,arousal\na,1,1\n", "no column 'text'; it has txt, valence, arousal"),
    "text for a number": ("text,valence,arousal\na,1,2\nb,high,2\n", "row 2: column 'valence' holds 'high'"),
    "nothing for a number": ("text,valence,arousal\na,1,\n", "row 1: column 'arousal' holds ''"),
    "NaN": ("text,valence,arousal\na,1,nan\n", "row 1: column 'arousal' holds 'nan'"),
    "infinity": ("text,valence,arousal\na,1,inf\n", "row 1: column 'arousal' holds 'inf'"),
    "a label outside the scale": ("text,valence,arousal\na,1,1\nb,6,1\n", r"row 2: valence is 6, outside the scale"),
    "an empty text": ("text,valence,arousal\na,1,1\n  ,1,1\n", "row 2: column 'text' is empty"),
    "no rows": ("text,valence,arousal\n", "has no rows"),
    "an empty file": ("", "is empty or cannot be read"),
    "ragged rows": ("text,valence,arousal\na,1,1\nb,1,1,1,1\n", "row 2: has 5 cells, the header 3"),
}  # fmt: skip


@pytest.mark.parametrize("content, message", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_files_are_refused_with_row_and_remedy(content, message, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_va_dataset(path, scale=(1, 5))


def test_other_bad_input_is_refused(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,valence,arousal\na,1,1\nb,1,2\n")
    for arguments, message in (
        ({"source": path}, "state the scale"),
        ({"source": path, "scale": (5, 1)}, "scale must be"),
        ({"source": path, "scale": (1, 5), "columns": {"text": "words"}}, "no column 'words' for 'text'"),
        ({"source": path, "scale": (1, 5), "normalization": "observed"}, "observed range is empty"),
        ({"source": path, "scale": (1, 5), "normalization": "standardized"}, "valence does not vary"),
        ({"source": path, "scale": (1, 5), "normalization": "other"}, "Unknown normalization 'other': choose"),
        ({"source": path, "scale": (1, 5), "split": "dev"}, "Unknown split"),
        ({"source": tmp_path / "none.csv", "scale": (1, 5)}, "no file"),
        ({"source": tmp_path, "scale": (1, 5)}, "cannot read this kind of file"),
        ({"source": "emobnk"}, "Unknown corpus 'emobnk': choose one of demo, emobank"),
        ({"source": "someone/none", "scale": (1, 5)}, "Cannot load the Hub dataset"),
        ({"source": "iemocap", "data_dir": tmp_path}, "not in --data_dir.*IEMOCAP_full_release"),
        ({"source": "iemocap"}, "handed out by its owners.*--data_dir"),
        ({"source": "emobank", "data_dir": tmp_path / "none"}, "not in --data_dir"),
    ):
        with pytest.raises(ValueError, match=message):
            load_va_dataset(**arguments)
    (tmp_path / "latin.csv").write_bytes("text,valence,arousal\ncaf\xe9,1,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        load_va_dataset(tmp_path / "latin.csv", scale=(1, 5))


def test_without_a_network_the_error_names_the_flag(monkeypatch, tmp_path):
    monkeypatch.setattr("carl_hf.data.corpora._CACHE", tmp_path)

    def unreachable(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(
        ValueError, match="Cannot fetch emobank from https://.*--data_dir DIR, where DIR holds emobank/emobank.csv"
    ):
        load_va_dataset("emobank")


class _Response:
    def __init__(self, body):
        self.body = body

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def read(self):
        return self.body


def test_a_download_is_used_only_if_its_checksum_fits(monkeypatch, corpora_dir, tmp_path):
    monkeypatch.setattr("carl_hf.data.corpora._CACHE", tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: _Response(EMOBANK.encode()))
    with pytest.raises(ValueError, match="checksum differs. Nothing was used"):
        load_va_dataset("emobank")
    published = (corpora_dir / "emobank" / "emobank.csv").read_bytes()
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: _Response(published))
    assert len(load_va_dataset("emobank")) == 10062
    monkeypatch.setattr("urllib.request.urlopen", None)  # what was fetched once is kept
    assert len(load_va_dataset("emobank", split="test")) == 1000


def test_content_checksum_sees_words_and_labels_but_not_form():
    frame = pd.DataFrame({"text": ["It’s  a", "b"], "valence": [1, 2.5], "arousal": ["3.0", 4]})
    same = pd.DataFrame({"text": ["Itâ€™s a", "b "], "valence": [1.0, 2.5], "arousal": [3, 4]})
    assert content_sha256(frame) == content_sha256(same)
    assert content_sha256(frame) != content_sha256(frame.assign(valence=[1, 2.6]))
    assert content_sha256(frame) != content_sha256(frame.assign(text=["It’s a", "c"]))
    assert content_sha256(frame.assign(text=["It’s a", "b:)"])) != content_sha256(frame.assign(text=["It’s a", "b:("]))
    assert content_sha256(frame.assign(split=["train", "test"])) != content_sha256(
        frame.assign(split=["test", "train"])
    )


def test_public_corpora(corpora_dir, caplog):
    with caplog.at_level(logging.WARNING):
        sizes = {
            s: len(load_va_dataset("emobank", split=s, data_dir=corpora_dir)) for s in ("validation", "test", "all")
        }
        train = load_va_dataset("emobank", split="train", data_dir=corpora_dir)
        posts = load_va_dataset("facebook", data_dir=corpora_dir)
    assert not caplog.text  # the content is the published one
    assert sizes == {"validation": 1000, "test": 1000, "all": 10062} and len(train) == 7984  # of 8,062
    assert len(posts) == 2894 and min(posts["arousal"]) == -1.0
    zero = [
        v == a == 0
        for v, a in zip(
            *(load_va_dataset("emobank", data_dir=corpora_dir)[c] for c in ("valence", "arousal")), strict=True
        )
    ]
    assert sum(zero) == 658  # the rows on which Eq 4 is 0/0


def test_every_spec_is_complete():
    for name, spec in CORPORA.items():
        assert spec.name == name and spec.scale[0] < spec.scale[1] and spec.licence and spec.source
        if spec.url is not None:
            assert spec.revision in spec.url and len(spec.sha256) == 64


def test_overlap_and_mixing():
    def texts(*names):
        return Dataset.from_dict({"text": list(names), "valence": [0.5] * len(names), "arousal": [0.0] * len(names)})

    assert remove_overlap(texts("A  b", "c"), [["a B"], ["d"]])["text"] == ["c"]
    mixed = mix_datasets([(texts(*"abcd"), 2.5), (texts("x", "y"), 1), (texts("z"), 0)], seed=1)
    counts = {name: mixed["text"].count(name) for name in "abcdxyz"}
    assert sum(counts[n] for n in "abcd") == 10 and set(counts[n] for n in "abcd") == {2, 3}
    assert counts["x"] == counts["y"] == 1 and counts["z"] == 0
    assert mixed["text"] == mix_datasets([(texts(*"abcd"), 2.5), (texts("x", "y"), 1)], seed=1)["text"]
    for weight in (-1, math.nan):
        with pytest.raises(ValueError, match="mixing weight"):
            mix_datasets([(texts("a"), weight)], seed=0)
    with pytest.raises(ValueError, match="empty"):
        mix_datasets([(texts("a"), 0)], seed=0)


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"text": ["a"], "valence": [0.0]}, "no column 'arousal'"),
        ({"text": ["a", ""], "valence": [0.0, 0.0], "arousal": [0.0, 0.0]}, "row 1: column 'text' is empty"),
        ({"text": ["a"], "valence": [math.nan], "arousal": [0.0]}, "row 0: column 'valence' holds nan, not a number"),
        ({"text": ["a"], "valence": [3.0], "arousal": [0.0]}, r"row 0: valence is 3, outside the scale \[-1, 1\]"),
        ({"text": ["a"], "valence": ["1"], "arousal": [0.0]}, "row 0: column 'valence' holds '1' in place of 1.0"),
        ({"text": [], "valence": [], "arousal": []}, "is empty"),
        ({"text": ["a"], "label": ["joy"]}, "no column 'valence'"),
        ({"text": ["a"], "valence": [None], "arousal": [None]}, "row 0: column 'valence' holds None"),
        ({"text": ["a", "b"], "valence": [0.0, None], "arousal": [0.0, 0.1], "label": ["x", "y"]},
         "row 1: column 'valence' holds None"),
        ({"text": ["a", "b"], "valence": [0.0, 0.0], "arousal": [0.0, None], "label": ["x", "y"]},
         "row 1: column 'arousal' holds None"),
        ({"text": ["a", "b"], "valence": [None] * 2, "arousal": [None] * 2, "label": ["x", "y"]},
         "no text has valence and arousal"),
    ],
)  # fmt: skip
def test_datasets_that_cannot_be_trained_on_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        check_dataset(Dataset.from_dict(columns), "train_dataset")


def test_labels_are_names_where_names_are_needed():
    numbers = {"text": ["a", "b"], "valence": [0.0] * 2, "arousal": [0.0] * 2}
    for label, message in (
        (["x", " "], "row 1: column 'label' holds ' ' in place of None"),
        ([1, 2], "holds 1 in place of '1'"),
    ):
        dataset = Dataset.from_dict({**numbers, "label": label})
        check_dataset(dataset, "train_dataset", {"va"})  # not looked at
        with pytest.raises(ValueError, match=message):
            check_dataset(dataset, "train_dataset", {"va", "class"})


def test_names_alone_numbers_alone_and_mixtures_pass_for_what_needs_them():
    names = Dataset.from_dict({"text": ["a", "b"], "label": ["joy", None]})
    with pytest.raises(ValueError, match="row 1: column 'valence' holds None"):  # a text without any label
        check_dataset(names, "train_dataset", {"class"})
    names = names.select([0])
    check_dataset(names, "train_dataset", {"class"})
    check_dataset(names, "eval_dataset", ())
    numbers = Dataset.from_dict({"text": ["c"], "valence": [0.5], "arousal": [-0.5]})
    check_dataset(numbers, "eval_dataset", ())
    with pytest.raises(ValueError, match="no column 'label'"):
        check_dataset(numbers, "train_dataset", {"va", "class"})
    mixed = mix_datasets([(names, 1), (numbers, 2)], seed=0)
    assert mixed["label"] == ["joy", None, None] and mixed["valence"] == [None, 0.5, 0.5]
    check_dataset(mixed, "train_dataset", {"va", "class", "angle"})
    assert rows_with_va(mixed)["text"] == ["c", "c"] and len(rows_with_va(names)) == 0
    assert class_names(mixed) == ["joy"] and class_names(numbers) == []
    assert mix_datasets([(numbers, 1)], seed=0).column_names == ["text", "valence", "arousal"]


def test_names_become_numbers_by_a_label_space():
    space = read_label_space("ekman6")
    names = Dataset.from_dict(
        {"text": ["a", "b", "c"], "label": ["Fear", "joy", None], "valence": [None, 0.1, 0.2],
         "arousal": [None, 0.2, 0.3]}
    )  # fmt: skip
    found = va_from_class_labels(names, space)
    assert found["valence"] == [-0.64, 0.1, 0.2] and found["arousal"] == [0.6, 0.2, 0.3]  # numbers stay
    assert found["label"] == ["Fear", "joy", None]
    with pytest.raises(ValueError, match="ekman6 has no entry for 'guilt'; it has anger"):
        va_from_class_labels(Dataset.from_dict({"text": ["a"], "label": ["guilt"]}), space)


def test_labels_of_a_file_are_names_or_nothing(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,valence,arousal,label\na,1,2,joy\nb,2,1,\nc,3,3,7\n", encoding="utf-8")
    assert load_va_dataset(path, scale=(1, 3))["label"] == ["joy", None, "7"]
