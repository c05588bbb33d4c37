"""Run any pretrained encoder: find and load it, pack texts without padding, pool, embed.

Imports `utils` only. A user's first call is [`load_encoder`] or [`embed_texts`].
"""

from carl_hf.utils.lazy import lazy_names

_NAMES = {
    "checks": ("check_loaded", "check_padding", "check_positions", "check_tokenizer", "check_weights_file"),
    "loading": (
        "check_encoder", "check_no_adapters", "is_va_regressor", "load_classifier", "load_config", "load_encoder",
        "load_measured_encoder", "load_tokenizer", "load_sentence_transformer",
    ),
    "packaged": ("PACKAGED_ENCODER", "packaged_name", "resolve_encoder"),
    "emoji_tokens": ("add_emoji", "with_emoji"),
    "embedding": (
        "PoolingChoice", "ReadPooling", "StatedPooling", "classifier_outputs", "embed_poolings", "embed_texts",
        "embed_tokens",
    ),
    "layout": ("Pooling",),
    "packing": ("pool",),
    "stated": ("stated_pooling",),
}  # fmt: skip
__getattr__, __all__ = lazy_names(__name__, _NAMES)
