"""Task heads on frozen encoders, as models that transformers loads: valence and arousal, and emotions.

A sequence-classification model reads the first token, through the dense layer and activation that its architecture
puts before the last linear layer. Here the encoder stays as it is, the dense layer is the one that CARL trained (the
pooler; section 3 of the paper), and the last layer is a probe fitted on the output of that activation.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.splits import divide, numbered, split_rows
from carl_hf.encoders.checks import check_tokenizer
from carl_hf.encoders.embedding import EncodeOnce, classifier_outputs
from carl_hf.encoders.loading import check_no_adapters, forget_head
from carl_hf.evaluation.probes import LinearProbe, best_threshold, fit_logistic, fit_multi_label, fit_ridge
from carl_hf.evaluation.valence_arousal import dimensions_of, labels_of
from carl_hf.export.last_layer import last_layer, reading_once, replace_rows, set_last_layer
from carl_hf.modeling_carl import CarlModel
from carl_hf.utils.devices import kept_random_state

FEWEST_TEXTS = 20
"""Texts with valence and arousal that a task head needs."""

_ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


@dataclass(frozen=True)
class Calibration:
    """Calibration of an emotion classifier, fitted on validation texts.

    Args:
        temperature: by which the logits were divided; already part of the exported weights.
        thresholds: class -> probability from which on it is predicted; None where each text has exactly one class.
    """

    temperature: float
    thresholds: dict[str, float] | None


def fit_va_regressor(
    model: CarlModel, tokenizer: PreTrainedTokenizerBase, train: Dataset, dev: Dataset, *, max_length: int = 128
) -> PreTrainedModel:
    """A sequence-classification model with problem type regression, labels valence and arousal, and outputs
    (v + 1) / 2, (a + 1) / 2, so that [-1, 1] becomes [0, 1]. Where all texts have dominance, it is a third output.

    Args:
        train, dev: columns text, valence, arousal (in [-1, 1]). The ridge strength with the least squared error on dev
            is taken.

    Raises:
        ValueError: for labels that are not on their corpus's scale.
    """
    dimensions = min(dimensions_of(train), dimensions_of(dev), key=len)
    regressor = _around_encoder(model, tokenizer, dimensions, "regression")
    fit_last_layer(regressor, tokenizer, train, dev, max_length=max_length)
    return regressor


def fit_last_layer(
    regressor: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Dataset, dev: Dataset, *, max_length: int
) -> None:
    """Fits the last layer of a valence-arousal regressor in place, the rest frozen; see [`fit_va_regressor`]."""
    read = reading_once(regressor, tokenizer, max_length)
    probe = ridge_head(read, train, dev, tuple(regressor.config.id2label.values()))
    set_last_layer(regressor, LinearProbe(probe.weight / 2, (probe.bias + 1) / 2))


def ridge_head(read: EncodeOnce, train: Dataset, dev: Dataset, dimensions: Sequence[str]) -> LinearProbe:
    """A linear head for `dimensions` in [-1, 1], on what the last layer of any classifier reads."""
    labels = [labels_of(data, dimensions=dimensions) for data in (train, dev)]
    return fit_ridge(read(train["text"]), labels[0], read(dev["text"]), labels[1], chosen_by="squared_error")


def with_development(train: Dataset, dev: Dataset | None, *, seed: int) -> tuple[Dataset, Dataset]:
    """Training and development texts; where there are none of the latter, a tenth of the former, drawn by `seed`: of a
    text that is repeated, all rows are in one of the two.

    Raises:
        ValueError: for fewer than `FEWEST_TEXTS` training texts, an empty `dev`, texts that are all the same, or what
            is no `datasets.Dataset`.
    """
    for data in (train, train if dev is None else dev):
        if not isinstance(data, Dataset):
            raise ValueError(f"A head is fitted to a datasets.Dataset, got {type(data).__name__}: Dataset.from_list.")
    train = train.with_format(None)
    if len(train) < FEWEST_TEXTS:
        raise ValueError(f"A valence-arousal head needs at least {FEWEST_TEXTS} texts with labels, got {len(train)}.")
    if dev is not None:
        if len(dev) == 0:
            raise ValueError("dev is empty: give development texts, or None for a tenth of train.")
        return train, dev.with_format(None)
    number_N = numbered(train["text"])
    drawn, others = divide(np.random.default_rng(seed).permutation(number_N.max() + 1), 1)
    if len(others) == 0:
        raise ValueError("The training texts are all the same, so that none can be drawn for development: pass dev.")
    in_dev = np.isin(number_N, drawn)
    return train.select(np.flatnonzero(~in_dev)), train.select(np.flatnonzero(in_dev))


def untrained_classifier(model: CarlModel, tokenizer: PreTrainedTokenizerBase, corpus: ClassCorpus) -> PreTrainedModel:
    """A sequence-classification model over the corpus's classes, before [`fit_classes`].

    Raises:
        ValueError: as [`check_classes`].
    """
    check_classes(corpus)
    return _around_encoder(model, tokenizer, corpus.classes, problem_type(corpus))


def fit_classes(
    classifier: PreTrainedModel, read: EncodeOnce, corpus: ClassCorpus, *,
    class_weights: Literal["equal", "balanced"],
) -> None:  # fmt: skip
    """Fits the last layer of a classifier in place, the rest frozen, by logistic regression on the corpus's train
    split, the strength chosen on its validation split (see [`carl_hf.data.splits.split_rows`]).

    Args:
        read: what that layer reads. class_weights: whether every text weighs the same, or every class; not used for
            multi-label corpora.
    """
    (texts, labels), (dev_texts, dev_labels) = (corpus.part(rows) for rows in split_rows(corpus)[:2])
    data = read(texts), labels, read(dev_texts), dev_labels
    probe, _ = fit_multi_label(*data) if corpus.multi_label else fit_logistic(*data, class_weights=class_weights)
    set_last_layer(classifier, probe)


def calibrate_classifier(
    classifier: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: ClassCorpus, *, max_length: int = 128
) -> Calibration:
    """Divides the last layer by the temperature that fits the corpus's validation split best, and chooses the
    thresholds of a multi-label corpus there, which its configuration then holds as `thresholds`."""
    texts, labels = corpus.part(split_rows(corpus)[1])
    logits = classifier_outputs(classifier, texts, tokenizer, max_length=max_length).numpy().astype(float)
    temperature = fit_temperature(logits, labels)
    with torch.no_grad():
        for parameter in classifier.get_submodule(last_layer(classifier)).parameters():
            parameter /= temperature
    vars(classifier.config).pop("thresholds", None)
    if not corpus.multi_label:
        return Calibration(temperature, None)
    cuts = [best_threshold(logits[:, c] / temperature, labels[:, c])[1] for c in range(labels.shape[1])]
    thresholds = class_probabilities(np.array(cuts), multi_label=True).tolist()
    classifier.config.thresholds = dict(zip(corpus.classes, thresholds, strict=True))
    return Calibration(temperature, classifier.config.thresholds)


def check_classes(corpus: ClassCorpus) -> None:
    """Raises a ValueError unless every class has a training text, and the validation and test splits have texts."""
    train, dev, test = split_rows(corpus)
    if 0 in (len(dev), len(test)):
        raise ValueError("The emotion corpus has an empty validation or test split: fill it, or leave out all splits.")
    labels = corpus.labels[train]
    counts = labels.sum(0) if corpus.multi_label else np.bincount(labels, minlength=len(corpus.classes))
    if (counts == 0).any():
        missing = ", ".join(repr(corpus.classes[c]) for c in np.flatnonzero(counts == 0))
        raise ValueError(f"No training text of the emotion corpus has the label {missing}: remove it or merge it.")


def problem_type(corpus: ClassCorpus) -> _ProblemType:
    return "multi_label_classification" if corpus.multi_label else "single_label_classification"


def class_probabilities(logits_NC: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """(N, C): the sigmoid of each logit for multi-label corpora, else the softmax."""
    logits = torch.from_numpy(logits_NC)
    return (logits.sigmoid() if multi_label else logits.softmax(1)).numpy()


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in [0.05, 20] that minimises the mean negative log likelihood of `logits / T` (N, C) (Guo et al. 2017).
    `labels` are class indices (N,) under a softmax, or booleans (N, C) under sigmoids."""
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        if labels.ndim == 2:
            return float(np.logaddexp(0, np.where(labels, -scaled, scaled)).mean())
        return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over bins of equal width, weighted by size
    (Guo et al. 2017). For labels (N,) of the predicted class, for labels (N, C) of every class's probability."""
    if labels.ndim == 2:
        confidence, correct = probabilities.ravel(), labels.ravel()
    else:
        confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    distances = np.abs(np.bincount(bin_of, confidence, minlength=bins) - np.bincount(bin_of, correct, minlength=bins))
    return float(distances.sum() / len(confidence))


def _around_encoder(
    model: CarlModel, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], problem: _ProblemType
) -> PreTrainedModel:
    """The architecture's classification model around the online encoder, its last layer at random."""
    check_no_adapters(model)
    check_tokenizer(model, tokenizer)
    config: Any = copy.deepcopy(model.encoder.config)
    _set_labels(config, labels, problem)
    config.dtype = torch.float32  # whatever the encoder was once loaded in
    with kept_random_state(torch.device("cpu")):  # the last layer begins at random, and is fitted
        classifier = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    dense = _pooler_dense(model)
    pooler = {f"pooler.dense.{name}": value for name, value in dense.state_dict().items()}  # if the encoder has none
    missing = classifier.base_model.load_state_dict(pooler | model.encoder.state_dict(), strict=False).missing_keys
    assert not missing, f"not in the encoder: {missing}"
    own, last = set(classifier.base_model.modules()), classifier.get_submodule(last_layer(classifier))
    with torch.no_grad():
        for layer in classifier.modules():
            if isinstance(layer, nn.Linear) and layer not in own and layer is not last:
                layer.weight.copy_(dense.weight)
                if layer.bias is not None:
                    layer.bias.copy_(dense.bias)
    return classifier.to(model.device).eval()


def _set_labels(config: Any, labels: Sequence[str], problem: _ProblemType) -> None:
    forget_head(config)  # another one
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in config.id2label.items()}
    config.problem_type = problem


def relabel(classifier: PreTrainedModel, labels: Sequence[str], problem: _ProblemType) -> None:
    """Gives a classifier other outputs; its last layer becomes all zeros."""
    layer = classifier.get_submodule(last_layer(classifier))
    replace_rows(layer, layer.weight.new_zeros(len(labels), layer.in_features), layer.weight.new_zeros(len(labels)))
    _set_labels(classifier.config, labels, problem)
    classifier.num_labels = len(labels)


def _pooler_dense(model: CarlModel) -> nn.Linear:
    """The dense layer of the contrastive head; without one, that of the encoder's pooler; without a pooler, the
    identity."""
    if model.online.dense is not None:
        return model.online.dense
    if model.config.encoder_has_pooler:
        return model.encoder.pooler.dense
    identity = nn.Linear(width := model.config.encoder.hidden_size, width)
    nn.init.eye_(identity.weight)
    nn.init.zeros_(identity.bias)
    return identity
