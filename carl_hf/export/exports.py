"""The three exports: a trained model as a folder that loads without carl_hf.

Each holds a plain model, its tokenizer, a model card (README.md), and carl_export.json, from which the card is
rendered; none the target network, the optimizer's state or pickled files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.data.labelled import ClassCorpus
from carl_hf.data.splits import divide, split_rows
from carl_hf.encoders.checks import kept_length
from carl_hf.encoders.embedding import classifier_outputs
from carl_hf.encoders.layout import Pooling
from carl_hf.encoders.loading import check_no_adapters, is_va_regressor
from carl_hf.evaluation.probes import fit_ridge
from carl_hf.evaluation.statistics import classification_report, multi_label_report
from carl_hf.evaluation.valence_arousal import DIMENSIONS, dimensions_of, labels_of, va_metrics
from carl_hf.export import task_heads
from carl_hf.export.adapting import ALONE, adaptation_results
from carl_hf.export.bias import measure_bias
from carl_hf.export.cards import Kind, Result, measured_row, va_results
from carl_hf.export.folder import replacing_export, with_earlier_training, write_record
from carl_hf.export.head_training import HeadTraining, train_emotion_classifier, train_va_regressor
from carl_hf.export.inputs import check_beside, check_keep, check_rated, check_target, held_out, probe_sample
from carl_hf.export.intervals import conformal_intervals, coverage_results
from carl_hf.export.last_layer import reading_once
from carl_hf.export.provenance import Provenance, digests_of, held_out_in_part, public_corpus_name
from carl_hf.export.saving import save_model, save_tokenizer, write_sentence_transformers_layout
from carl_hf.export.shared_encoder import fit_beside, with_emotions
from carl_hf.export.widgets import similarity_widget, text_widgets
from carl_hf.modeling_carl import CarlModel
from carl_hf.utils.log_once import log_once
from carl_hf.version import __version__

_PROBE_TEXTS = 1000  # at most, of the probe that measures an encoder's bias


def export_encoder(
    model: CarlModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, *,
    max_length: int = 128, provenance: Provenance | None = None, figures: Sequence[str | Path] = (),
    results: Sequence[Result] = (), baseline: str | None = None, train: Dataset | None = None,
) -> Path:  # fmt: skip
    """Writes the online encoder as a plain model folder: no target network, no heads, no custom code.

    `AutoModel.from_pretrained(folder)` loads it, its trained pooler included. So does `SentenceTransformer(folder)`,
    which applies the model's pooling and scales embeddings to length 1.

    Args:
        model: a trained model. tokenizer: of its encoder.
        folder: made if it does not exist; an export in it is replaced.
        max_length: written into the tokenizer, at most its own: `SentenceTransformer` truncates texts to so many
            tokens, a pipeline or a call of the tokenizer only with `truncation=True`.
        provenance: what the model was made from, for the card and for evaluations, which mark corpora that the encoder
            was trained on.
        results, baseline: metrics for the card, and what they are compared with: "plain encoder, mean pooling".
        figures: PNG files for the card.
        train: texts with valence and arousal; on at most 1,000 of them a probe is fitted that measures the bias of the
            embeddings for the card. Without it, the card says "not measured".

    Returns:
        the folder.

    Raises:
        ValueError: if the folder holds anything other than an export, or labels are not on their corpus's scale.
    """
    check_target(model, CarlModel, tokenizer, folder, figures)
    max_length, sample = kept_length(max_length, tokenizer, model.encoder), probe_sample(train, _PROBE_TEXTS, 20)

    def embed(texts: Sequence[str]) -> np.ndarray:
        return model.embed(list(texts), tokenizer, max_length=max_length, normalize=True).numpy()

    bias = None
    if sample is not None:
        vectors, labels = embed(sample["text"]), labels_of(sample)
        fitted, validation = divide(np.arange(len(sample)), 8)
        probe = fit_ridge(vectors[fitted], labels[fitted], vectors[validation], labels[validation])
        bias = measure_bias(lambda texts: probe(embed(texts)), DIMENSIONS)
    contents = {
        "results": [asdict(result) for result in results], "baseline": baseline, "widget": [similarity_widget(embed)],
        "bias": bias,
    }  # fmt: skip
    return _write(
        "encoder", model.encoder, tokenizer, folder, contents, max_length, provenance, figures,
        pooling=model.config.pooling,
    )  # fmt: skip


def export_va_regressor(
    model: CarlModel | PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, *,
    train: Dataset | None = None, dev: Dataset | None = None, test: Mapping[str, Dataset] | None = None,
    corpora: Sequence[str] = (), max_length: int = 128, provenance: Provenance | None = None,
    figures: Sequence[str | Path] = (), seed: int = 42, training: HeadTraining | None = None,
    adaptation: Mapping[str, Any] | None = None, beside: str | Path | None = None,
) -> Path:  # fmt: skip
    """Writes a valence-arousal regressor for `AutoModelForSequenceClassification` and the text-classification
    pipeline. Its labels are valence and arousal, its outputs (v + 1) / 2 and (a + 1) / 2. If all texts of `train` and
    `dev` have dominance, that is a third. The record and the configuration hold `intervals`: how far from the answer
    the labels of nine in ten texts of `dev` lie at most (see [`carl_hf.export.intervals.conformal_intervals`]).

    Args:
        model: a trained [`CarlModel`], on whose frozen encoder the head is fitted (see
            [`carl_hf.export.task_heads.fit_va_regressor`]), or a sequence-classification model with these outputs.
        train, dev: texts, valence, arousal (in [-1, 1]) that the head is fitted to, for a [`CarlModel`]; without
            `dev`, a tenth of `train`, drawn by `seed`, is it. For another model `dev` gives the intervals alone. The
            encoder must not have been trained on `dev`: without it, or if `provenance` says that training included
            test rows, none are computed; another model keeps those that it has, which is said.
        training: how head and encoder are then trained together, for a [`CarlModel`], which stays as it is; what is
            written is the better of the two on `dev`. By default the encoder is frozen.
        beside: folder of an emotion classifier that was exported from this [`CarlModel`]: the head is fitted to its
            encoder, so that one pass answers both, unless that costs more than
            [`carl_hf.export.shared_encoder.MAY_LOSE`].
        adaptation: of another model, what [`carl_hf.export.adapting.adapt_va_regressor`] has returned; the texts are
            the last of `corpora`.
        test: corpus -> held-out texts and labels for the results of the card.
        corpora: what the head was fitted to; by default the training corpora of `provenance`.
        Everything else as for [`export_encoder`].

    Raises:
        ValueError: if a [`CarlModel`] comes without `train`, another model is no such regressor, labels are not on
            their corpus's scale, or the folder holds anything other than an export.
    """
    check_target(model, (CarlModel, PreTrainedModel), tokenizer, folder, figures)
    check_beside(beside, model, training)
    test = held_out(test)
    max_length = kept_length(max_length, tokenizer, model.encoder if isinstance(model, CarlModel) else model)
    check_rated(train, dev, test, corpora)
    known = {name: dimensions_of(data) for name, data in test.items()}
    truth = {name: labels_of(test[name], dimensions=dimensions) for name, dimensions in known.items()}
    unseen = dev is not None and not getattr(provenance, "trained_on_test_rows", False)
    development = None
    if fitted := isinstance(model, CarlModel):
        if train is None:
            raise ValueError("A CarlModel has no valence-arousal head: pass train=, the texts to fit one to.")
        train, dev = task_heads.with_development(train, dev, seed=seed)
        with (training or HeadTraining()).autocast(model.device):
            model = task_heads.fit_va_regressor(model, tokenizer, train, dev, max_length=max_length)
            if beside is not None:
                model, development = fit_beside(beside, model, tokenizer, train, dev, max_length=max_length)
        if training is not None:
            development = train_va_regressor(model, tokenizer, train, dev, training, max_length=max_length)
    elif not is_va_regressor(model.config, type(model).__name__):
        raise ValueError(
            "The model is no valence-arousal regressor: it needs problem_type 'regression' and the labels valence "
            f"and arousal, and has {model.config.problem_type!r}, {list(model.config.id2label.values())}."
        )
    dimensions = tuple(model.config.id2label.values())
    constant = None if train is None else labels_of(train, dimensions=dimensions).mean(0)

    def outputs(texts: Sequence[str]) -> np.ndarray:
        return classifier_outputs(model, list(texts), tokenizer, max_length=max_length).numpy().astype(float)

    def clipped(answers: np.ndarray) -> np.ndarray:
        return np.clip(2 * answers - 1, -1, 1)

    names = [*map(public_corpus_name, fitted_to := corpora or getattr(provenance, "corpora", ()))]
    if beside is not None and development["chosen"] == "shared":
        provenance = with_emotions(provenance, beside)
    if unseen:
        answers, labels = outputs(dev["text"]).clip(0, 1), (labels_of(dev, dimensions=dimensions) + 1) / 2
        model.config.intervals = conformal_intervals(answers, labels, dimensions)
    elif adaptation is None and getattr(model.config, "intervals", None):
        log_once("The intervals are those that the model came with: if it was trained since, export it with dev=.")
    intervals = getattr(model.config, "intervals", None)
    results, outside = [], []
    for name, labels in truth.items():
        answers = outputs(test[name]["text"])
        both = min(known[name], dimensions, key=len)
        outside.append(float(np.abs(answers - answers.clip(0, 1)).max()))
        mean, labels = labels.mean(0) if constant is None else constant, labels[:, : len(both)]
        metrics = va_metrics(
            clipped(answers)[:, : len(both)], labels, constant=mean[: len(both)], dimensions=both, seed=seed
        )
        results += va_results(name, metrics, baseline={} if train is None else None)
        results += coverage_results(name, answers.clip(0, 1), (labels + 1) / 2, both, intervals, seed=seed)
    baseline = None if train is None else "constant prediction (mean of the training labels)"
    if adaptation is not None:
        results, baseline = results + adaptation_results(names[-1], adaptation), "the model as it was"
    contents = {
        "head": {
            "labels": list(dimensions), "frozen": _is_frozen(fitted, development), "corpora": names,
            "outside": max(outside, default=None), "development": development, "adaptation": adaptation,
            "files": {} if adaptation else digests_of(fitted_to),  # of an adapted head: in the provenance
        },
        "intervals": intervals,
        "results": [asdict(result) for result in results],
        "baseline": baseline,
        "widget": text_widgets(outputs, dimensions),
        "bias": measure_bias(lambda texts: clipped(outputs(texts)), dimensions),
    }  # fmt: skip
    learnt = names[:-1] if adaptation and adaptation["chosen"] == ALONE else names
    return _write("va", model, tokenizer, folder, contents, max_length, provenance, figures, head_corpora=learnt)


def export_emotion_classifier(
    model: CarlModel | PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, *,
    corpus: ClassCorpus, corpus_name: str, max_length: int = 128, provenance: Provenance | None = None,
    figures: Sequence[str | Path] = (), seed: int = 42, class_weights: Literal["equal", "balanced"] = "equal",
    training: HeadTraining | None = None, keep: Dataset | None = None,
) -> Path:  # fmt: skip
    """Writes an emotion classifier for `AutoModelForSequenceClassification` and the text-classification pipeline, its
    probabilities calibrated. For multi-label corpora the card and the configuration give a threshold for each label.

    Args:
        model: a trained [`CarlModel`], on whose frozen encoder the head is fitted (see
            [`carl_hf.export.task_heads.fit_classes`]), or a sequence-classification model trained on these
            classes, which is calibrated in place.
        corpus: texts and classes, from [`carl_hf.data.labelled.read_emotion`]; the card reports metrics on its test
            split. corpus_name: its name there, or its file.
        class_weights: whether every text weighs the same when the head is fitted, or every class.
        training: how head and encoder are then trained together, as for [`export_va_regressor`]; the better of the two
            on the corpus's validation split is written. keep: texts, valence, arousal, whose answers by a linear head
            that training leaves as they are, so that [`export_va_regressor`] can share the encoder (`beside`).
        Everything else as for [`export_encoder`].

    Raises:
        ValueError: if the model's labels are not the corpus's classes, a split of the corpus lacks texts or a class
            (see [`carl_hf.export.task_heads.check_classes`]), or the folder holds anything other than an export.
    """
    check_target(model, (CarlModel, PreTrainedModel), tokenizer, folder, figures)
    if not isinstance(corpus, ClassCorpus):
        raise ValueError(
            f"corpus is a ClassCorpus, got a {type(corpus).__name__}: carl_hf.data.labelled.read_emotion."
        )
    check_keep(keep, model, training)
    max_length = kept_length(max_length, tokenizer, model.encoder if isinstance(model, CarlModel) else model)
    development = None
    if fitted := isinstance(model, CarlModel):
        model = task_heads.untrained_classifier(model, tokenizer, corpus)
        read = reading_once(model, tokenizer, max_length)
        with (training or HeadTraining()).autocast(model.device):
            task_heads.fit_classes(model, read, corpus, class_weights=class_weights)
        if training is not None:
            development = train_emotion_classifier(
                model, tokenizer, corpus, training,
                max_length=max_length, class_weights=class_weights, keep=keep, read=read,
            )  # fmt: skip
    else:
        own = [model.config.id2label[i] for i in range(model.config.num_labels)]
        if own != list(corpus.classes):
            raise ValueError(f"The model's labels {own} are not the corpus's classes {list(corpus.classes)}.")
        task_heads.check_classes(corpus)
        model.config.problem_type = task_heads.problem_type(corpus)
    calibration = task_heads.calibrate_classifier(model, tokenizer, corpus, max_length=max_length)

    def probabilities(texts: Sequence[str]) -> np.ndarray:
        logits = classifier_outputs(model, list(texts), tokenizer, max_length=max_length)
        return task_heads.class_probabilities(logits.numpy().astype(float), multi_label=corpus.multi_label)

    texts, labels = corpus.part(split_rows(corpus)[2])
    results, smallest = _emotion_results(corpus_name, probabilities(texts), labels, corpus.classes, calibration, seed)
    contents = {
        "head": {
            "labels": list(corpus.classes), "frozen": _is_frozen(fitted, development),
            "corpora": [public_corpus_name(corpus_name)], "development": development, "smallest_class": smallest,
            "temperature": calibration.temperature, "thresholds": calibration.thresholds,
            "partly": held_out_in_part([corpus_name]),
        },
        "results": [asdict(result) for result in results],
        "baseline": "most frequent label",
        "widget": text_widgets(probabilities, corpus.classes),
        "bias": measure_bias(probabilities, corpus.classes),
    }  # fmt: skip
    return _write(
        "emotion", model, tokenizer, folder, contents, max_length, provenance, figures, head_corpora=[corpus_name]
    )


def _is_frozen(fitted: bool, development: dict[str, Any] | None) -> bool:
    """Whether the head was fitted here, and its encoder was not trained, or not for the better."""
    return fitted and (development is None or development["chosen"] != "finetuned")


def _emotion_results(
    corpus: str, probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str],
    calibration: task_heads.Calibration, seed: int,
) -> tuple[list[Result], int]:  # fmt: skip
    """Rows of the card, and how many test texts the class with the fewest has."""
    if calibration.thresholds is None:
        metrics = classification_report(probabilities.argmax(axis=1), labels, classes, seed=seed)
        accuracy = "accuracy"
    else:
        chosen = probabilities >= np.array(list(calibration.thresholds.values()))
        metrics = multi_label_report(chosen, labels, classes, seed=seed)
        accuracy = "texts with exactly the right labels"
    rows: list[tuple[Any, ...]] = [
        ("f1", "macro F1", metrics["f1"], metrics["f1_interval"]),
        ("accuracy", accuracy, metrics["accuracy"], metrics["accuracy_interval"], metrics.get("majority")),
        ("ece", "expected calibration error", task_heads.calibration_error(probabilities, labels)),
    ]
    if "micro_f1" in metrics:
        rows.insert(1, ("micro_f1", "micro F1", metrics["micro_f1"], metrics["micro_f1_interval"]))
    return [measured_row(corpus, *row) for row in rows], metrics["smallest_class"]


def _write(
    kind: Kind, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path,
    contents: dict[str, Any], max_length: int, provenance: Provenance | None, figures: Sequence[str | Path], *,
    pooling: Pooling | None = None, head_corpora: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Writes the folder; `contents` is what is special to this kind in its record. `pooling`: of an encoder."""
    check_no_adapters(model)
    if provenance is not None and provenance.base_model is not None:
        provenance = with_earlier_training(provenance, provenance.base_model)
    versions = {"carl_hf": __version__, "transformers": transformers.__version__, "torch": torch.__version__}
    record = {
        "kind": kind,
        "pooling": pooling or getattr(model.config, "classifier_pooling", "cls"),  # what a head reads
        "width": model.config.hidden_size,
        "max_length": max_length,
        "provenance": None if provenance is None else provenance.record(head_corpora),
        "versions": {package: version.split("+")[0] for package, version in versions.items()},
        **contents,
    }
    with replacing_export(folder) as new:
        save_model(model, new)
        save_tokenizer(tokenizer, new, max_length)
        if pooling is not None:
            write_sentence_transformers_layout(new, pooling, model.config.hidden_size, max_length)
        write_record(new, record, figures, Path(folder).resolve().name)
    return Path(folder)
