"""Encoding part by part: random numbers are repeated, and gradients are those of the graph kept whole."""

import pytest
import torch
from conftest import tiny_encoder, toy_dataset
from test_trainer import make_trainer

from carl_hf import CarlDataCollator, CarlModel, CarlTrainingArguments
from carl_hf.gradient_cache import CachedPass, Gradients, cached_backward
from carl_hf.packing import TokenLayout


@pytest.fixture
def batch(tokenizer):
    return CarlDataCollator(tokenizer, slices=2, parts=3)(list(toy_dataset(9, seed=5)))


def test_dropout_is_repeated_and_gradients_are_those_of_the_whole_graph(batch):
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8).double().train()
    model.use_packed_attention()
    layout = TokenLayout.of(batch)
    words = model.word_embeddings(layout.pack(batch["input_ids"])).detach()
    parameters = [p for p in model.encoder.parameters()]
    seen = []

    def embed(embeds, part):
        seen.append(model.pool_packed(model.encode_packed(embeds, part), part))
        return seen[-1]

    torch.manual_seed(3)
    whole_words = words.clone().requires_grad_()
    whole = torch.cat([embed(whole_words[part.tokens], part) for part in layout.parts()])
    expected = torch.autograd.grad(whole.cos().sum(), [whole_words, *parameters], allow_unused=True)
    following = torch.rand(3)

    seen.clear()
    torch.manual_seed(3)
    view = CachedPass(embed, words, layout, keeps_graph=True)
    gradients = Gradients.zeros(words, parameters)
    cached_backward(view.pooled_BH.cos().sum(), [view], gradients)
    assert torch.equal(torch.rand(3), following)  # the second encoding left no trace in the random state
    assert len(seen) == 6 and all(torch.equal(seen[i], seen[i + 3]) for i in range(3))
    assert torch.equal(view.pooled_BH, whole)
    for found, wish in zip([gradients.of_embeds_TE, *gradients.of_parameters], expected, strict=True):
        torch.testing.assert_close(found, torch.zeros_like(found) if wish is None else wish, atol=1e-12, rtol=1e-9)


def test_without_a_backward_pass_nothing_keeps_a_graph(batch):
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8)
    layout = TokenLayout.of(batch)
    words = model.word_embeddings(layout.pack(batch["input_ids"]))
    graphs = []

    def embed(embeds, part):
        pooled = model.pool_packed(model.encode_packed(embeds, part), part)
        graphs.append(pooled.grad_fn)
        return pooled

    CachedPass(embed, words, layout, keeps_graph=False)
    assert graphs == [None] * 3


def test_cached_gradients_in_bfloat16_are_whole(tmp_path, tokenizer):
    """autocast keeps casts of the weights: those made without a graph must not be used with one."""
    found = []
    for parts in (1, 3):
        trainer = make_trainer(
            tmp_path, tokenizer, bf16=True, gradient_cache_parts=parts, ptd_weight=0.0,
            model=CarlModel.from_encoder(
                tiny_encoder(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), projection_dim=8
            ),
        )  # fmt: skip
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(trainer.model, trainer.data_collator(list(toy_dataset(8, seed=3))))
        found.append(torch.cat([p.grad.flatten() for p in trainer.model.online_parameters() if p.grad is not None]))
    assert len(found[0]) == len(found[1]) and (found[0] - found[1]).norm() < 0.02 * found[0].norm()


def test_accumulation_can_enlarge_the_contrastive_batch(tmp_path, tokenizer):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "accumulate_contrast": True}
    args = CarlTrainingArguments(str(tmp_path), use_cpu=True, **settings)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.gradient_cache_parts) == (
        12,
        1,
        3,
    )
    trainer = make_trainer(tmp_path, tokenizer, **settings)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["input_ids"]) == 12 and len(batch["parts"]) == 3
    trainer.train()
    assert trainer.state.global_step == 3


def test_simcse_contrasts_two_cached_views(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, objectives=["simcse"], gradient_cache_parts=2, max_steps=2)
    before = {n: p.detach().clone() for n, p in trainer.model.encoder.named_parameters() if "layer.1.output" in n}
    trainer.train()
    assert all(not torch.equal(p, trainer.model.encoder.get_parameter(n)) for n, p in before.items())
