"""Checkpoints and exports of version 0.1.0 (tests/made_by_0_1_0, from before the package was divided into rooms)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import toy_dataset
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments, push_export
from carl_hf.encoders import classifier_outputs, embed_texts

MADE = Path(__file__).parent / "made_by_0_1_0"
EXPECTED = json.loads((MADE / "expected.json").read_text())


@pytest.mark.skipif(np.__version__ < "2", reason="NumPy 1 does not read the random state that NumPy 2 wrote")
def test_a_checkpoint_resumes_to_the_same_end(tmp_path, caplog):
    shutil.copytree(MADE / "checkpoint-4", tmp_path / "checkpoint-4")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint-4")
    args = CarlTrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, max_steps=8, save_steps=4, logging_steps=1, seed=5, use_cpu=True,
        report_to="none", disable_tqdm=True, max_length=32, objectives=["mccl=0.8", "ptd=0.8", "regression"],
        temperature=0.05,
    )  # fmt: skip
    set_seed(5)
    model = CarlModel.from_pretrained(tmp_path / "checkpoint-4")
    trainer = CarlTrainer(model=model, args=args, train_dataset=toy_dataset(48), processing_class=tokenizer)
    trainer.train(resume_from_checkpoint="last")
    assert "does not state its settings" in caplog.text and "objectives" in caplog.text
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(EXPECTED["losses"], rel=1e-4)
    embeddings = trainer.model.embed(EXPECTED["texts"], tokenizer, max_length=32)
    torch.testing.assert_close(embeddings, torch.tensor(EXPECTED["embeddings_after_step_8"]), rtol=1e-4, atol=1e-5)


def test_exports_load_and_can_be_pushed(monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(MADE / "encoder")
    encoder = AutoModel.from_pretrained(MADE / "encoder")
    assert embed_texts(encoder, EXPECTED["texts"], tokenizer, pooling="cls").shape == (2, 8)
    regressor = AutoModelForSequenceClassification.from_pretrained(MADE / "va")
    answers = classifier_outputs(regressor, EXPECTED["texts"], AutoTokenizer.from_pretrained(MADE / "va"))
    torch.testing.assert_close(answers, torch.tensor(EXPECTED["va"]), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_exists", lambda *args, **kwargs: False)
    for kind in ("encoder", "va", "emotion"):
        assert "model.safetensors" in push_export(MADE / kind, "owner/name", dry_run=True).files
