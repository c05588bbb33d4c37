"""What examples/pretrain.py shows of [`carl_hf.evaluation.before_after`]: a table for the terminal, and plots."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from carl_hf.evaluation.before_after import BeforeAfter, Splits
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of
from carl_hf.export.cards import va_results
from carl_hf.export.provenance import public_corpus_name
from carl_hf.report.pictures import draw
from carl_hf.report.plots import plot_circumplex
from carl_hf.report.tables import plain_table


def print_before_after(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Prints correlations before and after training and their gain, a table for each corpus, and the verdict.

    Args:
        results: as in results.json. sizes: corpus -> number of test texts.
    """
    for corpus, size in sizes.items():
        before, after, gain = (results[key][corpus] for key in ("before", "after", "gain"))
        print(f"\n{corpus}: {size} held-out texts, Pearson r of a ridge probe on frozen embeddings [95 % interval]")
        rows = {
            f"before  {results['run']['encoder']}, {before['pooling']}": (before, ""),
            f"after   {results['run']['method']}, {after['pooling']}": (after, ""),
            "gain": (gain, "+"),
        }
        cells = [[name, *(_cell(row[d], sign) for d in DIMENSIONS)] for name, (row, sign) in rows.items()]
        print(plain_table(["", *DIMENSIONS], cells))
    print(f"\n{results['verdict']}\n")


def _cell(metrics: Mapping[str, Any], sign: str) -> str:
    if metrics["pearson"] is None:
        return "undefined"
    low, high = metrics["pearson_interval"]
    return f"{metrics['pearson']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def draw_before_after(
    folder: Path, measured: BeforeAfter, corpora: Mapping[str, Splits], *, encoder: str, method: str
) -> list[Path]:
    """Draws the labels and both encoders' predictions of each corpus's test texts on the valence-arousal plane.

    Args:
        encoder: the plain encoder's name. method: the trained one's; "trained" if it is too long for a title.

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
            _title(method if len(method) <= 20 else "trained", measured.after[corpus]): new,
        }
        labels = test["label"] if "label" in test.column_names else None
        drawn += draw(folder / f"{name}.png", plot_circumplex, panels, labels_of(test), labels)
    return drawn


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
        for row in va_results(corpus, after, baseline=measured.before[corpus])
    ]
    poolings = sorted({before["pooling"] for before in measured.before.values()})
    return {"results": rows, "baseline": f"{Path(encoder).name} as it was, {' / '.join(poolings)}"}
