"""Output folders of scripts: what a run leaves there, when it may write, what it replaces, and how it is resumed."""

import contextlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from carl_hf.export.folder import check_replaceable, read_record
from carl_hf.training.checkpoints import foreign_files, last_checkpoint, read_completion_record
from carl_hf.training.nonfinite import SKIPPED_STEPS
from carl_hf.training_args import CarlTrainingArguments
from carl_hf.utils.atomic_files import check_writable

_EXPORTS = ("encoder", "va", "emotion", "hub")
TRAINING = ("results.json", SKIPPED_STEPS, *_EXPORTS, "figures", "checkpoint-*")
"""What a training script leaves; only checkpoint-N with a number N is a checkpoint."""
EVALUATION = ("results.json", "report.md", "figures")
"""What examples/evaluate.py leaves."""
DRAWN = "figures/"
"""What results.json names while figures are drawn: all in this folder, as far as they are figures."""
LOCK = ".lock"
_locks: dict[Path, FileLock] = {}


def results_of_a_run(folder: str | Path, kinds: Sequence[str] = TRAINING) -> list[Path]:
    """The checkpoints, exports, plots and results in a folder, whoever made them."""
    found = [path for kind in kinds for path in sorted(Path(folder).glob(kind))]
    return [p for p in found if not p.name.startswith("checkpoint-") or re.fullmatch(r"checkpoint-\d+", p.name)]


def remove_results(folder: str | Path, kinds: Sequence[str] = TRAINING) -> None:
    """Removes what [`results_of_a_run`] lists and a record shows to be a run's, and nothing else."""
    recorded = recorded_files(folder)
    own = [path for path in results_of_a_run(folder, kinds) if not _foreign(path, recorded)]
    for path in own:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_stale(folder: str | Path) -> None:
    """Removes the heads, figures and results of a run that has gone on training: its new encoder is not theirs."""
    figures = Path(folder) / "figures"
    for file in recorded_files(folder):
        if file.startswith("figures/"):
            (Path(folder) / file).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not there, or holds somebody's
        figures.rmdir()
    remove_results(folder, ("va", "emotion", "results.json"))


def recorded_files(folder: str | Path) -> set[str]:
    """The files that results.json and the exports of a folder name as theirs, relative to it; results.json itself is
    one if a run has written it."""
    folder, recorded = Path(folder), set()
    with contextlib.suppress(OSError, ValueError, TypeError):
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        if isinstance(results, dict) and isinstance(results.get("run"), dict):
            recorded |= {"results.json", *map(str, results.get("files") or ())}
    if DRAWN in recorded:
        drawn = (file for file in figures_in(folder) if file.endswith((".png", ".svg")))
        recorded = (recorded - {DRAWN}) | {*drawn}
    for kind in _EXPORTS:
        with contextlib.suppress(OSError, ValueError):
            figures = (read_record(folder / kind) or {}).get("figures") or ()
            recorded |= {str(Path(figure).with_suffix(end)) for figure in figures for end in (".png", ".svg")}
    return recorded


def figures_in(folder: str | Path) -> list[str]:
    """The files below figures/, for the record of a run that has just drawn them."""
    return [f"figures/{path.name}" for path in sorted((Path(folder) / "figures").glob("*"))]


def _foreign(path: Path, recorded: set[str]) -> list[str]:
    """What of a result, or in it, no record shows to be a run's."""
    if path.is_symlink():
        return [path.name]
    if path.name in _EXPORTS:
        try:
            check_replaceable(path)
        except ValueError:
            return [path.name]
        return []
    if path.name.startswith("checkpoint-"):
        return [f"{path.name}/{file}".rstrip("/") for file in foreign_files(path)]
    if path.name == SKIPPED_STEPS:
        return []
    inside = [f"{path.name}/{p.relative_to(path).as_posix()}" for p in path.rglob("*") if not p.is_dir()]
    return sorted({*(inside if path.is_dir() else [path.name])} - recorded)


def check_output_dir(folder: str | Path, *, resume: bool, overwrite: bool, kinds: Sequence[str] = TRAINING) -> None:
    """Refuses a folder that cannot be written, or holds another run, unless that is to be resumed or overwritten; and
    whatever else would have to be replaced in it.

    Raises:
        ValueError: if the folder holds a run or somebody's files, or is a file or below one, or may not be written.
    """
    folder = Path(folder)
    check_writable(folder)
    old = results_of_a_run(folder, kinds)
    if old and not resume and not overwrite:
        raise ValueError(
            f"--output_dir {folder} holds another run ({', '.join(path.name for path in old)}). Name another folder, "
            f"{'continue it with --resume_from_checkpoint last, ' if kinds == TRAINING else ''}or replace it with "
            "--overwrite_output_dir true."
        )
    replaced = [path for path in old if not resume or path.name in _EXPORTS]
    recorded = recorded_files(folder)
    if foreign := [file for path in replaced for file in _foreign(path, recorded)]:
        raise ValueError(
            f"--output_dir {folder} holds what no record shows to be a run's: {', '.join(foreign[:5])}"
            f"{' ...' if len(foreign) > 5 else ''}. It is not replaced: move it away, or name another folder."
        )


def locked(folder: Path, flag: str) -> FileLock:
    """The lock of a folder, taken; a ValueError if another process has it. `flag` names the folder in the message."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
        if not (folder / LOCK).exists():  # the run before was just removing it
            lock.release()
            raise Timeout(lock.lock_file)
    except Timeout:
        raise ValueError(
            f"{flag} {folder}: another run is writing to it. Wait for its end, or name another."
        ) from None
    return lock


@contextlib.contextmanager
def claimed(folder: Path, flag: str) -> Iterator[None]:
    """Makes a folder, and within it keeps other runs from writing there; it is removed if it is empty then.

    Raises:
        ValueError: if it is a file, or as [`locked`]. OSError: if it cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{flag} {folder} is a file; name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = locked(folder, flag)
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()
        lock.release()


def _goes_on(folder: str | Path, resume: str | None) -> bool:
    """Whether a training that begins with the checkpoint `resume` is the one in the folder."""
    if resume == "auto":  # one with nothing but incomplete checkpoints has just begun
        return all(path.name.startswith("checkpoint-") for path in results_of_a_run(folder))
    return resume is not None and Path(resume).parent.resolve() == Path(folder).resolve()


def claim_output(folder: str | Path, *, resume: str | None, overwrite: bool, kinds: Sequence[str] = TRAINING) -> None:
    """Makes the folder and locks it until this process ends, so that no two runs write to it; then, unless the run in
    it is resumed, removes its results.

    Args:
        resume: the checkpoint with which training begins, or "auto" where there is none yet.

    Raises:
        ValueError: if another process has locked it, or as [`check_output_dir`]. OSError: if it cannot be made.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if folder not in _locks:
        _locks[folder] = locked(folder, "--output_dir")
    own = _goes_on(folder, resume)
    check_output_dir(folder, resume=own, overwrite=overwrite, kinds=kinds)  # once more: nobody else writes now
    if not own and kinds == TRAINING:
        remove_results(folder)


def prepare_output(args: CarlTrainingArguments, *, overwrite: bool, encoder: str) -> str | None:
    """Checks where a run may write, and finds the checkpoint that it resumes from, if any: `last` is the newest
    complete one, `auto` the same or, if there is none, a new run.

    Raises:
        ValueError: if the folder holds another run, or the encoder, which a new run would replace, or there is no such
            checkpoint, or it is incomplete.
    """
    asked, folder = args.resume_from_checkpoint, args.output_dir
    resume = asked
    if asked in ("last", "auto"):
        try:
            resume = last_checkpoint(folder)
        except ValueError:
            if asked == "last":
                raise
            resume = None
    elif asked and not Path(asked).is_dir():
        raise ValueError(f"--resume_from_checkpoint {asked} is no checkpoint folder; 'last' finds the newest one.")
    elif asked:
        read_completion_record(asked)
    own = _goes_on(folder, resume or asked)
    if not own and Path(folder).resolve() in Path(encoder).resolve().parents:
        raise ValueError(f"--output_dir {folder} holds --encoder {encoder}: name another output folder.")
    if args.process_index == 0:
        check_output_dir(folder, resume=own, overwrite=overwrite)
    if asked and not resume:
        logging.info("There is no checkpoint to go on from: training starts anew.")
    return resume


@contextlib.contextmanager
def errors_in_one_line(to_continue: str = "") -> Iterator[None]:
    """Ends the program with one line where a user can remedy the error: a wrong argument, an unusable text, a package
    that is not installed, a full or read-only disk, a diverged loss; or where the user stops it.

    Args:
        to_continue: how a stopped program is continued, if it can be.
    """
    try:
        yield
    except KeyboardInterrupt:
        kept = f" What is finished is kept; {to_continue}." if to_continue else ""
        print(f"Stopped.{kept}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, ImportError, OSError, FloatingPointError, SafetensorError) as error:
        message = str(error).strip()
        if message.startswith("Caught "):  # in a worker: torch adds its traceback
            message = message.splitlines()[-1].split(": ", 1)[-1]
        sys.exit(f"error: {message}")
