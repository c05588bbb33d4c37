"""Every objective on the same encoder, texts and number of updates: which embedding does each make?

    python benchmarks/studies/objectives.py --data_dir DIR --suites emolit12 isear goemotions-six va mixed
    python benchmarks/studies/objectives.py --table_only true

Suites: three corpora with class labels; "va", EmoBank and the Facebook posts; "mixed", EmoBank with and without the
class labels of GoEmotions. Each run leaves one JSON file in the output folder; existing runs are not repeated. At the
end the tables (TABLE.md) and the plots are made from all files.

All have one learning rate, tuned for none (the proxies have their own); Proxy-Anchor's first epoch trains only its
proxies. The second row of "mixed" makes more updates, since it has more texts; the others make as many as the first,
with larger batches and smaller weights of the classes. Results are on test splits, with the strength of every probe
chosen on the development split.
"""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from run_tables import mean_and_std, slug
from transformers import set_seed

from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments, load_va_dataset
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import environment_record, use_all_cores
from carl_hf.data.label_spaces import read_label_space
from carl_hf.data.labelled import ClassCorpus, read_emotion
from carl_hf.data.mixing import class_names, mix_datasets, remove_overlap
from carl_hf.data.splits import split_rows
from carl_hf.encoders.loading import load_tokenizer
from carl_hf.evaluation.circumplex import circular_order, radius_against_intensity
from carl_hf.evaluation.emotion import class_dataset, emotion_curve, measure_emotion
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of, ridge_predictions, va_metrics
from carl_hf.report.plots import plot_dimension_curves, plot_points
from carl_hf.report.tables import table
from carl_hf.utils.atomic_files import write_json

CLASS_SUITES = ("emolit12", "isear", "goemotions-six")
CLASS_OBJECTIVES: dict[str, list[str] | None] = {
    "frozen encoder": None,
    "cross-entropy": ["cross_entropy"],
    "Proxy-Anchor": ["proxy_anchor"],
    "supervised contrast": ["supcon"],
    "circular": ["circular"],
    "SimCSE": ["simcse"],
}
VA_OBJECTIVES: dict[str, list[str] | None] = {
    "frozen encoder": None,
    "MCCL": ["mccl=0.8"],
    "CARL (MCCL + PTD)": ["mccl=0.8", "ptd=0.2"],
    "regression": ["regression"],
    "circular": ["circular"],
    "CARL + regression": ["mccl=0.8", "ptd=0.2", "regression"],
    "SimCSE": ["simcse"],
}
MIXED_OBJECTIVES: dict[str, list[str] | None] = {
    "EmoBank": ["mccl=0.8", "regression"],
    "EmoBank + GoEmotions names": ["mccl=0.8", "regression", "cross_entropy"],
    "EmoBank + GoEmotions names, weight .2": ["mccl=0.8", "regression", "cross_entropy=0.2"],
    "EmoBank + GoEmotions names, weight .4": ["mccl=0.8", "regression", "cross_entropy=0.4"],
}
WITH_NAMES = [name for name in MIXED_OBJECTIVES if name != "EmoBank"]
BATCHES = {"EmoBank + GoEmotions names, weight .2": 1.5, "EmoBank + GoEmotions names, weight .4": 1.5}
"""Row -> factor on its batch size. A batch then has as many texts with VA labels, and an epoch as many updates, as
without the texts with class labels, which are half as many."""
# Label space of a corpus for its circular loss and its circular fit: the first that has all its classes
SPACES = {"emolit12": "circle12", "isear": "goemotions28", "goemotions-six": "circle12"}


@dataclass
class ObjectivesArguments:
    data_dir: str | None = field(default=None, metadata={"help": "Folder with local copies of the corpora."})
    output_dir: str = field(
        default="benchmarks/studies/objectives", metadata={"help": "Folder of the runs and the table."}
    )
    suites: list[str] = field(
        default_factory=lambda: [*CLASS_SUITES, "va", "mixed"], metadata={"help": "Any of the suites above."}
    )
    only: list[str] | None = field(default=None, metadata={"help": "Names of objectives as in the table."})
    seeds: list[int] = field(default_factory=lambda: [42, 43, 44], metadata={"help": "Training seeds."})
    encoder: str = field(default="minilm-l6", metadata={"help": "Encoder that every run starts from."})
    epochs: float = field(default=5.0, metadata={"help": "Passes over corpora with class labels."})
    va_epochs: float = field(default=2.0, metadata={"help": "Passes over corpora with VA labels."})
    batch_size: int = field(default=64, metadata={"help": "Texts of a batch, with class labels."})
    va_batch_size: int = field(default=128, metadata={"help": "Texts of a batch, with VA labels."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate, for all."})
    bf16: bool = field(default=False, metadata={"help": "bfloat16 autocast."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})
    table_only: bool = field(default=False, metadata={"help": "Make the tables from the runs that are there."})

    def __post_init__(self):
        unknown = [suite for suite in self.suites if suite not in (*CLASS_SUITES, "va", "mixed")]
        if unknown:
            raise ValueError(f"Unknown suite {unknown[0]!r}: choose from {', '.join((*CLASS_SUITES, 'va', 'mixed'))}.")


class Runner:
    """Trains and measures one cell of the table at a time."""

    def __init__(self, args: ObjectivesArguments):
        self.args = args
        self.tokenizer = load_tokenizer(args.encoder)

    def train(
        self, texts: datasets.Dataset, objectives: list[str] | None, seed: int, pooling: str, **settings: Any
    ) -> tuple[CarlModel, dict[str, Any]]:
        """The model, trained unless `objectives` is None, and what the run cost."""
        set_seed(seed)
        encoder = {"encoder": self.args.encoder}
        if objectives is None:
            return CarlModel.from_encoder(self.args.encoder, pooling=pooling), {"steps": 0, **encoder}
        args = CarlTrainingArguments(
            str(Path(self.args.output_dir) / "unused"), objectives=objectives, seed=seed, save_strategy="no",
            learning_rate=self.args.learning_rate, bf16=self.args.bf16, use_cpu=not torch.cuda.is_available(),
            report_to="none", logging_steps=50, disable_tqdm=True,
            temperature=0.05, perturb_half=False, perturbation_radius=0.5, pgd_step_size=0.5, **settings,
        )  # fmt: skip
        model = CarlModel.from_encoder(
            self.args.encoder, pooling=pooling, contrast_layers="prediction", heads=args.heads,
            classes=class_names(texts) if args.heads else (),
        )  # fmt: skip
        trainer = CarlTrainer(model=model, args=args, train_dataset=texts, processing_class=self.tokenizer)
        start = time.perf_counter()
        trainer.train()
        cost = {"steps": trainer.state.global_step, "batch_size": args.train_batch_size,
                "training_seconds": round(time.perf_counter() - start, 1), "training_texts": len(texts),
                "learning_rate": args.learning_rate, "bf16": args.bf16, "objectives": objectives,
                "epochs": args.num_train_epochs, **encoder}  # fmt: skip
        return model.eval(), cost

    def embed(self, model: CarlModel, texts: Sequence[str]) -> np.ndarray:
        return model.embed(list(texts), self.tokenizer).numpy()

    def class_run(self, suite: str, objectives: list[str] | None, seed: int, pooling: str) -> dict[str, Any]:
        corpus, space = read_emotion(suite, self.args.data_dir), SPACES[suite]
        rows = split_rows(corpus)  # of the data: the same for every training seed
        model, cost = self.train(
            class_dataset(corpus, rows[0]), objectives, seed, pooling, num_train_epochs=self.args.epochs,
            per_device_train_batch_size=self.args.batch_size, label_space=space,
        )  # fmt: skip
        return {**cost, **self.measure_classes(model, corpus, space)}

    def measure_classes(self, model: CarlModel, corpus: ClassCorpus, space: str) -> dict[str, Any]:
        vectors = self.embed(model, corpus.texts)
        report, _ = measure_emotion(lambda _: vectors, corpus, seed=42)
        test = split_rows(corpus)[2]
        angles, names = read_label_space(space).angles, np.array(corpus.classes)[corpus.labels]
        result = {
            "accuracy": report["accuracy"],
            "f1": report["f1"],
            "confusion": report["confusion"],
            "circle": circular_order(vectors[test], names[test], angles, seed=42),
            "dimensions": emotion_curve(vectors, corpus, seed=42),
        }
        own = model.classify(torch.from_numpy(vectors[test]).to(model.device))
        if own is not None and set(model.config.classes) == set(corpus.classes):
            found = np.array(model.config.classes)[own.cpu().numpy()]
            result["own_head_accuracy"] = 100 * float((found == names[test]).mean())
        return result

    def va_splits(self) -> dict[str, datasets.Dataset]:
        return {
            part: load_va_dataset("emobank", split=part, data_dir=self.args.data_dir)
            for part in ("train", "validation", "test")
        }

    def va_run(
        self, texts: datasets.Dataset, parts: dict[str, datasets.Dataset], objectives: list[str] | None, seed: int,
        pooling: str, batch_size: int,
    ) -> dict[str, Any]:  # fmt: skip
        texts = remove_overlap(texts, [parts["validation"]["text"], parts["test"]["text"]])
        model, cost = self.train(
            texts, objectives, seed, pooling, num_train_epochs=self.args.va_epochs,
            per_device_train_batch_size=batch_size,
        )  # fmt: skip
        vectors = {part: self.embed(model, rows["text"]) for part, rows in parts.items()}
        labels = {part: labels_of(rows) for part, rows in parts.items()}
        result: dict[str, Any] = {**cost}
        for part in ("validation", "test"):
            predicted = ridge_predictions(
                vectors["train"], labels["train"], vectors["validation"], labels["validation"], vectors[part]
            )
            found = va_metrics(predicted, labels[part], constant=labels["train"].mean(0), seed=42)
            result[part] = {dimension: found[dimension]["pearson"] for dimension in DIMENSIONS}
        result["radius_intensity"] = radius_against_intensity(vectors["test"], labels["test"])
        six = self.measure_classes(model, read_emotion("goemotions-six", self.args.data_dir), "circle12")
        return {**result, "goemotions-six": six}

    def run(self, suite: str, name: str, objectives: list[str] | None, seed: int, pooling: str) -> dict[str, Any]:
        if suite in CLASS_SUITES:
            return self.class_run(suite, objectives, seed, pooling)
        parts = self.va_splits()
        emobank = parts["train"]
        if suite == "va":
            facebook = load_va_dataset("facebook", split="train", data_dir=self.args.data_dir)
            texts = mix_datasets([(emobank, 1.0), (facebook, 1.0)], seed=seed)
        elif name in WITH_NAMES:
            six = read_emotion("goemotions-six", self.args.data_dir)
            names = class_dataset(six, split_rows(six)[0])
            texts = mix_datasets([(emobank, 1.0), (names, 1.0)], seed=seed)
        else:
            texts = emobank
        return self.va_run(texts, parts, objectives, seed, pooling, batch_size_of(suite, name, self.args))


def cells(suite: str) -> list[tuple[str, list[str] | None, str]]:
    """(name in the table, objectives, pooling) of a suite's rows; the frozen encoder under both poolings."""
    chosen = CLASS_OBJECTIVES if suite in CLASS_SUITES else VA_OBJECTIVES if suite == "va" else MIXED_OBJECTIVES
    rows = []
    for name, objectives in chosen.items():
        poolings = ("cls", "mean") if objectives is None else ("cls",)
        rows += [(f"{name}, {pooling}" if objectives is None else name, objectives, pooling) for pooling in poolings]
    return rows


def file_of(folder: Path, suite: str, name: str, seed: int | None) -> Path:
    return folder / suite / (f"{slug(name)}.json" if seed is None else f"{slug(name)}-{seed}.json")


def batch_size_of(suite: str, name: str, args: ObjectivesArguments) -> int:
    return args.batch_size if suite in CLASS_SUITES else round(args.va_batch_size * BATCHES.get(name, 1))


def check_settings(path: Path, suite: str, name: str, objectives: list[str] | None, args: ObjectivesArguments) -> None:
    """Raises a ValueError if a run that is there had other settings: one table must not mix them."""
    run = _stated(suite, json.loads(path.read_text(encoding="utf-8")))
    if run.get("objectives"):  # in the records published with the study, ptd without a weight has 0.2
        run["objectives"] = ["ptd=0.2" if word == "ptd" else word for word in run["objectives"]]
    wanted = {"learning_rate": args.learning_rate, "bf16": args.bf16, "batch_size": batch_size_of(suite, name, args),
              "objectives": objectives, "encoder": args.encoder,
              "epochs": args.epochs if suite in CLASS_SUITES else args.va_epochs}  # fmt: skip
    if objectives is None:
        wanted = {"encoder": args.encoder}
    for setting, value in wanted.items():
        if run.get(setting, value) != value:
            raise ValueError(f"{path} was run with {setting} {run[setting]}, not {value}: name another --output_dir.")


def _stated(suite: str, run: dict[str, Any]) -> dict[str, Any]:
    """A run with the settings that the records published with the study do not state."""
    return {"encoder": "minilm-l6", "epochs": 5.0 if suite in CLASS_SUITES else 2.0} | run


def _check_alike(suite: str, runs: list[dict[str, Any]]) -> None:
    """Raises a ValueError if trained runs of a suite differ in what must be one for a table."""
    trained = [_stated(suite, run) for run in runs if "learning_rate" in run]
    for setting in ("learning_rate", "bf16", "encoder", "epochs"):
        if len(values := {run[setting] for run in trained}) > 1:
            raise ValueError(
                f"The runs of {suite} differ in {setting} ({', '.join(sorted(map(str, values)))}), and one table must "
                "not mix them: remove some, or name another --output_dir."
            )


def render(folder: Path, args: ObjectivesArguments) -> str:
    """The tables of all runs in the folder; plots are written there too."""
    parts = []
    for suite in (*CLASS_SUITES, "va", "mixed"):
        found: dict[str, list[dict[str, Any]]] = {}
        for name, objectives, _ in cells(suite):
            files = [file_of(folder, suite, name, seed) for seed in ([None] if objectives is None else args.seeds)]
            runs = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()]
            if runs:
                found[name] = runs
        if not found:
            continue
        _check_alike(suite, [run for runs in found.values() for run in runs])
        render_suite = _class_table if suite in CLASS_SUITES else _va_table
        parts.append(f"## {suite}\n\n{render_suite(found)}")
        curves = {
            name: _mean_curve(_on_classes(suite, runs))
            for name, runs in found.items()
            if name != "frozen encoder, cls"
        }
        where = suite if suite in CLASS_SUITES else f"goemotions-six after training on {suite}"
        plot_dimension_curves(
            folder / f"dimensions-{suite}.png", curves, f"{where}, test", "accuracy of a linear probe (%)"
        )
        parts.append(f"![Accuracy against kept dimensions](dimensions-{suite}.png)")
        points = {
            name: (np.mean([run["circle"]["circular_correlation"] for run in runs]), curves[name]["pca"][0],
                   np.mean([run["accuracy"] for run in runs]))
            for name, runs in ((n, _on_classes(suite, r)) for n, r in found.items())
            if name in curves and all(run["circle"].get("circular_correlation") is not None for run in runs)
        }  # fmt: skip
        if points:
            axes = "circular correlation with the labels' angles", "accuracy at 2 kept dimensions (%)"
            plot_points(folder / f"circle-{suite}.png", points, *axes)
            parts.append(f"![Circular correlation and accuracy](circle-{suite}.png)")
    return "\n\n".join(parts) + "\n"


def _on_classes(suite: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was measured on class labels: for suites of VA labels on GoEmotions six."""
    return runs if suite in CLASS_SUITES else [run["goemotions-six"] for run in runs]


def _class_table(found: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    for name, runs in found.items():
        at = {width: [_kept(run, width) for run in runs] for width in (2, 8)}
        rows.append(
            [name, str(len(runs)), _mean([r["accuracy"] for r in runs], 1), _mean([r["f1"] for r in runs], 3),
             _mean([r.get("own_head_accuracy") for r in runs], 1), _mean(at[2], 1), _mean(at[8], 1),
             _mean([r["circle"].get("circular_correlation") for r in runs], 3),
             _mean([r["circle"].get("angular_error") for r in runs], 1),
             _mean([r["circle"].get("chance_error") for r in runs], 1),
             _mean([r["circle"].get("plane_share") for r in runs], 2), str(runs[0]["steps"]),
             _mean([r.get("training_seconds") for r in runs], 0)]
        )  # fmt: skip
    header = ["objective", "seeds", "accuracy", "macro F1", "own head", "2 dims", "8 dims", "circular r",
              "angle error", "by chance", "plane share", "updates", "seconds"]  # fmt: skip
    return table(header, rows)


def _va_table(found: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    for name, runs in found.items():
        metrics = [_mean([r[part][d] for r in runs], 3) for part in ("validation", "test") for d in DIMENSIONS]
        six = [run["goemotions-six"] for run in runs]
        rows.append(
            [name, str(len(runs)), *metrics, _mean([r["radius_intensity"] for r in runs], 3),
             _mean([r["accuracy"] for r in six], 1), _mean([_kept(r, 2) for r in six], 1),
             _mean([r["circle"].get("circular_correlation") for r in six], 3), str(runs[0]["steps"]),
             _mean([r.get("training_seconds") for r in runs], 0)]
        )  # fmt: skip
    header = ["objective", "seeds", "dev V r", "dev A r", "test V r", "test A r", "radius r", "six, accuracy",
              "six, 2 dims", "six, circular r", "updates", "seconds"]  # fmt: skip
    return table(header, rows)


def _kept(run: dict[str, Any], width: int) -> float:
    curve = run["dimensions"]
    return curve["pca"][curve["kept"].index(width)]


def _mean_curve(runs: list[dict[str, Any]]) -> dict[str, Any]:
    curves = [run["dimensions"] for run in runs]
    return {
        "kept": curves[0]["kept"],
        **{key: np.mean([curve[key] for curve in curves], axis=0).tolist() for key in ("pca", "random", "random_std")},
    }


def _mean(values: Sequence[float | None], digits: int) -> str:
    return mean_and_std([value for value in values if value is not None], digits)


def main() -> None:
    try:
        args = parse_script_arguments(ObjectivesArguments)
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        folder = Path(args.output_dir)
        if not args.table_only:
            use_all_cores(args.num_threads)
            runner = Runner(args)
            for seed in args.seeds:
                for suite in args.suites:
                    for name, objectives, pooling in cells(suite):
                        path = file_of(folder, suite, name, None if objectives is None else seed)
                        if args.only is not None and name not in args.only:
                            continue
                        if path.exists():
                            check_settings(path, suite, name, objectives, args)
                            continue
                        print(f"{suite}: {name}, seed {seed} ...", flush=True)
                        result = runner.run(suite, name, objectives, seed, pooling)
                        path.parent.mkdir(parents=True, exist_ok=True)
                        write_json(path, {**result, "seed": seed, "pooling": pooling, **environment_record()})
        tables = render(folder, args)
        if not tables.strip():
            raise ValueError(f"{folder} holds no runs of these seeds: run the study first.")
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(tables)
    (folder / "TABLE.md").write_text(
        "# Every objective on the same encoder and texts\n\nRendered by benchmarks/studies/objectives.py from the "
        "runs beside it; docs/recipe.md explains it. Mean ± standard deviation over seeds.\n\n" + tables,
        encoding="utf-8",
    )  # fmt: skip


if __name__ == "__main__":
    main()
