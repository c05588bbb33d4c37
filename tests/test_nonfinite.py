"""Steps that are not finite are skipped, counted and explained, and nothing learns from them."""

import copy
import itertools
import json
import logging
import math

import pytest
import torch
from conftest import make_trainer, tiny_encoder, toy_dataset
from datasets import concatenate_datasets
from transformers import TrainerCallback

from carl_hf import CarlModel
from carl_hf.training.checkpoints import last_checkpoint
from carl_hf.training.nonfinite import SKIPPED_STEPS

BAD = "qqq"


def poisoned(tokenizer) -> CarlModel:
    """Its embedding of any text with the letter q is not finite."""
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8)
    with torch.no_grad():
        for branch in (model.online.encoder, model.target.encoder):
            branch.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids("q")] = math.nan
    return model


def texts_with_a_bad_one(size: int, row: int):
    data = toy_dataset(size)
    bad = data.select([row]).map(lambda _: {"text": BAD}, load_from_cache_file=False)
    return concatenate_datasets([data.select(range(row)), bad, data.select(range(row + 1, size))])


class Watch(TrainerCallback):
    """Weights, and the optimizer's moments and counts, before the first step and after each."""

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.states = []
        self.on_step_end(args, state, control, model, optimizer)

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        found = {name: value.clone() for name, value in model.state_dict().items()}
        for number, moments in optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{name}": copy.deepcopy(value) for name, value in moments.items()}
        self.states.append(found)

    @property
    def changed(self) -> list[bool]:
        """Whether each step has changed anything."""
        return [
            one.keys() != other.keys()
            or any(not torch.equal(one[name].nan_to_num(), other[name].nan_to_num()) for name in one)
            for one, other in itertools.pairwise(self.states)
        ]


def watched(tmp_path, tokenizer, **settings):
    trainer, watch = make_trainer(tmp_path, tokenizer, train_sampling_strategy="sequential", **settings), Watch()
    trainer.add_callback(watch)  # after the target's update
    return trainer, watch


def make_gradients_infinite(trainer, steps) -> None:
    trainer.model.online.projection[0].weight.register_hook(
        lambda gradient: gradient * (math.inf if trainer.state.global_step + 1 in steps else 1.0)
    )


def test_a_step_with_a_text_that_is_not_finite_changes_nothing_and_names_it(tmp_path, tokenizer, caplog):
    trainer, watch = watched(
        tmp_path, tokenizer, model=poisoned(tokenizer), data=texts_with_a_bad_one(32, row=19), max_steps=4
    )
    with caplog.at_level(logging.WARNING, logger="carl_hf.training.nonfinite"):
        trainer.train()
    assert watch.changed == [True, True, False, True]
    log = trainer.state.log_history
    assert [h["step"] for h in log if "skipped_steps" in h] == [2] and trainer.nonfinite.total == 1
    assert all(math.isfinite(h["loss"]) for h in log if "loss" in h)
    (entry,) = [json.loads(line) for line in (tmp_path / SKIPPED_STEPS).read_text().splitlines()]
    assert entry["step"] == 3 and entry["blamed"] and entry["losses"] == ["nan"]
    assert [text.replace(" ", "") for text in entry["texts"]] == [BAD]
    assert "Step 3 was skipped: its loss is not finite (skipped so far: 1). Caused by: 'q q q'" in caplog.text


def test_one_bad_batch_of_several_accumulated_ones_skips_the_step(tmp_path, tokenizer):
    trainer, watch = watched(
        tmp_path, tokenizer, model=poisoned(tokenizer), data=texts_with_a_bad_one(32, row=9), max_steps=2,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer.train()
    assert watch.changed == [False, True]


def test_a_gradient_that_is_not_finite_is_told_from_a_loss_that_is_not(tmp_path, tokenizer, caplog):
    trainer, watch = watched(tmp_path, tokenizer, max_steps=2)
    make_gradients_infinite(trainer, {2})
    with caplog.at_level(logging.WARNING, logger="carl_hf.training.nonfinite"):
        trainer.train()
    assert watch.changed == [True, False]
    assert "Step 2 was skipped: its gradient is not finite (skipped so far: 1). No text is to blame" in caplog.text
    assert len(json.loads((tmp_path / SKIPPED_STEPS).read_text())["texts"]) == 8  # all of the step


def test_a_loss_scaler_that_finds_no_scale_stops_too(tmp_path, tokenizer, caplog, monkeypatch):
    """Under fp16 the scaler skips what overflows; it is counted, the target is not updated, and training ends."""
    monkeypatch.setattr("carl_hf.training.nonfinite.LIMIT", 4)
    trainer, watch = watched(tmp_path, tokenizer, max_steps=8)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    make_gradients_infinite(trainer, range(3, 9))
    with pytest.raises(FloatingPointError, match="stopped at step 6: .* last 4 steps"):
        trainer.train()
    assert trainer.nonfinite.total == 4 and trainer.accelerator.scaler.get_scale() < 2**16
    assert watch.changed == [True, True, False, False, False]
    assert "was skipped" not in caplog.text  # how a scaler finds its scale


def test_training_stops_after_so_many_in_a_row_and_goes_on_from_its_checkpoint(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("carl_hf.training.nonfinite.LIMIT", 3)
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    broken = make_trainer(tmp_path, tokenizer, **settings)
    make_gradients_infinite(broken, {2, 4, 5, 6})  # one alone, and three in a row
    with pytest.raises(FloatingPointError, match="stopped at step 6: .* last 3 steps was not finite.*untouched"):
        broken.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    resumed = make_trainer(tmp_path, tokenizer, **settings)
    resumed.train(resume_from_checkpoint="last")
    assert resumed.state.global_step == 6
    assert resumed.nonfinite.total == 2  # steps 2 and 4; what came after the checkpoint is done again


@pytest.mark.parametrize("label", [math.inf, 1.5])
def test_labels_out_of_range_are_refused_in_a_stream_too(label, tmp_path, tokenizer):
    data = toy_dataset(16).map(lambda row, i: {"valence": label} if i == 3 else row, with_indices=True)
    trainer = make_trainer(tmp_path, tokenizer, data=data.to_iterable_dataset(), max_steps=2)  # checked by no one
    with pytest.raises(ValueError, match=f"text '{data[3]['text']}' .valence {label}, .* do not lie in"):
        trainer.train()
