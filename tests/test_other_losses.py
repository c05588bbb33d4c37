"""The objectives beside CARL's own, against loops written from their papers, and gradcheck."""

import math

import pytest
import torch

from carl_hf.losses import (
    circular_loss,
    class_cross_entropy,
    proxy_anchor_loss,
    rank_n_contrast_loss,
    simcse_loss,
    supervised_contrastive_loss,
    va_regression_loss,
)

LABELS = [2, 0, -1, 2, 1, 0, 2, -1]  # a class without a text (3), one with one text (1), texts without a class


def embeddings(seed, rows=8, width=5):
    return torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def proxy_anchor_oracle(z, labels, proxies, alpha, margin):
    attracted, pull, push = 0, 0.0, 0.0
    for p, proxy in enumerate(proxies):
        own = [x for x, label in zip(z, labels, strict=True) if label == p]
        others = [x for x, label in zip(z, labels, strict=True) if label not in (p, -1)]
        attracted += bool(own)
        pull += math.log(1 + sum(math.exp(-alpha * (cosine(x, proxy) - margin)) for x in own))
        push += math.log(1 + sum(math.exp(alpha * (cosine(x, proxy) + margin)) for x in others))
    return pull / max(attracted, 1) + push / len(proxies)


def circular_oracle(z, angles, margin):
    total, pairs = 0.0, 0
    for i in range(len(z)):
        for j in range(i + 1, len(z)):
            if math.isnan(angles[i]) or math.isnan(angles[j]):
                continue
            pairs += 1
            error = cosine(z[i], z[j]) - math.cos(angles[i] - angles[j])
            if angles[i] == angles[j]:
                error = min(error + margin, 0)
            total += error**2
    return total / max(pairs, 1)


def sincere_oracle(z, labels, temperature):
    anchors = []
    for i, label in enumerate(labels):
        positives = [p for p, other in enumerate(labels) if p != i and other == label and label != -1]
        negatives = [n for n, other in enumerate(labels) if other not in (label, -1)]
        if not positives:
            continue
        rest = sum(math.exp(cosine(z[i], z[n]) / temperature) for n in negatives)
        costs = []
        for p in positives:
            one = math.exp(cosine(z[i], z[p]) / temperature)
            costs.append(-math.log(one / (one + rest)))
        anchors.append(sum(costs) / len(costs))
    return sum(anchors) / max(len(anchors), 1)


@pytest.mark.parametrize("alpha, margin", [(32.0, 0.1), (4.0, 0.0)])
def test_proxy_anchor_equals_loops(alpha, margin):
    z, proxies = embeddings(0), embeddings(1, rows=4)
    found = proxy_anchor_loss(z, torch.tensor(LABELS), proxies, alpha=alpha, margin=margin)
    expected = proxy_anchor_oracle(z.tolist(), LABELS, proxies.tolist(), alpha, margin)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    unlabelled = torch.full((8,), -1)
    assert proxy_anchor_loss(z, unlabelled, proxies, alpha=alpha, margin=margin).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_proxy_anchor_is_finite_at_the_ends_in_half_precision(dtype):
    # cosines of exactly 1 and -1, each both right and wrong; exp(32 * 1.1) is beyond half precision
    z = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]], dtype=dtype, requires_grad=True)
    proxies = torch.tensor([[1.0, 0], [-1, 0]], dtype=dtype, requires_grad=True)
    loss = proxy_anchor_loss(z, torch.tensor([0, 1, 1, 0]), proxies, alpha=32.0, margin=0.1)
    loss.backward()
    # each proxy: a wrong text of its class at -1 and a text of the other class at 1
    assert loss.item() == pytest.approx(32 * 1.1 + 32 * 1.1, abs=0.1)
    assert z.grad.isfinite().all() and proxies.grad.isfinite().all()


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_circular_equals_loops(margin):
    z = embeddings(2)
    angles = torch.tensor([0.0, 1, math.nan, 1, 4, 2, 1, 0], dtype=torch.float64)
    found = circular_loss(z, angles, same_label_margin=margin)
    assert found.item() == pytest.approx(circular_oracle(z.tolist(), angles.tolist(), margin), abs=1e-12)
    assert circular_loss(z, torch.full((8,), math.nan)).item() == 0


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_supervised_contrast_equals_loops(temperature):
    z = embeddings(3)
    found = supervised_contrastive_loss(z, torch.tensor(LABELS), temperature=temperature)
    assert found.item() == pytest.approx(sincere_oracle(z.tolist(), LABELS, temperature), rel=1e-10)
    # no two texts of a class; and texts of one class only, which have nothing to be told from
    assert supervised_contrastive_loss(z, torch.arange(8), temperature=temperature).item() == 0
    assert supervised_contrastive_loss(z, torch.zeros(8, dtype=torch.long)).item() == pytest.approx(0, abs=1e-12)


GRID = [[0.1, 0.2], [0.3, 0.2], [-0.1, 0.2], [math.nan, 0.2], [0.1, 0.2], [0.1, 0.4], [0.1, math.nan], [math.nan] * 2]


def rank_n_contrast_loops(z, va, temperature, similarity):
    """With torch, so that its gradient can be taken. Ties of the grid: distances as multiples of 0.1, squared, and in
    one dimension doubled."""

    def alike(a, b):
        return (a @ b / (a.norm() * b.norm()) if similarity == "cosine" else -(a - b).norm()) / temperature

    def apart(a, b):
        both = [round(10 * (x - y)) ** 2 for x, y in zip(a, b, strict=True) if x == x and y == y]
        return 2 * sum(both) / len(both) if both else -1

    costs = []
    for i in range(len(va)):
        for j in range(len(va)):
            if j != i and apart(va[i], va[j]) >= 0:
                rivals = [k for k in range(len(va)) if k != i and apart(va[i], va[k]) >= apart(va[i], va[j])]
                denominator = sum(alike(z[i], z[k]).exp() for k in rivals)
                costs.append(denominator.log() - alike(z[i], z[j]))
    return sum(costs) / len(costs)


@pytest.mark.parametrize("similarity", ["cosine", "distance"])
@pytest.mark.parametrize("temperature", [0.05, 2.0])
def test_rank_n_contrast_equals_loops_with_ties_and_missing_labels(temperature, similarity):
    z, va = embeddings(3).requires_grad_(), torch.tensor(GRID, dtype=torch.float64)
    loss = rank_n_contrast_loss(z, va, temperature=temperature, similarity=similarity)
    expected = rank_n_contrast_loops(z, GRID, temperature, similarity)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    (found,), (gradient,) = torch.autograd.grad(loss, z), torch.autograd.grad(expected, z)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)
    assert found[7].abs().sum() == 0 and found[[3, 6]].abs().sum() > 0  # a text without a label, two with one number
    for few in (va * math.nan, torch.where(torch.arange(8).unsqueeze(1) == 0, va, math.nan)):
        nothing = rank_n_contrast_loss(z, few, temperature=temperature, similarity=similarity)
        assert nothing.item() == 0 and not torch.autograd.grad(nothing, z)[0].any()


def test_simcse_equals_loops():
    z, view = embeddings(4), embeddings(5)
    total = 0.0
    for i in range(8):
        exps = [math.exp(cosine(z[i].tolist(), v) / 0.2) for v in view.tolist()]
        total -= math.log(exps[i] / sum(exps))
    assert simcse_loss(z, view, temperature=0.2).item() == pytest.approx(total / 8, rel=1e-10)


def test_cross_entropy_equals_loops_with_and_without_weights():
    logits, weights = embeddings(6, width=3), [1.0, 5.0, 0.5]

    def expected(weights):
        total, mass = 0.0, 0.0
        for row, label in zip(logits.tolist(), LABELS, strict=True):
            if label != -1:
                exps = [math.exp(x) for x in row]
                total -= weights[label] * math.log(exps[label] / sum(exps))
                mass += weights[label]
        return total / mass

    labels = torch.tensor(LABELS)
    assert class_cross_entropy(logits, labels).item() == pytest.approx(expected([1, 1, 1]), rel=1e-10)
    found = class_cross_entropy(logits, labels, weights_C=torch.tensor(weights))
    assert found.item() == pytest.approx(expected(weights), rel=1e-10)
    assert class_cross_entropy(logits, torch.full((8,), -1)).item() == 0


@pytest.mark.parametrize("name", ["proxy_anchor", "circular", "supcon", "simcse", "cross_entropy", "regression"])
def test_gradients_are_those_of_finite_differences(name):
    z, other = embeddings(7).requires_grad_(), embeddings(8, rows=3).requires_grad_()
    labels = torch.tensor([2, 0, -1, 2, 1, 0, 2, 1])
    angles = torch.tensor([0.0, 1, math.nan, 1, 4, 2, 1, 0], dtype=torch.float64)
    losses = {
        "proxy_anchor": (lambda z, p: proxy_anchor_loss(z, labels, p, alpha=4.0, margin=0.1), (z, other)),
        "circular": (lambda z: circular_loss(z, angles, same_label_margin=0.2), (z,)),
        "supcon": (lambda z: supervised_contrastive_loss(z, labels, temperature=0.3), (z,)),
        "simcse": (lambda z, v: simcse_loss(z, v, temperature=0.3), (z, embeddings(9).requires_grad_())),
        "cross_entropy": (lambda z, w: class_cross_entropy(z @ w.T, labels), (z, other)),
        "regression": (lambda z: va_regression_loss(z[:, :2], angles.unsqueeze(1).expand(-1, 2)), (z,)),
    }
    loss, arguments = losses[name]
    assert torch.autograd.gradcheck(loss, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_double(dtype):
    z, view, labels = embeddings(10), embeddings(11), torch.tensor(LABELS)
    angles = torch.arange(8) * 0.7
    for loss, tensors in (
        (lambda z: circular_loss(z, angles), (z,)),
        (lambda z: supervised_contrastive_loss(z, labels), (z,)),
        (lambda z: rank_n_contrast_loss(z, z[:, :2].double(), temperature=0.1, similarity="cosine"), (z,)),
        (lambda z, v: simcse_loss(z, v), (z, view)),
        (lambda z, p: proxy_anchor_loss(z, labels, p), (z, view[:4])),
    ):
        exact, half = loss(*tensors), loss(*(t.to(dtype) for t in tensors))
        assert half.dtype == torch.float32 and half.item() == pytest.approx(exact.item(), rel=0.05)
