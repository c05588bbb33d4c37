import numpy as np
import pytest
import torch
from conftest import toy_dataset

from carl_hf.data.labelled import VaCorpus
from carl_hf.evaluation.detector import TooFewTokensError, measure_detector
from carl_hf.evaluation.suite import run_tasks
from carl_hf.evaluation.tasks import Corpora, Settings

pytest.importorskip("sklearn")


@pytest.fixture
def corpus():
    toys = toy_dataset(90)
    labels = np.stack([toys["valence"], toys["arousal"]], axis=1)
    return VaCorpus(list(toys["text"]), labels, ("valence", "arousal"), np.array(["train"] * 60 + ["test"] * 30))


def test_a_large_perturbation_is_seen_and_none_is_not(carl, tokenizer, corpus):
    before = {name: p.clone() for name, p in carl.state_dict().items()}
    torch.manual_seed(1)  # which nothing depends on
    found = measure_detector(carl, tokenizer, corpus, radius=3.0, seed=0)
    assert found == measure_detector(carl, tokenizer, corpus, radius=3.0, seed=0)
    conditions = [f"{tokens}, radius {radius}" for tokens in ("salient", "random") for radius in (0, 3)]
    assert list(found) == conditions
    assert found["random, radius 3"]["auc"] > 0.9 and found["random, radius 3"]["recall"] > 0.8  # seen
    assert abs(found["random, radius 0"]["auc"] - 0.5) < 0.15  # nothing to see, nothing to guess
    for condition in found.values():
        low, high = condition["auc_interval"]
        assert low <= condition["auc"] <= high
    assert 0 < found["random, radius 3"]["precision"] <= 1
    # 30 test texts of 7 to 29 letters and spaces, special tokens left out
    assert found["random, radius 0"]["tokens"] == sum(map(len, corpus.texts[60:]))
    assert all(p.equal(before[name]) for name, p in carl.state_dict().items())
    assert all(p.grad is None for p in carl.parameters()) and not carl.training


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("short", ["a text", "one token"])
def test_a_corpus_of_too_few_tokens_is_left_out_and_said(part, short, carl, tokenizer, corpus):
    rows = np.flatnonzero(corpus.split == part)
    kept = np.setdiff1d(np.arange(90), rows[1:] if short == "a text" else [])
    texts = ["a" if short == "one token" and i in rows else corpus.texts[i] for i in kept]
    few = VaCorpus(texts, corpus.labels[kept], corpus.dimensions, corpus.split[kept])
    name = {"train": "training", "test": "test"}[part]
    with pytest.raises(TooFewTokensError, match=f"its {name} part is too small"):
        measure_detector(carl, tokenizer, few, seed=0)
    settings = Settings(tasks=("detector",))
    corpora = Corpora(settings)
    corpora.detector = {"mine": few, "whole": corpus}
    metrics = run_tasks(lambda texts: np.zeros((len(texts), 2)), settings, corpora, carl=(carl, tokenizer)).metrics
    assert name in metrics["skipped"]["detector/mine"] and list(metrics["detector"]) == ["whole"]
