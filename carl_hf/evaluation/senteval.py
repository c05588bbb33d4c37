"""SentEval's linear probe on frozen embeddings: softmax regression, all l2 values of a fold in one computation.

Source: Conneau and Kiela, "SentEval: An Evaluation Toolkit for Universal Sentence Representations", LREC 2018,
arXiv 1803.05449. The loss is the mean over the batch, as its code computes it under any recent torch (before torch
0.4.1 it was the sum); the l2 values here go with the mean.

Shape suffixes: N texts, H features, I = H + 1 (the bias is the weight of a last feature that is 1), C classes, R runs
of a fold, one for each l2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SEED = 1111  # of the published protocol, whatever the seed of everything else
_HELD_OUT = 0.05  # of an outer fold's training rows, for early stopping of its last probe


@dataclass(frozen=True)
class Protocol:
    """How probes are trained: Adam has a learning rate of 1e-3, RMSprop of 1e-2; `epoch_size` epochs are a round."""

    folds: int
    optimizer: Literal["adam", "rmsprop"]
    batch_size: int
    tenacity: int
    epoch_size: int
    l2: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2)
    max_epochs: int = 200


PROTOCOLS = {
    "test": Protocol(folds=10, optimizer="adam", batch_size=64, tenacity=5, epoch_size=4),
    "fast": Protocol(folds=5, optimizer="rmsprop", batch_size=128, tenacity=3, epoch_size=2),
}


def fewest_of_a_class(protocol: Protocol) -> int:
    """Texts that each class needs in nested k-fold: the training rows of an outer fold need k of them."""
    return protocol.folds + 2


class Result(NamedTuple):
    """Predictions (N,), their accuracy in percent (of nested k-fold the mean over the outer folds), and the chosen l2
    (of nested k-fold that of each outer fold)."""

    predictions: np.ndarray
    accuracy: float
    l2: tuple[float, ...]


def nested_kfold(
    features_NH: np.ndarray, labels_N: np.ndarray, protocol: Protocol, *, seed: int = SEED,
    device: str | torch.device = "cpu",
) -> Result:  # fmt: skip
    """Nested stratified k-fold, SentEval's way for a corpus without splits (MR, CR): a text's prediction is that of
    the outer fold it was held out in.

    The l2 of an outer fold has the best mean accuracy over the inner folds of its training rows (in percent to two
    decimals, the smallest l2 of equals); the probe is then fitted again on those rows, of which 5 %, drawn at random,
    are kept for early stopping, and predicts the outer fold.

    Raises:
        ValueError: if a class has fewer texts than [`fewest_of_a_class`], or if a feature is not finite.
    """
    from sklearn.model_selection import StratifiedKFold

    k, counts = protocol.folds, np.bincount(labels_N)
    if counts.min() < (least := fewest_of_a_class(protocol)):
        raise ValueError(
            f"Class {counts.argmin()} has {counts.min()} texts, nested {k}-fold needs at least {least}: add texts of "
            "this class, leave the class out, or use a protocol with fewer folds."
        )
    data = with_bias(features_NH).to(device), torch.as_tensor(labels_N, device=device), len(counts)
    splitter = StratifiedKFold(k, shuffle=True, random_state=seed)
    outer, rng = list(splitter.split(labels_N, labels_N)), np.random.default_rng(seed)
    predictions, chosen, accuracies = np.empty_like(labels_N), [], []
    for fold, (rows, test) in enumerate(outer):
        inner = enumerate(splitter.split(rows, labels_N[rows]))
        scores = [
            train_fold(*data, rows[train], rows[dev], protocol.l2, protocol, seed=seed + k * fold + i)[1]
            for i, (train, dev) in inner
        ]
        chosen.append(protocol.l2[_first_best(np.mean(scores, axis=0))])
        dev, train = np.split(rng.permutation(rows), [max(1, int(_HELD_OUT * len(rows)))])
        (weights,), _ = train_fold(*data, train, dev, chosen[-1:], protocol, seed=seed + fold)
        predictions[test] = _predict(weights, data[0], test)
        accuracies.append(100 * float((predictions[test] == labels_N[test]).mean()))
    return Result(predictions, float(np.mean(accuracies)), tuple(chosen))


def split_probe(
    features_NH: np.ndarray, labels_N: np.ndarray, train: np.ndarray, dev: np.ndarray, test: np.ndarray,
    protocol: Protocol, *, classes: int, seed: int = SEED, device: str | torch.device = "cpu",
) -> Result:  # fmt: skip
    """A corpus with splits (SST5): l2 and early stopping by the accuracy on dev, then predictions for test.

    Args:
        train, dev, test: row indices.

    Raises:
        ValueError: if a feature is not finite.
    """
    table_NI = with_bias(features_NH).to(device)
    labels = torch.as_tensor(labels_N, device=device)
    weights, accuracy = train_fold(table_NI, labels, classes, train, dev, protocol.l2, protocol, seed=seed)
    best = _first_best(accuracy)
    predictions = _predict(weights[best], table_NI, test)
    return Result(predictions, 100 * float((predictions == labels_N[test]).mean()), (protocol.l2[best],))


@torch.no_grad()
def train_fold(
    table_NI: Tensor, labels_N: Tensor, classes: int, train: np.ndarray, dev: np.ndarray, l2: Sequence[float],
    protocol: Protocol, *, seed: int,
) -> tuple[Tensor, np.ndarray]:  # fmt: skip
    """Softmax regressions with early stopping, one for each l2, in float32.

    A round is `protocol.epoch_size` epochs, followed by the accuracy on dev. A run keeps the weights of its best round
    (the first of equals). It stops in the round without improvement that has `tenacity` such rounds before it, in a
    row or not, or after `max_epochs`.

    Args:
        table_NI: from [`with_bias`]. labels_N: class indices, 0 to classes - 1. train, dev: row indices.
        l2: R values, added to the gradient of weights and bias as `weight_decay` of torch.optim.Adam and RMSprop.
        seed: of first weights and biases, as torch.nn.Linear draws them, the same for all runs, then of one
            torch.randperm of the training rows an epoch.

    Returns:
        weights (R, C, I) of each run's best round, and its dev accuracy (R,) in percent.
    """
    generator, device = torch.Generator().manual_seed(seed), table_NI.device
    bound, width, runs = 1 / math.sqrt(table_NI.shape[1] - 1), table_NI.shape[1], len(l2)
    start_CI = torch.cat(
        [torch.empty(classes, columns).uniform_(-bound, bound, generator=generator) for columns in (width - 1, 1)], 1
    )
    weights = start_CI.repeat(runs, 1).to(device)  # (R * C, I)
    decay = torch.tensor(l2, dtype=torch.float32, device=device).repeat_interleave(classes)[:, None]
    optimizer = _Optimizer(weights, protocol.optimizer)
    onehot_NC = F.one_hot(labels_N, classes).to(weights.dtype)
    train, dev = torch.as_tensor(train), torch.as_tensor(dev, device=device)
    best, most_correct = weights.clone().view(runs, classes, width), np.full(runs, -1)
    failures, running = np.zeros(runs, dtype=int), np.ones(runs, dtype=bool)
    for _ in range(math.ceil(protocol.max_epochs / protocol.epoch_size)):
        for _ in range(protocol.epoch_size):
            order = train[torch.randperm(len(train), generator=generator)].to(device)
            for rows in order.split(protocol.batch_size):
                x = table_NI[rows]
                logits = (weights @ x.T).view(runs, classes, len(rows))
                # gradient of the mean cross-entropy: in the logits first, then in the weights
                errors = logits.softmax(1).sub_(onehot_NC[rows].T).mul_(1 / len(rows))
                optimizer.step((errors.view(-1, len(rows)) @ x).addcmul_(decay, weights))
        logits = (weights @ table_NI[dev].T).view(runs, classes, len(dev))
        correct = (logits.argmax(1) == labels_N[dev]).sum(1).cpu().numpy()
        improved = running & (correct > most_correct)
        most_correct[improved] = correct[improved]
        best[improved] = weights.view(best.shape)[improved]
        running &= improved | (failures < protocol.tenacity)
        failures += ~improved
        if not running.any():
            break
    return best, 100 * most_correct / len(dev)


def with_bias(features_NH: np.ndarray) -> Tensor:
    """(N, I) in float32: the features, and a last one of 1. A ValueError if a feature is not finite."""
    with np.errstate(over="ignore"):  # what float32 cannot hold is reported below
        features = np.asarray(features_NH, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(features)} texts have a feature that is NaN or infinite in float32, the first is row "
            f"{bad[0]}: check the embeddings."
        )
    return torch.as_tensor(np.pad(features, ((0, 0), (0, 1)), constant_values=1))


def _predict(weights_CI: Tensor, table_NI: Tensor, rows: np.ndarray) -> np.ndarray:
    features = table_NI[torch.as_tensor(rows, device=table_NI.device), :-1]
    return (features @ weights_CI[:, :-1].T + weights_CI[:, -1]).argmax(1).cpu().numpy()


def _first_best(accuracies: np.ndarray) -> int:
    """Index of the highest accuracy in percent to two decimals, the first of equals."""
    return int(np.argmax(np.round(accuracies, 2)))


class _Optimizer:
    """A step of torch.optim.Adam or RMSprop, in place and without their overhead; the gradient is used up."""

    def __init__(self, weights: Tensor, name: Literal["adam", "rmsprop"]):
        self._weights, self._name, self._steps = weights, name, 0
        self._mean, self._square = torch.zeros_like(weights), torch.zeros_like(weights)

    def step(self, gradient: Tensor) -> None:
        if self._name == "rmsprop":
            self._square.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
            self._weights.addcdiv_(gradient, self._square.sqrt().add_(1e-8), value=-1e-2)
            return
        self._steps += 1
        self._mean.lerp_(gradient, 0.1)
        self._square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        # both corrections for the start from zero as one factor
        root = (1 - 0.999**self._steps) ** 0.5
        torch.sqrt(self._square, out=gradient).add_(1e-8 * root).div_(1e-3 * root / (1 - 0.9**self._steps))
        self._weights.addcdiv_(self._mean, gradient, value=-1)
