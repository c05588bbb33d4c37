import math

import numpy as np
import pytest
import torch
from torch import nn

from carl_hf.training.monitor import detection_auc, embedding_spread, parameter_distance


def test_auc_equals_scikit_learn_with_ties_and_masked_entries():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = torch.randint(-3, 4, (6, 9), generator=generator).float()
        positive = torch.rand(6, 9, generator=generator) < 0.3
        eligible = torch.rand(6, 9, generator=generator) < 0.8
        expected = metrics.roc_auc_score(positive[eligible], logits[eligible])
        assert detection_auc(logits, positive, eligible).item() == pytest.approx(expected, abs=1e-6)
    assert math.isnan(detection_auc(logits, torch.zeros_like(positive), eligible))
    for value in (math.inf, -math.inf, math.nan):
        broken = torch.where(eligible, logits, 0).index_fill(-1, torch.tensor([0]), value)
        assert math.isnan(detection_auc(broken, positive, eligible)) == bool(eligible[..., 0].any())


def test_spread_and_rank_tell_a_sphere_from_a_point_and_a_line():
    torch.manual_seed(0)
    spread, rank = embedding_spread(torch.randn(4000, 32))
    assert spread.item() == pytest.approx(1, abs=0.02) and rank.item() > 30
    spread, rank = embedding_spread(torch.ones(100, 32) + 1e-4 * torch.randn(100, 32))
    assert spread < 1e-3
    spread, rank = embedding_spread(torch.randn(100, 1) * torch.ones(1, 32))
    assert rank.item() == pytest.approx(1, abs=1e-3)
    assert embedding_spread(torch.ones(5, 4))[0] == 0


def test_distance_is_the_norm_of_the_difference_over_that_of_the_online_branch():
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    flat = [np.concatenate([p.detach().numpy().ravel() for p in m.parameters()]) for m in (a, b)]
    expected = np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])
    assert parameter_distance(a, b).item() == pytest.approx(expected, rel=1e-5)
