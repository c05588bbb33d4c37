"""The last linear layer of a classification model, which outputs the logits: where it is, what it reads, and how it is
replaced.

Shape suffixes: N texts, K outputs, H width of what the layer reads.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.encoders.classifiers import Classifier, token_ids
from carl_hf.encoders.embedding import EncodeOnce
from carl_hf.evaluation.probes import LinearProbe


def last_layer(classifier: PreTrainedModel) -> str:
    """Path of the linear layer that outputs the logits."""
    linear = {path: layer for path, layer in classifier.named_modules() if isinstance(layer, nn.Linear)}
    return [path for path, layer in linear.items() if layer.out_features == classifier.config.num_labels][-1]


def last_layer_inputs(
    classifier: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> tuple[np.ndarray, list[list[int]]]:
    """What the last layer reads of each text, (N, H), and the ids of its tokens."""
    path, tokens = last_layer(classifier), token_ids(texts, tokenizer, max_length)
    layer = classifier.get_submodule(path)
    classifier.set_submodule(path, nn.Identity())
    try:
        return Classifier(classifier, tokenizer).predict(tokens).numpy(), tokens
    finally:
        classifier.set_submodule(path, layer)


def set_last_layer(classifier: PreTrainedModel, probe: LinearProbe) -> None:
    """Puts a probe in the place of the last layer's weights."""
    layer = classifier.get_submodule(last_layer(classifier))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(probe.weight))
        layer.bias.copy_(torch.from_numpy(probe.bias))


def replace_rows(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Gives a linear layer other outputs: weight (K, H), bias (K,)."""
    layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    layer.out_features = len(bias)


def reading_once(classifier: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodeOnce:
    """Texts -> what the last layer reads of them, (N, H). It holds for as long as nothing below that is trained."""
    return EncodeOnce(lambda texts: last_layer_inputs(classifier, tokenizer, texts, max_length)[0])
