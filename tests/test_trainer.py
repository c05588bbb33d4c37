"""The trainer: what learns, the EMA recurrence, resuming against an uninterrupted run, evaluation and its probe."""

import copy
import logging
import math
import os

import numpy as np
import pytest
import torch
from conftest import TOY_NAMES, double_model, make_trainer, projected, tiny_encoder, toy_dataset
from datasets import Dataset, DatasetDict
from distributed_worker import DoubleLabels
from test_modeling import FAMILIES
from transformers import TrainerCallback, TrainingArguments, set_seed

from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments
from carl_hf.momentum import cosine_momentum


def test_accumulation_averages_the_gradients_of_its_batches(tmp_path, tokenizer):
    model = double_model()
    trainer = make_trainer(
        tmp_path, tokenizer, model=model, gradient_accumulation_steps=2, max_grad_norm=0.0, perturb_half=False
    )
    batches = [trainer.data_collator(list(toy_dataset(8, seed=s))) for s in (4, 5)]
    trainer.current_gradient_accumulation_steps = 2
    for batch in batches:
        trainer.training_step(model, dict(batch, va=batch["va"].double()))
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    singles = []
    for batch in batches:
        model.zero_grad()
        trainer.compute_loss(model, dict(batch, va=batch["va"].double())).backward()
        singles.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, (singles[0][name] + singles[1][name]) / 2, atol=1e-12, rtol=1e-9)


def used(name: str, weights: dict) -> bool:
    if name.startswith("detector"):
        return "ptd" in weights
    if name.startswith("regressor"):
        return "regression" in weights
    if "mccl" in weights:
        return True
    return name.startswith("online.encoder") and "pooler" not in name


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"preset": "paper"}, {"objectives": ["mccl", "regression"]}, {"objectives": ["ptd"]},
        {"objectives": ["mccl", "ptd"], "token_choice": "random"}, {"gradient_cache_parts": 3, "bf16": True},
        {"momentum": 0.0, "activation_checkpointing": True}, {"momentum": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_every_used_parameter_learns_and_the_target_gets_no_gradient(settings, tmp_path, tokenizer):
    class NoTargetGradient(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            assert all(p.grad is None for p in model.target.parameters())

    set_seed(0)
    model = projected()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    # weight decay would move a parameter that gets no gradient but zero
    trainer = make_trainer(
        tmp_path, tokenizer, model=model, callbacks=[NoTargetGradient()], weight_decay=0.0, warmup_steps=0,
        learning_rate=1e-2, **settings,
    )  # fmt: skip
    trainer.train()
    letter, position = tokenizer.convert_tokens_to_ids("o"), 3  # which every text has
    for name, parameter in model.named_parameters():
        if name.startswith("target"):
            continue
        moved = parameter.detach() != before[name]
        if name.endswith(("word_embeddings.weight", "position_embeddings.weight")):
            moved = moved[letter if "word" in name else position]
        if name.endswith("token_type_embeddings.weight"):
            moved = moved[:1]
        if name.endswith("key.bias"):
            continue  # its gradient is exactly zero in theory: softmax does not see it
        assert moved.any() == used(name, trainer.args.weights), name
    target_moved = any((p.detach() != before[n]).any() for n, p in model.named_parameters() if n.startswith("target"))
    assert target_moved == (settings.get("momentum") != 1.0)
    if settings.get("momentum") == 0:
        assert all(map(torch.equal, model.target.parameters(), model.online.parameters()))
    logged = trainer.state.log_history[0]
    expected = {"loss", "momentum", "embedding_std", "effective_rank", "target_distance", *trainer.args.weights}
    if "mccl" in trainer.args.weights or set(trainer.args.weights) == {"ptd"}:
        expected |= {"mccl", "zero_label_fraction"}
    if "ptd" in trainer.args.weights:
        expected |= {"ptd", "detector_auc", "changed_coordinates"}
    assert expected <= set(logged) and all(math.isfinite(logged[k]) for k in expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains(family, tmp_path, tokenizer):
    preset, pooling = [("default", "mean"), ("paper", "cls")][FAMILIES.index(family) % 2]
    model = CarlModel.from_encoder(tiny_encoder(family), pooling=pooling, projection_dim=8)
    before = copy.deepcopy(model.encoder.state_dict())
    trainer = make_trainer(tmp_path, tokenizer, model=model, preset=preset, max_steps=2, warmup_steps=0)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
    assert sum(not torch.equal(v, before[k]) for k, v in model.encoder.state_dict().items()) > len(before) / 2


def test_target_follows_the_recurrence(tmp_path, tokenizer):
    model = double_model()
    expected = {n: p.detach().clone() for n, p in model.target.named_parameters()}

    class Recurrence(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            m = cosine_momentum(state.global_step, state.max_steps, 0.5 ** (1 / 3))
            for name, p in model.online.named_parameters():
                expected[name] = m * expected[name] + (1 - m) * p.detach()

    trainer = make_trainer(
        tmp_path, tokenizer, model=model, max_steps=9, momentum_half_life=3, callbacks=[Recurrence()]
    )
    trainer.data_collator = DoubleLabels(tokenizer)
    trainer.train()
    for name, p in model.target.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], atol=1e-10, rtol=0)


def test_the_constructor_changes_neither_arguments_nor_environment(carl, tmp_path, tokenizer):
    args = CarlTrainingArguments(str(tmp_path), per_device_train_batch_size=8, max_steps=2, use_cpu=True)
    before, environment = dict(vars(args)), dict(os.environ)
    stream = toy_dataset().to_iterable_dataset()
    trainer = CarlTrainer(model=carl, args=args, train_dataset=stream, processing_class=tokenizer)
    assert vars(args) == before and dict(os.environ) == environment
    assert trainer.args.ignore_data_skip and not args.ignore_data_skip  # a stream is resumed by its position


def train(*args, **settings) -> CarlTrainer:
    trainer = make_trainer(*args, **settings)
    trainer.train()
    return trainer


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"token_choice": "random", "gradient_accumulation_steps": 2},
        {"streamed": True}, {"streamed": True, "gradient_accumulation_steps": 2},
        {"streamed": True, "dataloader_num_workers": 1}, {"objectives": ["proxy_anchor"], "proxy_learning_rate": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(settings, tmp_path, tokenizer):
    """28 texts, 8 of them a batch: the runs pass them more than once, and are stopped within a pass."""
    settings = {"max_steps": 10, "save_strategy": "steps", "save_steps": 4, "learning_rate": 1e-2, **settings}
    streamed, heads = settings.pop("streamed", False), {"heads": ["proxies"], "classes": sorted(TOY_NAMES.values())}

    def trained(folder, resume=None, **more):
        data = toy_dataset(28, mixed=True) if "objectives" in settings else toy_dataset(28)
        model = CarlModel.from_encoder(tiny_encoder(), **heads) if "objectives" in settings else None
        data = data.to_iterable_dataset().shuffle(1, buffer_size=8) if streamed else data
        trainer = make_trainer(tmp_path / folder, tokenizer, model=model, data=data, **settings, **more)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = trained("whole")
    assert trained("half", callbacks=[StopAt(4)]).state.global_step == 4
    resumed = trained("half", str(tmp_path / "half" / "checkpoint-4"))
    assert resumed.state.global_step == 10
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(
        whole.optimizer.state_dict()["state"].values(), resumed.optimizer.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(a[k], b[k]) for k in a)
    logs = [[(h["step"], h["loss"], h["epoch"]) for h in t.state.log_history if "loss" in h] for t in (whole, resumed)]
    assert logs[0] == logs[1] and (not streamed or logs[0][-1][2] == 1)


def test_a_perturbation_that_is_lost_is_reported_once(tmp_path, tokenizer, caplog):
    wide = CarlModel.from_encoder(tiny_encoder(initializer_range=0.5), projection_dim=8)
    with caplog.at_level(logging.WARNING, logger="carl_hf"):
        make_trainer(tmp_path, tokenizer, model=wide, preset="paper", max_steps=4).train()
    assert caplog.text.count("does not survive the dtype") == 1 and "--perturbation_relative true" in caplog.text
    caplog.clear()
    trainer = make_trainer(tmp_path, tokenizer)
    with caplog.at_level(logging.WARNING, logger="carl_hf"):
        trainer.train()
    assert "survive" not in caplog.text and trainer.state.log_history[0]["changed_coordinates"] > 0.99
    # in bfloat16 a radius that float32 can represent is lost
    trainer = train(tmp_path, tokenizer, bf16=True, perturbation_radius=1e-4)
    assert trainer.state.log_history[0]["changed_coordinates"] < 0.1


def test_evaluation_logs_the_same_metrics_weighted_by_texts_and_trains_nothing(tmp_path, tokenizer):
    trainer = make_trainer(
        tmp_path, tokenizer, dev=toy_dataset(9, seed=8), eval_strategy="steps", eval_steps=3, token_choice="random"
    )
    trainer.train()
    logged = [h for h in trainer.state.log_history if "eval_loss" in h]
    assert len(logged) == 1 and {"eval_mccl", "eval_ptd", "eval_zero_label_fraction"} <= set(logged[0])
    before, state = copy.deepcopy(trainer.model.state_dict()), torch.get_rng_state()
    first, second = trainer.evaluate(), trainer.evaluate()  # the same random choices; those of training are untouched
    assert first["eval_loss"] == second["eval_loss"] and torch.equal(state, torch.get_rng_state())
    # batches of 8 texts and of 1: the loss and its parts are weighted alike
    parts = sum(weight * first[f"eval_{name}"] for name, weight in trainer.args.weights.items())
    assert parts == pytest.approx(first["eval_loss"], rel=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert all(p.grad is None for p in trainer.model.target.parameters())


def test_partial_batches_are_not_trained_on(tmp_path, tokenizer):
    trainer = make_trainer(
        tmp_path, tokenizer, data=toy_dataset(21), max_steps=-1, num_train_epochs=1, dev=toy_dataset(9)
    )
    assert len(trainer.get_train_dataloader()) == 2 and len(trainer.get_eval_dataloader()) == 2


def test_frozen_word_embeddings_still_give_saliency(carl, tmp_path, tokenizer):
    carl.encoder.embeddings.requires_grad_(False)
    before = copy.deepcopy(carl.encoder.state_dict())
    make_trainer(tmp_path, tokenizer, model=carl, warmup_steps=0).train()
    for name, value in carl.encoder.state_dict().items():
        if name.startswith("embeddings"):
            assert torch.equal(value, before[name])
    assert not torch.equal(
        carl.encoder.state_dict()["encoder.layer.0.output.dense.weight"], before["encoder.layer.0.output.dense.weight"]
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"per_device_train_batch_size": 1}, "at least 2 texts"),
        ({"per_device_eval_batch_size": 1, "dev": toy_dataset(8)}, "A batch of an evaluation needs at least 2 texts"),
        ({"train_sampling_strategy": "group_by_length"}, "lengths in a column 'length'. It saves nothing"),
        ({"per_device_train_batch_size": 64}, "24 training texts do not fill one batch of 64"),
        ({"data": Dataset.from_dict({"text": ["a"]})}, "train_dataset has no column 'valence' or 'arousal'"),
        ({"dev": Dataset.from_dict({"text": ["a"], "valence": [0.0], "arousal": [2.0]})}, "row 0: arousal is 2,"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(settings, message, tmp_path, tokenizer):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, tokenizer, **settings)


def test_a_training_of_a_few_steps_is_warned_of_unless_it_was_asked_for(tmp_path, tokenizer, caplog):
    settings = {"data": toy_dataset(24), "per_device_train_batch_size": 8}
    with caplog.at_level(logging.WARNING, logger="carl_hf"):
        make_trainer(tmp_path, tokenizer, **settings, max_steps=5)
        make_trainer(tmp_path, tokenizer, **settings, max_steps=-1, num_train_epochs=17)
        assert "steps" not in caplog.text
        make_trainer(tmp_path, tokenizer, **settings, max_steps=-1, num_train_epochs=16)
    assert "24 training texts make 48 steps" in caplog.text and "--num_train_epochs 10" in caplog.text


def test_other_arguments_or_no_tokenizer_are_refused(carl, tmp_path, toys, tokenizer):
    with pytest.raises(ValueError, match="trains a CarlModel, got BertModel"):
        make_trainer(tmp_path, tokenizer, model=carl.encoder)
    with pytest.raises(ValueError, match="has 32 positions.*lower --max_length"):
        make_trainer(tmp_path, tokenizer, model=CarlModel.from_encoder(tiny_encoder(max_position_embeddings=32)))
    with pytest.raises(ValueError, match="needs CarlTrainingArguments"):
        CarlTrainer(model=carl, args=TrainingArguments(str(tmp_path)), train_dataset=toys)
    with pytest.raises(ValueError, match="processing_class=tokenizer"):
        CarlTrainer(model=carl, args=CarlTrainingArguments(str(tmp_path), use_cpu=True), train_dataset=toys)


@pytest.mark.parametrize("save_strategy", ["steps", "best"])
def test_evaluation_probes_the_dev_texts_and_keeps_the_best_checkpoint(save_strategy, tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    trainer = train(
        tmp_path, tokenizer, data=toy_dataset(64), dev=toy_dataset(30, seed=8), eval_strategy="steps", eval_steps=1,
        save_strategy=save_strategy, save_steps=1, save_total_limit=1, max_steps=4, load_best_model_at_end=True,
        probe_texts=40, learning_rate=5e-3,
    )  # fmt: skip
    logged = [h for h in trainer.state.log_history if "eval_va_pearson" in h]
    assert len(logged) == 4 and all(h["eval_probe_seconds"] > 0 for h in logged)
    scores = [h["eval_va_pearson"] for h in logged]
    assert len(set(scores)) > 1  # the encoder has changed in between
    assert scores[0] == pytest.approx((logged[0]["eval_valence_pearson"] + logged[0]["eval_arousal_pearson"]) / 2)
    assert trainer.args.metric_for_best_model == "va_pearson" and trainer.state.best_metric == max(scores)
    assert tmp_path / f"checkpoint-{1 + int(np.argmax(scores))}" in tmp_path.iterdir()
    assert trainer.evaluate()["eval_va_pearson"] == pytest.approx(max(scores), abs=1e-6)  # the best one is loaded


def test_the_dev_probe_equals_a_probe_by_hand_and_can_be_left_out(tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    from carl_hf.evaluation.valence_arousal import labels_of, ridge_predictions

    train, dev = toy_dataset(64), toy_dataset(30, seed=8)
    trainer = make_trainer(tmp_path, tokenizer, data=train, dev=dev, probe_texts=40)
    figures = trainer.evaluate()
    rows = np.random.default_rng(trainer.args.seed).permutation(64)[:40]
    chosen = train.select(rows)
    vectors = trainer.model.embed(list(chosen["text"]) + list(dev["text"]), tokenizer).numpy()
    labels = labels_of(chosen)
    made = ridge_predictions(vectors[:32], labels[:32], vectors[32:40], labels[32:], vectors[40:])
    expected = np.corrcoef(made[:, 1], dev["arousal"])[0, 1]
    assert figures["eval_arousal_pearson"] == pytest.approx(expected, abs=1e-6)
    without = make_trainer(tmp_path, tokenizer, data=train, dev=dev, probe_texts=0).evaluate()
    assert not [name for name in without if "pearson" in name]


NAMES = Dataset.from_dict({"text": ["a b", "c d"] * 8, "label": ["joy", "anger"] * 8})
STARS = toy_dataset(16).remove_columns("arousal")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"probe_texts": 0}, "there is no probe"),
        ({"metric_for_best_model": "supcon"}, "by supcon, which is none of the objectives"),
        ({"metric_for_best_model": "f1"}, "by f1, which no evaluation has. Name another .*va_pearson, .*loss"),
        ({"metric_for_best_model": "detector_auc", "objectives": ["mccl"]}, "by detector_auc, which no"),
        ({"dataloader_num_workers": 1, "dataloader_prefetch_factor": 0}, "prefetch_factor must be at least 1, got 0"),
        ({"data": NAMES, "dev": NAMES, "objectives": ["circular"], "label_space": "circle12"},
         r"do not both carry the labels .*\(label_accuracy, loss\)"),
        ({"data": STARS, "dev": STARS}, r"chosen by va_pearson.*\(valence_pearson, loss\)"),
        ({"dev": DatasetDict(near=toy_dataset(9), far=toy_dataset(9))}, "near_va_pearson.*far_loss"),
    ],
    ids=["no-probe", "no-objective", "no-metric", "no-detector", "prefetch", "names", "valence", "several"],
)  # fmt: skip
def test_a_best_checkpoint_by_what_is_not_measured_is_refused_before_training(settings, message, tmp_path, tokenizer):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1,
            "save_steps": 1, "dev": toy_dataset(13), "metric_for_best_model": "va_pearson"}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, tokenizer, **best | settings)
    chosen = make_trainer(tmp_path, tokenizer, **best | {"probe_texts": 0, "metric_for_best_model": None})
    assert chosen.args.metric_for_best_model == "loss"


def test_a_diverged_encoder_gets_the_worst_score(tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    trainer = make_trainer(tmp_path, tokenizer, data=toy_dataset(64), dev=toy_dataset(30, seed=8), probe_texts=40)
    trainer.model.encoder.embeddings.LayerNorm.weight.data.fill_(math.nan)
    assert trainer.evaluate()["eval_va_pearson"] == -1
