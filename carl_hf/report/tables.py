"""Metrics and tables as text: numbers as the paper prints them, aligned tables, names that fit into them."""

import re
from collections.abc import Sequence

MISSING = "–"
_ONE_DECIMAL = (
    "accuracy", "majority", "accuracy_mean", "accuracy_std", "degrees", "angular_error", "chance_error", "seconds",
)  # fmt: skip
_FOUR_DECIMALS = ("alignment", "uniformity")


def fraction(value: float, digits: int = 3) -> str:
    """`.721`, `-.018`, `1.034`: without the zero before the point, and without the sign of -.000."""
    text = re.sub(r"^(-?)0\.", r"\1.", f"{value:.{digits}f}")
    return text if re.search("[1-9]", text) else text.removeprefix("-")


def format_metric(key: str, value: float, *, signed: bool = False) -> str:
    """A metric of results.json by its name there: accuracies and degrees with one decimal, others as fractions."""
    if key in _ONE_DECIMAL:
        text = f"{value:.1f}".replace("-0.0", "0.0")
    else:
        text = fraction(value, 4 if key in _FOUR_DECIMALS else 3)
    return f"+{text}" if signed and value > 0 else text


def escape(text: object) -> str:
    """Text that Markdown shows as it is, in one table cell."""
    return re.sub(r"([\\|_*`\[\]<>~&])", r"\\\1", " ".join(str(text).split()))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """A Markdown table, its columns aligned in the source too: the first `text_columns` left, the others right."""
    rule = [":--" if c < text_columns else "--:" for c in range(len(header))]
    head, dashes, *body = _aligned([header, rule, *rows], text_columns)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, [cell.replace(" ", "-") for cell in dashes], *body])


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a terminal: the first column left, the others right, two blanks between."""
    return "\n".join("  ".join(line) for line in _aligned([header, *rows], 1))


def _aligned(lines: Sequence[Sequence[str]], text_columns: int) -> list[tuple[str, ...]]:
    columns = []
    for c, column in enumerate(zip(*lines, strict=True)):
        width = max(map(len, column))
        columns.append([cell.ljust(width) if c < text_columns else cell.rjust(width) for cell in column])
    return list(zip(*columns, strict=True))


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name's last two path components, or as many more as tell all names apart."""
    split = [name.rstrip("/").split("/") for name in names]
    for count in range(2, max((len(parts) for parts in split), default=2) + 1):
        tails = ["/".join(parts[-count:]) for parts in split]
        if len(set(tails)) == len(names):
            return dict(zip(names, tails, strict=True))
    return {name: name for name in names}
