"""What a model was trained on before, which a later training, adaptation or evaluation has to know."""

import dataclasses
import importlib.resources
import json
import shutil

import numpy as np
import pytest
from conftest import run_script, toy_dataset

from carl_hf import CarlModel, Provenance, export_encoder, export_va_regressor
from carl_hf.commands import adapt
from carl_hf.commands.finetune import FinetuneArguments
from carl_hf.commands.outputs import DRAWN, remove_stale
from carl_hf.commands.pretrain import PretrainArguments
from carl_hf.commands.pretrain_data import PretrainData
from carl_hf.data.labelled import ClassCorpus, read_emotion
from carl_hf.export.adapting import ALONE, FINETUNED
from carl_hf.export.folder import EXPORT_RECORD, read_record, with_earlier_training
from carl_hf.export.provenance import digests_of, file_digest, named_digests, run_settings
from carl_hf.export.seen import has_seen, trained_on, was_seen


def rated_file(path, *, size=24, seed=0):
    path.parent.mkdir(exist_ok=True)
    toy_dataset(size, seed).to_pandas().to_csv(path, index=False)
    return path


def change_record(folder, *, provenance=None, **changes):
    """The export in the folder with another record."""
    record = read_record(folder)
    record["provenance"] = Provenance("bert", corpora=["demo"]).record() | (provenance or {})
    record |= changes
    (folder / EXPORT_RECORD).write_text(json.dumps(record), encoding="utf-8")
    return folder


@pytest.fixture
def export(exports, tmp_path):
    """The encoder, in a folder of its own."""
    return shutil.copytree(exports[0] / "encoder", tmp_path / "encoder")


@pytest.mark.parametrize(
    ("licence", "frozen", "head", "expected"),
    [
        ("cc-by-nc-4.0", None, [], "other"),  # of the Hub, but on no ladder with the corpora's
        ("apache-2.0", None, [], "apache-2.0"),
        ("gpl-3.0", None, [], "gpl-3.0"),  # stricter than its corpora ask for
        ("apache-2.0", False, ["isear"], "other"),  # an encoder that was trained with a head on other texts
        ("apache-2.0", False, ["facebook"], "gpl-3.0"),
        ("apache-2.0", True, ["facebook"], "apache-2.0"),  # the encoder has not seen these
    ],
)
def test_a_second_training_keeps_the_licence_of_the_first(licence, frozen, head, expected, export):
    heads = {} if frozen is None else {"head": {"frozen": frozen, "corpora": head}}
    change_record(export, provenance={"licence": licence}, **heads)
    later = with_earlier_training(Provenance(str(export), corpora=["demo"]), str(export))
    assert later.record()["licence"] == expected
    assert set(later.corpora) == {"demo", *([] if frozen in (None, True) else head)}
    stated = dataclasses.replace(later, licence="mit").record()
    assert stated["licence"] == "mit" and stated["data_licence"] == expected


def test_files_of_one_name_keep_a_digest_each(tmp_path, export):
    files = [rated_file(tmp_path / folder / "train.csv", seed=seed) for seed, folder in enumerate(("a", "b", "c"))]
    assert list(digests_of(map(str, files))) == ["train.csv", "train.csv (2)", "train.csv (3)"]
    script = PretrainArguments(corpora=[str(file) for file in files[:2]], scale=[-1, 1])
    digests = set(map(file_digest, files))
    assert set(script.provenance("x").files.values()) == digests - {file_digest(files[2])}
    change_record(export, provenance={"files": {"train.csv": file_digest(files[2])}})
    later = dataclasses.replace(script, encoder=str(export)).provenance("x")
    assert set(later.files.values()) == digests and named_digests(later.files.items()) == later.files


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": [-2, 2]},
        {"valence_column": "v"},
        {"text_column": "sentence"},
        {"shuffle_buffer": 100},
        {"measure": ["emobank"]},
        {"emotion_corpus": "isear"},
        {"skip_bad_rows": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_run_is_not_resumed_with_texts_that_are_read_in_another_way(changes, tmp_path):
    file = rated_file(tmp_path / "my.csv")

    def settings(**more):
        script = PretrainArguments(**{"corpora": [str(file)], "scale": [-1, 1], "normalization": "scale", **more})
        provenance = script.provenance("x")
        assert "reading" not in provenance.record()
        return run_settings(provenance, "bert")

    before = settings()
    assert settings() == before != settings(**changes)
    rated_file(file, size=25)
    (changed,) = [name for name, value in settings().items() if before[name] != value]
    assert changed == "content of my.csv"


def test_a_moved_run_is_resumed_and_a_changed_file_beside_it_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("my.csv", "measured.csv")):
        rated_file(tmp_path / name, seed=seed)

    def settings(folder):
        script = PretrainArguments(
            corpora=[f"{folder}my.csv"], scale=[-1, 1], measure=[f"{folder}measured.csv"], normalization="scale",
            emotion_corpus=f"{folder}my.csv",
        )  # fmt: skip
        return run_settings(script.provenance("x"), "bert")

    before = settings("")
    assert settings(f"{tmp_path}/") == before and str(tmp_path) not in json.dumps(before)
    rated_file(tmp_path / "measured.csv", size=25)
    assert [name for name, value in settings("").items() if before[name] != value] == ["content of measured.csv"]


@pytest.mark.parametrize("kept", [False, True])
def test_a_second_training_on_the_same_file_has_a_tenth_only_if_the_first_kept_it(kept, export, tmp_path):
    file, other = tmp_path / "my.csv", tmp_path / "other.csv"
    for path in (file, other):
        frame = toy_dataset(150).to_pandas()
        frame.assign(text=[f"{path.stem} {i}" for i in range(150)]).to_csv(path, index=False)
    first = {"files": {"my.csv": file_digest(file)}, "corpora": ["my.csv"], "tenth_kept": kept}
    change_record(export, provenance=first)
    (tmp_path / "b").mkdir()
    renamed = shutil.copy(other, tmp_path / "b" / "my.csv")
    for path, expected in ((file, kept), (other, True), (renamed, True)):  # the last: another file of that name
        settings = {"corpora": [str(path)], "scale": [-1, 1], "normalization": "scale"}
        data = PretrainData(PretrainArguments(**settings, encoder=str(export)), seed=1)
        assert (data.for_va_head()[1] is not None) == data.keeps_tenth == expected
        assert data.provenance("x").tenth_kept == (kept and expected)
        assert len(data.train) == (150 if not expected else 150 - len(data.for_va_head()[1]))


@pytest.mark.parametrize(("size", "weights"), [(22, None), (60, None), (60, [2.0])])
def test_few_texts_are_all_trained_on(size, weights, tmp_path):
    """Fewer than nine texts give no intervals, however often they are repeated, and a head needs twenty."""
    file = tmp_path / "my.csv"
    frame = toy_dataset(size).to_pandas().assign(text=[f"few {i}" for i in range(size)])
    frame.to_csv(file, index=False)
    script = PretrainArguments(corpora=[str(file)], scale=[-1, 1], normalization="scale", weights=weights)
    data = PretrainData(script, seed=1)
    assert not data.keeps_tenth and len(data.train) == size * (2 if weights else 1) and data.for_va_head()[0]


@pytest.mark.parametrize(("stated", "licence"), [(False, "apache-2.0"), (True, "mit")])
def test_a_model_left_alone_keeps_its_licence(stated, licence, exports, tmp_path):
    run = shutil.copytree(exports[0] / "va", tmp_path / "va")
    record = read_record(run)
    change_record(run, provenance={"licence": licence}, head=record["head"] | {"corpora": ["demo"]})
    provenance = adapt._provenance(read_record(run), "x", "labels.csv", ALONE)
    found = provenance.record(["demo"])
    assert (found["licence"], found["data_licence"]) == (licence, "apache-2.0")


def adaptable(export, labels, **record):
    """Whether `adapt` takes the labels for a model of this record."""
    return not was_seen(str(labels), read_record(change_record(export, **record)))


def test_texts_that_a_head_was_fitted_to_are_not_adapted_to(export, tmp_path):
    labels, other = rated_file(tmp_path / "labels.csv"), rated_file(tmp_path / "other.csv", seed=1)
    assert adaptable(export, labels)
    assert not adaptable(export, labels, provenance={"files": digests_of([str(labels)])})
    fitted = {"head": {"corpora": ["labels.csv", "org/rated"], "files": digests_of([str(labels)])}}
    assert not adaptable(export, labels, **fitted) and adaptable(export, other, **fitted)
    for name in ("org/rated", "org/rated:raw"):
        assert not adaptable(export, name, **fitted) and adaptable(export, "org/others", **fitted)
    adapted = adapt._provenance(read_record(change_record(export, **fitted)), "x", str(other), FINETUNED)
    assert not adaptable(export, labels, provenance={"files": adapted.files}, head={})
    assert not adaptable(export, other, provenance={"files": adapted.files}, head={})
    resources = importlib.resources.files("carl_hf.data.resources")
    demo = shutil.copy(resources / "demo.csv", tmp_path / "mine.csv")
    assert not adaptable(export, demo, provenance={"corpora": ["demo"]}, head={})  # by its content
    assert adaptable(export, demo, provenance={"corpora": ["emobank"]}, head={})
    assert adaptable(export, other, provenance={"corpora": ["demo", "emobank"]}, head={})


def test_a_file_whose_test_part_was_held_out_is_one_that_was_trained_on(export, tmp_path):
    """It is its own emotion corpus too: evaluations may use its test part, but nobody may adapt to the whole."""
    own, both = (tmp_path / name for name in ("own.csv", "both.csv"))
    for seed, path in enumerate((own, both)):
        frame = toy_dataset(60, seed).to_pandas().assign(label=["joy", "fear", "awe"] * 20)
        frame.assign(text=[f"{path.stem} {i}" for i in range(60)]).to_csv(path, index=False)
    script = PretrainArguments(corpora=[str(own), str(both)], scale=[-1, 1], emotion_corpus=str(both))
    origin = json.loads(json.dumps(script.provenance("x", tenth_kept=False).record()))
    assert set(origin["files"]) == {"own.csv"} and set(origin["partly"]) == {"both.csv"}
    moved = shutil.copy(both, tmp_path / "moved.csv")
    for labels in (own, both, moved):
        assert not adaptable(export, labels, provenance=origin, head={})
    corpus = read_emotion(str(moved), None)
    assert not has_seen(str(export), str(moved), corpus)
    later = with_earlier_training(Provenance(str(export), corpora=["demo"]), str(export))
    assert later.partly == origin["partly"]
    second = PretrainArguments(corpora=[str(moved)], scale=[-1, 1], encoder=str(export))
    assert second.begins_with_an_encoder_that_has_seen_all()
    alone = PretrainArguments(corpora=[str(own)], scale=[-1, 1], emotion_corpus=str(both))
    assert alone.provenance("x").partly == {}  # the encoder has not seen it
    whole = PretrainArguments(corpora=[str(both)], scale=[-1, 1], emotion_corpus=str(both), include_eval_rows=True)
    assert set(whole.provenance("x").files) == {"both.csv"} and whole.provenance("x").partly == {}
    finetuned = FinetuneArguments(corpus=str(both)).provenance("x", corpus)
    assert set(finetuned.partly) == {"both.csv"} and not finetuned.files


def test_a_measured_file_is_known_by_its_content(export, tmp_path):
    own = tmp_path / "own.csv"
    toy_dataset(60).to_pandas().assign(split=["train", "train", "dev", "test"] * 15).to_csv(own, index=False)
    for on_test in (False, True):
        origin = {"corpora": ["own.csv"], "files": digests_of([str(own)]), "trained_on_test_rows": on_test}
        change_record(export, provenance=origin)
        settings = {
            "corpora": ["demo"],
            "measure": [str(own)],
            "scale": [-1, 1],
            "encoder": str(export),
            "normalization": "scale",
        }
        assert PretrainData(PretrainArguments(**settings), seed=1).measures_seen_rows() == on_test


def test_data_sets_of_the_hub_are_known_by_their_names(export):
    texts = [f"text {i}" for i in range(30)]
    whole = ClassCorpus(texts, np.arange(30) % 2, ["a", "b"], None)
    divided = dataclasses.replace(whole, split=np.resize(["train", "test"], 30).astype(object))
    for name in ("owner/feelings", "owner/feelings-v1.1", "owner/feelings:v1.0"):
        for origin, expected in (
            ({"trained_on_test_rows": True}, (True, True)),
            ({"partly": {}}, (True, False)),  # all rows of a set without splits
            ({"partly": {name: name}}, (False, False)),  # its test part was held out
        ):
            change_record(export, provenance={"corpora": [name], **origin})
            assert tuple(has_seen(str(export), name, corpus) for corpus in (whole, divided)) == expected
    assert FinetuneArguments(corpus="owner/feelings").provenance("x", whole).partly == {
        "owner/feelings": "owner/feelings"
    }


def test_records_of_older_versions_say_less(export):
    """Of a data set on the Hub it is not known whether a test part was held out, and of some files not the content."""
    whole = ClassCorpus([f"text {i}" for i in range(30)], np.arange(30) % 2, ["a", "b"], None)
    record = {"head": {"frozen": False, "corpora": ["owner/x"]}}
    origin = {"corpora": ["owner/x", "first.csv"], "trained_on_test_rows": False}
    change_record(export, **record)
    changed = read_record(export)
    del changed["provenance"]["partly"]
    changed["provenance"] |= origin
    (export / EXPORT_RECORD).write_text(json.dumps(changed), encoding="utf-8")
    assert not has_seen(str(export), "owner/x", whole)
    later = with_earlier_training(
        Provenance(str(export), corpora=["own.csv"], files={"own.csv": "digest"}), str(export)
    )
    change_record(export, provenance={**later.record(), "trained_on_test_rows": True}, head={})
    assert trained_on(str(export)) == ["owner/x", "first"]  # own.csv is known by its content
    change_record(export, provenance=later.record(), head={})
    assert not has_seen(str(export), "owner/x", whole)


def test_a_published_corpus_is_known_by_its_content(export, corpora_dir):
    labels = corpora_dir / "emobank" / "emobank.csv"
    assert not adaptable(export, labels, provenance={"corpora": ["emobank"]}, head={})
    assert adaptable(export, labels, provenance={"corpora": ["facebook"]}, head={})


def test_a_head_s_record_knows_its_files_and_has_intervals_of_unseen_texts_alone(tiny, tokenizer, tmp_path):
    file = rated_file(tmp_path / "my.csv")
    model, texts = CarlModel.from_encoder(str(tiny)), {"train": toy_dataset(48), "dev": toy_dataset(24, seed=1)}

    def record(**settings):
        return read_record(export_va_regressor(model, tokenizer, tmp_path / "va", max_length=32, **settings))

    origin = Provenance(corpora=[str(file)])
    found = record(**texts, provenance=origin)
    assert found["head"]["files"] == {"my.csv": file_digest(file)} and found["intervals"]["level"] == 0.9
    assert record(train=texts["train"], provenance=origin)["intervals"] is None
    seen = dataclasses.replace(origin, trained_on_test_rows=True)
    assert record(**texts, provenance=seen)["intervals"] is None
    assert "intervals" not in json.loads((tmp_path / "va" / "config.json").read_text(encoding="utf-8"))


def test_a_new_head_does_not_have_the_intervals_of_the_old_one(exports, tokenizer, tmp_path):
    old = exports[0] / "va"
    assert json.loads((old / "config.json").read_text(encoding="utf-8"))["intervals"]["level"] == 0.9
    model = CarlModel.from_encoder(str(old))
    export_encoder(model, tokenizer, tmp_path / "encoder")
    export_va_regressor(model, tokenizer, tmp_path / "va", train=toy_dataset(48))
    for kind in ("encoder", "va"):
        assert "intervals" not in json.loads((tmp_path / kind / "config.json").read_text(encoding="utf-8"))


def test_a_classifier_says_that_its_encoder_has_seen_the_test_texts(export, tmp_path):
    file, other = tmp_path / "my.csv", tmp_path / "other.csv"
    for path in (file, other):
        frame = toy_dataset(40).to_pandas().assign(text=[f"{path.stem} {i}" for i in range(40)])
        frame.assign(label=["joy", "fear"] * 20)[["text", "label"]].to_csv(path, index=False)
    change_record(export, provenance={"files": {"my.csv": file_digest(file)}})
    for path in (file, other):
        script = FinetuneArguments(encoder=str(export), corpus=str(path))
        assert script.provenance("x", script.read_corpus()).trained_on_test_rows == (path == file)
    frame.assign(split=["train"] * 30 + ["test"] * 10, label=["joy", "fear"] * 20).to_csv(file, index=False)
    change_record(export, provenance={"files": {"my.csv": file_digest(file)}})  # of which the test rows were held out
    script = FinetuneArguments(encoder=str(export), corpus=str(file))
    assert not script.provenance("x", script.read_corpus()).trained_on_test_rows


def test_an_encoder_in_the_output_folder_is_not_replaced_before_it_is_read(exports, tmp_path):
    run = shutil.copytree(exports[0], tmp_path / "run")
    flags = ["--encoder", run / "encoder", "--output_dir", run, "--overwrite_output_dir", "true", "--use_cpu", "true"]
    for script in ("examples/pretrain.py", "examples/finetune_emotion.py"):
        assert "holds --encoder" in run_script(script, *flags)
    assert sorted(path.name for path in run.iterdir()) == ["emotion", "encoder", "va"]


def test_what_was_made_of_an_encoder_that_has_trained_on_is_removed(exports, tmp_path):
    run = shutil.copytree(exports[0], tmp_path / "run")
    for folder in ("notes", "figures"):
        (run / folder).mkdir()
        (run / folder / "a.png").touch()
    (run / "emotion" / "mine.txt").write_text("kept", encoding="utf-8")  # nobody's export
    (run / "results.json").write_text('{"run": {}, "files": ["figures/a.png"]}', encoding="utf-8")
    remove_stale(run)
    assert sorted(path.name for path in run.iterdir()) == ["emotion", "encoder", "notes"]
    assert (run / "emotion" / "mine.txt").read_text(encoding="utf-8") == "kept"
    (run / "figures").mkdir()
    (run / "figures" / "half.svg").touch()
    (run / "results.json").write_text(json.dumps({"run": {}, "files": [DRAWN]}), encoding="utf-8")
    remove_stale(run)
    assert sorted(path.name for path in run.iterdir()) == ["emotion", "encoder", "notes"]
