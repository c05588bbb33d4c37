"""examples/embed.py as a user starts it: values, processes, kills, refusals."""

import errno
import importlib.util
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from transformers import AutoModel, AutoTokenizer

from carl_hf.encoders.embedding import embed_texts

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "examples" / "embed.py")
ROWS, SHARD_ROWS = 230, 20


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    words = ["joy", "woe", "calm", "storm", "NA", "12"]
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(ROWS)]
    return pd.DataFrame({"sentence": texts, "id": np.arange(ROWS) * 3, "source": "made, up"})


@pytest.fixture
def parquet(frame, tmp_path) -> Path:
    path = tmp_path / "texts.parquet"
    frame.to_parquet(path, row_group_size=70)
    return path


def flags(model, texts, out, *more):
    return [
        "--model", f"{model}@mean", "--texts", *map(str, texts), "--text_column", "sentence", "--output_dir", str(out),
        "--shard_rows", str(SHARD_ROWS), "--max_length", "32", "--num_threads", "1", *more,
    ]  # fmt: skip


def command(*arguments, processes=1):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *(launch if processes > 1 else []), SCRIPT, *flags(*arguments)]


def run(*arguments, **options) -> str:
    done = subprocess.run(command(*arguments, **options), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.fixture
def run_here(monkeypatch, caplog):
    """The script's main in this process: what it logs, or the error that it ends with."""
    spec = importlib.util.spec_from_file_location("embed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "embed", module)
    spec.loader.exec_module(module)
    caplog.set_level(logging.INFO)

    def start(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", [SCRIPT, *flags(*arguments)])
        caplog.clear()
        try:
            module.main()
        except SystemExit as stop:
            assert str(stop.code).startswith("error: "), stop.code
            return str(stop.code)
        return caplog.text

    return start


def embeddings_of(folder) -> pd.DataFrame:
    return pd.read_parquet(folder)  # the manifest does not disturb it


@pytest.fixture(scope="module")
def expected(frame, tiny) -> np.ndarray:
    encoder, tokenizer = AutoModel.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    return embed_texts(encoder, frame["sentence"].tolist(), tokenizer, pooling="mean", max_length=32).numpy()


def test_the_shards_hold_rows_texts_vectors_and_kept_columns(run_here, tiny, parquet, frame, expected, tmp_path):
    out = tmp_path / "out"
    shown = run_here(tiny, [parquet], out, "--keep_columns", "id", "source")
    names = sorted(path.name for path in out.glob("*"))
    assert names == ["_manifest.json", *(f"part-{shard:05d}.parquet" for shard in range(12))]
    table = embeddings_of(out)
    assert list(table) == ["row", "text", "embedding", "id", "source"]
    assert table["row"].tolist() == list(range(ROWS)) and table["text"].tolist() == frame["sentence"].tolist()
    assert table["id"].equals(frame["id"]) and table["source"].equals(frame["source"])
    np.testing.assert_allclose(np.stack(table["embedding"]), expected, atol=1e-6)
    schema = pq.read_schema(out / "part-00000.parquet")
    assert str(schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    assert [pq.read_metadata(path).num_rows for path in sorted(out.glob("part-*"))] == [20] * 11 + [10]
    manifest = json.loads((out / "_manifest.json").read_text())
    assert (manifest["rows"], manifest["shards"], manifest["settings"]["pooling"]) == (ROWS, 12, "mean")
    assert "part-00003.parquet: 80/230 rows, " in shown and " left" in shown


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "folder"])
def test_every_kind_of_source_gives_the_same(kind, run_here, tiny, frame, expected, tmp_path):
    path = tmp_path / f"texts.{kind}"
    if kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif kind == "folder":  # whose files follow each other in the order of their names
        path.mkdir()
        frame[:100].to_csv(path / "a.csv", index=False)
        frame[100:].to_parquet(path / "b.parquet")
        (path / "notes.txt").touch()
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    run_here(tiny, [path], tmp_path / "out", "--dtype", "float16", "--keep_columns", "source")
    table = embeddings_of(tmp_path / "out")
    assert table["text"].tolist() == frame["sentence"].tolist() and table["source"].equals(frame["source"])
    assert table["embedding"][0].dtype == np.float16
    np.testing.assert_allclose(np.stack(table["embedding"]), expected, atol=2e-3)


def test_two_processes_give_the_shards_of_one_and_continue_them(run_here, tiny, parquet, tmp_path):
    run_here(tiny, [parquet], tmp_path / "one")
    run(tiny, [parquet], tmp_path / "two", processes=2)
    for shard in range(12):
        one, two = (pq.read_table(tmp_path / n / f"part-{shard:05d}.parquet") for n in ("one", "two"))
        assert one.equals(two) and one.schema.equals(two.schema, check_metadata=True)
    for shard in (2, 3, 9):
        (tmp_path / "one" / f"part-{shard:05d}.parquet").unlink()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").glob("part-*")}
    assert "5 of this process's 6 shards are finished" in run(tiny, [parquet], tmp_path / "one", processes=2)
    assert embeddings_of(tmp_path / "one").equals(embeddings_of(tmp_path / "two"))
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_kills_leave_whole_shards_and_are_continued(run_here, tiny, parquet, tmp_path):
    run_here(tiny, [parquet], tmp_path / "whole", "--batch_size", "1")
    rng, out, killed = random.Random(1), tmp_path / "out", 0
    for _ in range(3):
        before = len(list(out.glob("part-*")))
        job = subprocess.Popen(command(tiny, [parquet], out, "--batch_size", "1"), stderr=subprocess.DEVNULL)
        while job.poll() is None and len(list(out.glob("part-*"))) == before:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)  # somewhere in what follows
        if job.poll() is None:
            os.kill(job.pid, signal.SIGKILL)
            killed += 1
        job.wait()
        for path in out.glob("part-*"):
            assert pq.read_table(path).equals(pq.read_table(tmp_path / "whole" / path.name))
    assert killed >= 2
    run_here(tiny, [parquet], out, "--batch_size", "1")
    assert embeddings_of(out).equals(embeddings_of(tmp_path / "whole"))
    assert not list(out.glob("*.partial"))


def test_half_written_and_foreign_files_are_not_taken_for_shards(run_here, tiny, parquet, tmp_path):
    run_here(tiny, [parquet], tmp_path / "out")
    whole = embeddings_of(tmp_path / "out")
    half = tmp_path / "out" / "part-00004.parquet"
    half.write_bytes(half.read_bytes()[:500])
    (tmp_path / "out" / "_part-00005.partial").write_bytes(b"half")
    (tmp_path / "out" / "part-00005.parquet").unlink()
    shown = run_here(tiny, [parquet], tmp_path / "out")
    assert "10 of this process's 12 shards are finished" in shown and embeddings_of(tmp_path / "out").equals(whole)
    (tmp_path / "out" / "_manifest.json").unlink()
    assert "holds Parquet files, but no _manifest.json" in run_here(tiny, [parquet], tmp_path / "out")


def test_other_arguments_are_refused_unless_they_replace(run_here, tiny, parquet, frame, tmp_path):
    out = tmp_path / "out"
    run_here(tiny, [parquet], out)
    other = tmp_path / "other.parquet"
    frame[:50].to_parquet(other)
    for texts, more, what in (
        (parquet, ["--shard_rows", "40"], "another shard rows (20, now 40)"),
        (parquet, ["--max_length", "16"], "another max length (32, now 16)"),
        (parquet, ["--keep_columns", "id"], "another keep columns"),
        (parquet, ["--model", f"{tiny}@cls"], "another pooling ('mean', now 'cls')"),
        (other, [], "another checksum of texts"),
    ):
        error = run_here(tiny, [texts], out, *more)
        assert what in error and "--overwrite_output_dir true" in error
    run_here(tiny, [other], out, "--overwrite_output_dir", "true")
    assert len(list(out.glob("part-*"))) == 3 and len(embeddings_of(out)) == 50


@pytest.mark.parametrize(
    "content, more, message",
    [
        ("sentence,id\na,1\n ,2\n", [], "row 2: column 'sentence' is empty; correct or remove the row"),
        ("sentence\na\n", ["--text_column", "text"], "has no column 'text'; it has sentence."),
        ("sentence\na\n", ["--keep_columns", "id"], "has no column 'id'"),
        ("sentence\n", [], "there are no rows"),
        ("sentence,row\na,1\n", ["--keep_columns", "row"], "the shards have such a column anyway"),
        ("", [], "is empty or cannot be read"),
        (b"sentence\n\xff\xfe\n", [], "is not UTF-8 text"),
        (b"sentence,id\na,1\nb, c,2\n", [], "row 2: has 3 cells, the header 2"),
        (b"sentence,id\na,1\n\nb,2\n", [], "row 2: is empty"),
        (b'sentence,id\n"a,1\nb,2\n', [], "row 1 (line 2): a quoted cell goes over several lines"),
        (b"sentence,sentence\na,b\n", [], "has two columns 'sentence'"),
    ],
)
def test_bad_tables_are_refused_with_their_row(content, more, message, run_here, tiny, tmp_path):
    path = tmp_path / "texts.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in run_here(tiny, [path], tmp_path / "out", *more) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "lines, message",
    [
        (['{"sentence": "a"}', '{"sentence": 3}'], "row 2: column 'sentence' holds 3, not a text"),
        (['{"sentence": "a"}', "a"], "row 2: is no valid JSON"),
        (['{"sentence": "a"}', "", '{"sentence": "a"}'], "row 2: is empty; correct or remove the row"),
        (['{"sentence": "a"}', "[]"], "row 2: holds an array, not an object"),
        (['{"sentence": 3}'], "row 1: column 'sentence' holds 3, not a text"),
        (['{"sentence": "a"}', "{}"], "row 2: column 'sentence' is empty"),
        (['{"sentence": "\\ud800"}'], "row 1: column 'sentence' is not UTF-8 text"),
    ],
)
def test_bad_json_lines_are_refused_with_their_line(lines, message, run_here, tiny, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(lines))
    assert message in run_here(tiny, [path], tmp_path / "out")


def test_other_sources_are_refused(run_here, tiny, tmp_path):
    (tmp_path / "texts.json").touch()
    assert "Write it as JSON lines" in run_here(tiny, [tmp_path / "texts.json"], tmp_path / "out")
    assert "there is no such file" in run_here(tiny, [tmp_path / "none.csv"], tmp_path / "out")
    assert "Cannot load the Hub dataset 'nobody/nothing'" in run_here(tiny, ["nobody/nothing"], tmp_path / "out")


def test_a_hub_data_set_is_read_part_by_part(run_here, tiny, frame, expected, tmp_path, monkeypatch):
    parts = {"train": frame[:150], "test": frame[150:]}
    loaded = DatasetDict({name: Dataset.from_pandas(part, preserve_index=False) for name, part in parts.items()})
    monkeypatch.setattr("carl_hf.data.table_pieces.datasets.load_dataset", {"owner/name": loaded}.__getitem__)
    run_here(tiny, ["owner/name"], tmp_path / "out", "--keep_columns", "split", "id")
    table = embeddings_of(tmp_path / "out")
    assert table["split"].tolist() == ["train"] * 150 + ["test"] * 80 and table["id"].equals(frame["id"])
    np.testing.assert_allclose(np.stack(table["embedding"]), expected, atol=1e-6)


def test_kept_columns_have_one_type_in_all_shards(run_here, tiny, tmp_path):
    rows = [{"sentence": "a", "x": None if i < 30 else i if i < 50 else i + 0.5} for i in range(70)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run_here(tiny, [tmp_path / "texts.jsonl"], tmp_path / "out", "--keep_columns", "x")
    types = {str(pq.read_schema(path).field("x").type) for path in (tmp_path / "out").glob("part-*")}
    assert types == {"double"} and embeddings_of(tmp_path / "out")["x"].isna().sum() == 30


@pytest.mark.parametrize("odd", [2**70, "x"])
def test_kept_columns_that_no_type_holds_are_refused(odd, run_here, tiny, tmp_path):
    rows = [{"sentence": "a", "x": 1}, {"sentence": "b", "x": odd}]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    error = run_here(tiny, [tmp_path / "texts.jsonl"], tmp_path / "out", "--keep_columns", "x")
    assert "texts.jsonl, rows 1 to 2: column 'x' of --keep_columns holds values of several types" in error


def test_a_full_disk_is_reported_and_continued(run_here, tiny, parquet, tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def fill_up(descriptor):
        calls.append(descriptor)
        if len(calls) == 5:  # the manifest, then three shards
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    error = run_here(tiny, [parquet], tmp_path / "out")
    assert "cannot be written (No space left on device)" in error and "make room" in error
    names = sorted(path.name for path in (tmp_path / "out").glob("*"))
    assert names == ["_manifest.json", *(f"part-{shard:05d}.parquet" for shard in range(3))]
    assert "3 of this process's 12 shards" in run_here(tiny, [parquet], tmp_path / "out")
    assert len(embeddings_of(tmp_path / "out")) == ROWS
