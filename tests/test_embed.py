"""examples/embed.py: values, processes, kills, refusals."""

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, load_script
from datasets import Dataset, DatasetDict
from transformers import AutoModel, AutoTokenizer

from carl_hf.encoders.embedding import embed_texts

SCRIPT = "examples/embed.py"
ROWS, SHARD_ROWS = 230, 20


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    words = ["joy", "woe", "calm", "storm", "NA", "12"]
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(ROWS)]
    return pd.DataFrame({"sentence": texts, "id": np.arange(ROWS) * 3, "source": "made, up"})


@pytest.fixture(scope="module")
def parquet(frame, tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.parquet"
    frame.to_parquet(path, row_group_size=70)
    return path


def flags(model, texts, out, *more):
    return [
        "--model", f"{model}@mean", "--texts", str(texts), "--text_column", "sentence", "--output_dir", str(out),
        "--shard_rows", str(SHARD_ROWS), "--max_length", "32", "--num_threads", "1", *more,
    ]  # fmt: skip


@pytest.fixture
def embed(caplog):
    """The script's main in this process: what it logs, or the error that it ends with."""
    caplog.set_level(logging.INFO)

    def run(*arguments) -> str:
        caplog.clear()
        try:
            load_script(SCRIPT).main(flags(*arguments))
        except SystemExit as stop:
            assert str(stop.code).startswith("error: "), stop.code
            return str(stop.code)
        return caplog.text

    return run


def embeddings_in(folder) -> pd.DataFrame:
    return pd.read_parquet(folder)  # which ignores the manifest


@pytest.fixture(scope="module")
def expected(frame, tiny) -> np.ndarray:
    encoder, tokenizer = AutoModel.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    return embed_texts(encoder, frame["sentence"].tolist(), tokenizer, pooling="mean", max_length=32).numpy()


def test_the_shards_hold_rows_texts_vectors_and_kept_columns(embed, tiny, parquet, frame, expected, tmp_path):
    shown = embed(tiny, parquet, tmp_path / "out", "--keep_columns", "id", "source")
    names = sorted(path.name for path in (tmp_path / "out").glob("*"))
    assert names == ["_manifest.json", *(f"part-{shard:05d}.parquet" for shard in range(12))]
    table = embeddings_in(tmp_path / "out")
    assert list(table) == ["row", "text", "embedding", "id", "source"]
    assert table["row"].tolist() == list(range(ROWS)) and table["text"].tolist() == frame["sentence"].tolist()
    assert table["id"].equals(frame["id"]) and table["source"].equals(frame["source"])
    np.testing.assert_allclose(np.stack(table["embedding"]), expected, atol=1e-6)
    shards = [pq.read_metadata(path) for path in sorted((tmp_path / "out").glob("part-*"))]
    types = shards[0].schema.to_arrow_schema()
    assert str(types.field("embedding").type) == "fixed_size_list<element: float>[16]"
    assert [shard.num_rows for shard in shards] == [20] * 11 + [10]
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert (manifest["rows"], manifest["shards"], manifest["settings"]["pooling"]) == (ROWS, 12, "mean")
    assert "part-00003.parquet: 80/230 rows, " in shown and " left" in shown


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "folder", "hub"])
def test_every_kind_of_source_gives_the_same(kind, embed, tiny, frame, expected, tmp_path, monkeypatch):
    path = tmp_path / f"texts.{kind}"
    if kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif kind == "folder":  # whose files follow each other in the order of their names
        path.mkdir()
        frame[:100].to_csv(path / "a.csv", index=False)
        frame[100:].to_parquet(path / "b.parquet")
        (path / "notes.txt").touch()
    elif kind == "hub":
        splits = {"train": frame[:150], "test": frame[150:]}
        loaded = DatasetDict({name: Dataset.from_pandas(part, preserve_index=False) for name, part in splits.items()})
        monkeypatch.setattr("carl_hf.data.table_pieces.datasets.load_dataset", {"owner/name": loaded}.__getitem__)
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    source, more = ("owner/name", ["split"]) if kind == "hub" else (path, [])
    embed(tiny, source, tmp_path / "out", "--dtype", "float16", "--keep_columns", "source", *more)
    table = embeddings_in(tmp_path / "out")
    assert table["text"].tolist() == frame["sentence"].tolist() and table["source"].equals(frame["source"])
    assert table["embedding"][0].dtype == np.float16
    np.testing.assert_allclose(np.stack(table["embedding"]), expected, atol=2e-3)
    assert kind != "hub" or table["split"].tolist() == ["train"] * 150 + ["test"] * 80


def test_two_processes_give_the_shards_of_one_and_continue_them(embed, tiny, parquet, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    embed(tiny, parquet, one)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(ROOT / SCRIPT), *flags(tiny, parquet, two)], capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and f"{two}: 230 rows in 12 shards." in done.stderr, done.stderr
    for path in one.glob("part-*"):
        ours, theirs = pq.read_table(path), pq.read_table(two / path.name)
        assert ours.equals(theirs) and ours.schema.equals(theirs.schema, check_metadata=True)
    for shard in (2, 3, 9):
        (one / f"part-{shard:05d}.parquet").unlink()
    times = {path: path.stat().st_mtime_ns for path in one.glob("part-*")}
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, finished in (("0", 5), ("1", 4)):
        monkeypatch.setenv("RANK", rank)
        assert f"{finished} of this process's 6 shards are finished" in embed(tiny, parquet, one)
    assert embeddings_in(one).equals(embeddings_in(two))
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_kills_leave_whole_shards_and_are_continued(embed, tiny, parquet, tmp_path):
    embed(tiny, parquet, tmp_path / "whole", "--batch_size", "1")
    rng, out, killed = random.Random(1), tmp_path / "out", 0
    command = [sys.executable, str(ROOT / SCRIPT), *flags(tiny, parquet, out, "--batch_size", "1")]
    for _ in range(2):
        before = len(list(out.glob("part-*")))
        job = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while job.poll() is None and len(list(out.glob("part-*"))) == before:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)  # somewhere in what follows
        if job.poll() is None:
            os.kill(job.pid, signal.SIGKILL)
            killed += 1
        job.wait()
        for path in out.glob("part-*"):
            assert pq.read_table(path).equals(pq.read_table(tmp_path / "whole" / path.name))
    assert killed
    embed(tiny, parquet, out, "--batch_size", "1")
    assert embeddings_in(out).equals(embeddings_in(tmp_path / "whole"))
    assert not list(out.glob("*.partial"))


def test_incomplete_and_foreign_files_are_not_taken_for_shards(embed, tiny, parquet, tmp_path):
    out = tmp_path / "out"
    embed(tiny, parquet, out)
    whole = embeddings_in(out)
    half = out / "part-00004.parquet"
    half.write_bytes(half.read_bytes()[:500])
    (out / "_part-00005.partial").write_bytes(b"half")
    (out / "part-00005.parquet").unlink()
    assert "10 of this process's 12 shards are finished" in embed(tiny, parquet, out)
    assert embeddings_in(out).equals(whole)
    (out / "_manifest.json").unlink()
    assert "holds Parquet files, but no _manifest.json" in embed(tiny, parquet, out)


def test_other_arguments_are_refused_unless_they_replace(embed, tiny, parquet, frame, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other.parquet"
    embed(tiny, parquet, out)
    frame[:50].to_parquet(other)
    for texts, more, what in (
        (parquet, ["--shard_rows", "40"], "another shard rows (20, now 40)"),
        (parquet, ["--max_length", "16"], "another max length (32, now 16)"),
        (parquet, ["--keep_columns", "id"], "another keep columns"),
        (parquet, ["--model", f"{tiny}@cls"], "another pooling ('mean', now 'cls')"),
        (other, [], "another checksum of texts"),
    ):
        error = embed(tiny, texts, out, *more)
        assert what in error and "--overwrite_output_dir true" in error
    embed(tiny, other, out, "--overwrite_output_dir", "true")
    assert len(list(out.glob("part-*"))) == 3 and len(embeddings_in(out)) == 50


@pytest.mark.parametrize(
    "name, content, more, message",
    [
        ("a.csv", b"sentence,id\na,1\n ,2\n", [], "row 2: column 'sentence' is empty; correct or remove the row"),
        ("a.csv", b"sentence\na\n", ["--text_column", "text"], "has no column 'text'; it has sentence."),
        ("a.csv", b"sentence\na\n", ["--keep_columns", "id"], "has no column 'id'"),
        ("a.csv", b"sentence\n", [], "there are no rows"),
        ("a.csv", b"sentence,row\na,1\n", ["--keep_columns", "row"], "the shards have such a column anyway"),
        ("a.csv", b"sentence,id\na,1\nb, c,2\n", [], "row 2: has 3 cells, the header 2"),
        ("a.csv", b"", [], "is empty or cannot be read"),
        ("a.jsonl", b'{"sentence": "a"}\n{"sentence": 3}', [], "row 2: column 'sentence' holds 3, not a text"),
        ("a.jsonl", b'{"sentence": "a"}\n{}', [], "row 2: column 'sentence' is empty"),
        ("a.jsonl", b'{"sentence": "a"}\n{"id": 1}\na', [], "row 3: is no valid JSON"),
        ("a.jsonl", b'{"sentence": "a", "x": 1}\n{"sentence": "b", "x": "y"}', ["--keep_columns", "x"],
         "a.jsonl, rows 1 to 2: column 'x' of --keep_columns holds values of several types"),
        ("a.jsonl", b'{"sentence": "a", "x": 1180591620717411303424}', ["--keep_columns", "x"],
         "rows 1 to 1: column 'x' of --keep_columns"),
        ("a.json", b"", [], "Write it as JSON lines"),
        ("nobody/nothing", None, [], "Cannot load the Hub dataset 'nobody/nothing'"),
        ("none.csv", None, [], "there is no such file"),
    ],
)  # fmt: skip
def test_bad_sources_are_refused_with_their_row(name, content, more, message, embed, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert message in embed(tiny, name, tmp_path / "out", *more) and not (tmp_path / "out").exists()


def test_kept_columns_have_one_type_in_all_shards(embed, tiny, tmp_path):
    rows = [{"sentence": "a", "x": None if i < 30 else i if i < 50 else i + 0.5} for i in range(70)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    embed(tiny, tmp_path / "texts.jsonl", tmp_path / "out", "--keep_columns", "x")
    types = {str(pq.read_schema(path).field("x").type) for path in (tmp_path / "out").glob("part-*")}
    assert types == {"double"} and embeddings_in(tmp_path / "out")["x"].isna().sum() == 30


def test_a_full_disk_is_reported_and_continued(embed, tiny, parquet, tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def fill_up(descriptor):
        calls.append(descriptor)
        if len(calls) == 5:  # the manifest, then three shards
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    error = embed(tiny, parquet, tmp_path / "out")
    assert "cannot be written (No space left on device)" in error and "make room" in error
    names = sorted(path.name for path in (tmp_path / "out").glob("*"))
    assert names == ["_manifest.json", *(f"part-{shard:05d}.parquet" for shard in range(3))]
    assert "3 of this process's 12 shards" in embed(tiny, parquet, tmp_path / "out")
    assert len(embeddings_in(tmp_path / "out")) == ROWS
