"""The tables that the CARL paper prints (arXiv 2502.20613), to be read beside measured ones."""

from importlib import resources
from typing import Any

import yaml

from carl_hf.report.tables import escape, fraction, table


def paper_tables() -> dict[str, Any]:
    """Tables I to V as data: {"source", "title", "tables": {"I": {"title", "columns": {title: printed decimals},
    "rows": [[base, model, number, ...]], "marks": [{"base", "model", "column", "mark", "meaning"}]}}}."""
    return yaml.safe_load((resources.files("carl_hf.report") / "paper_tables.yaml").read_text(encoding="utf-8"))


def printed_table(content: dict[str, Any]) -> str:
    """One of the tables in Markdown, with the decimals and the marks of the paper."""
    columns, legend, rows = content["columns"], [], []
    for base, model, *numbers in content["rows"]:
        cells = {title: fraction(value, columns[title]) for title, value in zip(columns, numbers, strict=True)}
        for mark in content.get("marks", ()):
            if (mark["base"], mark["model"]) == (base, model):
                cells[mark["column"]] += escape(mark["mark"])
                legend.append(f"\n\n{escape(mark['mark'])} {mark['meaning']}")
        rows.append([base, model, *cells.values()])
    return table(["base", "model", *columns], rows, text_columns=2) + "".join(legend)
