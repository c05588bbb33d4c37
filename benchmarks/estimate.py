"""Estimates the time and memory of training and embedding, for encoders and corpora that were not measured.

    python benchmarks/estimate.py
    python benchmarks/estimate.py --tokens 60 --peak_tflops 989 --share 0.2

Time is operations over rate. A forward pass costs a token 2 operations for each weight of the layers' matrices, and
4 L H a layer for attention over the L tokens of its text, H wide. The ratio of CARL's step to a
forward pass was measured (results/step_cost.json), as was the rate of two CPU cores; that of a GPU is assumed: a share
of its peak.

Memory is parameters and activations. A trained parameter has, in float32, its value, the target's copy, a gradient
and two states of AdamW. Activations are measured bytes for each token, layer and unit of width, those of a step minus
its gradients (results/memory.json), in float32; they shrink with the number of chunks, not of processes. With chunks
come what the whole batch keeps, measured bytes for each token and unit of width, and another gradient of the layers.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from training_steps import OURS
from transformers import BertConfig, PreTrainedConfig, RobertaConfig, RobertaModel

from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.report.tables import table

_FORWARD = "one forward, no gradient, packed"
_PARAMETER_BYTES = 4 + 4 + 4 + 8  # value, target, gradient, AdamW
_VALUE_BYTES = 4  # float32

ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
ENCODERS = {"roberta-base": RobertaConfig(**ROBERTA), "roberta-large": RobertaConfig(**ROBERTA, **LARGE)}
XLM_LARGE = {"xlm-roberta-large": RobertaConfig(**{**ROBERTA, "vocab_size": 250_002}, **LARGE)}
MEASURED = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)  # MiniLM
MEASURED_PARAMETERS = 22_713_216
CORPORA = {"10 k": 10_000, "1 M": 1_000_000, "100 M": 100_000_000}


@dataclass
class EstimateArguments:
    tokens: int = field(default=32, metadata={"help": "Tokens of a text on average (EmoBank: 22)."})
    epochs: float = field(default=2.0, metadata={"help": "Passes over the training texts."})
    batch_size: int = field(default=128, metadata={"help": "Texts of a batch on each device."})
    peak_tflops: float = field(default=312.0, metadata={"help": "The GPU's bfloat16 peak, in TFLOP/s (A100: 312)."})
    share: float = field(default=0.3, metadata={"help": "Share of that peak that is assumed to be reached."})
    results: str = field(default="benchmarks/results", metadata={"help": "Folder with the records."})

    def __post_init__(self):
        for name in ("tokens", "epochs", "batch_size", "peak_tflops", "share"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name} must be positive, got {getattr(self, name)}.")


def forward_operations(config: PreTrainedConfig, tokens: float) -> float:
    """Floating-point operations of a forward pass, for each token of texts with this many tokens."""
    width = config.hidden_size
    return config.num_hidden_layers * (matrix_operations(config) + 4 * tokens * width)


def matrix_operations(config: PreTrainedConfig) -> float:
    """Of a layer's matrices, for a token: queries, keys, values, output; two of the feed-forward network."""
    return 2 * (4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size)


def parameters(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        return RobertaModel(config).num_parameters()


@dataclass
class Costs:
    """What was measured on MiniLM.

    Args:
        step_over_forward: time of CARL's step over a forward pass. cpu_rate: operations a second of that pass on two
            cores. activation_bytes: of a step, for each token, layer and unit of width. kept_bytes: that a batch in
            chunks keeps, for each token and unit of width.
    """

    step_over_forward: float
    cpu_rate: float
    activation_bytes: float
    kept_bytes: float

    @classmethod
    def read(cls, folder: Path) -> "Costs":
        try:
            step, memory = (json.loads((folder / name).read_text()) for name in ("step_cost.json", "memory.json"))
        except OSError as error:
            raise ValueError(f"{error.filename}: there is no such record; name the folder with --results.") from error
        forward = step["steps"][_FORWARD]
        operations = forward["operations_of_the_first_round"]  # those of matrices: attention's are not counted on CPUs
        tokens = operations / (MEASURED.num_hidden_layers * matrix_operations(MEASURED))
        row, *_, fewer, more = (row for row in memory["rows"] if row["step"] == OURS)  # the first has the same texts
        further_tokens = (more["texts"] - fewer["texts"]) / row["texts"] * tokens  # in chunks of one size
        activations = row["step_mib"] * 2**20 - _VALUE_BYTES * MEASURED_PARAMETERS
        return cls(
            step_over_forward=forward["ours_over_it"]["median"],
            cpu_rate=operations / forward["all_seconds"][0],
            activation_bytes=activations / (tokens * MEASURED.num_hidden_layers * MEASURED.hidden_size),
            kept_bytes=(more["step_mib"] - fewer["step_mib"]) * 2**20 / (further_tokens * MEASURED.hidden_size),
        )

    def step_bytes(self, config: PreTrainedConfig, tokens: float, chunks: int) -> float:
        """What a step on a batch of so many tokens takes besides parameters, gradients and AdamW."""
        activations = self.activation_bytes * config.num_hidden_layers * config.hidden_size * tokens / chunks
        if chunks == 1:
            return activations
        second_gradient = _VALUE_BYTES * config.num_hidden_layers * matrix_operations(config) / 2
        return activations + self.kept_bytes * config.hidden_size * tokens + second_gradient


def duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.2g} seconds"


def time_table(args: EstimateArguments, costs: Costs) -> str:
    gpu = args.peak_tflops * 1e12 * args.share
    rows = []
    for name, config in ENCODERS.items():
        for corpus, texts in CORPORA.items():
            forward = texts * args.tokens * forward_operations(config, args.tokens)
            training = args.epochs * costs.step_over_forward * forward
            seconds = (training / gpu, training / costs.cpu_rate, forward / gpu, forward / costs.cpu_rate)
            gigabytes = texts * config.hidden_size * _VALUE_BYTES / 1e9
            rows.append([name, corpus, *map(duration, seconds), f"{gigabytes:,.3g} GB"])
    header = ["encoder", "texts", "training, a GPU", "two CPU cores", "embedding, a GPU", "two CPU cores", "vectors"]
    return table(header, rows)


def memory_table(args: EstimateArguments, costs: Costs) -> str:
    rows = []
    for name, config in (ENCODERS | XLM_LARGE).items():
        fixed = _PARAMETER_BYTES * parameters(config)
        for texts, chunks in ((args.batch_size, 1), (args.batch_size, 8), (8 * args.batch_size, 32)):
            step = costs.step_bytes(config, texts * args.tokens, chunks)
            sizes = (f"{size / 2**30:.1f} GiB" for size in (fixed, step, fixed + step))
            rows.append([name, f"{parameters(config) / 1e6:.0f} M", f"{texts:,}", str(chunks), *sizes])
    columns = ["parameters and AdamW", "the step", "together"]
    return table(["encoder", "parameters", "texts", "`--gradient_cache_parts`", *columns], rows)


def render(args: EstimateArguments) -> str:
    costs = Costs.read(Path(args.results))
    assumed = (
        f"Assumed: {args.tokens} tokens a text, {args.epochs:g} epochs, {args.batch_size} texts on each device, a GPU "
        f"that reaches {args.share:.0%} of {args.peak_tflops:g} TFLOP/s."
    )
    measured = (
        f"Measured: a step takes {costs.step_over_forward:.1f} forward passes, two CPU cores make "
        f"{costs.cpu_rate / 1e9:.0f} GFLOP/s in float32, activations take {costs.activation_bytes:.0f} bytes for each "
        f"token, layer and unit of width, and what a batch in chunks keeps {costs.kept_bytes:.0f} for each token and "
        "unit of width."
    )
    return "\n\n".join([assumed, measured, time_table(args, costs), memory_table(args, costs)])


def main() -> None:
    try:
        args = parse_script_arguments(EstimateArguments)
        print(render(args))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
