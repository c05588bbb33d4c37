"""Classification models that answer from one pass of their encoder over packed texts.

Shape suffixes: N texts, K classes, H width of the encoder.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from carl_hf.encoders.checks import check_tokenizer, kept_length, usable_positions
from carl_hf.encoders.classifiers import GivenStates
from carl_hf.encoders.embedding import embed_tokens
from carl_hf.encoders.loading import load_classifier, load_tokenizer
from carl_hf.encoders.packing import Pooling
from carl_hf.evaluation.encoder import tokenizer_state

_TEXTS = ("A warm bath.", "How dare you lie to me again?")  # on which a head is compared with its whole model
_TOLERANCE = 1e-3
_MOST_TOKENS = 512  # unless the caller asks for more


class Reader:
    """An encoder, its tokenizer, and the heads that read it.

    Args:
        name: folder or Hub id of a sequence-classification model. device: where it runs.
        max_length: tokens of a text at most, special ones included; the tokenizer's and the encoder's limits hold too.

    Raises:
        ValueError: if it cannot be loaded, or its head reads neither the first token nor the mean over tokens.
    """

    def __init__(self, name: str, *, device: torch.device, max_length: int | None = None):
        model, self.tokenizer = load_classifier(name).to(device).eval(), load_tokenizer(name)
        check_tokenizer(model, self.tokenizer)
        self.encoder, self.device, self.config = model.base_model, device, model.config
        if max_length is None:
            limits = (self.tokenizer.model_max_length, usable_positions(self.encoder), _MOST_TOKENS)
            max_length = min(limit for limit in limits if limit is not None)
        self.max_length = kept_length(max_length, self.tokenizer, self.encoder)
        self.heads = [model]
        with torch.autocast(device.type, enabled=False):  # a caller's would round what is compared
            expected = self._whole_model(model)
            setattr(model, model.base_model_prefix, GivenStates(getattr(self.encoder, "pooler", None)))
            tokens = self.tokenizer(list(_TEXTS))["input_ids"]
            for pooling in ("cls", "mean"):
                self.pooling: Pooling = pooling
                if torch.allclose(self.logits(tokens)[0], expected, atol=_TOLERANCE, rtol=_TOLERANCE):
                    return
        raise ValueError(f"{name}: its head reads neither the first token nor the mean over tokens, so it cannot be "
                         "run here; use the pipeline of transformers.")  # fmt: skip

    @torch.no_grad()
    def _whole_model(self, model: PreTrainedModel) -> Tensor:
        batch = self.tokenizer(list(_TEXTS), padding=True, padding_side="right", return_tensors="pt")
        return model(**batch.to(self.device)).logits.float().cpu()

    def takes(self, other: "Reader") -> bool:
        """Adds the heads of a reader whose encoder and tokens are the same, so that one pass serves both; says
        whether it is such a one. The poolers are the heads' own."""
        settings = [(r.pooling, r.max_length, str(r.encoder.config.model_type)) for r in (self, other)]
        states = [{key: value for key, value in r.encoder.state_dict().items() if not key.startswith("pooler.")}
                  for r in (self, other)]  # fmt: skip
        same = (
            settings[0] == settings[1]
            and states[0].keys() == states[1].keys()
            and all(torch.equal(value, states[1][key]) for key, value in states[0].items())
            and tokenizer_state(self.tokenizer) == tokenizer_state(other.tokenizer)
        )
        if same:
            self.heads += other.heads
        return same

    @torch.no_grad()
    def logits(self, tokens: Sequence[list[int]], *, batch_size: int = 64) -> list[Tensor]:
        """float32 (N, K) on the CPU for each head.

        Args:
            tokens: ids of N texts with their special tokens, at most `max_length` each.
            batch_size: texts of 32 tokens that are encoded together; of shorter ones more.
        """
        states_NH = embed_tokens(
            self.encoder, tokens, self.tokenizer, poolings=(self.pooling,), batch_size=batch_size
        )[self.pooling].to(self.device)  # fmt: skip
        return [head(inputs_embeds=states_NH.unsqueeze(1)).logits.float().cpu() for head in self.heads]
