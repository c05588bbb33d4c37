"""Corpora that do not fit into memory: their texts with valence and arousal, read and checked piece by piece."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import datasets

from carl_hf.bad_rows import BadRow, refuse, report_skipped
from carl_hf.data import SKIP_REMEDY, VA, check_scale, normalized, sorted_out
from carl_hf.mixtures import text_key
from carl_hf.table_pieces import SUFFIXES, open_tables

logger = logging.getLogger(__name__)


def stream_va_dataset(
    sources: Sequence[str],
    *,
    scale: tuple[float, float] | None,
    columns: Mapping[str, str] | None = None,
    held_out: Iterable[str] = (),
    skip_bad_rows: bool = False,
    shuffle_buffer: int = 10_000,
    seed: int = 42,
) -> datasets.IterableDataset:
    """Streams files of texts with valence and arousal, normalised to [-1, 1] by Eq 12 from their scale.

    Each pass takes the files in another order and draws from a buffer of so many texts: files in an order of their
    own (by time, by label) are better cut into many.

    Args:
        sources: files (.csv, .tsv, .jsonl, .parquet), folders of them, glob patterns.
        scale: (least, greatest) value of the labels' scale. columns: names of `text`, `valence` and `arousal` in the
            files, where they differ.
        held_out: texts that are left out, up to case and white space.
        skip_bad_rows: leave out rows with cells that cannot be trained on, and log their number after each pass, in
            place of stopping at the first. A row that cannot be read at all stops the stream in any case.
        shuffle_buffer: texts in the buffer; 1 keeps their order. seed: of both.

    Raises:
        ValueError: for no such file, a missing column or scale; and when it is iterated, for a bad row, or if there is
            no good one; it names the file and the row.
    """
    if scale is None:
        raise ValueError(f"{', '.join(sources)}: state the scale of the labels, such as scale=(1, 9) (--scale 1 9).")
    check_scale(scale)
    if shuffle_buffer < 1:
        raise ValueError(f"shuffle_buffer must be at least 1, got {shuffle_buffer}.")
    theirs = [(columns or {}).get(ours, ours) for ours in ("text", *VA)]
    files = [table.name for source in sources for table in open_tables([source], theirs)]
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"{file}: only {', '.join(SUFFIXES)} files are streamed.")
    stream = datasets.IterableDataset.from_generator(
        _rows,
        gen_kwargs={
            "files": files, "columns": tuple(theirs), "scale": tuple(scale),
            "held_out": frozenset(map(text_key, held_out)), "skip_bad_rows": skip_bad_rows,
        },
    )  # fmt: skip
    return stream.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer > 1 else stream


def _rows(
    files: list[str], columns: tuple[str, ...], scale: tuple[float, float], held_out: frozenset[str],
    skip_bad_rows: bool,
) -> Iterator[dict[str, object]]:  # fmt: skip
    for file in files:
        (table,) = open_tables([file], columns)
        skipped: list[BadRow] = []
        for first, piece in table.pieces(lambda start, stop: True):
            frame = piece.to_pandas().set_axis(["text", *VA], axis="columns")
            frame.index += first + 1
            frame, bad = sorted_out(frame, scale)
            if not skip_bad_rows:
                refuse(file, bad, SKIP_REMEDY)
            skipped += bad
            frame = normalized(frame, VA, scale)
            for text, valence, arousal in zip(frame["text"], *(frame[name] for name in VA), strict=True):
                if text_key(text) not in held_out:
                    yield {"text": text, "valence": float(valence), "arousal": float(arousal)}
        report_skipped(file, skipped)
