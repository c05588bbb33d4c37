"""Checkpoints: whole or recognised as torn, also after a kill at any moment or with a full disk."""

import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_trainer import StopAt, make_trainer

from carl_hf.checkpoints import SEAL, last_checkpoint, read_seal, seal

WORKER = str(Path(__file__).with_name("killed_worker.py"))


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    for name, size in (("model.safetensors", 100), ("optimizer.pt", 50)):
        (path / name).write_bytes(b"x" * size)
    seal(path, batch_texts=8)
    return path


def test_the_newest_whole_checkpoint_is_taken_and_torn_ones_are_named(tmp_path, caplog):
    with pytest.raises(ValueError, match="no whole checkpoint"):
        last_checkpoint(tmp_path)
    for step in (9, 10, 11, 12, 13):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-11" / "optimizer.pt").write_bytes(b"x" * 49)
    (tmp_path / "checkpoint-12" / "model.safetensors").unlink()
    (tmp_path / "checkpoint-13" / SEAL).write_text('{"batch')
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    for step, reason in (
        (13, "never finished"),
        (12, "model.safetensors is missing"),
        (11, "optimizer.pt is missing"),
    ):
        assert f"checkpoint-{step} is torn: " in caplog.text and reason in caplog.text
    assert read_seal(tmp_path / "checkpoint-10") == {
        "batch_texts": 8, "bytes": {"model.safetensors": 100, "optimizer.pt": 50}
    }  # fmt: skip


SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}


def test_a_torn_checkpoint_is_refused_by_name_and_passed_over_as_last(tmp_path, tokenizer, caplog):
    settings = {**SAVING, "save_total_limit": None}
    whole = make_trainer(tmp_path / "whole", tokenizer, **settings)
    whole.train()
    torn = make_trainer(tmp_path / "torn", tokenizer, callbacks=[StopAt(4)], **settings)
    torn.train()
    os.truncate(tmp_path / "torn" / "checkpoint-4" / "optimizer.pt", 1000)
    resumed = make_trainer(tmp_path / "torn", tokenizer, **settings)
    with pytest.raises(ValueError, match="checkpoint-4 is torn: optimizer.pt is missing or cut short"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "torn" / "checkpoint-4"))
    with caplog.at_level(logging.WARNING, logger="carl_hf.checkpoints"):
        resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is torn" in caplog.text
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert last_checkpoint(tmp_path / "torn").endswith("checkpoint-6")


def test_another_batch_size_does_not_continue_a_checkpoint(tmp_path, tokenizer):
    make_trainer(tmp_path, tokenizer, callbacks=[StopAt(2)], **SAVING).train()
    other = make_trainer(tmp_path, tokenizer, per_device_train_batch_size=4, **SAVING)
    with pytest.raises(ValueError, match="trained with 8 texts a step, and now a step has 4"):
        other.train(resume_from_checkpoint="last")
    same = make_trainer(
        tmp_path, tokenizer, per_device_train_batch_size=4, gradient_accumulation_steps=2, **SAVING
    )  # the same texts a step
    same.train(resume_from_checkpoint="last")
    assert same.state.global_step == 6


def test_an_older_checkpoint_goes_only_when_the_new_one_is_whole(tmp_path, tokenizer, monkeypatch):
    found = []

    def watched(folder, **options):
        found.append(sorted(path.name for path in tmp_path.glob("checkpoint-*")))
        seal(folder, **options)

    monkeypatch.setattr("carl_hf.checkpoints.seal", watched)
    make_trainer(tmp_path, tokenizer, **SAVING).train()
    assert found == [["checkpoint-2"], ["checkpoint-2", "checkpoint-4"], ["checkpoint-4", "checkpoint-6"]]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


@pytest.mark.parametrize("limit", [20_000, 60_000], ids=["weights", "optimizer"])
def test_a_disk_that_is_full_stops_with_its_name_and_an_intact_checkpoint(limit, tmp_path, tokenizer):
    """The system refuses every file beyond a size, as a full disk would."""
    make_trainer(tmp_path, tokenizer, callbacks=[StopAt(2)], **SAVING).train()
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoint-2").iterdir()}
    sizes = {path.name: len(content) for path, content in before.items()}
    assert sizes["model.safetensors"] > 20_000 and sizes["optimizer.pt"] > 60_000
    trainer = make_trainer(tmp_path, tokenizer, **SAVING)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="checkpoint-4 could not be written .*--resume_from_checkpoint last"):
            trainer.train(resume_from_checkpoint="last")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in before} == before
    assert last_checkpoint(tmp_path).endswith("checkpoint-2")


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(kills, tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    done = subprocess.run(
        [sys.executable, WORKER, str(tmp_path), str(kills)], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    print(report)
    assert report["kills"] == kills
    whole, killed = (torch.load(tmp_path / f"weights-{name}.pt", weights_only=True) for name in ("whole", "killed"))
    for name, value in whole.items():
        assert torch.equal(killed[name], value), name
