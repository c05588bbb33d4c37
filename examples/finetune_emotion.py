"""Emotion recognition on texts with labels: does metric learning beat a linear classifier?

    python examples/finetune_emotion.py                                        # the bundled corpus, minutes on a CPU
    python examples/finetune_emotion.py --corpus my.csv --text_column sentence --label_column emotion
    python examples/finetune_emotion.py --corpus emolit12 --data_dir DIR --objectives proxy_anchor
    python examples/finetune_emotion.py --encoder runs/carl-minilm/encoder --frozen true --corpus my.csv

Trains an encoder (a plain one, or an export of CARL) by the named objectives: cross_entropy fine-tunes it with a
linear classifier; proxy_anchor, supcon and circular shape the embedding; with --frozen nothing but the linear head is
fitted. Then a linear head on the frozen embeddings is compared with the same head on the encoder as it was. What is
not named comes from examples/configs/emotion.yaml.

Leaves in the output folder: emotion/ (a classifier, for AutoModelForSequenceClassification), encoder/ where it was
trained, results.json and figures/confusion.png; checkpoint-*/ of training.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, set_seed

from carl_hf import (
    CarlModel,
    CarlTrainer,
    CarlTrainingArguments,
    Provenance,
    export_emotion_classifier,
    export_encoder,
)
from carl_hf.commands.arguments import parse_arguments, public_command
from carl_hf.commands.environment import environment_record, leave_at_once, start_measuring_script, use_all_cores
from carl_hf.commands.outputs import prepare_output, remove_results, train_or_exit
from carl_hf.data.bad_rows import skipped_record
from carl_hf.data.label_spaces import read_label_space
from carl_hf.data.labelled import EMOTION, ClassCorpus, read_emotion
from carl_hf.data.mixing import class_names
from carl_hf.data.splits import split_rows
from carl_hf.encoders import Pooling, embed_poolings, load_encoder, load_tokenizer
from carl_hf.evaluation.circumplex import circular_order
from carl_hf.evaluation.comparison import class_gain
from carl_hf.evaluation.emotion import class_dataset, measure_emotion
from carl_hf.evaluation.statistics import classification_report
from carl_hf.export.folder import read_record, with_earlier_training
from carl_hf.export.task_heads import check_classes
from carl_hf.objectives import describe_objectives
from carl_hf.report.plots import plot_confusion
from carl_hf.report.tables import plain_table
from carl_hf.utils.atomic_files import write_json
from carl_hf.utils.progress import show_progress


@dataclass
class EmotionArguments:
    encoder: str = field(
        default="minilm-l6", metadata={"help": "Encoder: Hub id, folder of an export, or 'minilm-l6' (extra [demo])."}
    )
    pooling: Pooling = field(default="cls", metadata={"help": "Pooling of the encoder's last states."})
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout of the encoder in training (default: the encoder's own)."}
    )
    corpus: str = field(
        default="demo",
        metadata={"help": f"Texts with labels: demo, {', '.join(EMOTION)}, a file, or the id of a Hub data set."},
    )
    text_column: str = field(default="text", metadata={"help": "Its name in a file or Hub data set."})
    label_column: str = field(default="label", metadata={"help": "Its name in a file or Hub data set."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with local copies of the corpora."})
    skip_bad_rows: bool = field(
        default=False,
        metadata={
            "help": "Leave out the rows of a file or Hub data set that cannot be read or have no text or label, and "
            "record how many, in place of refusing it."
        },
    )
    frozen: bool = field(default=False, metadata={"help": "Fit the linear head alone; the encoder stays as it is."})
    patience: int = field(
        default=2,
        metadata={"help": "Evaluations without a better development accuracy until training stops; 0: never."},
    )
    licence: str | None = field(
        default=None, metadata={"help": "Licence of the exports, as the Hub writes it (default: follows the corpus)."}
    )
    language: str = field(default="en", metadata={"help": "Language of the texts, for the model card."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the run that the folder holds."})

    def __post_init__(self):
        if self.patience < 0:
            raise ValueError(f"--patience must be zero or positive, got {self.patience}.")
        if self.corpus in ("demo", *EMOTION) and (self.text_column, self.label_column) != ("text", "label"):
            raise ValueError(f"--text_column and --label_column are for files and Hub data sets, not {self.corpus}.")

    def read(self) -> ClassCorpus:
        columns = {"text": self.text_column, "label": self.label_column}
        corpus = read_emotion(self.corpus, self.data_dir, columns, skip_bad_rows=self.skip_bad_rows)
        check_classes(corpus)
        return corpus

    def provenance(self, method: str | None) -> Provenance:
        settings = {"pooling": self.pooling, "dropout": self.dropout}
        settings = {name: value for name, value in settings.items() if value not in ("cls", None)}
        provenance = Provenance(
            base_model=self.encoder, corpora=[] if method is None else [self.corpus], licence=self.licence,
            language=self.language, method=method, settings=settings,
        )  # fmt: skip
        return with_earlier_training(provenance, self.encoder)


def train(
    script: EmotionArguments, args: CarlTrainingArguments, corpus: ClassCorpus, tokenizer: PreTrainedTokenizerBase
) -> CarlTrainer:
    """The trainer, ready to train on the corpus's training part and to choose on its development part."""
    rows = split_rows(corpus)
    texts, dev = (class_dataset(corpus, part) for part in rows[:2])
    set_seed(args.seed)
    model = CarlModel.from_encoder(
        script.encoder, pooling=script.pooling, dropout=script.dropout, heads=args.heads, classes=class_names(texts)
    )
    choosing = args.load_best_model_at_end and script.patience
    return CarlTrainer(
        model=model, args=args, train_dataset=texts, eval_dataset=_known(dev, texts), processing_class=tokenizer,
        provenance=script.provenance(describe_objectives(args.weights)),
        callbacks=[EarlyStoppingCallback(script.patience)] if choosing else None,
    )  # fmt: skip


def _known(dev: Dataset, train: Dataset) -> Dataset:
    """Development texts whose label stands in training, where of texts with several labels only those with one are."""
    names = set(class_names(train))
    return dev.select([i for i, label in enumerate(dev["label"]) if label in names])


def measure(
    vectors: np.ndarray, corpus: ClassCorpus, args: CarlTrainingArguments
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Figures of a linear head on embeddings of the corpus's texts, and where the classes lie on the circumplex."""
    report, items = measure_emotion(
        lambda _: vectors, corpus, seed=args.seed, class_weights=args.class_weights
    )  # fmt: skip
    if corpus.labels.ndim == 1:
        test = split_rows(corpus)[2]
        angles = read_label_space(args.label_space or "circle12").known_angles(corpus.classes)
        words = np.array(corpus.classes)[corpus.labels[test]]
        report["circular_order"] = circular_order(vectors[test], words, angles, seed=args.seed)
    return report, items


def own_head(
    model: CarlModel, vectors: np.ndarray, corpus: ClassCorpus, seed: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """The same figures of the classifier or nearest proxy that was trained; None where there is none, or where texts
    may have several classes."""
    test = split_rows(corpus)[2]
    found = model.classify(torch.from_numpy(vectors[test]).to(model.device))
    if found is None or corpus.labels.ndim == 2:
        return None
    number = np.array([corpus.classes.index(name) for name in model.config.classes])
    predictions, references = number[found.cpu().numpy()], corpus.labels[test]
    report = classification_report(predictions, references, corpus.classes, seed=seed)
    return report, {"predictions": predictions, "references": references}


def verdict(gain: dict[str, Any], better: str) -> str:
    low, high = gain["accuracy_interval"]
    how = "beats" if low > 0 else "is worse than" if high < 0 else "is not told apart from"
    return (
        f"Verdict: the trained embedding {how} the frozen encoder ({better}): accuracy {gain['accuracy']:+.1f} points "
        f"[{low:+.1f}, {high:+.1f}]."
    )


def main() -> None:
    try:
        script, args = parse_arguments(
            EmotionArguments, default_config=Path(__file__).parent / "configs" / "emotion.yaml"
        )
        start_measuring_script(main_process=args.process_index == 0)
        use_all_cores(script.num_threads)
        if args.push_to_hub:
            raise ValueError("Publish what is finished: examples/push_to_hub.py --export DIR --head emotion.")
        if script.frozen and args.resume_from_checkpoint:
            raise ValueError("With --frozen nothing is trained, and nothing resumed.")
        resume = prepare_output(args, overwrite=script.overwrite_output_dir)
        corpus = script.read()
        tokenizer = load_tokenizer(script.encoder)
        plain = load_encoder(script.encoder).to(args.device)
        trainer = None if script.frozen else train(script, args, corpus, tokenizer)
    except ValueError as error:
        sys.exit(f"error: {error}")

    main_process = args.process_index == 0
    if main_process and not resume:
        remove_results(args.output_dir)
    if trainer is not None:
        show_progress(trainer)
        if main_process:
            print(f"Training {script.encoder} on {len(trainer.train_dataset)} texts: {', '.join(args.weights)} ...")
        train_or_exit(trainer, resume)
    if not main_process:
        leave_at_once()
    if trainer is not None:
        model = trainer.model
    else:
        model = CarlModel.from_encoder(plain, pooling=script.pooling).to(args.device)

    before = embed_poolings(plain, corpus.texts, tokenizer, poolings=("cls", "mean"), max_length=args.max_length)
    measured = {f"frozen encoder, {pooling}": measure(x.numpy(), corpus, args) for pooling, x in before.items()}
    better = max(measured, key=lambda name: _dev_figure(before[name.split(", ")[1]].numpy(), corpus, args.seed))
    results: dict[str, Any] = {"corpus": script.corpus, "classes": list(corpus.classes), "better_frozen": better}
    if trainer is not None:
        vectors = model.embed(corpus.texts, tokenizer, max_length=args.max_length).numpy()
        trained = "trained encoder, linear head"
        measured[trained] = measure(vectors, corpus, args)
        own = own_head(model, vectors, corpus, args.seed)
        if own is not None:
            measured["trained encoder, its own head"] = own
        results["gain"] = class_gain(measured[better][1], measured[trained][1], args.seed)
        results["verdict"] = verdict(results["gain"], better)
    results["models"] = {name: report for name, (report, _) in measured.items()}
    results["run"] = {
        "command": public_command("examples/finetune_emotion.py"), "encoder": script.encoder,
        "objectives": None if trainer is None else args.weights, "seed": args.seed,
        "steps": 0 if trainer is None else trainer.state.global_step,
        "best_step": None if trainer is None else trainer.state.best_global_step,
        "class_weights": args.class_weights, **environment_record(),
    }  # fmt: skip
    if corpus.skipped:
        results["run"]["skipped_rows"] = {script.corpus: skipped_record(corpus.skipped)}
    folder = Path(args.output_dir)
    write_json(folder / "results.json", results)  # kept whatever comes
    figures = []
    if corpus.labels.ndim == 1:
        figures = [folder / "figures" / "confusion.png"]
        figures[0].parent.mkdir(parents=True, exist_ok=True)
        panels = {name: (np.array(r["confusion"]), corpus.classes) for name, (r, _) in measured.items()}
        plot_confusion(figures[0], panels)
    origin = script.provenance(None) if trainer is None else trainer.provenance
    if trainer is not None:
        export_encoder(model, tokenizer, folder / "encoder", max_length=args.max_length, provenance=origin)
    export_emotion_classifier(
        model, tokenizer, folder / "emotion", corpus=corpus, corpus_name=script.corpus, max_length=args.max_length,
        provenance=origin, figures=figures, seed=args.seed, class_weights=args.class_weights,
    )  # fmt: skip
    exported = read_record(folder / "emotion")["results"]
    results["exported_classifier"] = {
        row["metric"]: {key: row[key] for key in ("name", "value", "interval")} for row in exported
    }
    write_json(folder / "results.json", results)
    print_report(script.corpus, measured, results)
    print(f"Classifier: {folder / 'emotion'}   results: {folder / 'results.json'}")


def _dev_figure(vectors: np.ndarray, corpus: ClassCorpus, seed: int) -> float:
    """Accuracy on the development part, of a head that is fitted on the training part, to choose a pooling by."""
    train, dev, _ = split_rows(corpus)
    split = np.full(len(corpus.texts), "none", dtype=object)
    split[train], split[dev] = "train", "test"
    return measure_emotion(lambda _: vectors, dataclasses.replace(corpus, split=split), seed=seed)[0]["accuracy"]


def print_report(corpus: str, measured: dict[str, Any], results: dict[str, Any]) -> None:
    texts = next(iter(measured.values()))[0]["texts"]
    print(f"\n{corpus}: {texts} test texts, {len(results['classes'])} classes [95 % interval]")
    rows = []
    for name, (report, _) in measured.items():
        low, high = report["accuracy_interval"]
        f_low, f_high = report["f1_interval"]
        circle = report.get("circular_order", {}).get("circular_correlation")
        rows.append(
            [name, f"{report['accuracy']:.1f} % [{low:.1f}, {high:.1f}]",
             f"{report['f1']:.3f} [{f_low:.3f}, {f_high:.3f}]", "" if circle is None else f"{circle:.3f}"]
        )  # fmt: skip
    row = ["exported classifier"]
    for metric, unit, digits in (("accuracy", " %", 1), ("f1", "", 3)):
        figure = results["exported_classifier"][metric]
        low, high = figure["interval"]
        row.append(f"{figure['value']:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]")
    print(plain_table(["", "accuracy", "macro F1", "circular r"], [*rows, [*row, ""]]))
    if "verdict" in results:
        print(f"\n{results['verdict']}\n")


if __name__ == "__main__":
    main()
