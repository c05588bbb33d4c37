"""One encoder for va/ and emotion/: the loss against loops, what comes out, and when it is not shared."""

import copy
import logging

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from test_head_training import FAST, carl, explained, in_parts, riddles, va_riddles  # noqa: F401
from transformers import AutoModelForSequenceClassification

from carl_hf import AffectPipeline, Provenance, export_emotion_classifier, export_va_regressor
from carl_hf.commands.heads import print_heads
from carl_hf.commands.pretrain import PretrainArguments
from carl_hf.commands.pretrain_data import PretrainData
from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.splits import split_rows
from carl_hf.encoders.embedding import classifier_outputs
from carl_hf.export import shared_encoder
from carl_hf.export.folder import read_record
from carl_hf.export.kept_answers import keeping_answers
from carl_hf.export.last_layer import last_layer, reading_once
from carl_hf.export.task_heads import fit_classes, fit_va_regressor, untrained_classifier, with_development

pytestmark = pytest.mark.usefixtures("measuring_packages")
RATED = va_riddles(200, 2).map(lambda row, i: {"text": row["text"] + "!" * (i > 9)}, with_indices=True)
"""Ten of the texts have classes too."""


def corpus_of(seed=0, size=300, *, multi_label=False):
    """Texts whose class is that of their valence, so that both can be learnt together."""
    texts, first, odd = riddles(size, seed)
    return ClassCorpus(texts, np.stack([odd, first], 1) > 0 if multi_label else odd, ["even", "odd"], in_parts(size))


@pytest.mark.parametrize("multi_label", [False, True], ids=["one label", "multi-label"])
def test_the_loss_and_its_gradient_are_those_of_a_loop_over_texts(multi_label, carl, tokenizer):  # noqa: F811
    corpus = corpus_of(multi_label=multi_label)
    classifier = untrained_classifier(carl, tokenizer, corpus)
    read = reading_once(classifier, tokenizer, 32)
    fit_classes(classifier, read, corpus, class_weights="equal")
    before, (texts, labels) = copy.deepcopy(classifier), corpus.part(split_rows(corpus)[0])
    labels = labels.astype(np.float32) if multi_label else labels
    layer, old = (model.get_submodule(last_layer(model)) for model in (classifier, before))
    train, dev = with_development(RATED, None, seed=3)
    frozen = fit_va_regressor(carl, tokenizer, train, dev, max_length=32)
    own_loss = F.binary_cross_entropy_with_logits if multi_label else F.cross_entropy
    with keeping_answers(classifier, read, RATED, texts, labels, own_loss, seed=3) as (every, targets, loss):
        others = [text for text in RATED["text"] if text not in texts]
        assert every[: len(texts)] == texts and sorted(every[len(texts) :]) == sorted(others)
        assert 190 <= len(others) < 200  # some of the ten are in the training part
        outputs = classifier_outputs(classifier, every, tokenizer, max_length=32)
        answers = 2 * classifier_outputs(frozen, every, tokenizer, max_length=32) - 1
        torch.testing.assert_close(outputs[:, 2:], answers, atol=1e-4, rtol=0)  # begins with what it is to keep
        own = classifier_outputs(before, every, tokenizer, max_length=32)
        torch.testing.assert_close(outputs[:, :2], own, atol=1e-4, rtol=0)
        rows = [0, 5, 1, len(texts), len(texts) + 7]
        moved = (outputs[rows] + torch.randn(len(rows), 4)).requires_grad_()
        loss(moved, torch.from_numpy(targets[rows])).backward()
        by_loss, moved.grad = moved.grad, None
        kept, classes, variance = 0.0, [], answers.var(0, unbiased=False)
        for i, row in enumerate(rows):
            for k in range(2):
                kept = kept + (moved[i, 2 + k] - answers[row, k]) ** 2 / variance[k] / (2 * len(rows))
            if row < len(texts):
                if multi_label:
                    p = moved[i, :2].sigmoid()
                    classes += [-(p[k] if labels[row, k] else 1 - p[k]).log() for k in range(2)]
                else:
                    classes.append(-moved[i, :2].log_softmax(0)[labels[row]])
        (kept + torch.stack(classes).mean()).backward()
        torch.testing.assert_close(by_loss, moved.grad, atol=1e-3, rtol=1e-3)
        rated_alone = torch.from_numpy(targets[rows[3:]])
        assert loss(moved.detach()[3:], rated_alone).isfinite()  # a batch without a single class
        with torch.no_grad():
            layer.weight += 1
    assert layer.out_features == 2 and torch.equal(layer.weight, old.weight + 1)  # trained rows stay, others go


def test_both_heads_share_an_encoder_and_one_pass_gives_the_answers_of_two(carl, tokenizer, tmp_path):  # noqa: F811
    corpus, dev, test = corpus_of(), va_riddles(60, 5), va_riddles(60, 6)
    before = copy.deepcopy(carl.state_dict())
    origin = Provenance(base_model="org/base", corpora=["emobank"])
    common = {"max_length": 32, "provenance": origin}
    export_emotion_classifier(
        carl,
        tokenizer,
        tmp_path / "emotion",
        corpus=corpus,
        corpus_name="facebook",
        training=FAST,
        keep=RATED,
        **common,
    )
    export_va_regressor(
        carl, tokenizer, tmp_path / "va", train=RATED, dev=dev, test={"emobank": test}, corpora=["emobank"],
        beside=tmp_path / "emotion", **common,
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in carl.state_dict().items())
    emotion, va = (read_record(tmp_path / kind) for kind in ("emotion", "va"))
    found = emotion["head"]["development"]
    assert found["chosen"] == "finetuned" and found["kept"] == 200 and emotion["provenance"]["corpora"] == ["emobank"]
    found = va["head"]["development"]
    assert found["chosen"] == "shared" and found["shared"] >= found["frozen"] - shared_encoder.MAY_LOSE
    assert va["head"]["frozen"] and va["head"]["corpora"] == ["emobank"]
    assert va["provenance"]["corpora"] == ["emobank", "facebook"]  # that the encoder was trained on
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "va")
    assert not hasattr(model.config, "thresholds") and model.config.intervals == va["intervals"]
    assert explained(model, tokenizer, dev) == pytest.approx(found["shared"], abs=1e-3)
    shown = {"va": "This model uses the copy, so that one pass answers both",
             "emotion": "a penalty kept the answers of a valence-arousal head on the same encoder"}  # fmt: skip
    assert all(text in (tmp_path / kind / "README.md").read_text() for kind, text in shown.items())

    pipeline, texts = AffectPipeline.from_pretrained(str(tmp_path)), test["text"][:20]
    table = pipeline(texts)
    assert len(pipeline._loaded()) == 1
    outputs = classifier_outputs(model, texts, tokenizer).numpy().clip(0, 1)
    np.testing.assert_allclose(table[["valence", "arousal"]], outputs, atol=2e-4)
    other = AutoModelForSequenceClassification.from_pretrained(tmp_path / "emotion")
    classes = classifier_outputs(other, texts, tokenizer).argmax(1)
    assert table["emotion"].tolist() == [corpus.classes[c] for c in classes]


def test_an_encoder_that_has_lost_valence_and_arousal_is_not_shared(carl, tokenizer, tmp_path, capsys):  # noqa: F811
    texts, _, odd = riddles(300, 0)
    noise = np.random.default_rng(7).integers(2, size=300)
    corpus = ClassCorpus([f"{text} {'pq'[n]}" for text, n in zip(texts, noise, strict=True)], noise, ["p", "q"], None)
    export_emotion_classifier(
        carl, tokenizer, tmp_path / "emotion", corpus=corpus, corpus_name="noise", training=FAST, max_length=32
    )
    with torch.no_grad():  # nothing is left of the text in it
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "emotion")
        model.base_model.embeddings.word_embeddings.weight.zero_()
        model.save_pretrained(tmp_path / "emotion")
    export_va_regressor(
        carl, tokenizer, tmp_path / "va", train=RATED, dev=va_riddles(60, 5), beside=tmp_path / "emotion",
        provenance=Provenance(corpora=["emobank"]), max_length=32,
    )  # fmt: skip
    record = read_record(tmp_path / "va")
    found = record["head"]["development"]
    assert found["chosen"] == "frozen" and found["shared"] < found["frozen"] - shared_encoder.MAY_LOSE
    assert record["provenance"]["corpora"] == ["emobank"]
    assert "This model uses the former" in (tmp_path / "va" / "README.md").read_text()
    assert len(AffectPipeline.from_pretrained(str(tmp_path))._loaded()) == 2
    print_heads(tmp_path)
    assert "va/ reads an encoder of its own: explained variance (R2)" in capsys.readouterr().out


def test_what_cannot_be_shared_is_refused(carl, tokenizer, tmp_path):  # noqa: F811
    settings = {"train": RATED, "dev": va_riddles(60, 5), "max_length": 32}
    with pytest.raises(ValueError, match=r"emotion is no exported emotion classifier: pass the folder"):
        export_va_regressor(carl, tokenizer, tmp_path / "va", beside=tmp_path / "emotion", **settings)
    with pytest.raises(ValueError, match=r"beside= is for the linear head .* leave out training="):
        export_va_regressor(carl, tokenizer, tmp_path / "va", beside=tmp_path, training=FAST, **settings)
    regressor = fit_va_regressor(carl, tokenizer, RATED, va_riddles(60, 5))
    with pytest.raises(ValueError, match="beside= is for the linear head of a CarlModel"):
        export_va_regressor(regressor, tokenizer, tmp_path / "va", beside=tmp_path)
    settings = {"corpus": corpus_of(), "corpus_name": "toy", "keep": RATED}
    with pytest.raises(ValueError, match=r"keep= is for a CarlModel that is trained: pass training= too"):
        export_emotion_classifier(carl, tokenizer, tmp_path / "emotion", **settings)
    settings["keep"] = RATED.select(range(5))
    with pytest.raises(ValueError, match="needs at least 20 texts"):
        export_emotion_classifier(carl, tokenizer, tmp_path / "emotion", training=FAST, **settings)
    assert not {path.name for path in tmp_path.iterdir()}


def test_emotion_is_not_trained_on_texts_by_which_va_is_measured(tmp_path, caplog):
    rng, words = np.random.default_rng(0), ["joy", "fear", "calm", "gloom"]
    rated = pd.DataFrame({
        "text": [f"{words[i % 4]} number {i}" for i in range(120)], "valence": rng.uniform(1, 9, 120),
        "arousal": rng.uniform(1, 9, 120), "split": ["train"] * 80 + ["validation"] * 20 + ["test"] * 20,
    })  # fmt: skip
    classes = rated.assign(label=[words[i % 4] for i in range(120)])[["text", "label"]]
    rated.to_csv(tmp_path / "rated.csv", index=False)
    classes.to_csv(tmp_path / "classes.csv", index=False)
    script = PretrainArguments(
        corpora=[str(tmp_path / "rated.csv")],
        scale=[1, 9],
        emotion_corpus=str(tmp_path / "classes.csv"),
        normalization="scale",
    )
    data = PretrainData(script, seed=1)
    train, dev = data.for_va_head()
    data.read_test_splits()
    whole, kept = data.for_emotion_head(train, dev, shared=False)
    assert whole is data.emotions and kept is None
    with caplog.at_level(logging.INFO):
        apart, kept = data.for_emotion_head(train, dev, shared=True)
    parts = [set(apart.part(rows)[0]) for rows in split_rows(apart)]
    old = [set(whole.part(rows)[0]) for rows in split_rows(whole)]
    measured = {*rated["text"][80:]}
    assert kept is train and parts[0] == old[0] - measured != old[0] and parts[1:] == old[1:]
    assert f"Left out of training emotion/: {len(old[0] & measured)} texts" in caplog.text
    everything = Dataset.from_dict({"text": classes["text"], "valence": rated["valence"] / 9})
    assert data.for_emotion_head(train, everything, shared=True) == (whole, None)  # no class would be left
