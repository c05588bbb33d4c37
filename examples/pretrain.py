"""Trains a CARL encoder and measures it before and after.

    accelerate launch examples/pretrain.py                     # minilm-l6 on the bundled demo corpus, minutes on a CPU
    accelerate launch examples/pretrain.py --config examples/configs/carl-minilm.yaml --data_dir DIR
    accelerate launch examples/pretrain.py --config examples/configs/carl-roberta.yaml
    accelerate launch examples/pretrain.py --corpora my.csv --scale 1 9 --output_dir out/mine

Leaves in the output folder: checkpoint-*/ (to resume from), encoder/ (for AutoModel.from_pretrained), results.json,
figures/.
"""

import importlib.util
import json
import logging
import platform
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

import carl_hf
import carl_hf.corpora
import carl_hf.plots
from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments, export_encoder, load_va_dataset
from carl_hf.cli import check_output_dir, last_checkpoint, parse_arguments, remove_results, use_all_cores
from carl_hf.data import NoSplitError, mix_datasets, remove_overlap
from carl_hf.encoders import load_encoder, load_tokenizer
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of, ridge_predictions, va_gain, va_metrics
from carl_hf.modeling_carl import embed_texts

POOLINGS = ("cls", "mean")


@dataclass
class PretrainArguments:
    encoder: str = field(
        default="minilm-l6", metadata={"help": "Encoder to start from: Hub id, folder, or 'minilm-l6' (extra [demo])."}
    )
    pooling: Literal["cls", "mean"] = field(default="cls", metadata={"help": "What stands for a text."})
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout of the encoder in training (default: the encoder's own)."}
    )
    corpora: list[str] = field(
        default_factory=lambda: ["demo"],
        metadata={"help": "Training corpora: demo, emobank, facebook, iemocap, emotales, files or Hub datasets."},
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
    normalization: Literal["scale", "observed"] = field(
        default="scale", metadata={"help": "Min and max of Eq 12: of the stated scale, or observed in the data."}
    )
    measure: list[str] | None = field(
        default=None,
        metadata={"help": "Corpora measured before and after (default: the training corpora with a test part)."},
    )
    include_eval_rows: bool = field(
        default=False, metadata={"help": "Train on validation and test rows too, as the paper did; marks the results."}
    )
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the run that the folder holds."})

    def __post_init__(self):
        if self.weights is not None and len(self.weights) != len(self.corpora):
            raise ValueError(
                f"--weights needs {len(self.corpora)} numbers, one for each corpus, got {len(self.weights)}."
            )
        if self.scale is not None and len(self.scale) != 2:
            raise ValueError(f"--scale needs two numbers, the least and the greatest label, got {self.scale}.")

    def load(self, corpus: str, split: str) -> datasets.Dataset:
        if corpus in carl_hf.corpora.CORPORA:
            return load_va_dataset(corpus, split=split, data_dir=self.data_dir, normalization=self.normalization)
        named = {"text": self.text_column, "valence": self.valence_column, "arousal": self.arousal_column}
        return load_va_dataset(
            corpus,
            split=split,
            scale=tuple(self.scale) if self.scale else None,
            columns={ours: theirs for ours, theirs in named.items() if theirs},
            normalization=self.normalization,
        )

    def load_measured(self) -> dict[str, dict[str, datasets.Dataset]]:
        """Corpus -> its three parts, for the corpora to be measured on."""
        measured = {}
        for corpus in self.corpora if self.measure is None else self.measure:
            try:
                measured[corpus] = {part: self.load(corpus, part) for part in ("train", "validation", "test")}
            except NoSplitError as error:
                if self.measure is not None:
                    raise
                logging.info("%s Not measured.", error)
        return measured


def embed_parts(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parts: dict[str, datasets.Dataset],
    pooling: str,
    max_length: int,
) -> dict[str, Any]:
    return {
        name: embed_texts(encoder, part["text"], tokenizer, pooling=pooling, max_length=max_length).numpy()
        for name, part in parts.items()
    }


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
    candidates = {}
    for pooling in POOLINGS:
        embeddings = embed_parts(encoder, tokenizer, parts, pooling, max_length)
        dev = va_metrics(probe(embeddings, parts, "validation"), labels_of(parts["validation"]), seed=0, resamples=1)
        candidates[pooling] = (sum(dev[name]["pearson"] for name in DIMENSIONS), embeddings)
    best = max(candidates, key=lambda pooling: candidates[pooling][0])
    return best, probe(candidates[best][1], parts, "test")


def print_report(script: PretrainArguments, results: dict[str, Any], sizes: dict[str, int]) -> None:
    for corpus, size in sizes.items():
        before, after, gain = (results[key][corpus] for key in ("before", "after", "gain"))
        print(f"\n{corpus}: {size} held-out texts, Pearson r of a ridge probe on frozen embeddings [95 % interval]")
        print(f"{'':38}{'valence':>22}{'arousal':>22}")
        for name, figures in (
            (f"before  {script.encoder}, {before['pooling']}", before),
            (f"after   CARL, {after['pooling']}", after),
            ("gain", gain),
        ):
            sign = "+" if name == "gain" else ""
            cells = [
                f"{figures[d]['pearson']:{sign}.3f} [{figures[d]['pearson_interval'][0]:{sign}.3f}, "
                f"{figures[d]['pearson_interval'][1]:{sign}.3f}]"
                for d in DIMENSIONS
            ]
            print(f"{name:38}{cells[0]:>22} {cells[1]:>22}")
    print(f"\n{results['verdict']}\n")


def verdict(gains: dict[str, dict[str, Any]], marks: str) -> str:
    """One sentence: where both gains are above 0 beyond chance, where not."""
    if not gains:
        return "No verdict: no training corpus has a validation and a test part to measure on."
    sentences = []
    for corpus, gain in gains.items():
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
        logging.basicConfig(level=logging.INFO if args.process_index == 0 else logging.ERROR, format="%(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)
        for module, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
            if importlib.util.find_spec(module) is None:
                raise ValueError(f"This script measures and draws with {package}: pip install 'carl_hf[eval]'.")
        use_all_cores(script.num_threads)
        resume = args.resume_from_checkpoint
        if args.process_index == 0:
            check_output_dir(args.output_dir, resume=bool(resume), overwrite=script.overwrite_output_dir)
        if resume == "last":
            resume = last_checkpoint(args.output_dir)
        elif resume and not (Path(resume) / "trainer_state.json").is_file():
            raise ValueError(
                f"--resume_from_checkpoint {resume} is no checkpoint folder; 'last' finds the newest one."
            )

        measured = script.load_measured()
        part = "all" if script.include_eval_rows else "train"
        weights = script.weights or [1.0] * len(script.corpora)
        train = mix_datasets(
            [(script.load(corpus, part), weight) for corpus, weight in zip(script.corpora, weights, strict=True)],
            seed=args.seed,
        )
        if not script.include_eval_rows:
            train = remove_overlap(train, [p[name] for p in measured.values() for name in ("validation", "test")])
        validation = [parts["validation"] for parts in measured.values()]
        dev = mix_datasets([(part, 1.0) for part in validation], seed=args.seed) if validation else None

        set_seed(args.seed)
        plain = load_encoder(script.encoder)
        tokenizer = load_tokenizer(script.encoder)
        model = CarlModel.from_encoder(plain, pooling=script.pooling, dropout=script.dropout)
        trainer = CarlTrainer(
            model=model, args=args, train_dataset=train, eval_dataset=dev, processing_class=tokenizer
        )
    except ValueError as error:
        sys.exit(f"error: {error}")

    main_process = trainer.is_world_process_zero()
    if main_process and not resume:
        remove_results(args.output_dir)
    before: dict[str, tuple[str, Any]] = {}
    if main_process:
        print(f"{len(train)} training texts; measuring {script.encoder} as it is ...")
        before = {c: measure_plain(model.encoder, tokenizer, parts, args.max_length) for c, parts in measured.items()}
    trainer.train(resume_from_checkpoint=resume)
    if not main_process:
        return

    encoder_folder = export_encoder(model, tokenizer, Path(args.output_dir) / "encoder", max_length=args.max_length)
    marks = " (Trained on test rows.)" if script.include_eval_rows else ""
    results: dict[str, Any] = {"before": {}, "after": {}, "gain": {}}
    predictions: dict[str, tuple[str, Any, Any]] = {}
    for corpus, parts in measured.items():
        truth = labels_of(parts["test"])
        old_pooling, old = before[corpus]
        new = probe(embed_parts(model.encoder, tokenizer, parts, script.pooling, args.max_length), parts, "test")
        results["before"][corpus] = {"pooling": old_pooling, **va_metrics(old, truth, seed=args.seed)}
        results["after"][corpus] = {"pooling": script.pooling, **va_metrics(new, truth, seed=args.seed)}
        results["gain"][corpus] = va_gain(old, new, truth, seed=args.seed)
        predictions[corpus] = (old_pooling, old, new)
    results["verdict"] = verdict(results["gain"], marks)
    results["trained_on_test_rows"] = script.include_eval_rows
    results["run"] = run_record(script, args, len(train), trainer.state.global_step)
    path = Path(args.output_dir) / "results.json"
    path.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    for corpus, (old_pooling, old, new) in predictions.items():
        parts = measured[corpus]
        name = re.sub(r"[^A-Za-z0-9]+", "-", corpus).strip("-")
        carl_hf.plots.plot_circumplex(
            Path(args.output_dir) / "figures" / f"circumplex-{name}.png",
            {f"{script.encoder}, {old_pooling}": old, f"CARL, {script.pooling}": new},
            labels_of(parts["test"]),
            parts["test"]["label"] if "label" in parts["test"].column_names else None,
        )
    print_report(script, results, {corpus: len(parts["test"]) for corpus, parts in measured.items()})
    print(f"Encoder: {encoder_folder}   results: {path}   figures: {path.parent / 'figures'}")


def run_record(script: PretrainArguments, args: CarlTrainingArguments, texts: int, steps: int) -> dict[str, Any]:
    """What is needed to repeat a run."""
    return {
        "command": " ".join(["examples/pretrain.py", *sys.argv[1:]]),
        "seed": args.seed,
        "preset": args.preset,
        "encoder": script.encoder,
        "corpora": script.corpora,
        "training_texts": texts,
        "steps": steps,
        "batch_size": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "device": str(args.device),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {
            "carl_hf": carl_hf.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


if __name__ == "__main__":
    main()
