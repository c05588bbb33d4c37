"""Measures encoders on the tasks of the paper and writes tables and plots.

    python examples/evaluate.py --model minilm-l6 runs/carl-demo/encoder --output_dir runs/evaluation
    python examples/evaluate.py --model minilm-l6@cls minilm-l6@mean runs/carl-minilm/encoder --data_dir DIR
    python examples/evaluate.py --model 'runs/carl-{seed}/encoder' --seeds 3 --tasks va emotion --data_dir DIR

Leaves in the output folder: results.json, report.md, figures/ (PNG and SVG).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from carl_hf import CarlConfig, CarlModel
from carl_hf.commands import outputs
from carl_hf.commands.arguments import parse_script_arguments, public_command
from carl_hf.commands.environment import environment_record, start_measuring_script, use_all_cores
from carl_hf.commands.evaluate import Candidate, EvaluateArguments, comparators_of, runs_of_models
from carl_hf.data.bad_rows import Skipped
from carl_hf.encoders import load_config, load_tokenizer, resolve_encoder
from carl_hf.evaluation.comparison import compare, spread
from carl_hf.evaluation.encoder import default_cache_dir, load_text_encoder, load_va_head, split_pooling
from carl_hf.evaluation.suite import Evaluation, run_tasks
from carl_hf.evaluation.tasks import Corpora, Settings
from carl_hf.export.seen import head_trained_on, trained_on
from carl_hf.report.page import print_summary, write_report
from carl_hf.report.pictures import draw_pictures
from carl_hf.utils.atomic_files import write_json
from carl_hf.utils.devices import default_device


def measure(candidate: Candidate, args: EvaluateArguments, settings: Settings, corpora: Corpora) -> Evaluation:
    """Runs all tasks on one model; its trained head and its PTD detector are measured too, where it has them."""
    commit = candidate.commit  # of what is loaded now, not of a push meanwhile
    encoder = load_text_encoder(
        candidate.model, pooling=candidate.pooling, max_length=args.max_length, batch_size=args.batch_size,
        cache_dir=None if args.no_cache else args.cache_dir or default_cache_dir(), bf16=args.bf16,
    )  # fmt: skip
    carl = None
    if "detector" in settings.tasks and isinstance(load_config(candidate.model), CarlConfig):
        model = CarlModel.from_pretrained(resolve_encoder(candidate.model))
        carl = model.to(default_device()), load_tokenizer(candidate.model)
    result = run_tasks(
        encoder, settings, corpora, carl=carl,
        predict_va=load_va_head(candidate.model, max_length=args.max_length, bf16=args.bf16),
        trained_on=trained_on(candidate.model, corpora.emotion_files(args.emotion)),
        head_trained_on=head_trained_on(candidate.model),
    )  # fmt: skip
    result.metrics = {
        "pooling": encoder.pooling, "dimensions": encoder.width, "commit": commit, **result.metrics,
    }  # fmt: skip
    return result


def add_comparisons(
    results: dict[str, Any], evaluations: dict[str, Evaluation], runs: dict[str, list[str]], seed: int
) -> None:
    """Adds each model's gains over the first model, and the spread over runs that differ only in their seed, as far
    as they were measured."""
    first = next(iter(runs.values()))[0]
    results["comparisons"] = {
        f"{name} minus {first}": compare(evaluations[first], evaluations[name], seed=seed)
        for name in evaluations if name != first and first in evaluations
    }  # fmt: skip
    measured = {pattern: [name for name in names if name in evaluations] for pattern, names in runs.items()}
    results["spread"] = {
        pattern: {"runs": names, "figures": spread([results["models"][name] for name in names])}
        for pattern, names in measured.items() if "{seed}" in pattern and len(names) > 1
    }  # fmt: skip


@outputs.errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_script_arguments(EvaluateArguments, argv, description=__doc__)
    start_measuring_script()
    use_all_cores(args.num_threads)
    settings = Settings(
        tasks=args.tasks, data_dir=args.data_dir, seed=args.seed, va=args.va, polarity=args.polarity,
        emotion=args.emotion, protocol=args.protocol, shots=args.shots, strict=args.strict,
        columns={"text": args.text_column, "label": args.label_column}, skip_bad_rows=args.skip_bad_rows,
    )  # fmt: skip
    runs = runs_of_models(args)
    candidates = [Candidate(name, *split_pooling(name, args.pooling)) for names in runs.values() for name in names]
    comparators, missing = comparators_of(args)
    candidates += comparators
    corpora = Corpora(settings)
    output, evaluations = Path(args.output_dir), {}
    outputs.claim_output(output, resume=None, overwrite=args.overwrite_output_dir, kinds=outputs.EVALUATION)
    command = public_command("examples/evaluate.py", argv)
    run_record = {"command": command} | {k: getattr(args, k) for k in ("seed", "protocol", "max_length", "bf16")}
    if skipped := {name: Skipped.of(c.skipped).record() for name, c in corpora.emotion.items() if c.skipped}:
        run_record["skipped_rows"] = skipped
    results = {"models": {}, "failed": {}, "comparators_left_out": missing,
               "run": {**run_record, **environment_record()},
               "files": sorted({"report.md", *outputs.recorded_files(output)} - {"results.json"})}  # fmt: skip
    for number, candidate in enumerate(candidates, 1):
        print(f"[{number}/{len(candidates)}] {candidate.name}", flush=True)
        try:
            evaluations[candidate.name] = measure(candidate, args, settings, corpora)
        except (ValueError, OSError, RuntimeError, SafetensorError) as error:  # the others are measured all the same
            results["failed"][candidate.name] = str(error)
            print(f"error: {candidate.name}: {error}", file=sys.stderr, flush=True)
            continue
        if len(evaluations) == 1:  # of a run that is replaced
            outputs.remove_results(output, ["report.md", "figures"])
        results["models"][candidate.name] = evaluations[candidate.name].metrics
        write_json(output / "results.json", results)  # keeps what is measured if something fails later
    if evaluations:
        add_comparisons(results, evaluations, runs, args.seed)
        outputs.remove_results(output, ["figures"])
        results["files"] = ["report.md", outputs.DRAWN]
        write_json(output / "results.json", results)
        write_report(results, output / "report.md")  # the tables are kept if drawing fails
        plots = draw_pictures(output / "figures", results, {name: e.items for name, e in evaluations.items()})
        results["files"] = ["report.md", *outputs.figures_in(output)]
        write_json(output / "results.json", results)
        write_report(results, output / "report.md", plots)
        print_summary(results, sys.stdout)
        print(f"\nresults: {output / 'results.json'}   report: {output / 'report.md'}   figures: {output / 'figures'}")
    if results["failed"]:
        sys.exit(f"error: not measured: {', '.join(results['failed'])}")


if __name__ == "__main__":
    main()
