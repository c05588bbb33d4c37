"""Do the intervals of a valence-arousal head hold what they state?

    python benchmarks/studies/coverage.py --model runs/carl-minilm --corpus emobank --others demo --data_dir DIR

The corpus's validation and test texts together are divided at random into a half that calibrates and a half that is
tested: the mean and the standard deviation, over the divisions, of the share of labels within the interval, and its
half-width. Of the other corpora: the share of their test texts (or all) within the intervals that the model states.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from carl_hf import AffectPipeline, load_va_dataset
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import use_all_cores
from carl_hf.data.loading import NoSplitError
from carl_hf.data.mixing import rows_with_va
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of
from carl_hf.export.intervals import LEVEL, conformal_intervals
from carl_hf.report.tables import fraction, table
from carl_hf.utils.fields import setting


@dataclass
class CoverageArguments:
    model: str = setting("runs/carl-minilm", "Run with va/, or a va/.")
    corpus: str = setting("emobank", "Corpus with splits, whose training texts the model has seen at most.")
    others: list[str] = setting([], "Further corpora.")
    divisions: int = setting(20, "Random divisions into halves.")
    data_dir: str | None = setting(None, "Folder with local copies of the corpora.")
    num_threads: int | None = setting(None, "CPU threads (default: all cores).")
    seed: int = setting(42, "Seed of the divisions.")


def divided(answers: np.ndarray, truth: np.ndarray, divisions: int, seed: int) -> dict[str, np.ndarray]:
    """Dimension -> (divisions, 2): the coverage and the half-width of each division."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(divisions):
        calibration, test = np.array_split(rng.permutation(len(truth)), 2)
        widths = conformal_intervals(answers[calibration], truth[calibration], DIMENSIONS)
        if widths is None:
            raise ValueError(f"{len(truth)} texts are too few to divide.")
        width = np.array([widths[name] for name in DIMENSIONS])
        held = (np.abs(answers[test] - truth[test]) <= width).mean(0)
        found.append(np.stack([held, width], axis=-1))
    return dict(zip(DIMENSIONS, np.stack(found, axis=1), strict=True))


def main() -> None:
    try:
        args = parse_script_arguments(CoverageArguments)
        use_all_cores(args.num_threads)
        pipeline = AffectPipeline.from_pretrained(args.model, intervals=bool(args.others))

        def read(corpus: str, *splits: Any) -> tuple[np.ndarray, np.ndarray]:
            parts = [rows_with_va(load_va_dataset(corpus, split=s, data_dir=args.data_dir)) for s in splits]
            texts = [text for part in parts for text in part["text"]]
            truth = np.concatenate([labels_of(part)[:, :2] for part in parts])
            return pipeline(texts)[list(DIMENSIONS)].to_numpy(float), (truth + 1) / 2

        rows = []
        for name, found in divided(*read(args.corpus, "validation", "test"), args.divisions, args.seed).items():
            cells = [f"{fraction(found[:, k].mean())} ± {fraction(found[:, k].std(ddof=1))}" for k in range(2)]
            rows.append([args.corpus, name, *cells])
        for corpus in args.others:
            try:
                answers, truth = read(corpus, "test")
            except NoSplitError:
                answers, truth = read(corpus, "all")
            for k, name in enumerate(DIMENSIONS):
                width = pipeline.widths[name]
                rows.append([corpus, name, fraction((np.abs(answers - truth)[:, k] <= width).mean()), fraction(width)])
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(table(["texts of", "dimension", f"within the {100 * LEVEL:.0f} % interval", "half-width"], rows))


if __name__ == "__main__":
    main()
