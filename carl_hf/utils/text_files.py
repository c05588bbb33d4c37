"""Text files in UTF-8, or in UTF-16 where a byte order mark says so, as Excel's "Unicode text" and PowerShell do."""

import codecs
from pathlib import Path
from typing import TextIO

_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def byte_order_mark(path: Path) -> tuple[bytes, str]:
    """The mark with which a file begins, if any, and the encoding of what follows."""
    with path.open("rb") as file:
        start = file.read(3)
    return next(((mark, name) for mark, name in _MARKS.items() if start.startswith(mark)), (b"", "utf-8"))


def open_text(path: Path, *, newline: str) -> TextIO:
    """A file, to be read without its mark; bytes that are not UTF-8 become lone surrogates."""
    encoding = "utf-8-sig" if byte_order_mark(path)[1] == "utf-8" else "utf-16"
    return path.open(encoding=encoding, errors="surrogateescape", newline=newline)
