"""Classification models in two parts, the encoder on packed texts and the head on what it reads of them; of families
whose head reads more, as one on padded texts.

Shape suffixes: N texts, K outputs, H width of the encoder.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from carl_hf.encoders.checks import kept_length
from carl_hf.encoders.embedding import embed_tokens, encode_packed
from carl_hf.encoders.fast_cpu import limit_primitive_cache
from carl_hf.encoders.packing import Pooling, use_packed_attention

_BATCH = 64  # texts of a model that runs as a whole


def token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[int]]:
    """Of each text, at most `max_length` and as many as the tokenizer allows."""
    return tokenizer(list(texts), truncation=True, max_length=kept_length(max_length, tokenizer))["input_ids"]


class GivenStates(nn.Module):
    """Stands where the encoder of a classification model was, and hands on the states that it is given."""

    def __init__(self, pooler: nn.Module | None):
        super().__init__()
        self.pooler = pooler

    def forward(self, *ids: None, inputs_embeds: Tensor, **others: Any) -> BaseModelOutputWithPooling:
        pooled = None if self.pooler is None else self.pooler(inputs_embeds)
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=pooled)


class Classifier:
    """A sequence-classification model whose encoder and head are called one after the other, the head without dropout:
    one that was fitted without is far off with it. A family whose head does not read the first token alone (the mean
    of ModernBERT) runs as a whole.

    Args:
        model: of any family. tokenizer: of its encoder.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.encoder, self._tokenizer = model, model.base_model, tokenizer
        self.parameters = list(model.parameters())
        self._pooling: Pooling = getattr(model.config, "classifier_pooling", "cls")
        self._given = GivenStates(getattr(self.encoder, "pooler", None))
        use_packed_attention(self.encoder)
        self._in_parts = self._parts_agree()

    @torch.no_grad()
    def _parts_agree(self) -> bool:
        """Whether the two parts give a text the answer of the whole model."""
        tokens, training = token_ids(["Parts."], self._tokenizer, 16), self.model.training
        self.model.eval()
        whole = self._whole(tokens)
        try:
            states = embed_tokens(self.encoder, tokens, self._tokenizer, poolings=(self._pooling,))
            parts = self._head(states[self._pooling].to(self.model.device))
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError):  # a head that reads something else
            return False
        finally:
            self.model.train(training)
        return parts.shape == whole.shape and torch.allclose(parts, whole, atol=1e-3, rtol=1e-2)

    def _whole(self, tokens: Sequence[list[int]]) -> Tensor:
        padded = self._tokenizer.pad({"input_ids": list(tokens)}, return_tensors="pt").to(self.model.device)
        training = self.model.training
        self.model.eval()
        self.encoder.train(training)
        try:
            return self.model(**padded).logits
        finally:
            self.model.train(training)

    def logits(self, tokens: Sequence[list[int]]) -> Tensor:
        """(N, K) with a graph, for token ids of N texts, the longest first; with dropout if the model trains."""
        limit_primitive_cache()
        if not self._in_parts:
            return self._whole(tokens)
        states = encode_packed(self.encoder, list(tokens), self._tokenizer, (self._pooling,))
        return self._head(states[self._pooling])

    @torch.no_grad()
    def predict(self, tokens: Sequence[list[int]]) -> Tensor:
        """float32 (N, K) on the CPU, without dropout, for token ids in any order."""
        self.model.eval()
        if not self._in_parts:
            order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
            rows = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
            found = torch.cat([self._whole([tokens[i] for i in batch]) for batch in rows])
            return found[torch.tensor(order).argsort()].float().cpu()
        states = embed_tokens(self.encoder, tokens, self._tokenizer, poolings=(self._pooling,))
        return self._head(states[self._pooling].to(self.model.device)).float().cpu()

    def _head(self, states_NH: Tensor) -> Tensor:
        training, prefix = self.model.training, self.model.base_model_prefix
        setattr(self.model, prefix, self._given)
        try:
            return self.model.eval()(inputs_embeds=states_NH.unsqueeze(1)).logits
        finally:
            setattr(self.model, prefix, self.encoder)
            self.model.train(training)
