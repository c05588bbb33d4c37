"""How much memory a training step takes, against the number of texts in its contrastive batch.

    python benchmarks/memory.py --data_dir DIR

Every row runs in a new process, which first makes a step on eight texts (this creates the optimizer's states), then
one on a whole batch, the longer of two. "Step" is the peak of that step minus the memory in use before it: on a CPU
(Linux) resident memory, on a GPU that of torch's allocator. A batch larger than the first is encoded in chunks
(`gradient_cache_parts`) of as many texts as the first has.
"""

import gc
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from training_steps import OURS, PLAIN, Bench, BenchArguments, in_own_process, run_benchmark

from carl_hf.commands.environment import environment_record, use_all_cores
from carl_hf.report.tables import table

_MIB = 2**20


@dataclass
class MemoryArguments(BenchArguments):
    batch_sizes: list[int] = field(
        default_factory=lambda: [128, 512, 1024, 4096], metadata={"help": "Texts of a batch, one row for each."}
    )


def peak(args: MemoryArguments, name: str, parts: int) -> dict[str, Any]:
    """MiB of a step, in this process."""
    use_all_cores(args.num_threads)
    bench = Bench(args)
    step = bench.ours(gradient_cache_parts=parts) if name == OURS else bench.plain()
    batches = sorted((bench.batch(number) for number in range(2)), key=lambda batch: batch["input_ids"].shape[1])
    small = bench.batch(0, texts=8)
    step.run(step.prepare(small))  # the optimizer's states and the gradients' memory are there from now on
    given = step.prepare(batches[-1])
    before = _reset_peak(bench.device)
    step.run(given)
    after = _peak(bench.device)
    return {"peak_mib": after, "step_mib": after - before, "texts": args.batch_size, "parts": parts, "step": name}


def _reset_peak(device: torch.device) -> float:
    """MiB in use now; resets the peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / _MIB
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is reset to what is resident
    return process_mib("VmRSS")


def _peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / _MIB if device.type == "cuda" else process_mib("VmHWM")


def process_mib(name: str) -> float:
    """A value of /proc for this process: "VmRSS", resident MiB; "VmHWM", their peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def measure(args: MemoryArguments) -> dict[str, Any]:
    first = args.batch_sizes[0]
    plan = [(PLAIN, first, 1), *((OURS, size, max(1, size // first)) for size in args.batch_sizes)]
    rows = []
    for name, size, parts in plan:
        rows.append(in_own_process(peak, replace(args, batch_size=size), name, parts))
        print(f"{name}, {size} texts: {rows[-1]['peak_mib']:.0f} MiB", file=sys.stderr, flush=True)
    return {
        "settings": {"corpus": args.corpus, "encoder": args.encoder, "bf16": args.bf16}, "rows": rows,
        **environment_record(),
    }  # fmt: skip


def render(result: dict[str, Any]) -> str:
    first = result["rows"][1]  # ours, the smallest batch
    rows = [
        [row["step"], str(row["texts"]), str(row["parts"]), f"{row['peak_mib']:.0f}", f"{row['step_mib']:.0f}",
         f"{row['peak_mib'] / first['peak_mib']:.2f}", f"{row['step_mib'] / first['step_mib']:.2f}"]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["step", "texts", "chunks", "peak MiB", "of it the step", "peak over the second row's", "step over it"]
    return table(header, rows)


def main() -> None:
    run_benchmark(MemoryArguments, measure, render)


if __name__ == "__main__":
    main()
