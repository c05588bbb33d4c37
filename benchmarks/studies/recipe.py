"""Which recipe makes the best affective space? Trains the recipes of recipes.yaml and measures them on development
parts; once a recipe is chosen, measures it and the alternatives on test parts.

    python benchmarks/studies/recipe.py --data_dir DIR --seeds 42
    python benchmarks/studies/recipe.py --data_dir DIR --only recipe regression --test true

Each run leaves one JSON file in the output folder. Existing runs are not repeated; one with other settings is refused.
A training that was stopped goes on from its last checkpoint.
At the end the tables (TABLE.md) are rendered from all files. A recipe is chosen by the score of development.py alone.
"""

import contextlib
import copy
import dataclasses
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import datasets
import numpy as np
import torch
from averaging import AverageLast
from development import DevelopmentScore, held_out_texts
from recipe_tables import items_of, items_path, read_record, read_records, render
from run_tables import slug
from transformers import PreTrainedTokenizerBase, set_seed

from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments, load_va_dataset
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import environment_record, use_all_cores
from carl_hf.configuration_carl import ContrastLayers
from carl_hf.data.corpora import CORPORA
from carl_hf.data.labelled import EMOTION, read_emotion
from carl_hf.data.loading import NoRatingsError, Normalization
from carl_hf.data.mixing import class_names, mix_datasets, remove_overlap
from carl_hf.data.splits import split_rows
from carl_hf.encoders import load_tokenizer
from carl_hf.encoders.embedding import ReadPooling, embed_texts
from carl_hf.evaluation.emotion import class_dataset
from carl_hf.evaluation.suite import run_tasks
from carl_hf.evaluation.tasks import Corpora, Settings
from carl_hf.momentum import update_target
from carl_hf.utils.atomic_files import write_json
from carl_hf.utils.yaml_files import read_yaml

MEASURING = ("pooling", "export", "toward_plain")
"""What a recipe that measures another recipe's model may set."""

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
    bf16: bool = field(
        default=False,
        metadata={"help": "bfloat16 autocast, for training and for measuring."},
    )
    test: bool = field(default=False, metadata={"help": "Measure the reported recipes on test parts."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})
    table_only: bool = field(default=False, metadata={"help": "Only render the tables from existing records."})


@dataclass(frozen=True)
class Recipe:
    """How one row of the study is trained.

    Args:
        training: settings of [`CarlTrainingArguments`]; None for the encoder as it is.
        encoder, pooling, contrast_layers, dropout, emoji: of [`CarlModel.from_encoder`].
        corpora: training corpora by name, or CSV files of texts rated from 0 to 1 (teacher.py writes such).
        mix: passes over each in an epoch. normalization: of [`load_va_dataset`].
        agreement_weights: whether EmoBank's texts weigh more on which its raters agree. dominance: whether the labels
            have it as a third dimension where the corpus has it.
        averaged: (count, points) of [`averaging.AverageLast`]: the mean of the encoder's weights late in training.
        export: which branch's encoder is measured. toward_plain: share of the weights as they were before training
            in a weighted mean with those that are measured (Wortsman et al., arXiv 2109.01903).
        of: a recipe whose trained model this one measures in another way; nothing is trained then.
    """

    training: dict[str, Any] | None
    encoder: str = "minilm-l6"
    pooling: ReadPooling = "cls"
    contrast_layers: ContrastLayers = "prediction"
    dropout: float | None = None
    emoji: bool = False
    corpora: tuple[str, ...] = ("emobank", "facebook")
    mix: tuple[float, ...] | None = None
    normalization: Normalization = "standardized"
    agreement_weights: bool = False
    dominance: bool = False
    averaged: tuple[int, int] | None = None
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
        unknown = [name for name in self.corpora if name not in (*CORPORA, *EMOTION) and not name.endswith(".csv")]
        if unknown:
            known = ", ".join((*CORPORA, *EMOTION))
            raise ValueError(f"There is no corpus {unknown[0]!r}: choose from {known}, or name a CSV file.")
        if self.mix is not None and len(self.mix) != len(self.corpora):
            raise ValueError(f"mix needs {len(self.corpora)} numbers, one for each corpus, got {self.mix}.")
        if not 0 <= self.toward_plain <= 1:
            raise ValueError(f"toward_plain must lie in [0, 1], got {self.toward_plain}.")
        given = RESERVED & set(self.training or {})
        if given:
            raise ValueError(f"{min(given)} is set by the study, not by a recipe.")

    def settings(self) -> dict[str, Any]:
        """What differs from the defaults."""
        fields = {f.name: f.default for f in dataclasses.fields(self)}
        return {k: v for k, v in dataclasses.asdict(self).items() if k == "training" or v != fields[k]}


@dataclass(frozen=True)
class Study:
    seeds: list[int]
    baseline: str
    chosen: str | None
    reported: list[str]
    recipes: dict[str, Recipe]

    def settings(self, name: str) -> dict[str, Any]:
        """All that a run of the recipe depends on but its seed and bf16 (of measuring, and of training where the
        recipe leaves it open; the record tells), as a JSON file gives it back. Fields of [`Recipe`] at their defaults
        are left out."""
        recipe = self.recipes[name]
        source = None if recipe.of is None else self.recipes[recipe.of].settings()
        return json.loads(json.dumps({"recipe": recipe.settings(), "of": source}))


def read_study(path: str | Path) -> Study:
    """The study that a YAML file describes: `seeds`, `baseline`, `chosen` (null before the choice), `reported`,
    `common` (what holds for all) and `recipes`: name -> what differs, from `common` or from the recipe named `like`,
    or `of`, whose model it measures. `training: null` is the encoder as it is.

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
        if "training" in given and set(given) - {"training", "encoder", "emoji", *MEASURING}:
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
    named = {study.baseline} | ({study.chosen} - {None})
    for name in (*named, *study.reported):
        if name not in study.recipes:
            raise ValueError(f"{path}: there is no recipe {name!r}.")
    if not named <= set(study.reported):
        raise ValueError(f"{path}: baseline and chosen must be among those that are reported.")
    return study


def _recipe(name: str, settings: dict[str, Any]) -> Recipe:
    own = {f.name for f in dataclasses.fields(Recipe)} - {"training"}
    training = {key: value for key, value in settings.items() if key not in own | {"training"}}
    of_recipe = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in own}
    try:
        recipe = Recipe(None if "training" in settings else training, **of_recipe)
        CarlTrainingArguments("unused", use_cpu=True, **training)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Recipe {name!r}: {error}") from error
    return recipe


class Runner:
    def __init__(self, study: Study, args: RecipeArguments):
        self.study, self.args = study, args
        self.development, self.held_out = DevelopmentScore(args.data_dir), held_out_texts(args.data_dir)

    def texts(self, recipe: Recipe, seed: int) -> datasets.Dataset:
        texts_of = []
        for corpus in recipe.corpora:
            if corpus not in EMOTION:
                texts_of.append(self._va_texts(recipe, corpus))
            else:
                emotions = read_emotion(corpus, self.args.data_dir)
                texts_of.append(class_dataset(emotions, split_rows(emotions)[0]))
        mix = recipe.mix or (1.0,) * len(texts_of)
        return remove_overlap(mix_datasets(list(zip(texts_of, mix, strict=True)), seed=seed), self.held_out)

    def _va_texts(self, recipe: Recipe, corpus: str) -> datasets.Dataset:
        given: dict[str, Any] = {"normalization": recipe.normalization, "dominance": recipe.dominance,
                                 "data_dir": self.args.data_dir}  # fmt: skip
        if corpus not in CORPORA:
            given["scale"] = (0, 1)
        if recipe.agreement_weights:
            with contextlib.suppress(NoRatingsError):  # its texts weigh 1
                return load_va_dataset(corpus, split="train", agreement_weights=True, **given)
        return load_va_dataset(corpus, split="train", **given)

    def tokenizer(self, recipe: Recipe) -> PreTrainedTokenizerBase:
        return load_tokenizer(recipe.encoder, emoji=recipe.emoji)

    def model(self, recipe: Recipe, heads: Sequence[str] = (), classes: Sequence[str] = ()) -> CarlModel:
        return CarlModel.from_encoder(
            recipe.encoder, pooling=recipe.pooling, contrast_layers=recipe.contrast_layers, dropout=recipe.dropout,
            emoji=recipe.emoji, heads=heads, classes=classes, dominance=recipe.dominance,
        )  # fmt: skip

    def plain(self, recipe: Recipe, seed: int) -> tuple[CarlModel, dict[str, Any]]:
        """The model of a recipe without training, and that as its outcome."""
        set_seed(seed)
        return self.model(recipe), {"steps": 0}

    def train(self, recipe: Recipe, seed: int, folder: Path) -> tuple[CarlModel, dict[str, Any]]:
        """The model, and the outcome of training: steps, seconds (unless it was stopped in between), the detector's
        AUC on development texts. A training that `folder` holds checkpoints of goes on from the last one."""
        set_seed(seed)
        args = CarlTrainingArguments(
            str(folder), seed=seed, use_cpu=not torch.cuda.is_available(), report_to="none", logging_steps=50,
            # what is averaged is in no checkpoint
            save_strategy="no" if recipe.averaged else "steps", save_steps=0.1, save_total_limit=1,
            disable_tqdm=True, probe_texts=0, **{"bf16": self.args.bf16, **recipe.training},
        )  # fmt: skip
        texts = self.texts(recipe, seed)
        model = self.model(recipe, args.heads, class_names(texts) if "classifier" in args.heads else ())
        trainer = CarlTrainer(model=model, args=args, train_dataset=texts, processing_class=self.tokenizer(recipe))
        if recipe.averaged:
            trainer.add_callback(AverageLast(*recipe.averaged))
        start = time.perf_counter()
        trainer.train("last" if any(folder.glob("checkpoint-*/checkpoint.json")) else None)
        cost = {"steps": trainer.state.global_step, "training_texts": len(texts), "bf16": args.bf16}
        if not trainer.start_step:
            cost["training_seconds"] = round(time.perf_counter() - start, 1)
        return model, {**cost, "detector_auc": self._detector(trainer, recipe)}

    def _detector(self, trainer: CarlTrainer, recipe: Recipe) -> dict[str, float] | None:
        """AUC of the model's own detector on EmoBank's development texts, at the recipe's radius and at radius 0."""
        args = trainer.args
        if "ptd" not in args.weights:
            return None
        texts = load_va_dataset(
            "emobank", split="validation", data_dir=self.args.data_dir, normalization=recipe.normalization
        )
        found, radius = {}, args.perturbation_radius
        for name, value in (("radius", radius), ("no radius", 0.0)):
            args.perturbation_radius = value
            found[name] = trainer.evaluate(texts)["eval_detector_auc"]
        args.perturbation_radius = radius
        return found

    def encoder_of(
        self, recipe: Recipe, model: CarlModel, *, bf16: bool = False
    ) -> Callable[[Sequence[str]], np.ndarray]:
        encoder = (model.target if recipe.export == "target" else model.online).encoder
        if recipe.toward_plain:
            encoder = copy.deepcopy(encoder)
            plain = self.model(recipe).encoder
            update_target(encoder, plain.to(encoder.device), momentum=1 - recipe.toward_plain)
        tokenizer = self.tokenizer(recipe)

        def encode(texts: Sequence[str]) -> np.ndarray:
            with torch.autocast(encoder.device.type, torch.bfloat16, enabled=bf16):
                return embed_texts(encoder, list(texts), tokenizer, pooling=recipe.pooling).float().numpy()

        return encode

    def measure_test(self, recipe: Recipe, model: CarlModel, items_file: Path) -> dict[str, Any]:
        settings = Settings(
            tasks=("va", "polarity", "emotion", "semantics", "space"), data_dir=self.args.data_dir, va=("emobank",),
            emotion=("goemotions-six",), strict=True,
        )  # fmt: skip
        run = run_tasks(self.encoder_of(recipe, model, bf16=self.args.bf16), settings, Corpora(settings))
        items_file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(items_file, **items_of(run.items))
        return run.metrics


def run_study(study: Study, args: RecipeArguments) -> None:
    """Makes the missing records."""
    unknown = [name for name in args.only or () if name not in study.recipes]
    if unknown:
        raise ValueError(f"There is no recipe {unknown[0]!r}: choose from {', '.join(study.recipes)}.")
    if args.test and study.chosen is None:
        raise ValueError(
            "Nothing is chosen yet (chosen in the study's file): test parts are measured after the choice."
        )
    runner = Runner(study, args)
    for seed in args.seeds or study.seeds:
        for name in args.only or study.recipes:
            run_one(runner, name, study.seeds[0] if study.recipes[name].training is None else seed)


def run_one(runner: Runner, name: str, seed: int) -> None:
    """Trains and measures a recipe unless its record exists; with --test also on test parts, once."""
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
        dev = runner.development(runner.encoder_of(recipe, model.eval(), bf16=args.bf16))
        record = {"name": name, "seed": seed, "settings": settings, **outcome, "dev": dev, "dev_bf16": args.bf16}
        record |= environment_record()
        print(f"  score {dev['score']:.1f}", flush=True)
        write_json(path, record)
    if args.test and name in study.reported and "test" not in record:
        print(f"{name}, seed {seed}, on test parts ...", flush=True)
        found = runner.plain(recipe, seed) if recipe.training is None else _kept(runner, name, seed)
        if found is None or found[1] != {key: record.get(key) for key in found[1]}:
            raise ValueError(
                f"{args.models_dir} does not hold the model that {path} describes: remove the record, and the "
                "recipe is trained and measured again."
            )
        record["test"] = runner.measure_test(recipe, found[0].eval(), items_path(path.parent, file))
        record |= {"chosen_when_tested": study.chosen, "test_bf16": args.bf16}
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
    """The same, trained if it is not kept."""
    study = runner.study
    source = study.recipes[name].of or name
    recipe = study.recipes[source]
    if recipe.training is None:
        return runner.plain(recipe, seed)
    found = _kept(runner, name, seed)
    if found is None:
        folder, started = _folder(runner, name, seed), {"settings": study.settings(source), "bf16": runner.args.bf16}
        begun = folder / "training.json"
        if not begun.is_file() or json.loads(begun.read_text(encoding="utf-8")) != started:
            _remove_checkpoints(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(begun, started)
        found = model, outcome = runner.train(recipe, seed, folder)
        (folder / "outcome.json").unlink(missing_ok=True)  # until the new weights are whole
        model.save_pretrained(folder)
        runner.tokenizer(recipe).save_pretrained(folder)  # evaluate.py reads both
        write_json(folder / "outcome.json", {"settings": study.settings(source), **outcome})
        _remove_checkpoints(folder)
    return found


def _remove_checkpoints(folder: Path) -> None:
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def main() -> None:
    try:
        args = parse_script_arguments(RecipeArguments)
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        study, folder = read_study(args.study), Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if not args.table_only:
            use_all_cores(args.num_threads)
            datasets.disable_progress_bars()
            run_study(study, args)
        tables = render(study, read_records(study, folder), folder)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(tables)
    (folder / "TABLE.md").write_text(tables, encoding="utf-8")


if __name__ == "__main__":
    main()
