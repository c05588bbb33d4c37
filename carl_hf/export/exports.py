"""Exports: what of a trained model is given to others, as folders that need no carl_hf to load.

Each holds a plain model, its tokenizer with its maximum length, a model card (README.md), and carl_export.json: what
the card was rendered from. The target network, the optimizer's state and pickled files are in none of them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.splits import divide, split_rows
from carl_hf.encoders.embedding import classifier_outputs
from carl_hf.encoders.loading import is_va_regressor
from carl_hf.evaluation.probes import fit_ridge
from carl_hf.evaluation.statistics import classification_report, multi_label_report
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of, va_metrics
from carl_hf.export.bias import measure_bias
from carl_hf.export.cards import Result, va_results
from carl_hf.export.folder import (
    replacing_export,
    save_tokenizer,
    write_record,
    write_sentence_transformers_layout,
)
from carl_hf.export.provenance import Provenance, corpus_facts, public_corpus_name
from carl_hf.export.task_heads import (
    Calibration,
    calibrate_classifier,
    calibration_error,
    check_classes,
    class_probabilities,
    fit_emotion_classifier,
    fit_va_regressor,
)
from carl_hf.modeling_carl import CarlModel
from carl_hf.version import __version__

Kind = Literal["encoder", "va", "emotion"]

_SOURCE = "I could dance all day, this is the best news in years!"
_EXAMPLES = {
    "Joyful": "We hugged and cheered until we had no voice left.",
    "Calm": "A warm bath, soft music, and nothing left to do tonight.",
    "Furious": "How dare you lie to my face again!",
    "Sad": "The house has felt so empty since she left.",
}
_PROBE_TEXTS = 1000


def export_encoder(
    model: CarlModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    max_length: int = 128,
    provenance: Provenance | None = None,
    results: Sequence[Result] = (),
    baseline: str | None = None,
    figures: Sequence[str | Path] = (),
    train: Dataset | None = None,
) -> Path:
    """Writes the online encoder as a plain model folder: no target, no heads, no custom code.

    `AutoModel.from_pretrained(folder)` loads it, its trained pooler included, and so does
    `SentenceTransformer(folder)`, which applies the model's pooling and scales vectors to length 1.

    Args:
        model: a trained model. tokenizer: of its encoder. folder: made if it does not exist; an export that it holds
            is replaced.
        max_length: tokens kept of a text, at most those of the tokenizer; written into the tokenizer, so that
            pipelines cut longer texts.
        provenance: where the model comes from; the card names it, and an evaluation marks what the encoder has seen.
        results, baseline: figures for the card, and what their baseline is, such as "plain encoder, mean pooling".
        figures: PNG files for the card.
        train: texts with valence and arousal; from at most 1,000 of them a probe is fitted that measures the bias of
            the embeddings for the card. Without, the card says that it was not measured.

    Returns:
        the folder.

    Raises:
        ValueError: if the folder holds anything else than an export.
    """
    max_length = min(max_length, tokenizer.model_max_length)

    def embed(texts: Sequence[str]) -> np.ndarray:
        return model.embed(list(texts), tokenizer, max_length=max_length, normalize=True).numpy()

    def va_probe(part: Dataset) -> Callable[[Sequence[str]], np.ndarray]:
        part = part.select(np.random.default_rng(0).permutation(len(part))[:_PROBE_TEXTS])
        vectors, labels = embed(part["text"]), labels_of(part)
        fitted, chosen = divide(np.arange(len(part)), 8)
        probe = fit_ridge(vectors[fitted], labels[fitted], vectors[chosen], labels[chosen])
        return lambda texts: probe(embed(texts))

    vectors = embed([_SOURCE, *_EXAMPLES.values()])
    widget = {
        "example_title": "Which feels like it?",
        "source_sentence": _SOURCE,
        "sentences": list(_EXAMPLES.values()),
        "output": _scores(list(_EXAMPLES.values()), vectors[1:] @ vectors[0]),
    }
    record = {
        **_common("encoder", model.config.pooling, model.encoder, max_length, provenance),
        "results": [result.record() for result in results],
        "baseline": baseline,
        "widget": [widget],
        "bias": None if train is None else measure_bias(va_probe(train), DIMENSIONS),
    }
    with replacing_export(folder) as place:
        model.encoder.save_pretrained(place)
        save_tokenizer(tokenizer, place, max_length)
        write_sentence_transformers_layout(place, model.config.pooling, model.config.encoder.hidden_size, max_length)
        write_record(place, record, figures, Path(folder).resolve().name)
    return Path(folder)


def export_va_regressor(
    model: CarlModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    train: Dataset | None = None,
    dev: Dataset | None = None,
    test: Mapping[str, Dataset] | None = None,
    corpora: Sequence[str] = (),
    max_length: int = 128,
    provenance: Provenance | None = None,
    figures: Sequence[str | Path] = (),
    seed: int = 42,
) -> Path:
    """Writes a valence-arousal regressor for `AutoModelForSequenceClassification` and the text-classification
    pipeline: labels valence and arousal, outputs (v + 1) / 2 and (a + 1) / 2.

    Args:
        model: a trained [`CarlModel`], on whose frozen encoder the head is fitted (see
            [`carl_hf.export.task_heads.fit_va_regressor`]), or a sequence-classification model trained for these
            outputs.
        train, dev: texts, valence, arousal (in [-1, 1]) that the head is fitted to, for a [`CarlModel`].
        test: corpus -> held-out texts and labels that the card reports. corpora: names of what the head was fitted
            to; by default the training corpora of `provenance`.
        Everything else as for [`export_encoder`].

    Raises:
        ValueError: if a [`CarlModel`] comes without `train`, another model is no such regressor, or the folder holds
            anything else than an export.
    """
    max_length = min(max_length, tokenizer.model_max_length)
    frozen = isinstance(model, CarlModel)
    if frozen:
        if train is None:
            raise ValueError("A CarlModel has no valence-arousal head: pass train=, the texts to fit one to.")
        regressor = fit_va_regressor(model, tokenizer, train, dev, max_length=max_length, seed=seed)
    else:
        regressor = model
        if not is_va_regressor(regressor.config):
            raise ValueError(
                "The model is no valence-arousal regressor: it needs problem_type 'regression' and the labels valence "
                f"and arousal, and has {regressor.config.problem_type!r}, {list(regressor.config.id2label.values())}."
            )

    def outputs(texts: Sequence[str]) -> np.ndarray:
        return classifier_outputs(regressor, list(texts), tokenizer, max_length=max_length).numpy().astype(float)

    def predict(texts: Sequence[str]) -> np.ndarray:
        return np.clip(2 * outputs(texts) - 1, -1, 1)

    names = [public_corpus_name(name) for name in corpora or (provenance.corpora if provenance else ())]
    results = []
    for name, part in (test or {}).items():
        constant = labels_of(part if train is None else train).mean(0)
        found = va_metrics(predict(part["text"]), labels_of(part), constant=constant, seed=seed)
        results += va_results(name, found, baseline={} if train is None else None)
    record = {
        **_common("va", "cls", regressor, max_length, provenance, names),
        "head": {"labels": list(DIMENSIONS), "frozen": frozen, "corpora": names},
        "results": [result.record() for result in results],
        "baseline": None if train is None else "constant answer (mean of the training labels)",
        "widget": _text_widgets(outputs, list(DIMENSIONS)),
        "bias": measure_bias(predict, DIMENSIONS),
    }
    return _write_classifier(regressor, tokenizer, folder, record, figures)


def export_emotion_classifier(
    model: CarlModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    corpus: ClassCorpus,
    corpus_name: str,
    max_length: int = 128,
    provenance: Provenance | None = None,
    figures: Sequence[str | Path] = (),
    seed: int = 42,
    class_weights: Literal["equal", "balanced"] = "equal",
) -> Path:
    """Writes an emotion classifier for `AutoModelForSequenceClassification` and the text-classification pipeline, its
    probabilities calibrated; where a text may have several labels, the card gives a threshold for each.

    Args:
        model: a trained [`CarlModel`], on whose frozen encoder the head is fitted (see
            [`carl_hf.export.task_heads.fit_emotion_classifier`]), or a sequence-classification model trained on these
            classes, which is calibrated in place.
        corpus: texts and classes, from [`carl_hf.data.labelled.read_emotion`]. Its test part is what the card
            reports. corpus_name: its name there, or its file.
        class_weights: whether every text weighs the same when the head is fitted, or every class.
        Everything else as for [`export_encoder`].

    Raises:
        ValueError: if the model's labels are not the corpus's classes, a part of the corpus lacks texts or a class
            (see [`carl_hf.export.task_heads.check_classes`]), or the folder holds anything else than an export.
    """
    max_length = min(max_length, tokenizer.model_max_length)
    frozen = isinstance(model, CarlModel)
    if frozen:
        classifier = fit_emotion_classifier(
            model, tokenizer, corpus, max_length=max_length, class_weights=class_weights
        )
    else:
        classifier = model
        own = [classifier.config.id2label[i] for i in range(classifier.config.num_labels)]
        if own != list(corpus.classes):
            raise ValueError(f"The model's labels {own} are not the corpus's classes {list(corpus.classes)}.")
        check_classes(corpus)
    several = corpus.labels.ndim == 2
    classifier.config.problem_type = "multi_label_classification" if several else "single_label_classification"
    calibration = calibrate_classifier(classifier, tokenizer, corpus, max_length=max_length)

    def probabilities(texts: Sequence[str]) -> np.ndarray:
        logits = classifier_outputs(classifier, list(texts), tokenizer, max_length=max_length)
        return class_probabilities(logits.numpy().astype(float), several=several)

    name = public_corpus_name(corpus_name)
    texts, labels = corpus.part(split_rows(corpus)[2])
    record = {
        **_common("emotion", "cls", classifier, max_length, provenance, [corpus_name]),
        "head": {
            "labels": list(corpus.classes),
            "frozen": frozen,
            "corpora": [name],
            "temperature": calibration.temperature,
            "thresholds": calibration.thresholds,
        },
        "results": [
            result.record()
            for result in _emotion_results(name, probabilities(texts), labels, corpus, calibration, seed)
        ],
        "baseline": "most frequent label",
        "widget": _text_widgets(probabilities, corpus.classes),
        "bias": measure_bias(probabilities, corpus.classes),
    }
    return _write_classifier(classifier, tokenizer, folder, record, figures)


def _common(
    kind: Kind, pooling: str, model: PreTrainedModel, max_length: int, provenance: Provenance | None,
    head_corpora: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    return {
        "kind": kind,
        "pooling": pooling,
        "width": model.config.hidden_size,
        "max_length": max_length,
        "provenance": None if provenance is None else provenance.record(head_corpora),
        "versions": {
            "carl_hf": __version__, "transformers": transformers.__version__, "torch": torch.__version__.split("+")[0],
        },
    }  # fmt: skip


def _emotion_results(
    name: str, probabilities: np.ndarray, labels: np.ndarray, corpus: ClassCorpus, calibration: Calibration, seed: int
) -> list[Result]:
    facts = corpus_facts(name)
    revision = facts.revision if facts else None
    if calibration.thresholds is None:
        figures = classification_report(probabilities.argmax(axis=1), labels, corpus.classes, seed=seed)
        majority = figures["majority"]
    else:
        chosen = probabilities >= np.array(list(calibration.thresholds.values()))
        figures, majority = multi_label_report(chosen, labels, corpus.classes, seed=seed), None
    accuracy = "accuracy" if calibration.thresholds is None else "texts with exactly the right labels"
    return [
        Result(name, "test", "f1", "macro F1", figures["f1"], figures["f1_interval"], None, revision),
        Result(
            name, "test", "accuracy", accuracy, figures["accuracy"], figures["accuracy_interval"], majority, revision
        ),
        Result(
            name, "test", "ece", "expected calibration error", calibration_error(probabilities, labels), None, None,
            revision,
        ),
    ]  # fmt: skip


def _text_widgets(predict: Callable[[Sequence[str]], np.ndarray], labels: Sequence[str]) -> list[dict[str, Any]]:
    answers = predict(list(_EXAMPLES.values()))
    return [
        {"text": text, "example_title": title, "output": _scores(labels, row)}
        for (title, text), row in zip(_EXAMPLES.items(), answers, strict=True)
    ]


def _scores(labels: Sequence[str], scores: np.ndarray) -> list[dict[str, Any]]:
    """As a pipeline answers: the highest score first."""
    pairs = sorted(zip(labels, scores, strict=True), key=lambda pair: -pair[1])
    return [{"label": label, "score": round(float(score), 4)} for label, score in pairs]


def _write_classifier(
    classifier: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    record: dict[str, Any],
    figures: Sequence[str | Path],
) -> Path:
    with replacing_export(folder) as place:
        classifier.save_pretrained(place)
        save_tokenizer(tokenizer, place, record["max_length"])
        write_record(place, record, figures, Path(folder).resolve().name)
    return Path(folder)
