"""examples/embed.py: values, processes, refusals."""

import errno
import itertools
import json
import logging
import os
import random

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import run_script
from transformers import AutoModel, AutoTokenizer

from carl_hf.encoders.embedding import embed_texts

ROWS, SHARD_ROWS = 230, 20


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(["joy", "woe", "calm", "storm", "NA", "12"], k=1 + i % 9)) for i in range(ROWS)]
    return pd.DataFrame({"sentence": texts, "id": np.arange(ROWS) * 3, "source": "made, up"})


@pytest.fixture(scope="module")
def parquet(frame, tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.parquet"
    frame.to_parquet(path, row_group_size=70)
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def embed(tiny, out, caplog):
    """The script's main in this process: what it logs, or the error that it ends with."""
    caplog.set_level(logging.INFO)

    def run(texts, *more) -> str:
        caplog.clear()
        words = ["--model", f"{tiny}@mean", "--texts", texts, "--text_column", "sentence", "--output_dir", out]
        words += ["--shard_rows", SHARD_ROWS, "--max_length", 32, "--num_threads", 1]
        return run_script("examples/embed.py", *words, *more) or caplog.text

    return run


@pytest.fixture(scope="module")
def expected(frame, tiny) -> np.ndarray:
    encoder, tokenizer = AutoModel.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    return embed_texts(encoder, frame["sentence"].tolist(), tokenizer, pooling="mean", max_length=32).numpy()


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def shard_names(count) -> list[str]:
    return [f"part-{shard:05d}.parquet" for shard in range(count)]


def test_the_shards_hold_rows_texts_vectors_and_kept_columns(embed, parquet, frame, expected, out):
    shown = embed(parquet, "--keep_columns", "id", "source")
    assert names_in(out) == ["_manifest.json", *shard_names(12)]
    table = pd.read_parquet(out)  # which ignores the manifest
    assert list(table) == ["row", "text", "embedding", "id", "source"] and table["row"].tolist() == list(range(ROWS))
    assert table["text"].tolist() == frame["sentence"].tolist()
    assert table["id"].equals(frame["id"]) and table["source"].equals(frame["source"])
    np.testing.assert_allclose(np.stack(table["embedding"]), expected, atol=1e-6)
    assert (
        str(pq.read_schema(out / shard_names(1)[0]).field("embedding").type) == "fixed_size_list<element: float>[16]"
    )
    assert [pq.read_metadata(out / name).num_rows for name in shard_names(12)] == [20] * 11 + [10]
    manifest = json.loads((out / "_manifest.json").read_text())
    assert (manifest["rows"], manifest["shards"], manifest["settings"]["pooling"]) == (ROWS, 12, "mean")
    assert "written: 80/230 rows, " in shown and " left" in shown


def test_bfloat16_is_computed_in_bfloat16(embed, parquet, expected, out):
    embed(parquet, "--bf16", "true", "--processes", 1)
    found = np.concatenate([np.stack(pd.read_parquet(path)["embedding"]) for path in sorted(out.glob("*.parquet"))])
    assert 2e-5 < np.abs(found - expected).max() < 0.01  # other batches in float32: 1e-6
    embed(parquet, "--bf16", "false", "--processes", 1, "--overwrite_output_dir", "true")
    again = np.concatenate([np.stack(pd.read_parquet(path)["embedding"]) for path in sorted(out.glob("*.parquet"))])
    np.testing.assert_allclose(again, expected, atol=2e-6)


def test_files_of_every_kind_in_the_order_of_their_names(embed, frame, expected, tmp_path, out):
    folder = tmp_path / "texts"
    folder.mkdir()
    frame[:70].to_csv(folder / "a.csv", index=False)
    frame[70:100].to_csv(folder / "b.tsv", index=False, sep="\t")
    frame[100:150].to_json(folder / "c.jsonl", orient="records", lines=True)
    frame[150:].to_parquet(folder / "d.parquet")
    (folder / "notes.txt").touch()
    embed(folder, "--dtype", "float16", "--keep_columns", "source", "--processes", "2")
    table = pd.read_parquet(out)
    assert table["text"].tolist() == frame["sentence"].tolist() and table["source"].equals(frame["source"])
    assert table["embedding"][0].dtype == np.float16
    np.testing.assert_allclose(np.stack(table["embedding"]), expected, atol=2e-3)


def test_a_launcher_of_several_processes_is_refused(embed, parquet, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "starts its processes itself: run it with python, and --processes N" in embed(parquet)


def test_incomplete_and_foreign_files_are_not_taken_for_shards(embed, parquet, out):
    embed(parquet)
    whole, half = pd.read_parquet(out), out / "part-00004.parquet"
    half.write_bytes(half.read_bytes()[:500])
    (out / "_part-00005.partial").write_bytes(b"half")
    (out / "part-00005.parquet").unlink()
    assert "10 of 12 shards are finished" in embed(parquet) and pd.read_parquet(out).equals(whole)
    (out / "_manifest.json").write_text("{")
    assert "_manifest.json is damaged: name another folder" in embed(parquet)
    (out / "_manifest.json").unlink()
    assert "holds Parquet files, but no _manifest.json" in embed(parquet)
    (out / "other.parquet").write_bytes(parquet.read_bytes())  # would be read with the shards
    for more in ((), ("--overwrite_output_dir", "true")):
        assert "holds other.parquet, which is no shard: name another folder" in embed(parquet, *more)
    (out / "other.parquet").unlink()
    (out / "part-00003.parquet").write_bytes(parquet.read_bytes())  # somebody's
    for more in ((), ("--overwrite_output_dir", "true")):
        assert "holds part-00003.parquet, which is no shard: name another folder" in embed(parquet, *more)
    assert len([*out.glob("part-*.parquet")]) == 12


def test_texts_in_the_folder_of_the_shards_are_refused(embed, parquet, out):
    out.mkdir()
    own = out / "own.parquet"
    own.write_bytes(parquet.read_bytes())
    for texts in (own, out):
        assert "holds texts that are read: name another" in embed(texts, "--overwrite_output_dir", "true")
    assert [*out.iterdir()] == [own]


def test_other_arguments_are_refused_unless_they_replace(embed, tiny, parquet, frame, tmp_path, out):
    embed(parquet)
    other = tmp_path / "other.parquet"
    frame[:50].to_parquet(other)
    for texts, more, what in (
        (parquet, ["--shard_rows", "40"], "another shard rows (20, now 40)"),
        (parquet, ["--max_length", "16"], "another max length (32, now 16)"),
        (parquet, ["--keep_columns", "id"], "another keep columns"),
        (parquet, ["--model", f"{tiny}@cls"], "another pooling ('mean', now 'cls')"),
        (other, [], "another checksum of texts"),
    ):
        error = embed(texts, *more)
        assert what in error and "--overwrite_output_dir true" in error
    embed(other, "--overwrite_output_dir", "true")
    assert names_in(out) == ["_manifest.json", *shard_names(3)] and len(pd.read_parquet(out)) == 50
    for path in out.glob("*.parquet"):  # a run that was refused before its first shard
        path.unlink()
    embed(parquet)
    assert len(pd.read_parquet(out)) == len(frame)


@pytest.mark.parametrize(
    "name, content, more, message",
    [
        ("a.csv", "sentence,id\na,1\n ,2\n", [], "row 2: column 'sentence' is empty; correct or remove the row"),
        ("a.csv", "sentence\na\n", ["--text_column", "text"], "has no column 'text'; it has sentence."),
        ("a.csv", "sentence\na\n", ["--keep_columns", "id"], "has no column 'id'"),
        ("a.csv", "sentence,row\na,1\n", ["--keep_columns", "row"], "the shards have such a column anyway"),
        ("a.csv", "sentence,id\na,1\nb, c,2\n", [], "row 2: has 3 cells, the header 2"),
        ("a.csv", "sentence\n", [], "there are no rows"),
        ("a.jsonl", '{"sentence": "a"}\n{"sentence": 3}', [], "row 2: column 'sentence' holds 3, not a text"),
        ("a.jsonl", '{"sentence": "a"}\n{"id": 1}\n', [], "row 2: column 'sentence' is empty"),
        ("a.jsonl", '{"sentence": "a", "x": 1}\n{"sentence": "b", "x": "y"}', ["--keep_columns", "x"],
         "a.jsonl, rows 1 to 2: column 'x' holds values of several types"),
        ("a.jsonl", f'{{"sentence": "a", "x": {2**70}}}', ["--keep_columns", "x"], "rows 1 to 1: column 'x' holds"),
        ("nobody/nothing", None, [], "Cannot load the Hub dataset 'nobody/nothing'"),
    ],
)  # fmt: skip
def test_bad_sources_are_refused_with_their_row(name, content, more, message, embed, tmp_path, out, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_text(content)
    assert message in embed(name, *more) and not out.exists()


def test_kept_columns_have_one_type_in_all_shards(embed, tmp_path, out):
    rows = [{"sentence": "a", "x": None if i < 30 else i if i < 50 else i + 0.5} for i in range(70)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    embed(tmp_path / "texts.jsonl", "--keep_columns", "x")
    assert {str(pq.read_schema(path).field("x").type) for path in out.glob("part-*")} == {"double"}
    assert pd.read_parquet(out)["x"].isna().sum() == 30


def test_a_full_disk_is_reported_and_continued(embed, parquet, out, monkeypatch):
    sync, calls = os.fsync, itertools.count(1)

    def fill_up(descriptor):
        if next(calls) == 5:  # after the manifest and three shards
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    error = embed(parquet)
    assert "cannot be written (No space left on device)" in error and "make room" in error
    assert names_in(out) == ["_manifest.json", *shard_names(3)]
    assert "3 of 12 shards are finished" in embed(parquet) and len(pd.read_parquet(out)) == ROWS
