"""Streamed corpora hold what loaded ones hold, in another order; bad rows are named or counted."""

import logging

import pandas as pd
import pytest

from carl_hf import load_va_dataset
from carl_hf.streamed_corpora import stream_va_dataset

FORM = {"scale": (1, 9), "columns": {"text": "sentence", "valence": "V", "arousal": "A"}}


def frame(start: int, stop: int) -> pd.DataFrame:
    rows = range(start, stop)
    return pd.DataFrame(
        {"sentence": [f"text {i}" for i in rows], "V": [1 + i % 9 for i in rows], "A": [9 - i % 8 for i in rows]}
    )


def write(folder, table: pd.DataFrame, kind: str, name: str = "part"):
    path = folder / f"{name}.{kind}"
    if kind == "parquet":
        table.to_parquet(path, index=False)
    elif kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    return str(path)


def by_text(rows):
    return sorted(((row["text"], row["valence"], row["arousal"]) for row in rows), key=lambda row: row[0])


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_stream_holds_the_rows_of_the_loaded_file(kind, tmp_path):
    path = write(tmp_path, frame(0, 50), kind)
    loaded = load_va_dataset(path, **FORM)
    assert by_text(stream_va_dataset([path], **FORM)) == by_text(loaded)
    ordered = stream_va_dataset([path], shuffle_buffer=1, **FORM)
    assert [row["text"] for row in ordered] == list(loaded["text"])


def test_files_and_rows_are_shuffled_anew_in_each_pass(tmp_path):
    for part in range(4):
        write(tmp_path, frame(10 * part, 10 * part + 10), "parquet", f"part-{part}")
    stream = stream_va_dataset([str(tmp_path / "*.parquet")], shuffle_buffer=5, seed=1, **FORM)
    passes = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        passes.append([row["text"] for row in stream])
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(f"text {i}" for i in range(40))
    assert passes[0] != passes[1]
    again = stream_va_dataset([str(tmp_path / "*.parquet")], shuffle_buffer=5, seed=1, **FORM)
    assert [row["text"] for row in again] == passes[0]


def test_held_out_texts_are_left_out(tmp_path):
    path = write(tmp_path, frame(0, 10), "csv")
    found = [row["text"] for row in stream_va_dataset([path], held_out=["TEXT  3", "text 7"], **FORM)]
    assert sorted(found) == [f"text {i}" for i in range(10) if i not in (3, 7)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_bad_row_is_named_or_skipped_and_counted(kind, tmp_path, caplog):
    table = frame(0, 30).astype({"V": float})
    table.loc[4, "sentence"] = "  "
    table.loc[11, "V"] = 12.0
    table.loc[12, "V"] = float("nan")
    path = write(tmp_path, table, kind)
    with pytest.raises(ValueError, match=r"row 5: column 'text' is empty \(2 more bad rows follow\); correct or"):
        list(stream_va_dataset([path], **FORM))
    with caplog.at_level(logging.WARNING):
        assert len(list(stream_va_dataset([path], skip_bad_rows=True, **FORM))) == 27
    assert f"{path}: 3 bad rows left out. text is empty: 1 (row 5)" in caplog.text
    assert "outside the scale: 1 (row 12)" in caplog.text and "no number: 1 (row 13)" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": None}, "state the scale"),
        ({"scale": (9, 1)}, "scale must be"),
        ({"columns": {"text": "sentense"}}, "no column 'sentense'; it has sentence, V, A"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be at least 1"),
    ],
)
def test_what_cannot_be_streamed_is_refused_at_once(change, message, tmp_path):
    path = write(tmp_path, frame(0, 5), "csv")
    with pytest.raises(ValueError, match=message):
        stream_va_dataset([path], **{**FORM, **change})
    with pytest.raises(ValueError, match="there is no such file"):
        stream_va_dataset([str(tmp_path / "none.csv")], **FORM)
