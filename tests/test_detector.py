import numpy as np
import pytest
import torch
from conftest import toy_dataset

from carl_hf.data.labelled import VaCorpus
from carl_hf.evaluation.detector import Perturbation, measure_detector

pytest.importorskip("sklearn")


def corpus(size=90):
    toys = toy_dataset(size)
    labels = np.stack([toys["valence"], toys["arousal"]], axis=1)
    split = np.array(["train"] * (size * 2 // 3) + ["test"] * (size - size * 2 // 3))
    return VaCorpus(list(toys["text"]), labels, ("valence", "arousal"), split)


def test_a_large_perturbation_is_seen_and_none_is_not(carl, tokenizer):
    before = {name: p.clone() for name, p in carl.state_dict().items()}
    figures = measure_detector(carl, tokenizer, corpus(), perturbation=Perturbation(radius=3.0), seed=0)
    assert set(figures) == {
        "salient, radius 0", "salient, radius 3", "random, radius 0", "random, radius 3", "own detector",
    }  # fmt: skip
    assert figures["random, radius 3"]["auc"] > 0.9  # seen
    assert abs(figures["random, radius 0"]["auc"] - 0.5) < 0.15  # nothing to see, nothing to guess
    for condition in figures.values():
        low, high = condition["auc_interval"]
        assert low <= condition["auc"] <= high
    assert 0 < figures["random, radius 3"]["precision"] <= 1 and figures["random, radius 3"]["recall"] > 0.8
    # 30 test texts of 7 to 29 letters and spaces, special tokens left out
    assert figures["random, radius 0"]["tokens"] == sum(len(t) for t in corpus().texts[60:])
    assert all(p.equal(before[name]) for name, p in carl.state_dict().items())
    assert all(p.grad is None for p in carl.parameters()) and not carl.training


def test_the_same_seed_gives_the_same_figures(carl, tokenizer):
    torch.manual_seed(1)
    first = measure_detector(carl, tokenizer, corpus(), seed=0, train_texts=20, test_texts=10)
    torch.manual_seed(2)
    assert measure_detector(carl, tokenizer, corpus(), seed=0, train_texts=20, test_texts=10) == first
