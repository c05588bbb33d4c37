"""Streamed corpora hold what loaded ones hold, in another order; bad rows are named, or left out and counted."""

import logging

import pandas as pd
import pytest
from conftest import write_table

from carl_hf import load_va_dataset
from carl_hf.data import files
from carl_hf.data.streaming import open_tables, stream_va_dataset

FORM = {"scale": (1, 9), "columns": {"text": "sentence", "valence": "V", "arousal": "A"}}
HEADER = "text,valence,arousal\n"
KINDS = pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])


def frame(start: int, stop: int) -> pd.DataFrame:
    rows = range(start, stop)
    return pd.DataFrame(
        {"sentence": [f"text {i}" for i in rows], "V": [1.0 + i % 9 for i in rows], "A": [9 - i % 8 for i in rows]}
    )


def texts_of(path, **settings) -> list[str]:
    settings = {"scale": (1, 5), "shuffle_buffer": 1, **settings}
    return [row["text"] for row in stream_va_dataset([str(path)], **settings)]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_stream_holds_the_rows_of_the_loaded_file(kind, tmp_path):
    path = write_table(tmp_path / f"part.{kind}", frame(0, 50).assign(label=["joy", None] * 25))
    loaded = load_va_dataset(path, **FORM).to_list()
    assert sorted(stream_va_dataset([path], **FORM), key=str) == sorted(loaded, key=str)
    assert list(stream_va_dataset([path], shuffle_buffer=1, **FORM)) == loaded
    held_out = texts_of(path, held_out=["TEXT  3", "text 7"], **FORM)
    assert held_out == [f"text {i}" for i in range(50) if i not in (3, 7)]


def test_files_and_rows_are_shuffled_anew_in_each_pass(tmp_path):
    for part in range(4):
        write_table(tmp_path / f"part-{part}.parquet", frame(10 * part, 10 * part + 10))
    stream = stream_va_dataset([str(tmp_path / "*.parquet")], shuffle_buffer=5, seed=1, **FORM)
    passes = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        passes.append([row["text"] for row in stream])
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(f"text {i}" for i in range(40))
    assert passes[0] != passes[1] and texts_of(tmp_path, shuffle_buffer=5, seed=1, **FORM) == passes[0]


@KINDS
def test_a_bad_row_is_named_or_skipped_and_counted(kind, tmp_path, caplog):
    table = frame(0, 30)
    table.loc[4, "sentence"], table.loc[11, "V"], table.loc[12, ["V", "A"]] = "  ", 12.0, float("nan")
    path = write_table(tmp_path / f"part.{kind}", table)
    with pytest.raises(ValueError, match=r"row 5: column 'text' is empty \(2 more bad rows follow\); correct or"):
        texts_of(path, **FORM)
    with caplog.at_level(logging.WARNING):
        assert len(texts_of(path, skip_bad_rows=True, **FORM)) == 27
    assert f"{path}: 3 bad rows left out. text is empty: 1 (row 5)" in caplog.text
    assert f"{path}, row 5: column 'text' is empty; left out, as others will be (text is empty)." in caplog.text
    assert "outside the scale: 1 (row 12)" in caplog.text and "no valence or arousal: 1 (row 13)" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": None}, "state the scale"), ({"scale": (9, 1)}, "scale must be"),
        ({"columns": {"text": "sentense"}}, "no column 'sentense'; it has sentence, V, A"),
        ({"columns": {"text": "sentence"}}, "no column 'valence' or 'arousal'; it has sentence, V, A"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be at least 1"),
        ({"columns": {"words": "sentence"}}, "'words' is none of text, split, label, weight, valence, arousal"),
        ({"columns": {"text": "valence"}}, "columns: 'valence' is named for another column"),
        ({"sources": ["none.csv"]}, "there is no such file"), ({"sources": ["twice.csv"]}, "two columns 'V'"),
        ({"sources": ["array.json"]}, "Write it as JSON lines"),
    ],
)  # fmt: skip
def test_what_cannot_be_streamed_is_refused_at_once(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twice.csv").write_text("sentence,V,A,V\na,1,1,1\n")
    (tmp_path / "array.json").write_text("[]")
    path = write_table(tmp_path / "part.csv", frame(0, 5))
    with pytest.raises(ValueError, match=message):
        stream_va_dataset(**{"sources": [path], **FORM, **change})


@pytest.mark.parametrize("skip", [False, True])
def test_a_file_without_a_good_row_is_refused(skip, tmp_path):
    (tmp_path / "own.csv").write_text(HEADER + "a,9,1\nb,9,1\n")
    with pytest.raises(ValueError, match=r"own.csv, row 1: valence is 9.* \(1 more.*(correct|no row is good)"):
        texts_of(tmp_path / "own.csv", skip_bad_rows=skip)


@KINDS
def test_pieces_and_row_groups_count_on(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(files.read_pieces, "__kwdefaults__", {**files.read_pieces.__kwdefaults__, "rows": 7})
    table = frame(0, 50)
    table.loc[[3, 20, 44], "V"] = 10.0
    path, skipped = (
        write_table(tmp_path / f"part.{kind}", table, **({"row_group_size": 20} if kind == "parquet" else {})),
        {},
    )
    rows = texts_of(path, skip_bad_rows=True, skipped=skipped, **FORM)
    assert rows == load_va_dataset(path, skip_bad_rows=True, **FORM)["text"]
    assert skipped[path].reasons == {"valence is outside the scale": {"rows": 3, "first": [4, 21, 45]}}
    if kind == "parquet":  # of row groups that are not wanted, only the row numbers are there
        wanted = iter([False, True, False])
        found = [piece.frame for piece in open_tables([path], ["sentence"])[0].pieces(lambda count: next(wanted))]
        assert [row for frame in found for row in frame.index] == list(range(1, 51))
        assert [row for frame in found for row in frame.get("sentence", [])] == [f"text {i}" for i in range(20, 40)]


def test_what_is_skipped_is_counted_and_told_in_good_time(tmp_path, caplog):
    path = tmp_path / "own.csv"
    path.write_text(HEADER + "a,1,1\n" + "b,9,1\n" * 9_000 + "c,,\n")
    skipped, reason = {}, "valence is outside the scale"
    stream = stream_va_dataset([str(path)], scale=(1, 5), shuffle_buffer=1, skip_bad_rows=True, skipped=skipped)
    rows = iter(stream)
    assert next(rows)["text"] == "a"
    assert "own.csv, row 2: valence is 9" in caplog.text and "bad rows left out" not in caplog.text
    rows.close()  # as a run does that ends within a pass
    assert f"own.csv: 8191 bad rows left out. {reason}: 8191 (row 2, 3, 4, 5, 6, ...)" in caplog.text
    found = {"rows": 8191, "first": [2, 3, 4, 5, 6]}
    assert skipped[str(path)].record() == {"rows": 8191, "reasons": {reason: found}}
    for _ in range(2):  # what more passes read again is counted once
        assert [row["text"] for row in stream] == ["a"]
        assert skipped[str(path)].rows == 9_001
        assert skipped[str(path)].reasons["no valence or arousal"] == {"rows": 1, "first": [9_002]}
    next(iter(stream))
    assert skipped[str(path)].rows == 9_001
    assert caplog.text.count("row 2: valence is 9") == 1 and caplog.text.count("9001 bad rows left out") == 1


def test_a_split_that_begins_late_is_refused(tmp_path):
    path, row = tmp_path / "own.jsonl", '{"text": "a", "valence": 1, "arousal": 1}\n'
    path.write_text(row * 8192 + row.replace("}", ', "split": "test"}'))
    with pytest.raises(ValueError, match="own.jsonl: one of the rows 8193 to 8193 has a 'split', those before have"):
        texts_of(path, skip_bad_rows=True)


def test_folders_and_patterns_pass_over_folders(tmp_path):
    (tmp_path / "b.csv").mkdir()
    (tmp_path / "a.csv").write_text(HEADER + "a,1,1\n")
    assert texts_of(tmp_path) == texts_of(tmp_path / "*.csv") == ["a"]
