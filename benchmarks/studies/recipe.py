"""Which recipe makes the best affective embedding? Trains the recipes of recipes.yaml and measures them on dev splits;
once a recipe is chosen, measures it and the baselines on test splits.

    python benchmarks/studies/recipe.py --data_dir DIR --seeds 42
    python benchmarks/studies/recipe.py --data_dir DIR --only CARL regression --test true

Each run leaves one JSON file in the output folder. Existing runs are not repeated; one with other settings is refused.
At the end the tables (TABLE.md) are rendered from all files. A recipe is chosen by the development score only: the
mean, in points, of r of valence and arousal on EmoBank's dev split and of the accuracies on the dev splits of
GoEmotions six and SST5. The transfer tasks without a dev split (CR, MR, STS) do not count.
"""

import copy
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import datasets
import numpy as np
import pandas as pd
import torch
from recipe_plot import draw_tradeoff
from recipe_tables import items_of, items_path, read_record, read_records, render, tradeoff
from run_tables import slug
from transformers import set_seed

from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments, load_va_dataset
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import environment_record, use_all_cores
from carl_hf.configuration_carl import ContrastLayers
from carl_hf.data.corpora import CORPORA
from carl_hf.data.labelled import EMOTION, read_emotion, read_polarity
from carl_hf.data.loading import Normalization, Split
from carl_hf.data.mixing import class_names, mix_datasets, remove_overlap
from carl_hf.data.splits import split_rows, text_key
from carl_hf.encoders.embedding import ReadPooling, embed_texts
from carl_hf.encoders.loading import load_encoder, load_tokenizer
from carl_hf.evaluation.emotion import class_dataset
from carl_hf.evaluation.suite import run_tasks
from carl_hf.evaluation.tasks import Corpora, Settings
from carl_hf.evaluation.valence_arousal import labels_of
from carl_hf.momentum import update_target
from carl_hf.training.dev_probe import DevProbe
from carl_hf.utils.atomic_files import write_json
from carl_hf.utils.yaml_files import read_yaml
from carl_hf.version import __version__

PROBE_TEXTS = 3000
"""Training texts of a corpus on which its development probe is fitted."""

MEASURING = ("pooling", "export", "toward_plain")
"""What a recipe that measures another recipe's model may set."""

RETIRED = {"layer_decay"}
"""Removed settings of CarlTrainingArguments: recipes with them have records, and cannot be trained again."""

RESERVED = {
    "seed", "use_cpu", "save_strategy", "report_to", "logging_steps", "disable_tqdm", "probe_texts", "output_dir",
}  # fmt: skip


@dataclass
class RecipeArguments:
    study: str = field(default="benchmarks/studies/recipes.yaml", metadata={"help": "YAML file of the recipes."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with local copies of the corpora."})
    output_dir: str = field(
        default="benchmarks/studies/recipe", metadata={"help": "Folder of the records and tables."}
    )
    models_dir: str = field(default="runs/recipe", metadata={"help": "Folder of trained models."})
    only: list[str] | None = field(default=None, metadata={"help": "Names of recipes; default: all."})
    seeds: list[int] | None = field(default=None, metadata={"help": "Seeds; default: those of the study."})
    bf16: bool = field(default=False, metadata={"help": "bfloat16 autocast, for recipes that do not set bf16."})
    test: bool = field(default=False, metadata={"help": "Measure the reported recipes on test splits."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})
    table_only: bool = field(default=False, metadata={"help": "Only render the tables from existing records."})


@dataclass(frozen=True)
class Recipe:
    """How one row of the study is trained.

    Args:
        training: settings of [`CarlTrainingArguments`]; None for the encoder as it is.
        pooling, contrast_layers, dropout: of [`CarlModel.from_encoder`].
        corpora: training corpora. mix: passes over each in an epoch. normalization: of [`load_va_dataset`].
        agreement: share of EmoBank's training texts that is kept, those whose raters agree most (see [`agreed_on`]).
        va_bins: class labels from this many quantiles of valence and of arousal, for objectives on classes.
        export: which branch's encoder is measured. toward_plain: share of the weights as they were before training
            in a weighted mean with those that are measured (Wortsman et al., arXiv 2109.01903).
        of: a recipe whose trained model this one measures in another way; nothing is trained then.
    """

    training: dict[str, Any] | None
    pooling: ReadPooling = "cls"
    contrast_layers: ContrastLayers = "prediction"
    dropout: float | None = None
    corpora: tuple[str, ...] = ("emobank", "facebook")
    mix: tuple[float, ...] | None = None
    normalization: Normalization = "scale"
    agreement: float = 1.0
    va_bins: int | None = None
    export: Literal["online", "target"] = "online"
    toward_plain: float = 0.0
    of: str | None = None

    def __post_init__(self):
        for name, known in (
            ("pooling", ("cls", "mean")),
            ("export", ("online", "target")),
            ("normalization", get_args(Normalization)),
            ("contrast_layers", get_args(ContrastLayers)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}.")
        if not isinstance(self.corpora, tuple):
            raise ValueError(f"corpora must be a list of names, got {self.corpora!r}.")
        unknown = [name for name in self.corpora if name not in (*CORPORA, *EMOTION)]
        if unknown:
            raise ValueError(f"There is no corpus {unknown[0]!r}: choose from {', '.join((*CORPORA, *EMOTION))}.")
        if self.mix is not None and len(self.mix) != len(self.corpora):
            raise ValueError(f"mix needs {len(self.corpora)} numbers, one for each corpus, got {self.mix}.")
        if not 0 < self.agreement <= 1:
            raise ValueError(f"agreement must lie in (0, 1], got {self.agreement}.")
        if self.agreement < 1 and "emobank" not in self.corpora:
            raise ValueError("agreement chooses among the texts of emobank, which is not among the corpora.")
        if not 0 <= self.toward_plain <= 1:
            raise ValueError(f"toward_plain must lie in [0, 1], got {self.toward_plain}.")
        given = RESERVED & set(self.training or {})
        if given:
            raise ValueError(f"{min(given)} is set by the study, not by a recipe.")


@dataclass(frozen=True)
class Study:
    encoder: str
    seeds: list[int]
    baseline: str
    chosen: str | None
    reported: list[str]
    screening: list[str]
    joined: list[str]
    recipes: dict[str, Recipe]

    def settings(self, name: str) -> dict[str, Any]:
        """All that a run of the recipe depends on but its seed and, where the recipe leaves it open, bf16 (which the
        record tells), as a JSON file gives it back."""
        recipe = self.recipes[name]
        source = None if recipe.of is None else dataclasses.asdict(self.recipes[recipe.of])
        return json.loads(
            json.dumps({"encoder": self.encoder, "probe_texts": PROBE_TEXTS, "carl_hf": __version__,
                        "recipe": dataclasses.asdict(recipe), "of": source})
        )  # fmt: skip


def read_study(path: str | Path) -> Study:
    """The study that a YAML file describes: `encoder`, `seeds`, `baseline`, `chosen` (null before the choice),
    `reported`, `screening` (runs of a two-level design, see screening.py; may be empty), `joined` (reported
    ones that the drawing joins), `common` (what holds for all) and `recipes`: name -> what differs, from `common` or
    from the recipe named `like`, or `of`, whose model it measures. `training: null` is the encoder as it is.

    Raises:
        ValueError: for what cannot be read, an unknown name, or settings that CarlTrainingArguments refuses; the
            recipe is named.
    """
    raw = read_yaml(Path(path), "the study")
    names = [f.name for f in dataclasses.fields(Study) if f.name != "recipes"]
    if not isinstance(raw, dict) or set(raw) != {*names, "common", "recipes"}:
        raise ValueError(f"{path} must hold exactly {', '.join([*names, 'common', 'recipes'])}.")
    maps = [raw["common"], raw["recipes"]]
    if isinstance(raw["recipes"], dict):
        maps += [given or {} for given in raw["recipes"].values()]
    if not all(isinstance(part, dict) for part in maps):
        raise ValueError(f"{path}: common, recipes and each recipe must be mappings of names to values.")
    recipes: dict[str, dict[str, Any]] = {}
    for name, given in raw["recipes"].items():
        given = dict(given or {})
        like = given.get("of", given.pop("like", None))
        if like is not None and like not in recipes:
            raise ValueError(f"{path}: recipe {name!r} is like {like!r}, which is not defined before it.")
        if "of" in given and (not set(given) <= {"of", *MEASURING} or {"of", "training"} & set(recipes[like])):
            raise ValueError(
                f"{path}: recipe {name!r} measures the model of {like!r}, which must be a trained one, and may set "
                f"nothing but {', '.join(MEASURING)}."
            )
        if "training" in given and set(given) - {"training", *MEASURING}:
            raise ValueError(f"{path}: recipe {name!r} trains nothing, and may set {', '.join(MEASURING)} alone.")
        if like is not None and "of" not in given and {"of", "training"} & set(recipes[like]):
            raise ValueError(f"{path}: recipe {name!r} is like {like!r}, which is not trained itself.")
        recipes[name] = {**(raw["common"] if like is None else recipes[like]), **given}
    study = Study(
        **{name: raw[name] for name in names},
        recipes={name: _recipe(name, settings) for name, settings in recipes.items()},
    )
    files: dict[str, str] = {}
    for name in study.recipes:
        if files.setdefault(slug(name), name) != name:
            raise ValueError(f"{path}: {files[slug(name)]!r} and {name!r} would have the same files: rename one.")
    named = {study.baseline, *study.joined} | ({study.chosen} - {None})
    for name in (*named, *study.reported, *study.screening):
        if name not in study.recipes:
            raise ValueError(f"{path}: there is no recipe {name!r}.")
    if not named <= set(study.reported):
        raise ValueError(f"{path}: baseline, chosen and joined must be among those that are reported.")
    return study


def _recipe(name: str, settings: dict[str, Any]) -> Recipe:
    own = {f.name for f in dataclasses.fields(Recipe)} - {"training"}
    training = {key: value for key, value in settings.items() if key not in own | {"training"}}
    of_recipe = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in own}
    try:
        recipe = Recipe(None if "training" in settings else training, **of_recipe)
        kept = {key: value for key, value in training.items() if key not in RETIRED}
        CarlTrainingArguments("unused", use_cpu=True, **kept)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Recipe {name!r}: {error}") from error
    return recipe


class Runner:
    def __init__(self, study: Study, args: RecipeArguments):
        self.study, self.args = study, args
        self.tokenizer = load_tokenizer(study.encoder)
        self.plain = load_encoder(study.encoder)
        splits = ("train", "validation", "test")
        self.emobank = {split: load_va_dataset("emobank", split=split, data_dir=args.data_dir) for split in splits}
        self.held_out = [self.emobank[split]["text"] for split in splits[1:]]
        self.probes: dict[str, tuple[DevProbe, datasets.Dataset]] = {}
        self._add_probe("emobank", self.emobank["train"], self.emobank["validation"])
        for name, read in (("goemotions-six", read_emotion), ("sst5", read_polarity)):
            corpus = read(name, args.data_dir)
            train, dev, test = (class_dataset(corpus, rows) for rows in split_rows(corpus))
            self._add_probe(name, train, dev)
            self.held_out += [dev["text"], test["text"]]
        self.held_out += [read_polarity(name, args.data_dir).texts for name in ("cr", "mr")]

    def _add_probe(self, name: str, train: datasets.Dataset, dev: datasets.Dataset) -> None:
        self.probes[name] = DevProbe(train, texts=PROBE_TEXTS, seed=42), dev

    def texts(self, recipe: Recipe, seed: int) -> datasets.Dataset:
        texts_of = []
        for corpus in recipe.corpora:
            if corpus in CORPORA:
                texts = self._va_texts(recipe, corpus, "train")
                if corpus == "emobank" and recipe.agreement < 1:
                    texts = agreed_on(texts, self.args.data_dir, recipe.agreement)
                texts_of.append(texts)
            else:
                emotions = read_emotion(corpus, self.args.data_dir)
                texts_of.append(class_dataset(emotions, split_rows(emotions)[0]))
        mix = recipe.mix or (1.0,) * len(texts_of)
        texts = remove_overlap(mix_datasets(list(zip(texts_of, mix, strict=True)), seed=seed), self.held_out)
        return texts if recipe.va_bins is None else label_bins(texts, recipe.va_bins)

    def _va_texts(self, recipe: Recipe, corpus: str, split: Split) -> datasets.Dataset:
        return load_va_dataset(corpus, split=split, data_dir=self.args.data_dir, normalization=recipe.normalization)

    def train(self, recipe: Recipe, seed: int) -> tuple[CarlModel, dict[str, Any]]:
        """The model, and the outcome of training: steps, seconds, the detector's AUC on development texts."""
        set_seed(seed)
        if recipe.training is None:
            return CarlModel.from_encoder(self.study.encoder, pooling=recipe.pooling), {"steps": 0}
        args = CarlTrainingArguments(
            "unused", seed=seed, use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to="none",
            logging_steps=50, disable_tqdm=True, probe_texts=0, **{"bf16": self.args.bf16, **recipe.training},
        )  # fmt: skip
        texts = self.texts(recipe, seed)
        model = CarlModel.from_encoder(
            self.study.encoder, pooling=recipe.pooling, contrast_layers=recipe.contrast_layers,
            dropout=recipe.dropout, heads=args.heads, classes=class_names(texts) if args.heads else (),
        )  # fmt: skip
        trainer = CarlTrainer(model=model, args=args, train_dataset=texts, processing_class=self.tokenizer)
        start = time.perf_counter()
        trainer.train()
        cost = {"steps": trainer.state.global_step, "training_seconds": round(time.perf_counter() - start, 1),
                "training_texts": len(texts), "bf16": args.bf16}  # fmt: skip
        return model, {**cost, "detector_auc": self._detector(trainer, recipe)}

    def _detector(self, trainer: CarlTrainer, recipe: Recipe) -> dict[str, float] | None:
        """AUC of the model's own detector on EmoBank's development texts, at the recipe's radius and at radius 0."""
        args = trainer.args
        if "ptd" not in args.weights:
            return None
        texts = self._va_texts(recipe, "emobank", "validation")
        found, radius = {}, args.perturbation_radius
        for name, value in (("radius", radius), ("no radius", 0.0)):
            args.perturbation_radius = value
            found[name] = trainer.evaluate(texts)["eval_detector_auc"]
        args.perturbation_radius = radius
        return found

    def encoder_of(self, recipe: Recipe, model: CarlModel) -> Callable[[Sequence[str]], np.ndarray]:
        encoder = (model.target if recipe.export == "target" else model.online).encoder
        if recipe.toward_plain:
            encoder = copy.deepcopy(encoder)
            update_target(encoder, self.plain.to(encoder.device), momentum=1 - recipe.toward_plain)

        def encode(texts: Sequence[str]) -> np.ndarray:
            return embed_texts(encoder, list(texts), self.tokenizer, pooling=recipe.pooling).numpy()

        return encode

    def measure_dev(self, recipe: Recipe, model: CarlModel) -> dict[str, float]:
        encode, found = self.encoder_of(recipe, model), {}
        for name, (probe, dev) in self.probes.items():
            metrics = probe(encode, dev)
            if name == "emobank":
                found |= {"valence": metrics["valence_pearson"], "arousal": metrics["arousal_pearson"]}
            else:
                found[name] = metrics["label_accuracy"]
        found["score"] = np.mean(
            [100 * found["valence"], 100 * found["arousal"], found["goemotions-six"], found["sst5"]]
        ).item()
        return found

    def measure_test(self, recipe: Recipe, model: CarlModel, items_file: Path) -> dict[str, Any]:
        settings = Settings(
            tasks=("va", "polarity", "emotion", "semantics"), data_dir=self.args.data_dir, va=("emobank",),
            emotion=("goemotions-six",), strict=True,
        )  # fmt: skip
        run = run_tasks(self.encoder_of(recipe, model), settings, Corpora(settings))
        items_file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(items_file, **items_of(run.items))
        return run.metrics


def agreed_on(texts: datasets.Dataset, data_dir: str | None, share: float) -> datasets.Dataset:
    """The share of EmoBank's texts on which raters agree most, given their intensity.

    Disagreement is the difference between the readers' and the writers' mean, of valence and of arousal, plus the mean
    of the four standard deviations (`emobank_reader_writer.csv`, after Buechel and Hahn 2017). Raters agree more on
    neutral texts, so texts are ranked by their residual from a line of disagreement over intensity.

    Raises:
        ValueError: if the folder lacks the ratings by perspective.
    """
    folder = Path(data_dir or "") / "emobank"
    try:
        rated = pd.read_csv(folder / "emobank_reader_writer.csv").merge(
            pd.read_csv(folder / "emobank.csv", keep_default_na=False)[["id", "text"]], on="id"
        )
    except (OSError, KeyError, pd.errors.ParserError) as error:
        raise ValueError(
            f"agreement needs emobank.csv and emobank_reader_writer.csv in {folder}, see --data_dir: {error}"
        ) from error
    deviations = rated[["sdV_reader", "sdA_reader", "sdV_writer", "sdA_writer"]].mean(axis=1)
    between = (rated["V_reader"] - rated["V_writer"]).abs() + (rated["A_reader"] - rated["A_writer"]).abs()
    found = dict(zip(rated["text"].map(text_key), between + deviations, strict=True))
    disagreement = np.array([found[text_key(text)] for text in texts["text"]])
    intensity = np.linalg.norm(labels_of(texts, any_unit=True), axis=1)
    above = disagreement - np.polyval(np.polyfit(intensity, disagreement, 1), intensity)
    return texts.select(np.sort(np.argsort(above, kind="stable")[: round(share * len(texts))]))


def label_bins(texts: datasets.Dataset, bins: int) -> datasets.Dataset:
    """The texts with class labels: one class for each pair of quantiles of valence and arousal. Ties make classes of
    different sizes.

    Raises:
        ValueError: if a text has no VA labels.
    """
    labels = labels_of(texts, any_unit=True)
    if np.isnan(labels).any():
        raise ValueError("va_bins needs corpora whose texts all have valence and arousal.")
    edges = np.quantile(labels, np.arange(1, bins) / bins, axis=0)
    found = (labels[:, None, :] >= edges).sum(1)
    names = [f"valence {v}, arousal {a}" for v, a in found]
    return texts.select_columns(["text", "valence", "arousal"]).add_column("label", names)


def run_study(study: Study, args: RecipeArguments) -> np.ndarray:
    """Makes the missing records. Returns (N, 2) valence and arousal of EmoBank's test texts."""
    unknown = [name for name in args.only or () if name not in study.recipes]
    if unknown:
        raise ValueError(f"There is no recipe {unknown[0]!r}: choose from {', '.join(study.recipes)}.")
    if args.test and study.chosen is None:
        raise ValueError(
            "Nothing is chosen yet (chosen in the study's file): test splits are measured after the choice."
        )
    runner = Runner(study, args)
    for seed in args.seeds or study.seeds:
        for name in args.only or study.recipes:
            run_one(runner, name, study.seeds[0] if study.recipes[name].training is None else seed)
    return labels_of(runner.emobank["test"])


def run_one(runner: Runner, name: str, seed: int) -> None:
    """Trains and measures a recipe unless its record exists; with --test also on test splits, once."""
    args, study = runner.args, runner.study
    settings, recipe = study.settings(name), study.recipes[name]
    file = f"{slug(name)}-{seed}"
    path = Path(args.output_dir) / f"{file}.json"
    if path.is_file():
        record = read_record(path, settings)
    else:
        if recipe.of is not None:
            run_one(runner, recipe.of, seed)
        print(f"{name}, seed {seed} ...", flush=True)
        model, outcome = _model(runner, name, seed)
        record = {"name": name, "seed": seed, "settings": settings, **outcome,
                  "dev": runner.measure_dev(recipe, model.eval()), **environment_record()}  # fmt: skip
        write_json(path, record)
    if args.test and name in study.reported and "test" not in record:
        print(f"{name}, seed {seed}, on test splits ...", flush=True)
        found = runner.train(recipe, seed) if recipe.training is None else _kept(runner, name, seed)
        if found is None or found[1] != {key: record.get(key) for key in found[1]}:
            raise ValueError(
                f"{args.models_dir} does not hold the model that {path} describes: remove the record, and the "
                "recipe is trained and measured again."
            )
        record["test"] = runner.measure_test(recipe, found[0].eval(), items_path(path.parent, file))
        record["chosen_when_tested"] = study.chosen
        write_json(path, record)


def _folder(runner: Runner, name: str, seed: int) -> Path:
    """Where the model of a recipe is kept."""
    return Path(runner.args.models_dir) / f"{slug(runner.study.recipes[name].of or name)}-{seed}"


def _kept(runner: Runner, name: str, seed: int) -> tuple[CarlModel, dict[str, Any]] | None:
    """The trained model of a recipe and the outcome of its training, if it is kept and has these settings."""
    folder = _folder(runner, name, seed)
    if not (folder / "outcome.json").is_file():
        return None
    outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    if outcome.pop("settings") != runner.study.settings(runner.study.recipes[name].of or name):
        return None
    return CarlModel.from_pretrained(folder), outcome


def _model(runner: Runner, name: str, seed: int) -> tuple[CarlModel, dict[str, Any]]:
    """The same, trained if it is not kept. Kept are models that are reported, or measured in several ways."""
    study = runner.study
    source = study.recipes[name].of or name
    recipe = study.recipes[source]
    if recipe.training is None:
        return runner.train(recipe, seed)
    found = _kept(runner, name, seed)
    if found is None:
        found = model, outcome = runner.train(recipe, seed)
        if source in study.reported or any(other.of == source for other in study.recipes.values()):
            folder = _folder(runner, name, seed)
            (folder / "outcome.json").unlink(missing_ok=True)  # until the new weights are whole
            model.save_pretrained(folder)
            write_json(folder / "outcome.json", {"settings": study.settings(source), **outcome})
    return found


def main() -> None:
    try:
        args = parse_script_arguments(RecipeArguments)
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        study, folder = read_study(args.study), Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        truth = None
        if not args.table_only:
            use_all_cores(args.num_threads)
            datasets.disable_progress_bars()
            truth = run_study(study, args)
        records = read_records(study, folder)
        tables = render(study, records, folder, truth)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(tables)
    (folder / "TABLE.md").write_text(tables, encoding="utf-8")
    points = tradeoff(study, records)
    if study.joined and set(study.joined) <= set(points):
        draw_tradeoff(folder / "tradeoff.png", points, study.joined)


if __name__ == "__main__":
    main()
