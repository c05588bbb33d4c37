"""A model, its tokenizer and sentence-transformers' layout, saved without what names code or places elsewhere."""

import json
import re
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.encoders.checks import check_padding
from carl_hf.utils.atomic_files import write_json

_ORIGIN = {
    "auto_map", "custom_pipelines", "cache_dir", "transformers_weights", "name_or_path", "_name_or_path",
    "is_local", "local_files_only", "backend",
}  # fmt: skip
_PATH = re.compile(r"(~|\.{1,2})?[/\\].|[A-Za-z]:[/\\]|file:")


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Saves weights and configuration, the latter without what names code or places elsewhere."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if (plain := _without_origin(config)) != config:
        write_json(path, plain)


def _without_origin(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without code to be loaded and without paths. Labels and tokens may look like a path."""

    def stays(key: str, value: Any) -> bool:
        texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        if key in _ORIGIN or (texts and key.endswith(("_path", "_file", "_dir", "_folder"))):
            return False
        return key.endswith(("_token", "_tokens")) or not any(map(_PATH.match, texts))

    kept = {key: value for key, value in config.items() if stays(key, value)}
    nested = {k: v for k, v in kept.items() if isinstance(v, dict) and k not in ("id2label", "label2id")}
    return kept | {key: _without_origin(v) for key, v in nested.items() if key != "added_tokens_decoder"}


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, max_length: int) -> None:
    """Saves the tokenizer with `max_length`, without local paths, and so that transformers 4 reads it too."""
    check_padding(tokenizer)
    if tokenizer.is_fast:  # left over from the last call, and saved with it otherwise
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    previous = tokenizer.model_max_length, tokenizer.padding_side
    tokenizer.model_max_length, tokenizer.padding_side = max_length, "right"  # as in training
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_max_length, tokenizer.padding_side = previous
    path = folder / "tokenizer_config.json"
    config = _without_origin(json.loads(path.read_text(encoding="utf-8")))
    if config.get("tokenizer_class") == "TokenizersBackend":  # its name before transformers 5
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if not config.get("extra_special_tokens"):  # a list, which transformers 4 does not read
        config.pop("extra_special_tokens", None)
    write_json(path, config)


def write_sentence_transformers_layout(
    folder: Path, pooling: Literal["cls", "mean"], width: int, max_length: int
) -> None:
    """The classic layout, which sentence-transformers 2 to 6 and text-embeddings-inference read."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(modules)
    ]
    chosen = {"cls": "cls_token", "mean": "mean_tokens"}[pooling]
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    pooling_config = {"word_embedding_dimension": width} | {f"pooling_mode_{mode}": mode == chosen for mode in modes}
    write_json(folder / "modules.json", entries)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    write_json(folder / "1_Pooling" / "config.json", pooling_config)
