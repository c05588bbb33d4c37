"""The studies in benchmarks/studies: each runs once on tiny models; published tables are those of the records."""

import dataclasses
import importlib
import json
import math
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import EMOTIONS, emotions, make_trainer, tiny_encoder, words_of
from transformers import TrainerCallback

from carl_hf import CarlModel, CarlTrainingArguments, load_va_dataset
from carl_hf.data.feeling import read_feeling_triplets
from carl_hf.data.labelled import read_emotion, read_polarity
from carl_hf.data.splits import split_rows
from carl_hf.evaluation.encoder import load_text_encoder
from carl_hf.evaluation.space import measure_feeling
from carl_hf.evaluation.statistics import resample_rows
from carl_hf.export.folder import read_record
from carl_hf.report.tables import fraction

pytestmark = pytest.mark.usefixtures("measuring_packages")
STUDIES = Path(__file__).parents[1] / "benchmarks" / "studies"
STUDY = {
    "seeds": [1], "baseline": "plain", "chosen": "both", "reported": ["both", "plain"],
    "common": {"max_steps": 2, "learning_rate": 5e-3, "per_device_train_batch_size": 32, "objectives": ["regression"]},
    "recipes": {
        "as it was": {"training": None},
        "plain": {},
        "both": {"like": "plain", "pooling": "mean", "objectives": ["mccl", "ptd=0.2"], "averaged": [2, 2]},
        "target": {"of": "both", "export": "target"},
        "all plain": {"of": "both", "toward_plain": 1.0, "pooling": "cls"},
    },
}  # fmt: skip


@pytest.fixture
def start(monkeypatch):
    """Runs the main function of a study with the flags given; without flags only imports it."""
    monkeypatch.syspath_prepend(str(STUDIES))

    def run(name, *flags):
        module = importlib.import_module(name)
        if flags:
            monkeypatch.setattr(sys, "argv", [name, *map(str, flags), "--num_threads", "1"])
            module.main()
        return module

    return run


@pytest.fixture
def corpora(small_corpora, tmp_path):
    """The small corpora with CR."""
    data = shutil.copytree(small_corpora, tmp_path / "data")
    (data / "cr").mkdir()
    pd.read_csv(data / "mr" / "mr.csv").to_csv(data / "cr" / "cr.csv", index=False)
    return data


def test_recipes_are_trained_once_and_the_reported_ones_measured_on_test_data(start, tiny, corpora, tmp_path):
    study, output = tmp_path / "study.yaml", tmp_path / "out"
    common = {**STUDY["common"], "encoder": str(tiny)}
    recipes = {**STUDY["recipes"], "as it was": {"training": None, "encoder": str(tiny)}}
    study.write_text(yaml.safe_dump({**STUDY, "common": common, "recipes": recipes}, sort_keys=False))
    flags = ("--study", study, "--output_dir", output, "--models_dir", tmp_path / "models", "--data_dir", corpora)
    start("recipe", *flags, "--test", "true")
    records = {path.stem: json.loads(path.read_text()) for path in output.glob("*-1.json")}
    assert set(records) == {"as-it-was-1", "plain-1", "both-1", "target-1", "all-plain-1"}
    scored = importlib.import_module("development").SCORED
    for name, record in records.items():
        dev = record["dev"]
        assert dev["score"] == pytest.approx(100 * sum(dev[key] for key in scored) / 6)
        assert ("test" in record) == (name in ("both-1", "plain-1"))
    # a weighted mean that gives the trained weights no share is the encoder as it was
    assert records["all-plain-1"]["dev"] == pytest.approx(records["as-it-was-1"]["dev"], abs=1e-6)
    assert len({records[name]["dev"]["score"] for name in ("as-it-was-1", "plain-1", "both-1", "target-1")}) == 4
    with np.load(output / "items" / "both-1.npz") as items:  # what was right, no labels
        test = records["both-1"]["test"]
        assert 100 * items["polarity/mr"].mean() == pytest.approx(test["polarity"]["mr"]["accuracy"])
        feeling = test["space"]["feeling-over-topic"]["accuracy"]
        assert 100 * items["space/feeling-over-topic"].mean() == pytest.approx(feeling)
    assert (tmp_path / "models" / "both-1" / "tokenizer.json").is_file()
    assert {(r["dev_bf16"], r.get("test_bf16", False)) for r in records.values()} == {(False, False)}
    table, written = (output / "TABLE.md").read_text(), (output / "both-1.json").stat().st_mtime_ns
    start("recipe", *flags, "--test", "true")
    assert (output / "TABLE.md").read_text() == table and (output / "both-1.json").stat().st_mtime_ns == written
    study.write_text(study.read_text().replace("max_steps: 2", "max_steps: 4"))
    with pytest.raises(SystemExit, match=r"plain-1.json was run with other settings \(recipe\) than 'plain' has now"):
        start("recipe", *flags)
    study.write_text(study.read_text().replace("max_steps", "max_step"))
    with pytest.raises(SystemExit, match="Recipe 'as it was': Unknown training argument 'max_step'"):
        start("recipe", *flags)


def test_a_recipe_stopped_in_training_goes_on_where_it_was(start, tiny, corpora, tmp_path, monkeypatch):
    study, recipe = tmp_path / "study.yaml", start("recipe")
    plain = {"training": None, "encoder": str(tiny)}
    common = {**STUDY["common"], "encoder": str(tiny), "max_steps": 3}
    recipes = {"as it was": plain, "plain": {}, "both": {"objectives": ["mccl", "ptd=0.2"]}}
    study.write_text(yaml.safe_dump({**STUDY, "common": common, "recipes": recipes}, sort_keys=False))

    def records(name):
        flags = ("--output_dir", tmp_path / f"out-{name}", "--models_dir", tmp_path / name)
        start("recipe", "--study", study, *flags, "--data_dir", corpora, "--only", "both")
        return json.loads((tmp_path / f"out-{name}" / "both-1.json").read_text())

    class Stopped(recipe.CarlTrainer):
        def _save_checkpoint(self, *args, **kwargs):
            super()._save_checkpoint(*args, **kwargs)
            if self.state.global_step == 2:
                raise KeyboardInterrupt

    whole = records("whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recipe, "CarlTrainer", Stopped)
        records("stopped")
    stopped = records("stopped")
    assert stopped["steps"] == 3 and "training_seconds" in whole and "training_seconds" not in stopped
    assert stopped["dev"] == whole["dev"] and stopped["detector_auc"] == whole["detector_auc"]
    assert not list((tmp_path / "stopped").rglob("checkpoint-*"))
    # checkpoints of other settings are not gone on from
    study.write_text(study.read_text().replace("max_steps: 3", "max_steps: 4"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recipe, "CarlTrainer", Stopped)
        records("other")
    study.write_text(study.read_text().replace("max_steps: 4", "max_steps: 3"))
    assert "training_seconds" in records("other")


def test_the_development_score_reads_no_test_text(start, corpora):
    development = start("development")
    score, seen = development.DevelopmentScore(corpora), []

    def encode(texts):
        seen.extend(texts)
        return np.random.default_rng(0).normal(size=(len(texts), 8))

    score(encode)
    test = {text for part in _test_texts(corpora) for text in part}
    assert len(seen) == len(set(seen)) > 100 and not test & set(seen)
    encode = words_of(0.1)  # by the emotion that a text names
    found = score(encode)
    assert found["same emotion"] > 0.95 and found["neighbours"] > 0.9 and found["label nearness"] > 0.3
    feeling = measure_feeling(encode, read_feeling_triplets("validation"), seed=0)[0]["accuracy"]
    assert found["feeling over topic"] == pytest.approx(feeling / 100)


def test_the_development_score_of_any_encoder_is_printed(start, tiny, corpora, capsys, monkeypatch):
    development = start("development", "--model", f"{tiny}@mean", "--data_dir", corpora)
    lines = capsys.readouterr().out.splitlines()
    header, _, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    found = development.DevelopmentScore(corpora)(load_text_encoder(str(tiny), pooling="mean"))
    assert header == ["model", *development.SCORED, "score"] and row[0] == f"{tiny}@mean"
    assert [float(cell) for cell in row[1:-1]] == pytest.approx([found[name] for name in header[1:-1]], abs=6e-4)
    assert float(row[-1]) == pytest.approx(found["score"], abs=0.06)
    vectors = []
    for half in ("false", "true"):  # differ by less than is printed
        monkeypatch.setattr(
            development, "DevelopmentScore", lambda _: lambda encoder: vectors.append(encoder(["joy"]))
        )
        with pytest.raises(TypeError):
            start("development", "--model", f"{tiny}@mean", "--bf16", half)
    assert 0 < np.abs(vectors[1] - vectors[0]).max() < 0.05 * np.abs(vectors[0]).max()
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="^error: .*no-such-model"):
        start("development", "--model", "no-such-model", "--data_dir", corpora)


def _test_texts(folder):
    yield load_va_dataset("emobank", split="test", data_dir=folder)["text"]
    for corpus in (read_emotion("goemotions-six", folder), read_polarity("sst5", folder)):
        yield corpus.part(split_rows(corpus)[2])[0]
    yield from read_feeling_triplets("test")[["anchor", "same_feeling", "opposite_feeling"]].to_numpy()


def test_published_tables_are_those_of_the_records(start, monkeypatch, tmp_path):
    recipe, folder = start("recipe"), STUDIES / "recipe"
    study = recipe.read_study(STUDIES / "recipes.yaml")
    assert (folder / "TABLE.md").read_text() == recipe.render(study, recipe.read_records(study, folder), folder)
    objectives = start("objectives")
    for draw in ("plot_dimension_curves", "plot_points"):
        monkeypatch.setattr(objectives, draw, lambda *_: None)
    tables = objectives.render(STUDIES / "objectives", objectives.ObjectivesArguments())
    assert (STUDIES / "objectives" / "TABLE.md").read_text().endswith(tables)
    results = json.loads((STUDIES / "attributions" / "results.json").read_text())
    assert (STUDIES / "attributions" / "TABLE.md").read_text() == start("attributions").rendered(results)


def test_the_chosen_recipe_is_the_default(start):
    study = start("recipe").read_study(STUDIES / "recipes.yaml")
    chosen, default = study.recipes[study.chosen], CarlTrainingArguments("unused", use_cpu=True)
    trained = CarlTrainingArguments("unused", use_cpu=True, **chosen.training)
    assert trained.weights == default.weights
    assert {k: v for k, v in trained.to_dict().items() if k != "objectives"} == {
        k: v for k, v in default.to_dict().items() if k != "objectives"
    }
    config = yaml.safe_load((STUDIES.parents[1] / "examples" / "configs" / "carl-minilm.yaml").read_text())
    assert tuple(config["corpora"]) == chosen.corpora and config["encoder"] == chosen.encoder
    model = CarlModel.from_encoder(tiny_encoder()).config
    assert (model.contrast_layers, model.pooling) == (chosen.contrast_layers, chosen.pooling)


def test_gains_are_those_of_plain_loops(start):
    tables, rng = start("recipe_tables"), np.random.default_rng(0)
    pairs = [tuple({key: rng.random(50) > 0.5 for key in tables.PAIRED.values()} for _ in "12") for _ in range(3)]
    gain, interval = tables.paired_gains(pairs)["feeling over topic"]
    differences = [float(two[key][i]) - float(one[key][i]) for one, two in pairs
                   for key in ["space/feeling-over-topic"] for i in range(50)]  # fmt: skip
    assert gain == pytest.approx(100 * np.mean(differences))
    per_item = 100 * np.reshape(differences, (3, 50)).mean(0)
    resampled = [np.mean([per_item[i] for i in rows]) for rows in resample_rows(50, seed=0)]
    assert interval == pytest.approx(np.quantile(resampled, [0.025, 0.975]).tolist())


def test_objectives_are_compared_on_one_encoder(start, tiny, small_corpora, tmp_path):
    flags = ("--encoder", tiny, "--data_dir", small_corpora, "--output_dir", tmp_path, "--suites", "goemotions-six",
             "mixed", "--only", "circular", "EmoBank + GoEmotions names", "--batch_size", 32, "--va_batch_size", 32,
             "--epochs", 1, "--va_epochs", 1, "--seeds", 1)  # fmt: skip
    start("objectives", *flags)
    run = json.loads((tmp_path / "goemotions-six" / "circular-1.json").read_text())
    assert run["objectives"] == ["circular"] and run["seed"] == 1 and run["steps"] == 3
    row = next(line for line in (tmp_path / "TABLE.md").read_text().splitlines() if line.startswith("| circular "))
    assert f"{run['accuracy']:.1f} |" in row and (tmp_path / "circle-mixed.png").stat().st_size > 5000
    for setting, old, new in (("learning_rate", 0.0001, 0.1), ("epochs", 1.0, 2.0), ("encoder", tiny, "minilm-l6")):
        with pytest.raises(SystemExit, match=f"was run with {setting} {old}, not {new}"):
            start("objectives", *flags, f"--{setting}", new)
    for seed, rate in ((2, 0.0001), (3, 0.1)):  # rows that one call does not look at
        other = {**run, "seed": seed, "learning_rate": rate}
        (tmp_path / "goemotions-six" / f"circular-{seed}.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match=r"runs of goemotions-six differ in learning_rate \(0.0001, 0.1\)"):
        start("objectives", "--output_dir", tmp_path, "--table_only", "true", "--seeds", 2, 3)
    with pytest.raises(SystemExit, match="holds no runs of these seeds"):
        start("objectives", "--output_dir", tmp_path / "none", "--table_only", "true")


def test_attributions_are_compared_with_leaving_words_out(start, exports, tmp_path):
    start("attributions", "--model", exports[0] / "va", "--texts", 3, "--steps", 2, "--output_dir", tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["texts"] == 3 and (tmp_path / "TABLE.md").is_file()


def test_the_baseline_of_sentence_transformers_trains_on_pairs_and_is_measured(start, tiny, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = tmp_path / "model"
    flags = ("--encoder", tiny, "--output_dir", folder, "--batch_size", "64", "--max_length", "16", "--passes", "1")
    start("sentence_transformers_baseline", *flags, "--learning_rate", "5e-3", "--loss", "angle", "--seed", "3")
    record = json.loads((folder / "run.json").read_text())
    texts = load_va_dataset("demo", split="train")
    assert record["pairs"] == len(texts) // 2 and record["steps"] == record["pairs"] // 32
    assert record["losses"][-1] < record["losses"][0]
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    encoder = load_text_encoder(str(folder), max_length=16)
    assert encoder.pooling == "mean"
    np.testing.assert_allclose(encoder(["so happy", "b"]), model.encode(["so happy", "b"]), atol=1e-5)


def test_pairs_are_drawn_anew_in_each_pass_and_their_similarity_falls_with_the_distance(start):
    labels = {"a": (0.0, 0.0), "b": (0.0, 0.5), "c": (-1.0, 1.0), "d": (1.0, -1.0), "e": (0.0, 0.0)}
    valence, arousal = zip(*labels.values(), strict=True)
    texts = datasets.Dataset.from_dict({"text": list(labels), "valence": valence, "arousal": arousal})
    pairs = start("sentence_transformers_baseline").pairs_of(texts, passes=40, seed=0)
    rows = list(zip(pairs["sentence1"], pairs["sentence2"], pairs["score"], strict=True))
    assert len(rows) == 80
    assert all(len({*one[:2], *other[:2]}) == 4 for one, other in zip(rows[::2], rows[1::2], strict=True))
    seen = {frozenset(pair[:2]): pair[2] for pair in rows}
    assert len(seen) == 10  # all that there are
    for pair, score in seen.items():
        assert score == pytest.approx(1 - math.dist(*(labels[name] for name in pair)) / math.dist((-1, 1), (1, -1)))


def wordnet(folder):
    """A WordNet of one synset for each entry; the file's places are those of its lines."""
    synsets = {
        "noun": {"glee": (["glee", "gleefulness", "hand_clap"], 1, 3), "bank": (["bank", "depository"], 4, 9)},
        "verb": {"glee": (["glee", "exult"], 1, 0)},
        "adj": {"merry": (["merry", "Jolly", "gay(a)"], 3, 5)},
        "adv": {},
    }
    for part, entries in synsets.items():
        data, index = "  1 a licence\n", "  1 a licence\n"
        for lemma, (words, senses, tagged) in entries.items():
            places = " ".join([f"{len(data):08d}"] + ["00000000"] * (senses - 1))
            index += f"{lemma} n {senses} 1 @ {senses} {tagged} {places}  \n"
            data += f"{len(data):08d} 12 n {len(words):02x} {' '.join(f'{word} 0' for word in words)} 000 | a gloss\n"
        (folder / f"data.{part}").write_text(data)
        (folder / f"index.{part}").write_text(index)
    return folder


def test_perturbed_texts_differ_as_they_should(start, tmp_path):
    study = start("robustness")
    args = study.RobustnessArguments(wordnet=str(wordnet(tmp_path)), rate=1.0)
    texts = ["Glee, at the bank!", "A merry one?", "oh no"]
    assert study.perturbed(texts, "synonyms", args) == ["Gleefulness, at the bank!", "A jolly one?", "oh no"]
    assert study.perturbed(texts, "punctuation", args) == ["Glee,, at the bank!!", "A merry one??", "oh no"]
    sentence = ["wonderful thing, dreadful weather, 2025 eel aaaa"] * 30
    for rate, least, most in ((0.01, 1, 1), (1.0, 4, 4)):
        for text in study.perturbed(sentence, "typos", dataclasses.replace(args, rate=rate)):
            words = list(zip(sentence[0].split(), text.split(), strict=True))
            differing = [(old, new) for old, new in words if old != new]
            assert least <= len(differing) <= most
            for old, new in differing:
                assert sorted(old) == sorted(new) and old[0] == new[0]
                assert sum(a != b for a, b in zip(old, new, strict=True)) == 2
    with pytest.raises(ValueError, match="apt-get install wordnet-base"):
        study.WordNet(tmp_path / "nowhere")


def test_noise_has_the_radius_and_spares_special_tokens(start):
    table, ids = torch.nn.Embedding(10, 6), torch.tensor([[0, 5, 6, 2]])
    before = table(ids)
    with start("robustness").noise(table, 0.3, spared=[0, 2], seed=1):
        moved = table(ids)
    assert torch.equal(table(ids), before)
    relative = (moved - before).norm(dim=-1) / before.norm(dim=-1)
    torch.testing.assert_close(relative, torch.tensor([[0, 0.3, 0.3, 0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["va", "encoder"])
def test_robustness_of_a_head_and_of_a_probe(kind, start, exports, tmp_path):
    model = str(exports[0] / kind)
    flags = ("--model", model, "--texts", "40", "--radii", "0", "1", "--wordnet", wordnet(tmp_path))
    start("robustness", *flags, "--output_dir", tmp_path / "out")
    measured = json.loads((tmp_path / "out" / "robustness.json").read_text())["models"][model]
    assert measured["answers"] == ("head" if kind == "va" else "cls")
    found = measured["perturbations"]
    for name in ("upper", "noise 0"):  # the tokenizer lowers all letters
        assert found[name]["texts"] == 40
        assert found[name]["valence"]["shift"] == pytest.approx(0, abs=1e-6)
        assert found[name]["arousal"]["pearson"] == pytest.approx(1)
        before, after = found[name]["valence"]["pearson_labels"]
        assert before == pytest.approx(after)
    for name in ("typos", "noise 1"):
        low, high = found[name]["valence"]["shift_interval"]
        assert 0 < low < found[name]["valence"]["shift"] < high and found[name]["valence"]["pearson"] < 0.999
    table = (tmp_path / "out" / "robustness.md").read_text()
    assert len(table.splitlines()) == 2 + 6 and "| synonyms" in table


def test_labels_of_another_corpus_are_adapted_to(start, exports, tmp_path):
    flags = ("--model", exports[0], "--corpus", "demo", "--labels", 20, 30, "--draws", 2, "--output_dir", tmp_path)
    study = start("adapt", *flags)
    records = json.loads((tmp_path / "adapt.json").read_text())["records"]
    assert [(r["seed"], r["labels"]) for r in records] == [(s, n) for s in (42, 43) for n in (0, 20, 30)]
    for record in records[0], records[3]:
        assert record["chosen"] == "left alone" and 0 < record["valence"]["coverage"] < 1
    before, after = (np.mean([r["valence"]["mae"] for r in records if r["labels"] == n]) for n in (0, 30))
    assert after < before and 0.5 < records[2]["valence"]["coverage"] <= 1
    lines = (tmp_path / "adapt.md").read_text().splitlines()
    assert lines == study.render(records).splitlines() and len(lines) == 5 and "left alone 2" in lines[2]
    start("adapt", *(3 if flag == 2 else flag for flag in flags))  # goes on
    more = json.loads((tmp_path / "adapt.json").read_text())["records"]
    assert more[:6] == records and [r["seed"] for r in more[6:]] == [44] * 3


def test_no_text_is_adapted_to_and_measured(start):
    number_N = np.array([0, 1, 2, 0, 3, 4, 5, 1, 1, 6])
    for seed in range(20):
        order, test = start("adapt").drawn_rows(number_N, 4, seed)
        assert sorted(order) == list(range(10)) and not {*number_N[order[:4]]} & {*number_N[test]}
        assert {*number_N[order[:4]]} | {*number_N[test]} == set(range(7))
    order, test = start("adapt").drawn_rows(np.arange(10), 4, seed)
    assert sorted([*order[:4], *test]) == list(range(10))


def test_coverage_of_random_divisions(start, exports, capsys):
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=(600, 2))
    answers = truth + rng.normal(size=(600, 2)) * [0.1, 0.2]
    study = start("coverage", "--model", exports[0], "--corpus", "demo", "--divisions", 2)
    assert "| demo" in capsys.readouterr().out
    found = study.divided(answers, truth, divisions=20, seed=1)
    for name, sigma in (("valence", 0.1), ("arousal", 0.2)):
        held, width = found[name].mean(0)
        assert held == pytest.approx(0.9, abs=0.02) and width == pytest.approx(1.645 * sigma, rel=0.1)


def test_heads_of_two_runs_are_compared_on_test_texts(start, exports, capsys, tmp_path):
    corpus, file = emotions(), tmp_path / "letters.csv"
    pd.DataFrame({"text": corpus.texts, "label": [EMOTIONS[i] for i in corpus.labels]}).to_csv(file, index=False)
    start("one_encoder", "--apart", exports[0], "--shared", exports[0], "--corpus", "demo", "--emotion", file)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = {line[1]: line[2:] for line in lines if len(line) == 5}
    card = {row["metric"]: row["value"] for row in read_record(exports[0] / "emotion")["results"]}
    assert rows["macro F1"] == [*2 * [fraction(card["f1"])], ".000 [.000, .000]"]
    assert rows["exactly right, %"] == [*2 * [f"{card['accuracy']:.1f}"], "0.0 [0.0, 0.0]"]
    assert rows["passes of an encoder"] == ["1", "1", ""] and {"valence, Pearson r", "arousal, Pearson r"} <= {*rows}


def test_a_teacher_rates_texts_that_nothing_is_measured_on(start, exports, corpora, monkeypatch, tmp_path):
    monkeypatch.setattr(start("teacher"), "FEWEST_WORDS", 1)
    output = tmp_path / "rated.csv"
    start("teacher", "--model", exports[0] / "va", "--data_dir", corpora, "--texts", 5, "--output", output)
    rated = pd.read_csv(output)
    assert list(rated) == ["text", "valence", "arousal", "weight"] and 0 < len(rated) <= 5
    assert rated["valence"].between(0, 1).all() and (rated["weight"] == 0.5).all()
    data = load_va_dataset(str(output), scale=(0, 1))
    assert data["weight"] == [0.5] * len(rated)


def test_the_last_weights_are_averaged(start, tmp_path, tokenizer):
    kept = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            kept[state.global_step] = {n: p.detach().clone() for n, p in model.encoder.named_parameters()}

    average = start("averaging").AverageLast(3, points=5)
    trainer = make_trainer(tmp_path, tokenizer, max_steps=10, learning_rate=1e-2, callbacks=[Keep(), average])
    trainer.train()
    for name, parameter in trainer.model.encoder.named_parameters():
        expected = sum(kept[step][name] for step in (6, 8, 10)) / 3
        torch.testing.assert_close(parameter.detach(), expected, msg=name)
    word = "embeddings.word_embeddings.weight"
    assert not torch.equal(trainer.model.encoder.get_parameter(word), kept[10][word])
