"""Heads fine-tuned with their encoder: against transformers' forward pass, and what is kept and recorded."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_carl, tiny_config
from datasets import Dataset
from torch.nn.modules.module import register_module_forward_hook
from transformers import AutoModelForSequenceClassification

from carl_hf import export_emotion_classifier, export_va_regressor
from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.splits import split_rows
from carl_hf.encoders.classifiers import Classifier
from carl_hf.encoders.dropouts import set_dropout
from carl_hf.encoders.embedding import classifier_outputs
from carl_hf.export.folder import read_record
from carl_hf.export.head_training import HeadTraining, train_va_regressor
from carl_hf.export.task_heads import fit_temperature, fit_va_regressor

pytestmark = pytest.mark.usefixtures("measuring_packages")
FAST = HeadTraining(learning_rate=5e-4, epochs=12, patience=12, batch_size=8, fewest_texts=20)


def riddles(size, seed):
    """Texts whose valence and class tell whether two letters go together, which no single letter tells."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(2, size=(2, size))
    texts = [f"{'ab'[a] * 3} {'xy'[b] * 3} {rng.integers(10)}" for a, b in zip(first, second, strict=True)]
    return texts, first, (first != second).astype(int)


def in_parts(size):
    """Splits that share texts, so that what is learnt of these few is seen at once."""
    return np.resize(["train"] * 8 + ["validation", "test"], size).astype(object)


def va_riddles(size, seed):
    texts, first, odd = riddles(size, seed)
    return Dataset.from_dict({"text": texts, "valence": odd - 0.5, "arousal": first - 0.5})


@pytest.fixture
def carl():
    return tiny_carl(hidden_dropout_prob=0.0)


@pytest.fixture
def regressor(carl, tokenizer):
    return fit_va_regressor(carl, tokenizer, va_riddles(120, 0), va_riddles(40, 1))


@pytest.mark.parametrize("family, settings", [
    ("bert", {}), ("roberta", {}), ("distilbert", {}), ("electra", {}), ("deberta-v2", {}), ("mpnet", {}),
    ("modernbert", {"classifier_pooling": "cls"}), ("modernbert", {"classifier_pooling": "mean"}),
    # run as a whole: their heads do not read the first token alone
    ("albert", {"embedding_size": 8}), ("eurobert", {}), ("longformer", {"attention_window": 8}),
])  # fmt: skip
def test_logits_and_gradients_are_those_of_transformers(family, settings, tokenizer):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny_config(family, **settings)).eval()
    texts = ["joywow joywow", "woezzz", "wow", "a"]  # the longest first
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    weights = torch.randn(len(texts), 2)
    expected = model(**batch).logits
    (expected * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    classifier = Classifier(model, tokenizer)
    found = classifier.logits(tokenizer(texts)["input_ids"])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    (found * weights).sum().backward()
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4, msg=name)
    set_dropout(model.base_model, 0.0)
    found = [classifier.logits(tokenizer(texts)["input_ids"]) for _ in range(2) if model.train()]
    assert torch.equal(*found)  # no dropout in the head
    shuffled = [2, 0, 3, 1]
    predicted = classifier.predict(tokenizer([texts[i] for i in shuffled])["input_ids"])
    torch.testing.assert_close(predicted, expected[shuffled].detach(), atol=1e-5, rtol=1e-5)


def explained(model, tokenizer, data):
    """R2 of valence and arousal, their mean."""
    outputs = classifier_outputs(model, data["text"], tokenizer).numpy().clip(0, 1)
    truth = (np.stack([data["valence"], data["arousal"]], axis=1) + 1) / 2
    return np.mean([1 - np.mean((x - y) ** 2) / np.var(y) for x, y in zip(outputs.T, truth.T, strict=True)])


def test_the_best_epoch_on_development_texts_is_kept_and_the_same_seed_gives_the_same_weights(regressor, tokenizer):
    train, dev, again = va_riddles(120, 0), va_riddles(40, 1), copy.deepcopy(regressor)
    before = explained(regressor, tokenizer, dev)
    found = train_va_regressor(regressor, tokenizer, train, dev, FAST)
    assert found["chosen"] == "finetuned" and found["finetuned"] > found["frozen"] == pytest.approx(before, abs=1e-4)
    assert found["finetuned"] == pytest.approx(explained(regressor, tokenizer, dev), abs=1e-4)
    assert train_va_regressor(again, tokenizer, train, dev, FAST) == found and not regressor.training
    for one, other in zip(regressor.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_bfloat16_holds_for_training_and_for_choosing(regressor, tokenizer):
    seen = set()

    def look(module, inputs, output):
        if isinstance(module, torch.nn.Linear):
            seen.add((module.training, output.dtype))

    with register_module_forward_hook(look):
        train_va_regressor(
            regressor, tokenizer, va_riddles(120, 0), va_riddles(40, 1), replace(FAST, bf16=True, epochs=1)
        )
    assert {dtype for training, dtype in seen if training} == {torch.bfloat16} and (False, torch.bfloat16) in seen
    assert all(parameter.dtype == torch.float32 for parameter in regressor.parameters())


@pytest.mark.parametrize("rate", [30.0, 1e30])  # far off; not finite
def test_a_head_that_training_makes_worse_is_left_as_it_was(rate, regressor, tokenizer):
    before = copy.deepcopy(regressor.state_dict())
    training = HeadTraining(learning_rate=rate, epochs=9, batch_size=8, fewest_texts=20, patience=2)
    found = train_va_regressor(regressor, tokenizer, va_riddles(120, 0), va_riddles(40, 1), training)
    assert found["chosen"] == "frozen"
    assert found["finetuned"] is None if rate > 100 else found["finetuned"] < found["frozen"]
    assert all(torch.equal(value, before[name]) for name, value in regressor.state_dict().items())


def test_an_export_says_which_of_the_two_it_is_and_what_both_gave(carl, tokenizer, tmp_path):
    before = copy.deepcopy(carl.state_dict())
    data = {"train": va_riddles(120, 0), "dev": va_riddles(40, 1)}
    for name, training in (("few", HeadTraining()), ("trained", FAST)):
        export_va_regressor(carl, tokenizer, tmp_path / name, training=training, corpora=["toy"], **data)
    assert all(torch.equal(value, before[name]) for name, value in carl.state_dict().items())
    few = read_record(tmp_path / "few")["head"]
    assert few["frozen"] and few["development"] is None  # fewer than 1,000
    head, card = read_record(tmp_path / "trained")["head"], (tmp_path / "trained" / "README.md").read_text()
    assert not head["frozen"] and head["development"]["chosen"] == "finetuned"
    assert f"was {head['development']['frozen']:.4g} with the encoder frozen" in card
    assert f"and {head['development']['finetuned']:.4g} with all weights trained" in card
    assert "trained together with the encoder on toy" in card and "This model is the fine-tuned one." in card
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained")
    assert loaded.config.problem_type == "regression" and loaded.config.architectures == [
        "BertForSequenceClassification"
    ]
    assert explained(loaded, tokenizer, data["dev"]) == pytest.approx(head["development"]["finetuned"], abs=1e-4)


@pytest.mark.parametrize("multi_label", [False, True], ids=["one label", "multi-label"])
def test_a_fine_tuned_emotion_classifier_is_calibrated_afterwards(multi_label, carl, tokenizer, tmp_path):
    texts, _, odd = riddles(300, 0)
    odd = np.where(np.random.default_rng(1).random(300) < 0.2, 1 - odd, odd)  # nothing can tell all
    labels = np.stack([odd, odd], 1) > 0 if multi_label else odd
    corpus = ClassCorpus(texts, labels, ["odd", "even"], np.random.default_rng(0).permutation(in_parts(300)))
    settings = {"corpus": corpus, "corpus_name": "riddles", "max_length": 32}
    for name, training in (("frozen", None), ("trained", FAST)):
        export_emotion_classifier(carl, tokenizer, tmp_path / name, training=training, **settings)
    records = {name: read_record(tmp_path / name) for name in ("frozen", "trained")}
    head = records["trained"]["head"]
    found = head["development"]
    assert found["metric"] == ("macro F1" if multi_label else "accuracy") and not head["frozen"]
    assert found["finetuned"] > found["frozen"] and head["temperature"] != records["frozen"]["head"]["temperature"]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained").eval()
    texts, truth = corpus.part(split_rows(corpus)[1])
    logits = classifier_outputs(loaded, texts, tokenizer, max_length=32).numpy().astype(float)
    assert fit_temperature(logits, truth) == pytest.approx(1, abs=0.02)  # nothing is left to divide by
    assert (set(head["thresholds"]) == set(corpus.classes)) if multi_label else head["thresholds"] is None
    rows = {row["metric"]: row["value"] for row in records["trained"]["results"]}
    assert rows["f1"] > 0.6 and "ece" in rows
    assert re.search("This model is the fine-tuned one", (tmp_path / "trained" / "README.md").read_text())


def test_settings_that_train_nothing_are_refused():
    for wrong in ({"learning_rate": 0.0}, {"epochs": 0}, {"batch_size": 0}):
        with pytest.raises(
            ValueError, match="a learning rate above 0, and epochs, patience and a batch size of at least 1"
        ):
            HeadTraining(**wrong)
