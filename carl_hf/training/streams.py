"""Training texts that are read as they are needed: endless, dealt out to processes, and resumed by their position."""

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

    Row n of the whole stream belongs to the joint batch n // (batch x processes), and in it to the process that its
    place falls to. So the joint batches are the same for any number of processes, no two processes train on the same
    row, and where a training stands is told by the number of its steps alone. Each process reads the rows of all and
    collates its own.

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
                    "The stream of training texts holds no rows: its files are empty, or all their rows stand in "
                    "another split than train or are held out."
                )
            whole = max(0, self.start - number) // length  # passes that need not be read to be passed over
            number += whole * length
            next(itertools.islice(passes, whole, whole), None)


class StreamEpochCallback(TrainerCallback):
    """Tells the epoch of a training on a stream, which is one: the share of its steps that were made."""

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step / state.max_steps
