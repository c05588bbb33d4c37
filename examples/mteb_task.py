"""Measures a sentence-transformers model on EmoBank's valence and arousal, as an MTEB regression task.

    python examples/mteb_task.py --model runs/carl-demo/encoder --data_dir DIR

MTEB's protocol: a probe on 2,048 training texts, drawn ten times, measured on the test split. The probe is a ridge
regression whose penalty is chosen by leave-one-out. (MTEB's default, a regression without penalty, fits noise if a
model has about as many dimensions as the draw has texts.) Its r differs from that of examples/evaluate.py, whose probe
uses all training texts. Needs `pip install mteb sentence-transformers`; mteb needs Python 3.11.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from carl_hf import load_va_dataset
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.mteb import MtebArguments
from carl_hf.commands.outputs import errors_in_one_line
from carl_hf.data.corpora import CORPORA
from carl_hf.encoders import load_sentence_transformer
from carl_hf.evaluation.statistics import agreement
from carl_hf.utils.atomic_files import write_json

try:
    import mteb
    from mteb.abstasks.regression import AbsTaskRegression
    from mteb.abstasks.task_metadata import TaskMetadata
    from sklearn.linear_model import RidgeCV
except ImportError as error:
    sys.exit(
        f"error: this script needs mteb 2 and sentence-transformers ({error}): pip install mteb sentence-transformers"
    )

DIMENSIONS = ("valence", "arousal")
METRICS = ("pearson", "spearman", "ccc", "mae", "rmse", "r2", "kendalltau")  # the first three are ours


class EmoBankRegression(AbsTaskRegression):
    """Valence and arousal in [-1, 1] as the two subsets of one task.

    Args:
        data_dir: folder with a local copy of EmoBank (DIR/emobank/emobank.csv); without one it is downloaded from the
            authors' repository. max_texts: use only the first texts of each split; None for all.
    """

    metadata = TaskMetadata(
        name="EmoBankRegression",
        description="Valence and arousal of English sentences, rated by readers and writers; official test split.",
        reference="https://github.com/JULIELab/EmoBank",
        dataset={"path": "JULIELab/EmoBank", "revision": CORPORA["emobank"].revision},  # on GitHub: see load_data
        type="Regression",
        category="t2c",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs={dimension: ["eng-Latn"] for dimension in DIMENSIONS},
        main_score="pearson",
        domains=["News", "Blog", "Fiction", "Written"],
        task_subtypes=["Sentiment/Hate speech"],
        license="cc-by-sa-4.0",
        annotations_creators="human-annotated",
        dialect=[],
        sample_creation="found",
        bibtex_citation=r"""
@inproceedings{buechel2017emobank,
  author = {Buechel, Sven and Hahn, Udo},
  booktitle = {Proceedings of the 15th Conference of the European Chapter of the
    Association for Computational Linguistics},
  title = {EmoBank: Studying the Impact of Annotation Perspective and Representation Format on
    Dimensional Emotion Analysis},
  year = {2017}
}
""",
    )

    evaluator_model = RidgeCV(alphas=10.0 ** np.arange(-3, 4))

    def __init__(self, data_dir: str | None = None, max_texts: int | None = None, seed: int = 42):
        super().__init__(seed=seed)
        self.data_dir, self.max_texts = data_dir, max_texts

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:  # MTEB's signature
        splits = {name: load_va_dataset("emobank", split=name, data_dir=self.data_dir) for name in ("train", "test")}
        if self.max_texts is not None:
            splits = {name: split.take(min(self.max_texts, len(split))) for name, split in splits.items()}
        self.dataset = {
            dimension: DatasetDict(
                {name: split.select_columns(["text", dimension]).rename_column(dimension, "value")
                 for name, split in splits.items()}
            )
            for dimension in DIMENSIONS
        }  # fmt: skip
        self.data_loaded = True

    def _calculate_scores(self, y_test: Any, y_pred: Any) -> dict[str, float]:
        """MTEB's scores, with our Pearson r, Spearman rho and CCC."""
        ours = agreement([[y] for y in y_pred], [[y] for y in y_test], ["value"])["value"]
        return {**super()._calculate_scores(y_test, y_pred), **{name: ours[name] for name in METRICS[:3]}}


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_script_arguments(MtebArguments, argv, description=__doc__)
    task = EmoBankRegression(args.data_dir, args.max_texts)
    task.load_data()
    model = load_sentence_transformer(args.model)
    measured = mteb.evaluate(model, task, cache=None, show_progress_bar=False).task_results[0].scores["test"]
    result = {
        "model": args.model,
        "task": task.metadata.name,
        "mteb": mteb.__version__,
        "texts": {name: len(split) for name, split in task.dataset[DIMENSIONS[0]].items()},
        "experiments": task.n_experiments,
        "scores": {  # null: undefined, such as the r of a constant prediction
            row["hf_subset"]: {name: row[name] if math.isfinite(row[name]) else None for name in METRICS}
            for row in measured
        },
    }
    write_json(Path(args.output), result)
    print(Path(args.output).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
