"""Files and Hub data sets with VA labels; bad rows are refused with their number, or left out and counted."""

import codecs
import csv
import json
import logging
import math
import shutil
import time

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import write_table
from datasets import Dataset

from carl_hf import load_va_dataset
from carl_hf.data.bad_rows import MAX_CHARACTERS, Skipped
from carl_hf.data.files import read_rows, read_table
from carl_hf.data.labelled import read_emotion
from carl_hf.data.loading import NoSplitError, find_bad_rows
from carl_hf.data.streaming import stream_va_dataset

GOOD = {"text": "a quiet morning", "valence": 4, "arousal": 2}
SURROGATE = b"caf\xe9"  # Latin-1

# fault -> (cells that differ from a good row, what the message says, reason)
CELLS = {
    "no text": ({"text": "  "}, "column 'text' is empty", "text is empty"),
    "a text of 1 MB": ({"text": "z" * 2**20}, "holds 1,048,576 characters, more than 100,000", "text is too long"),
    "an unknown number": ({"valence": "nan"}, "column 'valence' holds 'nan', not a number", "valence is no number"),
    "a word": ({"arousal": "high"}, "column 'arousal' holds 'high', not a number", "arousal is no number"),
    "neither number": ({"valence": " ", "arousal": ""}, "has neither valence nor arousal", "no valence or arousal"),
    "off the scale": ({"valence": 9}, r"valence is 9, outside the scale", "valence is outside the scale"),
}  # fmt: skip
TYPED = {
    "a number for a text": ({"text": 12}, "column 'text' holds 12, not a text", "text is no text"),
    "a list for a text": ({"text": ["a"]}, r"column 'text' holds \['a'\], not a text", "text is no text"),
    "an object for a number": ({"valence": {"v": 1}}, "column 'valence' holds {'v': 1}", "valence is no number"),
    "two labels": ({"label": ["joy", "fear"]}, "a text has one label here", "label is not one name"),
    "an object for a name": ({"label": {"joy": 1}}, "column 'label' holds {'joy': 1}, not a name", "label is no name"),
    "null twice": ({"valence": None, "arousal": None}, "has neither valence nor arousal", "no valence or arousal"),
    "true": ({"valence": True}, "column 'valence' holds True, not a number", "valence is no number"),
    "NaN": ({"valence": math.nan, "arousal": None}, "has neither valence nor arousal", "no valence or arousal"),
    "infinity": ({"valence": math.inf}, "column 'valence' holds inf, not a number", "valence is no number"),
}
LINES = {  # fault -> (a line in the place of a row, message, reason)
    "csv": {
        "an empty line": (b"", "is empty", "empty row"),
        "empty cells": (b",,", "is empty", "empty row"),
        "too few cells": (b"a,1", "has 2 cells, the header 3", "wrong number of cells"),
        "too many cells": (b"a,1,1,1", "has 4 cells, the header 3", "wrong number of cells"),
        "Latin-1": (SURROGATE + b",1,1", "column 'text' is not UTF-8", "not UTF-8"),
        "a stray quotation mark": (b'"a"b,1,1', "is not CSV", "not CSV"),
    },
    "jsonl": {
        "an empty line": (b"", "is empty", "empty row"),
        "half a line": (b'{"text": "a", "val', "is no valid JSON", "not JSON"),
        "an array": (b'["a", 1, 1]', "holds an array, not an object", "no JSON object"),
        "deep brackets": (b"[" * 100_000, "is no valid JSON", "not JSON"),
        "Latin-1": (b'{"text": "' + SURROGATE + b'", "valence": 1, "arousal": 1}', "is not UTF-8", "not UTF-8"),
        "half a character": (rb'{"text": "\ud83d", "valence": 1, "arousal": 1}', "is not UTF-8", "not UTF-8"),
        "missing cells": (b'{"text": "a"}', "has neither valence nor arousal", "no valence or arousal"),
    },
}


def line_of(kind, row):
    if kind in ("json", "jsonl"):
        return json.dumps(row).encode()
    return (b"," if kind == "csv" else b"\t").join(str(cell).encode() for cell in row.values())


def write(path, lines):
    """A file of three good rows, and the given lines behind the first."""
    kind = path.suffix[1:]
    good = line_of(kind, GOOD)
    if kind == "json":
        path.write_bytes(b"[" + b",\n".join([good, *lines, good, good]) + b"]")
    else:
        header = [] if kind == "jsonl" else [line_of(kind, {name: name for name in GOOD})]
        path.write_bytes(b"\n".join([*header, good, *lines, good, good]) + b"\n\n")  # blank lines at the end are none
    return path


def faults_of(kind):
    cells = CELLS | (TYPED if kind in ("json", "jsonl") else {})
    found = {name: (line_of(kind, GOOD | change), *rest) for name, (change, *rest) in cells.items()}
    for name, (line, *rest) in LINES["csv" if kind in ("csv", "tsv") else "jsonl"].items():
        if kind == "tsv" and name == "a stray quotation mark":
            continue  # part of the text
        if kind != "json" or name in ("an array", "half a character", "Latin-1", "missing cells"):
            found[name] = (line.replace(b",", b"\t") if kind == "tsv" else line, *rest)
    return found


def load(path, **settings):
    return load_va_dataset(path, **{"scale": (1, 5), **settings})


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "json", "jsonl", "array.json"])
def test_files_with_a_stated_scale(suffix, tmp_path):
    rows = [{"words": "null", "V": 1, "A": 9, "label": "joy"},
            {"words": "naïve 😀 שלום", "V": 5, "A": 3, "label": None}]  # fmt: skip
    path = write_table(tmp_path / f"own.{suffix}", rows, **({"indent": 1} if suffix == "array.json" else {}))
    if suffix == "json":  # by this name, too, with a row a line
        shutil.move(write_table(tmp_path / "own.jsonl", rows), path)
    form = {"scale": (1, 9), "columns": {"text": "words", "valence": "V", "arousal": "A"}}
    own = load(path, **form)
    assert own["text"] == ["null", "naïve 😀 שלום"] and own["valence"] == [-1.0, 0.0] and own["arousal"] == [1.0, -0.5]
    assert own["label"] == ["joy", None]
    observed = load(path, normalization="observed", **form)
    assert observed["valence"] == [-1.0, 1.0] and observed["arousal"] == [1.0, -1.0]


def test_standardized_labels_have_the_mean_and_deviation_of_the_training_rows(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,split,valence,arousal\na,train,1,2\nb,train,3,2\nc,train,5,8\nd,test,9,9\n")
    train, test = (load(path, scale=(1, 9), split=s, normalization="standardized") for s in ("train", "test"))
    for name in ("valence", "arousal"):
        assert (np.mean(train[name]), np.std(train[name])) == (pytest.approx(0, abs=1e-12), pytest.approx(1 / 3))
    assert test["valence"] == [1.0]  # (9 - 3) / (3 * 1.633) = 1.22, cut
    assert test["arousal"] == pytest.approx([(9 - 4) / (3 * 8**0.5)])
    path.write_text("text,split,valence,arousal\na,test,1,1\nb,test,2,2\n")
    with pytest.raises(NoSplitError, match="no training rows.*--normalization scale"):
        load(path, split="test", normalization="standardized")


def test_a_named_column_wins_over_one_that_has_its_name_already(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,text_en,valence,v2,arousal\nuno,one,1,5,3\n")
    own = load(path, columns={"text": "text_en", "valence": "v2"})
    assert own["text"] == ["one"] and own["valence"] == [1.0]


def test_what_is_wrong_with_more_than_single_rows_is_always_refused(tmp_path):
    path, header = tmp_path / "own.csv", "text,valence,arousal\n"
    for content, message in {
        header + 'a,1,1\n"b,1,1\nc,1,1\n': r"row 2 \(line 3\): a quoted cell goes over several lines",
        header + '"b,1,1\nc,"d",1\n': r"row 1 \(line 2\).*close its quotation mark",
        header + ",1,1\nb,1\n": "row 1: .*no row is good|row 1: column 'text' is empty",
        header + "b,1\n": "row 1: has 2 cells", header: "has no rows", "": "is empty or cannot be read",
        "text,text,valence,arousal\na,a,1,1\n": "has two columns 'text'", "\n\n": "its first line names no column",
        "te\udce9xt,valence,arousal\n": "header is not UTF-8 text; save the file as UTF-8",
        "text,V\na,1\n": "no column 'valence' or 'arousal'; it has text, V.*--valence_column",
        "txt,valence,arousal\na,1,1\n": "no column 'text'; it has txt, valence, arousal",
        "txt,V,A\na,1,1\n": "no column 'text', and none of 'valence' or 'arousal'; it has txt, V, A. Name yours",
    }.items():  # fmt: skip
        path.write_text(content, encoding="utf-8", errors="surrogateescape")
        for skip in (False, True):
            with pytest.raises(ValueError, match=message):
                load(path, skip_bad_rows=skip)
    path = tmp_path / "own.json"
    path.write_text('[{"text": "a", "valence": 1, "arousal": 1},\n {"text" "b"}]')
    with pytest.raises(ValueError, match="no valid JSON .*line 2"):
        load(path, skip_bad_rows=True)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"scale": None}, "state the scale"), ({"scale": (5, 1)}, "scale must be"),
        ({"columns": {"valence": "arousal", "arousal": "arousal"}}, "'arousal' cannot be both valence and arousal"),
        ({"scale": (5, 9), "skip_bad_rows": True}, r"no row is good, .*: state the scale of its labels \(--scale\)\."),
        ({"columns": {"text": "words"}}, "no column 'words'; it has text, valence, arousal"),
        ({"normalization": "observed"}, "observed range is empty"),
        ({"normalization": "standardized"}, "valence does not vary"),
        ({"normalization": "other"}, "Unknown normalization 'other': choose"),
        ({"split": "dev"}, "Unknown split"), ({"split": "test"}, "no column 'split'"),
        ({"source": "none.csv"}, "no file"), ({"source": "/"}, "cannot read this kind of file"),
        ({"source": "emobnk"}, "Unknown corpus 'emobnk': choose one of demo, emobank"),
        ({"source": "someone/none"}, "Cannot load the Hub dataset"),
    ],
)  # fmt: skip
def test_other_bad_input_is_refused(settings, message, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,valence,arousal\na,1,1\nb,1,2\n")
    with pytest.raises(ValueError, match=message):
        load(**{"path": settings.pop("source", path), **settings})


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
def test_each_fault_alone_is_refused_with_its_row_and_all_are_skipped_and_counted(kind, tmp_path, caplog):
    faults = faults_of(kind)
    for name, (line, message, reason) in faults.items():
        path = write(tmp_path / f"one.{kind}", [line])
        remedy = "correct or remove the row, or leave bad rows out with --skip_bad_rows true"
        first = {"not UTF-8": "save the file as UTF-8 .* iconv .*, or "}
        first["valence is outside the scale"] = r"state the scale of its labels \(--scale\), or "
        remedy = f"; {first.get(reason, '')}{remedy}"
        with pytest.raises(ValueError, match=rf"one\.{kind}, row 2: .*{message}.*{remedy}"):
            load(path)
        assert [row.reason for row in find_bad_rows(path, scale=(1, 5))] == [reason], name
        assert load(path, skip_bad_rows=True)["text"] == [GOOD["text"]] * 3
    path = write(tmp_path / f"all.{kind}", [line for line, _, _ in faults.values()])
    with pytest.raises(ValueError, match=rf"row 2: .*\({len(faults) - 1} more bad rows follow\)"):
        load(path)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for split in ("train", "all"):
            own = load(path, skip_bad_rows=True, split=split)
    assert own["text"] == [GOOD["text"]] * 3 and own["valence"] == [0.5] * 3
    assert caplog.text.count(f"{path}: {len(faults)} bad rows left out") == 1  # said once
    assert "valence is no number: " in caplog.text
    record = Skipped.of(find_bad_rows(path, scale=(1, 5))).record()
    assert record["rows"] == sum(kind["rows"] for kind in record["reasons"].values()) == len(faults)
    assert min(kind["first"][0] for kind in record["reasons"].values()) == 2


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
@pytest.mark.parametrize("mark, encoding", [(codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")])
def test_utf_16_is_read_by_its_byte_order_mark(mark, encoding, kind, tmp_path):
    """As Excel's "Unicode text" and PowerShell write it."""
    row = {"text": "caf\u00e9 \u4f60\u597d \U0001f600", "valence": 2, "arousal": 1}
    lines = [line_of(kind, row)] * 2
    if kind in ("csv", "tsv"):
        lines.insert(0, line_of(kind, dict(zip(row, row, strict=True))))
    content = b"[" + b",".join(lines) + b"]" if kind == "json" else b"\r\n".join([*lines, b""])
    path = tmp_path / f"own.{kind}"
    path.write_bytes(mark + content.decode().encode(encoding))
    assert load(path)["text"] == [row["text"]] * 2 and load(path)["valence"] == [-0.5] * 2
    path.write_bytes(mark + content.decode().encode(encoding)[:-3])  # cut within a character
    with pytest.raises(ValueError, match=r"own\."):
        load(path)


def test_parquet(tmp_path):
    good = {"text": "calm", "valence": 4.0, "arousal": 2.0, "label": "joy"}
    rows = [good, {**good, "valence": math.nan, "arousal": None}, {**good, "text": None}, {**good, "label": " "},
            {**good, "text": "z" * (MAX_CHARACTERS + 1)}, {**good, "valence": 0.0}, good]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    texts = [SURROGATE if i == 6 else row["text"] and row["text"].encode() for i, row in enumerate(rows)]
    invalid = pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())
    path = tmp_path / "own.parquet"
    pyarrow.parquet.write_table(table.set_column(0, "text", invalid), path)
    assert [(row.number, row.reason) for row in find_bad_rows(path, scale=(1, 5))] == [
        (2, "no valence or arousal"), (3, "text is empty"), (5, "text is too long"),
        (6, "valence is outside the scale"), (7, "not UTF-8"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"own.parquet, row 2: has neither valence nor arousal"):
        load(path)
    assert load(path, skip_bad_rows=True)["label"] == ["joy", None]
    for column, values, message in (
        ("text", [1, 2], "column 'text' holds 1, not a text"),
        ("text", [["a"], ["b"]], "column 'text' holds"),
        ("valence", ["1", "high"], "row 2: column 'valence' holds 'high'"),
        ("valence", [True, False], "column 'valence' holds True"),
    ):
        pd.DataFrame({"text": ["a", "b"], "valence": [1, 2], "arousal": [1, 2], column: values}).to_parquet(path)
        with pytest.raises(ValueError, match=message):
            load(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="own.parquet is empty or cannot be read"):
        load(path, skip_bad_rows=True)


def test_cells_of_many_lines_and_characters_are_read(tmp_path):
    path = tmp_path / "own.csv"
    long = "b" * MAX_CHARACTERS
    limit = csv.field_size_limit()
    path.write_bytes(
        f'\ufefftext,valence,arousal,notes\r\n"one\r\ntwo, ""three""",1,1,\r\n{long},2,2,{"n" * 200_000}\r\n'.encode()
    )
    assert load(path)["text"] == ['one\r\ntwo, "three"', long]
    assert csv.field_size_limit() == limit


def test_an_empty_split_is_a_bad_row(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,valence,arousal,split\na,1,1,train\nb,1,1,\nc,1,1,test\n")
    with pytest.raises(ValueError, match="row 2: column 'split' is empty"):
        load(path)
    assert load(path, skip_bad_rows=True, split="train")["text"] == ["a"]


def test_usual_names_of_splits_are_understood_and_others_are_bad_rows(tmp_path, monkeypatch, caplog):
    splits = ["Training", "train", "dev1", "eval", "valid ", "TESTING", "test_2", "unsupervised", "validation_matched"]
    rows = [{"text": name, "valence": 1, "arousal": 1, "split": name} for name in splits]
    path = tmp_path / "own.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    with pytest.raises(ValueError, match="row 8: column 'split' holds 'unsupervised', which is none of train, val"):
        load(path)
    assert [row.reason for row in find_bad_rows(path, scale=(1, 5))] == ["split is unknown"] * 2
    loaded = {s: load(path, split=s, skip_bad_rows=True)["text"] for s in ("train", "validation", "test")}
    assert loaded == {"train": splits[:2], "validation": ["dev1", "eval", "valid "], "test": splits[5:7]}
    stream = stream_va_dataset([str(path)], scale=(1, 5), shuffle_buffer=1, skip_bad_rows=True)
    assert [row["text"] for row in stream] == splits[:2]
    parts = {name: Dataset.from_dict({"text": [name], "valence": [1.0], "arousal": [1.0]}) for name in splits[-3:]}
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(parts))
    assert load("someone/texts", split="test")["text"] == load("someone/texts")["text"] == ["test_2"]
    assert "of its splits, unsupervised, validation_matched are left out" in caplog.text


def test_the_only_split_of_a_hub_set_is_for_training(monkeypatch):
    parts = {name: Dataset.from_dict({"text": [name], "valence": [1.0], "arousal": [1.0]}) for name in ("full", "raw")}
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(parts))
    with pytest.raises(ValueError, match="someone/texts has the splits full, raw: none is called train"):
        load("someone/texts")
    del parts["raw"]
    assert load("someone/texts", split="train")["text"] == ["full"]
    parts["train"] = parts["full"].add_column("split", ["test"])
    assert load("someone/texts", split="train")["text"] == ["full"]  # one of two: its column does not count


def test_a_configuration_of_a_hub_set_is_named_behind_a_colon(monkeypatch):
    def loaded(name, config=None):
        if config is None:
            raise ValueError(
                "Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nAs in:"
            )
        return datasets.DatasetDict(train=Dataset.from_dict({"text": [config], "valence": [1.0], "arousal": [1.0]}))

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    message = r"available configs: \['a', 'b'\]\).*Name one of its configurations: someone/texts:CONFIGURATION"
    with pytest.raises(ValueError, match=message):
        load("someone/texts")
    assert load("someone/texts:b")["text"] == ["b"]


def test_validation_leaves_out_texts_that_stand_in_test(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,valence,arousal,split\na,1,1,train\nA ,1,1,dev\nb,1,1,dev\nB,1,1,test\nc,1,1,test\n")
    loaded = {s: load(path, split=s)["text"] for s in ("validation", "test")}
    assert loaded == {"validation": ["A "], "test": ["B", "c"]}
    with pytest.raises(NoSplitError, match="every text of split 'train' is in another split"):
        load(path, split="train")


def test_quotation_marks_of_tsv_join_no_cells_and_no_lines(tmp_path):
    path = tmp_path / "own.tsv"
    texts = ['"Wow', "b", '"Well', "d", '"Hello" he said', 'say "x"', '"']
    lines = [f"{text}\t3\t4" for text in texts] + ['"quoted ""x"""\t3\t4', '"""d"""\t"3"\t4']
    path.write_text("\n".join(["text\tvalence\tarousal", *lines]))
    assert load(path)["text"] == [*texts, 'quoted "x"', '"d"']
    path.write_text('text\tvalence\tarousal\n"two\nlines"\t3\t4\nb\t1\t1\n')
    with pytest.raises(ValueError, match=r"row 1: is not CSV \(a quotation mark that its line does not close"):
        load(path)
    path.write_text('text\nb\n"two\nlines"\n"c"\n"""d"""\n')
    frame, bad = read_rows(path)
    assert [row.number for row in bad] == [2] and frame["text"].tolist() == ["b", 'lines"', "c", '"d"']


@pytest.mark.parametrize(
    "first, mark", [("", ";"), ("sep=;\n", ";"), ("SEP=;\r\n", ";"), ("sep=|\n", "|"), ("", "\t")]
)
def test_other_separators_of_csv_are_read(first, mark, tmp_path):
    path = tmp_path / "own.csv"
    rows = [["text", "valence", "arousal"], ['"a, b"', "1", "5"], ["c", "5", "1"]]
    path.write_text(first + "\n".join(mark.join(row) for row in rows), encoding="utf-8-sig")
    assert load(path).to_list() == [{"text": "a, b", "valence": -1.0, "arousal": 1.0},
                                    {"text": "c", "valence": 1.0, "arousal": -1.0}]  # fmt: skip
    assert [row["text"] for row in stream_va_dataset([str(path)], scale=(1, 5), shuffle_buffer=1)] == ["a, b", "c"]


def test_hundreds_of_thousands_of_columns_are_read_in_seconds(tmp_path):
    path = tmp_path / "own.csv"
    names = ["text", "valence", "arousal", *map(str, range(200_000))]
    path.write_text(",".join(names) + "\n" + ",".join("3" for _ in names) + "\n")
    before = time.process_time()  # beside other work, too
    assert load(path)["text"] == ["3"]
    assert time.process_time() - before < 30
    path.write_text(",".join([*names, "text"]) + "\n")
    with pytest.raises(ValueError, match="has two columns 'text'"):
        load(path)


def test_class_labels_keep_their_names_in_parquet_and_lose_their_white_space(tmp_path):
    rows = {"text": list("abc"), "valence": [1.0] * 3, "arousal": [1.0] * 3, "label": [1, None, 0]}
    whole = Dataset.from_dict(rows).cast_column("label", datasets.ClassLabel(names=["sad ", "glad"]))
    whole.to_parquet(tmp_path / "own.parquet")
    assert load(tmp_path / "own.parquet")["label"] == ["glad", None, "sad"]
    (tmp_path / "own.csv").write_text(
        "text,valence,arousal,label\na,1,1, joy\nb,1,1,joy\nc,1,1,['joy']\nd,1,1,[1 2]\n"
    )
    with pytest.raises(ValueError, match=r"row 4: column 'label' holds '\[1 2\]', and a text has one label here"):
        load(tmp_path / "own.csv")
    assert load(tmp_path / "own.csv", skip_bad_rows=True)["label"] == ["joy"] * 3


def test_texts_with_class_labels(tmp_path, caplog):
    path = tmp_path / "own.jsonl"
    rows = [{"text": letter, "label": "xy"[i % 2]} for i, letter in enumerate("abcdef")]
    bad = [{"text": "g"}, {"text": 7, "label": "x"}, {"text": "h", "label": {"x": 1}}, 5, {"text": "", "label": "x"}]
    path.write_text("\n".join(map(json.dumps, rows[:3] + bad + rows[3:])))
    with pytest.raises(ValueError, match="row 4: column 'label' is empty.*4 more.*--skip_bad_rows true"):
        read_emotion(str(path), None)
    corpus = read_emotion(str(path), None, skip_bad_rows=True)
    assert corpus.texts == list("abcdef") and [row.number for row in corpus.skipped] == [4, 5, 6, 7, 8]
    assert "5 bad rows left out. label is empty: 1 (row 4)" in caplog.text
    with pytest.raises(ValueError, match="row 2: has 2 cells, the header 3; correct or remove the row"):
        read_table(write(tmp_path / "own.csv", [b"a,1"]))
