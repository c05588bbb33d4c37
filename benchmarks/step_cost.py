"""The time of a training step: CARL in this trainer, a plain implementation of CARL, and SimCSE-style training.

    python benchmarks/step_cost.py --data_dir DIR
    python benchmarks/step_cost.py --data_dir DIR --bf16 true

All steps run in turn in one process, on the same texts, encoder, dtype and threads: forward, backward, clipping, AdamW
and, for CARL, the target's update. Every round takes a new batch; ratios are taken within a round, and their medians
reported. "Sliced" encodes a batch in padded slices of similar length, "packed" without padding, as this trainer does.
The share of the machine's rate is from the first round, whose matrix products are counted; those of attention only if
`carl_hf.encoders.fast_cpu` computes them (torch's own operation on a CPU is not counted). On a CPU one more step of
CARL and of packed SimCSE is profiled: seconds by kind of operation. Other work on the machine can distort the
results: the spread shows it.
"""

import functools
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from training_steps import OURS, PEER, Bench, BenchArguments, Step, run_benchmark

from carl_hf.commands.environment import environment_record
from carl_hf.report.tables import table


@dataclass
class StepCostArguments(BenchArguments):
    rounds: int = field(default=7, metadata={"help": "Rounds, after one that is not counted."})
    only: list[str] | None = field(default=None, metadata={"help": "Steps to measure, by name."})


class Operations(TorchDispatchMode):
    """Counts floating-point operations of matrix products. (torch's own counter cannot look into autograd.grad.)"""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def seconds(work: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


KINDS = {
    "matrix products, fused attention": r"(aten::(mm|addmm|bmm|baddbmm|linear|_scaled_dot_product)|mkldnn).*",
    "softmax, GELU, layer norm": r"aten::.*(softmax|gelu|layer_norm|tanh).*",
    "tokens moved (packing, embeddings)": r"aten::(_?index.*|cat|embedding.*|gather|scatter.*|slice_backward)",
    "clipping, AdamW, moving average": r"aten::_f(oreach|used)_.*",
    "elementwise (dropout, residuals, casts, sums)": r"aten::.*",
}
OUTSIDE = "outside of torch (Python, NumPy's dropout masks)"


def time_by_kind(step: Step, given: Any) -> dict[str, float]:
    """Seconds of a step's operations by kind, each in the first of [`KINDS`] that its name matches, on a CPU; what is
    left of the whole is [`OUTSIDE`]."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        whole = seconds(functools.partial(step.run, given))
    spent = dict.fromkeys(KINDS, 0.0)
    for event in found.key_averages():
        kind = next((kind for kind, names in KINDS.items() if re.fullmatch(names, event.key)), None)
        if kind is not None:
            spent[kind] += event.self_cpu_time_total / 1e6
    return {**spent, OUTSIDE: whole - sum(spent.values())}


def multiplication_rate(bf16: bool, device: torch.device, *, tries: int = 10) -> float:
    """Floating-point operations a second of the best of some matrix products: of MiniLM's size on a CPU, on a GPU of a
    size that fills it."""
    rows, inner, columns = (2048, 384, 1536) if device.type == "cpu" else (8192, 4096, 4096)
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(size, device=device).to(dtype) for size in ((rows, inner), (inner, columns)))
    times = [seconds(lambda: [a @ b for _ in range(20)]) for _ in range(tries)]
    return 20 * 2 * rows * inner * columns / min(times)


def measure(args: StepCostArguments) -> dict[str, Any]:
    """Seconds of every step in every round, its operations, and the ratios of ours to the others."""
    bench = Bench(args)
    steps = bench.steps(args.only)
    times: dict[str, list[float]] = {name: [] for name in steps}
    operations: dict[str, int] = {}
    for number in range(args.rounds + 1):
        batch = bench.batch(max(number, 1))
        for name, step in steps.items():
            given = step.prepare(batch)
            if number == 0:  # warms up: allocations, optimizer states
                with Operations() as counter:
                    step.run(given)
                operations[name] = counter.total
                continue
            times[name].append(seconds(functools.partial(step.run, given)))
        print(f"round {number} of {args.rounds}", file=sys.stderr, flush=True)
    profiled = [name for name in (PEER, OURS) if name in steps and bench.device.type == "cpu"]
    by_kind = {name: time_by_kind(steps[name], steps[name].prepare(batch)) for name in profiled}
    rate = multiplication_rate(args.bf16, bench.device, tries=args.rounds)
    rows = {
        name: {
            "seconds": statistics.median(found),
            "all_seconds": found,
            "operations_of_the_first_round": operations[name],
            **({"ours_over_it": _ratio(times[OURS], found)} if OURS in times and name != OURS else {}),
        }
        for name, found in times.items()
    }
    return {
        "settings": {"corpus": args.corpus, "encoder": args.encoder, "batch_size": args.batch_size, "bf16": args.bf16},
        "matrix_products_per_second": rate, "steps": rows, "seconds_by_kind": by_kind, **environment_record(),
    }  # fmt: skip


def _ratio(ours: list[float], other: list[float]) -> dict[str, float]:
    ratios = np.array(ours) / np.array(other)
    low, high = np.quantile(ratios, [0.25, 0.75])
    return {"median": float(np.median(ratios)), "lower_quartile": float(low), "upper_quartile": float(high)}


def render(result: dict[str, Any]) -> str:
    def quartiles(ratio: dict[str, float] | None) -> str:
        if ratio is None:
            return ""
        return f"{ratio['median']:.3f} ({ratio['lower_quartile']:.3f} to {ratio['upper_quartile']:.3f})"

    rows = []
    for name, row in result["steps"].items():
        rate = row["operations_of_the_first_round"] / row["all_seconds"][0]
        share = rate / result["matrix_products_per_second"]
        rows.append([name, f"{row['seconds']:.3f}", quartiles(row.get("ours_over_it")), f"{share:.0%}"])
    steps = table(["step", "seconds", "CARL's step over it (quartiles)", "share of the machine's rate"], rows)
    by_kind = result.get("seconds_by_kind")  # records before 2026-11-29 lack it
    if not by_kind:
        return steps
    kinds = [[kind, *(f"{spent[kind]:.3f}" for spent in by_kind.values())] for kind in (*KINDS, OUTSIDE)]
    return f"{steps}\n\n{table(['seconds of one profiled step', *by_kind], kinds)}"


def main() -> None:
    run_benchmark(StepCostArguments, measure, render)


if __name__ == "__main__":
    main()
