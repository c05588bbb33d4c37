"""Streamed training texts: endless, shared among processes, resumed by their position."""

import itertools
from collections.abc import Iterator
from typing import Any

import datasets
import torch
from transformers import TrainerCallback


def is_stream(dataset: Any) -> bool:
    return isinstance(dataset, (datasets.IterableDataset, torch.utils.data.IterableDataset))


class EndlessRows(torch.utils.data.IterableDataset):
    """The rows of one process, pass after pass, from a position on.

    Row n of the stream belongs to the global batch n // (batch * processes), and within it to a process by its
    position. So the global batches are the same for any number of processes, no two processes train on the same row,
    and the number of steps alone is the position of a training. Each process reads all rows and collates its own.

    Args:
        rows: an iterable data set; one with `set_epoch` (such as a shuffled `datasets.IterableDataset`) is told the
            number of the pass.
        batch (`int`): rows of a batch of one process. process, processes (`int`): this one, and how many there are.
        start (`int`): rows of the stream, of all processes, that have been trained on.

    Raises (when iterated):
        ValueError: if a pass has no rows.
    """

    def __init__(self, rows: Any, *, batch: int, process: int = 0, processes: int = 1, start: int = 0):
        self.rows, self.batch, self.process, self.processes, self.start = rows, batch, process, processes, start

    def __iter__(self) -> Iterator[Any]:
        number, passes = 0, itertools.count()
        for pass_number in passes:
            if hasattr(self.rows, "set_epoch"):
                self.rows.set_epoch(pass_number)
            first = number
            for row in self.rows:
                if number >= self.start and number // self.batch % self.processes == self.process:
                    yield row
                number += 1
            length = number - first
            if length == 0:
                raise ValueError(
                    "The stream of training texts holds no rows: its files are empty, or all their rows are in "
                    "another split than train or are held out."
                )
            skipped = max(0, self.start - number) // length  # passes before the start, which need not be read
            number += skipped * length
            next(itertools.islice(passes, skipped, skipped), None)


class StreamEpochCallback(TrainerCallback):
    """Sets the epoch of a training on a stream, which counts as one: the share of its steps that were made."""

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step / state.max_steps
