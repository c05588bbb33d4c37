"""Can a detector see the perturbation, or does it guess saliency? A linear detector under four conditions.

A detector that is asked for salient tokens can predict saliency from the clean text. So a linear detector is trained
on the frozen encoder for {salient, random} tokens x {radius 0, the configured radius}: what it reaches at radius 0 is
guessing, what it reaches on random tokens is seeing.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from carl_hf.adversary import pgd_perturbation, select_salient_tokens, token_saliency
from carl_hf.collator import CarlDataCollator
from carl_hf.data.labelled import VaCorpus
from carl_hf.encoders.packing import TokenLayout, pool_packed
from carl_hf.evaluation.statistics import interval
from carl_hf.losses import mccl_loss
from carl_hf.modeling_carl import CarlModel

_TEXTS = {"train": 2000, "test": 1000}  # at most
_BATCH, _MAX_LENGTH = 64, 128
_FRACTION = 0.1  # of a text's tokens that are perturbed
_TEMPERATURES = {"temperature": 0.05, "label_temperature": 1.0}  # of the contrastive loss that the adversary raises
_RESAMPLES = 200


def measure_detector(
    model: CarlModel, tokenizer: PreTrainedTokenizerBase, corpus: VaCorpus, *, radius: float = 0.5, seed: int
) -> dict[str, Any]:
    """Precision, recall and AUC of perturbed-token detection on test texts by a linear detector on frozen states.

    Args:
        corpus: with official splits; the detector is fitted on at most 2,000 texts of its training split and measured
            on 1,000 of its test split, drawn by `seed`. radius: of the perturbation, as a fraction of the length of
            a token's embedding.

    Returns:
        {"salient, radius 0": {"precision", "recall", "auc", "auc_interval", "tokens"}, ...} for the four conditions;
        precision and recall at the threshold that weighs both classes alike.

    Raises:
        TooFewTokensError: if one of the parts has no two texts, or no text of several tokens.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import precision_score, recall_score
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    collator = CarlDataCollator(tokenizer, max_length=_MAX_LENGTH, slices=4)
    was_training = model.training
    model.eval()
    try:
        train, test = (
            _token_states(model, collator, corpus, rng.permutation(corpus.rows(split))[:size], radius, generator)
            for split, size in _TEXTS.items()
        )
    finally:
        model.train(was_training)
    for part, conditions in (("training", train), ("test", test)):
        if not conditions or any(len(set(tokens.perturbed)) < 2 for tokens in conditions.values()):
            raise TooFewTokensError(f"its {part} part is too small: it needs two texts, one of them of several tokens")
    result: dict[str, Any] = {}
    for condition, fitted in train.items():
        measured, scaler = test[condition], StandardScaler().fit(fitted.states)
        probe = LogisticRegression(solver="newton-cholesky", class_weight="balanced")
        probe.fit(scaler.transform(fitted.states), fitted.perturbed)
        scores = probe.decision_function(scaler.transform(measured.states))
        result[condition] = {
            "precision": float(precision_score(measured.perturbed, scores > 0, zero_division=0)),
            "recall": float(recall_score(measured.perturbed, scores > 0)),
            **_auc(scores, measured, rng),
        }
    return result


class TooFewTokensError(ValueError):
    """A corpus by which no detector can be measured."""


class _Tokens(NamedTuple):
    """The eligible tokens of some texts: last hidden states (T, H), whether perturbed (T,), index of the text (T,)."""

    states: np.ndarray
    perturbed: np.ndarray
    text: np.ndarray


def _token_states(
    model: CarlModel, collator: CarlDataCollator, corpus: VaCorpus, rows: np.ndarray, radius: float,
    generator: torch.Generator,
) -> dict[str, _Tokens]:  # fmt: skip
    """Condition -> the tokens of the texts `rows`."""
    collected: dict[str, list[_Tokens]] = {}
    for start in range(0, len(rows), _BATCH):
        chosen = rows[start : start + _BATCH]
        if len(chosen) < 2:  # no contrast
            continue
        batch = collator(
            [{"text": corpus.texts[i], "valence": corpus.labels[i, 0], "arousal": corpus.labels[i, 1]} for i in chosen]
        )
        for condition, tokens in _batch_states(model, batch, radius, generator):
            collected.setdefault(condition, []).append(tokens._replace(text=tokens.text + start))
    return {
        condition: _Tokens(*(np.concatenate(column) for column in zip(*batches, strict=True)))
        for condition, batches in collected.items()
    }


def _batch_states(
    model: CarlModel, batch: dict[str, Any], radius: float, generator: torch.Generator
) -> Iterator[tuple[str, _Tokens]]:
    batch = {key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    ids_BL, eligible_BL, va_B2 = batch["input_ids"], batch["eligible"], batch["va"]
    layout = TokenLayout.of(batch)
    ids_T, eligible_T = layout.pack(ids_BL), layout.pack(eligible_BL)
    embeds_TE = model.word_embeddings(ids_T).detach().requires_grad_()
    hidden_TH = model.encode(embeds_TE, layout)
    loss = mccl_loss(
        model.predict(pool_packed(hidden_TH, layout, model.config.pooling)), model.project_target(ids_T, layout),
        va_B2, va_B2, **_TEMPERATURES, widths=model.config.contrast_widths,
    )  # fmt: skip
    (gradient_TE,) = torch.autograd.grad(loss, [embeds_TE])
    scores = {
        "salient": layout.unpack(token_saliency(gradient_TE)),
        "random": torch.rand(ids_BL.shape, generator=generator).to(model.device),
    }
    text_BL = torch.arange(len(ids_BL), device=model.device)[:, None].expand_as(ids_BL)
    for kind, scores_BL in scores.items():
        perturbed_T = layout.pack(select_salient_tokens(scores_BL, eligible_BL, fraction=_FRACTION))
        delta_TE = pgd_perturbation(
            lambda moved: moved.sum(), embeds_TE, perturbed_T, radius=radius, relative=True, step_size=radius,
            steps=1, first_gradient=gradient_TE,
        )  # one step from a known gradient: the score function is not called  # fmt: skip
        with torch.no_grad():
            moved_TH = model.encode(embeds_TE + delta_TE, layout)
            for distance, states_TH in ((0.0, hidden_TH), (radius, moved_TH)):
                states_TH = states_TH.detach()[eligible_T]
                columns = (states_TH.float(), perturbed_T[eligible_T], text_BL[eligible_BL])
                yield f"{kind}, radius {distance:g}", _Tokens(*(column.cpu().numpy() for column in columns))


def _auc(scores: np.ndarray, tokens: _Tokens, rng: np.random.Generator) -> dict[str, Any]:
    """With a bootstrap over texts, whose tokens are not independent of each other."""
    from sklearn.metrics import roc_auc_score

    texts = np.unique(tokens.text)
    members = {text: np.flatnonzero(tokens.text == text) for text in texts}
    values = []
    for _ in range(_RESAMPLES):
        rows = np.concatenate([members[text] for text in rng.choice(texts, len(texts))])
        if len(set(tokens.perturbed[rows])) == 2:
            values.append(roc_auc_score(tokens.perturbed[rows], scores[rows]))
    return {
        "auc": float(roc_auc_score(tokens.perturbed, scores)),
        "auc_interval": interval(np.array(values)),
        "tokens": len(scores),
    }
