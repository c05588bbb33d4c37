"""The last hidden states of first tokens alone, all that CLS pooling reads: on a CPU the last layer of an encoder then
computes keys and values for all tokens, and the rest, ten twelfths of its work, for one token of each text.

Shape suffixes: B texts, T tokens of all texts, E width of the word embeddings, H width of the encoder, A attention
heads, D width of a head.
"""

from torch import Tensor, nn
from transformers import PreTrainedModel

from carl_hf.encoders.packing import TokenLayout, encode_tokens, is_packed, positions
from carl_hf.encoders.slice_attention import slice_attention

_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert")  # whose layers are BERT's


def encode_first_tokens(encoder: PreTrainedModel, embeds_TE: Tensor, layout: TokenLayout) -> Tensor:
    """Last hidden states (B, H) of the first tokens of packed texts, over their word embeddings (T, E).

    Where the shorter way is taken, hooks on the encoder itself, on its last layer as a whole and on that layer's
    attention are not called, nor is the pooler; activation checkpointing leaves the last layer out.
    """
    own = not type(encoder).__module__.startswith("transformers.")  # a subclass may have other layers
    known = is_packed(encoder) and encoder.config.model_type in _FAMILIES and not own
    if embeds_TE.device.type != "cpu" or not known:
        return encode_tokens(encoder, embeds_TE, layout)[layout.first_B]
    *layers, last = encoder.encoder.layer
    hidden_1TH = encoder.embeddings(inputs_embeds=embeds_TE.unsqueeze(0), position_ids=positions(encoder, layout))
    for layer in layers:
        hidden_1TH = layer(hidden_1TH, layout=layout)
    return _last_layer(last, hidden_1TH[0], layout)


def _last_layer(layer: nn.Module, hidden_TH: Tensor, layout: TokenLayout) -> Tensor:
    attention = layer.attention.self
    first_BH = hidden_TH[layout.first_B]

    def heads(states: Tensor) -> Tensor:
        return states.unflatten(-1, (attention.num_attention_heads, attention.attention_head_size))

    attended_BAD = slice_attention(
        heads(attention.query(first_BH)), heads(attention.key(hidden_TH)), heads(attention.value(hidden_TH)),
        layout.heads(attention.num_attention_heads), scale=attention.scaling,
        dropout=attention.dropout.p if layer.training else 0.0, first_tokens=True,
    )  # fmt: skip
    attended_BH = layer.attention.output(attended_BAD.flatten(1), first_BH)
    return layer.output(layer.intermediate(attended_BH), attended_BH)
