"""How the cost of a training step grows with batch size, text length, corpus size and number of processes; and what an
evaluation in training costs.

    python benchmarks/scaling.py --data_dir DIR
    python benchmarks/scaling.py --data_dir DIR --sections corpus processes

"batch" and "length" time CARL's steps on the encoder. "corpus" trains a tiny encoder on synthetic texts: one epoch of
streamed Parquet files, and 1,000 steps on a data set in memory, so that the cost of reading rows shows. "processes"
compares two gloo processes of one core each with one process of one core (weak scaling: as many texts for each
process). "evaluation" compares an evaluation with the training between two, at the default interval. "bookkeeping"
times what a step does besides the encoder.
"""

import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from memory import process_mib
from step_cost import seconds
from training_steps import Bench, BenchArguments, in_own_process, run_benchmark
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments, load_va_dataset
from carl_hf.commands.environment import environment_record, leave_at_once, use_all_cores
from carl_hf.data.streaming import stream_va_dataset
from carl_hf.encoders.loading import load_tokenizer
from carl_hf.momentum import update_target
from carl_hf.report.tables import table
from carl_hf.utils.atomic_files import write_json

SECTIONS = ("batch", "length", "corpus", "processes", "evaluation", "bookkeeping")


@dataclass
class ScalingArguments(BenchArguments):
    sections: list[str] = field(default_factory=lambda: list(SECTIONS), metadata={"help": "Any of these."})
    rounds: int = field(default=5, metadata={"help": "Steps of each row, after one that is not counted."})
    batch_sizes: list[int] = field(default_factory=lambda: [32, 64, 128, 256], metadata={"help": 'Of "batch".'})
    lengths: list[int] = field(default_factory=lambda: [16, 32, 64, 128], metadata={"help": 'Tokens, of "length".'})
    corpus_sizes: list[int] = field(
        default_factory=lambda: [10_000, 100_000, 1_000_000], metadata={"help": 'Rows, of "corpus".'}
    )
    process_rounds: int = field(default=5, metadata={"help": 'Launches of each row of "processes".'})
    process_only: bool = field(default=False, metadata={"help": "Used by this script for its own processes."})

    def __post_init__(self):
        unknown = [name for name in self.sections if name not in SECTIONS]
        if unknown:
            raise ValueError(f"Unknown section {unknown[0]!r}: choose from {', '.join(SECTIONS)}.")


def step_seconds(bench: Bench, rounds: int) -> float:
    step = bench.ours()
    batches = [bench.batch(number) for number in range(rounds + 1)]
    return statistics.median([seconds(functools.partial(step.run, batch)) for batch in batches][1:])


def measure_batch(args: ScalingArguments) -> list[dict[str, Any]]:
    found = []
    for size in args.batch_sizes:
        took = step_seconds(Bench(replace(args, batch_size=size)), args.rounds)
        found.append({"texts": size, "seconds": took, "milliseconds_a_text": 1000 * took / size})
    return found


def measure_length(args: ScalingArguments) -> list[dict[str, Any]]:
    """Texts with exactly this many tokens: words of the corpus, joined and truncated."""
    bench = Bench(args)
    words = " ".join(bench.texts["text"][:4000]).split()
    found = []
    for length in args.lengths:
        bench.collator.max_length = length
        texts = [" ".join(words[i * length : (i + 1) * length]) for i in range(args.batch_size)]
        bench.texts = datasets.Dataset.from_dict(
            {"text": texts, **{k: bench.texts[k][: args.batch_size] for k in ("valence", "arousal")}}
        )
        took = step_seconds(bench, args.rounds)
        tokens = int(bench.batch(0)["attention_mask"].sum())
        found.append({"tokens_of_a_text": length, "seconds": took, "milliseconds_a_token": 1000 * took / tokens})
    return found


class _StepTimes(TrainerCallback):
    def __init__(self):
        self.starts: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.starts.append(time.perf_counter())


class _Resident(TrainerCallback):
    """Memory of the process after each of some steps."""

    def __init__(self, at: Sequence[int]):
        self.at, self.after = at, {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.at:
            self.after[state.global_step] = process_mib("VmRSS")

    @property
    def mib(self) -> list[float]:
        return [self.after[step] for step in self.at]


def _synthetic(rows: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    for number in range(rows):
        valence, arousal = rng.uniform(-1, 1, 2).tolist()
        yield {"text": f"text number {number} of many " * (1 + number % 4), "valence": valence, "arousal": arousal}


def _write_parts(folder: Path, rows: int, rows_of_a_file: int = 10_000) -> None:
    stream = _synthetic(rows)
    for part in range(-(-rows // rows_of_a_file)):
        piece = pa.Table.from_pylist(list(itertools.islice(stream, rows_of_a_file)))
        pq.write_table(piece, folder / f"part-{part:05}.parquet")


def measure_corpus(args: ScalingArguments) -> list[dict[str, Any]]:
    found = []
    for streamed in (True, False):
        for rows in args.corpus_sizes:
            found.append(in_own_process(_train_on_synthetic, args, rows, streamed))
    return found


def _train_on_synthetic(args: ScalingArguments, rows: int, streamed: bool) -> dict[str, Any]:
    """An epoch over streamed files, or at most 1,000 steps over a data set in memory."""
    use_all_cores(args.num_threads)
    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(args.encoder)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        if streamed:
            _write_parts(Path(folder), rows)
            data = stream_va_dataset([f"{folder}/*.parquet"], scale=(-1, 1), shuffle_buffer=1000)
        else:
            data = datasets.Dataset.from_generator(
                _synthetic, gen_kwargs={"rows": rows}, cache_dir=folder, split="train"
            )
        made = time.perf_counter() - start
        steps = rows // args.batch_size if streamed else min(rows // args.batch_size, 1000)
        settings = CarlTrainingArguments(
            folder, max_steps=steps, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
            logging_steps=100, per_device_train_batch_size=args.batch_size,
        )  # fmt: skip
        times, memory = _StepTimes(), _Resident(at=[max(1, steps // 10), max(1, steps // 2), steps])
        start = time.perf_counter()
        CarlTrainer(
            model=CarlModel.from_encoder(transformers.BertModel(config), projection_dim=8), args=settings,
            train_dataset=data, processing_class=tokenizer, callbacks=[times, memory],
        ).train()  # fmt: skip
    took = np.diff(times.starts)
    tenth, half, end = memory.mib
    return {
        "rows": rows, "streamed": streamed, "steps": steps, "milliseconds_a_step": 1000 * float(np.median(took)),
        "milliseconds_a_step_of_the_last_tenth": 1000 * float(np.median(took[-(len(took) // 10) :])),
        "seconds_before_the_first_step": times.starts[0] - start, "seconds_to_make_the_data": made,
        "resident_mib_after_a_tenth": tenth, "resident_mib_after_half": half, "resident_mib_at_the_end": end,
        "peak_mib": process_mib("VmHWM"),
    }  # fmt: skip


def measure_processes(args: ScalingArguments) -> list[dict[str, Any]]:
    """Median steps of one process and of two, one thread each, launched in turn: the ratio is taken within a round,
    for the speed of a shared machine changes.

    The thread is asked for by OMP_NUM_THREADS: where that is unset, accelerate gives a process of a distributed
    training its share of all cores, which is both of two for a process alone, whatever torch was told before.
    """
    rounds = [{processes: _launch(args, processes) for processes in (1, 2)} for _ in range(args.process_rounds)]
    ratios = [row[1]["seconds"] / row[2]["seconds"] for row in rounds]
    return [
        {"processes": processes, "texts_of_a_process": rounds[0][processes]["texts_of_a_process"],
         "seconds": statistics.median(row[processes]["seconds"] for row in rounds),
         "throughput_of_a_process_over_one_alone": 1.0 if processes == 1 else statistics.median(ratios),
         "least_and_greatest": "" if processes == 1 else f"{min(ratios):.2f} to {max(ratios):.2f}"}
        for processes in (1, 2)
    ]  # fmt: skip


def _launch(args: ScalingArguments, processes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        flags = ["--process_only", "true", "--num_threads", "1", "--rounds", str(args.rounds), "--output",
                 f"{folder}/found.json", "--batch_size", str(args.batch_size // 2), "--corpus", args.corpus,
                 "--encoder", args.encoder, *(["--data_dir", args.data_dir] if args.data_dir else [])]  # fmt: skip
        done = subprocess.run(
            [sys.executable, *launch, __file__, *flags], capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        found = json.loads(Path(folder, "found.json").read_text())
    if found["threads"] != 1:
        raise RuntimeError(f"A process of {processes} computed with {found['threads']} threads, not with one.")
    return found


def run_process(args: ScalingArguments) -> None:
    """A training of one of the processes; the first writes the median step."""
    times = _StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        settings = CarlTrainingArguments(
            folder, max_steps=args.rounds + 3, per_device_train_batch_size=args.batch_size, use_cpu=True,
            report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1e9,
        )  # fmt: skip
        CarlTrainer(
            model=CarlModel.from_encoder(args.encoder), args=settings, processing_class=load_tokenizer(args.encoder),
            train_dataset=load_va_dataset(args.corpus, split="train", data_dir=args.data_dir), callbacks=[times],
        ).train()  # fmt: skip
    if int(os.environ.get("RANK", "0")) == 0:
        write_json(Path(args.output), {"texts_of_a_process": args.batch_size, "threads": torch.get_num_threads(),
                                       "seconds": float(np.median(np.diff(times.starts)[1:]))})  # fmt: skip
    leave_at_once()


def measure_evaluation(args: ScalingArguments) -> list[dict[str, Any]]:
    """One evaluation on the corpus's validation texts, over the steps of the default interval."""
    bench = Bench(args)
    step = step_seconds(bench, args.rounds)
    trainer, dev = bench.trainer(), load_va_dataset(args.corpus, split="validation", data_dir=args.data_dir)
    trainer.evaluate(dev)
    took = statistics.median(seconds(lambda: trainer.evaluate(dev)) for _ in range(3))
    interval = CarlTrainingArguments("unused", eval_strategy="steps", use_cpu=True).eval_steps
    return [
        {"validation_texts": len(dev), "probe_texts": trainer.args.probe_texts, "evaluation_seconds": took,
         "step_seconds": step, "default_interval_in_steps": interval, "share_of_training": took / (interval * step)}
    ]  # fmt: skip


def measure_bookkeeping(args: ScalingArguments) -> list[dict[str, Any]]:
    """The check for non-finite values, a log entry (of ten steps), the target's update and collating a batch,
    as shares of a step. Without data loader workers the training process collates."""
    bench = Bench(args)
    step = step_seconds(bench, args.rounds)
    trainer = bench.trainer()
    trainer.state.max_steps = 1000
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    model, settings = trainer.model, trainer.args
    taken: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any], each: float = 1) -> Any:
        start = time.perf_counter()
        found = work()
        taken.setdefault(name, []).append((time.perf_counter() - start) / each)
        return found

    for number in range(args.rounds):
        batch = timed("making a batch", functools.partial(bench.batch, number))
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        trainer._get_grad_norm(model)

        def check(batch: dict[str, Any] = batch, loss: torch.Tensor = loss) -> None:
            trainer.nonfinite.watch(batch, trainer._last_embedding_BH, loss.detach())
            trainer.nonfinite.on_pre_optimizer_step(settings, trainer.state, trainer.control, model=model)

        timed("looking for what is not finite", check)
        timed("a log entry", lambda: trainer.log({"loss": 1.0}), each=settings.logging_steps)
        timed("the target's update", lambda: update_target(model.target, model.online, 0.99))
        model.zero_grad()
    return [
        {"what": name, "milliseconds_a_step": 1000 * statistics.median(seconds_of_it),
         "share_of_a_step": statistics.median(seconds_of_it) / step}
        for name, seconds_of_it in taken.items()
    ]  # fmt: skip


def measure(args: ScalingArguments) -> dict[str, Any]:
    datasets.disable_progress_bars()
    if args.process_only:
        run_process(args)
    measures = {"batch": measure_batch, "length": measure_length, "corpus": measure_corpus,
                "processes": measure_processes, "evaluation": measure_evaluation,
                "bookkeeping": measure_bookkeeping}  # fmt: skip
    settings = {name: getattr(args, name) for name in ("corpus", "encoder", "batch_size", "bf16")}
    sections = {name: measures[name](args) for name in args.sections}
    return {"settings": settings, "sections": sections, **environment_record()}


def render(result: dict[str, Any]) -> str:
    parts = []
    for name, rows in result["sections"].items():
        header = [key.replace("_", " ") for key in rows[0]]
        cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
        parts.append(f"{name}\n\n{table(header, cells)}")
    return "\n\n".join(parts)


def main() -> None:
    run_benchmark(ScalingArguments, measure, render)


if __name__ == "__main__":
    main()
