"""The metrics for `evaluate`: loaded offline in a fresh home, and equal to scipy, scikit-learn and loops."""

import doctest
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from carl_hf.evaluation import metrics
from carl_hf.evaluation.metrics import METRICS, load_metric

pytest.importorskip("evaluate")
pytest.importorskip("scipy")
pytest.importorskip("sklearn")
FOLDER = Path(metrics.__file__).parent


@pytest.fixture(scope="module", autouse=True)
def own_home(tmp_path_factory):
    """evaluate makes a folder for a metric's data, even where that stays in memory."""
    import evaluate

    patch = pytest.MonkeyPatch()
    home = tmp_path_factory.mktemp("hf_home")
    patch.setattr(evaluate.config, "HF_METRICS_CACHE", str(home / "metrics"))
    yield
    patch.undo()


def test_agreement_equals_scipy():
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(0)
    references = rng.uniform(-1, 1, (50, 2))
    predictions = 0.5 * references + rng.normal(0, 0.3, (50, 2)) + 0.1
    result = load_metric("va_agreement").compute(predictions=predictions, references=references)
    for k, name in enumerate(("valence", "arousal")):
        x, y = predictions[:, k], references[:, k]
        assert result[name]["pearson"] == pytest.approx(pearsonr(x, y).statistic, abs=1e-12)
        assert result[name]["spearman"] == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
        assert result[name]["mae"] == pytest.approx(sum(abs(a - b) for a, b in zip(x, y, strict=True)) / 50, abs=1e-12)
        ccc = 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
        assert result[name]["ccc"] == pytest.approx(ccc, abs=1e-12)


def test_agreement_in_batches_with_own_dimensions_and_a_constant():
    metric = load_metric("va_agreement")
    metric.add_batch(predictions=[[0.5], [0.5]], references=[[0.1], [0.2]])
    metric.add(prediction=[0.5], reference=[0.6])
    result = metric.compute(dimensions=["dominance"])
    assert result["dominance"]["pearson"] is None and "constant" in result["dominance"]["pearson_reason"]
    assert result["dominance"]["mae"] == pytest.approx((0.4 + 0.3 + 0.1) / 3)


def test_classification_equals_sklearn():
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    rng = np.random.default_rng(1)
    references, predictions = rng.integers(4, size=80), rng.integers(3, size=80)  # class 3 is never predicted
    result = load_metric("emotion_classification").compute(
        predictions=predictions, references=references, classes=["a", "b", "c", "d"]
    )
    precision, recall, f1, _ = precision_recall_fscore_support(
        references, predictions, labels=range(4), average="macro", zero_division=0
    )
    assert result["accuracy"] == pytest.approx(100 * accuracy_score(references, predictions))
    assert [result[key] for key in ("precision", "recall", "f1")] == pytest.approx([precision, recall, f1])
    assert result["confusion"] == confusion_matrix(references, predictions, labels=range(4)).tolist()


def test_geometry_equals_loops_over_pairs():
    rng = np.random.default_rng(2)
    embeddings, labels = rng.normal(size=(20, 5)) * rng.uniform(0.5, 2, (20, 1)), rng.integers(3, size=20)
    result = load_metric("alignment_uniformity").compute(embeddings=embeddings, labels=labels)
    unit = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in embeddings.tolist()]
    same, every = [], []
    for i in range(20):
        for j in range(i):
            squared = sum((a - b) ** 2 for a, b in zip(unit[i], unit[j], strict=True))
            every.append(squared)
            if labels[i] == labels[j]:
                same.append(squared)
    assert result["alignment"] == pytest.approx(sum(same) / len(same))
    assert result["uniformity"] == pytest.approx(math.log(sum(math.exp(-2 * s) for s in every) / len(every)))
    assert result["positive_random_ratio"] == pytest.approx(sum(same) / len(same) / (sum(every) / len(every)))


def test_undefined_geometry_is_none_with_a_reason():
    result = load_metric("alignment_uniformity").compute(embeddings=[[1.0, 0.0], [0.0, 1.0]], labels=[0, 1])
    assert result["alignment"] is None and "same label" in result["alignment_reason"]
    assert result["uniformity"] == pytest.approx(-4.0)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("name", METRICS)
def test_examples_in_the_descriptions_run(name):
    description = load_metric(name).inputs_description
    test = doctest.DocTestParser().get_doctest(description, {}, name, None, 0)
    assert len(test.examples) >= 3
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


@pytest.mark.parametrize("name", METRICS)
def test_each_folder_is_a_space(name):
    import yaml

    files = {path.name for path in (FOLDER / name).iterdir() if path.is_file()}
    assert {f"{name}.py", "README.md", "requirements.txt"} <= files
    assert (FOLDER / name / "requirements.txt").read_text().split() == ["carl_hf[eval]"]
    front = yaml.safe_load((FOLDER / name / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert front["title"] and {"evaluate", "metric"} <= set(front["tags"]) and len(front["description"]) < 130


def test_names_are_those_of_the_folders():
    assert METRICS == tuple(sorted(path.parent.name for path in FOLDER.glob("*/*.py")))
    with pytest.raises(ValueError, match="'accuracy': choose from alignment_uniformity, emotion_classification, va_"):
        load_metric("accuracy")


def test_by_path_offline_in_a_fresh_home(tmp_path):
    code = f"""
import evaluate
for name in {METRICS!r}:
    metric = evaluate.load({str(FOLDER)!r} + "/" + name)
    print(name, sorted(metric.features), metric.module_type)
print(metric.compute(predictions=[[0.0], [1.0]], references=[[0.0], [1.0]], dimensions=["valence"])["valence"]["mae"])
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment = {key: value for key, value in environment.items() if not key.startswith("HF_EVALUATE")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "alignment_uniformity ['embeddings', 'labels'] metric",
        "emotion_classification ['predictions', 'references'] metric",
        "va_agreement ['predictions', 'references'] metric",
        "0.0",
    ]
