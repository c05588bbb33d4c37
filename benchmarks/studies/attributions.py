"""Does the word with the greatest attribution matter? Each method of carl_hf.explain against leaving words out.

    python benchmarks/studies/attributions.py --model runs/carl-demo/va

For every held-out text of the demo corpus with at least three words, each word is left out once, and the head's answer
is computed anew: that is the truth here. A text counts as right if leaving out the word with the greatest absolute
score moves the answer more than leaving out another of its words does on average. "any word" is what a word drawn by
lot would get. Methods and their settings were chosen on the validation split; the table is of the test split. Leaves
results.json and TABLE.md in the output folder.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from tqdm import tqdm

from carl_hf import load_va_dataset
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import environment_record, use_all_cores
from carl_hf.evaluation.encoder import load_va_head
from carl_hf.evaluation.statistics import interval, resample_rows
from carl_hf.evaluation.valence_arousal import DIMENSIONS
from carl_hf.explain import Explainer, Method
from carl_hf.report.tables import table
from carl_hf.utils.atomic_files import write_json


@dataclass
class AttributionsArguments:
    model: str = field(default="runs/carl-demo/va", metadata={"help": "Valence-arousal regressor: folder or Hub id."})
    split: Literal["validation", "test"] = field(default="test", metadata={"help": "Part of the demo corpus."})
    texts: int | None = field(default=None, metadata={"help": "Number of texts, drawn by the seed (default: all)."})
    steps: int = field(default=32, metadata={"help": "Points of integrated gradients."})
    seed: int = field(default=0, metadata={"help": "Of the draw and the bootstrap."})
    output_dir: str = field(
        default="benchmarks/studies/attributions", metadata={"help": "Folder of results and table."}
    )
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})


def word_effects(predict: Callable[[Sequence[str]], np.ndarray], text: str) -> np.ndarray:
    """(number of words, 2): how far valence and arousal move, without sign, when a word is left out of the text."""
    words = text.split()
    shorter = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    answers = predict([" ".join(words), *shorter])
    return np.abs(answers[1:] - answers[0])


def beats_the_others(effects: np.ndarray) -> np.ndarray:
    """For each of N words: is its effect (N,) greater than the mean effect of the other N - 1?"""
    return effects > (effects.sum() - effects) / (len(effects) - 1)


def main() -> None:
    try:
        args = parse_script_arguments(AttributionsArguments)
        use_all_cores(args.num_threads)
        explainer, predict = Explainer.from_pretrained(args.model), load_va_head(args.model)
        if predict is None:
            raise ValueError(f"{args.model} is no valence-arousal regressor: name the folder va/ of an export.")
    except ValueError as error:
        sys.exit(f"error: {error}")
    held_out = [t for t in load_va_dataset("demo", split=args.split)["text"] if len(t.split()) >= 3]
    texts = [held_out[i] for i in np.random.default_rng(args.seed).permutation(len(held_out))[: args.texts]]
    right: dict[str, dict[str, list[float]]] = {
        row: {dimension: [] for dimension in DIMENSIONS} for row in (*get_args(Method), "any word")
    }
    for text in tqdm(texts, desc="texts", disable=None):  # None: only in a terminal
        effects = word_effects(predict, text)
        for k, dimension in enumerate(DIMENSIONS):
            better = beats_the_others(effects[:, k])
            right["any word"][dimension].append(better.mean())
            for method in get_args(Method):
                scores = explainer.explain(text, dimension, method, steps=args.steps).scores
                right[method][dimension].append(float(better[np.abs(scores).argmax()]))
    results: dict[str, Any] = {"texts": len(texts), "split": args.split, "methods": {}}
    for method, found in right.items():
        results["methods"][method] = {dimension: share(values, args.seed) for dimension, values in found.items()}
    results["run"] = {"model": args.model, "steps": args.steps, "seed": args.seed, **environment_record()}
    output = Path(args.output_dir)
    write_json(output / "results.json", results)
    (output / "TABLE.md").write_text(rendered(results), encoding="utf-8")
    print(rendered(results))


def share(values: Sequence[float], seed: int) -> dict[str, Any]:
    """Percent, and its 95 % bootstrap interval over texts."""
    percents = 100 * np.asarray(values, dtype=float)
    resampled = percents[resample_rows(len(percents), seed)].mean(-1)
    return {"percent": float(percents.mean()), "interval": interval(resampled)}


def rendered(results: dict[str, Any]) -> str:
    def cell(figure: dict[str, Any]) -> str:
        low, high = figure["interval"]
        return f"{figure['percent']:.1f} [{low:.1f}, {high:.1f}]"

    rows = [[name.replace("_", " "), *map(cell, found.values())] for name, found in results["methods"].items()]
    return (
        "# Does the word with the greatest attribution matter?\n\n"
        "Rendered by benchmarks/studies/attributions.py, which explains it. Percent of texts, with a 95 % interval, "
        "in which leaving out that word moves the answer more than leaving out another word does on average; "
        f"{results['texts']} texts of the demo corpus, {results['split']} split.\n\n"
        f"{table(['scores', *DIMENSIONS], rows)}\n"
    )


if __name__ == "__main__":
    main()
