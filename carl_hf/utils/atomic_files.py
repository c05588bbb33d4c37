"""Files that are there whole, or not at all, whenever the process or the machine stops."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], Any], *, partial_name: str | None = None) -> None:
    """Writes a file beside its place, brings it to the disk, and moves it there; what stood there stays until then.

    Args:
        write: called with the open file. partial_name: of the file that is written first, by default the path's name
            and ".partial"; processes that write the same file need one each.

    Raises:
        OSError: if it cannot be written; what was begun is removed.
    """
    partial = path.with_name(partial_name or f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def bring_to_disk(path: Path) -> None:
    """Returns when what the system holds of a file, or of a folder's entries, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
