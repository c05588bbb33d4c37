"""Shards written by one or more processes of this machine."""

import contextlib
import errno
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tqdm import tqdm

from carl_hf.commands.environment import environment_record, refuse_launchers, start_logging, use_all_cores
from carl_hf.commands.outputs import claimed
from carl_hf.commands.shards import Shards, Survey, survey
from carl_hf.data.streaming import PiecewiseTable, files_of, open_tables
from carl_hf.utils.fields import check_positive, setting
from carl_hf.utils.progress import RowProgress

_WINDOW = 2048  # rows that the model sees together; within them, texts of similar length share a batch

Answer = Callable[[pa.Table], pa.Table]
"""Rows of the columns that a job reads -> as many rows of what is stored."""


@dataclass
class ShardArguments:
    """What the scripts that write shards have in common."""

    texts: list[str] = setting([], "Files (.csv, .tsv, .jsonl, .parquet), folders, patterns, or Hub data sets.")
    model: str = setting("", "What answers.")
    text_column: str = setting("text", "Name of the column with the texts.")
    batch_size: int = setting(64, "Texts of 32 tokens in a batch; of shorter ones there are more.")
    processes: int | None = setting(None, "Processes of this machine (default: one for each CUDA device, or one).")
    num_threads: int | None = setting(None, "CPU threads of all processes together (default: all cores).")

    def __post_init__(self):
        if not self.texts:
            raise ValueError("There are no texts: name a file, a folder, a pattern or a Hub data set.")
        check_positive(self, "shard_rows", "batch_size", "max_length", "processes", "num_threads")

    def check_apart(self, folder: Path, flag: str) -> None:
        """Raises a ValueError if the folder of the shards holds texts that are to be read."""
        if any(folder.resolve() in file.resolve().parents for source in self.texts for file in files_of(source)):
            raise ValueError(f"{flag} {folder} holds texts that are read: name another.")

    def write(
        self, shards: Shards, columns: Sequence[str], answer_on: Callable[[torch.device], Answer], *,
        overwrite: bool, empty_texts: bool = False, show_progress: bool = True,
        finish: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Writes what is missing of the shards: see [`ShardJob`], [`Shards.prepare`] and [`write_shards`]; then calls
        `finish`. Meanwhile no other run may write to their folder.

        Raises:
            ValueError: as these, if another run writes to the folder, and if rows were lost meanwhile.
        """
        with contextlib.ExitStack() as stack:
            with remedy_for_a_full_disk(shards):
                stack.enter_context(claimed(shards.folder, shards.flag))
                about = {"model": self.model, "texts": self.texts, "versions": environment_record()["versions"]}
                shards.prepare(about, overwrite=overwrite)
            job = ShardJob(shards, self.texts, columns, answer_on, empty_texts, self.processes, self.num_threads)
            write_shards(job, show_progress=show_progress)
            if shards.missing():
                raise ValueError(f"{', '.join(self.texts)}: rows were lost while they were read: start anew.")
            if finish is not None:
                finish()


@dataclass(frozen=True)
class ShardJob:
    """What to write.

    Args:
        sources: as [`carl_hf.data.streaming.open_tables`] takes them. columns: those that are read.
        answer_on: device -> [`Answer`]; each process calls it once, so that it must pickle where there are several.
        empty_texts: whether empty rows count as rows. processes, num_threads: as in [`ShardArguments`].
    """

    shards: Shards
    sources: Sequence[str]
    columns: Sequence[str]
    answer_on: Callable[[torch.device], Answer]
    empty_texts: bool = False
    processes: int | None = None
    num_threads: int | None = None


def start_writing_script() -> None:
    """Sets up logging.

    Raises:
        ValueError: under a launcher that has started several processes, which would all write the same.
    """
    start_logging()
    refuse_launchers("starts its processes itself: run it with python, and --processes N")


def checked_rows(
    tables: Sequence[PiecewiseTable], text_column: str, keep_columns: Sequence[str] = (), *,
    show_progress: bool = True, **options: Any,
) -> Survey:  # fmt: skip
    """[`survey`], with a bar where there is a terminal."""
    logging.info("Checking every row of %s ...", ", ".join(table.name for table in tables))
    with tqdm(desc="checking", unit="rows", unit_scale=True, disable=None if show_progress else True) as bar:
        return survey(tables, text_column, keep_columns, bar.update, **options)


def write_shards(job: ShardJob, *, show_progress: bool = True) -> None:
    """Writes the shards that are not finished, and logs or shows how far it is.

    Raises:
        ValueError: for what goes wrong in any process, which ends the others; the finished shards are complete.
    """
    shards, missing = job.shards, job.shards.missing()
    if len(missing) < len(shards):
        logging.info("%d of %d shards are finished.", len(shards) - len(missing), len(shards))
    processes = min(job.processes or max(1, torch.cuda.device_count()), len(missing))
    with RowProgress(sum(map(shards.rows_of, missing)), shown=show_progress) as progress:
        if processes > 1:
            _run(job, [missing[rank::processes] for rank in range(processes)], progress)
        elif missing:
            use_all_cores(job.num_threads)
            for shard, rows in _write(job, missing, 0):
                progress.update(rows)
                if shard is not None:
                    progress.line("written")


def _write(job: ShardJob, wanted: Sequence[int], rank: int) -> Iterator[tuple[int | None, int]]:
    """Writes shards; yields (None, rows) where the model has seen so many, (shard, 0) where one is written."""
    device = torch.device(f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
    answer, tables = job.answer_on(device), open_tables(job.sources, job.columns)
    for shard, rows in job.shards.read(tables, job.columns, {*wanted}, empty_texts=job.empty_texts):
        answers = []
        for start in range(0, len(rows), _WINDOW):
            answers.append(answer(rows.slice(start, _WINDOW)))
            yield None, len(answers[-1])
        with remedy_for_a_full_disk(job.shards):
            job.shards.write(shard, pa.concat_tables(answers).combine_chunks())
        yield shard, 0


def _run(job: ShardJob, parts: Sequence[Sequence[int]], progress: RowProgress) -> None:
    """Each part in a process of its own."""
    context = multiprocessing.get_context("spawn")
    seen, errors = context.Value("q", 0), context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(job, part, rank, len(parts), seen, errors), daemon=True)
        for rank, part in enumerate(parts)
    ]
    try:
        with _interrupts_blocked():
            for worker in workers:
                worker.start()
        logged, running = 0, workers
        while running:
            connection.wait([worker.sentinel for worker in running], timeout=1)
            progress.update(seen.value - progress.n)
            if progress.n // job.shards.shard_rows > logged:
                logged = progress.n // job.shards.shard_rows
                progress.line(f"{len(running)} processes")
            # first who still runs: a process that ends after that is waited for, and judged, once more
            running = [worker for worker in running if worker.exitcode is None]
            for rank, worker in enumerate(workers):
                if worker.exitcode:
                    how = f"process {rank} was ended from outside ({worker.exitcode}), for want of memory perhaps"
                    raise ValueError(errors.get() if not errors.empty() else how)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Keeps Ctrl-C, which a terminal sends to all processes, from those that start here: the parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(job: ShardJob, wanted: Sequence[int], rank: int, world: int, seen: Any, errors: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # in place of a semaphore, which a process that is ended would leak
    start_logging(main_process=False)
    os.environ["LOCAL_WORLD_SIZE"] = str(world)
    use_all_cores(None if job.num_threads is None else max(1, job.num_threads // world))
    try:
        for _, rows in _write(job, wanted, rank):
            with seen.get_lock():
                seen.value += rows
    except Exception as error:
        errors.put(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")
        raise SystemExit(1) from error


def _end_with_parent() -> None:
    """A killed parent takes its workers with it; the next run would meet them otherwise."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@contextlib.contextmanager
def remedy_for_a_full_disk(shards: Shards) -> Iterator[None]:
    """Turns errors of the file system into a ValueError that says how to continue."""
    try:
        yield
    except OSError as error:
        remedy = "make room" if error.errno == errno.ENOSPC else "see to that"
        raise ValueError(
            f"{shards.flag} {shards.folder} cannot be written ({error.strerror}). The finished shards are complete: "
            f"{remedy} and start the same command again."
        ) from error
