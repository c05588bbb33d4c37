"""Figures and tables as text: numbers as the paper prints them, aligned Markdown tables, names that fit into them."""

import re
from collections.abc import Sequence

MISSING = "–"
_PERCENT = ("accuracy", "majority", "accuracy_mean", "accuracy_std")
_ONE_DECIMAL = (*_PERCENT, "degrees", "angular_error", "chance_error", "seconds")
_FOUR_DECIMALS = ("alignment", "uniformity")


def fraction(value: float, digits: int = 3) -> str:
    """`.721`, `-.018`, `1.034`: without the zero before the point."""
    text = f"{value:.{digits}f}"
    if not re.search("[1-9]", text):
        text = text.removeprefix("-")  # no -.000
    return re.sub(r"^(-?)0\.", r"\1.", text)


def format_figure(key: str, value: float, *, signed: bool = False) -> str:
    """A figure of results.json by its name there: accuracies and degrees with one decimal, others as fractions."""
    if key in _ONE_DECIMAL:
        text = f"{value:.1f}".replace("-0.0", "0.0")
    else:
        text = fraction(value, 4 if key in _FOUR_DECIMALS else 3)
    return f"+{text}" if signed and value > 0 else text


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in one table cell."""
    return re.sub(r"([\\|_*`\[\]<>])", r"\\\1", " ".join(str(text).split()))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """A Markdown table, its columns aligned in the source too: the first `text_columns` left, the others right."""
    lines = [list(header), *(list(row) for row in rows)]
    assert len({len(line) for line in lines}) == 1, "rows of unequal length"
    widths = [max(3, *(len(line[c]) for line in lines)) for c in range(len(header))]

    def pad(cell: str, c: int) -> str:
        return cell.ljust(widths[c]) if c < text_columns else cell.rjust(widths[c])

    padded = ["| " + " | ".join(pad(cell, c) for c, cell in enumerate(line)) + " |" for line in lines]
    rule = [":" + "-" * (w - 1) if c < text_columns else "-" * (w - 1) + ":" for c, w in enumerate(widths)]
    return "\n".join([padded[0], "| " + " | ".join(rule) + " |", *padded[1:]])


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a terminal: the first column left, the others right, two blanks between."""
    lines = [header, *rows]
    widths = [max(len(line[c]) for line in lines) for c in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(w) if c else cell.ljust(w) for c, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name's last two path components, or as many more as tell all names apart."""
    split = [name.rstrip("/").split("/") for name in names]
    for count in range(2, max((len(parts) for parts in split), default=2) + 1):
        tails = ["/".join(parts[-count:]) for parts in split]
        if len(set(tails)) == len(names):
            return dict(zip(names, tails, strict=True))
    return {name: name for name in names}
