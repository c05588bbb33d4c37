"""Classification models trained whole, from a head that was fitted on the frozen encoder: linear probing, then
fine-tuning (Kumar et al. 2022, ICLR).

Shape suffixes: N texts, K outputs.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.splits import split_rows
from carl_hf.encoders.classifiers import Classifier, token_ids
from carl_hf.encoders.embedding import EncodeOnce
from carl_hf.evaluation.probes import best_threshold
from carl_hf.evaluation.valence_arousal import labels_of
from carl_hf.export.kept_answers import keeping_answers
from carl_hf.export.last_layer import reading_once
from carl_hf.export.regression import Loss, explained_variance, weighted_squared_error
from carl_hf.utils.devices import kept_random_state

logger = logging.getLogger(__name__)

_RATE_OF_WIDTH_1 = 0.04
_WARMUP, _WEIGHT_DECAY, _MAX_GRAD_NORM = 0.1, 0.01, 1.0


@dataclass(frozen=True)
class HeadTraining:
    """How a task head and its encoder are trained together.

    Args:
        learning_rate: the greatest: it rises in the first tenth of the steps, and then falls to 0 on a line. By
            default 0.04 / width of the encoder: 1e-4 for minilm-l6, 5.2e-5 for a base model.
        epochs: at most. patience: epochs without a better result on development texts after which training stops.
        batch_size: texts of a step.
        fewest_texts: with fewer training texts the encoder stays frozen.
        bf16: compute in bfloat16 (autocast), from the fit of the head on. seed: of dropout and the order of the texts.
    """

    learning_rate: float | None = None
    epochs: int = 5
    patience: int = 2
    batch_size: int = 32
    fewest_texts: int = 1000
    bf16: bool = False
    seed: int = 42

    def __post_init__(self):
        rate, counts = self.learning_rate, (self.epochs, self.patience, self.batch_size)
        if not ((rate is None or rate > 0) and min(counts) >= 1):
            raise ValueError(
                "Training a head takes a learning rate above 0, and epochs, patience and a batch size of at least 1, "
                f"got {rate}, {', '.join(map(str, counts))}."
            )

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)

    def rate_for(self, model: PreTrainedModel) -> float:
        return self.learning_rate or _RATE_OF_WIDTH_1 / model.config.hidden_size


def train_va_regressor(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Dataset, dev: Dataset, training: HeadTraining,
    *, max_length: int = 128,
) -> dict[str, Any] | None:  # fmt: skip
    """Trains a valence-arousal regressor in place, by the squared error of each dimension over its variance.

    Args:
        model: as from [`carl_hf.export.task_heads.fit_va_regressor`]. train, dev: as there.

    Returns:
        as [`_train`]; the metric is the share of the variance that is explained (R2), the mean of the dimensions.
    """
    dimensions = tuple(model.config.id2label.values())
    labels, truth = ((labels_of(data, dimensions=dimensions) + 1) / 2 for data in (train, dev))

    return _train(
        model, tokenizer, train["text"], labels.astype(np.float32), dev["text"], training,
        loss=weighted_squared_error(labels, model.device), score=lambda outputs: explained_variance(outputs, truth),
        metric="explained variance (R2)", max_length=max_length,
    )  # fmt: skip


def train_emotion_classifier(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: ClassCorpus, training: HeadTraining,
    *, max_length: int = 128, class_weights: Literal["equal", "balanced"] = "equal", keep: Dataset | None = None,
    read: EncodeOnce | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """Trains an emotion classifier in place, by cross-entropy; one of a multi-label corpus by that of each class.

    Args:
        model, corpus, class_weights: as from and for [`carl_hf.export.task_heads.fit_classes`].
        keep: texts, valence, arousal: a head that is fitted to them keeps its answers (see
            [`carl_hf.export.kept_answers`]). read: what the last layer of `model` reads, if some of it is known.

    Returns:
        as [`_train`], and "kept": the number of texts in `keep`, where it is given; the metric is accuracy (percent),
        or macro F1 at the best thresholds of a multi-label corpus.
    """
    train, dev, _ = split_rows(corpus)
    (texts, labels), (dev_texts, truth) = corpus.part(train), corpus.part(dev)
    weight = None
    if class_weights == "balanced" and not corpus.multi_label:
        counts = np.bincount(labels, minlength=len(corpus.classes))
        weight = torch.tensor(len(labels) / (len(counts) * counts), dtype=torch.float32, device=model.device)

    def score(outputs_NK: np.ndarray) -> float:
        if corpus.multi_label:
            return float(np.mean([best_threshold(outputs_NK[:, c], truth[:, c])[0] for c in range(truth.shape[1])]))
        return 100 * float((outputs_NK.argmax(1) == truth).mean())

    def loss(outputs_NK: Tensor, target: Tensor) -> Tensor:
        if corpus.multi_label:
            return F.binary_cross_entropy_with_logits(outputs_NK, target)
        return F.cross_entropy(outputs_NK, target, weight=weight)

    labels = labels.astype(np.float32) if corpus.multi_label else labels
    metric, outputs = "macro F1" if corpus.multi_label else "accuracy", len(corpus.classes)
    with contextlib.ExitStack() as kept:
        objective: Loss = loss
        if keep is not None and len(texts) >= training.fewest_texts:
            read = read or reading_once(model, tokenizer, max_length)
            with training.autocast(model.device):
                answers = keeping_answers(model, read, keep, texts, labels, loss, seed=training.seed)
                texts, labels, objective = kept.enter_context(answers)
        found = _train(
            model, tokenizer, texts, labels, dev_texts, training, loss=objective,
            score=lambda outputs_NK: score(outputs_NK[:, :outputs]), metric=metric, max_length=max_length,
        )  # fmt: skip
    return found if found is None or keep is None else {**found, "kept": len(keep)}


def _train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], labels: np.ndarray,
    dev_texts: Sequence[str], training: HeadTraining, *, loss: Loss, score: Callable[[np.ndarray], float],
    metric: str, max_length: int,
) -> dict[str, Any] | None:  # fmt: skip
    """Trains a model in place, and leaves it with the weights of the epoch that is best on development texts, or with
    those it came with if no epoch is better.

    Returns:
        {"metric", "frozen" and "finetuned": its value on development texts before and at the best epoch, "chosen":
        which of the two is kept, "epoch": the best one, "learning_rate", "epochs", "batch_size"}; None if there are
        fewer texts than `fewest_texts`.
    """
    what = "valence-arousal head" if model.config.problem_type == "regression" else "emotion head"
    if len(texts) < training.fewest_texts:
        logger.info("%s: a linear one; it is fine-tuned from %d texts on.", what, training.fewest_texts)
        return None
    logger.info("%s: fine-tuning it with a copy of the encoder, %d epochs at most ...", what, training.epochs)
    classifier = Classifier(model, tokenizer)
    tokens, dev_tokens = (token_ids(part, tokenizer, max_length) for part in (texts, dev_texts))

    def measured() -> float:
        with training.autocast(model.device):
            outputs = classifier.predict(dev_tokens).numpy().astype(float)
        return score(outputs) if np.isfinite(outputs).all() else -np.inf

    frozen, weights, best, best_epoch = measured(), _weights(classifier), -np.inf, 0
    for epoch in train_epochs(classifier, tokens, labels, loss, training):
        value = measured()
        unit = " %" if metric == "accuracy" else ""
        logger.info(
            "%s, epoch %d: %s %.3g%s on development texts (before: %.3g%s)",
            what, epoch, metric, value, unit, frozen, unit,
        )  # fmt: skip
        if value > best:
            best, best_epoch = value, epoch
            if value > frozen:
                weights = _weights(classifier)
        elif epoch - best_epoch >= training.patience:
            break
    with torch.no_grad():
        for parameter, value in zip(classifier.parameters, weights, strict=True):
            parameter.copy_(value)
    model.eval()
    return {
        "metric": metric, "frozen": frozen, "finetuned": best if np.isfinite(best) else None,
        "chosen": "finetuned" if best > frozen else "frozen", "epoch": best_epoch, "epochs": training.epochs,
        "learning_rate": training.rate_for(model), "batch_size": training.batch_size,
    }  # fmt: skip


def train_epochs(
    classifier: Classifier, tokens: Sequence[list[int]], labels: np.ndarray, loss: Loss, training: HeadTraining
) -> Iterator[int]:
    """Trains all weights of a classification model, and yields the number of each epoch, from 1, when it is done.

    Args:
        tokens: ids of N texts, at least one. labels: (N, K) or (N,), the second argument of `loss`.
    """
    model, rng = classifier.model, np.random.default_rng(training.seed)
    device, batches = model.device, -(-len(tokens) // training.batch_size)
    optimizer = torch.optim.AdamW(
        classifier.parameters, lr=training.rate_for(model), weight_decay=_WEIGHT_DECAY, fused=True
    )
    steps = batches * training.epochs
    schedule = get_linear_schedule_with_warmup(optimizer, int(_WARMUP * steps), steps)
    with kept_random_state(device):
        torch.manual_seed(training.seed)
        for epoch in range(1, training.epochs + 1):
            model.train()
            drawn = np.array_split(rng.permutation(len(tokens)), batches)
            title = f"epoch {epoch} of at most {training.epochs}"
            for rows in tqdm(drawn, desc=title, leave=False, disable=None):
                rows = sorted(rows, key=lambda row: -len(tokens[row]))
                target = torch.from_numpy(labels[rows]).to(device)
                with training.autocast(device):
                    outputs = classifier.logits([tokens[row] for row in rows])
                loss(outputs.float(), target).backward()
                torch.nn.utils.clip_grad_norm_(classifier.parameters, _MAX_GRAD_NORM)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            yield epoch


def _weights(classifier: Classifier) -> list[Tensor]:
    return [parameter.detach().cpu().clone() for parameter in classifier.parameters]
