"""A step on the device against the same on the CPU, packed texts against padded ones, chunks against a whole."""

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from gpu_parts.inputs import CLASSES, FAMILIES, Report, encoder, rows, tokenizer
from torch import Tensor

from carl_hf import CarlDataCollator, CarlModel, CarlTrainer, CarlTrainingArguments
from carl_hf.configuration_carl import HEADS
from carl_hf.encoders import packing
from carl_hf.encoders.packing import TokenLayout, encode_tokens, use_packed_attention
from carl_hf.objectives import OBJECTIVES
from carl_hf.training.gradient_cache import CachedPass
from carl_hf.training.step import Step, perturb


def check_correctness(report: Report, device: torch.device) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16) if device.type == "cuda" else ():
        works = packing._variable_length_works(device, dtype, 64)
        report.check(f"attention of variable length fails in {dtype}", not works, 0)
    for family in FAMILIES:
        _check_step(report, family, device)
        for way in ("variable length", "padded slices") if device.type == "cuda" else ("padded slices",):
            kinds = packing.VARIABLE_LENGTH_DEVICES if way == "variable length" else set()
            with mock.patch.object(packing, "VARIABLE_LENGTH_DEVICES", kinds):
                _check_packing(report, family, device, way)
    _check_dropout_of_chunks(report, device)


def relative(found: Tensor | list[Tensor], expected: Tensor | list[Tensor]) -> float:
    """Length of the difference over that of what is expected; of several tensors the greatest."""
    if isinstance(found, list):
        return max(map(relative, found, expected))
    found, expected = (tensor.detach().double().cpu() for tensor in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


# ---- a step


@contextlib.contextmanager
def one_perturbation() -> Iterator[list[Step]]:
    """All steps take the first one's tokens and perturbation: a rounded sign or rank would be another attack. Yields
    what each would have chosen itself."""
    own: list[Step] = []

    def perturb_as_first(step: Step) -> None:
        perturb(step)
        own.append(copy.copy(step))
        for name in ("delta_TE", "perturbed_BL", "judged_BL"):
            setattr(step, name, getattr(own[0], name).to(step.words_TE.device))

    with mock.patch("carl_hf.trainer.perturb", perturb_as_first):
        yield own


def gradients_of(
    trainer: CarlTrainer, model: CarlModel, batch: dict[str, Any], dtype: torch.dtype | None = None, scale: float = 1.0
) -> tuple[float, list[Tensor]]:
    """Loss of a step, and the gradients of the encoder and of all else that is trained, each as one vector."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        with mock.patch.object(trainer, "_loss_scale", lambda: scale):
            loss = trainer.compute_loss(model, to_device(batch, device))
    (loss * scale).backward()
    parts: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            parts[name.startswith("online.encoder.")].append(parameter.grad.flatten().double().cpu() / scale)
    model.zero_grad()
    return loss.item(), [torch.cat(gradients) for gradients in parts.values()]


def _check_step(report: Report, family: str, device: torch.device) -> None:
    objectives = [name for name in OBJECTIVES if name != "simcse"]  # which contrasts two masks of dropout
    model = CarlModel.from_encoder(encoder(family), projection_dim=16, heads=HEADS, classes=CLASSES, dropout=0.0)
    model.train()
    texts, words = rows(24, seed=1), tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        args = CarlTrainingArguments(
            folder, objectives=objectives, label_space="circle12", perturb_half=False, per_device_train_batch_size=24,
            max_steps=1, head_warmup_epochs=0, bf16=False, report_to="none", use_cpu=device.type == "cpu",
        )  # fmt: skip
        trainer = CarlTrainer(model, args, train_dataset=texts, processing_class=words)
    whole, parts = (CarlDataCollator(words, classes=CLASSES, chunks=chunks)(texts) for chunks in (1, 3))
    on_cpu, on_device = copy.deepcopy(model).cpu(), model.to(device)
    with one_perturbation() as own:
        loss, gradients = gradients_of(trainer, on_cpu, whole)
        found, found_gradients = gradients_of(trainer, on_device, whole)
        report.check(f"{family}: loss of a step, float32", abs(found / loss - 1), 1e-5)
        report.check(f"{family}: its gradients", relative(found_gradients, gradients), 1e-4)
        _, in_parts = gradients_of(trainer, on_device, parts)
        report.check(f"{family}: gradients in three chunks", relative(in_parts, found_gradients), 1e-4)
        chosen = [step.perturbed_BL.cpu() for step in own[:2]]
        report.check(f"{family}: share of tokens chosen otherwise", (chosen[0] != chosen[1]).float().mean(), 0.01)
        for dtype, scale in ((torch.bfloat16, 1.0), (torch.float16, 1024.0)) if family == "roberta" else ():
            if dtype == torch.float16 and device.type == "cpu":
                continue  # which computes in float32
            half, half_gradients = gradients_of(trainer, on_device, whole, dtype, scale)
            report.check(f"{family}: loss of a step, {dtype}", abs(half / loss - 1), 0.05)
            report.check(f"{family}: its gradients", relative(half_gradients, gradients), 0.3)


def _check_dropout_of_chunks(report: Report, device: torch.device) -> None:
    """The second encoding of a chunk, with gradient, sees the dropout of the first."""
    model = CarlModel.from_encoder(encoder("roberta"), projection_dim=16).to(device).train()
    model.use_packed_attention()
    batch = to_device(CarlDataCollator(tokenizer(), chunks=3)(rows(24, seed=1)), device)
    layout = TokenLayout.of(batch)
    words_TE = model.word_embeddings(layout.pack(batch["input_ids"]))
    cached = CachedPass(model.embed_packed, words_TE, layout, backward_follows=True)
    again = []
    for chunk, state in zip(layout.chunks, cached._states, strict=True):
        with state.restored():
            again.append(model.embed_packed(words_TE[chunk.tokens], chunk))
    report.check("dropout in a chunk's second encoding", relative(torch.cat(again), cached.pooled_BH), 1e-5)


# ---- packed texts


def _check_packing(report: Report, family: str, device: torch.device, way: str) -> None:
    model = encoder(family).to(device)
    batch = to_device(CarlDataCollator(tokenizer())(rows(24, seed=1)), device)
    ids, mask, layout = batch["input_ids"], batch["attention_mask"], TokenLayout.of(batch)
    padded_TH = layout.pack(model(input_ids=ids, attention_mask=mask).last_hidden_state)
    use_packed_attention(model)
    words_TE = model.get_input_embeddings()(layout.pack(ids))
    packed_TH = encode_tokens(model, words_TE, layout)
    report.check(f"{family}: packed against padded texts, {way}", relative(packed_TH, padded_TH), 1e-5)
    weights_TH = torch.randn(padded_TH.shape, generator=torch.Generator().manual_seed(0)).to(device)
    of_padded, of_packed = (
        torch.autograd.grad((states * weights_TH).sum(), model.parameters(), allow_unused=True, materialize_grads=True)
        for states in (padded_TH, packed_TH)
    )
    gradients = (torch.cat([gradient.flatten() for gradient in found]) for found in (of_packed, of_padded))
    report.check(f"{family}: their gradients, {way}", relative(*gradients), 1e-4)
    own_T = torch.repeat_interleave(mask.sum(1)) == 2
    with torch.no_grad():
        others_TE = torch.where(own_T.unsqueeze(1), words_TE, torch.randn_like(words_TE))
        changed = encode_tokens(model, others_TE, layout)[own_T]
    report.check(f"{family}: a text among other neighbours, {way}", relative(changed, packed_TH[own_T]), 1e-5)
