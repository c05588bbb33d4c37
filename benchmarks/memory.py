"""How much memory a training step takes, against the number of texts in its contrastive batch.

    python benchmarks/memory.py --data_dir DIR

Every row runs in a process of its own: two steps, the second on the batch whose longest text is longer. "Step" is the
peak less what the process held before its first step (the models and what was loaded); on a CPU the peak is the
process's resident memory, on a GPU that of torch's allocator. One contrastive batch is encoded in parts
(`gradient_cache_parts`) of as many texts as the first batch's.
"""

import multiprocessing
import resource
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from training_steps import OURS, PLAIN, Bench, BenchArguments

from carl_hf.cli import environment_record, parse_script_arguments, use_all_cores, write_json
from carl_hf.evaluation.markdown import table

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
    if parts > 1:
        bench.trainer = bench.carl_trainer(gradient_cache_parts=parts)
    (step,) = bench.steps([name]).values()
    batches = [bench.batch(number) for number in range(2)]
    batches.sort(key=lambda batch: batch["input_ids"].numel())
    before = _memory(bench.device)
    for batch in batches:
        step(batch)
    after = _memory(bench.device, peak=True)
    return {"peak_mib": after, "step_mib": after - before, "texts": args.batch_size, "parts": parts, "step": name}


def _memory(device: torch.device, *, peak: bool = False) -> float:
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / _MIB
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else _MIB)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / _MIB


def measure(args: MemoryArguments) -> dict[str, Any]:
    first = args.batch_sizes[0]
    plan = [(PLAIN, first, 1), *((OURS, size, max(1, size // first)) for size in args.batch_sizes)]
    rows = []
    for name, size, parts in plan:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(peak, (replace(args, batch_size=size), name, parts)))
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
    header = ["step", "texts", "parts", "peak MiB", "of it the step", "peak over the second row's", "step over it"]
    return table(header, rows)


def main() -> None:
    try:
        args = parse_script_arguments(MemoryArguments)
        result = measure(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(render(result))
    if args.output is not None:
        write_json(Path(args.output), result)


if __name__ == "__main__":
    main()
