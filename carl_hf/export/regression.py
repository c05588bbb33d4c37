"""How far valence-arousal heads are from their labels.

Shape suffixes: N texts, K dimensions.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of outputs and labels, a scalar."""


def weighted_squared_error(labels_NK: np.ndarray, device: torch.device) -> Loss:
    """The squared error of each dimension over its variance in `labels_NK`."""
    weight_K = torch.tensor(1 / np.maximum(labels_NK.var(0), 1e-6), dtype=torch.float32, device=device)
    return lambda outputs_NK, target_NK: (weight_K * (outputs_NK - target_NK).square()).mean()


def explained_variance(outputs_NK: np.ndarray, labels_NK: np.ndarray) -> float:
    """Share of the labels' variance that outputs, clipped to [0, 1], explain (R2): the mean of the dimensions."""
    error_K = np.square(outputs_NK.clip(0, 1) - labels_NK).mean(0)
    return float(1 - (error_K / np.maximum(labels_NK.var(0), 1e-6)).mean())
