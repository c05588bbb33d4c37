import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from carl_hf import CarlTrainingArguments, Provenance
from carl_hf.export.cards import Result, render_card, space_results, va_results
from carl_hf.export.provenance import (
    differing_settings,
    is_public_corpus,
    licence_of,
    public_corpus_name,
    public_model_id,
)

CARDS = Path(__file__).parent.parent / "model_cards"
NAMES = [f"{model}{head}" for model in ("carl-demo", "carl-minilm") for head in ("", "-va", "-emotion")]
NAMES += ["carl-mpnet", "carl-mpnet-va"]
HOSTILE = [
    'say "hi"', "it's", "a: b", "- a\n- b", "!!python/object/apply:os.system ['true']", "&anchor *anchor", "---",
    "a\n---\nlicense: mit\n---\n", "# not a comment", "{{ 7 * 7 }}", "{% raw %}", "null", "3.14", "yes",
    "| table | row |", "[link](http://example.com)", "<script>alert(1)</script>", "`code` ``` ```python",
    "tab\there", "line\u2028separator \x85 \u202eright to left", "\U0001f600 emoji, Ünï",
    "  leading and trailing  ",
]  # fmt: skip


def record(kind="va", **changes):
    head = {"labels": ["valence", "arousal"], "frozen": True, "corpora": ["emobank"]}
    if kind == "emotion":
        head |= {"labels": ["joy", "fear"], "temperature": 1.25, "thresholds": {"joy": 0.4, "fear": 0.3}}
    widget = [{"text": "Hello.", "example_title": "One", "output": [{"label": "joy", "score": 0.5}]}]
    return {
        "kind": kind, "pooling": "cls", "width": 384, "max_length": 128, "versions": {"carl_hf": "1"},
        "provenance": Provenance(base_model="roberta-base", corpora=["emobank", "facebook"]).record(),
        "head": None if kind == "encoder" else head,
        "results": [asdict(Result("emobank", "test", "pearson", "valence, Pearson r", 0.7, (0.6, 0.8), 0.0, "abc"))],
        "baseline": "constant answer", "widget": widget, "bias": None, "figures": [], **changes,
    }  # fmt: skip


def front_matter(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.S)[1])


@pytest.mark.parametrize("kind, task", [("encoder", "sentence-similarity"), ("va", "text-classification"),
                                        ("emotion", "text-classification")])  # fmt: skip
def test_the_front_matter_is_complete(kind, task):
    card = render_card(record(kind), "org/carl-test")
    data = front_matter(card)
    assert data["pipeline_tag"] == task and data["language"] == "en" and data["base_model"] == "roberta-base"
    assert data["license"] == "gpl-3.0" and data["datasets"] == ["emobank", "facebook"]
    assert data["library_name"] == ("sentence-transformers" if kind == "encoder" else "transformers")
    if kind == "encoder":
        assert {"sentence-transformers", "feature-extraction", "sentence-similarity"} <= set(data["tags"])
    assert data["widget"][0]["output"] == [{"label": "joy", "score": 0.5}]
    (entry,) = data["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "carl-test" and result["dataset"] == {
        "name": "emobank", "type": "emobank", "split": "test", "revision": "abc",
    }  # fmt: skip
    assert result["metrics"] == [{"type": "pearson", "value": 0.7, "name": "valence, Pearson r"}]
    assert ModelCard(card).data.eval_results[0].metric_value == 0.7  # as the Hub's own library reads it
    body = card.split("\n---\n", 1)[1]
    assert "{{" not in body and "{%" not in body
    assert "None" not in body.replace("top_k=None", "")
    assert ".700 [.600, .800]" in body and "GPL-3.0" in body and "CC-BY-SA-4.0" in body
    for heading in ("Use", "Results", "Training", "Data and licence", "Limits", "Bias, measured", "Citation"):
        assert f"\n## {heading}\n" in body


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_strings_leave_the_front_matter_valid_and_unchanged(hostile):
    plain = front_matter(render_card(record("emotion"), "name"))
    head = {
        "labels": [hostile, "fear"], "frozen": True, "corpora": ["emobank"], "temperature": 1.0,
        "thresholds": {hostile: 0.5, "fear": 0.3},
    }  # fmt: skip
    widget = [{"text": hostile, "example_title": hostile, "output": [{"label": hostile, "score": 0.5}]}]
    bias = {"kind": {hostile: {"shift": {"a": [0.1, 0.0], hostile: [-0.1, 0.0]}, "largest": 0.2}}}
    result = Result(hostile, "test", "f1", hostile, 0.5)
    settings = {"weights": hostile}
    changed = record("emotion", head=head, widget=widget, bias=bias, results=[asdict(result)])
    changed["provenance"] = Provenance(base_model="roberta-base", corpora=[hostile], settings=settings).record()
    card = render_card(changed, hostile)
    found = front_matter(card)
    name = hostile.rstrip("/").split("/")[-1]
    assert found["widget"] == widget and found["model-index"][0]["name"] == name
    assert found["model-index"][0]["results"][0]["dataset"]["name"] == hostile
    for key in ("base_model", "library_name", "pipeline_tag", "tags", "language"):
        assert found[key] == plain[key]
    assert found["license"] == "unknown" and set(found) == set(plain)
    body = card.split("\n---\n", 1)[1]
    assert "49" not in body and "<script>" not in re.sub(r"```python.*?```", "", body, flags=re.S)
    # no snippet breaks out of its block, and each is still Python
    for code in re.findall(r"```python\n(.*?)\n```\n", body, re.S):
        compile(code, "card", "exec")
    assert body.count("\n```python\n") == 3 and body.count("\n## ") == 7


@pytest.mark.parametrize("corpora, rated, written", [(["demo"], 0, 1), (["emobank"], 1, 0), (["demo", "isear"], 1, 1)])
def test_the_card_says_where_labels_come_from(corpora, rated, written):
    card = render_card(record("encoder", provenance=Provenance(corpora=corpora).record()), "name")
    assert card.count("a few raters") == rated and card.count("written by a language model") == written


@pytest.mark.parametrize(
    "kind, reads, trained, said", [("va", "cls", "mean", 1), ("emotion", "cls", "mean", 1), ("va", "cls", "cls", 0),
                                   ("va", "mean", "mean", 0), ("encoder", "mean", "mean", 0)]
)  # fmt: skip
def test_the_card_says_where_a_head_reads_what_training_did_not(kind, reads, trained, said):
    settings = {} if trained == "cls" else {"pooling": trained}
    card = render_card(record(kind, pooling=reads, provenance=Provenance(settings=settings).record()), "name")
    assert card.count("The head reads the first token") == said


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match="UTF-8"):
        render_card(record(), "half \ud83d of a pair")


def test_rows_of_results_compare_with_the_constant_or_a_baseline():
    metrics = {
        name: {"pearson": r, "pearson_interval": [0.1, 0.9], "ccc": 0.3, "mae": 0.1,
               "constant": {"pearson": None, "ccc": 0.0, "mae": 0.2}}
        for name, r in (("valence", 0.5), ("arousal", None))
    }  # fmt: skip
    rows = va_results("emobank", metrics)
    assert [(row.name, row.value, row.baseline) for row in rows] == [
        ("valence, Pearson r", 0.5, None), ("valence, CCC", 0.3, 0.0),
        ("valence, mean absolute error, in [-1, 1]", 0.1, 0.2),
        ("arousal, CCC", 0.3, 0.0), ("arousal, mean absolute error, in [-1, 1]", 0.1, 0.2),
    ]  # fmt: skip
    assert rows[0].revision.startswith("248ce2a4")
    assert va_results("emobank", metrics, baseline=metrics)[0].baseline == 0.5


def test_rows_of_the_space_and_their_task_on_the_hub():
    metrics = {
        "accuracy": 61.5, "accuracy_interval": [55.0, 68.0], "knn": {"valence": {"pearson": None}, "arousal": {}},
        "nearness": {"both": 0.4, "both_interval": [0.3, 0.5]},
    }  # fmt: skip
    rows = space_results("feeling-over-topic", metrics, {"accuracy": 2.0, "nearness": {}})
    assert [(row.metric, row.value, row.baseline) for row in rows] == [
        ("accuracy", 61.5, 2.0),
        ("spearman", 0.4, None),
    ]
    card = render_card(record(results=[vars(row) for row in rows]), "name")
    assert re.search(r"\| feeling-over-topic, test +\| feeling over topic +\| +61.5 % \[55.0 %, 68.0 %\]", card)
    assert "By cosine, with nothing fitted" in card and "By cosine" not in render_card(record(), "name")
    assert "name: feeling over topic\n" in card and "value: 0.615" in card


@pytest.mark.parametrize(
    "corpora, licence",
    [(["demo"], "apache-2.0"), (["emobank", "demo"], "cc-by-sa-4.0"), (["facebook", "emobank"], "gpl-3.0"),
     (["emobank", "iemocap"], "other"), (["isear"], "other"), (["emobank", "mine.csv"], "unknown"), ([], "unknown")],
)  # fmt: skip
def test_the_licence_follows_the_most_demanding_corpus(corpora, licence):
    assert licence_of(corpora) == licence


def test_only_what_is_public_is_named(tmp_path):
    assert public_model_id("minilm-l6") == "sentence-transformers/all-MiniLM-L6-v2"
    assert public_model_id("roberta-base") == "roberta-base" and public_model_id("org/model") == "org/model"
    assert public_model_id(str(tmp_path)) is None and public_model_id(None) is None
    for name in ("emobank", "org/dataset", "org/dataset:raw"):
        assert public_corpus_name(name) == name and is_public_corpus(name)
    for file in (str(tmp_path / "my.csv"), "C:\\me\\my.csv", "C:/me/my.csv"):
        assert public_corpus_name(file) == "my.csv" and not is_public_corpus(file)


def test_a_setting_of_several_values_is_shown_as_on_the_command_line():
    settings = differing_settings(CarlTrainingArguments("a", use_cpu=True, objectives=["regression", "supcon=0.5"]))
    card = render_card(record("encoder", provenance=Provenance(settings=settings).record()), "name")
    assert re.search(r"^\| objectives +\| +regression supcon=0\.5 \|$", card, re.M)


def test_settings_that_differ_from_the_default_recipe():
    assert differing_settings(CarlTrainingArguments("a", use_cpu=True, logging_steps=3)) == {}
    changed = differing_settings(CarlTrainingArguments("/home/me/b", use_cpu=True, learning_rate=2e-4, seed=1))
    assert changed == {"learning_rate": 2e-4, "seed": 1}
    paper = differing_settings(CarlTrainingArguments("c", preset="paper", use_cpu=True))
    assert paper["preset"] == "paper" and paper["momentum"] == 0.9996
    json.dumps(paper)


@pytest.mark.parametrize("folder", [CARDS / name for name in NAMES], ids=NAMES)
def test_published_cards_are_what_their_records_give(folder):
    found = json.loads((folder / "carl_export.json").read_text(encoding="utf-8"))
    assert (folder / "README.md").read_text(encoding="utf-8") == render_card(found, f"org/{folder.name}")
    assert all((folder / figure).is_file() for figure in found["figures"])
    assert found["results"] and found["bias"], "a card without measurements"
