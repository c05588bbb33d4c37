"""What long jobs print: lines in a file, a bar in a terminal."""

import dataclasses
import logging
import re

import pytest
from test_trainer import make_trainer
from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState

from carl_hf.commands.arguments import parse_arguments
from carl_hf.utils.progress import ProgressBar, ProgressLines, bars_only_in_a_terminal, show_progress


@dataclasses.dataclass
class Nothing:
    """A script without arguments of its own."""


def shown(tmp_path, tokenizer, logging_steps=2, **settings):
    trainer = make_trainer(tmp_path, tokenizer, max_steps=4, logging_steps=logging_steps, **settings)
    show_progress(trainer)
    return trainer


def lines_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "carl_hf.utils.progress"]


def test_a_log_file_gets_one_line_an_entry(tokenizer, tmp_path, caplog, capsys):
    with caplog.at_level(logging.INFO, "carl_hf.utils.progress"):
        shown(tmp_path, tokenizer, disable_tqdm=True).train()
    first, *lines = lines_of(caplog)
    assert first == "step 1/4"  # step 3 is no line of its own, because step 2 had one
    assert [line.split(":")[0].split(",")[0] for line in lines] == ["step 2/4", "step 4/4", "step 4/4"]
    assert " left: loss " in lines[0] and "  mccl " in lines[0] and "per_second" not in "".join(lines)
    assert "left" not in lines[1] and "train_runtime" in lines[2]
    assert capsys.readouterr().out == ""  # what is printed there is the result


@pytest.mark.parametrize(
    "settings, before", [({}, ["step 1/4", r"step 3/4, \d\d:\d\d left"]), ({"logging_steps": 1}, [])]
)
def test_a_long_wait_for_the_first_entry_is_bridged(settings, before, tokenizer, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "carl_hf.utils.progress"):
        shown(tmp_path, tokenizer, disable_tqdm=True, **{"logging_steps": 100} | settings).train()
    lines = [line for line in lines_of(caplog) if "loss" not in line]
    assert len(lines) == len(before) and all(map(re.fullmatch, before, lines))


def test_a_terminal_gets_a_bar(tokenizer, tmp_path, capsys):
    trainer = shown(tmp_path, tokenizer, disable_tqdm=False)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert ProgressBar in kinds and not {PrinterCallback, ProgressCallback, ProgressLines} & set(kinds)
    trainer.train()
    printed = capsys.readouterr()
    assert "4/4" in printed.err and "step 2: loss " in printed.err and printed.out == ""


def test_the_time_left_counts_from_where_the_run_was_resumed(monkeypatch, caplog):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr("carl_hf.utils.progress.time.monotonic", lambda: next(clock))
    lines, state = ProgressLines(), TrainerState(global_step=90, max_steps=100, is_world_process_zero=True)
    lines.on_train_begin(None, state, TrainerControl())
    state.global_step = 95
    with caplog.at_level(logging.INFO, "carl_hf.utils.progress"):
        logs = {"loss": 1.23456, "total_flos": 3.0, "epoch": 1.0, "note": "x", "eval_steps_per_second": 2.0}
        lines.on_log(None, state, TrainerControl(), logs)
    assert caplog.messages == ["step  95/100, 00:10 left: loss 1.235  note x"]


@pytest.mark.parametrize(
    "terminal, given, expected", [(False, None, True), (True, None, False), (False, "false", False)]
)
def test_bars_are_off_where_there_is_no_terminal(terminal, given, expected, tmp_path, monkeypatch):
    switched_off = []
    module = "carl_hf.utils.progress"
    monkeypatch.setattr(f"{module}.transformers.utils.logging.disable_progress_bar", lambda: switched_off.append(1))
    monkeypatch.setattr(f"{module}.sys.stderr.isatty", lambda: terminal, raising=False)
    flags = ["--output_dir", str(tmp_path)] + (["--disable_tqdm", given] if given else [])
    assert parse_arguments(Nothing, flags)[1].disable_tqdm is expected
    bars_only_in_a_terminal()
    assert bool(switched_off) is not terminal
