"""Trains a CARL encoder and measures it before and after.

    accelerate launch examples/pretrain.py                     # minilm-l6 on the bundled demo corpus, minutes on a CPU
    accelerate launch examples/pretrain.py --config examples/configs/carl-minilm.yaml --data_dir DIR
    accelerate launch examples/pretrain.py --config examples/configs/carl-roberta.yaml
    accelerate launch examples/pretrain.py --corpora my.csv --scale 1 9 --output_dir out/mine

Leaves in the output folder: checkpoint-*/ (to resume from), results.json, figures/, and for examples/push_to_hub.py
encoder/ (for AutoModel.from_pretrained), va/ (a valence-arousal regressor) and, from corpora with emotion labels,
emotion/ (a classifier).
"""

import copy
import dataclasses
import functools
import logging
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

import carl_hf
import carl_hf.data.corpora
import carl_hf.report.plots
from carl_hf import (
    CarlModel,
    CarlTrainer,
    CarlTrainingArguments,
    Provenance,
    export_emotion_classifier,
    export_encoder,
    export_va_regressor,
    load_va_dataset,
    push_export,
)
from carl_hf.commands.arguments import parse_arguments, public_command
from carl_hf.commands.environment import environment_record, leave_at_once, start_measuring_script, use_all_cores
from carl_hf.commands.outputs import prepare_output, remove_results, train_or_exit
from carl_hf.data.bad_rows import Skipped, skipped_record
from carl_hf.data.label_spaces import read_label_space
from carl_hf.data.labelled import EMOTION, ClassCorpus, read_emotion
from carl_hf.data.loading import Normalization, NoSplitError, find_bad_rows
from carl_hf.data.mixing import class_names, mix_datasets, remove_overlap, rows_with_va, va_from_class_labels
from carl_hf.data.splits import split_rows
from carl_hf.data.streaming import stream_va_dataset
from carl_hf.encoders import Pooling, embed_poolings, load_encoder, load_tokenizer
from carl_hf.evaluation.emotion import class_dataset
from carl_hf.evaluation.statistics import pearson
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of, ridge_predictions, va_gain, va_metrics
from carl_hf.export.cards import va_results
from carl_hf.export.folder import with_earlier_training
from carl_hf.export.provenance import public_corpus_name
from carl_hf.export.task_heads import FEWEST_TEXTS, check_classes
from carl_hf.momentum import update_target
from carl_hf.objectives import describe_objectives
from carl_hf.report.tables import plain_table
from carl_hf.utils.atomic_files import write_json
from carl_hf.utils.progress import show_progress

POOLINGS: tuple[Pooling, ...] = ("cls", "mean")
STREAMED_TEXTS_OF_HEAD = 10_000
"""Texts of a stream on which the valence-arousal head is fitted, where no measured corpus is named."""


@dataclass
class PretrainArguments:
    encoder: str = field(
        default="minilm-l6", metadata={"help": "Encoder to start from: Hub id, folder, or 'minilm-l6' (extra [demo])."}
    )
    pooling: Pooling = field(default="cls", metadata={"help": "Pooling of the encoder's last states."})
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout of the encoder in training (default: the encoder's own)."}
    )
    toward_plain: float = field(
        default=0.0,
        metadata={
            "help": "Share in [0, 1] of the encoder's weights before training in a mean with those after it, which is "
            "what is measured and exported: more of meaning is kept, less of feeling is learnt."
        },
    )
    corpora: list[str] = field(
        default_factory=lambda: ["demo"],
        metadata={
            "help": "Training corpora: demo, emobank, facebook, iemocap, emotales, files or Hub datasets with "
            f"numbers; and, for objectives that use names: {', '.join(EMOTION)} (their texts with one label)."
        },
    )
    weights: list[float] | None = field(
        default=None, metadata={"help": "How often each corpus is passed in an epoch (default: once each)."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder with local copies of the corpora."})
    scale: list[float] | None = field(
        default=None, metadata={"help": "Least and greatest label of the files and Hub datasets, such as 1 9."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Its name in files and Hub datasets."})
    valence_column: str | None = field(default=None, metadata={"help": "Its name in files and Hub datasets."})
    arousal_column: str | None = field(default=None, metadata={"help": "Its name in files and Hub datasets."})
    va_from_names: str | None = field(
        default=None,
        metadata={
            "help": "Label space (see --label_space) whose valence and arousal texts without numbers get by their "
            "names, so that MCCL and regression use them too."
        },
    )
    normalization: Normalization | None = field(
        default=None,
        metadata={
            "help": "scale, observed: min and max (Eq 12) of the stated scale or observed in the data. standardized: "
            "numbers of every corpus shifted and scaled to mean 0 and standard deviation 1/3 in its training rows "
            "(not those of names). Unset: standardized where several corpora with numbers are mixed, else, and with "
            "--preset paper, --shuffle_buffer, --label_space or --va_from_names, scale."
        },
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={
            "help": "Leave out the rows of files and Hub datasets that cannot be read or trained on, and record how "
            "many, in place of refusing the file."
        },
    )
    shuffle_buffer: int | None = field(
        default=None,
        metadata={
            "help": "Stream the training corpora, in place of loading them, by a shuffle buffer of so many texts: "
            "the training rows of files, folders and patterns with numbers, of any size. Needs --max_steps."
        },
    )
    measure: list[str] | None = field(
        default=None,
        metadata={"help": "Corpora measured before and after (default: the training corpora with a test part)."},
    )
    include_eval_rows: bool = field(
        default=False, metadata={"help": "Train on validation and test rows too, as the paper did; marks the results."}
    )
    emotion_corpus: str | None = field(
        default=None,
        metadata={
            "help": "Texts with emotion labels for the exported emotion classifier: demo, goemotions-six, "
            "goemotions-ekman, goemotions-28, isear, emolit12, or a file with text and label (default: demo, where it "
            "is trained on; else no classifier)."
        },
    )
    licence: str | None = field(
        default=None, metadata={"help": "Licence of the exports, as the Hub writes it (default: follows the corpora)."}
    )
    language: str = field(default="en", metadata={"help": "Language of the texts, for the model card."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the run that the folder holds."})

    def __post_init__(self):
        if self.weights is not None and len(self.weights) != len(self.corpora):
            raise ValueError(
                f"--weights needs {len(self.corpora)} numbers, one for each corpus, got {len(self.weights)}."
            )
        if self.shuffle_buffer is not None and (self.weights, self.normalization or "scale") != (None, "scale"):
            raise ValueError(
                "--shuffle_buffer streams each text once a pass, by its scale: no --weights, no other --normalization."
            )
        if self.shuffle_buffer is not None and self.include_eval_rows:
            raise ValueError(
                "--shuffle_buffer streams training rows alone: no --include_eval_rows. Without --shuffle_buffer the "
                "corpora are loaded, and it applies."
            )
        if not 0 <= self.toward_plain <= 1:
            raise ValueError(f"--toward_plain must lie in [0, 1], got {self.toward_plain}.")
        if self.scale is not None and len(self.scale) != 2:
            raise ValueError(f"--scale needs two numbers, the least and the greatest label, got {self.scale}.")

    def settle_normalization(self, preset: str, label_space: str | None = None) -> None:
        """Chooses it where it is not given: corpora whose raters used their scales in different ways are brought to
        one mean and deviation (docs/recipe.md), unless the paper's settings are asked for, or names have a place on
        the same plane (`label_space`, `va_from_names`)."""
        if self.normalization is not None:
            return
        passes = self.weights or [1.0] * len(self.corpora)
        numbers = [c for c, weight in zip(self.corpora, passes, strict=True) if c not in EMOTION and weight > 0]
        placed = label_space is not None or self.va_from_names is not None
        standardized = len(numbers) > 1 and self.shuffle_buffer is None and preset != "paper" and not placed
        self.normalization = "standardized" if standardized else "scale"
        if standardized:
            logging.info("Labels of each corpus are standardized; --normalization scale leaves them as they are.")

    def load_emotions(self) -> ClassCorpus | None:
        """Texts and labels for the emotion classifier."""
        if self.emotion_corpus is None:
            if "demo" not in self.corpora:
                return None
            self.emotion_corpus = "demo"
        corpus = _emotion_corpus(self.emotion_corpus, self.data_dir, self.skip_bad_rows)
        check_classes(corpus)
        return corpus

    def provenance(self, method: str) -> Provenance:
        own = {
            name: getattr(self, name) for name in ("pooling", "dropout", "weights", "normalization", "va_from_names")
        }
        defaults = {f.name: f.default for f in dataclasses.fields(self)} | {"normalization": "scale"}
        provenance = Provenance(
            base_model=self.encoder, corpora=self.corpora, licence=self.licence, method=method,
            trained_on_test_rows=self.include_eval_rows, language=self.language,
            settings={name: value for name, value in own.items() if value != defaults[name]},
        )  # fmt: skip
        return with_earlier_training(provenance, self.encoder)

    def load(self, corpus: str, split: str, *, measured: bool = False) -> datasets.Dataset:
        """A part of a corpus; what is measured, and what heads are fitted to, is told on the corpus's own scale."""
        if corpus in EMOTION:
            return self.load_names(corpus, split)
        normalization = "scale" if measured and self.normalization == "standardized" else self.normalization
        if corpus in carl_hf.data.corpora.CORPORA:
            return load_va_dataset(corpus, split=split, data_dir=self.data_dir, normalization=normalization)
        return load_va_dataset(
            corpus, split=split, normalization=normalization, skip_bad_rows=self.skip_bad_rows, **self.form()
        )

    def form(self) -> dict[str, Any]:
        """Scale and columns of files and Hub datasets."""
        named = {"text": self.text_column, "valence": self.valence_column, "arousal": self.arousal_column}
        return {
            "scale": tuple(self.scale) if self.scale else None,
            "columns": {ours: theirs for ours, theirs in named.items() if theirs},
        }

    def stream(
        self, held_out: Sequence[str], seed: int, skipped: dict[str, Skipped] | None = None
    ) -> datasets.IterableDataset:
        """The training corpora, read as they are needed; `skipped` is filled with what is left out."""
        known = [corpus for corpus in self.corpora if corpus in (*EMOTION, *carl_hf.data.corpora.CORPORA)]
        if known:
            raise ValueError(f"--shuffle_buffer streams files; {known[0]} is a corpus that fits into memory.")
        return stream_va_dataset(
            self.corpora, held_out=held_out, skip_bad_rows=self.skip_bad_rows, shuffle_buffer=self.shuffle_buffer,
            seed=seed, skipped=skipped, **self.form(),
        )  # fmt: skip

    def load_all(
        self, args: CarlTrainingArguments, held_out: Sequence[str], *, measured: bool = False
    ) -> datasets.Dataset:
        """The training corpora, mixed."""
        part = "all" if self.include_eval_rows else "train"
        weights = self.weights or [1.0] * len(self.corpora)
        parts = [
            (self.load(corpus, part, measured=measured), weight)
            for corpus, weight in zip(self.corpora, weights, strict=True)
        ]
        mixed = mix_datasets(parts, seed=args.seed)
        return mixed if self.include_eval_rows else remove_overlap(mixed, [held_out])

    def skipped_rows(self, emotions: ClassCorpus | None) -> dict[str, dict[str, Any]]:
        """Corpus -> the rows of it that were left out, by reason. Those of a stream are known when it has been
        read."""
        if not self.skip_bad_rows:
            return {}
        known = (*EMOTION, *carl_hf.data.corpora.CORPORA)
        loaded = self.corpora if self.shuffle_buffer is None else self.measure or []
        bad = {corpus: find_bad_rows(corpus, **self.form()) for corpus in loaded if corpus not in known}
        if emotions is not None and self.emotion_corpus not in bad:
            bad[self.emotion_corpus] = emotions.skipped
        return {corpus: skipped_record(rows) for corpus, rows in bad.items() if rows}

    def load_names(self, corpus: str, split: str) -> datasets.Dataset:
        """Texts of an emotion corpus with their names; its parts as in the evaluation."""
        whole = _emotion_corpus(corpus, self.data_dir, self.skip_bad_rows)
        parts = dict(zip(("train", "validation", "test"), split_rows(whole), strict=True))
        texts = class_dataset(whole, np.concatenate(list(parts.values())) if split == "all" else parts[split])
        if self.va_from_names is None or split == "validation":  # what is measured has no made-up numbers
            return texts
        return va_from_class_labels(texts, read_label_space(self.va_from_names))

    def load_dev(self) -> dict[str, dict[str, datasets.Dataset]]:
        """Corpus -> its training and validation part, for the corpora to be measured on. That they have a test part
        is checked too; it is read for the final report alone."""
        measured = {}
        trained = self.corpora if self.shuffle_buffer is None else []
        for corpus in trained if self.measure is None else self.measure:
            if corpus in EMOTION:
                if self.measure is not None:
                    raise ValueError(f"--measure takes corpora with valence and arousal; {corpus} has names.")
                logging.info("%s has names. Not measured here: examples/evaluate.py measures it.", corpus)
                continue
            try:
                parts = {part: self.load(corpus, part, measured=True) for part in ("train", "validation")}
                self.held_out_texts(corpus)
            except NoSplitError as error:
                if self.measure is not None:
                    raise
                logging.info("%s Not measured.", error)
            else:
                measured[corpus] = parts
        return measured

    def with_held_out_parts(self, measured: Iterable[str]) -> list[str]:
        """The corpora that are measured, and those of names."""
        return [*measured, *(corpus for corpus in self.corpora if corpus in EMOTION)]

    def held_out_texts(self, *corpora: str) -> list[str]:
        """The texts, not the labels, of the validation and test parts: what training texts must not repeat."""
        parts = [self.load(corpus, part, measured=True) for corpus in corpora for part in ("validation", "test")]
        return [text for part in parts for text in part["text"]]


@functools.lru_cache(maxsize=2)
def _emotion_corpus(name: str, data_dir: str | None, skip_bad_rows: bool) -> ClassCorpus:
    return read_emotion(name, data_dir, skip_bad_rows=skip_bad_rows)


def embed_parts(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parts: dict[str, datasets.Dataset],
    poolings: Sequence[Pooling],
    max_length: int,
) -> dict[Pooling, dict[str, Any]]:
    """Pooling -> part -> embeddings."""
    embedded = {
        name: embed_poolings(encoder, part["text"], tokenizer, poolings=poolings, max_length=max_length)
        for name, part in parts.items()
    }
    return {pooling: {name: part[pooling].numpy() for name, part in embedded.items()} for pooling in poolings}


def probe(embeddings: dict[str, Any], parts: dict[str, datasets.Dataset], target: str) -> Any:
    """Predicted valence and arousal of the part `target`, from a ridge probe on the training part."""
    return ridge_predictions(
        embeddings["train"], labels_of(parts["train"]), embeddings["validation"], labels_of(parts["validation"]),
        embeddings[target],
    )  # fmt: skip


def measure_plain(
    encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, parts: dict[str, datasets.Dataset], max_length: int
) -> tuple[str, Any]:
    """Pooling that is better on the validation part, and its predictions for the test part."""
    embedded = embed_parts(encoder, tokenizer, parts, POOLINGS, max_length)

    def dev_score(pooling: Pooling) -> float:
        predicted = probe(embedded[pooling], parts, "validation")
        return float(np.nan_to_num(pearson(predicted.T, labels_of(parts["validation"]).T), nan=-1.0).sum())

    best = max(POOLINGS, key=dev_score)
    return best, probe(embedded[best], parts, "test")


def print_report(script: PretrainArguments, results: dict[str, Any], sizes: dict[str, int]) -> None:
    for corpus, size in sizes.items():
        before, after, gain = (results[key][corpus] for key in ("before", "after", "gain"))
        print(f"\n{corpus}: {size} held-out texts, Pearson r of a ridge probe on frozen embeddings [95 % interval]")
        rows = [
            [name, *(_cell(figures[dimension], "+" if name == "gain" else "") for dimension in DIMENSIONS)]
            for name, figures in (
                (f"before  {script.encoder}, {before['pooling']}", before),
                (f"after   {results['run']['method']}, {after['pooling']}", after),
                ("gain", gain),
            )
        ]
        print(plain_table(["", *DIMENSIONS], rows))
    print(f"\n{results['verdict']}\n")


def _short(method: str) -> str:
    """For the title of a panel."""
    return method if len(method) <= 20 else "trained"


def _title(name: str, figures: dict[str, Any]) -> str:
    """Of a panel, with its correlations where they are defined."""
    r = [figures[dimension]["pearson"] for dimension in DIMENSIONS]
    return name if None in r else f"{name}\nr = {r[0]:.2f} (valence), {r[1]:.2f} (arousal)"


def _cell(figures: dict[str, Any], sign: str) -> str:
    if figures["pearson"] is None:
        return "undefined"
    low, high = figures["pearson_interval"]
    return f"{figures['pearson']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def verdict(gains: dict[str, dict[str, Any]], marks: str) -> str:
    """One sentence: where both gains are above 0 beyond chance, where not."""
    if not gains:
        return "No verdict: no training corpus has a validation and a test part to measure on."
    sentences = []
    for corpus, gain in gains.items():
        if any(gain[d]["pearson"] is None for d in DIMENSIONS):
            sentences.append(
                f"On held-out texts of {corpus} the gain is undefined: predictions or labels are constant."
            )
            continue
        better = [d for d in DIMENSIONS if gain[d]["pearson_interval"][0] > 0]
        what = " and ".join(f"{d} r {gain[d]['pearson']:+.3f}" for d in DIMENSIONS)
        how = {2: "improved both", 1: f"improved {better[0] if better else ''} only", 0: "improved neither"}[
            len(better)
        ]
        sentences.append(f"On held-out texts of {corpus} training {how} beyond chance: {what}.")
    return "Verdict: " + " ".join(sentences) + marks


def main() -> None:
    default_config = Path(__file__).parent / "configs" / "demo.yaml"
    try:
        script, args = parse_arguments(
            PretrainArguments, default_config=default_config, default_config_unless=("preset", "encoder", "corpora")
        )
        start_measuring_script(main_process=args.process_index == 0)
        use_all_cores(script.num_threads)
        script.settle_normalization(args.preset, args.label_space)
        resume = prepare_output(args, overwrite=script.overwrite_output_dir)
        measured = script.load_dev()
        emotions = script.load_emotions()
        skipped = script.skipped_rows(emotions)
        streamed: dict[str, Skipped] = {}
        held_out_of = script.with_held_out_parts(measured)
        held_out = script.held_out_texts(*held_out_of)
        if script.shuffle_buffer is None:
            train = script.load_all(args, held_out)
        else:
            train = script.stream(held_out, args.seed, streamed)
        validation = [script.load(corpus, "validation") for corpus in held_out_of]
        dev = mix_datasets([(part, 1.0) for part in validation], seed=args.seed) if validation else None

        set_seed(args.seed)
        model = CarlModel.from_encoder(
            script.encoder, pooling=script.pooling, dropout=script.dropout, heads=args.heads,
            classes=class_names(train) if args.heads and script.shuffle_buffer is None else (),
        )  # fmt: skip
        start = copy.deepcopy(model.encoder) if script.toward_plain else None
        tokenizer = load_tokenizer(script.encoder)
        trainer = CarlTrainer(
            model=model, args=args, train_dataset=train, eval_dataset=dev, processing_class=tokenizer,
            provenance=script.provenance(describe_objectives(args.weights)),
        )  # fmt: skip
    except ValueError as error:
        sys.exit(f"error: {error}")

    show_progress(trainer)
    main_process = trainer.is_world_process_zero()
    if main_process and not resume:
        remove_results(args.output_dir)
    if main_process:
        texts = f"{len(train)} texts" if script.shuffle_buffer is None else "a stream of texts"
        print(f"Training {script.encoder} on {texts} ...")
    train_or_exit(trainer, resume)
    if not main_process:
        leave_at_once()

    # measured below, and kept whatever comes
    encoder_folder = trainer.export(Path(args.output_dir) / "encoder", measure_bias=False)
    marks = " (Trained on test rows.)" if script.include_eval_rows else ""
    results: dict[str, Any] = {"before": {}, "after": {}, "gain": {}}
    predictions: dict[str, tuple[str, Any, Any]] = {}
    drawn: list[Path] = []
    plain = load_encoder(script.encoder).to(args.device)
    if start is not None:  # what has been saved stays as it is
        update_target(model.encoder, start.to(args.device), momentum=1 - script.toward_plain)
        settings = {**(trainer.provenance.settings or {}), "toward_plain": script.toward_plain}
        trainer.provenance = dataclasses.replace(trainer.provenance, settings=settings)
    for corpus, parts in measured.items():
        # read only now that everything is trained and chosen
        parts["test"] = script.load(corpus, "test", measured=True)
        truth, constant = labels_of(parts["test"]), labels_of(parts["train"]).mean(0)
        old_pooling, old = measure_plain(plain, tokenizer, parts, args.max_length)
        embedded = embed_parts(model.encoder, tokenizer, parts, (script.pooling,), args.max_length)
        new = probe(embedded[script.pooling], parts, "test")
        for key, pooling, predicted in (("before", old_pooling, old), ("after", script.pooling, new)):
            figures = va_metrics(predicted, truth, constant=constant, seed=args.seed)
            results[key][corpus] = {"pooling": pooling, **figures}
        results["gain"][corpus] = va_gain(old, new, truth, seed=args.seed)
        predictions[corpus] = (old_pooling, old, new)
    results["verdict"] = verdict(results["gain"], marks)
    results["trained_on_test_rows"] = script.include_eval_rows
    results["run"] = run_record(script, args, train, trainer.state.global_step)
    if args.dataloader_num_workers == 0:
        skipped |= {file: found.record() for file, found in streamed.items()}
    elif script.skip_bad_rows and script.shuffle_buffer is not None:
        logging.warning(
            "A worker of the data loader has read the stream, so that how many of its rows were left out is in the "
            "log alone, not in results.json; --dataloader_num_workers 0 records it."
        )
    if skipped:
        results["run"]["skipped_rows"] = skipped
    path = Path(args.output_dir) / "results.json"
    write_json(path, results)
    trained = _short(results["run"]["method"])
    for corpus, (old_pooling, old, new) in predictions.items():
        parts = measured[corpus]
        name = re.sub(r"[^A-Za-z0-9]+", "-", public_corpus_name(corpus)).strip("-")  # it is published
        others = [path.stem for path in drawn]
        name += f"-{len(drawn)}" if f"circumplex-{name}" in others else ""
        drawn.append(Path(args.output_dir) / "figures" / f"circumplex-{name}.png")
        carl_hf.report.plots.plot_circumplex(
            drawn[-1],
            {
                _title(f"{Path(script.encoder).name}, {old_pooling}", results["before"][corpus]): old,
                _title(f"{trained}, {script.pooling}", results["after"][corpus]): new,
            },
            labels_of(parts["test"]),
            parts["test"]["label"] if "label" in parts["test"].column_names else None,
        )
    print_report(script, results, {corpus: len(parts["test"]) for corpus, parts in measured.items()})
    try:
        write_exports(script, args, trainer, measured, emotions, results, drawn)
        if args.push_to_hub:
            push = push_export(encoder_folder, trainer.hub_model_id, branch=args.hub_revision or "main",
                               commit_message="End of training", token=args.hub_token)  # fmt: skip
            print(f"Published: {push.url}")
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"Encoder: {encoder_folder}   results: {path}   figures: {path.parent / 'figures'}")
    print(f"To publish: python examples/push_to_hub.py --export {args.output_dir} --repo_id NAME/MODEL --dry_run")


def write_exports(
    script: PretrainArguments,
    args: CarlTrainingArguments,
    trainer: CarlTrainer,
    measured: dict[str, dict[str, datasets.Dataset]],
    emotions: ClassCorpus | None,
    results: dict[str, Any],
    figures: Sequence[Path],
) -> None:
    """The folders that examples/push_to_hub.py publishes: encoder/ with its measured figures, va/ and emotion/."""
    model, tokenizer, folder = trainer.model, trainer.processing_class, Path(args.output_dir)
    # A head is fitted on the measured corpora alone: what raters of different corpora call excited differs, and on
    # EmoBank and the Facebook posts together its arousal on EmoBank falls to r = .18.
    fitted = [(remove_overlap(part["train"], [script.held_out_texts(c)]), 1.0) for c, part in measured.items()]
    if fitted:
        train = mix_datasets(fitted, seed=args.seed)
    elif script.shuffle_buffer is None:
        held_out = script.held_out_texts(*script.with_held_out_parts(measured))
        train = rows_with_va(script.load_all(args, held_out, measured=True))
    else:  # the beginning of the stream: `take` knows nothing of the pass that training has come to
        train = datasets.Dataset.from_list(list(trainer.train_dataset.take(STREAMED_TEXTS_OF_HEAD)))
    if len(train) < FEWEST_TEXTS:
        logging.info("%d texts with numbers are too few for a valence-arousal head: no va/.", len(train))
        train = None
    common: dict[str, Any] = {"max_length": args.max_length, "provenance": trainer.provenance}
    rows = [
        row for corpus in measured
        for row in va_results(corpus, results["after"][corpus], baseline=results["before"][corpus])
    ]  # fmt: skip
    poolings = {results["before"][corpus]["pooling"] for corpus in measured}
    export_encoder(
        model, tokenizer, folder / "encoder", results=rows, figures=figures, train=train,
        baseline=f"{Path(script.encoder).name} as it was, {' / '.join(sorted(poolings))}", **common,
    )  # fmt: skip
    if train is not None:
        held = [(part["validation"], 1.0) for part in measured.values()]
        dev = mix_datasets(held, seed=args.seed) if held else None
        export_va_regressor(
            model, tokenizer, folder / "va", train=train, dev=dev, figures=figures, seed=args.seed,
            corpora=list(measured) or script.corpora,
            test={corpus: parts["test"] for corpus, parts in measured.items()}, **common,
        )  # fmt: skip
    if emotions is not None:
        export_emotion_classifier(
            model, tokenizer, folder / "emotion", corpus=emotions, corpus_name=script.emotion_corpus, seed=args.seed,
            **common,
        )  # fmt: skip


def run_record(script: PretrainArguments, args: CarlTrainingArguments, train: Any, steps: int) -> dict[str, Any]:
    """What is needed to repeat a run. Nobody has counted the texts of a stream."""
    return {
        "command": public_command("examples/pretrain.py"),
        "seed": args.seed,
        "preset": args.preset,
        "objectives": args.weights,
        "method": describe_objectives(args.weights),
        "encoder": script.encoder,
        "corpora": script.corpora,
        "normalization": script.normalization,
        "toward_plain": script.toward_plain,
        "training_texts": len(train) if script.shuffle_buffer is None else None,
        "steps": steps,
        "batch_size": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "device": str(args.device),
        **environment_record(),
    }


if __name__ == "__main__":
    main()
