"""Model cards: what a model page shows, rendered from the record that every export carries."""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from carl_hf.export.provenance import Provenance, corpus_facts, is_public_corpus, public_corpus_name
from carl_hf.report.tables import MISSING, escape, fraction, table

_PIPELINE = {"encoder": "sentence-similarity", "va": "text-classification", "emotion": "text-classification"}
_TAGS = {
    "encoder": ["sentence-transformers", "sentence-similarity", "feature-extraction", "transformers"],
    "va": ["text-classification", "valence", "arousal"],
    "emotion": ["text-classification", "emotion"],
}
_BIAS_ANSWERS = 2
_UNKNOWN_ORIGIN = Provenance(method="means that it does not record").record()
_LICENCE_MEANS = {
    "apache-2.0": "It may be used, changed and passed on freely, with its notices.",
    "cc-by-4.0": "It may be used, changed and passed on, if the sources of its data are named.",
    "cc-by-sa-4.0": "It may be used, changed and passed on, commercially too, if the sources of its data are named "
    "and what is made from it is passed on under the same licence.",
    "gpl-3.0": "It may be used and changed freely; who passes it on, or something made from it, must do so under "
    "GPL-3.0, with what is needed to make it.",
    "other": "Some of the data may not be passed on, or for research only: ask their owners before you pass on the "
    "model or use it otherwise.",
    "unknown": "No licence of the training data is stated here: ask who trained the model before you pass it on.",
}


@dataclass(frozen=True)
class Result:
    """One measured figure.

    Args:
        dataset, split, revision: what it was measured on. metric: its short name, such as "pearson". name: as shown.
        value: the figure. interval: its 95 % bootstrap interval. baseline: the figure of what the card compares with
            (the plain encoder, or a constant answer).
    """

    dataset: str
    split: str
    metric: str
    name: str
    value: float
    interval: tuple[float, float] | None = None
    baseline: float | None = None
    revision: str | None = None

    def record(self) -> dict[str, Any]:
        return asdict(self)


def va_results(
    dataset: str, figures: Mapping[str, Any], *, baseline: Mapping[str, Any] | None = None, split: str = "test"
) -> list[Result]:
    """Rows for a card from the figures of [`carl_hf.evaluation.valence_arousal.va_metrics`].

    Args:
        baseline: the same figures of what is compared with; by default those of the constant predictor; {} for none. A
            figure that is undefined is left out.
    """
    dataset, facts, rows = public_corpus_name(dataset), corpus_facts(dataset), []
    for dimension in ("valence", "arousal"):
        own = figures[dimension]
        other = own["constant"] if baseline is None else baseline.get(dimension, {})
        for metric, name in (("pearson", "Pearson r"), ("ccc", "CCC"), ("mae", "mean absolute error")):
            if own[metric] is not None:
                rows.append(
                    Result(
                        dataset,
                        split,
                        metric,
                        f"{dimension}, {name}",
                        own[metric],
                        own.get(f"{metric}_interval"),
                        other.get(metric),
                        facts.revision if facts else None,
                    )  # fmt: skip
                )
    return rows


def render_card(record: Mapping[str, Any], name: str) -> str:
    """The card of an export: YAML front matter and Markdown, everything from data escaped.

    Args:
        record: as in the export's carl_export.json. name: the id or folder by which the model is loaded.

    Raises:
        ValueError: for a name or label that no UTF-8 file can hold.
    """
    kind, title = record["kind"], name.rstrip("/").split("/")[-1]
    origin, head = record["provenance"] or _UNKNOWN_ORIGIN, record.get("head") or {}
    results = [Result(**row) for row in record["results"]]
    data = ModelCardData(
        language=origin["language"],
        license=origin["licence"],
        library_name="sentence-transformers" if kind == "encoder" else "transformers",
        tags=[*_TAGS[kind], "emotion-embeddings", "carl"],
        base_model=origin["base_model"],
        datasets=sorted(n for n in {*origin["corpora"], *head.get("corpora", [])} if is_public_corpus(n)) or None,
        metrics=sorted({result.metric for result in results}) or None,
        pipeline_tag=_PIPELINE[kind],
        model_name=title,
        eval_results=[_eval_result(kind, head, result) for result in results] or None,
        widget=record["widget"],
    )
    text = str(
        ModelCard.from_template(
            data,
            template_str=(importlib.resources.files("carl_hf.export") / "templates" / "model_card.md").read_text(
                "utf-8"
            ),
            title=escape(title),
            id=json.dumps(name, ensure_ascii=False),  # a Python literal too, with the quotes of the other lines
            kind=kind,
            summary=_summary(kind, record, origin, head),
            pooling=record["pooling"],
            pooling_words=_pooling_words(record["pooling"]),
            width=record["width"],
            max_length=record["max_length"],
            labels=head.get("labels", []),
            several=bool(head.get("thresholds")),
            calibration=_calibration(head),
            thresholds=_thresholds(head),
            figures=[{"path": path, "alt": escape(Path(path).stem.replace("-", " "))} for path in record["figures"]],
            results=_results_table(results, record.get("baseline")),
            training=_training(record, origin, head),
            licence=_licence(origin, head),
            labels_come_from=_labels_come_from(origin, head),
            language="English" if origin["language"] == "en" else f"`{origin['language']}`",
            bias=_bias(kind, record.get("bias")),
        )
    )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"A name or label of the model cannot be written as UTF-8: {error}.") from error
    return text


def _pooling_words(pooling: str) -> str:
    return "first token's last state" if pooling == "cls" else "mean of the tokens' last states"


def _base(origin: Mapping[str, Any]) -> str:
    return f"`{origin['base_model']}`" if origin["base_model"] else "an encoder without a Hub id"


def _corpora(names: Sequence[str]) -> str:
    return ", ".join(escape(name) for name in names) or "texts that its makers do not name"


def _summary(kind: str, record: Mapping[str, Any], origin: Mapping[str, Any], head: Mapping[str, Any]) -> str:
    base = _base(origin)
    trained = "as it was"
    if origin["method"] is not None:
        trained = f"trained by {escape(origin['method'])} on {_corpora(origin['corpora'])}"
    if kind == "encoder":
        return (
            f"Text embeddings that know how a text feels: {base}, {trained}. Texts that feel alike lie close "
            f"together. It gives vectors of {record['width']} numbers."
        )
    what = (
        "How pleasant (valence) and how excited (arousal) a text feels"
        if kind == "va"
        else f"Which emotion a text expresses: {', '.join(escape(label) for label in head['labels'])}"
    )
    how = f"a linear head, fitted on {_corpora(head['corpora'])}, on the frozen encoder" if head["frozen"] else (
        "a head trained together with the encoder"
    )  # fmt: skip
    return f"{what}: {base}, {trained}, with {how}."


def _eval_result(kind: str, head: Mapping[str, Any], result: Result) -> EvalResult:
    tasks = {
        "encoder": "Valence and arousal by a linear probe on frozen embeddings",
        "va": "Valence and arousal",
        "emotion": "Emotion recognition",
    }
    return EvalResult(
        task_type=_PIPELINE[kind], task_name=tasks[kind], dataset_type=result.dataset, dataset_name=result.dataset,
        dataset_split=result.split, dataset_revision=result.revision, metric_type=result.metric,
        metric_name=result.name, metric_value=round(result.value / (100 if result.metric == "accuracy" else 1), 4),
    )  # fmt: skip


def _results_table(results: Sequence[Result], baseline: str | None) -> str:
    if not results:
        return "Not measured."
    header = ["corpus", "figure", "this model [95 % interval]", escape(baseline or MISSING)]
    rows = []
    for result in results:
        value = _figure(result.metric, result.value)
        if result.interval is not None:
            value += f" [{', '.join(_figure(result.metric, bound) for bound in result.interval)}]"
        other = MISSING if result.baseline is None else _figure(result.metric, result.baseline)
        rows.append([f"{escape(result.dataset)}, {escape(result.split)}", escape(result.name), value, other])
    note = "Measured by the code that wrote this card; the intervals are bootstraps over the texts."
    return table(header, rows, text_columns=2) + "\n\n" + note


def _figure(metric: str, value: float) -> str:
    return f"{value:.1f} %" if metric == "accuracy" else fraction(value)


def _calibration(head: Mapping[str, Any]) -> str:
    if head.get("temperature") is None:
        return "The probabilities were not calibrated."
    return (
        f"The probabilities are calibrated: the logits were divided by {head['temperature']:.3f}, the temperature "
        "with the least error on development texts. The division is part of the weights."
    )


def _thresholds(head: Mapping[str, Any]) -> str:
    if not head.get("thresholds"):
        return ""
    rows = [[escape(label), fraction(value)] for label, value in head["thresholds"].items()]
    return (
        "A text may have several labels. It has one where its probability reaches the threshold, which was chosen for "
        "F1 on development texts:\n\n" + table(["label", "threshold"], rows)
    )


def _training(record: Mapping[str, Any], origin: Mapping[str, Any], head: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    lines = [f"Encoder: {_base(origin)}, trained on {_corpora(origin['corpora'])}."]
    if origin["trained_on_test_rows"]:
        lines.append("**The held-out parts of these corpora were trained on too.**")
    if head:
        lines.append(
            f"Head: linear, fitted on {_corpora(head['corpora'])}; the encoder was frozen."
            if head["frozen"]
            else f"Head: trained together with the encoder on {_corpora(head['corpora'])}."
        )
    settings = origin["settings"]
    if settings is None:
        lines.append("The settings were not recorded.")
    elif settings:
        rows = [[escape(name), escape(str(value))] for name, value in settings.items()]
        lines.append("Settings that differ from the defaults of carl_hf:\n\n" + table(["setting", "value"], rows))
    else:
        lines.append("All settings are the defaults of carl_hf.")
    return "\n\n".join([*lines, f"Versions: {versions}."])


def _licence(origin: Mapping[str, Any], head: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys([*origin["corpora"], *head.get("corpora", [])]))
    rows = []
    for name in names:
        facts = corpus_facts(name)
        revision = facts.revision[:12] if facts and facts.revision else MISSING
        stated = escape(facts.licence if facts else "not stated")
        rows.append([escape(name), stated, escape(facts.source) if facts else MISSING, revision])
    licence = origin["licence"]
    follows = (
        f"The licence of the model follows its data: `{licence}`. {_LICENCE_MEANS.get(licence, '')} Whether a model "
        "counts as made from its training data is not settled in law; this is the careful reading. The licence of the "
        "base model applies as well."
    )
    listed = table(["corpus", "licence", "source", "revision"], rows, text_columns=4) if rows else ""
    return "\n\n".join(part for part in (listed, follows) if part)


def _labels_come_from(origin: Mapping[str, Any], head: Mapping[str, Any]) -> str:
    names = {*origin["corpora"], *head.get("corpora", [])}
    rated = "The labels are what a few raters from few places felt or saw in a text."
    if "demo" not in names:
        return rated
    written = "The texts and labels of the corpus demo were written by a language model: no person rated them."
    return f"{rated} {written}" if names - {"demo"} else written


def _bias(kind: str, bias: Mapping[str, Any] | None) -> str:
    if bias is None:
        return "Not measured."
    scale = "probability" if kind == "emotion" else "valence and arousal in [-1, 1]"
    how = {
        "encoder": "A ridge probe on the frozen embeddings answers for sentences written for this purpose",
        "va": "The model answers for sentences written for this purpose",
        "emotion": "The model answers for sentences written for this purpose",
    }[kind]
    rows = []
    for exchanged, outputs in bias.items():
        for output, found in sorted(outputs.items(), key=lambda item: -item[1]["largest"])[:_BIAS_ANSWERS]:
            groups = sorted(found["shift"].items(), key=lambda item: item[1][0])
            ends = [f"{escape(group)} {_shift(*value)}" for group, value in (groups[0], groups[-1])]
            rows.append([exchanged, escape(output), *ends, fraction(found["largest"])])
    header = ["exchanged", "answer", "lowest group", "highest group", "largest in one sentence"]
    return (
        f"{how}, in which only a name, a pronoun or a group is exchanged. Shown is the mean difference from all "
        f"groups, ± its standard error over the sentences ({scale}), for the groups with the lowest and the highest "
        "answer; last, the largest difference between two groups in one sentence. Of more than two answers, those "
        "that shift most are shown; all answers and groups are in carl_export.json.\n\n"
        + table(header, rows, text_columns=4)
    )  # fmt: skip


def _shift(mean: float, error: float) -> str:
    sign = "+" if mean > 0 else ""
    return f"{sign}{fraction(mean)} ± {fraction(error)}"
