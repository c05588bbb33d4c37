import pytest
import torch
from conftest import tiny_encoder
from torch import nn

from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments
from carl_hf.training.layer_decay import layer_depths


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "deberta-v2", "modernbert", "distilbert", "electra"])
def test_depths_of_embeddings_layers_and_what_follows(family):
    depths = layer_depths(tiny_encoder(family))
    assert {depth for name, depth in depths.items() if "word_embeddings" in name or "tok_embeddings" in name} == {0}
    for layer in (0, 1):
        numbered = {depth for name, depth in depths.items() if f"layer.{layer}." in name or f"layers.{layer}." in name}
        assert numbered == {layer + 1}
    assert all(depth == 0 for name, depth in depths.items() if "relative" in name or "rel_emb" in name)
    assert set(depths.values()) == {0, 1, 2}
    assert all(depth == 2 for name, depth in depths.items() if name.startswith(("pooler", "final_norm")))


@pytest.mark.parametrize(
    ("encoder", "what"),
    [
        (nn.Linear(2, 2), "Linear has 0"),
        (nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleList([nn.Linear(2, 2)])])}), "has nested ones"),
        (nn.ModuleDict({side: nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])}) for side in "ab"}), "has 2"),
    ],
)
def test_an_encoder_without_one_stack_of_layers_is_refused(encoder, what):
    with pytest.raises(ValueError, match=f"one stack of numbered layers.*{what}.*--layer_decay at 1"):
        layer_depths(encoder)


def test_resuming_under_another_decay_is_refused(tmp_path, toys, tokenizer):
    def trainer(decay, steps):
        args = CarlTrainingArguments(
            str(tmp_path), use_cpu=True, per_device_train_batch_size=8, max_steps=steps, save_steps=2,
            report_to="none", disable_tqdm=True, layer_decay=decay,
        )  # fmt: skip
        model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8)
        return CarlTrainer(model=model, args=args, train_dataset=toys, processing_class=tokenizer)

    trainer(0.8, 2).train()
    with pytest.raises(ValueError, match=r"--layer_decay 0.8.*now it would be 0.5"):
        trainer(0.5, 4).train(resume_from_checkpoint="last")
    resumed = trainer(0.8, 4)
    resumed.train(resume_from_checkpoint="last")
    assert resumed.state.global_step == 4


def test_lower_layers_learn_slower_and_nothing_is_lost_or_doubled(tmp_path, toys, tokenizer):
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8, heads=["proxies"], classes=["joy", "fear"])
    args = CarlTrainingArguments(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=8, report_to="none", learning_rate=1e-3,
        layer_decay=0.5, weight_decay=0.1, proxy_learning_rate=0.1, regression_weight=0.0,
    )  # fmt: skip
    trainer = CarlTrainer(model=model, args=args, train_dataset=toys, processing_class=tokenizer)
    optimizer = trainer.create_optimizer()
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == sum(len(group["params"]) for group in optimizer.param_groups)
    assert set(groups) == {p for p in model.parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        expected = 0.1 if name.startswith("proxies") else 1e-3
        if "encoder.embeddings" in name:
            expected *= 0.25
        elif "encoder.layer.0" in name:
            expected *= 0.5
        decays = parameter.dim() > 1 and not name.startswith("proxies")
        assert groups[parameter]["lr"] == pytest.approx(expected), name
        assert groups[parameter]["weight_decay"] == (0.1 if decays else 0.0), name


def test_a_decayed_training_moves_lower_layers_less(tmp_path, toys, tokenizer):
    moved = {}
    for decay in (1.0, 0.01):
        model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8)
        before = {name: p.clone() for name, p in model.named_parameters()}
        args = CarlTrainingArguments(
            str(tmp_path), use_cpu=True, per_device_train_batch_size=8, max_steps=2, report_to="none",
            save_strategy="no", disable_tqdm=True, layer_decay=decay,
        )  # fmt: skip
        CarlTrainer(model=model, args=args, train_dataset=toys, processing_class=tokenizer).train()
        distance = {name: torch.dist(p, before[name]).item() for name, p in model.named_parameters()}
        moved[decay] = [
            distance[f"online.encoder.{part}"]
            for part in ("embeddings.position_embeddings.weight", "encoder.layer.1.output.dense.weight")
        ]
    (lower, upper), (lower_decayed, upper_decayed) = moved[1.0], moved[0.01]
    assert lower_decayed < 0.01 * lower and upper_decayed == pytest.approx(upper, rel=0.2)
