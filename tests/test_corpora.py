"""Corpora known by name, on small files of their form and as published; the demo corpus keeps its data sheet."""

import hashlib
import importlib.resources
import io
import logging
import urllib.error

import numpy as np
import pandas as pd
import pytest

from carl_hf import load_va_dataset
from carl_hf.data.corpora import CORPORA, content_sha256

EMOBANK = (
    "id,split,V,A,D,text\na,train,1.0,5.0,3,first\n"
    "b,train,3.0,3.0,3,Shared  text\nc,dev,5.0,2.0,3,shared TEXT\nd,test,2.0,3.0,3,None\n"
)
FACEBOOK = (
    'Anonymized Message,Valence1,Valence2,Arousal1,Arousal2\n"one, two",9,8,1,2\n,6,6,3,1\nItâ€™s fine,5,5,5,5\n'
)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_emobank_as_published(tmp_path, caplog):
    write(tmp_path / "emobank" / "emobank.csv", EMOBANK)
    everything = load_va_dataset("emobank", data_dir=tmp_path)
    assert everything["text"] == ["first", "Shared  text", "shared TEXT", "None"]
    assert everything["valence"] == [-1.0, 0.0, 1.0, -0.5] and everything["arousal"] == [1.0, 0.0, -0.5, 0.0]
    assert "not the published emobank" in caplog.text
    # a training text that is in another split is left out
    for split, texts in {"train": ["first"], "validation": ["shared TEXT"], "test": ["None"]}.items():
        assert load_va_dataset("emobank", split=split, data_dir=tmp_path)["text"] == texts
    for rating in ("high", ""):
        write(tmp_path / "emobank" / "emobank.csv", f"{EMOBANK}b,train,{rating},3.0,3,x\n")
        with pytest.raises(ValueError, match="emobank.csv, row 5: column 'valence' holds"):
            load_va_dataset("emobank", data_dir=tmp_path)


def test_facebook_as_published(tmp_path):
    write(tmp_path / "facebook_va" / "dataset-fb-valence-arousal-anon.csv", FACEBOOK)
    posts = load_va_dataset("facebook", split="train", data_dir=tmp_path)
    assert posts["text"] == ["one, two", "It’s fine"]  # the empty one is left out, the double encoding undone
    assert posts["valence"] == pytest.approx([2 * 7.5 / 8 - 1, 0]) and posts["arousal"] == pytest.approx([-0.875, 0])
    with pytest.raises(ValueError, match="no column 'split'"):
        load_va_dataset("facebook", split="test", data_dir=tmp_path)


def test_iemocap_from_its_release_folder(tmp_path, caplog):
    turns = {"Session1": ("Ses01F_impro01_F000", "[2.5000, 3.0000, 2.5000]"),
             "Session5": ("Ses05M_script01_M003", "[5.5000, 1.0000, 2.0000]")}  # fmt: skip
    for session, (turn, label) in turns.items():
        folder, name = tmp_path / "IEMOCAP_full_release" / session / "dialog", turn.rsplit("_", 1)[0] + ".txt"
        write(folder / "EmoEvaluation" / name,
              f"% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n[6.2901 - 8.2357]\t{turn}\tneu\t{label}\n"
              f"C-E2:\tNeutral;\t()\n[9.0 - 9.9]\t{turn}X\txxx\t[2.0000, 2.0000, 2.0000]\n")  # fmt: skip
        write(folder / "transcriptions" / name, f"{turn} [006.2901-008.2357]: Words of {session}.\nM: aside\n")
    turns = load_va_dataset("iemocap", split="train", data_dir=tmp_path)
    assert turns["text"] == ["Words of Session1.", "Words of Session5."]  # turns without a transcript are left out
    assert turns["valence"] == [-0.25, 1.0] and turns["arousal"] == [0.0, -1.0]
    assert "1 values of valence outside [1, 5] were clipped" in caplog.text


def test_emotales_from_its_workbook(tmp_path):
    pytest.importorskip("openpyxl")
    folder = tmp_path / "EmoTales" / "View #1"
    folder.mkdir(parents=True)
    head = [["", "Annotator 1", "", "", "Annotator 2", "", ""], ["Sentence", "EVA", "ACT", "POW", "EVA", "ACT", "POW"]]
    sheets = {
        "One": head + [["It&#39;s<br>late.", 1, 9, 5, 3, 7, 5], ["Unrated."] + [None] * 6],
        "Two": head + [["End.", 9, 5, 5, None, None, None]], "Empty": [], "Unrated": [["a"], ["b"], ["Unrated."]],
    }  # fmt: skip
    with pd.ExcelWriter(folder / "View#1_dimensions.xlsx") as writer:
        for tale, rows in sheets.items():
            pd.DataFrame(rows).to_excel(writer, sheet_name=tale, header=False, index=False)
    tales = load_va_dataset("emotales", data_dir=tmp_path)
    assert tales["text"] == ["It's late.", "End."]
    assert tales["valence"] == [-0.75, 1.0] and tales["arousal"] == [0.75, 0.0]


def test_missing_corpora_are_named_with_the_remedy(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("carl_hf.data.corpora._CACHE", tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"Cannot fetch emobank from https://.* \(HF_HUB_OFFLINE=1 forbids it\)"):
        load_va_dataset("emobank")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    for name, folder, message in (
        ("emobank", None, "Cannot fetch emobank from https://.*--data_dir DIR, where DIR holds emobank/emobank.csv"),
        ("emobank", tmp_path / "none", "not in --data_dir"),
        ("iemocap", tmp_path, "not in --data_dir.*IEMOCAP_full_release"),
        ("iemocap", None, "handed out by its owners.*--data_dir"),
    ):
        with pytest.raises(ValueError, match=message):
            load_va_dataset(name, data_dir=folder)


def test_a_download_is_used_only_if_its_checksum_fits(monkeypatch, corpora_dir, tmp_path):
    published = (corpora_dir / "emobank" / "emobank.csv").read_bytes()
    monkeypatch.setattr("carl_hf.data.corpora._CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for body in (EMOBANK.encode(), b"<html>", published[:-1000]):
        monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout, body=body: io.BytesIO(body))
        with pytest.raises(ValueError, match="checksum differs. Nothing was used"):
            load_va_dataset("emobank")
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(published))
    assert len(load_va_dataset("emobank")) == 10062
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(published[:-1000])  # a damaged copy is fetched again
    assert len(load_va_dataset("emobank")) == 10062
    monkeypatch.setattr("urllib.request.urlopen", None)  # what was fetched once is kept
    assert len(load_va_dataset("emobank", split="test")) == 1000


def test_content_checksum_sees_words_and_labels_but_not_form():
    frame = pd.DataFrame({"text": ["It’s  a", "b"], "valence": [1, 2.5], "arousal": ["3.0", 4]})
    same = pd.DataFrame({"text": ["Itâ€™s a", "b "], "valence": [1.0, 2.5], "arousal": [3, 4]})
    assert content_sha256(frame) == content_sha256(same)
    others = [{"valence": [1, 2.6]}, {"text": ["It’s a", "c"]}, {"text": ["It’s a", "b:)"]},
              {"text": ["It’s a", "b:("]}, {"split": ["train", "test"]}, {"split": ["test", "train"]}]  # fmt: skip
    assert len({content_sha256(frame.assign(**change)) for change in [{}, *others]}) == 7


def test_public_corpora(corpora_dir, caplog):
    with caplog.at_level(logging.WARNING):
        parts = {s: load_va_dataset("emobank", split=s, data_dir=corpora_dir) for s in ("train", "test", "all")}
        posts = load_va_dataset("facebook", data_dir=corpora_dir)
    assert not caplog.text  # the content is the published one
    assert {s: len(part) for s, part in parts.items()} == {"train": 7984, "test": 1000, "all": 10062}  # of 8,062
    assert len(posts) == 2894 and min(posts["arousal"]) == -1.0
    zero = [v == a == 0 for v, a in zip(parts["all"]["valence"], parts["all"]["arousal"], strict=True)]
    assert sum(zero) == 658  # the rows on which Eq 4 is 0/0


def test_every_spec_is_complete():
    for name, spec in CORPORA.items():
        assert spec.name == name and spec.scale[0] < spec.scale[1] and spec.licence and spec.source
        assert spec.url is None or (spec.revision in spec.url and len(spec.sha256) == 64)


LABELS = {"anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral"}


@pytest.fixture(scope="module")
def demo():
    return pd.read_csv(importlib.resources.files("carl_hf.data.resources") / "demo.csv")


def test_the_demo_corpus_has_splits_labels_and_the_whole_plane(demo):
    assert len(demo) >= 1200 and (demo["split"] == "test").sum() >= 200 and demo["genre"].nunique() >= 10
    assert {split: set(part["label"]) for split, part in demo.groupby("split")} == dict.fromkeys(
        ("train", "validation", "test"), LABELS
    )
    assert demo["text"].str.split().str.len().between(3, 60).all()
    cells = (2 * (demo[["valence", "arousal"]] + 1)).astype(int).clip(upper=3).value_counts()
    assert len(cells) == 16 and cells.min() >= 15
    assert abs(np.corrcoef(demo["valence"], demo["arousal"])[0, 1]) < 0.1  # one cannot be read from the other
    parts = {split: load_va_dataset("demo", split=split) for split in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == len(demo) and set(parts["test"]["label"]) == LABELS
    assert all(-1 <= v <= 1 for part in parts.values() for c in ("valence", "arousal") for v in part[c])
    emoji = demo["text"].str.contains("[\u2600-\u27bf\U0001f300-\U0001faff]").groupby(demo["split"]).sum()
    assert emoji.min() >= 20 and emoji["train"] >= 200, "emoji have to be read in every part"
    sheet = (importlib.resources.files("carl_hf.data.resources") / "DATASHEET.md").read_text(encoding="utf-8")
    counts = {"": len(demo), **demo["label"].value_counts(), **demo["split"].value_counts()}
    assert all(f"{name} {count:,}".strip() in " ".join(sheet.split()) for name, count in counts.items())


def test_the_shipped_texts_are_those_that_were_checked():
    """None like another, words and emoji in balance, sentences complete: a change of them needs all that anew."""
    files = "data/resources/demo.csv", "data/resources/feeling_over_topic.csv", "data/resources/emoji_pairs.csv"
    beginnings = "681233f346d3e733", "2c10b05277ec7be2", "3808defd0522aa0c", "be5c3f7cfda39ae9"
    for file, beginning in zip((*files, "export/exchanges.yaml"), beginnings, strict=True):
        content = (importlib.resources.files("carl_hf") / file).read_bytes()
        assert hashlib.sha256(content).hexdigest().startswith(beginning), file
