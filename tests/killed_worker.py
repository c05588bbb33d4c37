"""Run by test_checkpoints.py: trains one run that is killed again and again, and one that never is.

Every life is a fork of this process, which has imported everything and computed nothing, so that dozens fit in a
minute. A life is killed (SIGKILL) at a random moment; as every step is saved, many die while saving. Three more are
killed at planned moments: between weights and random states, before the record, while an old checkpoint is removed.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from conftest import make_trainer
from transformers import PreTrainedTokenizerFast, TrainerCallback

import carl_hf.training.checkpoints
from carl_hf.training.checkpoints import read_completion_record


class TellBegin(TrainerCallback):
    def __init__(self, pipe: int):
        self.pipe: int | None = pipe

    def on_step_begin(self, args, state, control, **kwargs):
        if self.pipe is not None:
            os.write(self.pipe, b".")
            self.pipe = None


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_removing(path, **_) -> None:
    next(iter(path.glob("model*"))).unlink()
    die()


PLANNED = {
    "_save_rng_state": lambda trainer: setattr(trainer, "_save_rng_state", die),
    "record": lambda trainer: setattr(carl_hf.training.checkpoints, "mark_complete", die),
    "removing": lambda trainer: setattr(carl_hf.training.checkpoints.shutil, "rmtree", die_removing),
}


def live(folder: Path, tokenizer, steps: int, weights: Path, plan: str | None = None) -> int:
    """The process number of a life that trains on from what it finds in `folder`, and leaves the final weights.
    Returns when its first step begins, or it has died."""
    began, begin = os.pipe()
    life = os.fork()
    if life:
        os.close(begin)
        os.read(began, 1)
        os.close(began)
        return life
    log = os.open(folder.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        trainer = make_trainer(
            folder, tokenizer, max_steps=steps, save_strategy="steps", save_steps=1, save_total_limit=2,
            callbacks=[TellBegin(begin)],
        )  # fmt: skip
        if plan is not None:
            PLANNED[plan](trainer)
        trainer.train(resume_from_checkpoint="last" if any(folder.glob("checkpoint-*/checkpoint.json")) else None)
        torch.save(trainer.model.state_dict(), weights.with_suffix(".partial"))
        weights.with_suffix(".partial").rename(weights)
    except BaseException as error:
        print(f"died: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def main(folder: Path, kills: int) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    moment = random.Random(0)
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    steps = 8 * kills + 14
    start = time.monotonic()
    _, status = os.waitpid(live(folder / "whole", tokenizer, steps, folder / "weights-whole.pt"), 0)
    assert status == 0, (folder / "whole.log").read_text()
    seconds_a_step = (time.monotonic() - start) / steps
    incomplete = 0
    for plan in [None] * kills + list(PLANNED):
        life = live(folder / "killed", tokenizer, steps, folder / "weights-killed.pt", plan)
        if plan is None:
            time.sleep(moment.uniform(0, 6 * seconds_a_step))
            os.kill(life, signal.SIGKILL)
        _, status = os.waitpid(life, 0)
        assert os.WIFSIGNALED(status), (folder / "killed.log").read_text()  # else it had ended by itself
        incomplete += any(_is_incomplete(path) for path in (folder / "killed").glob("checkpoint-*"))
    _, status = os.waitpid(live(folder / "killed", tokenizer, steps, folder / "weights-killed.pt"), 0)
    assert status == 0, (folder / "killed.log").read_text()
    print(json.dumps({"kills": kills + len(PLANNED), "left_incomplete": incomplete}))


def _is_incomplete(path: Path) -> bool:
    try:
        read_completion_record(path)
    except ValueError:
        return True
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
