"""examples/score.py: answers, dialects, kinds of tables, kills, refusals."""

import codecs
import csv
import io
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, run_script
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from filelock import FileLock

from carl_hf import AffectPipeline
from carl_hf.commands.outputs import LOCK
from carl_hf.commands.sharded import ShardJob, write_shards
from carl_hf.commands.shards import Shards

SCRIPT = "examples/score.py"
NEW = ["valence", "arousal", "emotion", "emotion_probability", "tokens_cut", "tokens_unknown"]
ROWS = 150


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(["joy", "woe", "calm", "storm"], k=1 + i % 9)) for i in range(ROWS)]
    return pd.DataFrame({"id": np.arange(ROWS) * 3, "text": texts, "price": np.arange(ROWS) / 7})


@pytest.fixture(scope="module")
def expected(frame, exports) -> pd.DataFrame:
    return AffectPipeline.from_pretrained(exports[0])(frame["text"])


@pytest.fixture
def score(exports, tmp_path, caplog):
    """The script's main in this process: what it logs, or the error that it ends with."""
    caplog.set_level(logging.INFO)

    def run(texts, output, *more) -> str:
        caplog.clear()
        words = [texts, "--model", exports[0], "--output", tmp_path / output, "--shard_rows", 40, "--num_threads", 1]
        return run_script(SCRIPT, *words, *more) or caplog.text

    return run


def check_answers(table, expected):
    for name in NEW:
        if name == "emotion":
            assert table[name].tolist() == expected[name].tolist()
        else:
            np.testing.assert_allclose(table[name].astype(float), expected[name], atol=3e-4)


DIALECTS = {
    "plain": {"sep": ",", "lineterminator": "\n"},
    "german excel": {"sep": ";", "lineterminator": "\r\n", "encoding": "utf-8-sig", "decimal": ","},
    "all quoted": {"sep": ",", "quoting": csv.QUOTE_ALL, "lineterminator": "\n"},
    "texts quoted": {"sep": ";", "quoting": csv.QUOTE_NONNUMERIC, "lineterminator": "\r\n"},
    "tabs": {"sep": "\t", "quoting": csv.QUOTE_NONE, "escapechar": "\\", "lineterminator": "\n"},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_csv_file_goes_out_in_its_dialect(dialect, score, frame, expected, tmp_path):
    how = DIALECTS[dialect]
    suffix = ".tsv" if dialect == "tabs" else ".csv"
    note = "caf\u00e9" if dialect == "tabs" else 'caf\u00e9; "so, so"'
    table = frame.assign(note=note)
    table.to_csv(tmp_path / f"in{suffix}", index=False, **how)
    log = score(tmp_path / f"in{suffix}", f"out{suffix}")
    assert "written: 150/150 rows, " in log and "150 rows, 0 of them without a text" in log
    before, after = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("in", "out"))
    end = how["lineterminator"].encode()
    for old, new in zip(before.split(end), after.split(end), strict=True):
        assert new.startswith(old) and (new.count(b'"') - old.count(b'"')) in {
            "all quoted": (0, 12), "texts quoted": (0, 2, 12),
        }.get(dialect, (0,)), (old, new)  # fmt: skip
    reading = {**how, "encoding": "utf-8", "escapechar": None}
    found = pd.read_csv(io.BytesIO(after.removeprefix(b"\xef\xbb\xbf")), **{**reading, "lineterminator": None})
    assert list(found) == [*table, *NEW] and found["note"].eq(note).all()
    np.testing.assert_allclose(found["price"], frame["price"])
    check_answers(found, expected)
    assert list(tmp_path.glob("*.parts")) == []


@pytest.mark.parametrize("name, content, comma", [
    ("in.csv", "text;views\njoy;1,234\nwoe;12,001\n", False), ("in.csv", "text;at;n\njoy;10.30;1,5\nwoe;;\n", True),
    ("in.csv", "text;classes\njoy;1,2,3\nwoe;1,25\n", False), ("in.tsv", "text\tn\njoy\t1,5\n", True),
    ("in.csv", "text;n\njoy;3,5\nwoe;NA\n", True), ("in.tsv", "text\tn\njoy\t1,234\n", False),
    ("in.csv", 'text,tags\njoy,"3,12"\nwoe,"1,5"\n', False), ("in.csv", "text;n\njoy;0,125\nwoe;-0,250\n", True),
])  # fmt: skip
def test_decimal_commas_are_those_of_a_column_of_numbers(name, content, comma, score, tmp_path):
    (tmp_path / name).write_text(content)
    score(tmp_path / name, "out" + name[2:])
    separator = next(sign for sign in "\t;," if sign in content.splitlines()[0])
    with (tmp_path / ("out" + name[2:])).open(newline="") as file:
        valence = [*csv.DictReader(file, delimiter=separator)][0]["valence"]
    assert ("," in valence) is comma and 0 <= float(valence.replace(",", ".")) <= 1


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_in_utf_16_goes_out_in_utf_16(kind, score, tmp_path):
    content = "text\r\ncaf\u00e9 \U0001f600\r\n" if kind == "csv" else '{"text": "caf\u00e9 \U0001f600"}\n'
    (tmp_path / f"8.{kind}").write_bytes(content.encode())
    (tmp_path / f"16.{kind}").write_bytes(codecs.BOM_UTF16_BE + content.encode("utf-16-be"))
    for name in ("8", "16"):
        score(tmp_path / f"{name}.{kind}", f"out{name}.{kind}")
    written = (tmp_path / f"out16.{kind}").read_bytes()
    assert written.startswith(codecs.BOM_UTF16_BE)
    assert written.decode("utf-16") == (tmp_path / f"out8.{kind}").read_bytes().decode()


def test_odd_rows_of_a_csv_file_stay_as_they_are(score, exports, tmp_path):
    rows = [
        b"sep=;",
        b'id;text;"a ""name"""',
        b'1;"two',
        b'lines; one cell";',
        b"2;;x",
        b"",
        b";;",
        b"3;joy;x",
        b"",
        b"",
    ]
    (tmp_path / "in.csv").write_bytes(b"\r\n".join(rows))
    assert "5 rows, 3 of them without a text" in score(tmp_path / "in.csv", "out.csv", "--prefix", "p;")
    written = (tmp_path / "out.csv").read_bytes().split(b"\r\n")
    assert written[1] == rows[1] + b";" + b";".join(b'"p;%s"' % name.encode() for name in NEW)
    assert all(new.startswith(old) for old, new in zip(rows, written, strict=True))
    assert (
        written[4] == b"2;;x;;;;;0;0" and written[5] == written[8] == written[9] == b"" and written[6] == b";;;;;;;0;0"
    )
    expected = AffectPipeline.from_pretrained(exports[0])(["two\r\nlines; one cell", "joy"])
    for line, row in zip((written[3], written[7]), expected.itertuples(), strict=True):
        cells = line.decode().split(";")[-6:]
        assert cells[2] == row.emotion and float(cells[0]) == pytest.approx(row.valence, abs=3e-4)


def test_json_lines_keep_every_value_as_it_was_written(score, tmp_path, exports):
    lines = [
        '{"text": "joy", "n": 1.50, "deep": {"a": [1, {}]}}',
        "",
        '{"n":1e400,"text":"woe \\u00e9"}',
        '{"n": "x"}',
        "{}",
    ]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    score(tmp_path / "in.jsonl", "out.jsonl")
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")
    assert written[1] == written[5] == "" and len(written) == 6
    assert all(new.startswith(old[:-1]) for old, new in zip(lines, written, strict=False))
    found, texts = [json.loads(line) for line in written if line], ["joy", "woe \u00e9"]
    expected = AffectPipeline.from_pretrained(exports[0])(texts)
    assert [row["emotion"] for row in found] == [*expected["emotion"], None, None]
    np.testing.assert_allclose([row["valence"] for row in found[:2]], expected["valence"], atol=3e-4)


def test_parquet_keeps_types_and_features(score, frame, expected, tmp_path):
    labels = ["calm", "loud"]
    features = Features(id=Value("int16"), text=Value("string"), price=Value("float32"), kind=ClassLabel(names=labels))
    data = Dataset.from_pandas(frame.assign(kind=frame["id"] % 2), features=features, preserve_index=False)
    data.to_parquet(tmp_path / "in.parquet", batch_size=33)
    score(tmp_path / "in.parquet", "out.parquet", "--probabilities", "true")
    before, after = pq.read_table(tmp_path / "in.parquet"), pq.read_table(tmp_path / "out.parquet")
    assert after.select(before.column_names).cast(before.schema).equals(before)
    assert after.schema.field("valence").type == pa.float32() and after.schema.field("tokens_cut").type == pa.int32()
    loaded = Dataset.from_parquet(str(tmp_path / "out.parquet"))
    assert loaded.features["kind"].names == labels
    table = after.to_pandas()
    check_answers(table, expected)
    shares = table[[name for name in table if name.startswith("emotion_") and name != "emotion_probability"]]
    assert shares.shape[1] == 6 and np.allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(shares.max(axis=1), table["emotion_probability"])


@pytest.mark.parametrize("output", ["out.parquet", "out.csv", "out.tsv", "out.jsonl"])
def test_tables_of_every_kind_in_one(output, score, frame, expected, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    frame[:60].to_csv(folder / "a.csv", index=False)
    frame[60:100].astype(str).to_json(folder / "b.jsonl", orient="records", lines=True)
    frame[100:].astype(str).to_parquet(folder / "c.parquet")
    score(folder, output)
    read = {"out.parquet": pd.read_parquet, "out.csv": pd.read_csv, "out.tsv": partial(pd.read_csv, sep="\t"),
            "out.jsonl": partial(pd.read_json, lines=True)}[output]  # fmt: skip
    table = read(tmp_path / output)
    assert table["text"].tolist() == frame["text"].tolist() and table["id"].astype(int).equals(frame["id"])
    check_answers(table, expected)


def test_json_lines_may_have_a_piece_of_blank_lines(score, tmp_path):
    (tmp_path / "in.jsonl").write_text("\n" * 8_192 * 2 + '{"text": "joy"}\n')
    score(tmp_path / "in.jsonl", "out.csv")
    found = pd.read_csv(tmp_path / "out.csv", skip_blank_lines=False)
    assert found["text"].iloc[-1] == "joy" and found["valence"].iloc[-1] >= 0 and found["valence"].notna().sum() == 1
    assert not list(tmp_path.glob("*.partial"))


def test_json_lines_have_null_for_a_number_that_is_nan(score, tmp_path):
    nan, infinite = float("nan"), float("inf")
    table = pa.table({"text": ["joy", None], "n": [nan, 1.5], "all": [[1.0, nan], [infinite]], "x": [{"y": nan}] * 2})
    pq.write_table(table, tmp_path / "in.parquet")
    score(tmp_path / "in.parquet", "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [row["all"] for row in rows] == [[1.0, None], [None]] and rows[0]["x"] == {"y": None}
    assert [row["n"] for row in rows] == [None, 1.5] and [row["valence"] is None for row in rows] == [False, True]


def test_numbers_of_two_tables_that_no_type_holds_are_named(score, tmp_path):
    for name, number in (("a", 2**53 + 1), ("b", 0.5)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": "joy", "k": number}))
    error = score(tmp_path, "out/out.csv")
    assert re.search(r"a.jsonl: column 'k' cannot be written beside that of the other tables, as double", error)
    assert not (tmp_path / "out").exists()  # nothing was scored before


def test_line_breaks_of_json_lines_stay_in_their_cells(score, tmp_path):
    texts = ["one\rtwo", "three\nfour", "plain"]
    rows = [json.dumps({"text": text, "n": i}) for i, text in enumerate(texts)]
    (tmp_path / "in.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert "error" not in score(tmp_path / "in.jsonl", "out.csv")
    written = (tmp_path / "out.csv").read_bytes()
    assert b"\r\n" not in written and pd.read_csv(tmp_path / "out.csv")["text"].tolist() == texts
    assert "A .tsv file cannot hold 'one\\rtwo', with a tab or a line break" in score(tmp_path / "in.jsonl", "out.tsv")
    assert not (tmp_path / "out.tsv.parts").exists()  # nothing was scored before


def test_what_somebody_left_in_the_folder_of_the_answers_stays(score, frame, tmp_path):
    frame.to_parquet(tmp_path / "in.parquet")
    notes = tmp_path / "out.csv.parts" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine", encoding="utf-8")
    assert "error" not in score(tmp_path / "in.parquet", "out.csv") and (tmp_path / "out.csv").is_file()
    assert [*notes.parent.iterdir()] == [notes]


def test_a_pattern_that_covers_the_folder_of_the_answers_is_refused(score, frame, tmp_path):
    (tmp_path / "out.parquet.parts").mkdir()
    for name in ("in.parquet", "out.parquet.parts/part-00000.parquet"):
        frame.to_parquet(tmp_path / name)
    assert "out.parquet.parts holds texts that are read: name another" in score(
        f"{tmp_path}/**/*.parquet", "out.parquet"
    )


def test_a_hub_data_set(score, frame, expected, tmp_path, monkeypatch):
    parts = {"train": frame[:100], "test": frame[100:]}
    data = DatasetDict({name: Dataset.from_pandas(part, preserve_index=False) for name, part in parts.items()})
    monkeypatch.setattr("carl_hf.data.streaming.datasets.load_dataset", {"owner/name": data}.__getitem__)
    score("owner/name", "out.csv")
    table = pd.read_csv(tmp_path / "out.csv", converters={"price": float})  # exactly, in every version of pandas
    assert table["split"].tolist() == ["train"] * 100 + ["test"] * 50
    assert np.array_equal(table["price"], frame["price"])  # not rounded: only answers are
    check_answers(table, expected)


def end_after_a_shard(command, parts, number) -> str:
    """Starts the command and ends it by a signal, which its processes get too unless it is a kill, when it has
    finished one more shard, in the middle of what follows. Returns what it said."""
    finished = len(list(parts.glob("part-*")))
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    while job.poll() is None and len(list(parts.glob("part-*"))) == finished:
        time.sleep(0.001)
    time.sleep(random.random() * 0.02)
    (os.kill if number == signal.SIGKILL else os.killpg)(job.pid, number)
    said = job.communicate()[1]
    assert job.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130), said
    time.sleep(1)  # workers end with their parent
    count = len(list(parts.glob("part-*")))
    time.sleep(0.3)
    assert len(list(parts.glob("part-*"))) == count > finished
    return said


def test_killed_and_stopped_the_table_is_that_of_a_run_that_was_not(score, frame, exports, tmp_path):
    """Nor does the number of processes matter."""
    pd.concat([frame] * 10).to_csv(tmp_path / "in.csv", index=False, sep=";")
    more = ["--batch_size", "1", "--shard_rows", "100"]
    score(tmp_path / "in.csv", "whole.csv", *more)
    command = [
        sys.executable, SCRIPT, str(tmp_path / "in.csv"), "--model", str(exports[0]), "--num_threads", "1", *more,
        "--output", str(tmp_path / "out.csv"), "--processes", "2",
    ]  # fmt: skip
    end_after_a_shard(command, tmp_path / "out.csv.parts", signal.SIGKILL)
    said = end_after_a_shard(command, tmp_path / "out.csv.parts", signal.SIGINT)  # as a terminal sends Ctrl-C
    assert said.endswith("\nStopped. What is finished is kept; the same command goes on.\n") and "Trace" not in said
    assert not (tmp_path / "out.csv").exists()
    assert " of 15 shards are finished" in score(tmp_path / "in.csv", "out.csv", *more)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv", "whole.csv"]


def test_two_runs_do_not_write_one_table(score, frame, tmp_path, monkeypatch):
    frame.to_csv(tmp_path / "in.csv", index=False)
    (tmp_path / "out.csv.parts").mkdir()
    with FileLock(tmp_path / "out.csv.parts" / LOCK):
        assert "another run is writing to it. Wait for its end" in score(tmp_path / "in.csv", "out.csv")
    assert not (tmp_path / "out.csv").exists()

    def slowly(*arguments, **settings):
        write_shards(*arguments, **settings)
        (tmp_path / "out.csv").write_text("of another run, which has ended meanwhile")

    with monkeypatch.context() as patch:
        patch.setattr("carl_hf.commands.sharded.write_shards", slowly)
        assert "out.csv exists: name another" in score(tmp_path / "in.csv", "out.csv")
    assert (tmp_path / "out.csv").read_text().startswith("of another run")
    (tmp_path / "out.csv").unlink()
    assert "150" in score(tmp_path / "in.csv", "out.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv", "out.csv"}


def test_what_goes_wrong_in_a_process_ends_the_others_and_is_said(tmp_path):
    (tmp_path / "in.csv").write_text("text\na\nb\nc\nd\n")
    shards = Shards(tmp_path / "parts", {}, total=4, shard_rows=1)
    shards.prepare({}, overwrite=False)
    job = ShardJob(shards, [str(tmp_path / "in.csv")], ["text"], answer_on=int, processes=2)  # a device is no number
    before = multiprocessing.active_children()
    with pytest.raises(ValueError, match="^TypeError: int"):
        write_shards(job)
    assert multiprocessing.active_children() == before and len(shards.missing()) == 4


def test_a_process_that_fails_as_it_is_looked_at_is_not_missed(tmp_path, monkeypatch):
    """Between the look at its exit code and the next, no process was left, and the job counted as done."""

    class Worker:
        pid, sentinel = None, 0
        exitcode = property(lambda self: next(self.codes))

        def __init__(self, *arguments, **named):
            self.codes, self.start = iter([None, None, 1, 1, 1]), lambda: None

    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(context, "Process", Worker, raising=False)
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: context)
    monkeypatch.setattr("carl_hf.commands.sharded.connection.wait", lambda *arguments, **named: None)
    shards = Shards(tmp_path, {}, total=2, shard_rows=1)
    with pytest.raises(ValueError, match="was ended from outside"):
        write_shards(ShardJob(shards, [], [], answer_on=int, processes=2))


@pytest.mark.parametrize("rows, message", [(["joy"], "rows were lost"), (["joy"] * 5, "has got rows")])
def test_a_table_that_changes_while_it_is_scored_is_refused(rows, message, score, tmp_path, monkeypatch):
    table = tmp_path / "in.csv"
    table.write_text("text\njoy\nwoe\njoy\n")
    write = write_shards

    def write_and_change(*arguments, **named):
        write(*arguments, **named)
        table.write_text("\n".join(["text", *rows, ""]))

    monkeypatch.setattr("carl_hf.commands.sharded.write_shards", write_and_change)
    assert message in score(table, "out.jsonl") and not (tmp_path / "out.jsonl").exists()


def test_what_an_unfinished_run_left_is_of_other_settings(score, frame, tmp_path, monkeypatch):
    frame.to_csv(tmp_path / "in.csv", index=False)

    def stop(*arguments):
        raise ValueError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("carl_hf.commands.score.append_cells", stop)
        assert "stopped" in score(tmp_path / "in.csv", "out.csv")
    error = score(tmp_path / "in.csv", "out.csv", "--windows", "false")
    assert "another checksum of the model and its settings" in error and "--overwrite true" in error
    with monkeypatch.context() as patch:
        patch.setattr("carl_hf.commands.score.append_cells", stop)
        score(tmp_path / "in.csv", "out.csv", "--windows", "false", "--overwrite", "true")
    log = score(tmp_path / "in.csv", "out.csv", "--windows", "false", "--overwrite", "true")
    assert "4 of 4 shards are finished" in log and (tmp_path / "out.csv").exists()
    assert "out.csv exists: name another, or replace it with --overwrite true" in score(tmp_path / "in.csv", "out.csv")


@pytest.mark.parametrize("content, output, more, message", [
    ("text\na\nb,c\n", "o.csv", [], "row 2: has 2 cells, the header 1"),
    ("text\na\n", "o.csv", ["--text_column", "review"], "has no column 'review'; it has text."),
    ("text,valence\na,1\n", "o.csv", [], "has a column 'valence' already: choose a --prefix"),
    ("text\n", "o.csv", [], "there are no rows"),
    ("text\na\n", "o.xlsx", [], "name a .csv, .tsv, .parquet, .jsonl file"),
    ("text\na\n", "in.csv", ["--overwrite", "true"], "is one of the tables to read"),
    ("text\na\n", "o.csv", ["--processes", "0"], "--processes must be positive, got 0"),
    ("text\na\n", "o.csv", ["--model", "nowhere"], "Cannot load the model 'nowhere'"),
])  # fmt: skip
def test_mistakes_are_named_before_anything_is_written(content, output, more, message, score, tmp_path):
    (tmp_path / "in.csv").write_text(content)
    assert message in score(tmp_path / "in.csv", output, *more)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"] and (tmp_path / "in.csv").read_text() == content
