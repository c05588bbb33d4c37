"""Corpora that do not fit into memory: their texts with valence and arousal, read and checked piece by piece."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import pandas as pd

from carl_hf.data.bad_rows import BadRow, Skipped, refuse, report_skipped
from carl_hf.data.loading import (
    NO_GOOD_ROW,
    SKIP_REMEDY,
    VA,
    check_scale,
    normalized,
    sorted_out,
    with_our_names,
)
from carl_hf.data.splits import split_names, text_key
from carl_hf.data.table_pieces import PIECEWISE, open_tables

logger = logging.getLogger(__name__)

_NEEDED = ("text", *VA)
_OPTIONAL = ("split", "label")


def stream_va_dataset(
    sources: Sequence[str],
    *,
    scale: tuple[float, float] | None,
    columns: Mapping[str, str] | None = None,
    held_out: Iterable[str] = (),
    skip_bad_rows: bool = False,
    shuffle_buffer: int = 10_000,
    seed: int = 42,
    skipped: dict[str, Skipped] | None = None,
) -> datasets.IterableDataset:
    """Streams files of texts with valence and arousal, normalised to [-1, 1] by Eq 12 from their scale.

    Each pass takes the files in another order and draws from a buffer of so many texts: files in an order of their
    own (by time, by label) are better cut into many.

    Of a file with a column `split` the training rows alone are taken. A text that stands in another part of the
    same file too is not left out, as [`load_va_dataset`] does: that is known only when all has been read. Name such
    texts in `held_out`.

    Args:
        sources: files (.csv, .tsv, .jsonl, .parquet), folders of them, glob patterns.
        scale: (least, greatest) value of the labels' scale. columns: names of `text`, `valence`, `arousal`, `split`
            and `label` in the files, where they differ.
        held_out: texts that are left out, up to case and white space.
        skip_bad_rows: leave out the rows that [`find_bad_rows`] names, in place of stopping at the first. The log
            tells of the first of each kind, and of all behind each file. In Parquet files, bytes that are not UTF-8
            are bad in the columns named above alone, as others are not read.
        shuffle_buffer: texts in the buffer; 1 keeps their order. seed: of both.
        skipped: is filled with what is left out of each file, as far as it has been read: of the pass that read most
            of it. It stays empty where another process reads (a worker of a data loader).

    Raises:
        ValueError: for no such file, a missing column or scale; and when it is iterated, for a bad row, or a file
            whose rows are all bad; it names the file and the row.
    """
    if scale is None:
        raise ValueError(f"{', '.join(sources)}: state the scale of the labels, such as scale=(1, 9) (--scale 1 9).")
    check_scale(scale)
    if shuffle_buffer < 1:
        raise ValueError(f"shuffle_buffer must be at least 1, got {shuffle_buffer}.")
    columns = dict(columns or {})
    for ours in columns:
        if ours not in (*_NEEDED, *_OPTIONAL):
            raise ValueError(f"columns: {ours!r} is none of {', '.join((*_NEEDED, *_OPTIONAL))}.")
    taken = set(columns.values())
    names = columns | {ours: ours for ours in (*_NEEDED, *_OPTIONAL) if ours not in columns and ours not in taken}
    for ours in _NEEDED:
        if ours not in names:
            raise ValueError(f"columns: {ours!r} is named for another column; name one for {ours!r} too.")
    needed = [*(names[ours] for ours in _NEEDED), *columns.values()]
    files = [table.name for source in sources for table in open_tables([source], needed)]
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"{file}: only {', '.join(PIECEWISE)} files are streamed.")
    stream = datasets.IterableDataset.from_generator(
        _rows,
        gen_kwargs={
            "files": files, "names": names, "scale": tuple(scale), "held_out": frozenset(map(text_key, held_out)),
            "skip_bad_rows": skip_bad_rows, "log": _Log({} if skipped is None else skipped),
        },
    )  # fmt: skip
    return stream.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer > 1 else stream


class _Log:
    """What has been left out of a stream, in all passes."""

    def __init__(self, files: dict[str, Skipped]):
        self.files, self.kinds = files, set()

    def add(self, file: str, found: Skipped, row: BadRow) -> None:
        """Counts a row in `found`, what was left out of the file in this pass."""
        found.add(row)
        if found.rows > self.files.get(file, Skipped()).rows:
            self.files[file] = found
        if row.reason not in self.kinds:
            self.kinds.add(row.reason)
            logger.warning(
                "%s, row %d: %s; left out, as others will be (%s).", file, row.number, row.detail, row.reason
            )


def _rows(
    files: list[str], names: dict[str, str], scale: tuple[float, float], held_out: frozenset[str],
    skip_bad_rows: bool, log: _Log,
) -> Iterator[dict[str, object]]:  # fmt: skip
    for file in files:
        skipped, first, good = Skipped(), None, 0
        try:
            for frame, bad in _checked_pieces(file, names, scale):
                if not skip_bad_rows:
                    refuse(file, bad, SKIP_REMEDY)
                for row in bad:
                    log.add(file, skipped, row)
                first = first or next(iter(bad), None)
                good += len(frame)
                if len(frame) == 0:
                    continue
                if "split" in frame:
                    frame = frame[split_names(frame) == "train"]
                for text, valence, arousal in zip(frame["text"], *(frame[name] for name in VA), strict=True):
                    if text_key(text) not in held_out:
                        yield {"text": text, "valence": float(valence), "arousal": float(arousal)}
            if first is not None and not good:
                others = f" ({skipped.rows - 1} more bad rows follow)" if skipped.rows > 1 else ""
                raise ValueError(f"{file}, row {first.number}: {first.detail}{others}; {NO_GOOD_ROW}.")
        finally:  # at the end of the file, and where a run ends within it
            report_skipped(file, skipped)


def _checked_pieces(
    file: str, names: dict[str, str], scale: tuple[float, float]
) -> Iterator[tuple[pd.DataFrame, list[BadRow]]]:
    """The good rows of a file, with our names of the columns and their numbers normalised, and the bad ones, in
    order."""
    optional = [names[ours] for ours in _OPTIONAL if ours in names]
    (table,) = open_tables([file], [names[ours] for ours in _NEEDED], optional)
    has_split = None
    for piece in table.pieces(lambda start, stop: True):
        frame, bad = piece.frame, piece.bad
        if len(frame):
            there = {ours: theirs for ours, theirs in names.items() if theirs in frame}
            first = frame.index[0]
            frame = with_our_names(frame, there, file, ()).copy()
            if has_split is None:
                has_split = "split" in frame
            elif "split" in frame and not has_split:
                raise ValueError(
                    f"{file}: one of the rows {first} to {piece.first + piece.length - 1} has a {names['split']!r}, "
                    "those before have none; give all rows one, or none."
                )
            for ours in (*_NEEDED, *(["split"] if has_split else [])):
                if ours not in frame:  # no row of JSON lines here has such a cell
                    frame[ours] = None
            frame, faults = sorted_out(frame, scale)
            bad = sorted([*bad, *faults], key=lambda row: row.number)
            frame = normalized(frame.copy(), VA, scale)
        yield frame, bad
