"""What examples/pretrain.py shows of [`carl_hf.evaluation.before_after`]: a table for the terminal, and plots."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from carl_hf.evaluation.before_after import BeforeAfter, Splits
from carl_hf.evaluation.space import FEELING
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of
from carl_hf.export.cards import space_results, va_results
from carl_hf.export.provenance import public_corpus_name
from carl_hf.report.nearest import plot_nearest
from carl_hf.report.pictures import draw
from carl_hf.report.plots import plot_circumplex
from carl_hf.report.tables import plain_table


def print_before_after(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Prints correlations before and after training and their gain, a table for each corpus, feeling over topic, and
    the verdict.

    Args:
        results: as in results.json. sizes: corpus -> number of test texts.
    """
    for corpus, size in sizes.items():
        print(f"\n{corpus}: {size} held-out texts, Pearson r of a ridge probe on frozen embeddings [95 % interval]")
        rows = _rows(results["run"], {key: results[key][corpus] for key in ("before", "after", "gain")})
        cells = [[name, *(_cell(row[d], "pearson", f"{sign}.3") for d in DIMENSIONS)] for name, row, sign in rows]
        print(plain_table(["", *DIMENSIONS], cells))
    if feeling := results.get("feeling_over_topic"):
        number, rule = feeling["after"]["texts"], "in order if nearer to the same feeling than to the same topic"
        print(f"\nfeeling over topic: {number} triplets by cosine, {rule} [95 % interval]")
        cells = [
            [name, _cell(row, "accuracy", f"{sign}.1", " %"), _cell(row, "margin", f"{sign}.3")]
            for name, row, sign in _rows(results["run"], feeling)
        ]
        print(plain_table(["", "in order", "mean margin"], cells))
    print(f"\n{results['verdict']}\n")


def _rows(run: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    """Name, metrics and sign of the rows before, after and gain."""
    return [
        (f"before  {run['encoder']}, {found['before']['pooling']}", found["before"], ""),
        (f"after   {_trained(run['method'], 20)}, {found['after']['pooling']}", found["after"], ""),
        ("gain", found["gain"], "+"),
    ]


def _trained(method: str, longest: int) -> str:
    """What the trained encoder is called: its method, unless that has more characters."""
    return method if len(method) <= longest else "trained"


def _cell(metrics: Mapping[str, Any], metric: str, form: str, unit: str = "") -> str:
    if metrics[metric] is None:
        return "undefined"
    low, high = metrics[f"{metric}_interval"]
    return f"{metrics[metric]:{form}f}{unit} [{low:{form}f}, {high:{form}f}]"


def draw_before_after(
    folder: Path, measured: BeforeAfter, corpora: Mapping[str, Splits], *, encoder: str, method: str
) -> list[Path]:
    """Draws the labels and both encoders' predictions of each corpus's test texts on the valence-arousal plane, and
    the example of nearest texts.

    Args:
        encoder: the plain encoder's name. method: the trained one's.

    Returns:
        the PNG files, named after the corpora without their folders.
    """
    drawn: list[Path] = []
    for corpus, (old, new) in measured.predictions.items():
        name = f"circumplex-{re.sub(r'[^A-Za-z0-9]+', '-', public_corpus_name(corpus)).strip('-')[:80]}"
        if folder / f"{name}.png" in drawn:
            name += f"-{len(drawn)}"
        test: Dataset = corpora[corpus]["test"]
        panels = {
            _title(Path(encoder).name, measured.before[corpus]): old,
            _title(_trained(method, 20), measured.after[corpus]): new,
        }
        labels = test["label"] if "label" in test.column_names else None
        drawn += draw(folder / f"{name}.png", plot_circumplex, panels, labels_of(test), labels)
    columns = {
        f"before: {Path(encoder).name}, {measured.feeling['before']['pooling']}": measured.nearest["before"],
        f"after: {_trained(method, 40)}": measured.nearest["after"],
    }
    path = folder / "nearest-texts-before-and-after.png"
    return drawn + draw(path, plot_nearest, measured.nearest["sentence"], columns)


def _title(name: str, metrics: Mapping[str, Any]) -> str:
    """Of a panel, with its correlations if they are defined."""
    r = [metrics[dimension]["pearson"] for dimension in DIMENSIONS]
    title = f"{name}, {metrics['pooling']}"
    return title if None in r else f"{title}\nr = {r[0]:.2f} (valence), {r[1]:.2f} (arousal)"


def rows_for_card(measured: BeforeAfter, encoder: str) -> dict[str, Any]:
    """Arguments `results` and `baseline` of [`carl_hf.export_encoder`]: metrics of the trained encoder beside those of
    the plain one, whose name is `encoder`."""
    rows = [
        row
        for corpus, after in measured.after.items()
        for row in (*va_results(corpus, after, baseline=measured.before[corpus]),
                    *space_results(corpus, after, measured.before[corpus]))
    ]  # fmt: skip
    rows += space_results(FEELING, measured.feeling["after"], measured.feeling["before"])
    poolings = sorted({before["pooling"] for before in (*measured.before.values(), measured.feeling["before"])})
    which = " (the better one on validation texts)" if len(poolings) > 1 else ""
    return {"results": rows, "baseline": f"{Path(encoder).name} as it was, {' or '.join(poolings)}{which}"}
