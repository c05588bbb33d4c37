"""What starting costs: CPU time of imports and of `--help`, divided by that of importing torch and transformers.

    python benchmarks/start.py

Each runs in a process of its own, in turn; medians of the rounds. transformers loads most of itself when a name is
used: the second ratio is to importing its model and trainer classes, which any training needs.
"""

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import environment_record
from carl_hf.report.tables import table
from carl_hf.utils.atomic_files import write_json

ROOT = Path(__file__).parents[1]
BASELINES = ("import torch, transformers", "from transformers import PreTrainedModel, Trainer")
IMPORTS = (
    "import carl_hf",
    "from carl_hf import load_va_dataset",
    "from carl_hf import CarlModel",
    "from carl_hf import CarlTrainer",
)
COMMANDS = ("", "pretrain", "evaluate", "embed")


@dataclass
class StartArguments:
    rounds: int = field(default=7, metadata={"help": "Rounds, after one that is not counted."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def commands() -> dict[str, list[str]]:
    """What is measured -> arguments of Python."""
    code = {text: ["-c", text] for text in (*BASELINES, *IMPORTS)}
    words = [[*command.split(), "--help"] for command in COMMANDS]
    helps = {" ".join(["carl-hf", *given]): ["-m", "carl_hf_cli", *given] for given in words}
    return code | helps | {"python -m carl_hf --help": ["-m", "carl_hf", "--help"]}


def cpu_seconds(words: list[str]) -> float:
    """User and system time of a Python process with these arguments."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = os.times()
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def measure(args: StartArguments) -> dict[str, Any]:
    rounds = [{name: cpu_seconds(words) for name, words in commands().items()} for _ in range(args.rounds + 1)][1:]
    rows = {}
    for name in commands():
        over = [statistics.median(one[name] / one[baseline] for one in rounds) for baseline in BASELINES]
        rows[name] = {"cpu_seconds": statistics.median(one[name] for one in rounds), "ratios": over}
    return {"settings": {"rounds": args.rounds}, "baselines": BASELINES, "rows": rows, **environment_record()}


def render(result: dict[str, Any]) -> str:
    header = ["", "CPU seconds", *(f"over `{baseline}`" for baseline in result["baselines"])]
    rows = [
        [f"`{name}`", f"{row['cpu_seconds']:.2f}", *(f"{ratio:.2f}" for ratio in row["ratios"])]
        for name, row in result["rows"].items()
    ]
    return table(header, rows)


def main() -> None:
    try:
        args = parse_script_arguments(StartArguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    result = measure(args)
    print(render(result))
    if args.output is not None:
        write_json(Path(args.output), result)


if __name__ == "__main__":
    main()
