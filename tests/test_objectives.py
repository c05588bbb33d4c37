"""Objectives in training: what they need, what learns when, and what a checkpoint keeps."""

import math

import numpy as np
import pytest
import torch
from conftest import TOY_NAMES, make_trainer, tiny_encoder, toy_dataset
from datasets import Dataset
from test_step import EVERYTHING
from transformers import TrainerCallback, set_seed

from carl_hf import CarlConfig, CarlDataCollator, CarlModel, CarlTrainingArguments
from carl_hf.data.mixing import mix_datasets
from carl_hf.objectives import OBJECTIVES, parse_objectives
from carl_hf.training.dev_probe import DevProbe
from carl_hf.training.monitor import step_metrics

CLASSES = sorted(TOY_NAMES.values())


def model_for(objectives, pooling="cls", **overrides) -> CarlModel:
    set_seed(0)
    heads = sorted({h for name in parse_objectives(objectives) if (h := OBJECTIVES[name].head)})
    return CarlModel.from_encoder(
        tiny_encoder(**overrides), projection_dim=8, heads=heads, classes=CLASSES, pooling=pooling
    )


def train(tmp_path, tokenizer, objectives, *, model=None, **settings):
    trainer = make_trainer(
        tmp_path, tokenizer, model=model or model_for(objectives),
        **{"data": toy_dataset(mixed=True), "objectives": objectives, "label_space": "circle12", **settings},
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("name", "with_ptd"), [("mccl", True), *((name, False) for name in OBJECTIVES if name != "ptd")]
)
def test_every_objective_lowers_its_loss_and_logs_it(name, with_ptd, tmp_path, tokenizer):
    data = toy_dataset(64, mixed=True)
    trainer = make_trainer(
        tmp_path, tokenizer, model=model_for([name], pooling="mean"), data=data, dev=data, max_steps=20,
        learning_rate=5e-3, objectives=[name, "ptd"] if with_ptd else [name], head_warmup_epochs=0.0,
        proxy_learning_rate=0.05, per_device_train_batch_size=16, label_space="circle12", bf16=not with_ptd,
    )  # fmt: skip
    before = trainer.evaluate()[f"eval_{name}"]
    trainer.train()
    assert trainer.evaluate()[f"eval_{name}"] < 0.97 * before
    entries = [entry for entry in trainer.state.log_history if name in entry]
    assert len(entries) == 20 and all(math.isfinite(entry[name]) for entry in entries)
    assert all(("ptd" in entry) == with_ptd for entry in entries)
    if with_ptd:  # texts that carry no label of this objective are not attacked, and do not count
        assert all(entry["changed_coordinates"] > 0.99 for entry in entries)


def test_the_encoder_waits_while_the_heads_warm_up(tmp_path, tokenizer):
    model = model_for(["proxy_anchor"])
    encoder = {n: p.detach().clone() for n, p in model.encoder.named_parameters()}
    proxies = model.proxies.weight_PH.detach().clone()
    seen = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            moved = any((p.detach() != encoder[n]).any() for n, p in model.encoder.named_parameters())
            seen[state.global_step] = (moved, (model.proxies.weight_PH.detach() != proxies).any().item())

    # 24 texts in batches of 8 are 3 steps an epoch; without its setting, proxy_anchor warms up for one epoch
    train(tmp_path, tokenizer, ["proxy_anchor"], model=model, max_steps=6, warmup_steps=0, callbacks=[Watch()])
    assert seen == {step: (step > 3, True) for step in range(1, 7)}


def test_proxies_have_their_own_learning_rate_and_are_kept_with_their_classes(tmp_path, tokenizer):
    trainer = train(
        tmp_path, tokenizer, ["proxy_anchor"], max_steps=4, learning_rate=1e-3, proxy_learning_rate=0.1,
        warmup_steps=0, lr_scheduler_type="constant",
    )  # fmt: skip
    rates = {p.data_ptr(): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    proxies = trainer.model.proxies.weight_PH.detach()
    assert rates.pop(proxies.data_ptr()) == 0.1 and set(rates.values()) == {1e-3}
    assert len(rates) + 1 == sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    trainer.save_model()
    loaded = CarlModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.proxies.weight_PH, proxies)
    assert loaded.config.classes == CLASSES and loaded.classifier is None


def test_each_loss_uses_the_texts_that_carry_its_label(tmp_path, tokenizer):
    rows = list(toy_dataset(24, mixed=True))
    model = model_for(EVERYTHING)
    trainer = make_trainer(
        tmp_path, tokenizer, model=model.eval(), data=Dataset.from_list(rows), objectives=EVERYTHING,
        label_space="circle12", head_warmup_epochs=0.0,
    )  # fmt: skip

    def losses(rows):
        trainer.compute_loss(model, trainer.data_collator(rows))
        return {name: value.item() for name, (value, _) in step_metrics(trainer._step).items()}

    mixed = losses(rows)
    named, numbered = ([r for r in rows if r[c] is not None] for c in ("label", "valence"))
    assert len(named) == len(numbered) == 16
    for subset, names in ((named, ["proxy_anchor", "cross_entropy", "supcon"]), (numbered, ["mccl", "regression"])):
        alone = losses(subset)
        for name in names:
            assert mixed[name] == pytest.approx(alone[name], rel=1e-4), name


def test_the_collator_reads_numbers_names_and_angles(tokenizer):
    collator = CarlDataCollator(tokenizer, classes=["joy", "anger"], angles={"joy": 0.5, "relief": 5.0})
    rows = [
        {"text": "aaaaa", "valence": -0.5, "arousal": 0.5, "label": "joy"},  # numbers win over the name's angle
        {"text": "aaaa", "valence": 0.0, "arousal": 0.0, "label": None},
        {"text": "aaa", "valence": None, "arousal": None, "label": "joy"},
        {"text": "aa", "label": "anger"},
        {"text": "a", "valence": 0.5},
        {"text": "a", "valence": math.nan, "arousal": -0.5, "label": "joy"},
    ]
    batch = collator(rows)
    nan = math.nan
    numbers = torch.tensor([[-0.5, 0.5], [0, 0], [nan, nan], [nan, nan], [0.5, nan], [nan, -0.5]])
    torch.testing.assert_close(batch["va"], numbers, equal_nan=True)
    assert batch["class"].tolist() == [0, -1, 0, 1, -1, 0]
    angles = torch.tensor([0.75 * math.pi, nan, 0.5, nan, nan, 0.5])
    torch.testing.assert_close(batch["angle"], angles, equal_nan=True)
    assert collator([{"text": "b", "label": "relief"}])["class"].tolist() == [-1]  # not among the classes
    assert CarlDataCollator(tokenizer)(rows)["class"].tolist() == [-1] * 6
    with pytest.raises(ValueError, match=r"text 'a' \(valence nan, arousal -2\) do not lie in"):
        collator([{"text": "a", "valence": None, "arousal": -2}])


def test_names_without_an_angle_are_refused_with_the_known_ones(tmp_path, tokenizer):
    data = Dataset.from_dict({"text": ["a b", "c d"] * 8, "label": ["joy", "guilt"] * 8})
    with pytest.raises(ValueError, match=r"circle12 has no angle for 'guilt'; it has anger, boredom"):
        make_trainer(tmp_path, tokenizer, data=data, objectives=["circular"], label_space="circle12")
    with pytest.raises(ValueError, match="label_space"):  # names, and nothing that gives them an angle
        make_trainer(tmp_path, tokenizer, data=data, objectives=["circular"])


@pytest.mark.parametrize(
    "words, message",
    [
        (["circular", "supconn"], "did you mean 'supcon'.*Objectives: mccl, ptd"),
        (["mccl", "mccl=2"], "named twice"),
        (["mccl=much"], "positive number, got 'mccl=much'"),
        (["mccl=0"], "positive number"),
        (["mccl=inf"], "positive number"),
        ([], "nothing would be trained"),
    ],
)
def test_wrong_objectives_are_refused(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CarlTrainingArguments(str(tmp_path), objectives=words)


def test_a_name_means_the_weight_of_its_preset(tmp_path):
    args = CarlTrainingArguments(str(tmp_path), objectives=["mccl", "circular=2.5", "proxy_anchor"])
    assert args.weights == {"mccl": 1.0, "circular": 2.5, "proxy_anchor": 1.0} and args.heads == ["proxies"]
    default = CarlTrainingArguments(str(tmp_path))
    assert default.weights == {"mccl": 1.0, "rank_n_contrast": 1.0, "regression": 20.0}
    assert default.heads == ["regressor"]
    words = ["mccl", "rank_n_contrast", "regression"]
    assert CarlTrainingArguments(str(tmp_path), objectives=words).weights == default.weights
    for words in (None, ["mccl", "ptd"]):
        paper = CarlTrainingArguments(str(tmp_path), preset="paper", objectives=words)
        assert paper.weights == {"mccl": 0.8, "ptd": 0.2}


def test_missing_heads_labels_and_dropout_are_named(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"model with proxies: CarlModel.from_encoder\(.*heads=args.heads"):
        make_trainer(tmp_path, tokenizer, data=toy_dataset(mixed=True), objectives=["proxy_anchor"])
    for settings, remedy in (
        ({"objectives": None}, r"objectives=\['mccl', 'rank_n_contrast'\]\.$"),
        ({"objectives": ["regression"]}, r"carl_hf\.data\.$"),
    ):
        with pytest.raises(ValueError, match=f"model with regressor: .*{remedy}"):
            make_trainer(tmp_path, tokenizer, model=model_for(["mccl"]), **settings)
    with pytest.raises(ValueError, match="train_dataset has no column 'label'"):
        make_trainer(tmp_path, tokenizer, objectives=["supcon"])
    names = Dataset.from_dict({"text": ["a", "b"] * 8, "label": ["joy", "anger"] * 8})
    with pytest.raises(ValueError, match="train_dataset has no column 'valence'"):
        make_trainer(tmp_path, tokenizer, data=names, objectives=["mccl"])
    still = model_for(["simcse"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with pytest.raises(ValueError, match="dropout"):
        make_trainer(tmp_path, tokenizer, model=still, objectives=["simcse"])
    with pytest.raises(ValueError, match="Unknown head 'proxy'"):
        CarlConfig(heads=["proxy"], classes=["a", "b"])
    with pytest.raises(ValueError, match="at least two classes"):
        CarlConfig(heads=["classifier"])
    with pytest.raises(ValueError, match="named twice"):
        CarlConfig(heads=["classifier"], classes=["a", "a"])


def test_parameters_that_no_objective_uses_are_looked_for_under_ddp(tmp_path, tokenizer):
    assert make_trainer(tmp_path, tokenizer).args.ddp_find_unused_parameters is None
    assert make_trainer(tmp_path, tokenizer, objectives=["ptd", "regression"]).args.ddp_find_unused_parameters
    assert make_trainer(tmp_path, tokenizer, objectives=["mccl", "ptd"]).args.ddp_find_unused_parameters
    more = model_for(["regression", "cross_entropy"])
    assert make_trainer(tmp_path, tokenizer, model=more).args.ddp_find_unused_parameters
    chosen = make_trainer(tmp_path, tokenizer, objectives=["ptd", "regression"], ddp_find_unused_parameters=False)
    assert chosen.args.ddp_find_unused_parameters is False


def test_balanced_weights_follow_the_training_texts(tmp_path, tokenizer):
    data = Dataset.from_dict({"text": ["a b", "c d", "e", "f"] * 6, "label": ["joy", "joy", "joy", "anger"] * 6})
    model = model_for(["cross_entropy"])
    weighted = make_trainer(
        tmp_path, tokenizer, model=model, data=data, objectives=["cross_entropy"], class_weights="balanced"
    )
    # the model's four classes, in order: anger 6 texts, joy 18, relief and sadness none
    expected = [24 / (4 * 6), 24 / (4 * 18), 24 / 4, 24 / 4]
    assert weighted._class_weights_C.tolist() == pytest.approx(expected)
    plain = make_trainer(tmp_path, tokenizer, model=model, data=data, objectives=["cross_entropy"])
    assert plain._class_weights_C is None


def test_evaluation_probes_class_labels_where_texts_have_them(tmp_path, tokenizer):
    data, dev = toy_dataset(64, mixed=True), toy_dataset(40, seed=5, mixed=True)
    trainer = make_trainer(
        tmp_path, tokenizer, model=model_for(["cross_entropy"]), data=data, dev=dev, objectives=["cross_entropy"]
    )
    metrics = trainer.evaluate()
    # four classes, told by their letters: more than the most frequent of them
    assert metrics["eval_label_accuracy"] > 40 and -1 <= metrics["eval_va_pearson"] <= 1
    named = dev.remove_columns(["valence", "arousal"]).filter(lambda row: row["label"] is not None)
    assert "eval_va_pearson" not in trainer.evaluate(named)


def test_a_training_label_that_the_model_does_not_know_is_refused(tmp_path, tokenizer):
    data = Dataset.from_dict({"text": ["a b", "c d"] * 8, "label": ["joy", "guilt"] * 8})
    with pytest.raises(ValueError, match="label 'guilt', which is none of the model's classes anger, joy"):
        make_trainer(tmp_path, tokenizer, data=data, model=model_for(["cross_entropy"]), objectives=["cross_entropy"])
    # a validation text with another name counts as one without
    data, dev = toy_dataset(mixed=True), Dataset.from_dict({"text": ["a b", "c d"], "label": ["guilt", "joy"]})
    trainer = make_trainer(
        tmp_path, tokenizer, data=data, dev=dev, model=model_for(["cross_entropy"]), objectives=["cross_entropy"]
    )
    metrics = trainer.evaluate()
    alone = make_trainer(
        tmp_path, tokenizer, data=data, dev=dev.select([1]), model=trainer.model, objectives=["cross_entropy"]
    ).evaluate()
    assert metrics["eval_cross_entropy"] == pytest.approx(alone["eval_cross_entropy"], rel=1e-5)
    assert metrics["eval_label_accuracy"] in (0, 100)


def test_an_encoder_that_would_never_learn_is_refused(tmp_path, tokenizer):
    settings = {"data": toy_dataset(mixed=True), "model": model_for(["proxy_anchor"]), "objectives": ["proxy_anchor"]}
    with pytest.raises(ValueError, match="training is 1 epochs, and in the first 1 only heads learn"):
        make_trainer(tmp_path, tokenizer, max_steps=3, **settings)
    with pytest.raises(ValueError, match="--head_warmup_epochs 0"):
        make_trainer(tmp_path, tokenizer, max_steps=-1, num_train_epochs=1, **settings)
    make_trainer(tmp_path, tokenizer, max_steps=4, **settings)


def test_batches_without_labels_do_not_dilute_what_is_reported(tmp_path, tokenizer):
    """Validation texts come unshuffled: first those with numbers, then those with names alone."""
    numbers = toy_dataset(16, seed=5)
    names = Dataset.from_dict({"text": ["joywow joywow", "woezzz"] * 8, "label": ["joy", "sadness"] * 8})
    model = model_for(["mccl", "cross_entropy"]).eval()
    common = {"model": model, "data": toy_dataset(mixed=True), "objectives": ["mccl", "ptd", "cross_entropy"]}
    mixed = make_trainer(tmp_path, tokenizer, dev=mix_datasets([(numbers, 1), (names, 1)], seed=0), **common)
    metrics = mixed.evaluate()
    for part, name in ((numbers, "mccl"), (names, "cross_entropy")):
        alone = mixed.evaluate(mix_datasets([(part, 1)], seed=0))
        assert metrics[f"eval_{name}"] == pytest.approx(alone[f"eval_{name}"], rel=1e-5)
    parts = sum(w * metrics[f"eval_{name}"] for name, w in mixed.args.weights.items())
    assert metrics["eval_loss"] == pytest.approx(parts)
    zeros = numbers.map(lambda row, i: {"valence": row["valence"] * (i > 3), "arousal": row["arousal"] * (i > 3)},
                        with_indices=True)  # fmt: skip
    found = mixed.evaluate(mix_datasets([(zeros, 1), (names, 1)], seed=0))["eval_zero_label_fraction"]
    assert found == pytest.approx(4 / 16)


def test_texts_that_are_not_attacked_do_not_dilute_detection(tmp_path, tokenizer):
    numbers = toy_dataset(8, seed=6)
    names = Dataset.from_dict({"text": ["joywow joywow", "woezzz"] * 4, "label": ["joy", "sadness"] * 4})
    model = model_for(["mccl"]).eval()
    trainer = make_trainer(tmp_path, tokenizer, model=model, data=toy_dataset(mixed=True), objectives=["mccl", "ptd"],
                           perturb_half=False)  # fmt: skip

    def ptd(dataset):
        trainer.compute_loss(model, trainer.data_collator(list(dataset)))
        return trainer._step.losses["ptd"].item()

    assert ptd(mix_datasets([(numbers, 1), (names, 1)], seed=0)) == pytest.approx(ptd(numbers), rel=1e-5)


def test_the_best_checkpoint_is_chosen_by_what_the_labels_allow(tmp_path, tokenizer):
    names = Dataset.from_dict({"text": ["a b", "c d"] * 8, "label": ["joy", "anger"] * 8})
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 3,
            "save_steps": 3}  # fmt: skip
    trainer = train(tmp_path, tokenizer, ["circular"], data=names, dev=names, model=model_for(["circular"]), **best)
    assert trainer.args.metric_for_best_model == "loss"
    chosen = CarlTrainingArguments(str(tmp_path), objectives=["cross_entropy"], use_cpu=True, **best)
    assert chosen.metric_for_best_model == "label_accuracy"


def test_rare_names_and_foreign_names_do_not_stop_an_evaluation():
    texts = [f"t{i}" for i in range(10)]
    train = Dataset.from_dict({"text": texts, "label": ["joy"] * 9 + ["anger"]})
    dev = Dataset.from_dict({"text": ["a", "b", "c"], "label": ["joy", "anger", "awe"]})
    for seed in range(12):  # in some draws the rare name is not among the fitted texts
        probe = DevProbe(train, texts=10, seed=seed)
        figures = probe(lambda rows: np.random.default_rng(0).normal(size=(len(rows), 3)), dev)
        assert set(figures) == {"label_accuracy"} and figures["label_accuracy"] in (0, 50, 100)


def test_a_stream_finds_angles_of_labels_in_any_case(tmp_path, tokenizer):
    rows = Dataset.from_dict({"text": ["a b", "c d"] * 8, "label": ["Joy", "ANGER"] * 8})
    settings = {"objectives": ["circular"], "label_space": "circle12"}
    held, streamed = (
        make_trainer(tmp_path, tokenizer, data=data, **settings).data_collator(list(rows))["angle"]
        for data in (rows, rows.to_iterable_dataset())
    )
    assert torch.equal(held, streamed) and not streamed.isnan().any()


def test_streams_take_all_angles_of_the_space_and_no_class_weights(tmp_path, tokenizer):
    rows = [{"text": "a b", "label": "joy"}, {"text": "c d", "label": "anger"}] * 8
    stream = Dataset.from_list(rows).to_iterable_dataset()
    circular = {"objectives": ["circular"], "label_space": "circle12"}
    assert len(make_trainer(tmp_path, tokenizer, data=stream, **circular).data_collator.angles) == 12
    assert len(make_trainer(tmp_path, tokenizer, data=rows, **circular).data_collator.angles) == 2
    balanced = {"objectives": ["cross_entropy"], "class_weights": "balanced", "model": model_for(["cross_entropy"])}
    with pytest.raises(ValueError, match="class_weights='balanced' counts training texts"):
        make_trainer(tmp_path, tokenizer, data=stream, **balanced)
    with pytest.raises(ValueError, match="Unknown label space 'circel12'"):
        CarlTrainingArguments(str(tmp_path), label_space="circel12")


def test_simcse_needs_nothing_but_texts(tmp_path, tokenizer):
    texts = Dataset.from_dict({"text": ["a b", "c d e"] * 8})
    with pytest.raises(ValueError, match="no column 'valence'"):
        make_trainer(tmp_path, tokenizer, data=texts)
    trainer = make_trainer(tmp_path, tokenizer, data=texts, objectives=["simcse"])
    trainer.train()
    assert "simcse" in trainer.state.log_history[0]
