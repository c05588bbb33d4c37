"""Checkpoints: complete or detected as incomplete, also after a kill at any moment or with a full disk."""

import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_encoder, toy_dataset
from test_trainer import StopAt, make_trainer

from carl_hf import CarlModel, CarlTrainer
from carl_hf.configuration_carl import HEADS
from carl_hf.training.checkpoints import (
    RECORD,
    CompletionRecord,
    last_checkpoint,
    mark_complete,
    read_completion_record,
    remove_old_checkpoints,
)

WORKER = str(Path(__file__).with_name("killed_worker.py"))
SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    for name, size in (("model.safetensors", 100), ("optimizer.pt", 50)):
        (path / name).write_bytes(b"x" * size)
    mark_complete(path, CompletionRecord(global_batch=8, batches=1))
    return path


def assert_same_weights(one, other):
    for (name, a), b in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_newest_complete_checkpoint_is_taken_and_others_are_named(tmp_path, tokenizer, caplog):
    with pytest.raises(ValueError, match="no complete checkpoint"):
        last_checkpoint(tmp_path)
    for step in (9, 10, 11, 12, 13):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-11" / "optimizer.pt").write_bytes(b"x" * 49)
    (tmp_path / "checkpoint-12" / "model.safetensors").unlink()
    (tmp_path / "checkpoint-13" / RECORD).write_text('{"batch')
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    reasons = {13: "it was never finished", 12: "model.safetensors is missing", 11: "optimizer.pt is missing"}
    for step, reason in reasons.items():
        assert f"checkpoint-{step} is incomplete: {reason}" in caplog.text
    assert read_completion_record(tmp_path / "checkpoint-10") == CompletionRecord(8, 1)
    with pytest.raises(ValueError, match="checkpoint-11 is incomplete: optimizer.pt is missing or cut short"):
        make_trainer(tmp_path, tokenizer).train(resume_from_checkpoint=str(tmp_path / "checkpoint-11"))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"bytes": {}}', "[" * 9999, "1e999", '{"joint_batch": 1e999, "batches": 1}', "\0"]
)
def test_a_damaged_record_is_none(content, tmp_path):
    (checkpoint(tmp_path, 3) / RECORD).write_text(content)
    with pytest.raises(ValueError, match="never finished"):
        read_completion_record(tmp_path / "checkpoint-3")


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [2, 4, 6, 8, 12]),
        (0, None, [2, 4, 6, 8, 12]),
        (3, None, [4, 6, 8]),  # 12 is of a training that came further before it was resumed
        (1, None, [8]),
        (2, 2, [2, 8]),
        (1, 2, [2, 8]),
        (1, 8, [8]),
        (9, None, [2, 4, 6, 8, 12]),
    ],
)
def test_the_newest_and_the_best_stay_whatever_the_clock_says(limit, best, left, tmp_path):
    for step in (8, 2, 12, 6, 4):
        os.utime(checkpoint(tmp_path, step), (0, 0))
    (tmp_path / "checkpoint-12" / RECORD).unlink()
    remove_old_checkpoints(tmp_path, tmp_path / "checkpoint-8", best and str(tmp_path / f"checkpoint-{best}"), limit)
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.iterdir()) == left


BATCHES = "8 texts in a contrastive batch and 1 batches a step, now it would be"


@pytest.mark.parametrize(
    ("settings", "record", "message"),
    [
        ({"per_device_train_batch_size": 4}, {}, BATCHES),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, {}, BATCHES),
        ({"gradient_accumulation_steps": 2}, {}, BATCHES),
        ({}, {"layer_decay": 0.9}, "--layer_decay 0.9, which this version does not have: start anew"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_training_is_not_continued(settings, record, message, tmp_path, tokenizer):
    path = checkpoint(tmp_path, 2) / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | record))
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, tokenizer, **{**SAVING, **settings}).train(resume_from_checkpoint="last")


OTHER = {
    "optim": ({}, {}, {"optim": "adafactor"}, r"optim the default \(adamw_\w+\), now adafactor"),
    "optimizer": ({}, {}, {}, "optimizer the default, now SGD"),
    "width": ({"hidden_size": 32}, {}, {}, "encoder.hidden_size 16, now 32"),
    "depth": ({"num_hidden_layers": 1}, {}, {}, "encoder.num_hidden_layers 2, now 1"),
    "type": ({"model_type": "roberta"}, {}, {}, "encoder.model_type bert, now roberta"),
    "heads": ({}, {"heads": HEADS, "classes": ["a", "b"]}, {}, "heads regressor, now classifier, proxies, "),
}


@pytest.mark.parametrize("case", OTHER)
def test_another_optimizer_or_model_does_not_continue_a_run(case, tmp_path, tokenizer):
    encoder, heads, settings, message = OTHER[case]
    make_trainer(tmp_path, tokenizer, callbacks=[StopAt(2)], **SAVING).train()
    model = CarlModel.from_encoder(tiny_encoder(**encoder), projection_dim=8, contrast_layers="prediction", **heads)
    trainer = make_trainer(tmp_path, tokenizer, model=model, **SAVING, **settings)
    if case == "optimizer":
        trainer = CarlTrainer(
            model, trainer.args, train_dataset=toy_dataset(), processing_class=tokenizer,
            optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}),
        )  # fmt: skip
    with pytest.raises(ValueError, match=rf"^[^\n]*checkpoint-2 was trained with {message}[^\n]*give the same"):
        trainer.train(resume_from_checkpoint="last")


def test_other_texts_or_another_dropout_do_not_continue_a_run(tmp_path, tokenizer):
    make_trainer(tmp_path, tokenizer, callbacks=[StopAt(2)], **SAVING).train()
    same = toy_dataset().map(lambda row, i: {"id": i, "label": None}, with_indices=True).select_columns(
        ["id", "label", "arousal", "valence", "text"]
    )  # fmt: skip
    make_trainer(tmp_path, tokenizer, data=same, callbacks=[StopAt(3)], **SAVING).train(resume_from_checkpoint="last")
    other = toy_dataset().map(lambda row, i: {"valence": 0.0} if i == 3 else {}, with_indices=True)
    calm = CarlModel.from_encoder(tiny_encoder(), projection_dim=8, contrast_layers="prediction", dropout=0.0)
    for settings, message in (
        ({"data": other}, "training_texts 24 .checksum"), ({"data_seed": 7}, "data_seed the default, now 7"),
        ({"model": calm}, "dropout_probabilities 0.1, now 0.0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"was trained with {message}"):
            make_trainer(tmp_path, tokenizer, **{**SAVING, **settings}).train(resume_from_checkpoint="last")


@pytest.mark.parametrize(
    ("length", "streamed"),
    [({"max_steps": 4}, False), ({"max_steps": 4}, True), ({"max_steps": -1, "num_train_epochs": 1.5}, False)],
)
def test_a_finished_run_is_resumed_without_another_step(length, streamed, tmp_path, tokenizer):
    def trained(resume):
        data = toy_dataset().to_iterable_dataset() if streamed else None
        trainer = make_trainer(tmp_path, tokenizer, data=data, **{**SAVING, "save_steps": 1, **length})
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole, again = trained(None), trained("last")
    assert again.state.global_step == whole.state.global_step == again.state.max_steps
    assert_same_weights(whole, again)


def test_a_checkpoint_of_the_model_alone_is_complete_but_not_resumed(tmp_path, tokenizer):
    make_trainer(tmp_path, tokenizer, save_only_model=True, **SAVING).train()
    assert not read_completion_record(tmp_path / "checkpoint-6").resumable
    with pytest.raises(ValueError, match="no complete checkpoint"):
        last_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="saved with --save_only_model"):
        make_trainer(tmp_path, tokenizer, **SAVING).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_what_an_earlier_training_left_in_its_folder_is_not_kept_in_a_checkpoint(tmp_path, tokenizer):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "rng_state_1.pth").write_bytes(b"of two processes")
    make_trainer(tmp_path, tokenizer, callbacks=[StopAt(2)], **SAVING).train()
    assert not (tmp_path / "checkpoint-2" / "rng_state_1.pth").exists()
    arguments = torch.load(tmp_path / "checkpoint-2" / "training_args.bin", weights_only=False)  # our own
    assert arguments.save_total_limit == 1


def test_an_older_checkpoint_goes_only_when_the_new_one_is_whole(tmp_path, tokenizer, monkeypatch):
    found = []

    def watched(folder, content):
        found.append(sorted(path.name for path in tmp_path.glob("checkpoint-*")))
        mark_complete(folder, content)

    monkeypatch.setattr("carl_hf.training.checkpoints.mark_complete", watched)
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
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == kills + 3  # three of them at planned moments of a save
    assert report["left_incomplete"] >= 2
    whole, killed = (torch.load(tmp_path / f"weights-{name}.pt", weights_only=True) for name in ("whole", "killed"))
    for name, value in whole.items():
        assert torch.equal(killed[name], value), name
