"""Measures encoders on the tasks of the paper and writes tables and figures.

    python examples/evaluate.py --model minilm-l6 runs/carl-demo/encoder --output_dir runs/evaluation
    python examples/evaluate.py --model minilm-l6@cls minilm-l6@mean runs/carl-minilm/encoder --data_dir DIR
    python examples/evaluate.py --model 'runs/carl-{seed}/encoder' --seeds 3 --tasks va emotion --data_dir DIR

Leaves in the output folder: results.json, report.md, figures/ (PNG and SVG).
"""

import logging
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from carl_hf import CarlModel
from carl_hf.commands.arguments import (
    environment_record,
    parse_script_arguments,
    start_measuring_script,
    use_all_cores,
)
from carl_hf.configuration_carl import CarlConfig
from carl_hf.encoders import PoolingChoice, load_config, load_tokenizer, resolve_encoder
from carl_hf.evaluation.comparators import read_comparators
from carl_hf.evaluation.comparison import compare, spread
from carl_hf.evaluation.encoder import default_cache_dir, load_text_encoder, load_va_head, split_pooling
from carl_hf.evaluation.plan import TASKS, Corpora, Settings
from carl_hf.evaluation.suite import Evaluation, run_tasks
from carl_hf.export.folder import read_record
from carl_hf.report.page import print_summary, write_report
from carl_hf.report.pictures import draw_pictures
from carl_hf.utils.atomic_files import write_json


@dataclass
class EvaluateArguments:
    model: list[str] = field(
        default_factory=lambda: ["minilm-l6"],
        metadata={
            "help": "Hub ids, folders (encoder, CARL checkpoint, sentence-transformers model) or 'minilm-l6'. "
            "NAME@cls, NAME@mean and NAME@pooler choose a pooling for one of them."
        },
    )
    tasks: list[str] = field(default_factory=lambda: list(TASKS), metadata={"help": f"Any of {', '.join(TASKS)}."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with local copies of the corpora (without: the demo corpus alone)."}
    )
    output_dir: str = field(default="runs/evaluation", metadata={"help": "Folder for results, report and figures."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the results that the folder holds."})
    pooling: PoolingChoice = field(
        default="auto",
        metadata={"help": "Pooling; 'auto': what the model's folder states, else cls."},
    )
    va: list[str] = field(
        default_factory=lambda: ["emobank", "facebook"],
        metadata={"help": "Corpora of valence and arousal; also iemocap and emotales."},
    )
    protocol: Literal["fast", "test"] = field(default="fast", metadata={"help": "SentEval's protocol for polarity."})
    polarity: list[str] = field(
        default_factory=lambda: ["mr", "cr", "sst5"], metadata={"help": "Any of mr, cr, sst5, imdb (IMDB is large)."}
    )
    emotion: list[str] = field(
        default_factory=lambda: ["goemotions-six", "goemotions-ekman", "isear", "emolit12"],
        metadata={"help": "Emotion corpora; also goemotions-28, and files with the columns text, label, maybe split."},
    )
    shots: list[int] = field(default_factory=list, metadata={"help": "Few-shot probes: training texts a class, 8 16."})
    comparators: str | None = field(
        default=None,
        metadata={"help": "YAML file that names more models, such as examples/configs/comparators.yaml."},
    )
    seeds: int | None = field(
        default=None, metadata={"help": "Number of training folders that '{seed}' in a model's name stands for."}
    )
    max_length: int = field(default=128, metadata={"help": "Tokens kept of a text."})
    batch_size: int = field(default=64, metadata={"help": "Texts encoded together."})
    seed: int = field(default=42, metadata={"help": "Of folds, splits, draws and bootstraps."})
    strict: bool = field(default=False, metadata={"help": "A corpus or comparator that is not there is an error."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for embeddings (default: below HF_HOME)."})
    no_cache: bool = field(default=False, metadata={"help": "Neither read nor keep embeddings on disk."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})


@dataclass(frozen=True)
class Candidate:
    """A model to measure: its name in the results, what to load, and its pooling."""

    name: str
    model: str
    pooling: PoolingChoice


def candidates_of(args: EvaluateArguments) -> tuple[list[Candidate], dict[str, list[str]]]:
    """The models to measure, and for each pattern with {seed} the names of its runs."""
    found: list[Candidate] = []
    patterns: dict[str, list[str]] = {}
    for name in args.model:
        model, pooling = split_pooling(name, args.pooling)
        runs = _runs_of(model, args.seeds) if "{seed}" in model else [model]
        names = [name] if runs == [model] else [run + name[len(model) :] for run in runs]
        found += [Candidate(n, run, pooling) for n, run in zip(names, runs, strict=True)]
        if "{seed}" in model:
            patterns[name] = names
    if args.seeds is not None and not patterns:
        raise ValueError("--seeds needs a model whose name holds {seed}, such as 'runs/carl-{seed}/encoder'.")
    for candidate in found:  # before any work
        load_config(candidate.model)
        load_tokenizer(candidate.model)
    if len({c.name for c in found}) < len(found):
        raise ValueError("--model names a model twice.")
    return found, patterns


def _runs_of(pattern: str, seeds: int | None) -> list[str]:
    if seeds is None or seeds < 2:
        raise ValueError(f"{pattern} holds {{seed}}: say with --seeds N how many folders it stands for, at least 2.")
    parts = Path(pattern).parts
    depth = next(i for i, part in enumerate(parts) if "{seed}" in part)
    matcher = re.compile(re.escape(parts[depth]).replace(re.escape("{seed}"), r"(\d+)"))
    parent = Path(*parts[:depth]) if depth else Path()
    numbers = sorted(int(m[1]) for path in parent.glob("*") if (m := matcher.fullmatch(path.name)))
    runs = [run for n in numbers if Path(run := pattern.replace("{seed}", str(n))).is_dir()]
    if len(runs) < seeds:
        raise ValueError(f"{pattern}: --seeds {seeds}, but there are {len(runs)} such folders.")
    return runs[:seeds]


def comparators_of(args: EvaluateArguments) -> tuple[list[Candidate], dict[str, str]]:
    """The comparators that can be had, and why the others cannot."""
    if args.comparators is None:
        return [], {}
    found, missing = [], {}
    for comparator in read_comparators(Path(args.comparators)).values():
        if comparator.name in args.model:
            raise ValueError(f"{args.comparators}: comparator {comparator.name!r} is a --model too; rename it.")
        try:
            if comparator.model is None:
                raise ValueError(comparator.note)
            load_config(comparator.model)
            load_tokenizer(comparator.model)
            found.append(Candidate(comparator.name, comparator.model, comparator.pooling))
        except ValueError as error:
            if args.strict:
                raise ValueError(f"Comparator {comparator.name}: {error}") from error
            missing[comparator.name] = str(error)
            logging.warning("Comparator %s left out: %s", comparator.name, error)
    return found, missing


def trained_on(model: str) -> list[str]:
    """The valence-arousal corpora of which the model has seen what is measured, by the record that training leaves:
    all of one without splits, of another only if its held-out parts were trained on."""
    folder = Path(resolve_encoder(model))
    for place in (folder, folder.parent / "encoder"):  # a checkpoint lies beside the export
        if (record := read_record(place)) is not None:
            origin, without_splits = record["provenance"], {"facebook", "iemocap", "emotales"}
            if origin is None:
                return []
            return [name for name in origin["corpora"] if name in without_splits or origin["trained_on_test_rows"]]
    return []


def measure(candidate: Candidate, args: EvaluateArguments, settings: Settings, corpora: Corpora) -> Evaluation:
    cache_dir = None if args.no_cache else args.cache_dir or default_cache_dir()
    encoder = load_text_encoder(
        candidate.model, pooling=candidate.pooling, max_length=args.max_length, batch_size=args.batch_size,
        cache_dir=cache_dir,
    )  # fmt: skip
    carl = None
    if "detector" in settings.tasks and isinstance(load_config(candidate.model), CarlConfig):
        model = CarlModel.from_pretrained(resolve_encoder(candidate.model))
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        carl = (model, load_tokenizer(candidate.model))
    result = run_tasks(
        encoder, settings, corpora, predict_va=load_va_head(candidate.model, max_length=args.max_length), carl=carl,
        trained_on=trained_on(candidate.model),
    )  # fmt: skip
    result.figures = {"pooling": encoder.pooling, "dimensions": encoder.width, **result.figures}
    return result


def main() -> None:
    try:
        args = parse_script_arguments(EvaluateArguments)
        start_measuring_script()
        use_all_cores(args.num_threads)
        settings = Settings(
            tasks=args.tasks, data_dir=args.data_dir, seed=args.seed, va=args.va, polarity=args.polarity,
            emotion=args.emotion, protocol=args.protocol, shots=args.shots, strict=args.strict,
        )  # fmt: skip
        if args.data_dir is not None and not Path(args.data_dir).is_dir():
            raise ValueError(f"--data_dir {args.data_dir} is no folder.")
        output = Path(args.output_dir)
        if (output / "results.json").exists() and not args.overwrite_output_dir:
            raise ValueError(
                f"--output_dir {output} holds the results of another evaluation: name another folder, or replace them "
                "with --overwrite_output_dir true."
            )
        candidates, patterns = candidates_of(args)
        others, missing = comparators_of(args)
        corpora = Corpora(settings)
    except ValueError as error:
        sys.exit(f"error: {error}")
    results: dict[str, Any] = {"models": {}, "comparators_left_out": missing, "run": run_record(args)}
    evaluations: dict[str, Evaluation] = {}
    failed: dict[str, str] = {}
    for number, candidate in enumerate(candidates + others, 1):
        print(f"[{number}/{len(candidates + others)}] {candidate.name}", flush=True)
        try:
            evaluations[candidate.name] = measure(candidate, args, settings, corpora)
        except (ValueError, OSError, RuntimeError) as error:  # the other models are measured all the same
            failed[candidate.name] = str(error)
            print(f"error: {candidate.name}: {error}", file=sys.stderr, flush=True)
            continue
        results["models"][candidate.name] = evaluations[candidate.name].figures
        write_json(output / "results.json", results)  # what is measured is kept, whatever comes after
    if evaluations:
        report(results, evaluations, patterns, output, args.seed)
    if failed:
        sys.exit(f"error: not measured: {', '.join(failed)}")


def report(
    results: dict[str, Any],
    evaluations: dict[str, Evaluation],
    patterns: dict[str, list[str]],
    output: Path,
    seed: int,
) -> None:
    """Adds comparisons and spread to the results, writes everything, and prints the summary."""
    first, *rest = evaluations
    results["comparisons"] = {
        f"{name} minus {first}": compare(evaluations[first], evaluations[name], seed=seed) for name in rest
    }
    results["spread"] = {
        pattern: {"runs": runs, "figures": spread([results["models"][run] for run in runs])}
        for pattern, runs in patterns.items()
        if all(run in evaluations for run in runs)
    }
    write_json(output / "results.json", results)
    write_report(results, output / "report.md")  # the tables stand, should a picture fail
    shutil.rmtree(output / "figures", ignore_errors=True)
    pictures = draw_pictures(output / "figures", results, {n: e.items for n, e in evaluations.items()})
    write_report(results, output / "report.md", pictures)
    print_summary(results, sys.stdout)
    print(f"\nresults: {output / 'results.json'}   report: {output / 'report.md'}   figures: {output / 'figures'}")


def run_record(args: EvaluateArguments) -> dict[str, Any]:
    """What is needed to repeat a run."""
    return {
        "command": " ".join(["examples/evaluate.py", *sys.argv[1:]]),
        "seed": args.seed,
        "protocol": args.protocol,
        "max_length": args.max_length,
        **environment_record(),
    }


if __name__ == "__main__":
    main()
