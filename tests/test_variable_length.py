"""Attention at variable length, which CUDA takes, with a stand-in for torch's kernel: what it is given, what comes of
it, and that the step around it needs nothing from the device."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from conftest import TOY_NAMES, make_trainer, tiny_encoder, toy_dataset
from test_packing import PACKED, batch_of, words_of
from transformers import AttentionInterface, AttentionMaskInterface, modeling_flash_attention_utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import flash_attention_mask

from carl_hf import CarlModel
from carl_hf.configuration_carl import HEADS
from carl_hf.encoders import packing
from carl_hf.encoders.packing import encode_tokens, use_packed_attention
from carl_hf.momentum import update_target
from carl_hf.objectives import OBJECTIVES
from carl_hf.training.monitor import step_metrics, usable_texts


def attention_of_texts(q, k, v, bounds, scale):
    """Softmax attention (T, A, D) of each text by itself, and its weights (A, L, L)."""
    attended, weights = [], []
    for start, end in zip(bounds.tolist()[:-1], bounds.tolist()[1:], strict=True):
        q_A, k_A, v_A = (tensor[start:end].transpose(0, 1) for tensor in (q, k, v))
        weights.append((scale * q_A @ k_A.mT).softmax(-1))
        attended.append((weights[-1] @ v_A).transpose(0, 1))
    return torch.cat(attended), weights


@pytest.fixture
def kernel(monkeypatch):
    """torch's operation for CPUs, without dropout; its autograd formula is torch's own. Yields what it was called
    with, and an error to add to its result."""
    seen = SimpleNamespace(dropout=[], longest=[], error=0.0)

    def forward(query, key, value, bias, bounds, bounds_k, longest, longest_k, dropout, mask_type, keeps=False, *,
                scale, seqlen_k=None, window_size=None):  # fmt: skip
        assert bias is None and mask_type == 0 and bounds.equal(bounds_k) and bounds.dtype == torch.int32
        assert longest == longest_k == bounds.diff().max() and bounds[-1] == query.shape[1]
        seen.dropout.append(dropout)
        seen.longest.append(longest)
        attended, _ = attention_of_texts(query[0], key[0], value[0], bounds, scale)
        nothing = torch.zeros((), dtype=torch.int64)
        return attended[None] + seen.error, query.new_zeros(1), nothing, nothing.clone(), longest, longest

    def backward(of_attended, query, key, value, bias, attended, bounds, *others, scale, **options):
        gradients = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        _, weights = attention_of_texts(query[0], key[0], value[0], bounds, scale)
        for start, end, p in zip(bounds.tolist()[:-1], bounds.tolist()[1:], weights, strict=True):
            q, k, v, g = (x[0, start:end].transpose(0, 1) for x in (query, key, value, of_attended))
            of_weights = g @ v.mT
            of_scores = scale * p * (of_weights - (p * of_weights).sum(-1, keepdim=True))
            for total, part in zip(gradients, (of_scores @ k, of_scores.mT @ q, p.mT @ g), strict=True):
                total[0, start:end] = part.transpose(0, 1)
        return *gradients, torch.empty(0)

    monkeypatch.setattr(packing, "VARIABLE_LENGTH_DEVICES", {"cpu"})
    packing._variable_length_works.cache_clear()
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_efficient_attention_forward", forward, "CPU")
        library.impl("_efficient_attention_backward", backward, "CPU")
        yield seen
    packing._variable_length_works.cache_clear()


@pytest.mark.parametrize("family", sorted(PACKED))
def test_states_and_gradients_are_those_of_padded_texts(family, kernel, tokenizer):
    encoder = tiny_encoder(family).double().eval()
    batch = batch_of(tokenizer)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    assert use_packed_attention(encoder)
    words, layout = words_of(encoder, batch)
    found = encode_tokens(encoder, words, layout)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(encode_tokens(encoder, words, layout), expected, atol=1e-12, rtol=0)
    weights, parameters = torch.randn_like(expected), list(encoder.parameters())
    gradients = [torch.autograd.grad((x * weights).sum(), parameters, allow_unused=True) for x in (found, expected)]
    for ours, other in zip(*gradients, strict=True):
        if other is not None:
            torch.testing.assert_close(ours, other, atol=1e-11, rtol=0)
    # MPNet has a position bias and half of ModernBERT's layers a window, which the kernel does not take
    assert len(set(kernel.longest)) == (0 if family == "mpnet" else 2)  # of the trial and of the batch


def test_the_dropout_of_attention_is_the_encoder_s(kernel, tokenizer):
    encoder = tiny_encoder(attention_probs_dropout_prob=0.3)
    use_packed_attention(encoder)
    for training in (True, False):
        kernel.dropout.clear()
        encode_tokens(encoder.train(training), *words_of(encoder, batch_of(tokenizer)))
        assert kernel.dropout[-2:] == [0.3 * training] * 2


def test_a_kernel_that_errs_is_not_used(kernel, tokenizer, caplog):
    encoder = tiny_encoder().eval()
    use_packed_attention(encoder)
    expected = encode_tokens(encoder, *words_of(encoder, batch_of(tokenizer)))
    packing._variable_length_works.cache_clear()
    kernel.error = 0.1
    for _ in range(2):
        found = encode_tokens(encoder, *words_of(encoder, batch_of(tokenizer)))
    torch.testing.assert_close(found, expected)
    assert ["its result is wrong" in message for message in caplog.messages].count(True) == 1


def test_without_the_kernel_attention_is_padded(monkeypatch, tokenizer, caplog):
    encoder = tiny_encoder().eval()
    use_packed_attention(encoder)
    expected = encode_tokens(encoder, *words_of(encoder, batch_of(tokenizer)))
    monkeypatch.setattr(packing, "VARIABLE_LENGTH_DEVICES", {"cpu"})
    packing._variable_length_works.cache_clear()
    torch.testing.assert_close(encode_tokens(encoder, *words_of(encoder, batch_of(tokenizer))), expected)
    packing._variable_length_works.cache_clear()
    assert "padded slices" in caplog.text and "_efficient_attention_forward" in caplog.text


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "modernbert", "electra", "distilbert"])
def test_transformers_flash_attention_gets_the_bounds_of_the_texts(family, monkeypatch, tokenizer):
    name = "flash_stand_in"
    AttentionInterface.register(name, flash_attention_forward)
    AttentionMaskInterface.register(name, flash_attention_mask)
    calls = []

    def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **options):
        calls.append(options)
        assert cu_seqlens_q.equal(cu_seqlens_k)
        attended, _ = attention_of_texts(q, k, v, cu_seqlens_q, options["softmax_scale"])
        return attended

    monkeypatch.setattr(
        modeling_flash_attention_utils, "lazy_import_flash_attention",
        lambda *_: ((pytest.fail, varlen, None, pytest.fail, pytest.fail), (dict, dict)),
    )  # fmt: skip
    encoder = tiny_encoder(family, **({"local_attention": 128} if family == "modernbert" else {})).eval()
    words, layout = words_of(encoder, batch := batch_of(tokenizer))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    encoder.config._attn_implementation = name  # its setter would look for the package
    assert use_packed_attention(encoder)
    torch.testing.assert_close(encode_tokens(encoder, words, layout), expected, atol=1e-5, rtol=0)
    assert len(calls) == 2 and not any(options["is_causal"] for options in calls)
    assert {options["max_seqlen_q"] for options in calls} == {mask.shape[1]}


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 lets nothing stand for its kernel twice")
@pytest.mark.parametrize("settings", [{"preset": "paper"}, {"objectives": [*OBJECTIVES], "pgd_steps": 2}], ids=str)
def test_a_step_reads_nothing_from_its_device(settings, monkeypatch, tmp_path, tokenizer):
    """On tensors without values each read fails that would let a GPU and its host wait for each other."""
    monkeypatch.setattr(packing, "VARIABLE_LENGTH_DEVICES", {"meta"})
    monkeypatch.setattr(packing, "_variable_length_works", lambda *_: True)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # does not know this device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    heads = {"heads": HEADS, "classes": sorted(TOY_NAMES.values())}
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8, **heads)
    data = toy_dataset(mixed=True)
    trainer = make_trainer(
        tmp_path, tokenizer, model=model, data=data, label_space="circle12", head_warmup_epochs=0.0, **settings
    )
    model.to("meta").train()
    batch = trainer.data_collator(list(data)[:8])
    batch = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    with torch.library._scoped_library("aten", "IMPL") as library:
        # torch's own stand-in for this device takes too few arguments
        library.impl("_efficient_attention_backward", lambda g, q, k, v, *_, **__: (q, k, v, g), "Meta")
        loss = trainer.compute_loss(model, batch)
        loss.backward()
    step = trainer._step
    trainer.nonfinite.watch(batch, step.embedding_BH, loss, usable_texts(step))
    assert {*step.weights} <= {*step_metrics(step)}
    torch.nn.utils.clip_grad_norm_(model.online_parameters(), 1.0)
    update_target(model.target, model.online, 0.9)
    with pytest.raises((RuntimeError, NotImplementedError)):
        loss.item()
