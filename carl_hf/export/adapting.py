"""A valence-arousal regressor adapted to a few texts that its user has rated.

Shape suffixes: N texts, K dimensions, H width of what the last layer reads.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.data.splits import numbered
from carl_hf.encoders.classifiers import Classifier
from carl_hf.encoders.loading import is_va_regressor
from carl_hf.evaluation.probes import LinearProbe
from carl_hf.evaluation.statistics import agreement
from carl_hf.evaluation.valence_arousal import dimensions_of, labels_of
from carl_hf.export.cards import Result
from carl_hf.export.head_training import HeadTraining, train_epochs
from carl_hf.export.intervals import conformal_intervals
from carl_hf.export.last_layer import last_layer, last_layer_inputs, set_last_layer
from carl_hf.export.provenance import public_corpus_name
from carl_hf.export.regression import weighted_squared_error
from carl_hf.export.task_heads import FEWEST_TEXTS

logger = logging.getLogger(__name__)

FOLDS = 5
ALONE, SCALED, RIDGE, FINETUNED = WAYS = ("left alone", "scale and offset", "ridge", "fine-tuning")
"""Ways to adapt, from the simplest to the one with the most freedom."""
_RIDGE_STRENGTHS = 10.0 ** np.arange(-3, 4)  # for inputs whose variances add up to 1


class _Texts(NamedTuple):
    """What a way learns from: tokens, inputs of the last layer, labels in [0, 1], and a number for each text, the same
    for rows of one text."""

    tokens: list[list[int]]
    inputs_NH: np.ndarray
    labels_NK: np.ndarray
    number_N: np.ndarray


def adapt_va_regressor(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rated: Dataset, *,
    training: HeadTraining | None = None, max_length: int = 128,
) -> dict[str, Any]:  # fmt: skip
    """Adapts a valence-arousal regressor in place, in the way that five-fold cross-validation chooses: it is left
    alone; each dimension that gains by it gets a scale and an offset; a ridge regression, drawn towards the last layer
    as it is, changes that layer; or all weights are trained for a few epochs, after scale and offset. See [`choose`].

    Args:
        model: with the problem type regression and the labels valence and arousal, outputs in [0, 1].
        rated: columns text, valence, arousal (in [-1, 1]), and dominance if the model answers with it. A text may have
            several rows, one for each rater: they are in the same fold.
        training: of the last way; batches of 16 by default. Its `seed` draws the folds too.

    Returns:
        {"chosen", "texts", "different_texts", "folds", "seed", "ways": {way: {dimension: {"pearson", "spearman",
        "ccc", "mae"}}}}, the metrics of answers in [0, 1] for texts that the way had not seen. The model's
        configuration gets `intervals`, from the errors of the chosen way on them.

    Raises:
        ValueError: for another model, fewer than 20 different texts, or texts without dominance for a model with it.
    """
    if not is_va_regressor(model.config, type(model).__name__) or not isinstance(rated, Dataset):
        raise ValueError(
            "Adapting takes a valence-arousal regressor, the export va/, and a datasets.Dataset of rated texts; got "
            f"{type(model).__name__} with {list(model.config.id2label.values())}, and {type(rated).__name__}."
        )
    training = training or HeadTraining(batch_size=16)
    dimensions = tuple(model.config.id2label.values())
    number_N = numbered(rated["text"])
    if (distinct := len(set(number_N))) < FEWEST_TEXTS:
        raise ValueError(f"Adapting needs at least {FEWEST_TEXTS} texts with valence and arousal, got {distinct}.")
    if len(dimensions_of(rated)) < len(dimensions):
        raise ValueError("The model answers with dominance too: rate it in each text, in a column dominance.")
    inputs_NH, tokens = last_layer_inputs(model, tokenizer, rated["text"], max_length)
    labels_NK = ((labels_of(rated, dimensions=dimensions) + 1) / 2).astype(np.float32)
    texts, last = _Texts(tokens, inputs_NH.astype(float), labels_NK, number_N), model.get_submodule(last_layer(model))
    layer = LinearProbe(*(value.detach().double().cpu().numpy() for value in (last.weight, last.bias)))

    def tuned(rows: np.ndarray) -> Classifier:
        own = copy.deepcopy(model)
        set_last_layer(own, _scaled(layer, texts, rows))
        classifier, labels_NK = Classifier(own, tokenizer), texts.labels_NK[rows]
        loss = weighted_squared_error(labels_NK, own.device)
        for _ in train_epochs(classifier, [texts.tokens[row] for row in rows], labels_NK, loss, training):
            pass
        return classifier

    linear = {ALONE: lambda layer, texts, rows: layer, SCALED: _scaled, RIDGE: _ridge}
    every, order = np.arange(len(rated)), np.random.default_rng(training.seed).permutation(distinct)
    unseen = {way: np.empty_like(texts.labels_NK) for way in WAYS}
    for fold, drawn in enumerate(np.array_split(order, FOLDS), 1):
        logger.info("cross-validation, part %d of %d ...", fold, FOLDS)
        held_out = np.flatnonzero(np.isin(number_N, drawn))
        rows = np.setdiff1d(every, held_out)
        for way, fit in linear.items():
            unseen[way][held_out] = fit(layer, texts, rows)(texts.inputs_NH[held_out])
        unseen[FINETUNED][held_out] = tuned(rows).predict([texts.tokens[row] for row in held_out]).numpy()
    unseen = {way: answers_NK.clip(0, 1) for way, answers_NK in unseen.items()}

    chosen = choose(unseen, texts.labels_NK, number_N)
    if chosen == FINETUNED:
        model.load_state_dict(tuned(every).model.state_dict())
    elif chosen != ALONE:
        set_last_layer(model, linear[chosen](layer, texts, every))
    model.config.intervals = conformal_intervals(unseen[chosen], texts.labels_NK, dimensions)
    return {
        "chosen": chosen, "texts": len(rated), "different_texts": distinct, "folds": FOLDS, "seed": training.seed,
        "ways": {way: agreement(answers_NK, texts.labels_NK, dimensions) for way, answers_NK in unseen.items()},
    }  # fmt: skip


def choose(unseen: Mapping[str, np.ndarray], labels_NK: np.ndarray, number_N: np.ndarray) -> str:
    """The first of some ways, ordered by freedom, whose loss is within one standard error, over the texts, of the
    least: a way that only seems better by chance is not chosen. The loss is the squared error over the variance of
    each dimension.

    Args:
        unseen: way -> answers (N, K) for texts that it had not seen. number_N: from 0, the same for rows of one text:
            what its raters say is not independent.
    """
    spread_K, rows_of_text = np.maximum(labels_NK.var(0), 1e-6), np.bincount(number_N)
    losses_N = {way: (np.square(answers_NK - labels_NK) / spread_K).mean(1) for way, answers_NK in unseen.items()}
    loss = {way: np.bincount(number_N, loss_N) / rows_of_text for way, loss_N in losses_N.items()}  # of each text
    least = min(loss.values(), key=np.mean)
    margin = {way: own - least for way, own in loss.items()}
    return next(way for way, d in margin.items() if d.mean() <= d.std(ddof=1) / np.sqrt(len(d)))


def adaptation_results(corpus: str, adaptation: Mapping[str, Any]) -> list[Result]:
    """Rows for a card: metrics of the chosen way by cross-validation, beside those of the model as it was."""
    before, after = (adaptation["ways"][way] for way in (ALONE, adaptation["chosen"]))
    return [
        Result(public_corpus_name(corpus), "cross-validation", metric, f"{dimension}, {name}", own[metric], None,
               before[dimension][metric])
        for dimension, own in after.items()
        for metric, name in (("pearson", "Pearson r"), ("ccc", "CCC"), ("mae", "mean absolute error, in [0, 1]"))
        if own[metric] is not None
    ]  # fmt: skip


def _scaled(layer: LinearProbe, texts: _Texts, rows: np.ndarray) -> LinearProbe:
    """Each dimension times a number plus another, by least squares; a dimension that [`choose`] would leave alone,
    by the answers for each text of a fit to the others, stays as it is."""
    outputs_NK, labels_NK = layer(texts.inputs_NH[rows]), texts.labels_NK[rows].astype(float)
    _, number_N = np.unique(texts.number_N[rows], return_inverse=True)
    unseen_NK = np.empty_like(outputs_NK)
    for number in range(number_N.max() + 1):
        own_N = number_N == number
        scale_K, offset_K = _line(outputs_NK[~own_N], labels_NK[~own_N])
        unseen_NK[own_N] = scale_K * outputs_NK[own_N] + offset_K
    scale_K, offset_K = _line(outputs_NK, labels_NK)
    for k in range(len(scale_K)):
        answers = {ALONE: outputs_NK[:, k : k + 1], SCALED: unseen_NK[:, k : k + 1]}
        if choose(answers, labels_NK[:, k : k + 1], number_N) == ALONE:
            scale_K[k], offset_K[k] = 1, 0
    return LinearProbe(scale_K[:, None] * layer.weight, scale_K * layer.bias + offset_K)


def _line(outputs_NK: np.ndarray, labels_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of each dimension, with the least squared error."""
    mean_K, spread_K = outputs_NK.mean(0), outputs_NK.var(0)
    together_K = ((outputs_NK - mean_K) * (labels_NK - labels_NK.mean(0))).mean(0)
    scale_K = np.divide(together_K, spread_K, out=np.ones_like(spread_K), where=spread_K > 1e-12)
    return scale_K, labels_NK.mean(0) - scale_K * mean_K


def _ridge(layer: LinearProbe, texts: _Texts, rows: np.ndarray) -> LinearProbe:
    """The layer plus a ridge regression of its errors, the strength of each dimension chosen by leaving texts out: the
    rows of a text count as one, their mean, with their number as its weight."""
    from sklearn.linear_model import RidgeCV

    _, number_N, rows_of_text = np.unique(texts.number_N[rows], return_inverse=True, return_counts=True)

    def means(values: np.ndarray) -> np.ndarray:
        total = np.zeros((len(rows_of_text), values.shape[1]))
        np.add.at(total, number_N, values)
        return total / rows_of_text[:, None]

    inputs_NH = texts.inputs_NH[rows]
    size = np.sqrt(inputs_NH.var(0).sum()) or 1.0
    ridge = RidgeCV(_RIDGE_STRENGTHS, alpha_per_target=True)
    ridge.fit(means(inputs_NH) / size, means(texts.labels_NK[rows] - layer(inputs_NH)), sample_weight=rows_of_text)
    return LinearProbe(layer.weight + ridge.coef_ / size, layer.bias + ridge.intercept_)
