"""Checks this package on a GPU, and measures it, with random weights and without a download.

    python benchmarks/gpu_check.py --output gpu.json

Needs what the package needs, a checkout, and about 8 minutes: what would begin later is left out. Exits with 1 if a
check fails. Without a GPU it runs on tiny sizes, which shows that it runs and measures nothing of use. docs/gpu.md
says what each part is.
"""

import functools
import gc
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
import transformers
from gpu_parts.correctness import check_correctness
from gpu_parts.inputs import SIZES, Report, write_inputs
from gpu_parts.speed import measure_batches, measure_compiled, measure_steps, profile_step
from gpu_parts.training import check_training, resumed_training
from training_steps import BenchArguments, in_own_process

from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import environment_record
from carl_hf.utils.atomic_files import write_json

PARTS = ("correctness", "resuming", "training", "speed", "compile")


@dataclass
class GpuCheckArguments:
    parts: list[str] = field(default_factory=lambda: [*PARTS], metadata={"help": f"Some of {', '.join(PARTS)}."})
    minutes: float = field(default=8.0, metadata={"help": "After which no further measurement begins."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the report."})

    def __post_init__(self):
        unknown = [name for name in self.parts if name not in PARTS]
        if unknown:
            raise ValueError(f"There is no part {unknown[0]!r}: choose from {', '.join(PARTS)}.")


def check(args: GpuCheckArguments) -> Report:
    """Runs the parts, each with a line for what it finds."""
    report, start, cuda = Report(), time.perf_counter(), torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        folders, texts = write_inputs(Path(folder), list(SIZES), tiny=not cuda)
        batch, steps, rounds = (128, 50, 10) if cuda else (8, 4, 1)
        given = {
            name: BenchArguments(corpus=texts, scale=[-1, 1], encoder=path, bf16=cuda, batch_size=batch)
            for name, path in folders.items()
        }
        base = given["roberta-base"], "roberta-base"
        chunks_of_batches = {128: 1, 1024: 4, 8192: 32} if cuda else {16: 2}
        backend = "inductor" if cuda else "eager"
        works: list[tuple[str, Callable[[], None]]] = [
            ("correctness", lambda: check_correctness(report, torch.device("cuda" if cuda else "cpu"))),
            ("resuming", lambda: _check_resuming(report)),
            ("training", lambda: check_training(report, folders, texts, steps=steps, batch=batch)),
            *(("speed", functools.partial(measure_steps, report, g, n, rounds=rounds)) for n, g in given.items()),
            ("speed", lambda: profile_step(report, *base)),
            ("speed", lambda: measure_batches(report, *base, chunks_of_batches)),
            ("compile", lambda: measure_compiled(report, *base, backend=backend)),
        ]
        for part, work in works:
            if part not in args.parts:
                continue
            if time.perf_counter() - start > 60 * args.minutes:
                report.figure(f"{part}: left out after minutes", args.minutes)
                continue
            print(f"\n{part}", flush=True)
            try:
                work()
            except Exception as error:  # the other parts are worth knowing too
                traceback.print_exc()
                report.check(f"{part}: ended early", 1, 0, f"{type(error).__name__}: {error}"[:300])
            gc.collect()  # models and their trainers refer to each other
    report.figure("seconds", round(time.perf_counter() - start, 1))
    return report


def _check_resuming(report: Report) -> None:
    if torch.cuda.is_available():
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when a process first uses the GPU
        found = in_own_process(resumed_training)
    else:
        found = resumed_training()
    for name, value in found.items():
        report.check(name, value, 1e-6)


def main(argv: Sequence[str] | None = None) -> None:
    try:
        args = parse_script_arguments(GpuCheckArguments, argv)
    except ValueError as error:
        sys.exit(f"error: {error}")
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    report, cuda = check(args), torch.cuda.is_available()
    failed = [found["name"] for found in report.checks if not found["passed"]]
    device = torch.cuda.get_device_name() if cuda else "no GPU: tiny sizes, on the CPU"
    print(f"\n{device}: {len(report.checks)} checks, {len(failed)} failed" + "".join(f"\n- {name}" for name in failed))
    if args.output is not None:
        write_json(Path(args.output), {"device": device, **vars(report), **environment_record()})
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
