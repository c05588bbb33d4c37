"""Evaluation and prediction by the trainer, and rows by whichever door they come."""

import importlib.util
import logging
import multiprocessing

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TOY_NAMES, make_trainer, tiny_encoder, toy_dataset
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import EarlyStoppingCallback

from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments
from carl_hf.collator import CarlDataCollator
from carl_hf.configuration_carl import HEADS
from carl_hf.training.dev_probe import DevProbe

CLASSES = sorted(TOY_NAMES.values())


def named(size=24, seed=0) -> Dataset:
    """Texts with names alone."""
    words = [text.split()[0] for text in toy_dataset(size, seed)["text"]]
    return Dataset.from_dict({"text": toy_dataset(size, seed)["text"], "label": [TOY_NAMES[word] for word in words]})


def whole_model(**settings) -> CarlModel:
    return CarlModel.from_encoder(tiny_encoder(), projection_dim=8, heads=HEADS, classes=CLASSES, **settings)


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = list(rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


DOORS = {
    "list": list, "tuple": tuple, "map-style": Rows, "frame": lambda data: pd.DataFrame(list(data)),
    "dataset": lambda data: data,
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_rows_are_the_same_by_whichever_door_they_come(door, tmp_path, tokenizer):
    dev, trainers = toy_dataset(9, seed=8), []
    for make in (DOORS[door], DOORS["dataset"]):
        trainers.append(make_trainer(tmp_path, tokenizer, data=make(toy_dataset()), dev=make(dev)))
    one, other = trainers
    assert list(one.train_dataset) == list(other.train_dataset)
    assert one.evaluate()["eval_loss"] == other.evaluate()["eval_loss"] == one.evaluate(DOORS[door](dev))["eval_loss"]


def test_a_list_keeps_the_labels_that_its_first_row_lacks(tmp_path, tokenizer):
    rows = [{k: v for k, v in row.items() if v is not None} for row in toy_dataset(mixed=True)]
    trainer = make_trainer(tmp_path, tokenizer, data=rows)
    assert sorted(trainer.train_dataset.column_names) == ["arousal", "label", "text", "valence"]
    assert list(trainer.train_dataset["label"]) == list(toy_dataset(mixed=True)["label"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DatasetDict(train=toy_dataset(), test=toy_dataset()), "a DatasetDict with the parts train, test: pass one"),
        ({"text": ["a"], "valence": [0.0]}, "train_dataset is a dict"),
        (["a text", "another"], "train_dataset is a list.*list of rows such as"),
        ([], "train_dataset is a list"),
        ("emobank.csv", "train_dataset is a str"),
        (iter([]), "train_dataset is a list_iterator"),
        ([{"text": "a", "valence": "x"}, {"text": "b", "valence": 0.1}], "several types"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_data_set_is_refused_before_training(data, message, tmp_path, tokenizer):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, tokenizer, data=data)


def test_a_step_in_which_no_text_has_a_label_is_refused(tmp_path, tokenizer):
    other = toy_dataset().rename_columns({"valence": "v", "arousal": "a"})
    trainer = make_trainer(tmp_path, tokenizer, data=other.to_iterable_dataset())
    with pytest.raises(ValueError, match="No text of step 1 has a label that an objective uses"):
        trainer.train()
    trainer = make_trainer(tmp_path, tokenizer, data=other.rename_column("text", "t").to_iterable_dataset())
    with pytest.raises(ValueError, match="no column 'text' .it has t, v, a"):
        trainer.train()
    half = Dataset.from_list([*toy_dataset(), *({"text": "joy", "valence": None, "arousal": None} for _ in range(8))])
    trainer = make_trainer(tmp_path, tokenizer, data=half.to_iterable_dataset(), max_steps=4)
    with pytest.raises(ValueError, match="No text of step 4"):
        trainer.train()
    make_trainer(tmp_path, tokenizer, data=half.to_iterable_dataset(), max_steps=2, gradient_accumulation_steps=4,
                 per_device_train_batch_size=4).train()  # a step with some labels  # fmt: skip
    unlabelled = toy_dataset().remove_columns(["valence", "arousal"]).to_iterable_dataset()
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8, heads=[])
    make_trainer(tmp_path, tokenizer, model=model, data=unlabelled, objectives=["simcse", "ptd"]).train()


def test_losses_without_a_labelled_text_are_absent_from_an_evaluation(tmp_path, tokenizer, caplog):
    objectives = ["mccl", "ptd", "regression", "cross_entropy"]
    trainer = make_trainer(tmp_path, tokenizer, model=whole_model(), data=toy_dataset(mixed=True), probe_texts=0,
                           objectives=objectives, label_space="circle12")  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="carl_hf"):
        metrics = trainer.evaluate(Dataset.from_dict({"text": ["joywow", "woezzz joy"]}))
    assert not {"eval_loss", *(f"eval_{name}" for name in objectives)} & set(metrics)
    assert "counts for mccl and ptd and regression and cross_entropy (no label, or" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="carl_hf"):
        metrics = trainer.evaluate(named(9))
    assert "counts for mccl and regression (no label, or" in caplog.text and "eval_loss is without" in caplog.text
    expected = 0.2 * metrics["eval_ptd"] + metrics["eval_cross_entropy"]
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5) and "eval_mccl" not in metrics
    strange = Dataset.from_dict({"text": ["joywow", "woezzz joy"], "label": ["awe", "envy"]})
    assert "eval_loss" not in trainer.evaluate(strange)  # classes that the model does not have


def test_a_batch_without_two_texts_to_compare_lowers_no_mean(tmp_path, tokenizer):
    objectives = ["mccl", "rank_n_contrast", "circular", "simcse", "supcon", "regression"]
    trainer = make_trainer(tmp_path, tokenizer, model=whole_model(), data=toy_dataset(mixed=True), probe_texts=0,
                           objectives=objectives, label_space="circle12")  # fmt: skip
    rows = [{"text": text, "valence": v, "arousal": 0.2, "label": CLASSES[k]}
            for text, v, k in (("joy", 0.9, 0), ("woe", -0.9, 1), ("storm", 0.3, 0), ("calm", 0.1, 1),
                               ("joywow", 0.5, 0), ("woez", -0.2, 1), ("jo", 0.0, 0), ("wo", -0.4, 1))]  # fmt: skip
    whole, and_one = (trainer.evaluate(Dataset.from_list(texts)) for texts in (rows, [*rows, rows[0]]))
    for name in objectives[:-1]:
        assert and_one[f"eval_{name}"] == pytest.approx(whole[f"eval_{name}"], rel=0.02) != 0, name
    assert and_one["eval_regression"] != whole["eval_regression"]
    more = trainer.evaluate(Dataset.from_list([*rows, *rows[:2]]))  # of two texts, neither is nearer
    assert more["eval_rank_n_contrast"] == pytest.approx(whole["eval_rank_n_contrast"], rel=0.02)
    # a second batch without a pair of one class, and one of one class alone
    for second in ([{**rows[0], "label": name} for name in CLASSES], [{**row, "label": CLASSES[0]} for row in rows]):
        found = trainer.evaluate(Dataset.from_list([*rows, *second]))
        assert found["eval_supcon"] == pytest.approx(whole["eval_supcon"], rel=0.02)


def test_an_evaluation_leaves_the_random_state_as_it_was(tmp_path, tokenizer):
    trainer, before = make_trainer(tmp_path, tokenizer), torch.get_rng_state()
    found = trainer.evaluate(toy_dataset())["eval_loss"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert trainer.evaluate(toy_dataset())["eval_loss"] == found


def test_a_best_checkpoint_by_a_loss_that_is_absent_ends_in_one_line(tmp_path, tokenizer):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "load_best_model_at_end": True}
    trainer = make_trainer(tmp_path, tokenizer, model=whole_model(), data=toy_dataset(mixed=True), probe_texts=0,
                           dev=Dataset.from_dict({"text": ["a", "b"]}), metric_for_best_model="loss",
                           objectives=["cross_entropy"], **settings)  # fmt: skip
    with pytest.raises(ValueError, match="'eval_loss', which is not found in the evaluation metrics"):
        trainer.train()


def test_the_checkpoint_with_the_lowest_loss_is_kept(tmp_path, tokenizer):
    trainer = make_trainer(
        tmp_path, tokenizer, dev=toy_dataset(16, seed=8), eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, max_steps=6, load_best_model_at_end=True, metric_for_best_model="mccl", learning_rate=1e-2,
        warmup_steps=0,
    )  # fmt: skip
    trainer.train()
    losses = [h["eval_mccl"] for h in trainer.state.log_history if "eval_mccl" in h]
    assert trainer.state.best_metric == min(losses) < max(losses)


def test_numbers_of_a_class_label_are_its_names(tmp_path, tokenizer):
    numbers = named().cast_column("label", ClassLabel(names=CLASSES))
    assert isinstance(numbers[0]["label"], int)
    found = []
    for data in (numbers, named()):
        trainer = make_trainer(tmp_path, tokenizer, model=whole_model(), data=data, objectives=["cross_entropy"])
        trainer.train()
        found.append(trainer.evaluate(data)["eval_loss"])
    assert found[0] == found[1] > 0
    trainer = make_trainer(tmp_path, tokenizer, model=whole_model(), data=numbers.to_iterable_dataset(),
                           objectives=["cross_entropy"])  # fmt: skip
    with pytest.raises(ValueError, match="The label [0-9] of the text .* must be the name of a class"):
        trainer.train()


def test_predictions_are_the_embeddings_and_the_scores_of_the_heads_in_the_order_of_the_texts(tmp_path, tokenizer):
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction)
        error = prediction.predictions["valence_arousal"] - prediction.label_ids["valence_arousal"]
        return {"mse": np.nanmean(error**2)}

    model, dev = whole_model(), toy_dataset(19, seed=8, mixed=True)
    trainer = make_trainer(tmp_path, tokenizer, model=model, data=toy_dataset(mixed=True), dev=dev,
                           objectives=["mccl", "regression", "cross_entropy"],
                           include_for_metrics=["inputs"])  # fmt: skip
    trainer.compute_metrics = compute_metrics
    metrics, predicted = trainer.evaluate(), trainer.predict(dev)
    embedding = model.embed(dev["text"], tokenizer)
    expected = {
        "embedding": embedding, "valence_arousal": model.regressor(embedding),
        "class_scores": model.classifier(embedding),
    }  # fmt: skip
    assert predicted.predictions.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(torch.from_numpy(predicted.predictions[name]), value, atol=1e-5, rtol=1e-4)
    va = np.array([dev["valence"], dev["arousal"]], dtype=float).T
    np.testing.assert_allclose(predicted.label_ids["valence_arousal"], va, atol=1e-6)
    assert predicted.label_ids["class"].tolist() == [CLASSES.index(n) if n else -1 for n in dev["label"]]
    error = expected["valence_arousal"].detach().numpy() - va
    assert metrics["eval_mse"] == pytest.approx(np.nanmean(error**2), rel=1e-4)
    assert predicted.metrics["test_mse"] == metrics["eval_mse"]
    for ids, text in zip(seen[0].inputs, dev["text"], strict=True):
        assert tokenizer.decode(ids[ids >= 0], skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_predictions_have_every_text_in_its_order_whatever_training_does(tmp_path, tokenizer):
    data = toy_dataset(21).map(lambda row: {"length": len(row["text"])})
    trainer = make_trainer(tmp_path, tokenizer, data=data, dataloader_drop_last=True,
                           train_sampling_strategy="group_by_length")  # fmt: skip
    predicted = torch.from_numpy(trainer.predict(data).predictions["embedding"])
    torch.testing.assert_close(predicted, trainer.model.embed(data["text"], tokenizer), atol=1e-5, rtol=1e-4)
    assert trainer.args.dataloader_drop_last


def test_workers_that_persist_read_the_set_that_is_evaluated(tmp_path, tokenizer):
    trainer = make_trainer(
        tmp_path, tokenizer, dev=toy_dataset(9, seed=8), dataloader_num_workers=1, dataloader_persistent_workers=True
    )
    first, other = trainer.evaluate(), trainer.evaluate(toy_dataset(9, seed=3))
    assert first["eval_regression"] != other["eval_regression"]
    assert trainer.evaluate()["eval_regression"] == first["eval_regression"]
    assert multiprocessing.active_children() == []


def test_a_collator_of_other_classes_or_dimensions_is_refused(tmp_path, tokenizer):
    for classes, dominance, message in (
        (CLASSES[::-1], False, "The collator numbers the classes"), ([], False, r"the classes \(none\), the model"),
        (CLASSES, True, "dominance=False"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            CarlTrainer(
                whole_model(), CarlTrainingArguments(str(tmp_path), objectives=["cross_entropy"], use_cpu=True),
                CarlDataCollator(tokenizer, classes=classes, dominance=dominance), toy_dataset(mixed=True),
            )  # fmt: skip


def test_what_was_broken_off_is_not_in_the_next_evaluation(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, dev=toy_dataset(24, seed=8))
    good, bad = trainer.evaluate()["eval_loss"], toy_dataset(24, seed=3).to_list()
    bad[20]["valence"] = 7.0
    with pytest.raises(ValueError, match="do not lie in"):
        trainer.evaluate(bad)
    assert trainer.evaluate()["eval_loss"] == good


def test_labels_that_the_model_does_not_know_are_counted(tmp_path, tokenizer, caplog):
    dev = named(10, seed=8).map(lambda row, i: {"label": row["label"].upper() if i % 2 else row["label"]},
                                with_indices=True)  # fmt: skip
    trainer = make_trainer(tmp_path, tokenizer, model=whole_model(), data=named(), objectives=["cross_entropy"])
    trainer.predict(dev)
    assert "labels that are none of the model's classes, and count as missing: 'ANGER'" in caplog.text


def test_a_diverged_batch_leaves_no_finite_loss(tmp_path, tokenizer, monkeypatch):
    trainer = make_trainer(tmp_path, tokenizer, dev=toy_dataset(24, seed=8))
    embed, calls = CarlModel.embed_packed, []

    def diverge(self, *given):
        calls.append(1)
        return embed(self, *given) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(CarlModel, "embed_packed", diverge)
    metrics = trainer.evaluate()
    assert len(calls) > 2 and np.isnan(metrics["eval_loss"]) and np.isnan(metrics["eval_regression"])


@pytest.mark.parametrize("stopped", [False, True])
def test_the_card_has_the_metrics_of_the_weights_that_are_exported(stopped, tmp_path, tokenizer, monkeypatch):
    pytest.importorskip("sklearn")
    scores = iter([0.5, 0.9, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0])
    probe = {"valence_pearson": 0.0, "arousal_pearson": 0.0}
    monkeypatch.setattr(DevProbe, "__call__", lambda *_: dict.fromkeys([*probe, "va_pearson"], next(scores)))
    dev = toy_dataset(30, seed=8)
    trainer = make_trainer(
        tmp_path, tokenizer, data=toy_dataset(64), dev=dev, probe_texts=40, eval_strategy="steps",
        eval_steps=1, save_strategy="steps", save_steps=1, max_steps=6, load_best_model_at_end=True,
        callbacks=[EarlyStoppingCallback(2)] if stopped else [],
    )  # fmt: skip
    trainer.train()
    trainer.evaluate(toy_dataset(20, seed=3))  # of other texts: no metric of the card
    assert trainer.state.global_step == (4 if stopped else 6)
    assert {row.value for row in trainer._dev_results()} == {0.9}
    trainer.state.global_step, trainer._best_step = 7, None
    assert trainer._dev_results() == []
    value = trainer.evaluate(dev)["eval_valence_pearson"]
    assert {row.value for row in trainer._dev_results()} == {value}


def test_a_model_without_heads_predicts_embeddings_and_texts_need_no_labels(tmp_path, tokenizer):
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8, heads=[])
    trainer = make_trainer(tmp_path, tokenizer, model=model, objectives=["mccl", "ptd"], bf16=True)
    predicted = trainer.predict([{"text": "joy"}, {"text": "a longer text"}])
    assert list(predicted.predictions) == ["embedding"] and predicted.predictions["embedding"].dtype == np.float32
    assert predicted.predictions["embedding"].shape == (2, 16) and "test_loss" not in predicted.metrics
    with pytest.raises(ValueError, match="test_dataset is a DatasetDict"):
        trainer.predict(DatasetDict(test=toy_dataset()))


def test_each_of_several_evaluation_sets_is_probed(tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    sets = DatasetDict(near=toy_dataset(30, seed=8), far=toy_dataset(20, seed=9))
    settings = {"data": toy_dataset(64), "dev": sets, "probe_texts": 40, "eval_strategy": "steps", "eval_steps": 1,
                "save_strategy": "best", "load_best_model_at_end": True}  # fmt: skip
    trainer = make_trainer(tmp_path, tokenizer, metric_for_best_model="far_va_pearson", **settings)
    trainer.train()
    scores = [h["eval_far_va_pearson"] for h in trainer.state.log_history if "eval_far_va_pearson" in h]
    assert trainer.state.best_metric == max(scores)
    alone = make_trainer(tmp_path, tokenizer, **(settings | {"dev": sets["far"]}))
    metrics = make_trainer(tmp_path, tokenizer, metric_for_best_model="far_va_pearson", **settings).evaluate()
    assert metrics["eval_far_va_pearson"] == alone.evaluate()["eval_va_pearson"] != metrics["eval_near_va_pearson"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"report_to": "wandb"}, "wandb"),
        ({"optim": "adamw_bnb_8bit"}, "bitsandbytes"),
        ({"push_to_hub": True, "hub_model_id": "someone/model"}, "HF_HUB_OFFLINE is set, so the Hub is not asked"),
    ],
    ids=str,
)
def test_a_missing_package_or_hub_ends_in_one_line(settings, message, tmp_path, tokenizer):
    if message.isalpha() and importlib.util.find_spec(message):
        pytest.skip(f"{message} is installed")
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, tokenizer, **settings).train()


@pytest.mark.parametrize("name", ["model_init", "compute_loss_func"])
def test_arguments_of_the_trainer_that_would_not_be_used_are_refused(name, carl, tmp_path, tokenizer):
    args = CarlTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=f"does not use {name}"):
        CarlTrainer(model=None if name == "model_init" else carl, args=args, train_dataset=toy_dataset(),
                    processing_class=tokenizer, **{name: lambda *given: carl})  # fmt: skip
