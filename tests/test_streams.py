"""Streams: every row once a pass, whoever reads it and wherever it begins."""

import itertools

import datasets
import pytest
import torch
from conftest import make_trainer, toy_dataset

from carl_hf import CarlDataCollator
from carl_hf.training.callbacks import HeadWarmupCallback
from carl_hf.training.streams import EndlessRows


def rows(count: int, buffer: int = 4) -> datasets.IterableDataset:
    return datasets.Dataset.from_dict({"n": list(range(count))}).to_iterable_dataset().shuffle(3, buffer_size=buffer)


def take(stream, count: int) -> list[int]:
    return [row["n"] for row in itertools.islice(stream, count)]


def test_every_pass_holds_every_row_once_in_another_order():
    found = take(EndlessRows(rows(10), batch=4), 30)
    passes = [found[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert len({tuple(p) for p in passes}) == 3


@pytest.mark.parametrize("processes", [2, 3])
def test_global_batches_are_those_of_one_process(processes):
    one = take(EndlessRows(rows(10), batch=6), 60)
    own = 6 // processes
    each = [take(EndlessRows(rows(10), batch=own, process=i, processes=processes), 10 * own) for i in range(processes)]
    found = [n for step in range(10) for part in each for n in part[step * own : (step + 1) * own]]
    assert found == one


@pytest.mark.parametrize("start", [0, 7, 10, 11, 20, 35, 99])
def test_a_position_is_reached_without_reading_whole_passes(start, monkeypatch):
    all_rows, stream, asked = take(EndlessRows(rows(10), batch=1), 130), rows(10), []
    set_epoch = stream.set_epoch
    monkeypatch.setattr(stream, "set_epoch", lambda epoch: asked.append(epoch) or set_epoch(epoch))
    assert take(EndlessRows(stream, batch=1, start=start), 30) == all_rows[start : start + 30]
    assert asked[:2] == [0, max(1, start // 10)]


def test_a_stream_without_rows_ends_with_an_error():
    empty = datasets.IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(ValueError, match="holds no rows"):
        next(iter(EndlessRows(empty, batch=2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": -1}, "max_steps has to be specified"),
        ({"dataloader_num_workers": 2}, "--dataloader_num_workers 0 or 1"),
        ({"head_warmup_epochs": 1.0}, "a stream is one epoch.*--head_warmup_epochs 0.1"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(settings, message, tmp_path, tokenizer):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, tokenizer, data=toy_dataset().to_iterable_dataset(), **settings)


class SizedStream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(list(toy_dataset()))

    def __len__(self):
        return len(toy_dataset())


def test_a_stream_that_states_a_length_is_a_stream(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="A stream has no known end: say by --max_steps"):
        make_trainer(tmp_path, tokenizer, data=SizedStream(), max_steps=-1)
    trainer = make_trainer(tmp_path, tokenizer, data=SizedStream(), max_steps=10, head_warmup_epochs=0.5)
    [warmup] = [c for c in trainer.callback_handler.callbacks if isinstance(c, HeadWarmupCallback)]
    assert warmup.steps == 5


@pytest.mark.parametrize("text", [7, float("nan"), None])
def test_a_text_of_a_stream_that_is_none_is_named(text, tokenizer):
    row = {"text": text, "valence": 0.0, "arousal": 0.5}
    with pytest.raises(ValueError, match="column 'text' holds (7|nan|None), not a text; correct or remove the row"):
        CarlDataCollator(tokenizer)([row | {"text": "joy"}, row])
