"""Renders RESULTS.md, the tables of what was measured about time and memory, from the JSON files in results/.

python benchmarks/results.py
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import encode
import memory
import scaling
import serve
import start
import step_cost

from carl_hf.commands.arguments import parse_script_arguments

RENDERED = {
    "step_cost": ("A training step, float32", step_cost.render),
    "step_cost_bf16": ("A training step, bfloat16", step_cost.render),
    "step_cost_pair": ("A training step beside SimCSE's alone, float32", step_cost.render),
    "step_cost_pair_bf16": ("A training step beside SimCSE's alone, bfloat16", step_cost.render),
    "memory": ("Memory of a training step", memory.render),
    "scaling": ("How cost grows", scaling.render),
    "scaling_processes": ("Processes, lengths, bookkeeping", scaling.render),
    "scaling_corpus": ("A corpus of any size", scaling.render),
    "encode": ("Embedding texts", encode.render),
    "start": ("Starting", start.render),
    "serve": ("Answering", serve.render),
}


@dataclass
class ResultsArguments:
    results: str = field(default="benchmarks/results", metadata={"help": "Folder with the records."})
    output: str = field(default="benchmarks/RESULTS.md", metadata={"help": "The rendered file."})


def settings_line(result: dict[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = result.get("processor", result["machine"])  # records before 2026-11-26 lack it, and the date
    return f"{settings}; {machine}, {result['threads']} threads; {versions}; {result.get('date', 'no date')}."


def render(folder: Path) -> str:
    parts = [
        "# Time and memory, measured",
        "Rendered by `python benchmarks/results.py` from the files in [results/](results); "
        "[docs/performance.md](../docs/performance.md) explains them. How good the embeddings are is in other "
        "tables: [recipes](studies/recipe/TABLE.md), [objectives](studies/objectives/TABLE.md), "
        "[attributions](studies/attributions/TABLE.md).",
    ]
    for name, (title, render_one) in RENDERED.items():
        path = folder / f"{name}.json"
        if path.is_file():
            result = json.loads(path.read_text(encoding="utf-8"))
            parts += [f"## {title}", settings_line(result), render_one(result)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    try:
        args = parse_script_arguments(ResultsArguments)
        if not list(Path(args.results).glob("*.json")):
            raise ValueError(f"{args.results} holds no records: run the benchmarks with --output.")
        Path(args.output).write_text(render(Path(args.results)), encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
