"""Atomic file writes: a file exists complete, or not at all, whenever the process or the machine stops."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO


def check_writable(folder: str | Path, flag: str = "--output_dir") -> None:
    """Raises a ValueError for a folder that cannot be made or written to: known before anything is computed."""
    path = Path(folder).absolute()
    there = next(path for path in (path, *path.parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{flag} {folder}: {there} is a file; name a folder.")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{flag} {folder}: {there} may not be written to; name another folder.")


def check_new_file(path: str, flag: str = "--output") -> None:
    """Raises a ValueError if there is a file or folder of this name, or none can be written."""
    if not path.strip():
        raise ValueError(f"{flag} is empty: name a file.")
    check_writable(Path(path).parent, flag)
    if Path(path).is_file() or Path(path).is_dir():
        raise ValueError(f"{flag} {path} exists: name another file, or remove it.")


@contextlib.contextmanager
def named_in_errors(path: Path) -> Iterator[Path]:
    """Adds the path to the OSError of a full disk, which names no file."""
    try:
        yield path
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def write_errors(what: str, remedy: str) -> Iterator[None]:
    """Makes the errors of a full disk an OSError that says what could not be written: those of the libraries that
    write models name no file, and some are of no class of their own."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        theirs = re.search(r"\(os error \d+\)|PytorchStreamWriter|unexpected pos", str(error))
        if not isinstance(error, OSError) and theirs is None:
            raise
        raise OSError(f"{what} could not be written ({error}). {remedy}") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], *, partial_name: str | None = None) -> None:
    """Writes a temporary file beside `path`, syncs it to disk and renames it; until then the old file stays.

    Args:
        write: called with the open file. partial_name: of the temporary file, by default the path's name and
            ".partial"; processes that write the same file need one each.

    Raises:
        OSError: if it cannot be written, with the path. The temporary file is removed, whatever stops the writing.
    """
    partial = path.with_name(partial_name or f"{path.name}.partial")
    try:
        with named_in_errors(path), partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_json(path: Path, content: Any, *, partial_name: str | None = None) -> None:
    """Writes JSON atomically, making the folder if needed.

    Raises:
        ValueError: for NaN and infinity, which JSON has not. OSError: as [`write_atomically`].
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()), partial_name=partial_name)


def apply_umask(folder: Path) -> None:
    """Makes the files readable as any file that this user writes: safetensors leaves them to the owner alone."""
    (probe := folder / "umask").touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def fsync_path(path: Path) -> None:
    """Returns when a file, or a folder's entries, have reached the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
