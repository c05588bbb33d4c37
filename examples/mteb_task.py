"""EmoBank's valence and arousal as an MTEB regression task, and a sentence-transformers model measured on it.

    python examples/mteb_task.py --model runs/carl-demo/encoder --data_dir DIR

MTEB's protocol: a probe on 2,048 training texts, drawn ten times, measured on the test split. The probe is a ridge
regression that chooses its strength by leave-one-out: MTEB's default, a regression without penalty, fits noise where
a model has about as many dimensions as the draw has texts. Its r is not that of examples/evaluate.py, whose probe
sees all training texts. Needs `pip install mteb sentence-transformers`; mteb needs Python 3.11.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from carl_hf import load_va_dataset
from carl_hf.data.corpora import CORPORA
from carl_hf.evaluation.agreement import agreement

try:
    import mteb
    from mteb.abstasks.regression import AbsTaskRegression
    from mteb.abstasks.task_metadata import TaskMetadata
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import RidgeCV
except ImportError as error:
    sys.exit(
        f"error: this script needs mteb 2 and sentence-transformers ({error}): pip install mteb sentence-transformers"
    )

DIMENSIONS = ("valence", "arousal")
FIGURES = ("pearson", "spearman", "ccc", "mae", "rmse", "r2", "kendalltau")  # the first three are ours


class EmoBankRegression(AbsTaskRegression):
    """Valence and arousal in [-1, 1] as the two subsets of one task.

    Args:
        data_dir: folder with a local copy of EmoBank (DIR/emobank/emobank.csv); without one it is fetched from the
            authors' repository. max_texts: of each split, so many at most (the first); None for all.
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
        parts = {split: load_va_dataset("emobank", split=split, data_dir=self.data_dir) for split in ("train", "test")}
        if self.max_texts is not None:
            parts = {split: part.take(min(self.max_texts, len(part))) for split, part in parts.items()}
        self.dataset = {
            dimension: DatasetDict(
                {split: part.select_columns(["text", dimension]).rename_column(dimension, "value")
                 for split, part in parts.items()}
            )
            for dimension in DIMENSIONS
        }  # fmt: skip
        self.data_loaded = True

    def _calculate_scores(self, y_test: Any, y_pred: Any) -> dict[str, float]:
        """MTEB's scores, and r, rho and CCC."""
        figures = agreement([[y] for y in y_pred], [[y] for y in y_test], ["value"])["value"]
        return {**super()._calculate_scores(y_test, y_pred), **{name: figures[name] for name in FIGURES[:3]}}


def _number(value: float) -> float | None:
    """None for a figure that is undefined, such as r of a constant prediction."""
    return float(value) if math.isfinite(value) else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=110)
    )
    parser.add_argument("--model", required=True, help="Folder or Hub id that SentenceTransformer loads.")
    parser.add_argument("--data_dir", help="Folder with local copies of the corpora (without: EmoBank is fetched).")
    parser.add_argument("--output", default="mteb_emobank.json", help="JSON file for scores (default: %(default)s).")
    parser.add_argument("--max_texts", type=int, help="Texts of each split at most (default: all).")
    args = parser.parse_args()
    task = EmoBankRegression(args.data_dir, args.max_texts)
    try:
        task.load_data()
        if not Path(args.model).is_dir() and args.model.count("/") != 1:
            raise ValueError(f"--model {args.model}: there is no such folder, and it is no Hub id (owner/name).")
        model = SentenceTransformer(args.model, model_kwargs={"use_safetensors": True})
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    done = mteb.evaluate(model, task, cache=None, show_progress_bar=False).task_results[0]
    scores = {entry["hf_subset"]: {name: _number(entry[name]) for name in FIGURES} for entry in done.scores["test"]}
    result = {
        "model": args.model,
        "task": task.metadata.name,
        "mteb": mteb.__version__,
        "texts": {split: len(part) for split, part in task.dataset[DIMENSIONS[0]].items()},
        "experiments": task.n_experiments,
        "scores": scores,
    }
    text = json.dumps(result, indent=2, allow_nan=False)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
