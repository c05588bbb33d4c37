"""One encoder for both task heads, so that one pass answers both: `va/` is fitted to the encoder of `emotion/`, which
was fine-tuned with valence-arousal answers kept (see [`carl_hf.export.kept_answers`])."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.encoders.embedding import classifier_outputs
from carl_hf.encoders.loading import load_classifier
from carl_hf.evaluation.valence_arousal import labels_of
from carl_hf.export.folder import read_record
from carl_hf.export.provenance import Provenance, named_digests, public_corpus_name
from carl_hf.export.regression import explained_variance
from carl_hf.export.task_heads import fit_last_layer, relabel

MAY_LOSE = 0.01
"""Of the explained variance (R2) on development texts, what sharing the encoder of `emotion/` may cost `va/`."""


def fit_beside(
    emotion: str | Path, frozen: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Dataset, dev: Dataset,
    *, max_length: int,
) -> tuple[PreTrainedModel, dict[str, Any]]:  # fmt: skip
    """A valence-arousal regressor on the encoder of an exported emotion classifier, if that loses at most
    [`MAY_LOSE`]; else `frozen`.

    Args:
        emotion: folder of the export. frozen: the regressor on the encoder from which `emotion` was made.

    Returns:
        the regressor, and {"metric", "frozen" and "shared": its value of either on `dev`, "chosen": which of the two
        it is, "may_lose"}.

    Raises:
        ValueError: if it was made from another architecture.
    """
    shared = load_classifier(str(emotion)).to(frozen.device)
    if type(shared) is not type(frozen) or shared.config.hidden_size != frozen.config.hidden_size:
        raise ValueError(f"{emotion} was not made from this model: it is a {type(shared).__name__}.")
    dimensions = tuple(frozen.config.id2label.values())
    relabel(shared, dimensions, "regression")
    fit_last_layer(shared, tokenizer, train, dev, max_length=max_length)
    truth_NK = (labels_of(dev, dimensions=dimensions) + 1) / 2

    def value(model: PreTrainedModel) -> float:
        outputs = classifier_outputs(model, dev["text"], tokenizer, max_length=max_length)
        return explained_variance(outputs.numpy().astype(float), truth_NK)

    found = {"frozen": value(frozen), "shared": value(shared)}
    chosen = "shared" if found["shared"] >= found["frozen"] - MAY_LOSE else "frozen"
    return (
        shared if chosen == "shared" else frozen,
        {"metric": "explained variance (R2)", **found, "chosen": chosen, "may_lose": MAY_LOSE},
    )


def with_emotions(provenance: Provenance | None, emotion: str | Path) -> Provenance | None:
    """The provenance of a model on the encoder of `emotion`, which was trained on its texts too."""
    head = (read_record(emotion) or {})["head"]
    if provenance is None or head["frozen"]:
        return provenance
    known = [*map(public_corpus_name, provenance.corpora)]
    return replace(
        provenance,
        corpora=[*provenance.corpora, *(name for name in head["corpora"] if name not in known)],
        partly=named_digests(provenance.partly.items(), head.get("partly", {}).items()),
    )
