"""The command line of examples/adapt.py: its arguments, what it does and what it prints."""

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from carl_hf import Provenance, export_va_regressor, load_va_dataset
from carl_hf.commands.environment import is_faster_in_bf16
from carl_hf.commands.heads import va_regressor
from carl_hf.commands.outputs import claimed
from carl_hf.data.loading import NoSplitError, Split
from carl_hf.data.mixing import remove_overlap, rows_with_va
from carl_hf.encoders import load_classifier, load_tokenizer
from carl_hf.evaluation.valence_arousal import dimensions_of
from carl_hf.export.adapting import ALONE, FINETUNED, adapt_va_regressor
from carl_hf.export.folder import check_replaceable, read_record, record_of
from carl_hf.export.head_training import HeadTraining
from carl_hf.export.provenance import digests_of, named_digests
from carl_hf.export.seen import was_seen
from carl_hf.report.tables import plain_table
from carl_hf.utils.atomic_files import check_writable
from carl_hf.utils.fields import setting

_FAR = 0.25  # on [-1, 1]: ratings that do not reach it on both sides look like those of another scale


@dataclass
class AdaptArguments:
    labels: str | None = setting(
        None, "Rated texts: a file with text, valence and arousal, or the id of a Hub data set."
    )
    model: str = setting("runs/carl-demo", "Folder with va/, or va/ itself, or a Hub id (NAME, beside NAME-va).")
    output: str | None = setting(None, "Folder in which va/ is written.")
    scale: list[float] = setting([0.0, 1.0], "Least and greatest rating, such as 1 9.")
    text_column: str = setting("text", "Name of the column with the texts.")
    valence_column: str = setting("valence", "Its name.")
    arousal_column: str = setting("arousal", "Its name.")
    skip_bad_rows: bool = setting(False, "Leave out rows that cannot be read, instead of refusing the file.")
    licence: str | None = setting(None, "Licence of the export, as the Hub writes it (default: follows the texts).")
    overwrite: bool = setting(False, "Replace the export in the output folder.")
    num_threads: int | None = setting(None, "CPU threads (default: all cores).")
    seed: int = setting(42, "Seed of the folds and of fine-tuning.")

    def __post_init__(self):
        if self.labels is None:
            raise ValueError("There are no rated texts: name a file with the columns text, valence and arousal.")
        if self.output is None:
            raise ValueError("--output is missing: name a folder, in which va/ is written.")
        if len(self.scale) != 2:
            raise ValueError(f"--scale needs two numbers, the least and the greatest rating, got {self.scale}.")
        Provenance(licence=self.licence)  # a ValueError for what is no licence's name
        check_writable(self.output, "--output")
        self.check_output()

    def check_output(self) -> None:
        """Raises a ValueError if the folder holds what is not to be replaced."""
        folder = Path(self.output) / "va"
        check_replaceable(folder)
        if folder.exists() and not self.overwrite:
            raise ValueError(f"--output {self.output} holds a va/: name another, or replace it with --overwrite true.")


def adapt(args: AdaptArguments) -> tuple[Path, dict[str, Any]]:
    """Adapts `args.model` to the rated texts and exports it.

    Returns:
        the folder, and its record.

    Raises:
        ValueError: for a model or texts that cannot be used, for texts that the model was trained on, and for a folder
            that another run is writing to.
    """
    with claimed(Path(args.output), "--output"):
        args.check_output()  # once more: nobody else writes now
        return _adapt(args)


def _adapt(args: AdaptArguments) -> tuple[Path, dict[str, Any]]:
    columns = {"text": args.text_column, "valence": args.valence_column, "arousal": args.arousal_column}
    name = va_regressor(args.model)
    record = record_of(name) or {}
    if was_seen(args.labels, record):
        raise ValueError(
            f"{args.model} was trained on {args.labels}: its errors there say nothing of new texts, so rate others."
        )
    model, tokenizer = load_classifier(name), load_tokenizer(name)
    rated = _rated_texts(args, columns, dominance=model.config.num_labels > 2)
    for dimension in dimensions_of(rated) if len(rated) else ():
        ends = {"above": max(rated[dimension]), "below": -min(rated[dimension])}
        for side, end in ends.items():
            if end < _FAR:
                rating = sum(args.scale) / 2 + (args.scale[1] - args.scale[0]) / 2 * (end if side == "above" else -end)
                logging.warning("No rating of %s is %s %g: is --scale %g %g theirs?",
                                dimension, side, rating, *args.scale)  # fmt: skip
    length = min(record.get("max_length", 128), tokenizer.model_max_length)
    training = HeadTraining(batch_size=16, seed=args.seed, bf16=is_faster_in_bf16())
    found = adapt_va_regressor(model, tokenizer, rated, training=training, max_length=length)
    provenance = _provenance(record, name, args.labels, found["chosen"])
    folder = export_va_regressor(
        model, tokenizer, Path(args.output) / "va", max_length=length, adaptation=found,
        provenance=provenance if args.licence is None else replace(provenance, licence=args.licence),
        corpora=[*(record.get("head") or {}).get("corpora", []), args.labels],
    )  # fmt: skip
    return folder, read_record(folder)


def _rated_texts(args: AdaptArguments, columns: Mapping[str, str], *, dominance: bool) -> Dataset:
    """The texts with valence and arousal, but for those of a split "test", if there are others."""

    def read(split: Split) -> Dataset:
        return load_va_dataset(
            args.labels, split=split, scale=(args.scale[0], args.scale[1]), columns=columns,
            skip_bad_rows=args.skip_bad_rows, dominance=dominance,
        )  # fmt: skip

    rated = rows_with_va(read("all"))
    with contextlib.suppress(NoSplitError):
        test = read("test")["text"]
        if len(rest := remove_overlap(rated, [test])):
            logging.warning("%s: %d texts are of the split test, and left out.", args.labels, len(rated) - len(rest))
            rated = rest
    if "weight" in rated.column_names:
        logging.warning("adapt does not use the column weight: each text counts the same.")
    return rated


def print_adaptation(record: Mapping[str, Any], scale: Sequence[float]) -> None:
    """What each way gave by cross-validation, which was chosen, and what error to expect, on the scale of the
    ratings."""
    found, (least, greatest) = record["head"]["adaptation"], scale
    size, names = greatest - least, record["head"]["labels"]
    rows = [
        [way, *(text for name in names for text in _cells(metrics[name], size))]
        for way, metrics in found["ways"].items()
    ]
    print(f"\n{record['head']['corpora'][-1]}: {found['texts']} texts, {found['folds']}-fold cross-validation; "
          f"errors on the scale from {least:g} to {greatest:g}")  # fmt: skip
    print(plain_table(["", *(f"{name}: {what}" for name in names for what in ("mean error", "r"))], rows))
    own, widths = found["ways"][found["chosen"]], record["intervals"]
    expected = ", ".join(
        f"{name} {size * own[name]['mae']:.2g} (nine in ten at most {size * widths[name]:.2g})" for name in names
    )
    print(f"\nChosen: {found['chosen']}, the simplest way within one standard error of the best.")
    print(f"Expected mean error on texts like these: {expected}.")
    if found["chosen"] == ALONE:
        print("No way was better beyond chance: the answers are those of before, the intervals are new.")
    for name in names:
        if (found["ways"][ALONE][name]["pearson"] or 0) < -1.96 / math.sqrt(found["different_texts"]):
            print(f"Your ratings of {name} run against the model's answers: are they coded the other way round? "
                  "If the chosen way follows them, so do the answers now.")  # fmt: skip
        if (own[name]["pearson"] or 0) < 1.96 / math.sqrt(found["different_texts"]):
            print(f"The answers do not follow your ratings of {name} beyond chance: rate more, or do not use them.")


def _cells(metrics: Mapping[str, Any], size: float) -> list[str]:
    return [f"{size * metrics['mae']:.3g}", "undefined" if metrics["pearson"] is None else f"{metrics['pearson']:.3f}"]


def _provenance(record: Mapping[str, Any], name: str, labels: str, chosen: str) -> Provenance:
    """Of the model as it was; with the rated texts' file, if the answers depend on it."""
    earlier = record.get("provenance")
    if earlier is None:
        before = Provenance(base_model=name, method=None)
    else:
        before = Provenance(**{f.name: earlier[f.name] for f in fields(Provenance) if f.name in earlier})
    # of the files that the head has seen in part, too
    fitted = (record.get("head") or {}).get("files", {})
    before = replace(before, files=named_digests(before.files.items(), fitted.items()))
    if chosen == ALONE:
        stated = (earlier or {}).get("data_licence", before.licence) != before.licence
        return before if stated else replace(before, licence=None)
    if chosen == FINETUNED:
        before = replace(before, corpora=[*before.corpora, labels], method=before.method or "regression")
    files = named_digests(before.files.items(), digests_of([labels]).items())
    return replace(before, files=files, licence=None, base_licence=before.licence)
