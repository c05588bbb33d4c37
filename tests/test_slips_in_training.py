"""Slips of a caller that would give a wrong result without a word: each is refused, or said."""

import logging

import pytest
import torch
from conftest import make_trainer, saved, tiny_encoder, toy_dataset, write_table
from datasets import Dataset

from carl_hf import CarlDataCollator, CarlModel, CarlTrainer, CarlTrainingArguments, export_encoder, load_va_dataset
from carl_hf.commands.heads import settled_pooling
from carl_hf.data.labelled import read_emotion


def labelled(size=24):
    rows = toy_dataset(size)
    return rows.add_column("label", ["glum" if "woe" in text else "glad" for text in rows["text"]])


def test_a_metric_of_the_caller_does_not_take_the_name_of_the_trainers_own(tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    trainer = make_trainer(tmp_path, tokenizer, dev=toy_dataset(12, seed=1))
    trainer.compute_metrics = lambda found: {"valence_pearson": 0.5, "mine": 0.25}
    with pytest.raises(ValueError, match="compute_metrics returns valence_pearson, as the trainer's own"):
        trainer.evaluate()
    trainer.compute_metrics = lambda found: {"mine": 0.25}
    assert trainer.evaluate()["eval_mine"] == 0.25


def test_heads_that_no_objective_trains_are_named(tmp_path, tokenizer, caplog):
    model = CarlModel.from_encoder(tiny_encoder(), heads=["regressor"])
    make_trainer(tmp_path, tokenizer, model=model, objectives=["mccl"])
    assert "No objective trains the model's regressor" in caplog.text
    caplog.clear()
    make_trainer(tmp_path, tokenizer, model=model, objectives=["mccl", "regression"])
    make_trainer(tmp_path, tokenizer, model=CarlModel.from_encoder(tiny_encoder(), heads=()), objectives=["mccl"])
    assert not caplog.records


def test_the_papers_settings_without_its_layers_are_named(tmp_path, tokenizer, caplog):
    for layers in ("none", "prediction"):
        caplog.clear()
        model = CarlModel.from_encoder(tiny_encoder(), heads=(), contrast_layers=layers, projection_dim=8)
        args = CarlTrainingArguments(str(tmp_path), preset="paper", per_device_train_batch_size=8, use_cpu=True)
        CarlTrainer(model=model, args=args, train_dataset=toy_dataset(), processing_class=tokenizer)
        assert ("contrast_layers='prediction'" in caplog.text) == (layers == "none")


@pytest.mark.parametrize("map_of, suspected", [
    (lambda x: x, False), (lambda x: (x + 1) / 2, True), (lambda x: -abs(x), True),
    (lambda x: abs(round(x)), False),  # few different numbers may be of any scale
])  # fmt: skip
def test_labels_on_one_side_of_the_scale_are_suspected(map_of, suspected, tmp_path, tokenizer, caplog):
    rows = toy_dataset(24).map(lambda row: {name: map_of(row[name]) for name in ("valence", "arousal")})
    make_trainer(tmp_path, tokenizer, data=rows)
    assert ("on one side of 0, the middle of the scale" in caplog.text) == suspected


def test_a_known_corpus_keeps_its_scale():
    with pytest.raises(ValueError, match=r"demo is rated from -1 to 1: leave scale out"):
        load_va_dataset("demo", scale=(1, 9))
    assert len(load_va_dataset("demo", scale=(-1, 1), split="validation")) == 301


def test_a_transform_is_refused_and_a_torch_data_set_said_to_be_read_once(tmp_path, tokenizer, caplog):
    rows = toy_dataset()
    with pytest.raises(ValueError, match="train_dataset has a transform, which training would not run"):
        make_trainer(tmp_path, tokenizer, data=rows.with_transform(lambda batch: batch))
    make_trainer(tmp_path, tokenizer, data=rows.with_format("torch"))
    assert "is read once" not in caplog.text

    class Drawn(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            return {**rows[index], "text": rows[index]["text"] + "a" * int(torch.randint(3, ()))}

    make_trainer(tmp_path, tokenizer, data=Drawn())
    assert "train_dataset is read once, before the first step" in caplog.text


def test_an_encoder_goes_on_with_the_pooling_that_it_was_exported_for(tmp_path, tokenizer, caplog):
    caplog.set_level(logging.INFO)
    model = CarlModel.from_encoder(tiny_encoder(), pooling="mean").eval()
    folder = export_encoder(model, tokenizer, tmp_path / "mean", max_length=32)
    assert settled_pooling(None, str(folder)) == "mean" and "which is kept" in caplog.text
    assert settled_pooling("cls", str(folder)) == settled_pooling(None, "minilm-l6") == "cls"
    caplog.clear()
    CarlModel.from_encoder(folder, pooling="mean")
    CarlModel.from_encoder(saved(tiny_encoder(), tokenizer, tmp_path / "plain"), pooling="mean")
    assert not caplog.records
    CarlModel.from_encoder(folder)
    assert "was trained with pooling mean, and goes on with cls: pooling='mean'" in caplog.text


@pytest.mark.parametrize("own, given, message", [
    ({"max_length": 8}, {"max_length": 30}, "max_length=8, and would need 30"),
    ({"chunks": 1}, {"gradient_cache_parts": 2}, "chunks=1, and would need 2"),
    ({"classes": ["glad", "glum"]}, {"objectives": ["circular"], "label_space": None}, "angles="),
])  # fmt: skip
def test_a_collator_of_the_callers_does_what_the_arguments_say(own, given, message, tmp_path, tokenizer):
    settings = {"max_length": 32, "per_device_train_batch_size": 8, "use_cpu": True, **given}
    rows = toy_dataset()
    if "classes" in own:
        (space := tmp_path / "space.csv").write_text("name,angle\nglad,10\nglum,200\n")
        settings["label_space"], rows = str(space), labelled().remove_columns(["valence", "arousal"])
    args = CarlTrainingArguments(str(tmp_path), **settings)
    model = CarlModel.from_encoder(tiny_encoder(), heads=args.heads)
    collator = CarlDataCollator(tokenizer, **{"max_length": settings["max_length"], **own})
    with pytest.raises(ValueError, match=message):
        CarlTrainer(model=model, args=args, train_dataset=rows, data_collator=collator, processing_class=tokenizer)


def test_a_collator_of_the_callers_may_have_rows_of_its_own(tmp_path, tokenizer):
    collate = CarlDataCollator(tokenizer, max_length=32)

    def own(rows):
        return collate([{"text": row["comment"], "valence": row["stars"] / 5, "arousal": 0.1} for row in rows])

    rows = [{"comment": f"joy {i}", "stars": i % 5} for i in range(16)]
    args = CarlTrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, max_steps=1, use_cpu=True, remove_unused_columns=False,
        report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    for given in (rows, Dataset.from_list(rows)):
        model = CarlModel.from_encoder(tiny_encoder(), heads=args.heads)
        sets = {"train_dataset": given, "eval_dataset": given}
        trainer = CarlTrainer(model, args, **sets, data_collator=own, processing_class=tokenizer)
        assert trainer.train().global_step == 1 and trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(ValueError, match="train_dataset has no column 'text'"):
        CarlTrainer(model, args, train_dataset=given, processing_class=tokenizer)


def test_a_class_of_a_stream_that_the_model_lacks_is_named(tokenizer, caplog):
    collate = CarlDataCollator(tokenizer, classes=["glad", "glum"])
    batch = collate([{"text": "joy", "label": label} for label in ("glad", "Glad", None)])
    assert sorted(batch["class"].tolist()) == [-1, -1, 0]
    collate([{"text": "joy", "label": label} for label in ("other", "Glad", None)])  # said once
    assert [record.getMessage() for record in caplog.records if "labels" in record.getMessage()] == [
        "Texts have labels that are no classes of the model, such as 'Glad': they count as missing."
    ]


def test_classes_that_look_like_one_are_named(tmp_path, tokenizer, caplog):
    rows = [{"text": f"text {i}", "label": ("Joy", "joy", "woe")[i % 3]} for i in range(24)]
    assert len(read_emotion(write_table(tmp_path / "mine.csv", rows), None).classes) == 3
    assert "'Joy' and 'joy' are classes of their own" in caplog.text
    caplog.clear()
    rows = labelled().map(lambda row, i: {"label": ["1", "1.0", "2"][i % 3]}, with_indices=True)
    model = CarlModel.from_encoder(tiny_encoder(), heads=["classifier"], classes=["1", "1.0", "2"])
    make_trainer(tmp_path, tokenizer, model=model, data=rows, objectives=["cross_entropy"])
    assert "'1' and '1.0' are classes of their own" in caplog.text


def test_labels_of_an_evaluation_that_are_no_names_are_refused_before_training(tmp_path, tokenizer):
    dev = toy_dataset(8).add_column("label", [0, 1] * 4)
    model = CarlModel.from_encoder(tiny_encoder(), heads=["classifier"], classes=["glad", "glum"])
    with pytest.raises(ValueError, match="eval_dataset.*label"):
        make_trainer(tmp_path, tokenizer, model=model, data=labelled(), dev=dev, objectives=["cross_entropy"])
    make_trainer(tmp_path, tokenizer, dev=dev, objectives=["mccl"])  # which no objective reads


def test_a_training_is_resumed_with_the_metric_that_chose_its_best_checkpoint(tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}

    def trainer(**settings):
        dev = toy_dataset(12, seed=1)
        return make_trainer(tmp_path, tokenizer, dev=dev, **{**best, "load_best_model_at_end": True, **settings})

    trainer(metric_for_best_model="loss").train()
    with pytest.raises(ValueError, match="metric_for_best_model loss, now va_pearson"):
        trainer(max_steps=3).train(resume_from_checkpoint=True)
    trainer(max_steps=3, metric_for_best_model="eval_loss").train(resume_from_checkpoint=True)
    trainer(max_steps=4, load_best_model_at_end=False).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("settings, message", [
    ({"lr_scheduler_type": "warmup_stable_decay"}, "The schedule warmup_stable_decay does not take these"),
    ({"lr_scheduler_kwargs": {"foo": 1}}, "The schedule cosine does not take these.*foo"),
])  # fmt: skip
def test_a_schedule_that_lacks_a_setting_is_named(settings, message, tmp_path, tokenizer):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, tokenizer, max_steps=2, **settings).train()


def test_slips_that_ended_in_tracebacks(tmp_path, tokenizer, caplog):
    with pytest.raises(ValueError, match="gradient_accumulation_steps must be a whole number, at least 1"):
        CarlTrainingArguments(str(tmp_path), gradient_accumulation_steps=0)
    with pytest.raises(ValueError, match="are no numbers, but"):
        make_trainer(tmp_path, tokenizer).data_collator([{"text": "a", "valence": "0.5", "arousal": "0.1"}])
    for rows, said in ((len(tokenizer) + 64, False), (1100, True)):
        CarlModel.from_encoder(tiny_encoder(vocab_size=rows)).embed(["joy"], tokenizer)
        assert (f"The tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows" in caplog.text) == said
