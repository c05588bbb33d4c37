"""What a table, a card or a push would state of another model or other texts than it seems to: refused, or marked."""

import json
import shutil

import numpy as np
import pytest
from conftest import load_script, make_trainer, run_script, saved, tiny_carl, tiny_encoder, toy_dataset
from safetensors.torch import load_file, save_file

from carl_hf import CarlModel, Provenance, export_encoder, export_va_regressor
from carl_hf.evaluation.comparison import compare, spread
from carl_hf.evaluation.suite import Evaluation
from carl_hf.evaluation.tasks import Settings
from carl_hf.export.folder import export_files, read_record
from carl_hf.export.head_training import HeadTraining
from carl_hf.export.hub import push_export
from carl_hf.export.onnx import _agreement, export_onnx
from carl_hf.export.seen import trained_on
from carl_hf.report.page import write_report


@pytest.fixture
def export(tmp_path, tokenizer):
    """An encoder that was trained on the Facebook posts."""
    origin = Provenance(base_model="minilm-l6", corpora=["facebook"])
    return export_encoder(tiny_carl(), tokenizer, tmp_path / "first", provenance=origin)


def test_an_export_on_top_of_an_export_keeps_its_corpora_and_licence(export, tokenizer, tmp_path):
    model = CarlModel.from_encoder(export, projection_dim=8)
    heads = {"train": toy_dataset(40), "dev": toy_dataset(20, seed=1), "max_length": 16}
    again = Provenance(base_model=str(export), corpora=["demo"])
    head = Provenance(base_model=str(export), method=None)
    export_encoder(model, tokenizer, tmp_path / "second", provenance=again)
    export_va_regressor(model, tokenizer, tmp_path / "va", provenance=head, corpora=["demo"], **heads)
    trainer = make_trainer(tmp_path, tokenizer, model=model)
    trainer.train()
    trainer.export(tmp_path / "trained")
    for name, corpora in (("second", ["facebook", "demo"]), ("va", ["facebook"]), ("trained", ["facebook"])):
        origin = read_record(tmp_path / name)["provenance"]
        assert (origin["corpora"], origin["licence"]) == (corpora, "gpl-3.0"), name
        assert origin["base_model"].endswith("MiniLM-L6-v2") and trained_on(str(tmp_path / name)) == ["facebook"]


def test_weights_that_are_not_the_cards_are_not_published(export, tokenizer, tmp_path):
    path = export / "model.safetensors"
    weights = load_file(path)
    save_file({name: value + 1 for name, value in weights.items()}, path, {"format": "pt"})
    for publish in (export_files, export_onnx, lambda folder: push_export(folder, "org/mine")):
        with pytest.raises(ValueError, match="the weights were changed since the export"):
            publish(export)
    save_file(weights, path, {"format": "pt"})
    assert "model.safetensors" in export_files(export)
    record = json.loads((export / "carl_export.json").read_text())
    for changed, lacks in (
        ({"figures": ["figures/circle.png"]}, "figures/circle.png"),
        ({"onnx": {"bytes": [1, 2]}}, "onnx/model.onnx, onnx/model_quantized.onnx"),
    ):
        (export / "carl_export.json").write_text(json.dumps(record | changed))
        with pytest.raises(ValueError, match=f"no complete export: it lacks {lacks}"):
            export_files(export)
    for key in ("kind", "versions", "card_sha256"):
        (export / "carl_export.json").write_text(json.dumps({k: v for k, v in record.items() if k != key}))
        with pytest.raises(ValueError, match="is no valid record of an export"):
            export_files(export)


def test_a_repository_of_other_files_is_not_emptied(hub, export):
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("org/mine")
    api.upload_file(path_or_fileobj=b"years", path_in_repo="train.csv", repo_id="org/mine")
    with pytest.raises(ValueError, match="org/mine holds train.csv that is no export of carl_hf"):
        push_export(export, "org/mine")
    assert "train.csv" in api.list_repo_files("org/mine")
    api.create_repo("org/new")
    api.upload_file(path_or_fileobj=b"# mine", path_in_repo="README.md", repo_id="org/new")
    assert push_export(export, "org/new").changed


def test_a_checkpoint_is_marked_wherever_it_lies_and_its_neighbours_are_not(export, tokenizer, tmp_path):
    shutil.copytree(export, tmp_path / "encoder")
    saved(tiny_encoder(), tokenizer, tmp_path / "plain")
    assert trained_on(str(tmp_path / "plain")) == []
    moved = tmp_path / "elsewhere" / "checkpoint-9"
    saved(tiny_encoder(), tokenizer, moved)
    (moved / "checkpoint.json").write_text(
        json.dumps({"run": {"corpora": ["facebook"], "trained_on_test_rows": False}})
    )
    assert trained_on(str(moved)) == ["facebook"]


def test_an_encoder_that_was_trained_with_its_head_has_seen_the_heads_corpora(tokenizer, tmp_path, monkeypatch):
    better = {"metric": "R2", "frozen": 0.1, "finetuned": 0.2, "chosen": "finetuned", "epoch": 1, "epochs": 1,
              "learning_rate": 1e-3, "batch_size": 32}  # fmt: skip
    monkeypatch.setattr("carl_hf.export.exports.train_va_regressor", lambda *args, **settings: better)
    settings = {"train": toy_dataset(64), "dev": toy_dataset(24, seed=1), "corpora": ["facebook"], "max_length": 16}
    origin = Provenance(base_model="minilm-l6")
    for name, how in (("frozen", None), ("finetuned", HeadTraining())):
        export_va_regressor(tiny_carl(), tokenizer, tmp_path / name, provenance=origin, training=how, **settings)
    assert trained_on(str(tmp_path / "frozen")) == [] and trained_on(str(tmp_path / "finetuned")) == ["facebook"]


def test_the_spread_and_a_comparison_of_few_texts_are_marked(tmp_path):
    def measured(offset, texts):
        truth = np.random.default_rng(0).normal(size=(texts, 2))
        metrics = {"valence": {"pearson": 0.5 + offset}, "seen_in_training": texts > 10}
        return Evaluation({"va": {"own": metrics}}, {"va/own": {"predictions": truth * offset, "references": truth}})

    for texts, sign in ((4, "–"), (40, "†")):
        runs = {"one": measured(0.1, texts), "two": measured(0.2, texts)}
        results = {
            "models": {name: run.metrics for name, run in runs.items()},
            "comparisons": {"two minus one": compare(runs["one"], runs["two"], seed=1)},
            "spread": {"r-{seed}": {"runs": [*runs], "figures": spread([run.metrics for run in runs.values()])}},
            "failed": {"three": "no such folder"},
            "run": {},
        }
        write_report(results, tmp_path / "report.md")
        report = (tmp_path / "report.md").read_text()
        compared, over_seeds = (
            next(line for line in report.splitlines() if line.startswith(start))
            for start in ("| two minus one", "| r-{seed}")
        )
        assert compared.split("|")[-2].split()[0] == sign
        assert ("†" in over_seeds) == (texts > 10) and "- model three: no such folder" in report


def test_a_failed_baseline_is_named_and_nothing_is_compared_with_another(exports, tmp_path):
    broken, output = tmp_path / "broken", tmp_path / "out"
    shutil.copytree(exports[0] / "encoder", broken)
    (broken / "model.safetensors").write_bytes(b"")
    output.mkdir()
    models = [str(broken), *(str(exports[0] / name) for name in ("encoder", "va"))]
    error = run_script("examples/evaluate.py", "--model", *models, "--tasks", "emotion", "--output_dir", output)
    assert f"not measured: {broken}" in str(error)
    results = json.loads((output / "results.json").read_text())
    assert len(results["models"]) == 2 and results["comparisons"] == {} and list(results["failed"]) == [str(broken)]
    assert f"- model {broken}: " in (output / "report.md").read_text().replace("\\", "")


def test_the_agreement_of_int8_is_that_of_the_emotions_a_text_is_given():
    exact, small = np.array([[0.0, -3], [2, 1], [-2, -1]]), np.array([[-0.1, -3], [2, 1], [-2, -0.9]])
    assert _agreement("emotion", exact, small, None) == 1
    assert _agreement("emotion", exact, small, {"a": 0.5, "b": 0.5}) == pytest.approx(2 / 3)


def test_explanations_are_written_into_a_new_folder(exports, tmp_path):
    page = tmp_path / "new" / "words.html"
    flags = ("--model", exports[0] / "va", "--method", "gradient_norm", "--output", page)
    assert run_script("examples/explain.py", "joywow", *flags) is None and page.is_file()


def test_no_corpus_is_asked_for_in_vain(exports):
    with pytest.raises(ValueError, match="without data_dir the demo corpus alone is measured"):
        Settings(va=["emotales"], strict=True)
    models = load_script("examples/space/analysis.py").Models
    with pytest.raises(ValueError, match="va is a valence-arousal regressor, whose vectors are not compared"):
        models(*(str(exports[0] / name) for name in ("va", "va", "emotion")))
