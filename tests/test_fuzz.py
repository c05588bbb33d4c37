"""Every reader of files and settings on random and damaged input: a ValueError, or what it promises.

25 examples each, always the same; `pytest -m slow` takes 1,000 new ones.
"""

import io
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from safetensors.numpy import save_file

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carl_hf import CarlTrainingArguments, load_va_dataset
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.shards import Shards, survey
from carl_hf.data.bad_rows import MAX_CHARACTERS, Skipped, split_name
from carl_hf.data.files import SUFFIXES, Piece, column_names, read_pieces, read_rows, read_table
from carl_hf.data.label_spaces import read_label_space
from carl_hf.data.labelled import read_emotion, read_polarity, read_sts, read_va
from carl_hf.data.loading import find_bad_rows
from carl_hf.data.streaming import PIECEWISE, open_tables, stream_va_dataset
from carl_hf.encoders import Pooling
from carl_hf.evaluation.comparators import read_comparators
from carl_hf.evaluation.encoder import EmbeddingCache
from carl_hf.training.checkpoints import last_checkpoint

pytestmark = pytest.mark.parametrize("examples", [25, pytest.param(1000, marks=pytest.mark.slow)])


def fuzz(examples: int, check: Callable[..., None], *strategies: st.SearchStrategy, path: Path | None = None) -> None:
    """Calls `check` with what is drawn; with a `path`, the first is written there and left out."""

    def holds(drawn: tuple) -> None:
        if path is not None:
            path.write_bytes(drawn[0])
            drawn = drawn[1:]
        check(*drawn)

    chosen = settings(
        max_examples=examples, derandomize=examples == 25, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    chosen(given(st.tuples(*strategies))(holds))()


def outcome(read: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """What a reader gives, or None where it refuses as documented; any other exception is a bug, and so is a message
    as long as the file."""
    try:
        return read(*arguments, **settings)
    except ValueError as error:
        assert str(error) and len(str(error)) < 3000
        return None


# Files: random bytes, valid files with damage, and tables of cells of any kind

PLANTED = [
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe9", "é€😀".encode(), b"\xed\xa0\x80", "\u2028".encode(), b"\r\n",
    b"\r", b"\n", b"\n\n", b'"', b'""', b",", b",,,,", b"\t", b"#", b"[", b"]", b"{", b"}", b"[[[[[[", b"null",
    b"true", b"nan", b"inf", b"-inf", b"1e999", b"9" * 400, b"-1", b"0", b"1_0", b"\\ud800", b"text", b"label",
    b"split", b"&", b"*", b"!!int", b"z" * 150_000,
]  # fmt: skip
ENCODINGS = ("utf-8-sig", "utf-16", "utf-32", "latin-1", "cp500")


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """The file `valid` with up to four things done to it."""
    content = valid
    for _ in range(draw(st.integers(0, 4))):
        start, end = sorted(draw(st.integers(0, len(content))) for _ in range(2))
        match draw(st.sampled_from(["put", "put", "cut", "end", "twice", "mix", "encode", "crlf", "head", "flip"])):
            case "put":
                content = content[:start] + draw(st.sampled_from(PLANTED)) + content[start:]
            case "cut":
                content = content[:start] + content[end:]
            case "end":
                content = content[:start]
            case "twice":
                content = content[:end] + content[start:]
            case "mix":
                content = b"\n".join(draw(st.permutations(content.split(b"\n"))))
            case "encode":
                content = content.decode("utf-8", "replace").encode(draw(st.sampled_from(ENCODINGS)), "replace")
            case "crlf":
                content = content.replace(b"\n", b"\r\n")
            case "head":
                content = content.split(b"\n")[0] + b"\n"
            case "flip":
                flipped = bytes(byte ^ 1 << end % 8 for byte in content[start : start + 1])
                content = content[:start] + flipped + content[start + 1 :]
    return content


def cells(*usual: Any) -> st.SearchStrategy:
    """Mostly what belongs there, else anything that JSON can hold."""
    odd = st.one_of(
        st.text(max_size=8), st.floats(), st.integers(-(10**400), 10**400), st.none(), st.booleans(),
        st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
        st.sampled_from(["nan", "1e400", " ", "\ud800", "x" * (MAX_CHARACTERS + 1), "a\nb", 'say "x"']),
    )  # fmt: skip
    return st.one_of(*[st.sampled_from(usual)] * 6, odd)


def file_of(kind: str, frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    if kind == ".parquet":
        frame.to_parquet(buffer)
    elif kind in (".csv", ".tsv"):
        text = frame.to_csv(index=False, sep="," if kind == ".csv" else "\t")
        return text.encode("utf-8", "surrogatepass")
    else:
        rows = frame.to_dict("records")
        text = json.dumps(rows) if kind == ".json" else "\n".join(map(json.dumps, rows))
        return text.encode("utf-8", "surrogatepass")
    return buffer.getvalue()


@st.composite
def tables(draw: st.DrawFn, kind: str, columns: dict[str, tuple]) -> bytes:
    """A file with these columns, in any order, now and then without one, and any number of rows."""
    names = draw(st.permutations(list(columns)))
    if draw(st.integers(0, 9)) == 0:
        names = names[1:]
    height = draw(st.integers(0, 8))
    frame = pd.DataFrame({n: [draw(cells(*columns[n])) for _ in range(height)] for n in names}, dtype=object)
    try:
        return file_of(kind, frame)
    except (ValueError, TypeError, OverflowError, pa.ArrowException):  # what Parquet has no one type for
        return file_of(kind, frame.map(lambda cell: repr(cell)))


def files(kind: str, columns: dict[str, tuple], rows: int = 12) -> st.SearchStrategy[bytes]:
    whole = pd.DataFrame({name: [usual[i % len(usual)] for i in range(rows)] for name, usual in columns.items()})
    return st.one_of(st.binary(max_size=200), damaged(file_of(kind, whole)), tables(kind, columns))


VA = {"text": ("calm", "a wild night", "naïve 😀", "d, e"), "valence": (1, 2.5, 5), "arousal": (5, 1, 3.0),
      "split": ("train", "train", "dev", "test"), "label": ("joy", "fear")}  # fmt: skip
NAMES = {"text": tuple("abcdefghijkl"), "label": ("joy", "fear"), "split": ("train", "train", "test", "dev")}


def is_text(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip()) and len(text) <= MAX_CHARACTERS and bool(text.encode())


def in_pieces(path: Any) -> list[Piece]:
    column_names(path)
    return list(read_pieces(path, rows=3))


@pytest.mark.parametrize("kind", SUFFIXES)
def test_rows_of_a_file(kind, examples, tmp_path):
    path = tmp_path / f"own{kind}"

    def check() -> None:
        table, plain, pieces = outcome(read_rows, path), outcome(read_table, path), outcome(in_pieces, path)
        assert (plain is None) == (table is None or bool(table[1]))
        assert (pieces is None) == (table is None)
        if table is not None:
            frame, bad = table
            numbers = sorted([*frame.index, *(row.number for row in bad)])
            assert numbers == list(range(1, len(numbers) + 1))  # each row is one or the other
            assert [number for piece in pieces for number in piece.frame.index] == list(frame.index)
            assert [row for piece in pieces for row in piece.bad] == bad

    fuzz(examples, check, files(kind, VA), path=path)


FORMS = [kind for kind in SUFFIXES if kind != ".tsv"]  # whose rows are those of .csv


@pytest.mark.parametrize("kind", FORMS)
def test_texts_with_va_labels(kind, examples, tmp_path):
    path = tmp_path / f"own{kind}"

    def check(split: str, normalization: str, skip: bool) -> None:
        arguments = {"split": split, "normalization": normalization, "scale": (1, 5), "skip_bad_rows": skip}
        dataset = outcome(load_va_dataset, path, **arguments)
        if dataset is not None:
            assert len(dataset) and all(map(is_text, dataset["text"]))
            pairs = [(row.get("valence"), row.get("arousal")) for row in dataset]
            assert all(pair != (None, None) for pair in pairs)
            assert all(-1 <= x <= 1 for pair in pairs for x in pair if x is not None)
            bad = find_bad_rows(path, scale=(1, 5))
            assert skip or not bad
            assert split != "all" or len(dataset) + len(bad) == sum(map(len, read_rows(path)))

    parts = st.sampled_from(["train", "validation", "test", "all", "all"])
    ways = st.sampled_from(["scale", "scale", "observed", "standardized"])
    fuzz(examples, check, files(kind, VA), parts, ways, st.booleans(), path=path)


def streamed(path: Any, held_out: list[str], skip: bool) -> tuple[list[dict], dict[str, Any]] | None:
    skipped, settings = {}, {"scale": (1, 5), "shuffle_buffer": 1, "held_out": held_out, "skip_bad_rows": skip}
    return list(stream_va_dataset([str(path)], skipped=skipped, **settings)) or None, skipped


@pytest.mark.parametrize("kind", PIECEWISE)
def test_streamed_texts_are_those_of_the_loaded_file(kind, examples, tmp_path):
    path = tmp_path / f"own{kind}"

    def check(skip: bool) -> None:
        loaded = outcome(load_va_dataset, path, split="train", scale=(1, 5), skip_bad_rows=skip)
        bad = outcome(find_bad_rows, path, scale=(1, 5))
        held_out = []
        if loaded is not None:
            good = read_rows(path)[0].drop(index=[row.number for row in bad], errors="ignore")
            held_out = (
                good["text"][good["split"].map(lambda cell: split_name("split", cell)) != "train"]
                if "split" in good
                else []
            )
        found, skipped = outcome(streamed, path, held_out, skip) or (None, {})
        if kind == ".parquet" and not set(outcome(column_names, path) or []) <= set(VA):
            return  # a damaged name: a column that is loaded and not streamed
        assert (found is None) == (loaded is None or not len(loaded))
        if found is not None:
            rows = [[{name: row.get(name) for name in (*VA, "label")} for row in part] for part in (found, loaded)]
            assert rows[0] == rows[1]
            assert Skipped.of(bad).record() == skipped.get(str(path), Skipped()).record()

    fuzz(examples, check, files(kind, VA), st.booleans(), path=path)


@pytest.mark.parametrize("kind", PIECEWISE)
def test_texts_to_embed(kind, examples, tmp_path):
    path, names = tmp_path / f"own{kind}", ["text", "label", "valence"]

    def read() -> tuple[int, list[pa.Table]]:
        tables = open_tables([str(path)], names)
        found = survey(tables, "text", names[1:], lambda rows: None)
        shards = Shards(tmp_path, {}, found.rows, shard_rows=5)
        read = shards.read(tables, names, range(len(shards)), empty_texts=False)
        return found.rows, [rows.select(names[1:]).cast(found.schema) and rows for _, rows in read]

    def check() -> None:
        found = outcome(read)
        if found is not None:
            texts = [text for rows in found[1] for text in rows["text"].to_pylist()]
            assert len(texts) == found[0] and all(text.strip() for text in texts)
            if kind != ".parquet":  # of which other columns are not read
                assert texts == list(read_table(path)["text"])

    fuzz(examples, check, files(kind, VA), path=path)


def check_classes(corpus: Any) -> None:
    if corpus is not None:
        assert len(corpus.texts) == len(corpus.labels) and all(map(is_text, corpus.texts))
        assert len(corpus.classes) >= 2 and all(corpus.classes) and corpus.labels.max() < len(corpus.classes)
        assert corpus.split is None or {"train", "test"} <= set(corpus.split)


RATED = {"text": VA["text"], "V": (1, 3, 5), "A": (2, 3, 4), "D": (3,), "split": VA["split"]}
POSTS = {"Anonymized Message": VA["text"], "Valence1": (1, 9), "Valence2": (2, 8), "Arousal1": (3,), "Arousal2": (4,)}
MANY = {"text": NAMES["text"], "split": NAMES["split"], "label": ("joy", "joy,fear"), "ekman": ("joy", "fear")}


@pytest.mark.parametrize(
    "file, columns, read",
    [
        ("emobank/emobank.csv", RATED, lambda folder: read_va("emobank", folder)),
        ("facebook_va/facebook_va.csv", POSTS, lambda folder: read_va("facebook", folder)),
        ("mr/mr.csv", {"text": NAMES["text"], "label": (0, 1)}, lambda folder: read_polarity("mr", folder)),
        ("imdb/imdb.parquet", {**NAMES, "label": (0, 1)}, lambda folder: read_polarity("imdb", folder)),
        ("isear/isear.csv", NAMES, lambda folder: read_emotion("isear", folder)),
        ("goemotions/goemotions.parquet", MANY, lambda folder: read_emotion("goemotions-28", folder)),
        ("goemotions/goemotions.parquet", MANY, lambda folder: read_emotion("goemotions-six", folder)),
        ("stsb/stsb_test.csv", {"text1": ("a",), "text2": ("b",), "score": (0, 5)}, read_sts),
        *[(f"own/own{kind}", NAMES, lambda folder, name=f"own/own{kind}", skip=skip: read_emotion(
            str(folder / name), None, skip_bad_rows=skip)) for kind in FORMS for skip in (False, True)],
    ],
)  # fmt: skip
def test_corpora_of_the_evaluation(file, columns, read, examples, tmp_path):
    path = tmp_path / file
    path.parent.mkdir()

    def check() -> None:
        found = outcome(read, tmp_path)
        if hasattr(found, "dimensions"):
            assert all(map(is_text, found.texts)) and np.abs(found.labels).max() <= 1
        elif hasattr(found, "classes"):
            check_classes(found)
        elif found is not None:
            assert all(map(is_text, found[0] + found[1])) and np.isfinite(found[2]).all()

    fuzz(examples, check, files(path.suffix, columns, rows=24), path=path)


def test_transcripts_of_iemocap(examples, tmp_path):
    base = tmp_path / "iemocap" / "Session1" / "dialog"
    for name in ("EmoEvaluation", "transcriptions"):
        (base / name).mkdir(parents=True)

    def check(texts: bytes) -> None:
        (base / "transcriptions" / "Ses01.txt").write_bytes(texts)
        turns = outcome(load_va_dataset, "iemocap", data_dir=tmp_path)
        assert turns is None or all(map(is_text, turns["text"]))

    labels = damaged(b"[6.29 - 8.23]\tSes01F_000\tneu\t[2.5000, 3.0000, 2.5000]\nC-E2:\tNeutral;\t()\n")
    texts = damaged(b"Ses01F_000 [006.29-008.23]: Words.\nM: aside\n")
    fuzz(examples, check, labels, texts, path=base / "EmoEvaluation" / "Ses01.txt")


def test_the_workbook_of_emotales(examples, tmp_path):
    pytest.importorskip("openpyxl")
    path = tmp_path / "emotales" / "View#1_dimensions.xlsx"
    path.parent.mkdir()
    rows = [["", "Annotator 1", "", ""], ["Sentence", "EVA", "ACT", "POW"], ["It is.", 1, 9, 5], ["End.", 2, 3, 4]]
    pd.DataFrame(rows).to_excel(path, header=False, index=False)
    whole = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as book:
        parts = {name: book.read(name) for name in book.namelist()}

    def with_part(name: str, content: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as book:
            for other, part in parts.items():
                book.writestr(other, content if other == name else part)
        return buffer.getvalue()

    def check() -> None:
        tales = outcome(load_va_dataset, "emotales", data_dir=tmp_path)
        assert tales is None or all(map(is_text, tales["text"]))

    inside = [damaged(part).map(lambda content, name=name: with_part(name, content)) for name, part in parts.items()]
    fuzz(examples, check, st.one_of(damaged(whole), *inside), path=path)


def test_label_spaces(examples, tmp_path):
    path = tmp_path / "own.csv"

    def check() -> None:
        space = outcome(read_label_space, path)
        if space is not None:
            assert all(-1 <= x <= 1 for point in space.va.values() for x in point) and all(space.va)
            assert all(0 <= angle < 360 for angle in space.angles.values())

    points = {"name": ("joy", "fear", "awe"), "valence": (0.1, -0.5, 0), "arousal": (1, 0.2, 0)}
    angles = {"name": ("joy", "fear", "awe"), "angle": (0, 359.5, -10)}
    fuzz(examples, check, st.one_of(files(".csv", points, rows=3), files(".csv", angles, rows=3)), path=path)


# Settings

SETTINGS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6),
              st.sampled_from(["mccl", "ptd=0.2", "1e-3", "nan", "auto", "paper", "no", "steps", "\x00"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)  # fmt: skip
OWN = [
    *CarlTrainingArguments.__annotations__, "max_steps", "seed", "optim", "weight_decay", "save_steps", "label_names",
    "save_strategy", "eval_strategy", "gradient_accumulation_steps", "lr_scheduler_kwargs", "load_best_model_at_end",
    "report_to", "max_grad_norm", "fp16", "optim_args", "accelerator_config", "hub_strategy", "logging_strategy",
]  # fmt: skip


def check_arguments(args: CarlTrainingArguments | None) -> None:
    if args is not None:
        assert args.weights and all(weight > 0 and math.isfinite(weight) for weight in args.weights.values())
        assert 0 < args.salient_fraction <= 1 and args.temperature > 0 and args.max_length >= 3


def test_training_arguments(examples, tmp_path):
    def holds(chosen: dict[str, Any]) -> None:
        check_arguments(outcome(CarlTrainingArguments, str(tmp_path), **{"use_cpu": True, **chosen}))

    fuzz(examples, holds, st.dictionaries(st.sampled_from(OWN), SETTINGS, max_size=3))


@dataclass
class Plain:
    """A script's own arguments; those of the Trainer, of which there are 150, would take a second each time."""

    corpora: list[str] = field(default_factory=list)
    weights: list[float] | None = None
    temperature: float = 0.1
    seed: int = 1
    bf16: bool = False
    pooling: Pooling = "cls"
    data_dir: str | None = None


def test_configuration_files(examples, tmp_path):
    path = tmp_path / "own.yaml"

    def check() -> None:
        outcome(parse_script_arguments, Plain, ["--config", str(path)])

    valid = b"corpora: [a.csv, b]\ntemperature: 0.1\nweights: [1, 2]\nseed: 1\nbf16: false\npooling: mean\n"
    keys = st.one_of(st.sampled_from([f.name for f in fields(Plain)]), st.text(max_size=4))
    random = st.dictionaries(keys, SETTINGS, max_size=3).map(lambda d: yaml.safe_dump(d).encode())
    odd = [b"!!int", b"!!float", b"!!bool x", b"!!timestamp x", b"2024-13-45", b"&a [*a]", b"[" * 1000]
    tagged = st.sampled_from(odd).map(lambda value: b"temperature: " + value)
    fuzz(examples, check, st.one_of(st.binary(max_size=100), damaged(valid), random, tagged), path=path)


def test_comparators(examples, tmp_path):
    path = tmp_path / "own.yaml"

    def check() -> None:
        found = outcome(read_comparators, path)
        assert found is None or all(c.pooling in ("cls", "mean", "pooler") for c in found.values())

    valid = b"BERT: {model: google-bert/bert-base-uncased, pooling: mean}\nOther:\n  model: null\n  note: not public\n"
    entries = st.dictionaries(
        st.text(max_size=3), st.dictionaries(st.sampled_from(["model", "pooling", "note", "x"]), SETTINGS)
    )
    random = st.one_of(entries, SETTINGS).map(lambda d: yaml.safe_dump(d).encode())
    fuzz(examples, check, st.one_of(st.binary(max_size=100), damaged(valid), random), path=path)


# What a run has left


def test_checkpoints(examples, tmp_path):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()

    def check() -> None:
        assert outcome(last_checkpoint, tmp_path) in (None, str(folder))

    contents = st.one_of(st.binary(max_size=50), damaged(b'{"global_step": 3}'))
    fuzz(examples, check, contents, path=folder / "trainer_state.json")


def test_cached_embeddings(examples, tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"keys": np.zeros((2, 16), np.uint8), "vectors": np.ones((2, 3), np.float32)}
    save_file(tensors, path, metadata={"format": "1"})

    contents = st.one_of(st.binary(max_size=50), damaged(path.read_bytes()))
    fuzz(examples, lambda: EmbeddingCache(tmp_path, 3), contents, path=path)  # which passes over what is damaged
