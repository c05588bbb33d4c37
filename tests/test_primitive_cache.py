import os
import subprocess
import sys

import pytest

from carl_hf import CarlTrainer, CarlTrainingArguments
from carl_hf.encoders.embedding import embed_texts
from carl_hf.encoders.fast_cpu import PRIMITIVE_CACHE_CAPACITY, limit_primitive_cache

NAME = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"

# as many shapes as fit, and one more; then the first of them again
PRODUCTS = """
import sys
import torch
from carl_hf.encoders.fast_cpu import PRIMITIVE_CACHE_CAPACITY, limit_primitive_cache
if sys.argv[1] == "bound":
    limit_primitive_cache()
weight = torch.zeros(32, 48, dtype=torch.bfloat16)
for rows in [*range(8, PRIMITIVE_CACHE_CAPACITY + 9), 8]:
    torch.nn.functional.linear(torch.zeros(rows, 48, dtype=torch.bfloat16), weight)
"""


def test_the_users_own_capacity_holds(monkeypatch):
    monkeypatch.setenv(NAME, "7")
    limit_primitive_cache()
    assert os.environ[NAME] == "7"


@pytest.mark.parametrize(("bound", "found_again"), [("bound", 0), ("free", 1)])
def test_what_does_not_fit_is_forgotten(bound, found_again):
    environment = {name: value for name, value in os.environ.items() if name != NAME} | {"ONEDNN_VERBOSE": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS, bound], capture_output=True, text=True, env=environment, check=True
    )
    made = [line for line in done.stdout.splitlines() if "create:" in line and "matmul" in line]
    if not made:
        pytest.skip("torch multiplies bfloat16 matrices without oneDNN here")
    assert len(made) == PRIMITIVE_CACHE_CAPACITY + 2
    assert sum("cache_hit" in line for line in made) == found_again


@pytest.mark.parametrize("use", ["embed", "train"])
def test_training_and_embedding_bound_it(use, tmp_path, monkeypatch, carl, toys, tokenizer):
    monkeypatch.setenv(NAME, "7")
    monkeypatch.delenv(NAME)  # what is set below goes with the test
    if use == "embed":
        embed_texts(carl.online.encoder, ["a text"], tokenizer, pooling="cls")
    else:
        args = CarlTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=8, report_to="none")
        CarlTrainer(model=carl, args=args, train_dataset=toys, processing_class=tokenizer)
    assert os.environ[NAME] == str(PRIMITIVE_CACHE_CAPACITY)
