"""The MTEB example on a made-up EmoBank and a tiny encoder, against scikit-learn and scipy."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_encoder

from carl_hf import CarlModel, export_encoder, load_va_dataset

SCRIPT = Path(__file__).parents[1] / "examples" / "mteb_task.py"


def test_without_mteb_it_says_what_to_install():
    code = f"import sys, runpy; sys.modules['mteb'] = None; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: " in done.stderr and "pip install mteb sentence-transformers" in done.stderr


def test_scores_equal_a_ridge_regression_on_the_same_embeddings(tmp_path, tokenizer, monkeypatch, capsys):
    pytest.importorskip("mteb")
    from scipy.stats import pearsonr, spearmanr
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import RidgeCV

    rng = np.random.default_rng(0)
    words = np.array(["joy", "woe", "calm", "storm", "rain", "sun", "stone"])
    frame = pd.DataFrame(
        {
            "id": range(140),
            "split": ["train"] * 100 + ["dev"] * 10 + ["test"] * 30,
            "V": rng.uniform(1, 5, 140),
            "A": rng.uniform(1, 5, 140),
            "D": rng.uniform(1, 5, 140),
            "text": [f"{' '.join(rng.choice(words, 1 + i % 6))} {i}" for i in range(140)],
        }
    )
    (tmp_path / "emobank").mkdir()
    frame.to_csv(tmp_path / "emobank" / "emobank.csv", index=False)
    folder = export_encoder(CarlModel.from_encoder(tiny_encoder()), tokenizer, tmp_path / "encoder", max_length=32)
    out = tmp_path / "out" / "scores.json"
    script = runpy.run_path(str(SCRIPT))
    arguments = ["mteb_task.py", "--model", str(folder), "--data_dir", str(tmp_path), "--output", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    script["main"]()
    result = json.loads(out.read_text())
    assert result == json.loads(capsys.readouterr().out)
    assert result["texts"] == {"train": 100, "test": 30}

    parts = {split: load_va_dataset("emobank", split=split, data_dir=tmp_path) for split in ("train", "test")}
    model = SentenceTransformer(str(folder), device="cpu")
    embeddings = {split: model.encode(part["text"]) for split, part in parts.items()}
    for dimension in ("valence", "arousal"):
        probe = RidgeCV(alphas=[0.001, 0.01, 0.1, 1, 10, 100, 1000]).fit(
            embeddings["train"], parts["train"][dimension]
        )
        predictions, truth = probe.predict(embeddings["test"]), np.array(parts["test"][dimension])
        scores = result["scores"][dimension]
        assert scores["pearson"] == pytest.approx(pearsonr(predictions, truth).statistic, abs=1e-3)
        assert scores["spearman"] == pytest.approx(spearmanr(predictions, truth).statistic, abs=1e-2)
        assert scores["mae"] == pytest.approx(np.abs(predictions - truth).mean(), abs=1e-3)

    monkeypatch.setattr(sys, "argv", [*arguments[:2], str(tmp_path / "none"), *arguments[3:]])
    with pytest.raises(SystemExit, match="no such folder"):
        script["main"]()
