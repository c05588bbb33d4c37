"""Slips of who uses a model that would give a wrong result without a word: each is refused, or said."""

import logging
import pickle
import shutil

import numpy as np
import pytest
from conftest import emotions, run_script, tiny_carl, toy_dataset, write_table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tokenizers import normalizers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from carl_hf import (
    AffectPipeline,
    evaluate_encoder,
    export_emotion_classifier,
    export_encoder,
    export_va_regressor,
)
from carl_hf.commands.adapt import print_adaptation
from carl_hf.data.labelled import ClassCorpus, read_emotion
from carl_hf.export.adapting import ALONE, SCALED
from carl_hf.inference import CarlVectorizer


@pytest.mark.parametrize("packed", [False, True])
def test_a_classifier_that_was_replaced_by_one_of_other_classes_is_refused(packed, exports, tokenizer, tmp_path):
    shutil.copytree(exports[0] / "emotion", tmp_path / "emotion")
    affect = AffectPipeline.from_pretrained(tmp_path)
    packed, corpus = pickle.dumps(affect) if packed else None, emotions()
    turned = ClassCorpus(corpus.texts, (corpus.labels + 1) % 6, [corpus.classes[-1], *corpus.classes[:-1]], None)
    export_emotion_classifier(tiny_carl(), tokenizer, tmp_path / "emotion", corpus=turned, corpus_name="letters")
    with pytest.raises(ValueError, match="emotion was replaced by another model since this pipeline was made"):
        (pickle.loads(packed) if packed else affect)(["joy"])
    assert len(AffectPipeline.from_pretrained(tmp_path)(["joy"])) == 1


def test_a_vectorizer_that_was_fitted_to_another_encoder_is_refused(tokenizer, tmp_path):
    texts, labels = ["joy", "woe", "calm", "storm"], [0, 1, 0, 1]
    folder = export_encoder(tiny_carl(), tokenizer, tmp_path / "encoder", max_length=32)
    fitted = make_pipeline(CarlVectorizer(str(folder)), LogisticRegression()).fit(texts, labels)
    stored, expected = pickle.dumps(fitted), fitted.predict_proba(texts)
    moved = shutil.copytree(folder, tmp_path / "moved")
    again = pickle.loads(stored).set_params(carlvectorizer__model=str(moved))
    np.testing.assert_allclose(again.predict_proba(texts), expected)  # the same, in another place
    export_encoder(tiny_carl(num_hidden_layers=1), tokenizer, folder, max_length=32)
    for model in (fitted, pickle.loads(stored)):
        with pytest.raises(ValueError, match="is another encoder than in fit"):
            model.predict(texts)
    assert fitted.fit(texts, labels).predict(texts).shape == (4,)


def test_tokens_that_either_model_has_not_read_are_counted(exports, tmp_path):
    folders = {}
    for name, length in (("va", 16), ("emotion", 48)):
        folders[name] = shutil.copytree(exports[0] / name, tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(folders[name])
        tokenizer.model_max_length = length
        tokenizer.save_pretrained(folders[name])
    text = "joywow " * 8  # 56 tokens
    alone = {name: AffectPipeline(**{name: folder}, windows=False)([text]) for name, folder in folders.items()}
    both = AffectPipeline(**folders, windows=False)([text, "\u2603 joy"])
    assert both["tokens_cut"].tolist() == [max(table["tokens_cut"][0] for table in alone.values()), 0] == [42, 0]
    assert both["tokens_unknown"].tolist() == [0, 1]


def test_a_text_of_which_nothing_is_read_has_no_answer(exports):
    affect = AffectPipeline.from_pretrained(exports[0], probabilities=True)
    for reader, _ in affect._loaded():
        backend = reader.tokenizer.backend_tokenizer
        backend.normalizer = normalizers.Sequence([backend.normalizer, normalizers.Replace("\u200b", "")])
    table = affect(["\u200b", "joy", None, "\u200b\u200b joy"])
    numbers = table.drop(columns=["emotion", "tokens_cut", "tokens_unknown"])
    assert numbers.isna().all(axis=1).tolist() == table["emotion"].isna().tolist() == [True, False, True, False]
    expected = affect(["joy"]).loc[0, list(numbers)].astype(float)
    np.testing.assert_allclose(numbers.loc[1].astype(float), expected, atol=1e-5)


def test_no_export_states_more_tokens_than_its_encoder_has_positions(tmp_path, tokenizer, caplog):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer.save_pretrained(tmp_path / "own")[0].rsplit("/", 1)[0])
    tokenizer.model_max_length = int(1e30)
    parts = {"train": toy_dataset(64), "dev": toy_dataset(24, seed=1)}
    folders = [
        export_encoder(tiny_carl(), tokenizer, tmp_path / "encoder"),
        export_va_regressor(tiny_carl(), tokenizer, tmp_path / "va", **parts, max_length=512),
        export_emotion_classifier(
            tiny_carl(), tokenizer, tmp_path / "emotion", corpus=emotions(), corpus_name="letters"
        ),
    ]
    assert [AutoTokenizer.from_pretrained(folder).model_max_length for folder in folders] == [64, 64, 64]
    assert "Texts are read up to 64 tokens, the encoder's limit, not up to 128." in caplog.text
    kept = AutoModelForSequenceClassification.from_pretrained(folders[1])
    export_va_regressor(kept, tokenizer, tmp_path / "again", max_length=512)
    assert AutoTokenizer.from_pretrained(tmp_path / "again").model_max_length == 64
    assert "The intervals are those that the model came with" in caplog.text


@pytest.mark.parametrize("r, said", [(-0.8, True), (-0.1, False), (0.8, False)])
def test_ratings_in_the_other_direction_are_said(r, said, capsys):
    ways = {ALONE: {"arousal": {"mae": 0.3, "pearson": r}}, SCALED: {"arousal": {"mae": 0.1, "pearson": 0.8}}}
    adaptation = {"chosen": SCALED, "texts": 100, "different_texts": 100, "folds": 5, "ways": ways}
    head = {"adaptation": adaptation, "labels": ["arousal"], "corpora": ["mine.csv"]}
    print_adaptation({"head": head, "intervals": {"arousal": 0.2}}, (0, 1))
    assert ("Your ratings of arousal run against the model's answers" in capsys.readouterr().out) == said


def test_ratings_of_half_a_scale_are_said(exports, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    rows = [{"text": f"joy {i}", "valence": 1 + i % 5, "arousal": 1 + 8 * (i % 2)} for i in range(24)]
    labels = write_table(tmp_path / "mine.csv", rows)
    words = [labels, "--model", exports[0], "--scale", 1, 9, "--output", tmp_path / "out", "--num_threads", 1]
    assert run_script("examples/adapt.py", *words) is None
    said = [record.getMessage() for record in caplog.records if "No rating" in record.getMessage()]
    assert said == ["No rating of valence is above 5: is --scale 1 9 theirs?"]


def test_cells_that_are_hardly_texts_are_counted(exports, tmp_path, caplog):
    rows = [{"text": text} for text in ("joy", "NA", "3.5", "NULL", "12", "7 seas")]
    table = write_table(tmp_path / "in.csv", rows)
    words = [table, "--model", exports[0], "--output", tmp_path / "out.csv", "--num_threads", 1]
    assert run_script("examples/score.py", *words) is None
    assert "'text': cells that are marks of a missing value, such as NA, and are read as texts: 2." in caplog.text
    assert "'text': cells that are numbers, and are read as texts: 2." in caplog.text


def test_a_class_that_lists_others_is_said(tmp_path, caplog):
    rows = [{"text": f"text {i}", "label": ("joy", "fear", "joy, fear", "awe/dread")[i % 4]} for i in range(24)]
    assert len(read_emotion(write_table(tmp_path / "mine.csv", rows), None).classes) == 4
    assert (
        '\'joy, fear\' is a class of its own. A text with several has a list of them: ["joy", "fear"].' in caplog.text
    )
    assert "dread" not in caplog.text


def test_an_encoder_by_its_name_is_no_function():
    with pytest.raises(ValueError, match=r"got 'minilm-l6': load_text_encoder\(name\)"):
        evaluate_encoder("minilm-l6")
