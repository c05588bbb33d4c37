"""What the checks run on, without a download: encoders with random weights, and texts as long as EmoBank's."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

_EMOBANK_TOKENS = (3, 8, 10, 12, 15, 18, 22, 26, 32, 40, 68, 128)
_SHARES = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1)
"""Quantiles of the tokens of a training text, by MiniLM's tokenizer."""
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
CLASSES = ("anger", "joy", "relief", "sadness")
FAMILIES = ("bert", "roberta", "xlm-roberta", "modernbert", "deberta-v2", "mpnet", "distilbert", "electra")

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES = {"roberta-base": ("roberta", 50265, BASE), "minilm-l6": ("bert", 30522, MINILM)}


@dataclass
class Report:
    """What was found: checks, each with a value and its limit; and figures that have none."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def check(self, name: str, value: float, limit: float, note: str = "") -> None:
        """A value passes up to its limit; NaN does not."""
        passed = bool(value <= limit)
        self.checks.append({"name": name, "value": float(value), "limit": limit, "passed": passed, "note": note})
        print(f"{'ok  ' if passed else 'FAIL'} {name}: {value:.3g} (limit {limit:g}) {note}".rstrip(), flush=True)

    def figure(self, name: str, value: Any) -> None:
        self.figures[name] = value
        print(f"     {name}: {value}", flush=True)


def encoder(family: str, vocabulary: int = 1000, sizes: dict[str, int] = TINY, **settings: Any) -> PreTrainedModel:
    """Random weights, in eval mode."""
    settings = {"vocab_size": vocabulary, "pad_token_id": 1, "max_position_embeddings": 140, **sizes, **settings}
    if family == "distilbert":
        names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
                 "intermediate_size": "hidden_dim"}  # fmt: skip
        settings = {names.get(name, name): value for name, value in settings.items()}
    if family == "deberta-v2":
        settings |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16}
    if family == "modernbert":
        settings |= {"cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2, "local_attention": 8}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **settings)
    return AutoModel.from_config(config, trust_remote_code=False).eval()


def tokenizer(vocabulary: int = 1000) -> PreTrainedTokenizerFast:
    """A token for each of the words w4, w5 and so on."""
    names = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), vocabulary))]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="<s>", pad_token="<pad>", sep_token="</s>", unk_token="<unk>",
        model_max_length=128,
    )  # fmt: skip


def rows(count: int, vocabulary: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Random words, labels and classes, no two texts the same. The lengths are distributed as EmoBank's."""
    rng = np.random.default_rng(seed)
    lengths = np.interp(rng.random(count), _SHARES, _EMOBANK_TOKENS).astype(int) - 2  # <s> and </s>
    made = []
    for number, length in enumerate(lengths):
        words = rng.integers(len(SPECIAL), vocabulary, size=max(1, length))
        valence, arousal = rng.uniform(-1, 1, 2).round(3)
        made.append({
            "text": " ".join(f"w{word}" for word in words), "valence": valence, "arousal": arousal,
            "label": CLASSES[number % len(CLASSES)],
        })  # fmt: skip
    return made


def write_inputs(folder: Path, names: Sequence[str], *, tiny: bool) -> tuple[dict[str, str], str]:
    """Saves encoders of these sizes with a tokenizer, and texts; returns the encoders' folders and the file."""
    folders = {}
    for name in names:
        family, vocabulary, sizes = SIZES[name]
        vocabulary, sizes = (1000, TINY) if tiny else (vocabulary, sizes)
        folders[name] = str(folder / name)
        encoder(family, vocabulary, sizes).save_pretrained(folders[name])
        tokenizer(vocabulary).save_pretrained(folders[name])
    file = folder / "texts.csv"
    pd.DataFrame(rows(300 if tiny else 9000)).drop(columns="label").to_csv(file, index=False)
    return folders, str(file)
