"""Model cards: the README.md of an export, rendered from its carl_export.json by templates/model_card.md."""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from carl_hf.evaluation.space import FEELING
from carl_hf.evaluation.statistics import few_texts
from carl_hf.export.provenance import (
    CorpusFacts,
    Provenance,
    corpus_facts,
    is_public_corpus,
    public_corpus_name,
    without_configuration,
)
from carl_hf.report.tables import MISSING, escape, fraction, table

Kind = Literal["encoder", "va", "emotion"]


class _Page(NamedTuple):
    """What the Hub is told of a kind of export."""

    library: str
    pipeline: str
    task: str
    tags: list[str]


_PAGES: dict[Kind, _Page] = {
    "encoder": _Page(
        "sentence-transformers", "sentence-similarity", "Valence and arousal by a linear probe on frozen embeddings",
        ["sentence-transformers", "sentence-similarity", "feature-extraction", "transformers"],
    ),
    "va": _Page("transformers", "text-classification", "Valence and arousal",
                ["text-classification", "valence", "arousal"]),
    "emotion": _Page("transformers", "text-classification", "Emotion recognition",
                     ["text-classification", "emotion"]),
}  # fmt: skip
_UNKNOWN_ORIGIN = Provenance(method="an unrecorded method").record()
_OUTPUTS_SHOWN = 2  # of each exchange in the table of biases: those that shift most


@dataclass(frozen=True)
class Result:
    """One row of a card's results.

    Args:
        dataset, split, revision: what it was measured on.
        metric: short name, such as `"pearson"`. name: as shown.
        value: accuracies in percent. interval: its 95 % bootstrap interval.
        baseline: the same metric of what the card compares with (the plain encoder, or a constant prediction).
    """

    dataset: str
    split: str
    metric: str
    name: str
    value: float
    interval: Sequence[float] | None = None
    baseline: float | None = None
    revision: str | None = None


def measured_row(
    corpus: str, metric: str, name: str, value: float, interval: Sequence[float] | None = None,
    baseline: float | None = None,
) -> Result:  # fmt: skip
    """What was measured on the test part of a corpus, under its public name."""
    facts = corpus_facts(corpus)
    revision = facts.revision if facts else None
    return Result(public_corpus_name(corpus), "test", metric, name, value, interval, baseline, revision)


def va_results(dataset: str, metrics: Mapping[str, Any], *, baseline: Mapping[str, Any] | None = None) -> list[Result]:
    """Rows for a card from what [`carl_hf.evaluation.valence_arousal.va_metrics`] returns for a test split; undefined
    metrics are left out.

    Args:
        baseline: the same metrics of what is compared with; by default those of the constant predictor; `{}` for none.
    """
    rows = []
    for dimension in (name for name in ("valence", "arousal", "dominance") if name in metrics):
        own = metrics[dimension]
        other = own["constant"] if baseline is None else baseline.get(dimension, {})
        for metric, name in (("pearson", "Pearson r"), ("ccc", "CCC"), ("mae", "mean absolute error, in [-1, 1]")):
            if own[metric] is not None:
                found = own[metric], own.get(f"{metric}_interval"), other.get(metric)
                rows.append(measured_row(dataset, metric, f"{dimension}, {name}", *found))
    return rows


_SPACE = {
    "feeling over topic": ("accuracy",),
    "label nearness, Spearman rho of the cosine": ("nearness", "both"),
    "valence of the 10 nearest texts, Pearson r": ("knn", "valence", "pearson"),
    "arousal of the 10 nearest texts, Pearson r": ("knn", "arousal", "pearson"),
}


def space_results(dataset: str, metrics: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[Result]:
    """Rows for a card from what the task `space` gives for a dataset (see [`carl_hf.evaluation.space`]); what it does
    not measure there, or what is undefined, is left out."""
    rows = []
    for name, (*path, metric) in _SPACE.items():
        own, other = metrics, baseline
        for key in path:
            own, other = own.get(key, {}), other.get(key, {})
        if own.get(metric) is not None:
            found = own[metric], own[f"{metric}_interval"], other.get(metric)
            rows.append(measured_row(dataset, "spearman" if metric == "both" else metric, name, *found))
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
    corpora = list(dict.fromkeys([*origin["corpora"], *head.get("corpora", [])]))
    results = [Result(**row) for row in record["results"]]
    page = _PAGES[kind]
    data = ModelCardData(
        language=origin["language"],
        license=origin["licence"],
        library_name=page.library,
        tags=[*page.tags, "emotion-embeddings", "carl"],
        base_model=origin["base_model"],
        datasets=sorted(set(map(without_configuration, filter(is_public_corpus, corpora)))) or None,
        metrics=sorted({result.metric for result in results}) or None,
        pipeline_tag=page.pipeline,
        model_name=title,
        eval_results=[_eval_result(page, result) for result in results] or None,
        widget=record["widget"],
    )
    # without autoescape, which is for HTML
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["md"] = escape
    template = importlib.resources.files("carl_hf.export") / "templates" / "model_card.md"
    body = environment.from_string(template.read_text("utf-8")).render(
        record=record,
        kind=kind,
        origin=origin,
        head=head,
        corpora=corpora,
        title=title,
        id=json.dumps(name, ensure_ascii=False),  # a Python literal too, with the quotes of the other lines
        thresholds_table=_pairs_table(
            "label", "threshold", {label: fraction(value) for label, value in (head.get("thresholds") or {}).items()}
        ),
        few_texts=few_texts(head.get("smallest_class")),
        results_table=_results_table(results, record.get("baseline")),
        settings_table=_pairs_table("setting", "value", origin["settings"] or {}),
        corpora_table=_corpora_table(corpora),
        bias_table=_bias_table(record.get("bias") or {}),
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{body}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"A name or label of the model cannot be written as UTF-8: {error}.") from error
    return text


def _eval_result(page: _Page, result: Result) -> EvalResult:
    share = result.value / 100 if result.metric == "accuracy" else result.value
    task = result.name if result.dataset == FEELING else page.task
    return EvalResult(
        task_type=page.pipeline, task_name=task, dataset_type=result.dataset, dataset_name=result.dataset,
        dataset_split=result.split, dataset_revision=result.revision, metric_type=result.metric,
        metric_name=result.name, metric_value=round(share, 4),
    )  # fmt: skip


def _pairs_table(key: str, value: str, pairs: Mapping[str, Any]) -> str:
    shown = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in pairs.items()}  # as in a command
    return table([key, value], [[escape(k), escape(v)] for k, v in shown.items()]) if pairs else ""


def _results_table(results: Sequence[Result], baseline: str | None) -> str:
    def shown(metric: str, value: float | None) -> str:
        if value is None:
            return MISSING
        return f"{value:.1f} %" if metric == "accuracy" else fraction(value)

    rows = []
    for result in results:
        value = shown(result.metric, result.value)
        if result.interval is not None:
            value += f" [{', '.join(shown(result.metric, bound) for bound in result.interval)}]"
        corpus = f"{escape(result.dataset)}, {escape(result.split)}"
        rows.append([corpus, escape(result.name), value, shown(result.metric, result.baseline)])
    header = ["corpus", "metric", "this model [95 % interval]", escape(baseline or MISSING)]
    return table(header, rows, text_columns=2) if rows else ""


def _corpora_table(corpora: Sequence[str]) -> str:
    rows = []
    for name in corpora:
        facts = corpus_facts(name) or CorpusFacts("not stated", MISSING)
        rows.append([escape(name), escape(facts.licence), escape(facts.source), (facts.revision or MISSING)[:12]])
    return table(["corpus", "licence", "source", "revision"], rows, text_columns=4) if rows else ""


def _bias_table(bias: Mapping[str, Any]) -> str:
    def shown(group: str, mean: float, error: float) -> str:
        return f"{escape(group)} {'+' if mean > 0 else ''}{fraction(mean)} ± {fraction(error)}"

    rows = []
    for exchanged, outputs in bias.items():
        for output, found in sorted(outputs.items(), key=lambda item: -item[1]["largest"])[:_OUTPUTS_SHOWN]:
            groups = sorted(found["shift"].items(), key=lambda item: item[1][0])
            ends = [shown(group, *shift) for group, shift in (groups[0], groups[-1])]
            rows.append([exchanged, escape(output), *ends, fraction(found["largest"])])
    header = ["exchanged", "output", "lowest group", "highest group", "largest in one sentence"]
    return table(header, rows, text_columns=4) if rows else ""
