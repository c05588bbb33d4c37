"""Exports: what of a trained model is given to others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from carl_hf.modeling_carl import CarlModel

TRAINING_RECORD = "carl_training.json"


def export_encoder(
    model: CarlModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    max_length: int = 128,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the online encoder as a plain model folder: no target, no heads, no custom code.

    `AutoModel.from_pretrained(folder)` loads it, its trained pooler included, and so does
    `SentenceTransformer(folder)`, which applies the model's pooling and scales vectors to length 1.

    Args:
        model: a trained model. tokenizer: of its encoder. folder: made if it does not exist.
        max_length: tokens kept of a text, at most those of the tokenizer; written into the tokenizer, so that
            pipelines cut longer texts.
        training: written to carl_training.json: {"corpora": names of the training corpora, "trained_on_test_rows":
            whether their held-out parts were trained on}. An evaluation marks what the encoder has seen.

    Returns:
        the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.encoder.save_pretrained(folder)
    previous = tokenizer.model_max_length
    tokenizer.model_max_length = max_length = min(max_length, previous)
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_max_length = previous
    _write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": model.config.encoder.hidden_size,
            "pooling_mode_cls_token": model.config.pooling == "cls",
            "pooling_mode_mean_tokens": model.config.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    (folder / "2_Normalize").mkdir(exist_ok=True)
    if training is not None:
        _write_json(folder / TRAINING_RECORD, training)
    return folder


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
