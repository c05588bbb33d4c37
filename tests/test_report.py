"""The report of made-up results: the paper's rows, the measured rows, gaps with reasons, and tables that are whole."""

import io
import json
import re

import pytest

from carl_hf.report.page import SEEN, print_summary, write_report
from carl_hf.report.paper import paper_tables
from carl_hf.report.tables import escape, short_names

PLAIN, CARL, ODD = "minilm-l6", "/runs/carl|odd/carl_a/encoder", "/runs/other/carl_b/encoder"


def measured(width, **metrics):
    """The metrics, each with an interval of twice this width around it."""
    return metrics | {f"{name}_interval": [value - width, value + width] for name, value in metrics.items()}


def agreement(r):
    why = {f"{name}_reason": "undefined: the predictions are constant" for name in ("pearson", "spearman")}
    constant = {"pearson": None, "spearman": None, "ccc": 0.0, "mae": 0.0951, **why}
    return {**measured(0.02, pearson=r, spearman=r - 0.01, ccc=r - 0.02, mae=0.0704), "constant": constant}


def on_corpus(r, *, dominance=True):
    dimensions = {"valence": agreement(r), "arousal": agreement(r - 0.2), "dominance": agreement(r - 0.3)}
    return {
        **{name: found for name, found in dimensions.items() if dominance or name != "dominance"},
        "protocol": "official splits", "texts": 1000,
        "angle_error": {"degrees": 51.26, "degrees_interval": [50.0, 52.4], "constant": 60.13},
        "intensity_error": {"mae": 0.081, "mae_interval": [0.07, 0.09], "constant": 0.113},
    }  # fmt: skip


def polarity(accuracy, majority):
    return measured(1, accuracy=accuracy) | {"majority": majority, "protocol": "fast", "texts": 2210, "l2": [0.01]}


def emotion(accuracy, classes):
    return {**measured(3, accuracy=accuracy), "precision": 0.71, "recall": 0.7, "f1": 0.705,
            "f1_interval": [0.68, 0.73], "majority": 30.0, "classes": classes, "texts": 554}  # fmt: skip


def space(r):
    kinds = {"negation": {"accuracy": 52.5, "margin": -0.012, "texts": 40},
             "emoji": {"accuracy": 50.0, "margin": -0.0001, "texts": 40}}  # fmt: skip
    return {
        "feeling-over-topic": {**measured(2, accuracy=60.0), **measured(0.01, margin=0.04), "kinds": kinds},
        "emobank": {"nearness": measured(0.02, both=r - 0.4, valence=r - 0.3, arousal=r - 0.45),
                    "knn": {"valence": measured(0.03, pearson=r + 0.1, ccc=r), "arousal": measured(0.03, pearson=r)}},
        "goemotions-six": {**measured(0.02, precision_at_10=0.6, ndcg_at_10=0.61, v_measure=0.2), "chance": 0.19},
        "mr": measured(0.01, spearman=0.21),
    }  # fmt: skip


def model(r):
    six = emotion(100 * r, ["anger", "disgust", "fear", "joy", "sadness", "surprise"])
    six["few_shot"] = {"8": {"accuracy_mean": 41.5, "accuracy_std": 3.2, "draws": 10}}
    several = emotion(40.0, ["joy", "fear", "pride"]) | measured(0.01, micro_f1=0.581)
    emobank = on_corpus(r)
    emobank["valence"]["of_ceiling"], emobank["arousal"]["of_ceiling"] = r / 0.894, (r - 0.2) / 0.66
    geometry = measured(0.01, alignment=0.5, positive_random_ratio=0.8) | measured(0.1, uniformity=-1.1)
    order = {"angular_error": 40.2, "order_agreement": 0.72, "chance_error": 88.8, "plane_share": 0.61,
             "circular_correlation": 0.43}  # fmt: skip
    return {
        "pooling": "cls", "dimensions": 384,
        "va": {"emobank": emobank, "facebook": on_corpus(r - 0.1, dominance=False),
               "emobank to facebook": on_corpus(r - 0.15, dominance=False)},
        "polarity": {"mr": polarity(78.84, 50.0), "sst5": polarity(45.02, 23.1), "cr": polarity(86.9, 63.8)},
        "emotion": {"goemotions-six": six, "isear": emotion(55.5, ["joy", "fear"]) | {"smallest_class": 3},
                    "goemotions-28": several,
                    "goemotions-ekman": {"f1": 0.512, "f1_interval": [0.5, 0.52], "precision": 0.5, "recall": 0.6,
                                         "accuracy": 44.4, "accuracy_interval": [43, 45], "texts": 5000,
                                         "classes": ["joy", "fear"], "f1_per_class": {"joy": 0.81, "fear": 0.42}}},
        "geometry": {"goemotions-six": {**geometry, "centroid_separation": 0.31, "circular_order": order},
                     "dimensions": {"va": {"corpus": "emobank"}}},
        "semantics": {"stsb": {"spearman": 0.803, "spearman_interval": [0.78, 0.82], "texts": 1379}},
        "space": space(r),
        "skipped": {"polarity/imdb": "not asked for: --polarity mr cr\nsst5 imdb"},
        "seconds": {"embedding": 12.34, "va": 3.0},
    }  # fmt: skip


def results():
    odd, carl = model(0.65), model(0.7)
    odd["va"]["emobank"]["valence"] |= {"pearson": None, "pearson_reason": "undefined: a_b | is constant"}
    del odd["va"]["facebook"], odd["semantics"], odd["seconds"]["va"], odd["va"]["emobank"]["dominance"]
    odd["skipped"]["semantics/stsb"] = "no file stsb.csv"
    conditions = ("salient, radius 0", "salient, radius 0.5", "random, radius 0", "random, radius 0.5")
    carl["detector"] = {"emobank": {c: {"precision": 0.3, "recall": 0.4, "auc": 0.93} for c in conditions}}
    carl["detector"]["emobank"]["random, radius 0.5"] |= {"auc_interval": [0.9, 0.95], "tokens": 90}
    return {
        "models": {PLAIN: model(0.559), CARL: carl, ODD: odd},
        "comparisons": {
            f"{CARL} minus {PLAIN}": {
                "va": {"emobank": {"valence": {"pearson": 0.141, "pearson_interval": [0.1, 0.18]},
                                   "arousal": {"pearson": 0.012, "pearson_interval": [-0.01, 0.03]}}},
                "polarity": {"mr": {"accuracy": -1.5, "accuracy_interval": [-2.7, -0.3]}},
                "emotion": {"isear": {"accuracy": None, "accuracy_interval": None, "accuracy_reason": "no overlap"}},
            }
        },
        "spread": {"runs/carl-{seed}": {"runs": ["a", "b", "c"], "figures": {
            "polarity": {"mr": {"accuracy": {"mean": 78.84, "std": 0.41}}},
            "va": {"emobank": {"valence": {"pearson": {"mean": 0.7, "std": 0.0042}}}}}}},
        "comparators_left_out": {"SentiX": "No Hub weights known."},
        "run": {"command": "examples/evaluate.py --model a|b", "seed": 42, "versions": {"torch": "2.13.0"}},
    }  # fmt: skip


def written(folder, content, pictures=()):
    write_report(json.loads(json.dumps(content, allow_nan=False)), folder / "new" / "report.md", pictures)
    return (folder / "new" / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return written(folder, results(), [folder / "new" / "figures" / "circumplex_emo bank.png", folder / "b" / "x.png"])


def reasons_of(text):
    return dict(re.findall(r"^- \((\d+)\) (.*)$", text.partition("## Missing metrics")[2], flags=re.MULTILINE))


def section(text, title):
    """The tables below a heading, as lists of rows of cells; a missing metric as "– " and its reason."""
    reasons = reasons_of(text)
    body = re.split(r"^## ", text.split(f"## {title}", 1)[1], flags=re.MULTILINE)[0]
    body = re.sub(r"– \((\d+)\)", lambda found: f"– {reasons[found[1]]}", body)
    tables = re.findall(r"(?:^\|.*\|$\n?)+", body, flags=re.MULTILINE)
    return [[cells(line) for line in found.strip().splitlines() if "---" not in line] for found in tables]


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def row(rows, *start):
    return next(found for found in rows if found[: len(start)] == list(start))


SHOWN = {
    "Table I:": [
        "corpus; model; V r; V ρ; V CCC; V MAE; A r; A ρ; A CCC; A MAE",
        f"emobank; {PLAIN}; .559 [.539, .579]; .549 [.529, .569]; .539 [.519, .559]; .070 [.050, .090]",
        r"emobank; carl\_b/encoder; – undefined: a\_b \| is constant; .640 [.620, .660]",
        r"facebook; carl\_b/encoder; – not measured; – not measured",
        "emobank; constant predictor; – undefined: the predictions are constant; "
        "– undefined: the predictions are constant; .000; .095",
        "BERT; SentiX; .667; .656; .120; .572; .614; .110",
        "RoBERTa; CARL; .741; .738; .083; .634; .699; .097",
    ],
    "Table II:": [
        "model; CR; MR; SST5; IMDB",
        "minilm-l6; 86.9 [85.9, 87.9]; 78.8 [77.8, 79.8]; 45.0 [44.0, 46.0]; "
        "– not asked for: --polarity mr cr sst5 imdb",
        "majority class; 63.8; 50.0; 23.1",
        r"RoBERTa; SentiCSE; 90.71; 97.41\*; 52.13; 88.43",
    ],
    "Table III:": [f"{PLAIN}; 55.9 [52.9, 58.9]; .710; .700; .705 [.680, .730]",
                   "RoBERTa; RoBERTa; 63.91; .657; .639; .640"],
    "Table IV:": [f"{PLAIN}; .5000 [.4900, .5100]; -1.1000 [-1.2000, -1.0000]; .800 [.790, .810]",
                  "BERT; SentiX; 1.0338; -2.1505"],
    "Table V:": [
        f"{PLAIN}; 86.9; 78.8; 45.0; – not asked for: --polarity mr cr sst5 imdb; .559; .549; .070; .359; .349; .070",
        "RoBERTa; Base RWA; 80.82; 75.59; 41.49; 85.36; .58; .57; .11; .52; .56; .12",
    ],
    "From one corpus to another": [f"emobank to facebook; {PLAIN}; .409 [.389, .429]"],
    "Dominance": [f"emobank; {PLAIN}; .259 [.239, .279]"],
    "Angle and intensity": [f"emobank; {PLAIN}; 51.3 [50.0, 52.4]; .081 [.070, .090]",
                            "emobank; constant predictor; 60.1; .113"],
    "Other sets of emotions": [f"goemotions-ekman; {PLAIN}; 44.4 [43.0, 45.0]; .500; .600; .512 [.500, .520]"],
    "Texts of several emotions": [f"goemotions-28; {PLAIN}; .581 [.571, .591]"],
    "Geometry": [
        f"goemotions-six; {PLAIN}; .5000 [.4900, .5100]; -1.1000 [-1.2000, -1.0000]; .800 [.790, .810]; .310; 40.2; "
        "88.8; .430; .720; .610"
    ],
    "Pearson r over the ceiling": [f"emobank; {PLAIN}; .625; .544"],
    "Feeling over topic\n": [f"feeling-over-topic; {PLAIN}; 60.0 [58.0, 62.0]; .040 [.030, .050]"],
    "Feeling over topic by kind": [f"feeling-over-topic; {PLAIN}; negation; 52.5; -.012",
                                   f"feeling-over-topic; {PLAIN}; emoji; 50.0; .000"],
    "Label nearness": [
        f"emobank; {PLAIN}; .159 [.139, .179]; .259 [.239, .279]; .109 [.089, .129]; .659 [.629, .689]; "
        ".559 [.529, .589]; .559 [.529, .589]; – not measured"
    ],
    "Neighbours and clusters": [
        f"goemotions-six; {PLAIN}; .600 [.580, .620]; .610 [.590, .630]; .190; .200 [.180, .220]"
    ],
    "Sentiment-guided": [f"mr; {PLAIN}; .210 [.200, .220]"],
    "Semantic similarity": [r"stsb; carl\_b/encoder; – no file stsb.csv"],
    "Few training texts": [f"goemotions-six; {PLAIN}; 8; 41.5; 3.2"],
    "F1 of each class": [f"goemotions-ekman; {PLAIN}; fear; .420"],
    "Perturbed-token detector": [
        r"emobank; carl\_a/encoder; random, radius 0; .300; .400; .930",
        r"emobank; carl\_a/encoder; random, radius 0.5; .300; .400; .930 [.900, .950]",
    ],
    "Comparisons": [
        rf"carl\_a/encoder minus {PLAIN}; va, emobank, valence, pearson; +.141 [+.100, +.180]; yes",
        rf"carl\_a/encoder minus {PLAIN}; va, emobank, arousal, pearson; +.012 [-.010, +.030]; no",
        rf"carl\_a/encoder minus {PLAIN}; polarity, mr, accuracy; -1.5 [-2.7, -0.3]; yes",
        rf"carl\_a/encoder minus {PLAIN}; emotion, isear, accuracy; – no overlap; –",
    ],
    "Spread over seeds": [
        "runs/carl-{seed}; polarity, mr, accuracy; 3; 78.8 ± 0.4",
        "runs/carl-{seed}; va, emobank, valence, pearson; 3; .700 ± .004",
    ],
    "Seconds": [f"{PLAIN}; 12.3; 3.0", r"carl\_b/encoder; 12.3; – not measured"],
}  # fmt: skip


@pytest.mark.parametrize("title", SHOWN)
def test_every_kind_of_row(title, text):
    rows = ["; ".join(line) for found in section(text, title) for line in found]
    for expected in SHOWN[title]:
        assert any(line == expected or line.startswith(f"{expected}; ") for line in rows), (expected, rows)


def test_every_row_of_the_paper_stands_in_the_report(text):
    for number, printed in paper_tables()["tables"].items():
        rows = section(text, f"Table {number}:")[-1]
        assert rows[0] == ["base", "model", *printed["columns"]]
        assert len(rows) == 1 + len(printed["rows"])
        for base, name, *numbers in printed["rows"]:
            shown = row(rows, base, name)[2:]
            assert [float(cell.replace("\\*", "")) for cell in shown] == numbers
            digits = [len(cell.replace("\\*", "").split(".")[1]) for cell in shown]
            assert digits == list(printed["columns"].values())
    assert text.count("Reported in the paper (arXiv 2502.20613), other protocol (not comparable):") == 5


def test_majority_class_has_the_macro_metrics_of_sklearn(text):
    metrics = pytest.importorskip("sklearn.metrics")
    truth = [0] * 30 + [1] * 14 + [2] * 14 + [3] * 14 + [4] * 14 + [5] * 14
    expected = metrics.precision_recall_fscore_support(truth, [0] * 100, average="macro", zero_division=0)[:3]
    shown = row(section(text, "Table III:")[0], "majority class")
    assert shown[1] == "30.0"
    assert [float(cell) for cell in shown[2:]] == pytest.approx(expected, abs=6e-4)


def test_lists_beside_the_tables(text):
    assert set(re.findall(r"– \((\d+)\)", text)) == set(reasons_of(text))
    assert r"- semantics/stsb (carl\_b/encoder): no file stsb.csv" in text
    assert text.count("- polarity/imdb: not asked for") == 1  # the same for all three models
    assert "- comparator SentiX: No Hub weights known." in text and r"\* trained on this corpus" in text
    assert "![circumplex emo bank](figures/circumplex_emo%20bank.png)\n\n![x](../b/x.png)" in text
    others = section(text, "Other sets of emotions")[0]
    assert not [line for line in others if line[:2] == ["goemotions-ekman", "majority class"]]  # multi-label: none
    assert [line[0] for line in section(text, "Dominance")[0][1:]] == ["emobank"] * 4
    assert "- isear: a class has 3 of the texts: macro F1 is uncertain, and its interval too narrow\n" in text
    assert "goemotions-ekman: a class" not in text and "goemotions-six: a class" not in text
    assert "| carl\\_a/encoder | /runs/carl\\|odd/carl\\_a/encoder" in text.split("## Table I:")[0]
    for line in (r"command: examples/evaluate.py --model a\|b", "versions: torch 2.13.0", "seed: 42"):
        assert f"- {line}" in text


def test_names_are_escaped_and_short_where_that_tells_models_apart():
    assert escape("a|b_c*`<x>`[y]\\\n z") == r"a\|b\_c\*\`\<x\>\`\[y\]\\ z"
    for short in (
        {"x/run/1/encoder": "x/run/1/encoder", "y/run/1/encoder/": "y/run/1/encoder", "org/name": "org/name"},
        {"/data/a/encoder": "a/encoder", "/data/b/encoder": "b/encoder"}, {"a": "a", "a/": "a/"},
    ):  # fmt: skip
        assert short_names([*short]) == short


def test_tables_are_whole_and_aligned(text):
    found = re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE)
    assert len(found) >= 22
    for block in found:
        lines = block.strip().splitlines()
        assert len({len(cells(line)) for line in lines}) == 1
        assert len({len(line) for line in lines}) == 1  # the same width in a terminal
    assert not re.search(r"\bnan\b|None", text)


@pytest.mark.parametrize(
    "content", [{}, {"models": {}}, {"models": {"a": {}}}, {"models": {"a": {"va": {}}}, "run": {}}]
)
def test_almost_nothing_still_gives_a_report(tmp_path, content):
    text = written(tmp_path, content)
    assert ".741" in text and "Table V" in text and "## Figures" not in text
    assert ("No model was measured." in text) == (not content.get("models"))
    if content.get("models"):
        assert row(section(text, "Table V:")[0], "a")[1:] == ["– not measured"] * 10
        assert "- (1) not measured" in text
    out = io.StringIO()
    print_summary(content, out)
    assert (
        out.getvalue().splitlines()[0].split() == "model V r A r MR CR SST5 IMDB six Ekman F1 STS feeling near".split()
    )


def test_demo_corpus_stands_in_where_emobank_was_not_measured(tmp_path):
    content = {"models": {"a": {"va": {"demo": {**on_corpus(0.5), "seen_in_training": True}}}}}
    text = written(tmp_path, content)
    assert row(section(text, "Table I:")[0], "demo", f"a {SEEN}")[2].startswith(".500")
    assert row(section(text, "Table V:")[0], f"a {SEEN}")[5] == ".500" and f"{SEEN} The encoder was trained on" in text
    out = io.StringIO()
    print_summary(content, out)
    summary = out.getvalue()
    assert "on demo" in summary and f"{SEEN} The encoder was trained on" in summary
    assert summary.splitlines()[1].split()[:5] == ["a", ".500", SEEN, ".300", SEEN]


def test_summary_has_what_was_measured_files_of_the_user_too():
    out = io.StringIO()
    print_summary({"models": {"a": {"emotion": {"mine": {"accuracy": 61.26, "f1": 0.5}}}}}, out)
    header, row, *_ = out.getvalue().splitlines()
    assert header.split() == ["model", "mine,", "accuracy"] and row.split() == ["a", "61.3"]


def test_summary_of_imdb_alone():
    out = io.StringIO()
    print_summary({"models": {"a": {"polarity": {"imdb": polarity(85.51, 50.0)}}}}, out)
    header, row, legend = out.getvalue().splitlines()
    assert (header.split(), row.split(), legend) == (["model", "IMDB"], ["a", "85.5"], "IMDB: accuracy, percent")


def test_summary_is_one_aligned_row_a_model():
    out = io.StringIO()
    print_summary(results(), out)
    header, *rows, where = out.getvalue().rstrip("\n").split("\n")
    assert len(rows) == 3 and "Pearson r on emobank; MR, CR" in where
    assert len({len(line) for line in (header, *rows)}) == 1
    assert rows[0].split() == [PLAIN, ".559", ".359", "78.8", "86.9", "45.0", "55.9", ".512", ".803", "60.0", ".159"]
    odd = ["carl_b/encoder", "–", ".450", "78.8", "86.9", "45.0", "65.0", ".512", "–", "60.0", ".250"]
    assert rows[2].split() == odd
