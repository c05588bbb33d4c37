"""results.json as a Markdown report in the shape of the paper's tables, and as a short table for the terminal."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from urllib.parse import quote

from carl_hf.report.paper import paper_tables, printed_table
from carl_hf.report.tables import MISSING, escape, format_figure, plain_table, short_names, table

_INTRODUCTION = """\
Brackets hold 95 % bootstrap intervals over the test texts. Accuracies are in percent, angles in degrees, all other
figures fractions. The encoders are frozen; what is fitted is a linear probe on their vectors."""

_ALIGNMENT = """\
Alignment: mean squared distance of texts with one emotion; uniformity: log mean exp(-2 squared distance) of all pairs;
positive / random: alignment over the mean squared distance of random pairs. Lower is better in all three."""


class _Column(NamedTuple):
    """A column: its title, and where its figure stands in results.json below a model."""

    title: str
    task: str
    corpus: str
    path: tuple[str, ...]


_Figures = Mapping[str, Any]
_Baseline = tuple[str, Callable[[_Figures], _Figures]]  # its name; a model's figures on a corpus -> the baseline's

_AGREEMENT = {"r": "pearson", "ρ": "spearman", "CCC": "ccc", "MAE": "mae"}
_VA = {f"{name[0].upper()} {t}": f"{name}.{f}" for name in ("valence", "arousal") for t, f in _AGREEMENT.items()}
_DOMINANCE = {f"D {title}": f"dominance.{figure}" for title, figure in _AGREEMENT.items()}
_CIRCLE = {"angle error": "angle_error.degrees", "intensity MAE": "intensity_error.mae"}
_EMOTION = {"acc": "accuracy", "P": "precision", "R": "recall", "F1": "f1"}
_SPACE = {"alignment": "alignment", "uniformity": "uniformity", "positive / random": "positive_random_ratio"}
_ORDER = {
    "separation": "centroid_separation",
    "angular error": "circular_order.angular_error",
    "by chance": "circular_order.chance_error",
    "circular r": "circular_order.circular_correlation",
    "order agreement": "circular_order.order_agreement",
    "share of plane": "circular_order.plane_share",
}
_POLARITY = [
    _Column(c.upper(), "polarity", c, ("accuracy",)) for c in ("cr", "mr", "sst5", "imdb")
]  # the paper's order
_SIX = "goemotions-six"


def write_report(results: Mapping[str, Any], path: Path, figures: Sequence[Path] = ()) -> None:
    """Writes the content of results.json as Markdown: what was run; Tables I to V as in the paper, the measured models
    first and the paper's rows apart from them; then all further figures.

    Args:
        results: the content of results.json; any part may be missing. path: the file; its folder is made if needed.
        figures: image files, linked relative to `path`.
    """
    report = _Report(results)
    sections = [
        report.head(), *report.paper_shaped(), *report.further(), report.comparisons(), report.spread(),
        report.seconds(), report.skipped(), _figure_links(figures, path.parent),
    ]  # fmt: skip
    sections.append(report.footnotes())  # last: the others fill it
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")


def print_summary(results: Mapping[str, Any], file: TextIO) -> None:
    """Prints one row a model: r of valence and arousal, accuracies in percent, macro F1, Spearman rho."""
    report = _Report(results)
    corpus = report.va_corpus()
    accuracy = {column.title: column for column in _POLARITY}
    columns = [
        *_columns("va", corpus, {"V r": _VA["V r"], "A r": _VA["A r"]}),
        *(accuracy[title] for title in ("MR", "CR", "SST5")),
        *_columns("emotion", _SIX, {"six": "accuracy"}),
        *_columns("emotion", "goemotions-ekman", {"Ekman F1": "f1"}),
        *_columns("semantics", "stsb", {"STS": "spearman"}),
    ]
    rows = []
    for model, name in report.names.items():
        values = [(c.path[-1], _figure(report.on(model, c.task, c.corpus), c.path)[0]) for c in columns]
        rows.append([name, *(MISSING if value is None else format_figure(key, value) for key, value in values)])
    print(plain_table(["model", *(column.title for column in columns)], rows), file=file)
    print(f"V r, A r: Pearson r on {corpus}. MR, CR, SST5, six: accuracy, percent. STS: Spearman ρ.", file=file)


SEEN = "†"


class _Report:
    """The sections of a report. On the way it collects why figures are missing."""

    def __init__(self, results: Mapping[str, Any]):
        self.results = results
        self.models: dict[str, dict[str, Any]] = results.get("models") or {}
        self.names = short_names(list(self.models))
        self.reasons: list[str] = []

    def on(self, model: str, task: str, corpus: str) -> _Figures:
        return (self.models[model].get(task) or {}).get(corpus) or {}

    def corpora(self, task: str) -> list[str]:
        return list(dict.fromkeys(corpus for model in self.models.values() for corpus in model.get(task) or {}))

    def va_corpus(self) -> str:
        """The corpus that stands for valence and arousal: EmoBank, else the first one measured."""
        corpora = self.corpora("va")
        return corpora[0] if corpora and "emobank" not in corpora else "emobank"

    def missing(self, reason: str) -> str:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"{MISSING} ({self.reasons.index(reason) + 1})"

    def why(self, model: str, column: _Column) -> str:
        skipped = self.models[model].get("skipped") or {}
        return skipped.get(f"{column.task}/{column.corpus}") or skipped.get(column.task) or "not measured"

    def cell(self, figures: _Figures, path: Sequence[str], why: str, *, interval: bool = True) -> str:
        value, bounds, reason = _figure(figures, path)
        if value is None:
            return self.missing(reason or why)
        text = format_figure(path[-1], value)
        if not interval or not bounds:
            return text
        return f"{text} [{', '.join(format_figure(path[-1], bound) for bound in bounds)}]"

    def table(
        self, blocks: Mapping[str, Sequence[_Column]], *, baseline: _Baseline | None = None, interval: bool = True
    ) -> str:
        """A row for every block (a corpus; "" for none) and model, after each block its baseline."""
        rows = []
        for label, columns in blocks.items():
            for model, name in self.names.items():
                cells = [
                    self.cell(self.on(model, c.task, c.corpus), c.path, self.why(model, c), interval=interval)
                    for c in columns
                ]
                seen = any(self.on(model, c.task, c.corpus).get("seen_in_training") for c in columns)
                rows.append([label, f"{name} {SEEN}" if seen else name, *cells])
            if baseline is not None:
                of_first = [next((f for m in self.models if (f := self.on(m, c.task, c.corpus))), {}) for c in columns]
                known = [
                    (baseline[1](figures), column.path) for figures, column in zip(of_first, columns, strict=True)
                ]
                if any(_figure(figures, path)[0] is not None for figures, path in known):
                    rows.append([label, baseline[0], *(self.cell(f, path, "not measured") for f, path in known)])
        header = ["corpus", "model", *(column.title for column in next(iter(blocks.values())))]
        start = 0 if any(blocks) else 1
        rows = [[escape(label), escape(name), *cells][start:] for label, name, *cells in rows]
        return table(header[start:], rows, text_columns=2 - start)

    def head(self) -> str:
        lines = ["# Evaluation", ""]
        for key, value in (self.results.get("run") or {}).items():
            if isinstance(value, Mapping):
                value = ", ".join(f"{name} {version}" for name, version in value.items())
            lines.append(f"- {escape(key)}: {escape(value)}")
        lines += [*([""] if self.results.get("run") else []), _INTRODUCTION, ""]
        if not self.models:
            return "\n".join([*lines, "No model was measured."])
        rows = [
            [
                escape(self.names[name]),
                escape(name),
                *(escape(model.get(k) or MISSING) for k in ("pooling", "dimensions")),
            ]
            for name, model in self.models.items()
        ]
        return "\n".join([*lines, table(["model", "loaded from", "pooling", "dimensions"], rows, text_columns=3)])

    def paper_shaped(self) -> Iterator[str]:
        """Tables I to V: the measured models, how they were measured, the paper's rows."""
        within = [corpus for corpus in self.corpora("va") if " to " not in corpus] or ["emobank"]
        main = _columns("va", self.va_corpus(), {title: path for title, path in _VA.items() if "CCC" not in title})
        measured = {
            "I": self.table({c: _columns("va", c, _VA) for c in within}, baseline=_CONSTANT),
            "II": self.table({"": _POLARITY}, baseline=_MAJORITY),
            "III": self.table({"": _columns("emotion", _SIX, _EMOTION)}, baseline=_MAJORITY),
            "IV": self.table({"": _columns("geometry", _SIX, _SPACE)}),
            "V": self.table({"": [*_POLARITY, *main]}, interval=False),
        }
        how = {
            "I": [self._protocol("va", corpus) for corpus in within],
            "II": [self._protocol("polarity", column.corpus) for column in _POLARITY],
            "III": [self._protocol("emotion", _SIX)],
            "IV": [_ALIGNMENT],
            "V": [f"V and A on {self.va_corpus()}. Intervals: Tables I and II."],
        }
        paper = paper_tables()
        for number, content in paper["tables"].items():
            yield f"## Table {number}: {content['title']}"
            if self.models:
                yield measured[number]
                yield "\n".join(f"- {escape(line)}" for line in how.get(number, ()) if line)
            yield f"Reported in the paper ({paper['source']}), other protocol (not comparable):"
            yield printed_table(content)

    def _protocol(self, task: str, corpus: str) -> str:
        figures = next((f for m in self.models if (f := self.on(m, task, corpus))), {})
        protocol = figures.get("protocol")
        if protocol and task == "polarity":
            protocol = f"SentEval, {protocol} protocol"
        known = [protocol, f"{figures['texts']:,} texts" if figures.get("texts") else None]
        return f"{corpus}: {', '.join(text for text in known if text)}" if any(known) else ""

    def further(self) -> Iterator[str]:
        va, semantics = self.corpora("va"), self.corpora("semantics")
        across = [corpus for corpus in va if " to " in corpus]
        within = [corpus for corpus in va if corpus not in across]
        with_dominance = [c for c in va if any("dominance" in self.on(m, "va", c) for m in self.models)]
        emotion = [corpus for corpus in self.corpora("emotion") if corpus != _SIX]
        geometry = [corpus for corpus in self.corpora("geometry") if corpus != "dimensions"]
        for title, task, corpora, paths, baseline in (
            ("From one corpus to another", "va", across, _VA, _CONSTANT),
            ("Dominance", "va", with_dominance, _DOMINANCE, _CONSTANT),
            ("Angle and intensity on the circumplex", "va", within, _CIRCLE, _CONSTANT),
            ("Other sets of emotions", "emotion", emotion, _EMOTION, _MAJORITY),
            ("Geometry", "geometry", geometry, {**_SPACE, **_ORDER}, None),
            ("Semantic similarity", "semantics", semantics, {"ρ": "spearman"}, None),
        ):
            if corpora:
                blocks = {corpus: _columns(task, corpus, paths) for corpus in corpora}
                yield f"## {title}\n\n{self.table(blocks, baseline=baseline)}"
        # tables whose rows are parts of a corpus's figures: its numbers of training texts, its classes, its conditions
        for title, task, part, label, paths in (
            ("Few training texts a class", "emotion", "few_shot", "texts a class",
             {"mean accuracy": "accuracy_mean", "its standard deviation": "accuracy_std"}),
            ("F1 of each class", "emotion", "f1_per_class", "class", {"F1": ""}),
            ("Perturbed-token detector", "detector", "", "tokens",
             {"precision": "precision", "recall": "recall", "AUC": "auc"}),
        ):  # fmt: skip
            rows = []
            for corpus in self.corpora(task):
                for model, name in self.names.items():
                    figures = self.on(model, task, corpus)
                    for row in (figures.get(part) or {}) if part else figures:
                        places = [(part, row, path) for path in paths.values()]
                        cells = [self.cell(figures, [p for p in place if p], "not measured") for place in places]
                        rows.append([escape(corpus), escape(name), escape(row), *cells])
            if rows:
                yield f"## {title}\n\n{table(['corpus', 'model', label, *paths], rows, text_columns=3)}"

    def comparisons(self) -> str:
        short = {f"{b} minus {a}": f"{self.names[b]} minus {self.names[a]}" for a in self.models for b in self.models}
        rows = []
        for pair, tree in (self.results.get("comparisons") or {}).items():
            for place, figures in _nodes(tree):
                for key in [k for k in figures if f"{k}_interval" in figures]:
                    value, bounds, reason = _figure(figures, [key])
                    if value is None or not bounds:
                        difference, beyond = self.missing(reason or "undefined"), MISSING
                    else:
                        low, high = (format_figure(key, bound, signed=True) for bound in bounds)
                        difference = f"{format_figure(key, value, signed=True)} [{low}, {high}]"
                        beyond = "yes" if bounds[0] > 0 or bounds[1] < 0 else "no"
                    if tree.get(place[0], {}).get(place[1], {}).get("seen_in_training"):
                        beyond = SEEN
                    rows.append([escape(short.get(pair, pair)), escape(", ".join([*place, key])), difference, beyond])
        body = table(["comparison", "figure", "difference", "beyond chance"], rows, text_columns=2)
        note = "Paired bootstrap over the test texts. Beyond chance: the interval excludes 0."
        return f"## Comparisons\n\n{note}\n\n{body}" if rows else ""

    def spread(self) -> str:
        rows = []
        for pattern, entry in (self.results.get("spread") or {}).items():
            for place, leaf in _nodes(entry.get("figures") or {}):
                if "mean" in leaf:
                    known = leaf["mean"] is not None and leaf.get("std") is not None
                    ends = [format_figure(place[-1], leaf[key]) for key in ("mean", "std")] if known else []
                    cell = " ± ".join(ends) or self.missing(leaf.get("mean_reason") or "undefined in one of the runs")
                    rows.append([escape(pattern), escape(", ".join(place)), str(len(entry.get("runs") or ())), cell])
        body = table(["runs", "figure", "how many", "mean ± standard deviation"], rows, text_columns=2)
        return f"## Spread over seeds\n\n{body}" if rows else ""

    def seconds(self) -> str:
        measured = {name: self.models[model].get("seconds") or {} for model, name in self.names.items()}
        parts = list(dict.fromkeys(part for seconds in measured.values() for part in seconds))
        rows = [
            [escape(name), *(f"{s[part]:.1f}" if part in s else self.missing("not measured") for part in parts)]
            for name, s in measured.items()
        ]
        return f"## Seconds\n\n{table(['model', *map(escape, parts)], rows)}" if parts else ""

    def skipped(self) -> str:
        models: dict[tuple[str, str], list[str]] = {}
        for model, name in self.names.items():
            for task, reason in (self.models[model].get("skipped") or {}).items():
                models.setdefault((task, reason), []).append(name)
        lines = []
        for (task, reason), names in models.items():
            whose = "" if len(names) == len(self.models) else f" ({', '.join(names)})"
            lines.append(f"- {escape(task + whose)}: {escape(reason)}")
        left_out = self.results.get("comparators_left_out") or {}
        lines += [f"- comparator {escape(name)}: {escape(reason)}" for name, reason in left_out.items()]
        return "\n".join(["## Skipped", "", *lines]) if lines else ""

    def footnotes(self) -> str:
        lines = [f"- ({number}) {escape(reason)}" for number, reason in enumerate(self.reasons, 1)]
        missing = "\n".join(["## Missing figures", "", *lines]) if lines else ""
        entries = [f for m in self.models.values() for f in (m.get("va") or {}).values()]
        if not any(figures.get("seen_in_training") for figures in entries):
            return missing
        note = f"{SEEN} The encoder was trained on these texts and their labels: this is no measure for new ones."
        return "\n\n".join(part for part in (note, missing) if part)


def _columns(task: str, corpus: str, paths: Mapping[str, str]) -> list[_Column]:
    return [_Column(title, task, corpus, tuple(path.split("."))) for title, path in paths.items()]


def _constant_predictor(figures: _Figures) -> _Figures:
    result = {name: (figures.get(name) or {}).get("constant") or {} for name in ("valence", "arousal", "dominance")}
    for name, unit in (("angle_error", "degrees"), ("intensity_error", "mae")):
        result[name] = {unit: (figures.get(name) or {}).get("constant")}
    return result


def _majority_class(figures: _Figures) -> _Figures:
    """Of a predictor that always says the most frequent class: the macro figures of all its other classes are 0."""
    if figures.get("majority") is None:
        return {}
    result = {"accuracy": figures["majority"]}
    if figures.get("classes"):
        share, classes = figures["majority"] / 100, len(figures["classes"])
        result |= {"precision": share / classes, "recall": 1 / classes, "f1": 2 * share / (1 + share) / classes}
    return result


_CONSTANT: _Baseline = ("constant predictor", _constant_predictor)
_MAJORITY: _Baseline = ("majority class", _majority_class)


def _figure(figures: _Figures, path: Sequence[str]) -> tuple[float | None, Sequence[float] | None, str | None]:
    """A figure, its interval, and the reason why it is missing, each None where there is none."""
    *parents, key = path
    for parent in parents:
        figures = figures.get(parent) or {}
    return figures.get(key), figures.get(f"{key}_interval"), figures.get(f"{key}_reason")


def _nodes(tree: _Figures, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Figures]]:
    """Every dictionary in a nested one, with the names that lead to it."""
    yield place, tree
    for name, branch in tree.items():
        if isinstance(branch, Mapping):
            yield from _nodes(branch, (*place, name))


def _figure_links(figures: Sequence[Path], folder: Path) -> str:
    links = []
    for figure in figures:
        target = Path(os.path.relpath(figure, folder)).as_posix()
        links.append(f"![{escape(figure.stem.replace('-', ' ').replace('_', ' '))}]({quote(target)})")
    return "\n\n".join(["## Figures", *links]) if links else ""
