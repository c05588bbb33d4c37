import contextlib
import json
import os
import re
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import EMOTIONS, emotions, load_script, make_trainer, saved, tiny_config, tiny_encoder, toy_dataset
from filelock import FileLock
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertModel, pipeline

from carl_hf import (
    CarlModel,
    Provenance,
    export_emotion_classifier,
    export_encoder,
    export_va_regressor,
    load_va_dataset,
)
from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.mixing import mix_datasets, remove_overlap
from carl_hf.data.splits import split_rows
from carl_hf.encoders.embedding import classifier_outputs
from carl_hf.evaluation.encoder import load_va_head
from carl_hf.evaluation.probes import fit_ridge
from carl_hf.explain import Explainer
from carl_hf.export.folder import export_files, read_record
from carl_hf.export.onnx import export_onnx
from carl_hf.export.task_heads import check_classes

TEXTS = ["a text", "another, longer text", "x" * 300]
FILES = {
    "README.md", "carl_export.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
LAYOUT = {"modules.json", "sentence_bert_config.json", "1_Pooling/config.json"}


def carl(pooling="cls", family="bert", **architecture):
    return CarlModel.from_encoder(tiny_encoder(family), pooling=pooling, projection_dim=8, **architecture).eval()


def load(loader, folder):
    """The exported model, loaded without anything missing or left over."""
    model, info = loader.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


load_head = partial(load, AutoModelForSequenceClassification)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_export_is_a_plain_encoder(pooling, tmp_path, tokenizer):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = carl(pooling)
    folder = export_encoder(model, tokenizer, tmp_path / "new" / "encoder", max_length=32)
    loaded, own = load(AutoModel, folder), AutoTokenizer.from_pretrained(folder)
    assert type(loaded) is type(model.encoder)
    assert own.model_max_length == 32 and tokenizer.model_max_length == 60
    batch = own(TEXTS, padding=True, truncation=True, return_tensors="pt")
    states = loaded(**batch).last_hidden_state
    weights = batch["attention_mask"].unsqueeze(-1)
    expected = states[:, 0] if pooling == "cls" else (states * weights).sum(1) / weights.sum(1)
    torch.testing.assert_close(model.embed(TEXTS, tokenizer, max_length=32), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loaded.pooler.dense.weight, model.encoder.pooler.dense.weight)
    assert set(export_files(folder)) == FILES | LAYOUT
    assert "target" not in (folder / "config.json").read_text()
    found = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    units = model.embed(TEXTS, tokenizer, max_length=32, normalize=True)
    torch.testing.assert_close(found, units, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "distilbert", "electra", "deberta-v2", "mpnet", "modernbert", "xlm-roberta"]
)
def test_a_valence_arousal_head_is_fitted_on_every_family(family, tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    model, data = carl(family=family), toy_dataset(64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folder = export_va_regressor(
        model, tokenizer, tmp_path / "va", train=data, test={"toy": data}, max_length=32, corpora=["toy"]
    )
    loaded = load_head(folder)
    assert loaded.config.problem_type == "regression" and loaded.config.id2label == {0: "valence", 1: "arousal"}
    for name, value in loaded.base_model.state_dict().items():  # the online encoder, untouched
        torch.testing.assert_close(value, model.encoder.state_dict()[name], rtol=0, atol=0, msg=name)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # the head has learnt something: less squared error than the mean of the labels
    outputs = classifier_outputs(loaded, data["text"], tokenizer, max_length=32).numpy()
    labels = (np.stack([data["valence"], data["arousal"]], axis=1) + 1) / 2
    assert np.square(outputs - labels).mean() < 0.8 * labels.var(0).mean()
    assert set(export_files(folder)) == FILES
    predicted = load_va_head(str(folder), max_length=32)(data["text"])
    np.testing.assert_allclose(predicted, np.clip(2 * outputs - 1, -1, 1), atol=1e-5)


def test_the_record_of_a_head_says_what_it_reads(tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    model = carl(pooling="mean", family="modernbert", contrast_layers="none")
    for reads in ("cls", "mean"):
        model.encoder.config.classifier_pooling = reads
        folder = export_va_regressor(model, tokenizer, tmp_path / reads, train=toy_dataset(24), max_length=32)
        assert read_record(folder)["pooling"] == reads


def test_the_head_is_the_ridge_probe_of_the_features_it_sees(tmp_path, tokenizer):
    """Against scikit-learn on tanh of the trained pooler's dense layer, at whichever strength was chosen."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    model, train, dev = carl(), toy_dataset(80), toy_dataset(30)
    folder = export_va_regressor(model, tokenizer, tmp_path / "va", train=train, dev=dev, max_length=32)
    found = classifier_outputs(load_head(folder), dev["text"], tokenizer, max_length=32).numpy()
    with torch.no_grad():
        features = [
            torch.tanh(model.encoder.pooler.dense(model.embed(data["text"], tokenizer, max_length=32))).numpy()
            for data in (train, dev)
        ]
    scaler = preprocessing.StandardScaler().fit(features[0].astype(float))
    for k, name in enumerate(("valence", "arousal")):
        candidates = [
            linear_model.Ridge(alpha=10.0**a).fit(scaler.transform(features[0]), np.array(train[name]))
            for a in range(-1, 6)
        ]
        expected = [(c.predict(scaler.transform(features[1])) + 1) / 2 for c in candidates]
        assert min(np.abs(outputs - found[:, k]).max() for outputs in expected) < 2e-4  # float32 weights


@pytest.mark.parametrize("multi_label", [False, True], ids=["one label", "multi-label"])
def test_an_emotion_classifier_answers_in_a_pipeline_with_calibrated_probabilities(multi_label, tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    corpus = emotions(multi_label)
    folder = export_emotion_classifier(
        carl(), tokenizer, tmp_path / "emotion", corpus=corpus, corpus_name="letters", max_length=32
    )
    outputs = pipeline("text-classification", model=str(folder), top_k=None)(corpus.texts[:40])
    scores = np.array([[{o["label"]: o["score"] for o in output}[name] for name in EMOTIONS] for output in outputs])
    truth = corpus.labels[:40].argmax(1) if multi_label else corpus.labels[:40]
    assert (scores.argmax(1) == truth).mean() > (0.4 if multi_label else 0.7)  # chance is 1 in 6
    if not multi_label:
        np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    head = read_record(folder)["head"]
    assert head["labels"] == list(EMOTIONS) and 0.05 <= head["temperature"] <= 20
    assert (set(head["thresholds"]) == set(EMOTIONS)) if multi_label else head["thresholds"] is None
    card = (folder / "README.md").read_text()
    assert ("| threshold |" in re.sub(" +", " ", card)) == multi_label
    tested = [corpus.labels[row] for row in split_rows(corpus)[2]]
    fewest = min(sum(bool(label[c]) if multi_label else label == c for label in tested) for c in range(len(EMOTIONS)))
    assert head["smallest_class"] == fewest and f"a class has {fewest} of the texts: macro F1 is uncertain" in card


def test_widgets_hold_the_outputs_of_the_exported_models(exports, tokenizer):
    folder = exports[0]
    model = CarlModel.from_encoder(tiny_encoder(initializer_range=0.2), projection_dim=8).eval()  # the same
    (widget,) = read_record(folder / "encoder")["widget"]
    vectors = model.embed([widget["source_sentence"], *widget["sentences"]], tokenizer, max_length=32, normalize=True)
    cosines = dict(zip(widget["sentences"], (vectors[1:] @ vectors[0]).tolist(), strict=True))
    assert {o["label"]: o["score"] for o in widget["output"]} == pytest.approx(cosines, abs=1e-4)
    for kind in ("va", "emotion"):
        classify = pipeline("text-classification", model=str(folder / kind), top_k=None)
        for example in read_record(folder / kind)["widget"]:
            (output,) = classify([example["text"]], truncation=True)
            assert [o["label"] for o in output] == [o["label"] for o in example["output"]]
            assert [o["score"] for o in output] == pytest.approx([o["score"] for o in example["output"]], abs=1e-4)


def test_models_that_were_fine_tuned_elsewhere_are_exported_as_they_are(tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    config = tiny_encoder().config
    config.problem_type, config.id2label = "regression", {0: "valence", 1: "arousal"}
    regressor = AutoModelForSequenceClassification.from_config(config)
    folder = export_va_regressor(regressor, tokenizer, tmp_path / "va", max_length=32)
    found = classifier_outputs(load_head(folder), TEXTS, tokenizer)
    torch.testing.assert_close(found, classifier_outputs(regressor, TEXTS, tokenizer), atol=1e-6, rtol=1e-5)
    assert read_record(folder)["head"]["frozen"] is False
    regressor.config.problem_type = None
    with pytest.raises(ValueError, match="no valence-arousal regressor"):
        export_va_regressor(regressor, tokenizer, tmp_path / "va")
    with pytest.raises(ValueError, match="are not the corpus's classes"):
        export_emotion_classifier(regressor, tokenizer, tmp_path / "emotion", corpus=emotions(), corpus_name="x")
    with pytest.raises(ValueError, match="pass train="):
        export_va_regressor(carl(), tokenizer, tmp_path / "va")
    with pytest.raises(ValueError, match="at least 20 texts"):
        export_va_regressor(carl(), tokenizer, tmp_path / "va", train=toy_dataset(10))


@contextlib.contextmanager
def stopping_midway(monkeypatch):
    """Ends an export behind its weights."""
    with monkeypatch.context() as patch, pytest.raises(FileNotFoundError):
        patch.setattr("carl_hf.export.exports.save_tokenizer", Mock(side_effect=FileNotFoundError))
        yield


def test_an_export_replaces_an_export_and_nothing_else(tmp_path, tokenizer, monkeypatch):
    model, folder, mine = carl(), tmp_path / "encoder", tmp_path / "mine"
    export_encoder(model, tokenizer, folder, max_length=32)
    (folder / "figures").mkdir()
    (folder / "figures" / "stale.png").write_bytes(b"")
    export_encoder(model, tokenizer, folder, max_length=16)
    assert set(export_files(folder)) == FILES | LAYOUT and read_record(folder)["max_length"] == 16
    mine.mkdir()
    for place in (mine, folder):
        (place / "thesis.txt").write_text("years of work")
        with pytest.raises(ValueError, match="something else than an export: thesis.txt"):
            export_encoder(model, tokenizer, place)
        assert (place / "thesis.txt").read_text() == "years of work"
    (folder / "thesis.txt").unlink()
    # a failure midway leaves the old export complete, and nothing beside it
    with stopping_midway(monkeypatch):
        export_encoder(model, tokenizer, folder)
    for figures in ([tmp_path / "a) [x](y).png"], [tmp_path / "a.png", tmp_path / "b" / "a.png"], ["a.svg"]):
        with pytest.raises(ValueError, match="cannot be published"):
            export_encoder(model, tokenizer, folder, figures=figures)
    with pytest.raises(ValueError, match="There is no figure .*nowhere.png"):
        export_encoder(model, tokenizer, folder, figures=[tmp_path / "nowhere.png"])
    assert read_record(folder)["max_length"] == 16 and {p.name for p in tmp_path.iterdir()} == {"encoder", "mine"}


def test_what_a_killed_export_has_left_is_removed_and_a_running_one_is_let_be(tmp_path, tokenizer, monkeypatch):
    folder, model = export_encoder(carl(), tokenizer, tmp_path / "encoder"), carl()
    killed, running, unknown = (tmp_path / f".export-encoder-{name}" for name in ("killed", "running", "unknown"))
    for work in (killed, running, unknown):
        work.mkdir()
    folder.rename(killed / "old")  # killed between the two moves
    (killed / "in-use.lock").touch()
    with FileLock(running / "in-use.lock"):
        with stopping_midway(monkeypatch):
            export_encoder(model, tokenizer, folder)
        assert export_files(folder)  # the old one is back
        export_encoder(model, tokenizer, folder)
        assert {path.name for path in tmp_path.iterdir()} == {"encoder", running.name, unknown.name}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"provenance": {"corpora": []}}'])
def test_a_damaged_record_is_named(content, tmp_path):
    (tmp_path / "carl_export.json").write_text(content)
    with pytest.raises(ValueError, match="carl_export.json is no valid record of an export.*Export again"):
        read_record(tmp_path)


def test_exports_hold_nothing_of_this_machine(tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    source = saved(tiny_encoder(), tokenizer, tmp_path / "someone" / "secret-project")
    model, own = CarlModel.from_encoder(str(source), projection_dim=8), AutoTokenizer.from_pretrained(source)
    settings = {"label_space": str(source / "y.csv"), "va_from_names": "C:\\me\\z.csv", "weights": [1.0, 2.0]}
    corpora = [str(source / "diary.csv"), "emobank"]
    origin = Provenance(base_model=str(source), corpora=corpora, settings=settings | {"optim": "sgd"})
    data, out = toy_dataset(64), tmp_path / "out"
    export_encoder(model, own, out / "encoder", provenance=origin, train=data)
    export_va_regressor(model, own, out / "va", provenance=origin, train=data, corpora=[str(source / "x.csv")])
    for path in filter(lambda path: path.is_file(), out.rglob("*")):
        content = path.read_bytes()
        assert b"secret-project" not in content and str(tmp_path).encode() not in content, path
        assert not content.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")), f"{path} is pickled"
    found = read_record(out / "encoder")["provenance"]
    assert found["corpora"] == ["diary.csv", "emobank"]
    assert found["base_model"] is None and found["licence"] == "unknown"
    expected = {"label_space": "y.csv", "va_from_names": "z.csv", "weights": [1.0, 2.0], "optim": "sgd"}
    assert found["settings"] == expected


def test_the_card_names_the_data_of_head_and_encoder(exports, tmp_path, tokenizer):
    origin, data = Provenance(base_model="org/base", corpora=["emobank"]), toy_dataset(64)
    folder = export_va_regressor(
        carl(), tokenizer, tmp_path / "va", train=data, provenance=origin, corpora=["facebook"]
    )
    found, card = read_record(folder)["provenance"], (folder / "README.md").read_text()
    assert found["licence"] == "gpl-3.0" and found["corpora"] == ["emobank"]
    assert "license: gpl-3.0" in card and "fitted on facebook" in card and "trained by CARL on emobank" in card
    assert "The settings were not recorded." in card
    card = (exports[0] / "encoder" / "README.md").read_text()  # without a provenance
    assert "CARL on" not in card and "license: unknown" in card and "defaults of carl_hf" not in card


@pytest.mark.parametrize("bare", [False, True], ids=["half precision", "without a pooler"])
def test_unusual_encoders_get_heads_too(bare, tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    encoder = BertModel(tiny_encoder().config, add_pooling_layer=False) if bare else tiny_encoder().to(torch.bfloat16)
    encoder.config.dtype = encoder.dtype
    model = CarlModel.from_encoder(encoder, projection_dim=8, contrast_layers="prediction").eval()
    loaded = load_head(export_va_regressor(model, tokenizer, tmp_path, train=toy_dataset(64), max_length=32))
    assert loaded.dtype == torch.float32
    dense = model.online.dense if bare else model.encoder.pooler.dense
    torch.testing.assert_close(loaded.bert.pooler.dense.weight, dense.weight, rtol=0, atol=0)


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_class_without_training_texts_is_named(multi_label):
    corpus = emotions(multi_label)
    fear = corpus.labels[:, 2] if multi_label else corpus.labels == 2
    split = np.where(fear, "test", "train").astype(object)
    split[:2] = ["validation", "test"]
    with pytest.raises(ValueError, match="No training text of the emotion corpus has the label 'fear'"):
        check_classes(ClassCorpus(corpus.texts, corpus.labels, corpus.classes, split))
    with pytest.raises(ValueError, match="empty validation or test split"):
        check_classes(ClassCorpus(corpus.texts, corpus.labels, corpus.classes, np.where(fear, "validation", "train")))


def test_the_onnx_graphs_of_an_encoder_compute_the_same(tmp_path, tokenizer):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = carl("mean", "roberta")
    folder = export_encoder(model, tokenizer, tmp_path / "encoder", max_length=32)
    own = AutoTokenizer.from_pretrained(folder)
    for path, tolerance in zip(export_onnx(folder), (1e-5, 0.1), strict=True):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for texts in (TEXTS, TEXTS[:1]):  # other batch sizes and lengths than it was traced with
            batch = own(texts, padding=True, truncation=True, return_tensors="np")
            states = session.run(["last_hidden_state"], {i.name: batch[i.name] for i in session.get_inputs()})[0]
            weights = batch["attention_mask"][..., None]
            found = (states * weights).sum(1) / weights.sum(1)
            expected = model.embed(texts, tokenizer, max_length=32).numpy()
            np.testing.assert_allclose(found, expected, atol=tolerance)


def test_the_onnx_graphs_of_a_head_compute_the_same_and_the_card_tells_their_sizes(tokenizer, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    labels = {"id2label": {0: "valence", 1: "arousal"}, "problem_type": "regression"}
    model, folder = AutoModelForSequenceClassification.from_config(tiny_config(**labels)).eval(), tmp_path / "va"
    export_va_regressor(model, tokenizer, folder)
    paths, texts = export_onnx(folder), ["joywow", "woezzz joy", "calm"]
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    expected = AutoModelForSequenceClassification.from_pretrained(folder)(**batch).logits.detach().numpy()
    for path, tolerance in zip(paths, (1e-3, 0.1), strict=True):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = session.run(["logits"], {i.name: batch[i.name].numpy() for i in session.get_inputs()})[0]
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx"} < set(export_files(folder))
    sizes, card = [path.stat().st_size for path in paths], (folder / "README.md").read_text()
    assert sizes[0] > sizes[1] and all(f"{size / 1e6:.1f} MB" in card for size in sizes)
    record = read_record(folder)
    assert record["onnx"]["bytes"] == sizes and record["onnx"]["agreement"] >= 0
    (folder / "README.md").write_text("edited by hand")
    export_onnx(folder)
    assert (folder / "README.md").read_text() == "edited by hand"


def test_an_onnx_graph_that_differs_or_does_not_fit_on_the_disk_is_not_written(tmp_path, tokenizer, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import onnx_ir

    folder = export_encoder(carl(), tokenizer, tmp_path / "encoder", max_length=32)
    with pytest.raises(ValueError, match="differs from the model"):
        export_onnx(folder, tolerance=-1.0)
    with pytest.raises(ValueError, match="holds no export"):
        export_onnx(tmp_path)
    monkeypatch.setattr(onnx_ir, "save", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device: .*encoder/onnx/model.onnx"):
        export_onnx(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"] and set(export_files(folder)) == FILES | LAYOUT


def test_exports_pad_right_whatever_the_tokenizer_did(tmp_path, tiny):
    left = AutoTokenizer.from_pretrained(tiny, padding_side="left")
    folder = export_encoder(carl(), left, tmp_path / "encoder", max_length=32)
    model, own = load(AutoModel, folder), AutoTokenizer.from_pretrained(folder)
    assert own.padding_side == "right" and left.padding_side == "left"
    batch = model(**own(TEXTS, padding=True, truncation=True, return_tensors="pt")).last_hidden_state[:, 0]
    alone = [model(**own(text, truncation=True, return_tensors="pt")).last_hidden_state[0, 0] for text in TEXTS]
    torch.testing.assert_close(batch, torch.stack(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalization", ["standardized", "observed"])
def test_heads_and_errors_are_never_in_another_unit_than_the_scale(normalization, tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    path, rows = tmp_path / "rated.csv", toy_dataset(64)
    lines = [f"{row['text']},{3 + row['valence']:.4f},{3 + row['arousal']:.4f}" for row in rows]
    path.write_text("text,valence,arousal\n" + "\n".join(lines) + "\n")
    true, other = (
        load_va_dataset(path, split="all", scale=(1, 9), normalization=how) for how in ("scale", normalization)
    )
    derived = mix_datasets([(remove_overlap(other.shuffle(seed=1).select(range(40)), [[]]), 1.0)], seed=0)
    for part in ({"train": derived}, {"train": true, "dev": other}, {"train": true, "test": {"mine": other}}):
        with pytest.raises(ValueError, match="not on their corpus's scale"):
            export_va_regressor(carl(), tokenizer, tmp_path / "va", max_length=32, **part)
    with pytest.raises(ValueError, match="not on their corpus's scale"):
        export_encoder(carl(), tokenizer, tmp_path / "encoder", train=other, max_length=32)
    assert not (tmp_path / "va").exists()
    folder = export_va_regressor(carl(), tokenizer, tmp_path / "va", train=true, max_length=32)
    answers = classifier_outputs(load_head(folder), true["text"], tokenizer, max_length=32).numpy()
    np.testing.assert_allclose(
        1 + 8 * answers.mean(0), [3 + np.mean(rows[c]) for c in ("valence", "arousal")], atol=0.2
    )


def test_the_exported_head_s_strength_has_the_least_squared_error():
    """Labels with little signal: r does not see that a weak penalty spreads the answers too far."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 60))
    y = 0.15 * x[:, :2] + generator.normal(size=(400, 2))
    parts = x[:100], y[:100], x[100:250], y[100:250]
    probes = {chosen_by: fit_ridge(*parts, chosen_by=chosen_by) for chosen_by in ("pearson", "squared_error")}
    dev = {name: np.square(probe(parts[2]) - parts[3]).mean(0) for name, probe in probes.items()}
    assert (dev["squared_error"] <= dev["pearson"]).all() and (dev["squared_error"] < dev["pearson"]).any()
    mean, scale = x[:100].mean(0), x[:100].std(0)
    ridges = [linear_model.Ridge(alpha=10.0**k).fit((x[:100] - mean) / scale, y[:100]) for k in range(-1, 6)]
    everything = [np.square(ridge.predict((parts[2] - mean) / scale) - parts[3]).mean(0) for ridge in ridges]
    np.testing.assert_allclose(dev["squared_error"], np.min(everything, axis=0), rtol=1e-9)
    for dev_x, dev_y in ((parts[2][:2], parts[3][:2]), (parts[2], np.ones((150, 2)))):  # r is 1, -1 or undefined
        few = {how: fit_ridge(*parts[:2], dev_x, dev_y, chosen_by=how) for how in ("pearson", "squared_error")}
        np.testing.assert_array_equal(few["pearson"].weight, few["squared_error"].weight)


def test_the_card_says_how_far_the_answers_leave_their_range(tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    config = tiny_encoder().config
    config.problem_type, config.id2label = "regression", {0: "valence", 1: "arousal"}
    regressor = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        regressor.classifier.weight.zero_()
        regressor.classifier.bias.copy_(torch.tensor([1.25, -0.125]))
    folder = export_va_regressor(regressor, tokenizer, tmp_path, test={"toy": toy_dataset(20)}, max_length=32)
    assert read_record(folder)["head"]["outside"] == 0.25
    assert "On the test texts they leave [0, 1] by at most 0.250." in (folder / "README.md").read_text()
    outputs = classifier_outputs(load_head(folder), TEXTS, tokenizer)  # a plain regression model, not cut
    torch.testing.assert_close(outputs, torch.tensor([[1.25, -0.125]] * 3))
    assert (
        Explainer(regressor, tokenizer).explain("joy", "valence", "gradient_norm").summary.startswith("valence +1.00")
    )


def test_exports_hold_no_code_or_path_of_the_config_they_came_with(tmp_path, tiny):
    encoder = tiny_encoder()
    encoder.config.auto_map = {"AutoModel": "evil.Model"}
    encoder.config.custom_pipelines = {"x": {"impl": "evil.Pipe"}}
    encoder.config.cache_dir, encoder.config.teacher = "cache", {"folder": "C:\\Users\\me", "layers": 2}
    encoder.config.log_file, encoder.config.sources, encoder.config.note = "x.log", ["~/a", "b"], "and/or"
    own = AutoTokenizer.from_pretrained(tiny, cls_token="/cls")
    own.init_kwargs |= {"auto_map": {"AutoTokenizer": "evil.T"}, "vocab_file": "/home/me/v.txt", "cache_dir": "/c"}
    model = CarlModel.from_encoder(encoder, projection_dim=8)
    folder = export_encoder(model, own, tmp_path / "encoder", max_length=32)
    config, tokens = (json.loads((folder / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    assert not {"auto_map", "custom_pipelines", "cache_dir", "log_file", "sources"} & set(config)
    assert config["teacher"] == {"layers": 2} and config["note"] == "and/or"
    assert not {"auto_map", "vocab_file", "cache_dir"} & set(tokens) and tokens["cls_token"] == "/cls"
    load(AutoModel, folder)


@pytest.mark.skipif(os.name == "nt", reason="no modes of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_exports_and_checkpoints_are_readable_as_the_user_s_umask_says(mask, tmp_path, tokenizer):
    before = os.umask(mask)
    try:
        export_encoder(carl(), tokenizer, tmp_path / "encoder", max_length=32)
        make_trainer(tmp_path, tokenizer, max_steps=1, save_strategy="steps", save_steps=1).train()
    finally:
        os.umask(before)
    for kind in ("encoder", "checkpoint-1"):
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / kind).rglob("*") if path.is_file()}
        assert modes == dict.fromkeys(modes, 0o666 & ~mask) and "model.safetensors" in modes


def test_the_script_adds_graphs_to_each_export(exports, monkeypatch, capsys):
    script, asked = load_script("examples/export_onnx.py"), []
    monkeypatch.setattr(script, "export_onnx", lambda folder: asked.append(folder) or [folder / "onnx"])
    script.main([str(exports[0]), str(exports[0] / "va")])
    assert asked == [exports[0] / kind for kind in ("encoder", "va", "emotion", "va")]
    assert capsys.readouterr().out.count("/onnx\n") == 4
    with pytest.raises(SystemExit, match="error: Name a folder"):
        script.main([])
