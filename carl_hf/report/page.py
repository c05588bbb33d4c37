"""results.json as a Markdown report in the shape of the paper's tables, and as a short table for the terminal."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from carl_hf.data.labelled import EMOTION
from carl_hf.evaluation.statistics import FEWEST_FOR_A_VERDICT, few_texts
from carl_hf.report.baselines import constant_predictor, majority_class
from carl_hf.report.paper import paper_tables, printed_table
from carl_hf.report.space import TABLES, corpora_with
from carl_hf.report.tables import MISSING, escape, format_metric, plain_table, short_names, table
from carl_hf.utils.atomic_files import named_in_errors

SEEN = "†"
_INTRODUCTION = """\
Brackets hold 95 % bootstrap intervals over the test texts. Accuracies are in percent (of texts with several classes:
the share whose set is right), angles in degrees, other metrics fractions. Linear probes read frozen vectors."""
_ALIGNMENT = """\
Alignment: mean squared distance of texts with one emotion; uniformity: log mean exp(-2 squared distance) of all pairs;
positive / random: alignment over the mean squared distance of random pairs. Lower is better in all three."""

# title of a column -> its metric below a model's task and corpus in results.json
_AGREEMENT = {"r": "pearson", "ρ": "spearman", "CCC": "ccc", "MAE": "mae"}
_VA = {f"{name[0].upper()} {t}": f"{name}.{key}" for name in ("valence", "arousal") for t, key in _AGREEMENT.items()}
_DOMINANCE = {f"D {title}": f"dominance.{key}" for title, key in _AGREEMENT.items()}
_CEILING = {"V r / ceiling": "valence.of_ceiling", "A r / ceiling": "arousal.of_ceiling"}
_CIRCLE = {"angle error": "angle_error.degrees", "intensity MAE": "intensity_error.mae"}
_EMOTION = {"acc": "accuracy", "P": "precision", "R": "recall", "F1": "f1"}
_SPACE = {"alignment": "alignment", "uniformity": "uniformity", "positive / random": "positive_random_ratio"}
_ORDER = {
    "separation": "centroid_separation", "angular error": "circular_order.angular_error",
    "by chance": "circular_order.chance_error", "circular r": "circular_order.circular_correlation",
    "order agreement": "circular_order.order_agreement", "share of plane": "circular_order.plane_share",
}  # fmt: skip
_POLARITY = {name.upper(): ("polarity", name, "accuracy") for name in ("cr", "mr", "sst5", "imdb")}
_SIX = "goemotions-six"
_CONSTANT, _MAJORITY = "constant predictor", "majority class"

_Tree = Mapping[str, Any]  # nested dictionaries: results of a model, or a branch of them
_Columns = Mapping[str, Sequence[str]]  # title -> task, corpus, and the names that lead to the metric


def write_report(results: _Tree, path: Path, pictures: Sequence[Path] = ()) -> None:
    """Writes the content of results.json as Markdown: what was run; Tables I to V as in the paper, the measured models
    first and the paper's rows apart from them; then all further metrics.

    Args:
        results: the content of results.json; anything may be missing. path: the file; its folder is made if needed.
        pictures: image files, linked relative to `path`.
    """
    report = _Report(results)
    sections = [*report.head(), *report.paper_shaped(), *report.further(), *report.comparisons(), *report.skipped()]
    for i, picture in enumerate(pictures):
        name, link = picture.stem.replace("-", " ").replace("_", " "), Path(os.path.relpath(picture, path.parent))
        sections += [*(["## Figures"] if i == 0 else []), f"![{escape(name)}]({quote(link.as_posix())})"]
    sections += report.footnotes()  # last: the others collect them
    path.parent.mkdir(parents=True, exist_ok=True)
    with named_in_errors(path):
        path.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")


def print_summary(results: _Tree, file: TextIO) -> None:
    """Prints one row a model: r of valence and arousal, accuracies in percent, macro F1, Spearman rho; what no model
    has is left out."""
    report = _Report(results)
    columns = _columns("va", report.va_corpus, {"V r": _VA["V r"], "A r": _VA["A r"]}) | {
        **{title: _POLARITY[title] for title in ("MR", "CR", "SST5", "IMDB")}, "six": ("emotion", _SIX, "accuracy"),
        "Ekman F1": ("emotion", "goemotions-ekman", "f1"), "STS": ("semantics", "stsb", "spearman"),
        "feeling": ("space", "feeling-over-topic", "accuracy"),
        "near": ("space", report.va_corpus, "nearness", "both"),
    }  # fmt: skip
    own = (corpus for corpus in report.corpora("emotion") if corpus not in EMOTION)
    columns |= {f"{corpus}, accuracy": ("emotion", corpus, "accuracy") for corpus in own}
    columns = {
        title: path
        for title, path in columns.items()
        if any(_shown(tree, path, interval=False) for tree in report.models.values())
    } or columns
    rows = [[name, *(_marked(tree, path) for path in columns.values())] for name, tree in report.models.items()]
    print(plain_table(["model", *columns], rows), *report.footnotes(), sep="\n", file=file)
    accurate = [title for title in columns if title in ("MR", "CR", "SST5", "IMDB", "six")] or [MISSING]
    legend = {
        "V r": f"V r, A r: Pearson r on {report.va_corpus}",
        accurate[0]: f"{', '.join(accurate)}: accuracy, percent",
        "feeling": "feeling: feeling over topic, percent",
        "STS": "STS: ρ",
        "near": f"near: ρ of cosine with label nearness on {report.va_corpus}",
    }
    print("; ".join(text for title, text in legend.items() if title in columns), file=file)


def _marked(tree: _Tree, path: Sequence[str]) -> str:
    """A cell of the summary, marked where the model was trained on what is measured."""
    cell = _shown(tree, path, interval=False)
    return f"{cell} {SEEN}" if cell and _at(tree, (*path[:2], "seen_in_training")) else cell or MISSING


class _Report:
    """The sections of a report. On the way it collects why metrics are missing."""

    def __init__(self, results: _Tree):
        self.results = results
        self.names = short_names(list(results.get("models") or {}))
        self.models: dict[str, _Tree] = {short: results["models"][name] for name, short in self.names.items()}
        self.reasons: list[str] = []
        va = self.corpora("va")
        main = va or corpora_with(self.models, "nearness")
        self.va_corpus = "emobank" if "emobank" in main or not main else main[0]
        majority = {
            task: {corpus: majority_class(self.first(task, corpus)) for corpus in self.corpora(task)}
            for task in ("polarity", "emotion")
        }
        constant = {"va": {corpus: constant_predictor(self.first("va", corpus)) for corpus in va}}
        self.trees = self.models | {_CONSTANT: constant, _MAJORITY: majority}

    def corpora(self, task: str) -> list[str]:
        return list(dict.fromkeys(corpus for tree in self.models.values() for corpus in tree.get(task) or {}))

    def first(self, task: str, corpus: str) -> _Tree:
        """The results of the first model that was measured on the corpus."""
        return next((found for tree in self.models.values() if (found := _at(tree, (task, corpus)))), {})

    def missing(self, reason: str) -> str:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"{MISSING} ({self.reasons.index(reason) + 1})"

    def cell(self, tree: _Tree, path: Sequence[str], interval: bool = True) -> str:
        skipped = tree.get("skipped") or {}
        why = _at(tree, path, "_reason") or skipped.get("/".join(path[:2])) or skipped.get(path[0]) or "not measured"
        return _shown(tree, path, interval=interval) or self.missing(why)

    def table(self, blocks: Mapping[str, _Columns], baseline: str | None = None, interval: bool = True) -> str:
        """A row for every block (a corpus; "" for none) and model, after each block its baseline."""
        rows = []
        for corpus, columns in blocks.items():
            for name, tree in self.trees.items():
                if name in self.models or name == baseline and any(_shown(tree, path) for path in columns.values()):
                    seen = any(_at(tree, (*path[:2], "seen_in_training")) for path in columns.values())
                    cells = [self.cell(tree, path, interval) for path in columns.values()]
                    rows.append([escape(corpus), escape(f"{name} {SEEN}" if seen else name), *cells])
        start = 0 if any(blocks) else 1
        return table(["corpus", "model", *columns][start:], [row[start:] for row in rows], text_columns=2 - start)

    def head(self) -> Iterator[str]:
        yield "# Evaluation"
        lines = []
        for key, value in (self.results.get("run") or {}).items():
            if isinstance(value, Mapping):
                value = ", ".join(f"{name} {version}" for name, version in value.items())
            lines.append(f"- {escape(key)}: {escape(value)}")
        yield "\n".join(lines)
        yield _INTRODUCTION
        rows = []
        for name, short in self.names.items():
            about = [self.models[short].get(key) or MISSING for key in ("commit", "pooling", "dimensions")]
            rows.append([escape(cell) for cell in (short, name, *about)])
        header = ["model", "loaded from", "commit", "pooling", "dimensions"]
        yield table(header, rows, text_columns=4) if rows else "No model was measured."

    def paper_shaped(self) -> Iterator[str]:
        """Tables I to V: the measured models, how they were measured, the paper's rows."""
        within = [corpus for corpus in self.corpora("va") if " to " not in corpus] or ["emobank"]
        main = _columns("va", self.va_corpus, {title: path for title, path in _VA.items() if "CCC" not in title})
        measured = {
            "I": (self.table({corpus: _columns("va", corpus, _VA) for corpus in within}, _CONSTANT),
                  [self.protocol("va", corpus) for corpus in within]),
            "II": (self.table({"": _POLARITY}, _MAJORITY),
                   [self.protocol("polarity", corpus) for _, corpus, _ in _POLARITY.values()]),
            "III": (self.table({"": _columns("emotion", _SIX, _EMOTION)}, _MAJORITY),
                    [self.protocol("emotion", _SIX), self.few(_SIX)]),
            "IV": (self.table({"": _columns("geometry", _SIX, _SPACE)}), [_ALIGNMENT]),
            "V": (self.table({"": {**_POLARITY, **main}}, interval=False),
                  [f"V and A on {self.va_corpus}. Intervals: Tables I and II."]),
        }  # fmt: skip
        paper = paper_tables()
        for number, content in paper["tables"].items():
            yield f"## Table {number}: {content['title']}"
            if self.models:
                rows, notes = measured[number]
                yield rows
                yield "\n".join(f"- {escape(note)}" for note in notes if note)
            yield f"Reported in the paper ({paper['source']}), other protocol (not comparable):"
            yield printed_table(content)

    def protocol(self, task: str, corpus: str) -> str:
        found = self.first(task, corpus)
        protocol = found.get("protocol") and f"SentEval, {found['protocol']} protocol"
        protocol = protocol if task == "polarity" else found.get("protocol")
        known = [text for text in (protocol, found.get("texts") and f"{found['texts']:,} texts") if text]
        return f"{corpus}: {', '.join(known)}" if known else ""

    def few(self, corpus: str) -> str:
        note = few_texts(self.first("emotion", corpus).get("smallest_class"))
        return note and f"{corpus}: {note}"

    def further(self) -> Iterator[str]:
        va, trees = self.corpora("va"), self.models.values()
        across = [corpus for corpus in va if " to " in corpus]
        dominance = [c for c in va if any(_at(tree, ("va", c, "dominance")) for tree in trees)]
        several = [c for c in self.corpora("emotion") if any(_at(t, ("emotion", c, "micro_f1")) for t in trees)]
        ceiling = [c for c in va if "of_ceiling" in (self.first("va", c).get("valence") or {})]
        for title, task, corpora, metrics, baseline in (
            ("From one corpus to another", "va", across, _VA, _CONSTANT),
            ("Dominance", "va", dominance, _DOMINANCE, _CONSTANT),
            ("Pearson r over the ceiling that the raters' noise sets", "va", ceiling, _CEILING, None),
            ("Angle and intensity on the circumplex", "va", [c for c in va if c not in across], _CIRCLE, _CONSTANT),
            ("Other sets of emotions", "emotion", self.corpora("emotion"), _EMOTION, _MAJORITY),
            ("Texts of several emotions", "emotion", several, {"micro F1": "micro_f1"}, None),
            ("Geometry", "geometry", self.corpora("geometry"), {**_SPACE, **_ORDER}, None),
            ("Semantic similarity", "semantics", self.corpora("semantics"), {"ρ": "spearman"}, None),
        ):
            left_out = {"emotion": _SIX, "geometry": "dimensions"}.get(task)  # Table III has it; it is no corpus
            blocks = {corpus: _columns(task, corpus, metrics) for corpus in corpora if corpus != left_out}
            if blocks:
                yield f"## {title}\n\n{self.table(blocks, baseline)}"
                yield "\n".join(f"- {escape(self.few(c))}" for c in blocks if task == "emotion" and self.few(c))
        for title, metric, metrics, explanation in TABLES:
            blocks = {corpus: _columns("space", corpus, metrics) for corpus in corpora_with(self.models, metric)}
            if blocks:
                yield f"## {title}\n\n{explanation}\n\n{self.table(blocks)}"
        # a row for each number of training texts, class, kind or condition of a corpus
        for title, task, path, label, ends in (
            ("Few training texts a class", "emotion", ["few_shot"], "texts a class",
             {"mean accuracy": ["accuracy_mean"], "its standard deviation": ["accuracy_std"]}),
            ("Feeling over topic by kind", "space", ["kinds"], "kind",
             {"in order, %": ["accuracy"], "mean margin": ["margin"]}),
            ("F1 of each class", "emotion", ["f1_per_class"], "class", {"F1": []}),
            ("Perturbed-token detector", "detector", [], "tokens",
             {"precision": ["precision"], "recall": ["recall"], "AUC": ["auc"]}),
        ):  # fmt: skip
            rows = [
                [*map(escape, (corpus, name, entry)),
                 *(self.cell(tree, (task, corpus, *path, entry, *end)) for end in ends.values())]
                for corpus in self.corpora(task) for name, tree in self.models.items()
                for entry in _at(tree, (task, corpus, *path)) or {}
            ]  # fmt: skip
            if rows:
                yield f"## {title}\n\n{table(['corpus', 'model', label, *ends], rows, text_columns=3)}"

    def comparisons(self) -> Iterator[str]:
        """Differences between models, the spread over seeds, and seconds."""
        short = {f"{b} minus {a}": f"{self.names[b]} minus {self.names[a]}" for a in self.names for b in self.names}
        rows = []
        for pair, tree in (self.results.get("comparisons") or {}).items():
            for parents, node in _nodes(tree):
                for path in [(*parents, key) for key in node if f"{key}_interval" in node]:
                    bounds, beyond = _at(tree, path, "_interval"), MISSING
                    difference = _shown(tree, path, signed=True) if bounds else None
                    if difference:
                        beyond = "yes" if bounds[0] > 0 or bounds[1] < 0 else "no"
                    if (_at(tree, (*path[:2], "texts")) or FEWEST_FOR_A_VERDICT) < FEWEST_FOR_A_VERDICT:
                        beyond = self.missing(f"fewer than {FEWEST_FOR_A_VERDICT} texts")
                    if _at(tree, (*path[:2], "seen_in_training")):
                        beyond = SEEN
                    difference = difference or self.missing(_at(tree, path, "_reason") or "undefined")
                    rows.append([escape(short.get(pair, pair)), escape(", ".join(path)), difference, beyond])
        if rows:
            yield "## Comparisons\n\nPaired bootstrap over the test texts. Beyond chance: the interval excludes 0."
            yield table(["comparison", "metric", "difference", "beyond chance"], rows, text_columns=2)
        rows = []
        for pattern, entry in (self.results.get("spread") or {}).items():
            for path, leaf in _nodes(entry.get("figures") or {}):
                if set(leaf) == {"mean", "std"} and isinstance(leaf["mean"], float):  # not classes of these names
                    cell = " ± ".join(format_metric(path[-1], leaf[k]) for k in ("mean", "std"))
                    cell += f" {SEEN}" * bool(_at(entry["figures"], (*path[:2], "seen_in_training")))
                    rows.append([escape(pattern), escape(", ".join(path)), str(len(entry.get("runs") or ())), cell])
        if rows:
            header = ["runs", "metric", "how many", "mean ± standard deviation"]
            yield f"## Spread over seeds\n\n{table(header, rows, text_columns=2)}"
        tasks = list(dict.fromkeys(task for tree in self.models.values() for task in tree.get("seconds") or {}))
        if tasks:
            rows = []
            for name, tree in self.models.items():
                seconds = [_at(tree, ("seconds", task)) for task in tasks]
                cells = (self.missing("not measured") if value is None else f"{value:.1f}" for value in seconds)
                rows.append([escape(name), *cells])
            yield f"## Seconds\n\n{table(['model', *map(escape, tasks)], rows)}"

    def skipped(self) -> Iterator[str]:
        names: dict[tuple[str, str], list[str]] = {}
        for name, tree in self.models.items():
            for task, reason in (tree.get("skipped") or {}).items():
                names.setdefault((task, reason), []).append(name)
        lines = {
            task if len(whose) == len(self.models) else f"{task} ({', '.join(whose)})": reason
            for (task, reason), whose in names.items()
        }
        for what, key in (("comparator", "comparators_left_out"), ("model", "failed")):
            lines |= {f"{what} {name}": why for name, why in (self.results.get(key) or {}).items()}
        if lines:
            yield "\n".join(["## Skipped", "", *(f"- {escape(what)}: {escape(why)}" for what, why in lines.items())])

    def footnotes(self) -> Iterator[str]:
        if any("seen_in_training" in node for tree in self.models.values() for _, node in _nodes(tree)):
            yield f"{SEEN} The encoder was trained on these texts and their labels: this is no measure for new ones."
        lines = [f"- ({number}) {escape(reason)}" for number, reason in enumerate(self.reasons, 1)]
        if lines:
            yield "\n".join(["## Missing metrics", "", *lines])


def _columns(task: str, corpus: str, metrics: Mapping[str, str]) -> dict[str, Sequence[str]]:
    return {title: (task, corpus, *path.split(".")) for title, path in metrics.items()}


def _at(tree: _Tree, path: Sequence[str], suffix: str = "") -> Any:
    """What stands at the end of a path; None if the path ends before."""
    for name in path[:-1]:
        tree = tree.get(name) or {}
    return tree.get(f"{path[-1]}{suffix}")


def _nodes(tree: _Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Tree]]:
    """Every dictionary in a nested one, with the names that lead to it."""
    yield path, tree
    for name, branch in tree.items():
        if isinstance(branch, Mapping):
            yield from _nodes(branch, (*path, name))


def _shown(tree: _Tree, path: Sequence[str], *, interval: bool = True, signed: bool = False) -> str | None:
    """A metric with its interval, if it has one; None if it is missing."""
    if _at(tree, path) is None:
        return None
    numbers = [_at(tree, path), *(_at(tree, path, "_interval") or ())]
    text, *bounds = (format_metric(path[-1], number, signed=signed) for number in numbers)
    return f"{text} [{', '.join(bounds)}]" if bounds and interval else text
