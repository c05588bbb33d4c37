"""The metrics for `evaluate`: loaded offline in a fresh home, and equal to those of the evaluation."""

import doctest
from pathlib import Path

import numpy as np
import pytest
import yaml

from carl_hf.evaluation import metrics, statistics
from carl_hf.evaluation.geometry import alignment_uniformity
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


def test_each_gives_what_the_evaluation_measures():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, (2, 50, 2))
    result = load_metric("va_agreement").compute(predictions=x, references=y)
    assert result == statistics.agreement(x, y, ["valence", "arousal"])
    labels, predicted = rng.integers(4, size=50), rng.integers(3, size=50)
    result = load_metric("emotion_classification").compute(predictions=predicted, references=labels, classes="abcd")
    assert result == statistics.classification_metrics(predicted, labels, "abcd")
    result = load_metric("alignment_uniformity").compute(embeddings=x, labels=labels)
    assert result == alignment_uniformity(x, labels)


def test_what_are_no_classes_and_numbers_without_a_name_are_refused():
    with pytest.raises(ValueError, match="must be class indices"):
        load_metric("emotion_classification").compute(predictions=[0.7, 1.0], references=[0, 1], classes="ab")
    with pytest.raises(ValueError, match="3 numbers, named valence, arousal: name each"):
        load_metric("va_agreement").compute(predictions=np.eye(3), references=np.eye(3))


def test_batches_with_own_dimensions_and_a_constant():
    metric = load_metric("va_agreement")
    metric.add_batch(predictions=[[0.5], [0.5]], references=[[0.1], [0.2]])
    metric.add(prediction=[0.5], reference=[0.6])
    result = metric.compute(dimensions=["dominance"])
    assert result["dominance"]["pearson"] is None and "constant" in result["dominance"]["pearson_reason"]
    assert result["dominance"]["mae"] == pytest.approx((0.4 + 0.3 + 0.1) / 3)


@pytest.mark.parametrize("name", METRICS)
def test_examples_in_the_descriptions_run(name):
    description = load_metric(name).inputs_description
    test = doctest.DocTestParser().get_doctest(description, {}, name, None, 0)
    assert len(test.examples) >= 3
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


@pytest.mark.parametrize("name", METRICS)
def test_each_folder_is_a_space(name):
    files = {path.name for path in (FOLDER / name).iterdir() if path.is_file()}
    assert {f"{name}.py", "README.md", "requirements.txt"} <= files
    assert (FOLDER / name / "requirements.txt").read_text().split() == ["carl_hf[eval]"]
    front = yaml.safe_load((FOLDER / name / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert front["title"] and {"evaluate", "metric"} <= set(front["tags"]) and len(front["description"]) < 130


def test_names_are_those_of_the_folders():
    assert METRICS == tuple(sorted(path.parent.name for path in FOLDER.glob("*/*.py")))
    with pytest.raises(ValueError, match="'accuracy': choose from alignment_uniformity, emotion_classification, va_"):
        load_metric("accuracy")
