"""The command line of examples/finetune_emotion.py: its arguments and data, and what it records and prints."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset
from transformers import Trainer

from carl_hf import CarlTrainingArguments, Provenance
from carl_hf.commands.arguments import public_command
from carl_hf.commands.environment import environment_record
from carl_hf.commands.heads import HeadArguments, settled_pooling
from carl_hf.data.bad_rows import Skipped
from carl_hf.data.labelled import EMOTION, ClassCorpus, read_emotion
from carl_hf.data.mixing import class_names
from carl_hf.data.splits import split_rows
from carl_hf.evaluation.emotion import class_dataset
from carl_hf.evaluation.statistics import few_texts
from carl_hf.export.folder import with_earlier_training
from carl_hf.export.head_training import HeadTraining
from carl_hf.export.provenance import held_out_in_part
from carl_hf.export.seen import has_seen
from carl_hf.export.task_heads import check_classes
from carl_hf.report.tables import plain_table
from carl_hf.utils.fields import setting


@dataclass
class FinetuneArguments(HeadArguments):
    encoder: str = setting("minilm-l6", "Encoder: Hub id, folder of an export, 'minilm-l6' or 'mpnet-base'.")
    emoji: bool = setting(
        True, "Give an encoder that is trained, and whose tokenizer reads emoji as unknown, a token for each."
    )
    corpus: str = setting(
        "demo", f"Texts with class labels: demo, {', '.join(EMOTION)}, a file, or the id of a Hub data set."
    )
    text_column: str = setting("text", "Its name in a file or Hub data set.")
    label_column: str = setting("label", "Its name in a file or Hub data set.")
    skip_bad_rows: bool = setting(
        False,
        "Leave out the rows of a file or Hub data set that cannot be read or have no text or label, and record how "
        "many, instead of refusing it.",
    )
    frozen: bool = setting(False, "Fit only the linear head; the encoder stays as it is.")
    patience: int = setting(
        2,
        "Evaluations without a better validation accuracy until training stops; 0, or without "
        "--load_best_model_at_end true: never.",
    )

    def __post_init__(self):
        if self.patience < 0:
            raise ValueError(f"--patience must be zero or positive, got {self.patience}.")
        if self.corpus in ("demo", *EMOTION) and (self.text_column, self.label_column) != ("text", "label"):
            raise ValueError(f"--text_column and --label_column are for files and Hub data sets, not {self.corpus}.")

    def head_training(self, args: CarlTrainingArguments, head: Literal["va", "emotion"]) -> HeadTraining | None:
        return None if self.frozen else super().head_training(args, head)

    def settle(self, args: CarlTrainingArguments) -> None:
        """Chooses the pooling where it is not given, and refuses training arguments that do not go with this script: a
        ValueError says what to do."""
        self.pooling = settled_pooling(self.pooling, self.encoder)
        if args.push_to_hub:
            raise ValueError("Publish what is finished: carl-hf push --export DIR --head emotion.")
        if self.frozen and args.resume_from_checkpoint:
            raise ValueError("With --frozen nothing is trained, and nothing resumed.")

    def read_corpus(self) -> ClassCorpus:
        columns = {"text": self.text_column, "label": self.label_column}
        corpus = read_emotion(self.corpus, self.data_dir, columns, skip_bad_rows=self.skip_bad_rows)
        check_classes(corpus)
        return corpus

    def provenance(self, method: str | None, corpus: ClassCorpus) -> Provenance:
        """For the exports; `method` is None for an encoder that stays as it was. One that was trained on texts of the
        corpus's test part before is said to be."""
        settings = {"pooling": self.pooling, "dropout": self.dropout, "emoji": self.emoji}
        settings = {name: value for name, value in settings.items() if value not in ("cls", None, True)}
        provenance = Provenance(
            base_model=self.encoder, corpora=[] if method is None else [self.corpus], licence=self.licence,
            language=self.language, method=method, settings=settings,
            trained_on_test_rows=has_seen(self.encoder, self.corpus, corpus),
            partly={} if method is None else held_out_in_part([self.corpus]),
        )  # fmt: skip
        return with_earlier_training(provenance, self.encoder)


def training_splits(corpus: ClassCorpus) -> tuple[Dataset, Dataset]:
    """Training texts, and the validation texts whose label occurs in training; where texts may have several classes,
    those that have one."""
    rows, validation, _ = split_rows(corpus)
    train, validation = class_dataset(corpus, rows), class_dataset(corpus, validation)
    if len(train) < len(rows):
        logging.info("The encoder is trained on the texts with one class, %d of %d.", len(train), len(rows))
    known = set(class_names(train))
    return train, validation.select([i for i, label in enumerate(validation["label"]) if label in known])


def run_record(
    script: FinetuneArguments,
    args: CarlTrainingArguments,
    argv: Sequence[str] | None,
    corpus: ClassCorpus,
    trainer: Trainer | None,
) -> dict[str, Any]:
    """What is needed to repeat a run, for results.json. `trainer` is None if nothing was trained."""
    record = {
        "command": public_command("examples/finetune_emotion.py", argv), "encoder": script.encoder,
        "objectives": None if trainer is None else args.weights, "seed": args.seed,
        "steps": 0 if trainer is None else trainer.state.global_step,
        "best_step": None if trainer is None else trainer.state.best_global_step,
        "class_weights": args.class_weights, "bf16": args.bf16,
        "trained_on_test_rows": has_seen(script.encoder, script.corpus, corpus), **environment_record(),
    }  # fmt: skip
    if corpus.skipped:
        record["skipped_rows"] = {script.corpus: Skipped.of(corpus.skipped).record()}
    return record


def print_results(results: dict[str, Any]) -> None:
    """Prints test accuracy, macro F1 and circular correlation of every model, and the verdict."""
    exported = results["exported_classifier"]
    exported = {m: exported[m]["value"] for m in exported} | {
        f"{m}_interval": exported[m]["interval"] for m in exported
    }
    rows, texts = [], next(iter(results["models"].values()))["texts"]
    for name, report in [*results["models"].items(), ("exported classifier", exported)]:
        low, high = report["accuracy_interval"]
        f1_low, f1_high = report["f1_interval"]
        accuracy = f"{report['accuracy']:.1f} % [{low:.1f}, {high:.1f}]"
        f1 = f"{report['f1']:.3f} [{f1_low:.3f}, {f1_high:.3f}]"
        circle = report.get("circular_order", {}).get("circular_correlation")
        rows.append([name, accuracy, f1, "" if circle is None else f"{circle:.3f}"])
    print(f"\n{results['corpus']}: {texts} test texts, {len(results['classes'])} classes [95 % interval]")
    exact = "confusion" not in next(iter(results["models"].values()))  # texts may have several classes
    print(plain_table(["", "exactly right" if exact else "accuracy", "macro F1", "circular r"], rows))
    note = few_texts(next(iter(results["models"].values())).get("smallest_class"))
    if note:
        print(f"{note[0].upper()}{note[1:]}.")
    if results["run"]["trained_on_test_rows"]:
        print("The encoder was trained on these test texts before: this is no measure for new ones.")
    if "verdict" in results:
        print(f"\n{results['verdict']}\n")
