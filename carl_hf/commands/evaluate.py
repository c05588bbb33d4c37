"""The command line of examples/evaluate.py: its arguments, and the models that they name."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from carl_hf.commands.outputs import EVALUATION, check_output_dir
from carl_hf.encoders import PoolingChoice, load_config, load_tokenizer, resolve_encoder
from carl_hf.encoders.hub_files import commit_of
from carl_hf.evaluation.comparators import read_comparators
from carl_hf.evaluation.encoder import split_pooling
from carl_hf.evaluation.tasks import TASKS
from carl_hf.utils.fields import setting


@dataclass
class EvaluateArguments:
    model: list[str] = setting(
        ["minilm-l6"],
        "Hub ids, folders (encoder, CARL checkpoint, sentence-transformers model), 'minilm-l6', 'mpnet-base'. "
        "NAME@cls, NAME@mean and NAME@pooler choose a pooling for one of them.",
    )
    tasks: list[str] = setting([*TASKS], f"Any of {', '.join(TASKS)}.")
    data_dir: str | None = setting(None, "Folder with the corpora (without: only the demo corpus).")
    output_dir: str = setting("runs/evaluation", "Folder for results, report and plots.")
    overwrite_output_dir: bool = setting(False, "Replace the results in the folder.")
    pooling: PoolingChoice = setting("auto", "Pooling; 'auto': what the model's folder states, else cls.")
    va: list[str] = setting(["emobank", "facebook"], "Valence-arousal corpora; also iemocap and emotales.")
    protocol: Literal["fast", "test"] = setting("fast", "SentEval's protocol for polarity.")
    polarity: list[str] = setting(["mr", "cr", "sst5"], "Any of mr, cr, sst5, imdb (IMDB is large).")
    emotion: list[str] = setting(
        ["goemotions-six", "goemotions-ekman", "isear", "emolit12"],
        "Emotion corpora; also goemotions-28, and files with the columns text, label and optionally split.",
    )
    text_column: str = setting("text", "Name of the column with the texts, in files.")
    label_column: str = setting("label", "Name of the column with the class labels, in files.")
    skip_bad_rows: bool = setting(False, "Leave out rows of files that cannot be read, instead of refusing the file.")
    shots: list[int] = setting([], "Training texts per class of few-shot probes, such as 8 16.")
    comparators: str | None = setting(None, "YAML file with more models, such as examples/configs/comparators.yaml.")
    seeds: int | None = setting(None, "Number of runs that '{seed}' in a model's name stands for.")
    max_length: int = setting(128, "Tokens to keep of a text.")
    batch_size: int = setting(64, "Texts in a batch.")
    bf16: bool = setting(False, "Compute vectors, and the answers of a head, in bfloat16 (autocast).")
    seed: int = setting(42, "Random seed of folds, splits, draws and bootstraps.")
    strict: bool = setting(False, "Treat a missing corpus or comparator as an error.")
    cache_dir: str | None = setting(None, "Folder for cached embeddings (default: below HF_HOME).")
    no_cache: bool = setting(False, "Do not read or write embeddings on disk.")
    num_threads: int | None = setting(None, "CPU threads (default: all cores).")

    def __post_init__(self):
        if self.data_dir is not None and not Path(self.data_dir).is_dir():
            raise ValueError(f"--data_dir {self.data_dir} is not a folder.")
        check_output_dir(self.output_dir, resume=False, overwrite=self.overwrite_output_dir, kinds=EVALUATION)


@dataclass(frozen=True)
class Candidate:
    """A model to measure and its name in the results. A ValueError if there is no such model."""

    name: str
    model: str
    pooling: PoolingChoice

    def __post_init__(self):
        load_config(self.model)
        load_tokenizer(self.model)

    @property
    def commit(self) -> str | None:
        """Of a model on the Hub."""
        return commit_of(resolve_encoder(self.model))


def runs_of_models(args: EvaluateArguments) -> dict[str, list[str]]:
    """The --model arguments, each with the names of the runs that its {seed} stands for, or else only its own name."""
    if args.seeds is not None and not any("{seed}" in name for name in args.model):
        raise ValueError("--seeds needs a model whose name holds {seed}, such as 'runs/carl-{seed}/encoder'.")
    runs = {name: _runs(name, args.seeds) if "{seed}" in name else [name] for name in args.model}
    names = [run for name in args.model for run in runs[name]]
    if len({*names}) < len(names):
        raise ValueError("--model names a model twice.")
    return runs


def _runs(name: str, seeds: int | None) -> list[str]:
    if seeds is None or seeds < 2:
        raise ValueError(f"{name} holds {{seed}}: say with --seeds N how many folders it stands for, at least 2.")
    model, _ = split_pooling(name)
    parts = Path(model).parts
    depth = next(i for i, part in enumerate(parts) if "{seed}" in part)
    matcher = re.compile(re.escape(parts[depth]).replace(re.escape("{seed}"), r"(\d+)"))
    numbers = [m[1] for path in Path(*parts[:depth]).glob("*") if (m := matcher.fullmatch(path.name))]
    folders = [model.replace("{seed}", number) for number in sorted(numbers, key=int)]
    runs = [folder + name.removeprefix(model) for folder in folders if Path(folder).is_dir()]
    if len(runs) < seeds:
        raise ValueError(f"{name}: --seeds {seeds}, but there are {len(runs)} such folders.")
    return runs[:seeds]


def comparators_of(args: EvaluateArguments) -> tuple[list[Candidate], dict[str, str]]:
    """The comparators that can be loaded, and why the others cannot."""
    found, missing = [], {}
    for comparator in read_comparators(args.comparators).values() if args.comparators else ():
        if comparator.name in args.model:
            raise ValueError(f"{args.comparators}: comparator {comparator.name!r} is a --model too; rename it.")
        try:
            if comparator.model is None:
                raise ValueError(comparator.note)
            found.append(Candidate(comparator.name, comparator.model, comparator.pooling))
        except ValueError as error:
            if args.strict:
                raise ValueError(f"Comparator {comparator.name}: {error}") from error
            missing[comparator.name] = str(error)
            logging.warning("Comparator %s left out: %s", comparator.name, error)
    return found, missing
