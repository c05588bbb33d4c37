"""Encoding part by part: random numbers are repeated, and gradients are those of the graph kept whole."""

import pytest
import torch
from conftest import double_model, make_trainer, tiny_encoder, toy_dataset

from carl_hf import CarlDataCollator, CarlModel, CarlTrainingArguments
from carl_hf.encoders.packing import TokenLayout
from carl_hf.losses import simcse_loss
from carl_hf.training.gradient_cache import CachedPass, Gradients, cached_backward
from carl_hf.training.step import BatchLabels, Step, encode_target, sentence_pass


@pytest.fixture
def batch(tokenizer):
    return CarlDataCollator(tokenizer, slices=2, chunks=3)(list(toy_dataset(9, seed=5)))


def test_dropout_is_repeated_and_gradients_are_those_of_the_whole_graph(batch):
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8).double().train()
    model.use_packed_attention()
    layout = TokenLayout.of(batch)
    words = model.word_embeddings(layout.pack(batch["input_ids"])).detach()
    parameters = [p for p in model.encoder.parameters()]
    seen = []

    def embed(embeds, part):
        seen.append(model.embed_packed(embeds, part))
        return seen[-1]

    torch.manual_seed(3)
    whole_words = words.clone().requires_grad_()
    whole = torch.cat([embed(whole_words[part.tokens], part) for part in layout.chunks])
    expected = torch.autograd.grad(whole.cos().sum(), [whole_words, *parameters], allow_unused=True)
    following = torch.rand(3)

    seen.clear()
    torch.manual_seed(3)
    view = CachedPass(embed, words, layout, backward_follows=True)
    gradients = Gradients.zero(words, parameters)
    cached_backward(view.pooled_BH.cos().sum(), [view], gradients)
    assert torch.equal(torch.rand(3), following)  # the second encoding left no trace in the random state
    assert len(seen) == 6 and all(torch.equal(seen[i], seen[i + 3]) for i in range(3))
    assert torch.equal(view.pooled_BH, whole)
    for found, wish in zip([gradients.of_embeds_TE, *gradients.of_parameters], expected, strict=True):
        assert (found is None) == (wish is None)
        if wish is not None:
            torch.testing.assert_close(found, wish, atol=1e-12, rtol=1e-9)


def test_without_a_backward_pass_nothing_keeps_a_graph(batch):
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8)
    layout = TokenLayout.of(batch)
    words = model.word_embeddings(layout.pack(batch["input_ids"]))
    graphs = []

    def embed(embeds, part):
        pooled = model.embed_packed(embeds, part)
        graphs.append(pooled.grad_fn)
        return pooled

    CachedPass(embed, words, layout, backward_follows=False)
    assert graphs == [None] * 3


def step_gradients(tmp_path, tokenizer, parts, *, bf16=False, seed=0, model=None, **settings):
    """Gradients of one step by name, the loss, and the dtypes that a linear layer computed in."""
    trainer = make_trainer(
        tmp_path, tokenizer, model=model or double_model().float(), gradient_cache_parts=parts, **settings
    )
    seen = set()
    layer = trainer.model.encoder.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    batch = trainer.data_collator(list(toy_dataset(8, seed=3)))
    batch["va"] = batch["va"].to(trainer.model.dtype)
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}, loss.item(), seen


def test_cached_gradients_in_bfloat16_are_whole(tmp_path, tokenizer):
    """autocast may keep casts of the weights: those made without a graph must not be used with one."""
    whole, _, seen = step_gradients(tmp_path, tokenizer, 1, bf16=True, objectives=["mccl", "regression"])
    cached, _, seen_cached = step_gradients(tmp_path, tokenizer, 3, bf16=True, objectives=["mccl", "regression"])
    assert seen == seen_cached == {torch.bfloat16} and set(whole) == set(cached)
    matrices = [n for n in whole if n.startswith("online.encoder.encoder") and whole[n].ndim == 2]
    total = sum(whole[n].square().sum() for n in matrices).sqrt()
    difference = sum((whole[n] - cached[n]).square().sum() for n in matrices).sqrt()
    assert len(matrices) == 12 and total > 1e-4 and difference < 0.1 * total
    assert all(cached[n].norm() > 0 for n in matrices)


def test_simcse_contrasts_two_cached_views(tmp_path, tokenizer):
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8).double().train()
    model.use_packed_attention()
    batch = CarlDataCollator(tokenizer, slices=2, chunks=2)(list(toy_dataset(8, seed=3)))
    layout = TokenLayout.of(batch)
    words = model.word_embeddings(layout.pack(batch["input_ids"])).detach()
    parameters = [p for n, p in model.encoder.named_parameters() if "pooler" not in n and "embeddings" not in n]

    def embed(embeds, part):
        return model.embed_packed(embeds, part)

    torch.manual_seed(3)
    views = [torch.cat([embed(words[part.tokens], part) for part in layout.chunks]) for _ in range(2)]
    expected = torch.autograd.grad(simcse_loss(*views, temperature=0.05), parameters)

    args = CarlTrainingArguments(str(tmp_path), use_cpu=True, objectives=["simcse"], temperature=0.05)
    torch.manual_seed(3)
    labels = BatchLabels.of(batch, lambda rows: rows, 0)
    step = Step(args, args.weights, args.weights, batch, labels, gather=lambda rows: rows)
    encode_target(step, model)
    step.words_TE, step.trained = words, parameters
    sentence_pass(step)
    for found, wish in zip(step.gradients.of_parameters, expected, strict=True):
        torch.testing.assert_close(found, wish, atol=1e-12, rtol=1e-9)


def test_a_parameter_that_no_loss_reaches_gets_no_gradient(tmp_path, tokenizer):
    """so that weight decay does not move it"""
    gradients, _, _ = step_gradients(
        tmp_path, tokenizer, 2, objectives=["regression"], model=double_model(everything=True).float()
    )
    assert "regressor.weight" in gradients
    assert not [name for name in gradients if "pooler" in name or name.startswith(("prediction", "detector"))]
