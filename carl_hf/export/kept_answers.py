"""Fine-tuning an emotion classifier so that a valence-arousal head on the same encoder keeps its answers (learning
without forgetting: Li and Hoiem 2016, arXiv 1606.09282).

Shape suffixes: N texts, K emotions, D dimensions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from carl_hf.encoders.embedding import EncodeOnce
from carl_hf.evaluation.valence_arousal import dimensions_of
from carl_hf.export.last_layer import last_layer, replace_rows
from carl_hf.export.regression import Loss, weighted_squared_error
from carl_hf.export.task_heads import ridge_head, with_development


@contextmanager
def keeping_answers(
    classifier: PreTrainedModel, read: EncodeOnce, rated: Dataset, texts: Sequence[str], labels: np.ndarray,
    loss: Loss, *, seed: int,
) -> Iterator[tuple[list[str], np.ndarray, Loss]]:  # fmt: skip
    """Within it, an emotion classifier has D further outputs, those of a linear valence-arousal head on its frozen
    encoder.

    Args:
        classifier: with K outputs and a linear head on a frozen encoder. read: what that head reads.
        rated: texts, valence, arousal.
        texts, labels: (N,) classes or (N, K), that it is to be trained on. loss: of its outputs and such labels.

    Yields:
        (texts, labels, loss) to train it on instead: the texts and what else is in `rated`; their labels, nan where a
        text has none, beside the answers of the valence-arousal head before training; and the sum of `loss` and the
        squared error of the answers over their variance.
    """
    train, dev = with_development(rated, None, seed=seed)
    head = ridge_head(read, train, dev, dimensions_of(rated))
    known = set(texts)
    every = [*texts, *(text for data in (train, dev) for text in data["text"] if text not in known)]
    answers_ND = head(read(every))
    kept_loss = weighted_squared_error(answers_ND, classifier.device)
    own = labels.reshape(len(texts), -1).astype(float)
    own = np.concatenate([own, np.full((len(every) - len(texts), own.shape[1]), np.nan)])
    outputs, columns = classifier.config.num_labels, own.shape[1]

    def both(outputs_NK: Tensor, target: Tensor) -> Tensor:
        kept = kept_loss(outputs_NK[:, outputs:], target[:, columns:])
        labelled = ~target[:, 0].isnan()
        if not labelled.any():
            return kept
        known = target[labelled, :columns]
        return kept + loss(outputs_NK[labelled, :outputs], known[:, 0].long() if labels.ndim == 1 else known)

    layer = classifier.get_submodule(last_layer(classifier))
    weight, bias = (torch.cat([own_rows, torch.from_numpy(rows).to(own_rows)])
                    for own_rows, rows in ((layer.weight, head.weight), (layer.bias, head.bias)))  # fmt: skip
    replace_rows(layer, weight, bias)
    try:
        yield every, np.concatenate([own, answers_ND], axis=1).astype(np.float32), both
    finally:
        replace_rows(layer, layer.weight[:outputs], layer.bias[:outputs])
