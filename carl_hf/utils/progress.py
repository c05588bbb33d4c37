"""What long jobs show: bars with the time left in a terminal, plain lines in a log file."""

import io
import logging
import sys
import time
from typing import Any

import datasets
import transformers
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

logger = logging.getLogger(__name__)


def bars_only_in_a_terminal() -> None:
    """Switches the bars of transformers, datasets and the Hub client off where stderr is no terminal."""
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()


def format_metrics(logs: dict[str, Any]) -> str:
    """The values of a log entry, `name value` each, but for the Trainer's rates and counts of operations."""
    shown = {k: v for k, v in logs.items() if k not in ("epoch", "total_flos") and not k.endswith("_per_second")}
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())


class ProgressLines(TrainerCallback):
    """A line for every log entry: the step, the time left, the values. Before the first of them, a line after the
    first step and one after the third, with the time left."""

    def __init__(self):
        self._start: tuple[float, int] | None = None  # of the present training: when, and from which step on
        self._logged = False

    def on_train_begin(self, args, state, control, **kwargs):
        self._start, self._logged = (time.monotonic(), state.global_step), False

    def on_train_end(self, args, state, control, **kwargs):
        self._start = None

    def on_step_end(self, args, state, control, **kwargs):
        done = state.global_step - self._start[1]
        if done in (1, 3) and state.is_world_process_zero and not self._logged and not control.should_log:
            logger.info("%s", self._step(state, with_time=done > 1))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._logged = True
        if state.is_world_process_zero:
            logger.info("%s: %s", self._step(state), format_metrics(logs or {}))

    def _step(self, state, *, with_time: bool = True) -> str:
        step = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
        if self._start is None or not with_time or not self._start[1] < state.global_step < state.max_steps:
            return step
        seconds, first = time.monotonic() - self._start[0], self._start[1]
        left = seconds / (state.global_step - first) * (state.max_steps - state.global_step)
        return f"{step}, {tqdm.format_interval(left)} left"


class ProgressBar(ProgressCallback):
    """The Trainer's bar, with the values as [`ProgressLines`] writes them."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(f"step {state.global_step}: {format_metrics(logs or {})}", file=sys.stderr)


def show_progress(trainer: Trainer) -> None:
    """Lines, or a bar unless `disable_tqdm`, in place of what the Trainer prints."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ProgressLines() if trainer.args.disable_tqdm else ProgressBar())


class RowProgress(tqdm):
    """Rows done, their rate and the time left: a bar in a terminal, elsewhere the lines that are asked for.

    Args:
        total: rows to do. shown: whether this process shows anything.
    """

    def __init__(self, total: int, *, shown: bool = True):
        in_terminal = sys.stderr.isatty()
        self._logs = shown and not in_terminal
        output = sys.stderr if shown and in_terminal else io.StringIO()
        super().__init__(total=total, unit=" rows", unit_scale=True, smoothing=0, file=output)

    def line(self, what: str) -> None:
        """Logs how far it is, unless there is a bar."""
        if self._logs:
            form = "{n:,}/{total:,} rows, {rate_fmt}, {remaining} left"
            logger.info("%s: %s", what, self.format_meter(**{**self.format_dict, "bar_format": form}))
