"""How fast: a step against SimCSE's, large batches, where a step's time goes, an encoder compiled for one length."""

import functools
import importlib.util
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from gpu_parts.inputs import Report
from memory import _peak, _reset_peak
from step_cost import StepCostArguments, measure, render, seconds
from torch.profiler import ProfilerActivity, profile
from training_steps import OURS, Bench, BenchArguments

from carl_hf.encoders.loading import load_encoder

_COMPARED = ("one forward, no gradient, packed", "SimCSE, packed", OURS)
_PEER = "SimCSE, sentence-transformers' trainer"


def measure_steps(report: Report, args: BenchArguments, name: str, *, rounds: int) -> None:
    """CARL's step beside others, and their share of the rate of matrix products."""
    compared = [*_COMPARED, *([_PEER] if importlib.util.find_spec("sentence_transformers") else [])]
    result = measure(StepCostArguments(**vars(args), rounds=rounds, only=compared))
    report.figures[f"{name}: steps"] = result
    rate = result["matrix_products_per_second"] / 1e12
    print(f"\n{name}, {args.batch_size} texts, bf16 {args.bf16}; products at {rate:.1f} TFLOP/s\n{render(result)}\n")


def measure_batches(report: Report, args: BenchArguments, name: str, sizes: dict[int, int]) -> None:
    """Time and peak memory of batches (texts -> chunks in which they are encoded)."""
    for texts, chunks in sizes.items():
        bench = Bench(replace(args, batch_size=texts))
        step = bench.ours(gradient_cache_parts=chunks)
        given = step.prepare(bench.batch(0))
        step.run(given)
        before = _reset_peak(bench.device)
        times = [seconds(functools.partial(step.run, given)) for _ in range(3)]
        after = _peak(bench.device)
        figures = {"seconds": statistics.median(times), "peak_mib": round(after), "step_mib": round(after - before)}
        report.figure(f"{name}: {texts} texts in {chunks} chunks", figures)


def profile_step(report: Report, args: BenchArguments, name: str) -> None:
    """The operations that take most time, and the share of a step in which the GPU computes nothing."""
    bench = Bench(args)
    step, cuda = bench.ours(), bench.device.type == "cuda"
    given = step.prepare(bench.batch(0))
    step.run(given)
    whole = statistics.median(seconds(functools.partial(step.run, given)) for _ in range(3))
    with profile(activities=[ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]) as found:
        seconds(functools.partial(step.run, given))
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: -getattr(event, key))
    for event in events[:10]:
        report.figure(f"{name}: ms in {event.count} x {event.key[:70]}", round(getattr(event, key) / 1e3, 3))
    busy = sum(getattr(event, key) for event in events) / 1e6
    report.figure(f"{name}: share of a step without work", round(max(0.0, 1 - busy / whole), 3))
    report.figure(f"{name}: operations of a step", sum(event.count for event in events))


def measure_compiled(report: Report, args: BenchArguments, name: str, *, backend: str, tokens: int = 32) -> None:
    """Forward and backward pass of an encoder over texts of one length, as it is and compiled."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = load_encoder(args.encoder).to(device).train()
    ids = torch.randint(4, encoder.config.vocab_size, (args.batch_size, tokens), device=device)

    def run(model: Any) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        states.float().square().mean().backward()
        encoder.zero_grad()

    if not hasattr(torch.compiler, "is_exporting"):  # which transformers asks
        report.figure(f"{name}: encoder compiled", f"not with torch {torch.__version__}")
        return
    for kind, model in (("as it is", encoder), ("compiled", torch.compile(encoder, backend=backend))):
        start = time.perf_counter()
        run(model)
        first = time.perf_counter() - start
        times = [seconds(functools.partial(run, model)) for _ in range(5)]
        figures = {"seconds": statistics.median(times), "first_seconds": round(first, 2)}
        report.figure(f"{name}: {args.batch_size} texts of {tokens} tokens, encoder {kind}", figures)
