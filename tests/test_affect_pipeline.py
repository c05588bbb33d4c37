"""AffectPipeline against the pipelines of transformers, and its windows against a loop."""

import itertools
import pickle
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import EMOTIONS, emotions, tiny_config, tiny_encoder
from sklearn.metrics import f1_score
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, pipeline
from transformers.utils import logging

from carl_hf import AffectPipeline, CarlDataCollator, CarlModel, export_emotion_classifier, export_encoder
from carl_hf.data.splits import split_rows
from carl_hf.encoders import load_classifier
from carl_hf.encoders.loading import without_weights_bar
from carl_hf.evaluation.encoder import load_text_encoder, load_va_head
from carl_hf.explain import Explainer
from carl_hf.export.folder import read_record
from carl_hf.inference import CarlVectorizer
from carl_hf.inference import pipeline as module
from carl_hf.inference.readers import Reader
from carl_hf.utils.devices import default_device

TEXTS = ["joywow joywow", "woezzz", "a calm sea", "joy" * 9, "wow!", "x" * 30]  # at most 32 tokens


@pytest.fixture
def affect(exports):
    return AffectPipeline.from_pretrained(exports[0], probabilities=True)


def answers_of(folder, texts):
    """What the pipeline of transformers says: label -> scores of the texts."""
    classify = pipeline("text-classification", model=str(folder), top_k=None, truncation=True, device="cpu")
    found = [{answer["label"]: answer["score"] for answer in answers} for answers in classify(list(texts))]
    return pd.DataFrame(found)


def test_answers_are_those_of_the_pipelines_of_transformers(affect, exports):
    table, folder = affect(TEXTS), exports[0]
    va, emotion = answers_of(folder / "va", TEXTS), answers_of(folder / "emotion", TEXTS)
    assert len(affect._loaded()) == 1  # frozen heads: one pass serves both
    expected = va[["valence", "arousal"]].clip(0, 1)
    np.testing.assert_allclose(table[["valence", "arousal"]], expected, atol=2e-4)
    np.testing.assert_allclose(table[[f"emotion_{name}" for name in emotion]], emotion, atol=2e-4)
    assert table["emotion"].tolist() == emotion.idxmax(axis=1).tolist()
    np.testing.assert_allclose(table["emotion_probability"], emotion.max(axis=1), atol=2e-4)
    assert affect.schema().names == list(table) and table["tokens_cut"].sum() == 0


@pytest.mark.parametrize("family, settings", [("roberta", {}), ("modernbert", {"classifier_pooling": "mean"})])
def test_heads_of_other_families(family, settings, tokenizer, tmp_path):
    torch.manual_seed(0)
    labels = {"id2label": {0: "joy", 1: "fear", 2: "anger"}, "problem_type": "multi_label_classification"}
    AutoModelForSequenceClassification.from_config(tiny_config(family, **settings, **labels)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    table, expected = AffectPipeline(emotion=tmp_path, probabilities=True)(TEXTS), answers_of(tmp_path, TEXTS)
    np.testing.assert_allclose(table[[f"emotion_{name}" for name in expected]], expected, atol=2e-4)
    assert "valence" not in table


def test_bfloat16_moves_the_answers_little(exports, affect):
    table, plain = AffectPipeline.from_pretrained(exports[0], bf16=True)(TEXTS), affect(TEXTS)
    for name in ("valence", "arousal", "emotion_probability"):
        moved = (table[name] - plain[name]).abs().max()
        assert 0 < moved < 0.1  # these weights magnify rounding


def test_intervals_are_those_of_the_export_round_the_answers(exports, tmp_path):
    folder = shutil.copytree(exports[0] / "va", tmp_path / "va")
    config = AutoConfig.from_pretrained(folder)
    config.intervals = {"level": 0.9, "valence": 0.2, "arousal": 0.7}
    config.save_pretrained(folder)
    plain, table = AffectPipeline(va=folder)(TEXTS), AffectPipeline(va=folder, intervals=True)(TEXTS)
    assert list(table)[:6] == ["valence", "arousal", "valence_low", "valence_high", "arousal_low", "arousal_high"]
    for name, width in (("valence", 0.2), ("arousal", 0.7)):
        expected = [(max(0, x - width), min(1, x + width)) for x in plain[name]]
        np.testing.assert_allclose(table[[f"{name}_low", f"{name}_high"]], expected, atol=1e-6)
    config.intervals = {"level": 0.9, "valence": 0.2}
    config.save_pretrained(folder)
    with pytest.raises(ValueError, match="intervals: the model states none"):
        AffectPipeline(va=folder, intervals=True)
    config.intervals = None
    config.save_pretrained(folder)
    with pytest.raises(ValueError, match="intervals: the model states none"):
        AffectPipeline(va=folder, intervals=True)


def test_several_emotions_of_a_text_are_those_that_the_card_has_measured(tokenizer, tmp_path):
    corpus = emotions(multi_label=True, size=240)
    corpus.labels[:, 5] |= corpus.labels[:, 0]  # two labels, or one
    model = CarlModel.from_encoder(tiny_encoder(initializer_range=0.2), projection_dim=8).eval()
    folder = export_emotion_classifier(model, tokenizer, tmp_path, corpus=corpus, corpus_name="letters", max_length=32)
    texts, truth = corpus.part(split_rows(corpus)[2])
    table = AffectPipeline(emotion=folder, probabilities=True)(texts)
    found = np.array([[name in cell.split(", ") for name in EMOTIONS] for cell in table["emotions"]])
    assert found.any(1).any() and not (found.sum(1) == 1).all()  # not what `emotion` says already
    measured = next(row["value"] for row in read_record(folder)["results"] if row["metric"] == "f1")
    assert 100 * f1_score(truth, found, average="macro", zero_division=0) == pytest.approx(100 * measured, abs=0.1)
    for cell, shares in zip(
        table["emotions"], table[[f"emotion_{name}" for name in EMOTIONS]].to_numpy(), strict=True
    ):
        named = [shares[EMOTIONS.index(name)] for name in cell.split(", ") if name]
        assert named == sorted(named, reverse=True)
    assert AffectPipeline(emotion=folder)([None])["emotions"].isna().all()
    one = export_emotion_classifier(
        CarlModel.from_encoder(folder).eval(), tokenizer, tmp_path / "one", corpus=emotions(), corpus_name="letters"
    )
    assert "emotions" not in AffectPipeline(emotion=one)(texts[:1])  # another head: the old one's thresholds are gone


def test_a_head_that_reads_otherwise_is_refused(exports, monkeypatch):
    monkeypatch.setattr(Reader, "_whole_model", lambda self, model: torch.full((2, 2), 7.0))
    with pytest.raises(ValueError, match="va: its head reads neither the first token nor the mean"):
        Reader(str(exports[0] / "va"), device=torch.device("cpu"))


def test_long_texts_are_read_in_windows_whose_answers_are_averaged_by_length(exports):
    text = "the sea was calm, and then a storm came; " * 3 + "joy"
    table = AffectPipeline(va=exports[0] / "va")([text, "joy"])
    tokenizer = AutoTokenizer.from_pretrained(exports[0] / "va")
    model = AutoModelForSequenceClassification.from_pretrained(exports[0] / "va").eval()
    content = tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = np.array_split(content, -(-len(content) // 30))  # 32 tokens with [CLS] and [SEP]
    total = np.zeros(2)
    for window in windows:
        ids = torch.tensor([[tokenizer.cls_token_id, *window.tolist(), tokenizer.sep_token_id]])
        total += len(window) * model(input_ids=ids).logits[0].detach().numpy()
    assert len({len(window) for window in windows}) == 2  # of more than one length
    np.testing.assert_allclose(table.loc[0, ["valence", "arousal"]], (total / len(content)).clip(0, 1), atol=2e-4)


def test_without_windows_the_beginning_is_read_and_the_rest_counted(exports):
    texts = ["joy " * 20, "joy", "joy \u2603 \u2603"]  # 80 tokens and the last two the tokenizer does not know
    table = AffectPipeline(va=exports[0] / "va", windows=False)(texts)
    expected = answers_of(exports[0] / "va", texts)[["valence", "arousal"]].clip(0, 1)
    np.testing.assert_allclose(table[["valence", "arousal"]], expected, atol=2e-4)
    assert table["tokens_cut"].tolist() == [50, 0, 0] and table["tokens_unknown"].tolist() == [0, 0, 2]


def test_lists_series_and_generators_and_texts_that_are_missing(affect):
    series = pd.Series(["joywow", None, "woezzz", " ", float("nan"), pd.NA], index=list("abcdef"), dtype=object)
    table = affect(series)
    assert table.index.tolist() == list("abcdef")
    assert table["valence"].isna().tolist() == [False, True, False, True, True, True]
    assert table.loc[["b", "d"], "emotion"].isna().all()
    again = affect(text for text in series)
    assert again.index.tolist() == list(range(6)) and again.equals(table.reset_index(drop=True))
    assert affect([]).empty and list(affect([])) == list(table) and affect([None]).isna()["emotion"].all()


def test_an_encoder_that_was_taken_out_of_a_regressor_is_none(exports, tokenizer, tmp_path):
    taken = CarlModel.from_encoder(str(exports[0] / "va"))
    folder = export_encoder(taken, tokenizer, tmp_path / "encoder", max_length=32)
    assert AutoConfig.from_pretrained(folder).problem_type == "regression" and load_va_head(str(folder)) is None
    with pytest.raises(ValueError, match="is an encoder, with no"):
        AffectPipeline.from_pretrained(folder)


@pytest.mark.parametrize("door", ["pipeline", "embed", "explain", "collator"])
def test_half_a_character_is_refused_where_texts_are_tokenized(door, affect, exports, carl, tokenizer):
    whole = Explainer(load_classifier(str(exports[0] / "va")), tokenizer, max_length=32)
    call = {
        "pipeline": affect, "embed": lambda texts: carl.embed(texts, tokenizer),
        "explain": lambda texts: whole.explain(texts[0], method="gradient_norm"),
        "collator": lambda texts: CarlDataCollator(tokenizer)([{"text": text} for text in texts]),
    }[door]  # fmt: skip
    with pytest.raises(ValueError, match=r"The text 'joy .ud83d' holds half a character"):
        call(["joy \ud83d"])


def test_a_stream_reads_no_further_than_asked(affect):
    taken = []

    def texts():
        for i in itertools.count():
            taken.append(i)
            yield f"joy {i}"

    tables = affect.stream(texts(), rows=5)
    first, second = next(tables), next(tables)
    with pytest.raises(ValueError, match="rows must be positive"):
        next(affect.stream(["joy"], rows=0))
    column = pd.Series(["joy", "woe", "calm"], index=[30, 10, 20])
    assert [table.index.tolist() for table in affect.stream(column, rows=2)] == [[30, 10], [20]]
    assert len(taken) == 10 and second.index.tolist() == [5, 6, 7, 8, 9]
    whole = affect([f"joy {i}" for i in range(10)])
    np.testing.assert_allclose(pd.concat([first, second])["valence"], whole["valence"], atol=1e-6)


def test_a_pickle_is_small_and_loads_the_model_where_it_is_used(exports, monkeypatch, tmp_path):
    monkeypatch.chdir(exports[0].parent)
    affect = AffectPipeline.from_pretrained(exports[0].name, batch_size=2)
    expected, packed = affect(TEXTS), pickle.dumps(affect)
    assert len(packed) < 2000
    monkeypatch.chdir(tmp_path)  # a worker's folder is another
    loads, load = [], module.Reader
    monkeypatch.setattr(module, "Reader", lambda *names, **settings: loads.append(1) or load(*names, **settings))
    copy = pickle.loads(packed)
    assert not loads and copy(TEXTS).equals(expected) and copy(TEXTS).equals(expected) and len(loads) == 2


def test_encoders_that_differ_are_both_run_and_dominance_is_a_dimension(exports, tmp_path):
    names = {0: "valence", 1: "arousal", 2: "dominance"}
    model = AutoModelForSequenceClassification.from_pretrained(
        exports[0] / "emotion", id2label=names, problem_type="regression", ignore_mismatched_sizes=True
    )
    with torch.no_grad():
        next(model.base_model.parameters()).add_(0.1)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(exports[0] / "va").save_pretrained(tmp_path)
    affect = AffectPipeline(va=tmp_path, emotion=exports[0] / "emotion")
    expected = answers_of(tmp_path, TEXTS)[[*names.values()]].clip(0, 1)
    np.testing.assert_allclose(affect(TEXTS)[[*names.values()]], expected, atol=2e-4)
    assert len(affect._loaded()) == 2


def test_hub_ids_name_the_encoder_beside_its_heads(exports, monkeypatch, caplog):
    load = module.load_config

    def hub(name):
        if name in ("org/carl", "org/carl-va"):
            return load(str(exports[0] / ("va" if name.endswith("-va") else "encoder")))
        raise ValueError(f"Cannot load the model {name!r}")

    monkeypatch.setattr(module, "load_config", hub)
    assert AffectPipeline.from_pretrained("org/carl").names == {"va": "org/carl-va"}
    assert "org/carl-emotion" in caplog.text
    assert AffectPipeline.from_pretrained("org/carl-va").names == {"va": "org/carl-va"}


def test_mistakes_are_named(exports, affect, tmp_path):
    folder = exports[0]
    for make, message in (
        (lambda: AffectPipeline(), "needs a model"),
        (lambda: AffectPipeline(va=folder / "emotion"), "emotion is no valence-arousal regressor"),
        (lambda: AffectPipeline(emotion=folder / "va"), "va is no emotion classifier"),
        (lambda: AffectPipeline.from_pretrained(tmp_path), "holds no va/ and no emotion/"),
        (lambda: AffectPipeline.from_pretrained(folder / "encoder"), "is an encoder, with no"),
        (lambda: AffectPipeline.from_pretrained("nobody/nothing"), "Cannot load the model 'nobody/nothing'"),
        (lambda: AffectPipeline.from_pretrained(None), "takes a folder or a Hub id, got None"),
        (lambda: AffectPipeline(va=folder / "va", batch_size=0), "batch_size must be a whole number of at least 1"),
        (lambda: AffectPipeline(va=folder / "va", batch_size="8"), "batch_size must be a whole number"),
        (lambda: AffectPipeline(va=folder / "va", max_length=2), "max_length must be a whole number of at least 3"),
        (lambda: AffectPipeline(emotion=folder / "emotion", intervals=True), "intervals are of valence and arousal"),
        (lambda: affect("joy"), r"one str: pass \[text\]"),
        (lambda: affect(np.array("joy")), "one ndarray: pass"),
        (lambda: affect(pd.DataFrame({"text": ["a"]})), r"pass table\['text'\]"),
        (lambda: affect(["joy", 3]), "Text 1 is no text but int"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_a_class_whose_column_would_be_anothers_is_refused(tokenizer, tmp_path):
    config = tiny_config(num_labels=2, id2label={0: "joy", 1: "probability"})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "emotion")
    tokenizer.save_pretrained(tmp_path / "emotion")
    assert len(AffectPipeline(emotion=tmp_path / "emotion")(["joy"])) == 1
    with pytest.raises(ValueError, match="has a class 'probability'"):
        AffectPipeline(emotion=tmp_path / "emotion", probabilities=True)


def test_a_length_that_the_model_cannot_read_is_said(exports, caplog):
    affect = AffectPipeline(va=exports[0] / "va", max_length=5000)
    assert affect(["joy"]).valence.notna().all()
    assert re.search(r"Texts are read up to \d+ tokens, the (tokenizer|encoder)'s limit, not up to 5000", caplog.text)


def test_threads_that_ask_together_load_once(exports, monkeypatch):
    loaded, reader = [], module.Reader
    monkeypatch.setattr(module, "Reader", lambda *given, **named: loaded.append(1) or reader(*given, **named))
    affect = AffectPipeline.from_pretrained(exports[0])
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(affect, [["joy"]] * 4))
    assert len(loaded) == len(affect.names) and all(found.equals(answers[0]) for found in answers)


def test_the_default_dtype_of_torch_changes_nothing(exports, affect):
    expected = affect(["joy", "woe"])
    torch.set_default_dtype(torch.float64)
    try:
        found = AffectPipeline.from_pretrained(exports[0], device="cpu")(["joy", "woe"])
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(found.valence, expected.valence, atol=1e-5)


def test_a_torch_built_for_a_gpu_that_is_not_there_runs_on_the_cpu(exports, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert len(AffectPipeline.from_pretrained(exports[0])(["joywow"])) == 1
    assert default_device().type == Explainer.from_pretrained(f"{exports[0]}/va").model.device.type == "cpu"


def test_everything_runs_on_the_accelerator_that_is_there_unless_another_is_wanted(exports, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("meta"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert default_device().type == Explainer.from_pretrained(f"{exports[0]}/va").model.device.type == "meta"
    assert default_device("cpu").type == "cpu"
    monkeypatch.setattr(PreTrainedModel, "to", moved := Mock(side_effect=InterruptedError))
    for load in (load_text_encoder, load_va_head, lambda name: AffectPipeline(name)(["joy"])):
        with pytest.raises(InterruptedError):
            load(f"{exports[0]}/va")
        assert moved.call_args.args[0].type == "meta"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
@pytest.mark.parametrize("device", ["cuda", 0, "gpu", 1.5])
def test_a_device_that_is_not_there_is_named(device, exports):
    for use in (
        lambda: AffectPipeline.from_pretrained(exports[0], device=device)(["joy"]),
        lambda: Explainer.from_pretrained(str(exports[0] / "va"), device=device),
    ):
        with pytest.raises(ValueError, match=f"no device {device!r}.*choose cpu"):
            use()


def test_no_bar_is_shown_for_weights_but_where_the_user_loads_them(exports, monkeypatch, capsys):
    monkeypatch.setattr(logging, "_tqdm_active", True)
    va = f"{exports[0]}/va"

    def bars() -> int:
        return capsys.readouterr().err.count("Loading weights")

    AutoModelForSequenceClassification.from_pretrained(va)
    assert bars()
    AffectPipeline.from_pretrained(exports[0])(["joy"])
    CarlVectorizer(str(exports[0] / "encoder")).fit_transform(["joy"])
    with pytest.raises(ValueError, match="Cannot load"):
        load_classifier("nobody/nothing")
    assert not bars()
    with without_weights_bar():  # another thread's are shown
        thread = threading.Thread(target=AutoModelForSequenceClassification.from_pretrained, args=[va])
        thread.start()
        thread.join()
    assert bars()
    AutoModelForSequenceClassification.from_pretrained(va)
    assert bars()
