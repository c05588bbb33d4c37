"""SentEval's linear probe on frozen embeddings: softmax regression, all folds and l2 values in one computation.

Source: Conneau and Kiela, "SentEval: An Evaluation Toolkit for Universal Sentence Representations", LREC 2018,
arXiv 1803.05449. The loss is the mean over the batch, which is what its code computes under any recent torch (before
torch 0.4.1 it was the sum); the l2 values here go with the mean.

Shape suffixes: N texts, H features, C classes, F folds, R runs of a fold (one for each l2), B texts of a batch. I is
H + 1: the bias is the weight of a last feature that is 1. The weights of a fold lie as (R * C, I), so that a batch is
gathered once for all runs and a step is two batched matrix products.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

_HELD_OUT = 0.05  # of the outer training part, for early stopping of the refit
# Folds are trained together as far as a batch of them stays in the processor's cache: beyond, a step waits for memory.
_GATHERED_BYTES = 4 << 20


@dataclass(frozen=True)
class Protocol:
    """How probes are trained: Adam has a learning rate of 1e-3, RMSprop of 1e-2; `epoch_size` epochs are a round."""

    name: str
    folds: int
    optimizer: Literal["adam", "rmsprop"]
    batch_size: int
    tenacity: int
    epoch_size: int
    l2: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2)
    max_epochs: int = 200

    def __post_init__(self):
        if self.optimizer not in ("adam", "rmsprop"):
            raise ValueError(f"Unknown optimizer {self.optimizer!r}: choose 'adam' or 'rmsprop'.")


TEST_PROTOCOL = Protocol("test", folds=10, optimizer="adam", batch_size=64, tenacity=5, epoch_size=4)
FAST_PROTOCOL = Protocol("fast", folds=5, optimizer="rmsprop", batch_size=128, tenacity=3, epoch_size=2)


@dataclass(frozen=True)
class Probes:
    """Weights (F, R, H, C) and biases (F, R, C) of each run's best round, and its dev accuracy (F, R) in percent."""

    weights: Tensor
    biases: Tensor
    dev_accuracy: np.ndarray

    def predict(self, features_NH: np.ndarray, fold: int, run: int) -> np.ndarray:
        """Class numbers (N,)."""
        features = torch.as_tensor(_checked_features(features_NH)).to(self.weights)
        return (features @ self.weights[fold, run] + self.biases[fold, run]).argmax(1).cpu().numpy()


@dataclass(frozen=True)
class SentevalResult:
    """Nested k-fold: each text's prediction (N,) from the outer fold it was held out in, accuracy in percent (mean
    over the outer folds, each in `fold_accuracies`), and the l2 chosen for each outer fold."""

    predictions: np.ndarray
    accuracy: float
    fold_accuracies: tuple[float, ...]
    l2: tuple[float, ...]


@dataclass(frozen=True)
class SplitResult:
    """Predictions (N,) for the test part, the l2 chosen on dev and the accuracy there in percent."""

    predictions: np.ndarray
    l2: float
    dev_accuracy: float


@torch.no_grad()
def train_probes(
    features_NH: np.ndarray, labels_N: np.ndarray, classes: int, train_rows: Sequence[np.ndarray],
    dev_rows: Sequence[np.ndarray], l2: Sequence[Sequence[float]], protocol: Protocol, *, seed: int = 1111,
    device: str | torch.device = "cpu",
) -> Probes:  # fmt: skip
    """Softmax regressions with early stopping, one for each fold and each of its l2 values, in float32.

    A round is `protocol.epoch_size` epochs, followed by the accuracy on the fold's dev rows. A run keeps the weights
    of its best round (the first of equals). It stops in the round without improvement that has `tenacity` such rounds
    before it, in a row or not, or after `max_epochs`.

    Fold f draws from a torch.Generator of its own, seeded with `seed + f`: first weights and biases as torch.nn.Linear
    does, the same for all its runs, then one torch.randperm of its training rows an epoch, shared by its runs.

    Args:
        features_NH, labels_N: texts of all folds and their class numbers, 0 to classes - 1.
        train_rows, dev_rows: F arrays each of row numbers; their sizes may differ.
        l2: F sequences of R values; l2 is added to the gradient, of weights and biases, as `weight_decay` of
            torch.optim.Adam and RMSprop.

    Raises:
        ValueError: if a feature is not finite, a label is not one of the classes, or a fold lacks train or dev rows.
    """
    table_NI = _with_bias(_checked_features(features_NH)).to(device)
    labels_N = torch.as_tensor(_checked_labels(labels_N, classes)).to(device)
    for part, folds in (("training", train_rows), ("dev", dev_rows)):
        if empty := [f for f, rows in enumerate(folds) if len(rows) == 0]:
            raise ValueError(f"Fold {empty[0]} has no {part} rows: every fold needs at least one.")
    l2_FR = torch.tensor([list(values) for values in l2], dtype=torch.float32)

    (num_folds, runs), width = l2_FR.shape, table_NI.shape[1]
    best = torch.empty(num_folds, runs, classes, width, device=device)
    accuracy = np.empty((num_folds, runs))
    largest_first = sorted(range(num_folds), key=lambda f: -len(train_rows[f]))
    together = max(1, _GATHERED_BYTES // (protocol.batch_size * width * table_NI.element_size()))
    for start in range(0, num_folds, together):
        chunk = largest_first[start : start + together]
        generators = [torch.Generator().manual_seed(seed + f) for f in chunk]
        train = [torch.as_tensor(train_rows[f]) for f in chunk]
        dev = [torch.as_tensor(dev_rows[f], device=device) for f in chunk]
        folds = _Folds(table_NI, labels_N, classes, train, l2_FR[chunk].to(device), protocol, generators)
        best[chunk], accuracy[chunk] = _train_with_early_stopping(folds, dev, protocol)
    best = best.transpose(2, 3)
    return Probes(best[:, :, :-1], best[:, :, -1], accuracy)


def nested_kfold(
    features_NH: np.ndarray, labels_N: np.ndarray, protocol: Protocol, *, seed: int = 1111,
    device: str | torch.device = "cpu",
) -> SentevalResult:  # fmt: skip
    """Nested stratified k-fold, SentEval's way for a corpus without splits (MR, CR).

    The l2 of an outer fold has the best mean accuracy over the inner folds of its training part (in percent to two
    decimals, the smallest l2 of equals); the probe is then refitted on that part, of which 5 %, drawn at random, are
    kept for early stopping, and predicts the outer fold. Labels are numbers from 0, every number in use.

    Raises:
        ValueError: if a class has fewer than k + 2 texts (each outer training part needs k of them for its k inner
            folds), if a label is not a class number, or if a feature is not finite.
    """
    from sklearn.model_selection import StratifiedKFold

    labels = _checked_labels(labels_N, None)
    k = protocol.folds
    for number, count in enumerate(np.bincount(labels)):
        if count < k + 2:
            raise ValueError(
                f"Class {number} has {count} texts, nested {k}-fold needs at least {k + 2}: add texts of this class, "
                "leave the class out, or use a protocol with fewer folds."
            )
    classes = int(labels.max()) + 1
    splitter = StratifiedKFold(k, shuffle=True, random_state=seed)
    outer = list(splitter.split(labels, labels))
    inner = [(rows[a], rows[b]) for rows, _ in outer for a, b in splitter.split(rows, labels[rows])]
    options = {"seed": seed, "device": device}

    train, dev = zip(*inner, strict=True)
    probes = train_probes(features_NH, labels, classes, train, dev, [protocol.l2] * len(inner), protocol, **options)
    means = probes.dev_accuracy.reshape(k, k, -1).mean(1)
    l2 = tuple(protocol.l2[_first_best(row)] for row in means)

    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(rows) for rows, _ in outer]
    dev, train = zip(*(np.split(rows, [max(1, int(_HELD_OUT * len(rows)))]) for rows in shuffled), strict=True)
    probes = train_probes(features_NH, labels, classes, train, dev, [[value] for value in l2], protocol, **options)

    predictions = np.empty_like(labels)
    for fold, (_, test) in enumerate(outer):
        predictions[test] = probes.predict(features_NH[test], fold, 0)
    accuracies = tuple(100 * float((predictions[test] == labels[test]).mean()) for _, test in outer)
    return SentevalResult(predictions, float(np.mean(accuracies)), accuracies, l2)


def split_probe(
    train: np.ndarray, train_labels: np.ndarray, dev: np.ndarray, dev_labels: np.ndarray, test: np.ndarray,
    protocol: Protocol, *, classes: int, seed: int = 1111, device: str | torch.device = "cpu",
) -> SplitResult:  # fmt: skip
    """A corpus with splits (SST5): l2 and early stopping by the accuracy on dev, then predictions for test.

    Args:
        train, dev, test: features (N, H) of three disjoint sets of texts. train_labels, dev_labels: class numbers
            (N,), 0 to classes - 1.

    Raises:
        ValueError: as `train_probes`.
    """
    features, labels = np.concatenate([train, dev]), np.concatenate([train_labels, dev_labels])
    rows = np.split(np.arange(len(features)), [len(train)])
    probes = train_probes(
        features, labels, classes, rows[:1], rows[1:], [protocol.l2], protocol, seed=seed, device=device
    )
    chosen = _first_best(probes.dev_accuracy[0])
    return SplitResult(probes.predict(test, 0, chosen), protocol.l2[chosen], float(probes.dev_accuracy[0, chosen]))


def _first_best(accuracies: np.ndarray) -> int:
    """Index of the highest accuracy in percent to two decimals, the first of equals."""
    return int(np.argmax(np.round(accuracies, 2)))


def _checked_features(features_NH: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold is reported below
        features = np.ascontiguousarray(features_NH, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(features)} texts have a feature that is NaN or infinite in float32, the first is row "
            f"{bad[0]}: check the embeddings."
        )
    return features


def _checked_labels(labels_N: np.ndarray, classes: int | None) -> np.ndarray:
    labels = np.asarray(labels_N)
    numbers = labels.astype(np.int64)
    if (numbers != labels).any() or numbers.min() < 0 or (classes is not None and numbers.max() >= classes):
        last = "" if classes is None else f" to {classes - 1}"
        raise ValueError(f"Labels must be class numbers from 0{last}, got {labels.min()} to {labels.max()}.")
    return numbers


def _with_bias(features_NH: np.ndarray) -> Tensor:
    """(N + 1, I): a last feature of 1, and a last row of zeros with which batches are padded: it adds nothing to a
    gradient, so that no mask is needed."""
    features = torch.as_tensor(features_NH)
    table = features.new_zeros(len(features) + 1, features.shape[1] + 1)
    table[:-1, :-1], table[:-1, -1] = features, 1
    return table


def _initial_probe(width: int, classes: int, generator: torch.Generator) -> Tensor:
    """(C, I), uniform within 1 / sqrt(H), weights drawn before biases: the initialisation of torch.nn.Linear."""
    bound = 1 / math.sqrt(width - 1)
    weights = torch.empty(classes, width - 1).uniform_(-bound, bound, generator=generator)
    biases = torch.empty(classes).uniform_(-bound, bound, generator=generator)
    return torch.cat([weights, biases[:, None]], dim=1)


class _Folds:
    """Folds in training: weights (F, R * C, I), state of their optimizers, what is drawn for them.

    The folds come with the largest first: those that have a batch left at a step are always the first ones then, and
    a step works on a slice of everything.
    """

    def __init__(
        self, table_NI: Tensor, labels_N: Tensor, classes: int, rows: Sequence[Tensor], l2_FR: Tensor,
        protocol: Protocol, generators: Sequence[torch.Generator],
    ):  # fmt: skip
        self.table, self.labels, self.classes, self.runs = table_NI, labels_N, classes, l2_FR.shape[1]
        self.onehot = table_NI.new_zeros(len(table_NI), classes)  # the padding row's stays zero
        self.onehot[torch.arange(len(labels_N)), labels_N] = 1
        self.rows, self.generators, self.protocol = list(rows), list(generators), protocol
        start = torch.stack([_initial_probe(table_NI.shape[1], classes, g) for g in generators])
        self.weights = start.repeat(1, self.runs, 1).to(table_NI.device)
        self.decay = l2_FR.repeat_interleave(classes, dim=1).unsqueeze(2)
        self.state = {"square": torch.zeros_like(self.weights)}
        if protocol.optimizer == "adam":
            self.state["mean"] = torch.zeros_like(self.weights)
            self.state["steps"] = torch.zeros(len(rows), 1, 1, dtype=torch.float64, device=table_NI.device)

    def keep(self, alive: np.ndarray) -> None:
        """Leaves only the folds that are True."""
        kept = np.flatnonzero(alive).tolist()
        self.rows, self.generators = [self.rows[i] for i in kept], [self.generators[i] for i in kept]
        self.weights, self.decay = self.weights[kept], self.decay[kept]
        self.state = {name: value[kept] for name, value in self.state.items()}

    def correct(self, fold: int, rows: Tensor) -> np.ndarray:
        """How many of the rows each run of a fold gets right, (R,)."""
        logits = (self.weights[fold] @ self.table[rows].T).view(self.runs, self.classes, len(rows))
        return (logits.argmax(1) == self.labels[rows]).sum(1).cpu().numpy()

    def train_epoch(self) -> None:
        """One pass over each fold's training rows in a new order."""
        batch, width, device = self.protocol.batch_size, self.table.shape[1], self.table.device
        sizes = torch.tensor([len(rows) for rows in self.rows])
        steps = math.ceil(len(self.rows[0]) / batch)
        order = torch.full((len(self.rows), steps * batch), len(self.table) - 1)  # of the padding row
        for row, rows, generator in zip(order, self.rows, self.generators, strict=True):
            row[: len(rows)] = rows[torch.randperm(len(rows), generator=generator)]
        order = order.view(-1, steps, batch).transpose(0, 1).contiguous().to(device)
        sizes = (sizes - batch * torch.arange(steps)[:, None]).clamp(0, batch)  # texts of each batch, (steps, F)
        shares = (1 / sizes.clamp_min(1)).to(device)

        gathered = self.table.new_empty(order[0].numel(), width)
        gradient = torch.empty_like(self.weights)
        for step, folds in enumerate((sizes > 0).sum(1).tolist()):
            rows = order[step, :folds].view(-1)
            x = torch.index_select(self.table, 0, rows, out=gathered[: len(rows)]).view(folds, batch, width)
            y = self.onehot[rows].view(folds, 1, batch, self.classes).transpose(2, 3)
            w, g = self.weights[:folds], gradient[:folds]
            logits = torch.bmm(w, x.transpose(1, 2)).view(folds, self.runs, self.classes, batch)
            # gradient of the mean cross-entropy: in the logits first, then in the weights
            errors = logits.softmax(2).sub_(y).mul_(shares[step, :folds].view(-1, 1, 1, 1))
            torch.bmm(errors.view(folds, -1, batch), x, out=g)
            g.addcmul_(self.decay[:folds], w)
            _update(w, g, {name: value[:folds] for name, value in self.state.items()})


def _update(weights: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> None:
    """A step of torch.optim.Adam, or of RMSprop where the state holds no mean, in place; the gradient is used up."""
    square = state["square"]
    if "mean" not in state:
        square.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
        weights.addcdiv_(gradient, square.sqrt().add_(1e-8), value=-1e-2)
        return
    state["steps"].add_(1)
    state["mean"].lerp_(gradient, 0.1)
    square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    # the corrections for the start from zero are one number a fold: outside the fraction they cost nothing per weight
    root = (1 - 0.999 ** state["steps"]).sqrt()
    rate = 1e-3 * root / (1 - 0.9 ** state["steps"])
    torch.sqrt(square, out=gradient).add_((1e-8 * root).float()).div_(rate.float())
    weights.addcdiv_(state["mean"], gradient, value=-1)


def _train_with_early_stopping(
    folds: _Folds, dev_rows: Sequence[Tensor], protocol: Protocol
) -> tuple[Tensor, np.ndarray]:
    """Weights (F, R, C, I) of each run's best round, and the dev accuracy (F, R) there in percent."""
    shape = (len(dev_rows), folds.runs, folds.classes, -1)
    best = folds.weights.clone().view(shape)
    most_correct, failures = np.full(shape[:2], -1), np.zeros(shape[:2], dtype=int)
    running = np.ones(shape[:2], dtype=bool)
    here = np.arange(len(dev_rows))  # numbers of the folds that are left
    for _ in range(math.ceil(protocol.max_epochs / protocol.epoch_size)):
        for _ in range(protocol.epoch_size):
            folds.train_epoch()
        correct = np.stack([folds.correct(i, dev_rows[f]) for i, f in enumerate(here)])
        improved = running[here] & (correct > most_correct[here])
        fold, run = np.nonzero(improved)
        most_correct[here[fold], run] = correct[fold, run]
        best[here[fold], run] = folds.weights.view(len(here), *shape[1:])[fold, run]
        running[here] &= improved | (failures[here] < protocol.tenacity)
        failures[here] += ~improved
        alive = running[here].any(1)
        if not alive.any():
            break
        if not alive.all():
            folds.keep(alive)
            here = here[alive]
    return best, 100 * most_correct / np.array([[len(rows)] for rows in dev_rows])
