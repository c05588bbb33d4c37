"""benchmarks/studies/recipe.py as a user starts it, its study file, and its paired bootstrap against plain loops."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import yaml
from test_finetune_example import run

from carl_hf import CarlTrainingArguments

pytestmark = pytest.mark.usefixtures("measuring_packages")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks" / "studies"
STUDY = {
    "encoder": "", "seeds": [1, 2], "baseline": "plain", "chosen": "mean, both",
    "reported": ["as it was", "plain", "mean, both"], "screening": ["plain", "half-life"],
    "joined": ["mean, both", "as it was"],
    "common": {"max_steps": 3, "learning_rate": 5e-3, "per_device_train_batch_size": 32},
    "recipes": {
        "as it was": {"training": None},
        "plain": {"objectives": ["regression"]},
        "half-life": {"like": "plain", "momentum_half_life": 60},
        "carl": {"objectives": ["mccl", "ptd=0.2"], "perturb_half": True},
        "mean, both": {"like": "carl", "pooling": "mean", "objectives": ["mccl", "regression", "ptd=0.2"]},
        "averaged": {"like": "carl", "export": "target", "corpora": ["emobank"], "momentum": 1.0},
        "all plain": {"of": "mean, both", "toward_plain": 1.0, "pooling": "cls"},
        "bins": {"objectives": ["supcon"], "va_bins": 2, "normalization": "standardized", "contrast_layers": "none"},
        "half plain": {"of": "mean, both", "toward_plain": 0.5},
    },
}  # fmt: skip


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import recipe

    yield recipe
    for name in ("recipe", "recipe_tables", "recipe_plot", "run_tables", "screening"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def data_dir(small_corpora, tmp_path_factory):
    """The small corpora, and CR."""
    folder = tmp_path_factory.mktemp("with_cr")
    for path in small_corpora.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "cr").mkdir()
    pd.read_csv(small_corpora / "mr" / "mr.csv").to_csv(folder / "cr" / "cr.csv", index=False)
    return folder


def study_file(folder, encoder="minilm-l6", **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "encoder": str(encoder), **changes}, sort_keys=False))
    return path


def test_runs_are_made_once_and_the_chosen_recipe_is_measured_on_test_parts(tiny, data_dir, tmp_path):
    flags = ("--study", study_file(tmp_path, tiny), "--data_dir", data_dir, "--output_dir", tmp_path / "out",
             "--models_dir", tmp_path / "models", "--num_threads", 1)  # fmt: skip
    first = run("benchmarks/studies/recipe.py", *flags, "--seeds", 1)
    assert "carl, seed 1 ..." in first.stdout and "## Test parts" not in first.stdout
    assert not (tmp_path / "out" / "tradeoff.png").exists()
    records = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    assert set(records) == {
        "as-it-was-1",
        "plain-1",
        "half-life-1",
        "carl-1",
        "mean-both-1",
        "averaged-1",
        "all-plain-1",
        "half-plain-1",
        "bins-1",
    }
    for record in records.values():
        dev = record["dev"]
        parts = (100 * dev["valence"], 100 * dev["arousal"], dev["goemotions-six"], dev["sst5"])
        assert dev["score"] == pytest.approx(sum(parts) / 4) and "test" not in record
    assert records["carl-1"]["steps"] == 3 and set(records["carl-1"]["detector_auc"]) == {"radius", "no radius"}
    # a target that never moves is the encoder as it was, and so is a mean of weights that has no other part
    for name in ("averaged-1", "all-plain-1"):
        assert records[name]["dev"] == pytest.approx(records["as-it-was-1"]["dev"], abs=1e-6)
    assert records["half-plain-1"]["dev"] != records["mean-both-1"]["dev"]
    assert records["half-plain-1"]["training_seconds"] == records["mean-both-1"]["training_seconds"]
    assert records["carl-1"]["dev"] != records["as-it-was-1"]["dev"]

    second = run("benchmarks/studies/recipe.py", *flags, "--test", "true")
    assert "carl, seed 1 ..." not in second.stdout and "carl, seed 2 ..." in second.stdout
    assert "mean, both, seed 1, on test parts ..." in second.stdout and "carl, seed 1, on" not in second.stdout
    tested = json.loads((tmp_path / "out" / "mean-both-1.json").read_text())["test"]
    assert set(tested["polarity"]) == {"mr", "cr", "sst5"} and "stsb" in tested["semantics"]
    table = (tmp_path / "out" / "TABLE.md").read_text()
    scores = [json.loads((tmp_path / "out" / f"carl-{seed}.json").read_text())["dev"]["score"] for seed in (1, 2)]
    row = next(line for line in table.splitlines() if line.startswith("| carl "))
    assert f"| {np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f} |" in row
    gains = json.loads((tmp_path / "out" / "gains.json").read_text())
    assert set(gains) == {"as it was", "plain"}
    assert gains["plain"]["seeds"] == gains["as it was"]["seeds"] == [1, 2]
    # the bootstrap works on what the evaluation measured, and keeps no label
    from carl_hf import load_va_dataset

    truth = load_va_dataset("emobank", split="test", data_dir=str(data_dir))
    with np.load(tmp_path / "out" / "items" / "mean-both-1.npz") as items:
        r = np.corrcoef(items["va/emobank"][:, 0], truth["valence"])[0, 1]
        assert r == pytest.approx(tested["va"]["emobank"]["valence"]["pearson"], abs=1e-6)
        assert {items[name].dtype.kind for name in items if name != "va/emobank"} == {"b"}
        assert 100 * items["polarity/mr"].mean() == pytest.approx(tested["polarity"]["mr"]["accuracy"])
    assert (tmp_path / "out" / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    # the table can be made without corpora
    third = run("benchmarks/studies/recipe.py", *flags[:-4], "--models_dir", tmp_path / "none", "--table_only", "true")
    assert third.stdout.strip() == table.strip()

    # nor is it lost with the items of a run
    (tmp_path / "out" / "items" / "plain-2.npz").write_bytes(b"PK")
    fourth = run("benchmarks/studies/recipe.py", *flags, "--only", "plain", "--seeds", 2)
    assert "plain-2.npz, the test items of 'plain', cannot be read" in fourth.stderr
    assert fourth.stdout.strip() == table.strip()

    # a model that is gone is not replaced under the figures of the old one
    file = tmp_path / "out" / "plain-1.json"
    record = json.loads(file.read_text())
    del record["test"]
    file.write_text(json.dumps(record))
    gone = run("benchmarks/studies/recipe.py", *flags[:-4], "--models_dir", tmp_path / "none", "--only", "plain",
               "--seeds", 1, "--test", "true", "--num_threads", 1, expect=1)  # fmt: skip
    assert "The model whose development figures" in gone.stderr and "test" not in json.loads(file.read_text())
    changed = study_file(tmp_path, tiny, common={**STUDY["common"], "max_steps": 4})
    refused = run("benchmarks/studies/recipe.py", "--study", changed, *flags[2:], "--only", "carl", expect=1)
    assert "carl-1.json was run with other settings (recipe) than 'carl' has now" in refused.stderr
    early = study_file(tmp_path, tiny, chosen=None, joined=[])
    refused = run(
        "benchmarks/studies/recipe.py", "--study", early, *flags[2:], "--only", "plain", "--test", "true", expect=1
    )
    assert "Nothing is chosen yet" in refused.stderr
    wrong = run("benchmarks/studies/recipe.py", *flags, "--only", "karl", expect=1)
    assert "There is no recipe 'karl': choose from as it was" in wrong.stderr


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"chosen": "best"}, "there is no recipe 'best'"),
        ({"recipes": {"a": {"like": "b"}}}, "'a' is like 'b', which does not stand before it"),
        (
            {"recipes": {"a": {}, "b": {"of": "a", "dropout": 0.1}}},
            "may set nothing but pooling, export, toward_plain",
        ),
        ({"recipes": {"a": {}, "b": {"of": "a"}, "c": {"of": "b"}}}, "'c' measures the model of 'b', which must be"),
        ({"recipes": {"a .1": {}, "a 1": {}}}, "'a .1' and 'a 1' would have the same files"),
        ({"recipes": {"a": {"training": None}, "b": {"like": "a"}}}, "'a', which is not trained itself"),
        ({"recipes": {"a": {"training": None, "dropout": 0.1}}}, "'a' trains nothing, and may set pooling"),
        ({"recipes": {"a": {"pooling": "max"}}}, "Recipe 'a': pooling must be cls or mean"),
        ({"recipes": {"a": {"export": "x"}}}, "Recipe 'a': export must be online or target"),
        ({"recipes": {"a": {"corpora": ["emobnk"]}}}, "Recipe 'a': There is no corpus 'emobnk'"),
        ({"recipes": {"a": {"corpora": "emobank"}}}, "Recipe 'a': corpora must be a list"),
        ({"recipes": {"a": {"mix": [1.0]}}}, "Recipe 'a': mix needs 2 numbers"),
        ({"recipes": {"a": {"seed": 1}}}, "Recipe 'a': seed is set by the study"),
        ({"recipes": {"a": {"toward_plain": 2.0}}}, r"Recipe 'a': toward_plain must lie in \[0, 1\]"),
        ({"recipes": {"a": {"agreement": 0}}}, r"Recipe 'a': agreement must lie in \(0, 1\]"),
        ({"recipes": {"a": {"agreement": 0.5, "corpora": ["facebook"]}}}, "Recipe 'a': .*emobank, which is not among"),
        ({"recipes": {"a": {"normalization": "z"}}}, "Recipe 'a': normalization must be scale or observed or stand"),
        ({"recipes": {"a": {"contrast_layers": "z"}}}, "Recipe 'a': contrast_layers must be prediction or"),
        ({"recipes": ["a"]}, "must be mappings"),
        ({"common": None}, "must be mappings"),
        ({"reported": ["plain"]}, "baseline, chosen and joined must be among those that are reported"),
        ({"joined": ["carl"]}, "baseline, chosen and joined must be among those that are reported"),
        ({"common": {"learnin_rate": 1.0}}, "Recipe 'as it was': Unknown training argument 'learnin_rate'"),
        ({"common": {"objectives": ["mcl"]}}, "Recipe 'as it was': .*mcl"),
    ],
)
def test_a_wrong_study_is_refused_before_any_work(changes, message, recipe, tmp_path):
    with pytest.raises(ValueError, match=message):
        recipe.read_study(study_file(tmp_path, **changes))


def test_a_file_that_holds_no_study_is_refused(recipe, tmp_path):
    for text in ("- a", "encoder: x", ":\n- ["):
        (tmp_path / "study.yaml").write_text(text)
        with pytest.raises(ValueError, match="must hold exactly|cannot be read"):
            recipe.read_study(tmp_path / "study.yaml")


def test_the_study_in_the_repository_can_be_read(recipe):
    study = recipe.read_study(BENCHMARKS / "recipes.yaml")
    assert study.baseline in study.reported and len(study.recipes) > 40


def test_the_chosen_recipe_is_the_default(recipe, tmp_path):
    study = recipe.read_study(BENCHMARKS / "recipes.yaml")
    chosen = study.recipes[study.chosen]
    default, found = (
        CarlTrainingArguments(str(tmp_path), use_cpu=True, **settings) for settings in ({}, chosen.training)
    )
    assert found.weights == default.weights
    changed = {f.name for f in dataclasses.fields(found) if getattr(found, f.name) != getattr(default, f.name)}
    assert changed == {"objectives"}
    minilm = yaml.safe_load((BENCHMARKS.parents[1] / "examples" / "configs" / "carl-minilm.yaml").read_text())
    assert (minilm["encoder"], minilm["pooling"], tuple(minilm["corpora"])) == (
        study.encoder, chosen.pooling, chosen.corpora
    )  # fmt: skip
    assert set(minilm) == {"encoder", "pooling", "corpora", "output_dir"}


def test_the_screening_table_compares_the_levels_over_shared_seeds(recipe, tmp_path):
    from recipe_tables import render

    recipes = {
        "a": {},
        "b": {"dropout": 0.1},
        "c": {"learning_rate": 0.1},
        "d": {"dropout": 0.1, "learning_rate": 0.1},
    }
    study = recipe.read_study(
        study_file(
            tmp_path, recipes=recipes, screening=list("abcd"), baseline="a", chosen=None, reported=["a"], joined=[]
        )
    )
    (tmp_path / "out").mkdir()

    def record(name, seed, *dev):
        dev = dict(zip(("valence", "arousal", "goemotions-six", "sst5", "score"), dev, strict=True))
        run = {"name": name, "seed": seed, "settings": study.settings(name), "dev": dev, "steps": 1}
        (tmp_path / "out" / f"{name}-{seed}.json").write_text(json.dumps(run))

    for number, name in enumerate("abcd"):  # dropout adds 1, 2, .. to its figure, the learning rate ten times that
        size = np.array([0.001, 0.002, 3, 4, 5])
        record(name, 1, *(0.1 + size * (number % 2 + 10 * (number // 2))))
    record("a", 2, 9, 9, 9, 9, 9)  # no other run has this seed
    table = render(study, recipe.read_records(study, tmp_path / "out"), tmp_path / "out", None)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    assert ["dropout", "default", "0.1", "+.001", "+.002", "+3.0", "+4.0", "+5.0"] in rows
    assert ["learning_rate", "0.005", "0.1", "+.010", "+.020", "+30.0", "+40.0", "+50.0"] in rows
    assert "seeds 1: a figure" in table and "Chosen: nothing yet" in table
    (tmp_path / "out" / "d-1.json").unlink()
    assert "## Screening" not in render(study, recipe.read_records(study, tmp_path / "out"), tmp_path / "out", None)


def test_bins_hold_equally_many_texts_and_tell_their_quantiles(recipe):
    from conftest import toy_dataset

    texts = toy_dataset(200)
    named = recipe.name_bins(texts, 2)
    middle = np.median(texts["valence"]), np.median(texts["arousal"])
    for row in named:
        assert (
            row["label"] == f"valence {int(row['valence'] >= middle[0])}, arousal {int(row['arousal'] >= middle[1])}"
        )
    assert sum(name.startswith("valence 1") for name in named["label"]) == 100


def test_texts_without_numbers_have_no_bins(recipe):
    from conftest import toy_dataset

    with pytest.raises(ValueError, match="va_bins needs corpora whose texts all have"):
        recipe.name_bins(toy_dataset(9, mixed=True), 2)


def test_texts_on_which_raters_disagree_for_their_intensity_go_first(recipe, tmp_path):
    # disagreement 2 |v|, as raters disagree on what is intense, but for texts 3 and 8
    valence = np.linspace(-0.9, 0.9, 12)
    between = 2 * np.abs(valence) + np.isin(np.arange(12), (3, 8)) * 0.5
    (tmp_path / "emobank").mkdir()
    texts = [f"Text {n}" for n in range(12)]
    pd.DataFrame({"id": range(12), "text": texts}).to_csv(tmp_path / "emobank" / "emobank.csv", index=False)
    ratings = {"V_reader": between, "V_writer": 0.0, "A_reader": 1.0, "A_writer": 1.0}
    deviations = dict.fromkeys(["sdV_reader", "sdA_reader", "sdV_writer", "sdA_writer"], 0.25)
    frame = pd.DataFrame({"id": range(12), **ratings, **deviations})
    corpus = datasets.Dataset.from_dict({"text": texts, "valence": valence, "arousal": np.zeros(12)})
    with pytest.raises(ValueError, match="agreement needs emobank.csv and emobank_reader_writer.csv"):
        recipe.agreed_on(corpus, str(tmp_path), 0.5)
    frame.to_csv(tmp_path / "emobank" / "emobank_reader_writer.csv", index=False)
    kept = recipe.agreed_on(corpus, str(tmp_path), 10 / 12)
    assert kept["text"] == [text for n, text in enumerate(texts) if n not in (3, 8)]


def test_a_recipe_trains_on_what_it_says(recipe, tiny, data_dir, tmp_path):
    for folder in data_dir.iterdir():
        shutil.copytree(folder, tmp_path / folder.name)
    emobank = pd.read_csv(tmp_path / "emobank" / "emobank.csv").assign(id=range(200))
    emobank.to_csv(tmp_path / "emobank" / "emobank.csv", index=False)
    names = ["V_reader", "V_writer", "A_reader", "A_writer", "sdV_reader", "sdA_reader", "sdV_writer", "sdA_writer"]
    ratings = pd.DataFrame(np.random.default_rng(0).random((200, 8)), columns=names).assign(id=range(200))
    ratings.to_csv(tmp_path / "emobank" / "emobank_reader_writer.csv", index=False)
    study = recipe.read_study(study_file(tmp_path, tiny))
    runner = recipe.Runner(study, recipe.RecipeArguments(data_dir=str(tmp_path)))

    def texts(**settings):
        return runner.texts(recipe.Recipe({}, **settings), seed=1)

    both = texts()
    assert len(texts(corpora=("emobank",))) == 120 and len(both) == 200
    assert len(texts(agreement=0.5)) == 140
    assert len(texts(mix=(1.0, 2.0))) == 280
    parts = texts(normalization="standardized", corpora=("emobank",))
    assert np.std(parts["arousal"]) == pytest.approx(1 / 3, abs=1e-6) != np.std(both["arousal"])


def test_gains_are_those_of_plain_loops(recipe):
    from recipe_tables import TRANSFER, paired_gains

    from carl_hf.evaluation.bootstrap import resample_rows

    rng = np.random.default_rng(0)
    truth = rng.normal(size=(60, 2))

    def encoder(noise):
        hits = {task: rng.random(50) > noise / 4 for task in TRANSFER}
        return {"va/emobank": truth + noise * rng.normal(size=(60, 2))} | hits

    pairs = [(encoder(2.0), encoder(1.0)) for _ in range(3)]
    found = paired_gains(pairs, truth)

    def r(items, rows):
        return np.corrcoef(items["va/emobank"][rows, 0], truth[rows, 0])[0, 1]

    whole = range(60)
    assert found["valence"]["gain"] == pytest.approx(np.mean([r(two, whole) - r(one, whole) for one, two in pairs]))
    resampled = [np.mean([r(two, rows) - r(one, rows) for one, two in pairs]) for rows in resample_rows(60, 42)]
    assert found["valence"]["interval"] == pytest.approx(np.quantile(resampled, [0.025, 0.975]).tolist())

    def points(number, task, rows):
        return 100 * np.mean([two[task][rows].mean() - one[task][rows].mean() for one, two in pairs])

    assert found["transfer"]["gain"] == pytest.approx(
        np.mean([points(n, t, range(50)) for n, t in enumerate(TRANSFER)])
    )
    draws = [resample_rows(50, number) for number in range(4)]
    resampled = [np.mean([points(n, t, draws[n][i]) for n, t in enumerate(TRANSFER)]) for i in range(1000)]
    assert found["transfer"]["interval"] == pytest.approx(np.quantile(resampled, [0.025, 0.975]).tolist())
