"""Losses against explicit loops written from the equations, and numerical gradients."""

import math

import pytest
import torch

from carl_hf.losses import focal_detection_loss, label_similarity, mccl_loss

NAN = math.nan
SHARP = {"temperature": 0.05, "label_temperature": 0.05}
PARTIAL = [[0.5, -0.2], [0.3, NAN], [NAN, 0.8], [-0.7, NAN], [NAN, NAN], [-0.1, -0.9], [0.0, NAN]]
CASES = {
    "paper": {"temperature": 0.05, "label_temperature": 1.0}, "sharp": SHARP, "soft": {},
    "process": {"offset": 2, **SHARP}, "dominance": {"dimensions": 3}, "partial": {"labels": PARTIAL},
    "partial-process": {"labels": PARTIAL, "offset": 2}, "weights": {"labels": PARTIAL, "weighted": True},
    "process-weights": {"offset": 2, "weighted": True},
}  # fmt: skip


def similarity(i, j, labels, kernel):
    """By the rules, of two texts of a batch; NaN where they share no dimension."""
    a, b = labels[i], labels[j]
    shared = ~(a.isnan() | b.isnan())
    if not shared.any():
        return torch.tensor(NAN)
    if kernel == "distance":
        return 1 - (a - b)[shared].square().mean().sqrt()
    usual = labels[~labels.isnan()].square().mean()
    lengths = [torch.where(x.isnan(), usual, x.square()).sum().sqrt() for x in (a, b)]
    alike = (a * b)[shared].sum() / (lengths[0] * lengths[1]) if all(lengths) else torch.zeros(())
    return torch.ones(()) if i == j else alike


def mccl_oracle(online, target, table, weights, temperature, label_temperature):
    total = 0.0
    for z, alike, weight in zip(online, table, weights, strict=True):
        compared = ~alike.isnan()
        if compared.any():
            p = (torch.cosine_similarity(z, target[compared]) / temperature).softmax(0)
            q = (alike[compared] / label_temperature).softmax(0)
            total -= weight * (p * q.log() + q * p.log()).sum()
    return total


@pytest.mark.parametrize("kernel", ["cosine", "distance"])
@pytest.mark.parametrize("case", CASES)
def test_mccl_and_its_gradient_equal_loops(case, kernel):
    """Also of one process among several: its rows of the batch, whose sum counts by the labelled texts of all."""
    options = {"temperature": 0.3, "label_temperature": 0.2, **CASES[case]}
    offset, dimensions, weighted = (options.pop(k, 0) for k in ("offset", "dimensions", "weighted"))
    generator = torch.Generator().manual_seed(0)
    online, target = (torch.randn(7, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    labels = 2 * torch.rand(7, dimensions or 2, dtype=torch.float64, generator=generator) - 1
    labels[0] = labels[3] = 0
    if "labels" in options:
        labels = torch.tensor(options.pop("labels"), dtype=torch.float64)
    rows, online = slice(offset, offset + 4 if offset else 7), online.requires_grad_()
    weights = torch.arange(1, 8).double() if weighted else torch.ones(7).double()
    table = torch.stack([torch.stack([similarity(i, j, labels, kernel) for j in range(7)]) for i in range(7)])[rows]
    found = label_similarity(labels[rows], labels, kernel=kernel, row_offset=offset)
    torch.testing.assert_close(found, table.double(), rtol=1e-12, atol=1e-12, equal_nan=True)

    loss = mccl_loss(
        online[rows], target, labels[rows], labels, kernel=kernel, row_offset=offset,
        weight_G=weights if weighted else None, **options,
    )  # fmt: skip
    of_all = weights[~labels.isnan().all(1)].sum() * len(table) / 7
    expected = mccl_oracle(online[rows], target, table.double(), weights[rows], **options) / of_all
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(value, online)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_a_batch_without_any_number_costs_nothing():
    online, none = torch.randn(3, 4, requires_grad=True), torch.full((3, 2), NAN)
    loss = mccl_loss(online, online.detach(), none, none, temperature=0.1, label_temperature=1.0)
    assert loss.item() == 0 and not torch.autograd.grad(loss, online)[0].any()


def test_a_batch_of_zero_labels_or_of_one_text_has_a_finite_gradient():
    online = torch.randn(3, 4, requires_grad=True)
    zeros = torch.zeros(3, 2)
    mccl_loss(online, online.detach(), zeros, zeros, temperature=0.05, label_temperature=1.0).backward()
    assert online.grad.isfinite().all() and online.grad.abs().sum() > 0

    one = torch.randn(1, 4, requires_grad=True)
    loss = mccl_loss(one, one.detach(), torch.ones(1, 2), torch.ones(1, 2), temperature=0.05, label_temperature=1.0)
    assert loss.item() == 0
    loss.backward()
    assert one.grad.abs().sum() == 0


def test_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="'cosine' or 'distance'"):
        label_similarity(torch.ones(1, 2), torch.ones(1, 2), kernel="dot")


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss_equals_loops_and_its_gradient_finite_differences(gamma):
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(4, 6, dtype=torch.float64, generator=generator)
    perturbed = torch.rand(4, 6, generator=generator) < 0.3
    eligible = torch.rand(4, 6, generator=generator) < 0.7
    eligible[2] = False  # a text without an eligible token

    def oracle(values):
        total = 0.0
        for b in range(4):
            terms = []
            for t in range(6):
                if eligible[b, t]:
                    p = 1 / (1 + math.exp(-values[b][t]))
                    p_t = p if perturbed[b, t] else 1 - p
                    terms.append(-((1 - p_t) ** gamma) * math.log(p_t))
            total += sum(terms) / len(terms) if terms else 0.0
        return total / 4

    logits.requires_grad_()
    loss = focal_detection_loss(logits, perturbed, eligible, gamma=gamma)
    assert loss.item() == pytest.approx(oracle(logits.tolist()), abs=1e-9)
    assert torch.autograd.gradcheck(lambda x: focal_detection_loss(x, perturbed, eligible, gamma=gamma), logits)


@pytest.mark.parametrize("gamma", [0.01, 0.5, 0.99, 2.0])  # below 1 the derivative of x^gamma at 0 is infinite
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_focal_loss_has_a_finite_gradient_at_certainty_right_or_wrong(gamma, dtype):
    logits = torch.tensor([[1e4, -1e4, 40.0, -40.0, 17.0, -1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    perturbed = torch.tensor([[True, False, True, False, True, True, False, True]])
    focal_detection_loss(logits, perturbed, torch.ones_like(perturbed), gamma=gamma).backward()
    assert logits.grad.isfinite().all() and logits.grad[0, 0] == 0 and logits.grad[0, -1] < 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_float32_under_autocast(dtype):
    generator = torch.Generator().manual_seed(4)
    online, target, va = (torch.randn(5, k, generator=generator) for k in (6, 6, 2))
    options = {"temperature": 0.05, "label_temperature": 0.3}
    expected = mccl_loss(online.to(dtype).float(), target, va, va, **options)
    with torch.autocast("cpu", dtype=dtype):
        loss = mccl_loss(online.to(dtype), target, va, va, **options)
        detection = focal_detection_loss(
            torch.randn(2, 3).to(dtype), torch.ones(2, 3).bool(), torch.ones(2, 3).bool(), gamma=2.0
        )
    assert loss.dtype == detection.dtype == torch.float32 and detection.isfinite()
    torch.testing.assert_close(loss, expected)
