"""Losses against explicit loops written from the equations, closed-form cases and numerical gradients."""

import math

import pytest
import torch

from carl_hf.losses import focal_detection_loss, label_similarity, mccl_loss, symmetric_cross_entropy


def softmax(row):
    exps = [math.exp(x - max(row)) for x in row]
    return [e / sum(exps) for e in exps]


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def label_cosine(i, j, rows, columns):
    if i == j:
        return 1.0
    if rows[i] == [0, 0] or columns[j] == [0, 0]:
        return 0.0
    return cosine(rows[i], columns[j])


def mccl_oracle(online, target, va_rows, va_columns, temperature, label_temperature, kernel, row_offset=0):
    total = 0.0
    for i in range(len(online)):
        p = softmax([cosine(online[i], t) / temperature for t in target])
        if kernel == "cosine":
            va = {i + row_offset: va_rows[i]}
            similar = [label_cosine(i + row_offset, j, va, va_columns) for j in range(len(target))]
        else:
            similar = [1 - math.dist(va_rows[i], v) / math.sqrt(2) for v in va_columns]
        q = softmax([s / label_temperature for s in similar])
        total += sum(-qj * math.log(pj) - pj * math.log(qj) for pj, qj in zip(p, q, strict=True))
    return total / len(online)


def random_batch(seed, rows=5, columns=7, offset=2):
    generator = torch.Generator().manual_seed(seed)
    online = torch.randn(rows, 6, dtype=torch.float64, generator=generator)
    target = torch.randn(columns, 6, dtype=torch.float64, generator=generator)
    va = torch.rand(columns, 2, dtype=torch.float64, generator=generator) * 2 - 1
    va[offset + 1] = 0  # a zero label among this process's rows
    va[0] = 0  # and one among the others'
    return online, target, va[offset : offset + rows], va


@pytest.mark.parametrize("kernel", ["cosine", "distance"])
@pytest.mark.parametrize("temperatures", [(0.05, 1.0), (0.05, 0.05), (0.3, 0.2)])
def test_mccl_equals_loops_and_its_gradient_finite_differences(kernel, temperatures):
    online, target, va_rows, va = random_batch(0)
    options = {"temperature": temperatures[0], "label_temperature": temperatures[1], "kernel": kernel, "row_offset": 2}
    online.requires_grad_()
    loss = mccl_loss(online, target, va_rows, va, **options)
    arguments = (target.tolist(), va_rows.tolist(), va.tolist(), *temperatures, kernel, 2)
    assert loss.item() == pytest.approx(mccl_oracle(online.tolist(), *arguments), abs=1e-9)
    assert torch.autograd.gradcheck(lambda z: mccl_loss(z, target, va_rows, va, **options), online)


def test_mccl_of_angles_in_closed_form():
    # three texts at 0, 90 and 180 degrees, embeddings and labels alike: both rows of similarities are known by hand
    angles = torch.tensor([0, math.pi / 2, math.pi], dtype=torch.float64)
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    loss = mccl_loss(points, points, points, points, temperature=1.0, label_temperature=1.0)
    outer, middle = softmax([1, 0, -1]), softmax([0, 1, 0])
    entropy = [-sum(p * math.log(p) for p in row) for row in (outer, middle, outer)]
    assert loss.item() == pytest.approx(2 * sum(entropy) / 3, abs=1e-12)


def test_symmetric_cross_entropy_is_twice_the_entropy_at_equality_but_not_least_there():
    logits = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_q = logits.log_softmax(-1)
    at_equality = symmetric_cross_entropy(log_q, log_q)
    assert at_equality.item() == pytest.approx(-2 * (log_q.exp() * log_q).sum(-1).mean().item(), abs=1e-12)
    assert symmetric_cross_entropy((1.1 * logits).log_softmax(-1), log_q) < at_equality


def test_processes_average_to_the_global_batch():
    online, target, _, va = random_batch(2, rows=6, columns=6, offset=0)
    online.requires_grad_()
    options = {"temperature": 0.05, "label_temperature": 0.3}
    whole = mccl_loss(online, target, va, va, **options)
    parts = [mccl_loss(online[k : k + 3], target, va[k : k + 3], va, row_offset=k, **options) for k in (0, 3)]
    mean = (parts[0] + parts[1]) / 2
    torch.testing.assert_close(mean, whole, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(loss, online)[0] for loss in (mean, whole)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_zero_labels_have_similarity_one_to_themselves_and_zero_to_others():
    va = torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.0, 0.0], [-0.6, -0.8]])
    expected = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, -1], [0, 0, 1, 0], [0, -1, 0, 1]])
    torch.testing.assert_close(label_similarity(va, va), expected)


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


def test_distance_kernel_respects_intensity_where_cosine_does_not():
    va = torch.tensor([[0.1, 0.0], [1.0, 0.0]])
    assert label_similarity(va, va, kernel="cosine")[0, 1] == 1
    assert label_similarity(va, va, kernel="distance")[0, 1].item() == pytest.approx(1 - 0.9 / math.sqrt(2))
    corners = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    torch.testing.assert_close(label_similarity(corners, corners, kernel="distance")[0], torch.tensor([1.0, -1.0]))


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


def test_focal_loss_is_finite_for_extreme_logits():
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4]], requires_grad=True)
    perturbed = torch.tensor([[True, True, False, False]])
    focal_detection_loss(logits, perturbed, torch.ones(1, 4, dtype=torch.bool), gamma=2.0).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_focusing_exponent_below_one_has_a_finite_gradient_at_certainty(gamma, dtype):
    logits = torch.tensor([[1e4, -1e4, 40.0, -40.0, 17.0, 0.0]], dtype=dtype, requires_grad=True)
    perturbed = torch.tensor([[True, False, True, False, True, True]])
    focal_detection_loss(logits, perturbed, torch.ones_like(perturbed), gamma=gamma).backward()
    assert logits.grad.isfinite().all() and logits.grad[0, 0] == 0 and logits.grad[0, -1] < 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_float32_under_autocast(dtype):
    online, target, va_rows, va = (t.to(torch.float32) for t in random_batch(4))
    options = {"temperature": 0.05, "label_temperature": 0.3, "row_offset": 2}
    expected = mccl_loss(online.to(dtype).float(), target, va_rows, va, **options)
    with torch.autocast("cpu", dtype=dtype):
        loss = mccl_loss(online.to(dtype), target, va_rows, va, **options)
        detection = focal_detection_loss(
            torch.randn(2, 3).to(dtype), torch.ones(2, 3).bool(), torch.ones(2, 3).bool(), gamma=2.0
        )
    assert loss.dtype == detection.dtype == torch.float32 and detection.isfinite()
    torch.testing.assert_close(loss, expected)
