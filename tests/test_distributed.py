"""Two gloo processes against one on the joint batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = str(Path(__file__).with_name("distributed_worker.py"))


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2},
        {"ptd_weight": 0.0, "activation_checkpointing": True},
        {"streamed": True},
        # texts with numbers, with names, with both: unequally many of each on the two processes
        {"objectives": ["mccl", "ptd", "proxy_anchor", "circular", "cross_entropy", "supcon", "regression=2"],
         "head_warmup_epochs": 0.25, "proxy_learning_rate": 0.3, "gradient_cache_parts": 2},
    ],
    ids=["accumulation", "checkpointing", "streamed", "all-objectives"],
)  # fmt: skip
def test_two_processes_train_the_model_of_one(settings, tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for processes in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
        done = subprocess.run(
            [sys.executable, *launch, WORKER, str(tmp_path), str(processes), json.dumps(settings)],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (torch.load(tmp_path / f"weights-{n}.pt", weights_only=True) for n in (1, 2))
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, atol=1e-10, rtol=0, msg=name)
    for found, expected in zip(two["logs"], one["logs"], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)  # what is logged is global
