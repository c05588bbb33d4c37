"""examples/mteb_task.py on a made-up EmoBank and a tiny encoder, against scikit-learn and scipy."""

import json
import runpy
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, tiny_encoder

from carl_hf import CarlModel, export_encoder, load_va_dataset
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.mteb import MtebArguments
from carl_hf.encoders import load_sentence_transformer

SCRIPT = str(ROOT / "examples" / "mteb_task.py")


def test_without_mteb_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(SystemExit, match="error: .*pip install mteb sentence-transformers"):
        runpy.run_path(SCRIPT)


@pytest.mark.parametrize(
    "flags, message",
    [([], "--model is missing"), (["--model", "none"], "no such folder"),
     (["--model", "a/b", "--max_texts", "1"], "--max_texts must be a whole number of at least 2"),
     (["--model", "a/b", "--output", "there.json"], "--output there.json exists"),
     (["--model", "a/b", "--output", ""], "--output is empty")],
)  # fmt: skip
def test_mistakes_are_named_before_anything_is_measured(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").touch()
    with pytest.raises(ValueError, match=message):
        parse_script_arguments(MtebArguments, flags)


def test_a_folder_that_states_no_pooling_is_said_and_a_run_refused(tiny, caplog, tmp_path):
    pytest.importorskip("sentence_transformers")
    load_sentence_transformer(str(tiny))
    assert "states no pooling: sentence-transformers takes the mean" in caplog.text
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="encoder"):
        load_sentence_transformer(str(tmp_path))


@pytest.mark.slow
def test_scores_equal_a_ridge_regression_on_the_same_embeddings(tmp_path, tokenizer):
    pytest.importorskip("mteb")
    from scipy.stats import pearsonr, spearmanr
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import RidgeCV

    rng = np.random.default_rng(0)
    words = np.array(["joy", "woe", "calm", "storm", "rain", "sun", "stone"])
    texts = [f"{' '.join(rng.choice(words, 1 + i % 6))} {i}" for i in range(140)]
    split = ["train"] * 100 + ["dev"] * 10 + ["test"] * 30
    ratings = dict(zip("VAD", rng.uniform(1, 5, (3, 140)), strict=True))
    (tmp_path / "emobank").mkdir()
    pd.DataFrame({"text": texts, "split": split, **ratings}).to_csv(tmp_path / "emobank" / "emobank.csv", index=False)
    folder = export_encoder(CarlModel.from_encoder(tiny_encoder()), tokenizer, tmp_path / "encoder", max_length=32)
    out = tmp_path / "out" / "scores.json"
    command = [sys.executable, SCRIPT, "--model", folder, "--data_dir", tmp_path, "--output", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert json.loads(done.stdout[done.stdout.index("{") :]) == result
    assert result["texts"] == {"train": 100, "test": 30}

    splits = {name: load_va_dataset("emobank", split=name, data_dir=tmp_path) for name in ("train", "test")}
    model = SentenceTransformer(str(folder), device="cpu")
    embeddings = {name: model.encode(rows["text"]) for name, rows in splits.items()}
    for dimension in ("valence", "arousal"):
        probe = RidgeCV(alphas=[0.001, 0.01, 0.1, 1, 10, 100, 1000])
        probe.fit(embeddings["train"], splits["train"][dimension])
        predictions, truth = probe.predict(embeddings["test"]), np.array(splits["test"][dimension])
        scores = result["scores"][dimension]
        assert scores["pearson"] == pytest.approx(pearsonr(predictions, truth).statistic, abs=1e-3)
        assert scores["spearman"] == pytest.approx(spearmanr(predictions, truth).statistic, abs=1e-2)
        assert scores["mae"] == pytest.approx(np.abs(predictions - truth).mean(), abs=1e-3)
