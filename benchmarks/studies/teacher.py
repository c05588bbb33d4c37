"""Has a trained model rate texts without ratings, for a smaller encoder to be trained on.

    python benchmarks/studies/teacher.py --model runs/carl-mpnet/va --data_dir DIR --output runs/teacher.csv

The texts are GoEmotions' training texts of at least four words, without what any recipe is measured on. Their ratings
are the model's, on its scale from 0 to 1; their weight in training is half of a rated text's.
"""

import sys
from dataclasses import dataclass, field

import datasets
import numpy as np
import pandas as pd
from development import held_out_texts

from carl_hf import AffectPipeline
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import use_all_cores
from carl_hf.data.labelled import read_emotion
from carl_hf.data.mixing import remove_overlap
from carl_hf.data.splits import split_rows

FEWEST_WORDS = 4


@dataclass
class TeacherArguments:
    model: str = field(default="runs/carl-mpnet/va", metadata={"help": "The rater: an exported va/ folder."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with local copies of the corpora."})
    texts: int = field(default=24_000, metadata={"help": "Texts to rate, drawn at random."})
    weight: float = field(default=0.5, metadata={"help": "Weight of these texts in training."})
    seed: int = field(default=0, metadata={"help": "Random seed."})
    output: str = field(default="runs/teacher.csv", metadata={"help": "The table: text, valence, arousal, weight."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})


def main() -> None:
    try:
        args = parse_script_arguments(TeacherArguments)
        use_all_cores(args.num_threads)
        corpus = read_emotion("goemotions-28", args.data_dir)
        texts = datasets.Dataset.from_dict({"text": corpus.part(split_rows(corpus)[0])[0]})
        texts = list(dict.fromkeys(remove_overlap(texts, held_out_texts(args.data_dir))["text"]))
        long_enough = [text for text in texts if len(text.split()) >= FEWEST_WORDS]
        chosen = np.random.default_rng(args.seed).permutation(len(long_enough))[: args.texts]
        rated = [long_enough[row] for row in chosen]
        answers = AffectPipeline.from_pretrained(args.model)(rated)
    except ValueError as error:
        sys.exit(f"error: {error}")
    table = pd.DataFrame({"text": rated, **answers[["valence", "arousal"]], "weight": args.weight})
    table.to_csv(args.output, index=False)
    print(f"{len(table)} texts: {args.output}")


if __name__ == "__main__":
    main()
