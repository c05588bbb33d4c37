"""A training step against a plain one written from the equations: value and gradient of every parameter."""

import copy
import math
from typing import get_args

import pytest
import torch
from conftest import double_model, make_trainer, toy_dataset
from transformers import set_seed

from carl_hf import CarlTrainer
from carl_hf.adversary import pgd_perturbation, select_salient_tokens
from carl_hf.configuration_carl import ContrastLayers
from carl_hf.encoders import pool
from carl_hf.losses import (
    circular_loss,
    class_cross_entropy,
    focal_detection_loss,
    mccl_loss,
    proxy_anchor_loss,
    rank_n_contrast_loss,
    supervised_contrastive_loss,
    va_regression_loss,
)

EVERYTHING = [
    "mccl",
    "ptd",
    "proxy_anchor=0.5",
    "circular=2",
    "cross_entropy",
    "supcon",
    "regression=3",
    "rank_n_contrast",
    "rank_n_contrast_l2",
]


def plain_step(model, batch, args) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Eq 3 to 11 on one padded batch, with separate backward passes for saliency, for PGD and for training."""
    ids, mask, va, eligible = batch["input_ids"], batch["attention_mask"], batch["va"].double(), batch["eligible"]

    sentence = {name: weight for name, weight in args.weights.items() if name != "ptd"}

    def encode(embeds):
        return model.encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state

    def target():
        with torch.no_grad():
            hidden = model.target.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = pool(hidden, mask, model.config.pooling)
            return pooled, pooled if model.target.projection is None else model.target.project(pooled)

    def contrast(z):
        pooled, projected = target()
        pairs = {
            "none": lambda: (z, pooled),
            "projection": lambda: (model.online.project(z), projected),
            "prediction": lambda: (model.prediction(model.online.project(z)), projected),
        }
        names = model.config.contrast_layers.split("+")
        return sum(
            mccl_loss(
                *pairs[name](), va, va, temperature=args.temperature, label_temperature=args.label_temperature,
                kernel=args.label_kernel,
            )
            for name in names
        ) / len(names)  # fmt: skip

    def sentence_loss(embeds):
        z, label = pool(encode(embeds), mask, model.config.pooling), batch.get("class")
        losses = {
            "mccl": lambda: contrast(z),
            "proxy_anchor": lambda: proxy_anchor_loss(z, label, model.proxies.weight_PH, alpha=32, margin=0.1),
            "circular": lambda: circular_loss(z, batch["angle"]),
            "cross_entropy": lambda: class_cross_entropy(model.classifier(z), label),
            "supcon": lambda: supervised_contrastive_loss(z, label, temperature=args.temperature),
            "rank_n_contrast": lambda: rank_n_contrast_loss(
                z, va, temperature=args.temperature, similarity="cosine"
            ),
            "rank_n_contrast_l2": lambda: rank_n_contrast_loss(z, va, temperature=2),
            "regression": lambda: va_regression_loss(model.regressor(z), va),
        }  # fmt: skip
        return sum(weight * losses[name]() for name, weight in (sentence or {"mccl": 1}).items())

    embeds = model.word_embeddings(ids).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(sentence_loss(embeds), embeds)
    chosen = select_salient_tokens(gradient.norm(dim=-1), eligible, fraction=args.salient_fraction)
    perturbed, judged = chosen, eligible
    if args.perturb_half:
        perturbed, judged = chosen & (torch.rand(chosen.shape, dtype=embeds.dtype) < 0.5), chosen
    delta = pgd_perturbation(
        sentence_loss, embeds, perturbed, radius=args.perturbation_radius, relative=args.perturbation_relative,
        step_size=args.pgd_step_size, steps=args.pgd_steps,
    )  # fmt: skip
    model.zero_grad()
    logits = model.detect(encode(model.word_embeddings(ids) + delta))
    detection = focal_detection_loss(logits, perturbed, judged, gamma=args.focal_gamma)
    loss = args.weights.get("ptd", 0.0) * detection
    if sentence:
        loss = loss + sentence_loss(model.word_embeddings(ids))
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


class Scaler:
    """What the fp16 loss scaler is to the step: a factor on inner losses."""

    def get_scale(self):
        return 1024.0


WHOLE, SLICED, CHUNKED = (1, 1), (8, 1), (2, 3)  # slices in which attention pads, chunks encoded one after another
CELLS = [
    ({}, WHOLE, False), ({}, SLICED, False), ({}, CHUNKED, True),
    ({"pgd_steps": 3, "pgd_step_size": 0.2}, CHUNKED, False), ({"pgd_steps": 3, "pgd_step_size": 0.2}, SLICED, True),
    ({"preset": "paper"}, SLICED, False), ({"preset": "paper"}, CHUNKED, True),
    ({"label_kernel": "distance"}, SLICED, False),
    ({"objectives": ["mccl", "regression"]}, CHUNKED, False), ({"objectives": ["ptd", "regression"]}, SLICED, True),
    ({"objectives": ["ptd"]}, SLICED, False), ({"objectives": ["ptd"]}, CHUNKED, True),
    ({"perturb_half": False}, SLICED, False),
    ({"objectives": EVERYTHING, "label_space": "circle12", "pgd_steps": 2}, SLICED, False),
    ({"objectives": EVERYTHING, "label_space": "circle12", "pgd_steps": 2}, CHUNKED, True),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "pieces", "scaled"), CELLS, ids=str)
def test_step_equals_the_plain_one(settings, pieces, scaled, tmp_path, tokenizer):
    mixed = settings.get("objectives") is EVERYTHING
    trainer = make_trainer(
        tmp_path, tokenizer, model=double_model(everything=mixed), salient_fraction=0.3,
        data=toy_dataset(mixed=mixed), head_warmup_epochs=0.0, **settings,
    )  # fmt: skip
    trainer.data_collator.slices, trainer.data_collator.chunks = pieces
    trainer.accelerator.scaler = Scaler() if scaled else None
    assert_step_is_plain(trainer, mixed=mixed)


@pytest.mark.parametrize("layers", get_args(ContrastLayers))
def test_step_equals_the_plain_one_with_other_layers_before_the_contrast(layers, tmp_path, tokenizer):
    model = double_model(contrast_layers=layers)
    assert_step_is_plain(make_trainer(tmp_path, tokenizer, model=model, salient_fraction=0.3))


def assert_step_is_plain(trainer: CarlTrainer, *, mixed: bool = False) -> None:
    model, batch = trainer.model, trainer.data_collator(list(toy_dataset(8, seed=3, mixed=mixed)))
    batch["va"] = batch["va"].double()
    set_seed(5)
    expected_loss, expected = plain_step(copy.deepcopy(model), batch, trainer.args)

    set_seed(5)  # the same half of the salient tokens
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected_loss, rtol=1e-10, atol=1e-10)
    total = math.sqrt(sum(g.square().sum().item() for g in expected.values()))
    for name, parameter in model.named_parameters():
        if name.startswith("target"):
            assert parameter.grad is None
            continue
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        difference = (found - expected.get(name, torch.zeros_like(found))).norm().item()
        assert difference < 1e-9 * total, name
