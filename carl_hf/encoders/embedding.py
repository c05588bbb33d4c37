"""Embeddings of texts by any encoder, in batches of texts of similar length."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.encoders.checks import check_positions, check_tokenizer, check_unicode, kept_length
from carl_hf.encoders.fast_cpu import limit_primitive_cache
from carl_hf.encoders.packing import TokenLayout, embed_packed, encode_tokens, pool, pool_packed, use_packed_attention
from carl_hf.utils.setting_types import at_least

ReadPooling = Literal["cls", "mean", "pooler"]
"""What an encoder is measured with: also its own pooler output."""
PoolingChoice = Literal["auto", "cls", "mean", "pooler"]
"""What a user asks for: `"auto"` is the pooling that the model's folder states, else `"cls"`."""
StatedPooling = Literal["cls", "mean", "other"]
"""What a folder of sentence-transformers states: `"other"` is more than pooling and normalisation."""

_TOKENS_OF_A_TEXT = 32  # batch_size counts texts of so many tokens
_TEXTS_OF_A_SLICE = 16  # whose attention is computed together


def embed_texts(
    encoder: PreTrainedModel, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase,
    *, pooling: ReadPooling, batch_size: int = 64, max_length: int = 128, normalize: bool = False,
) -> Tensor:  # fmt: skip
    """Embeddings of texts, without dropout.

    Args:
        batch_size: texts of 32 tokens that are encoded together; of shorter ones more. The encoder's attention is that
            of `carl_hf.encoders.packing` from then on (the same result).
        pooling: `"cls"`, `"mean"`, or `"pooler"` (the encoder's own pooler output, tanh included).
        max_length: tokens kept of a text, at most those of the tokenizer. normalize: scale every vector to length 1.

    Returns:
        float32 `Tensor` (number of texts, H) on the CPU, in the order of the texts.

    Raises:
        ValueError: for one string in place of a list, an unknown pooling, a batch_size below 1, a max_length below 3,
            a tokenizer with more tokens than the encoder, or a text with more tokens than it has positions.
    """
    vectors = embed_poolings(
        encoder, texts, tokenizer, poolings=(pooling,), batch_size=batch_size, max_length=max_length
    )[pooling]
    return F.normalize(vectors, dim=-1) if normalize else vectors


def embed_poolings(
    encoder: PreTrainedModel, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase,
    *, poolings: Sequence[ReadPooling], batch_size: int = 64, max_length: int = 128, progress: str | None = None,
) -> dict[ReadPooling, Tensor]:  # fmt: skip
    """The embeddings of [`embed_texts`], to rounding, under several poolings, from one pass.

    Args:
        progress: title of a progress bar, shown where the output is a terminal; no bar by default.
    """
    texts = list_of_texts(texts)
    unknown = [pooling for pooling in poolings if pooling not in get_args(ReadPooling)]
    if unknown:
        raise ValueError(f"Unknown pooling {unknown[0]!r}: choose from {', '.join(get_args(ReadPooling))}.")
    encoder = encoder.base_model  # of a class with a head
    if "pooler" in poolings and getattr(encoder, "pooler", None) is None:
        raise ValueError(f"{type(encoder).__name__} has no pooler: choose the pooling 'cls' or 'mean'.")
    check_tokenizer(encoder, tokenizer)
    max_length = kept_length(max_length, tokenizer)
    tokens = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"] if len(texts) else []
    return embed_tokens(encoder, tokens, tokenizer, poolings=poolings, batch_size=batch_size, progress=progress)


@torch.no_grad()
def embed_tokens(
    encoder: PreTrainedModel, tokens: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase,
    *, poolings: Sequence[ReadPooling], batch_size: int = 64, progress: str | None = None,
) -> dict[ReadPooling, Tensor]:  # fmt: skip
    """[`embed_poolings`] of texts that are token ids already, with their special tokens; `encoder` has no head."""
    at_least("batch_size", batch_size, 1)
    limit_primitive_cache()
    lengths = [len(ids) for ids in tokens]
    check_positions(encoder, max(lengths, default=0))
    shape = len(tokens), encoder.config.hidden_size
    results = {pooling: torch.empty(shape, dtype=torch.float32) for pooling in poolings}
    disable = None if progress else True  # None: only where the output is a terminal
    packed = use_packed_attention(encoder) and "pooler" not in poolings
    bar = tqdm(total=sum(lengths), desc=progress, unit="tok", unit_scale=True, disable=disable)
    with _without_dropout(encoder), bar:
        most = batch_size * _TOKENS_OF_A_TEXT
        for rows in _batches(lengths, most, lambda length, longest: length if packed else longest):
            ids = [tokens[i] for i in rows]
            encode = encode_packed if packed else _encode_padded
            for pooling, vectors in encode(encoder, ids, tokenizer, poolings).items():
                results[pooling][rows] = vectors.float().cpu()
            bar.update(sum(map(len, ids)))
    return results


@torch.no_grad()
def classifier_outputs(
    model: PreTrainedModel, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase,
    *, batch_size: int = 64, max_length: int = 128,
) -> Tensor:  # fmt: skip
    """Logits of a sequence-classification model, without dropout: float32 (number of texts, K) on the CPU."""
    if isinstance(texts, str):
        raise ValueError("classifier_outputs takes a list of texts, got one: pass [text].")
    check_tokenizer(model, tokenizer)
    check_unicode(texts)
    at_least("batch_size", batch_size, 1)
    order, logits = [], []
    with _without_dropout(model):
        for rows in _batches([len(text) for text in texts], batch_size, lambda length, longest: 1):
            batch = tokenizer(
                [texts[i] for i in rows], truncation=True, padding=True, padding_side="right", return_tensors="pt",
                max_length=kept_length(max_length, tokenizer),
            )  # fmt: skip
            check_positions(model.base_model, batch["input_ids"].shape[1])
            logits.append(model(**batch.to(model.device)).logits.float().cpu())
            order += rows
    return torch.cat(logits)[np.argsort(order)] if logits else torch.empty(0, model.config.num_labels)


def list_of_texts(texts: Iterable[str]) -> list[str]:
    """The texts of any iterable of them, such as a column of a table; a ValueError for anything else."""
    if isinstance(texts, str):
        raise ValueError("embed takes a list of texts, got one string: pass [text].")
    is_table = isinstance(texts, Mapping) or hasattr(texts, "columns") or hasattr(texts, "column_names")
    found = [] if is_table else list(texts)
    if is_table or not all(isinstance(text, str) for text in found):
        raise ValueError(f"embed takes a list of texts, got other things in a {type(texts).__name__}: table['text'].")
    check_unicode(found)
    return found


class EncodeOnce:
    """Reads each text once, as long as this is kept, and counts the seconds.

    Args:
        encode: texts -> (N, H), finite numbers, else a ValueError.
    """

    def __init__(self, encode: Callable[[Sequence[str]], np.ndarray]):
        self.seconds = 0.0
        self._encode = encode
        self._known: dict[str, np.ndarray] = {}

    @property
    def without_direction(self) -> list[str]:
        """The texts whose vector is zero."""
        return [text for text, vector in self._known.items() if not vector.any()]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        start = time.perf_counter()
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            self._known.update(zip(missing, _finite_vectors(self._encode(missing), len(missing)), strict=True))
        result = np.stack([self._known[text] for text in texts])
        self.seconds += time.perf_counter() - start
        return result


def _finite_vectors(vectors: Any, texts: int) -> np.ndarray:
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.detach().float().cpu().numpy()
    vectors = np.asarray(vectors)
    if vectors.dtype.kind in "cOSUMm":
        raise ValueError(f"The encoder must return real numbers, got {vectors.dtype}.")
    vectors = vectors.astype(np.float32) if vectors.dtype.kind == "V" else vectors  # bfloat16 of other libraries
    if vectors.ndim != 2 or len(vectors) != texts:
        raise ValueError(
            f"The encoder must return an array (texts, dimensions), got {vectors.shape} for {texts} texts."
        )
    if not np.isfinite(vectors).all():
        raise ValueError("The encoder returned vectors that are not finite.")
    return vectors


@contextlib.contextmanager
def _without_dropout(model: PreTrainedModel) -> Iterator[None]:
    was_training = [(module, module.training) for module in model.modules()]  # parts of it may be frozen
    model.eval()
    try:
        yield
    finally:
        for module, training in was_training:
            module.training = training


def _batches(lengths: Sequence[int], most: int, cost: Callable[[int, int], int]) -> Iterator[list[int]]:
    """Indices of texts in batches, longest first, so that memory fails at once or never. A batch costs at most `most`,
    or is one text; `cost` of a text follows from its own length and that of the longest in its batch."""
    rows, spent = [], 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        price = cost(lengths[i], lengths[rows[0] if rows else i])
        if rows and spent + price > most:
            yield rows
            rows, spent, price = [], 0, cost(lengths[i], lengths[i])
        rows.append(i)
        spent += price
    if rows:
        yield rows


def encode_packed(
    encoder: PreTrainedModel, ids: list[list[int]], tokenizer: PreTrainedTokenizerBase, poolings: Sequence[ReadPooling]
) -> dict[ReadPooling, Tensor]:
    """The embeddings, with a graph, of texts that are token ids, the longest first; `"pooler"` is not among them."""
    lengths, device = [len(text) for text in ids], encoder.device
    layout = TokenLayout.of_lengths(lengths, texts_of_slice=_TEXTS_OF_A_SLICE, device=device)
    ids_T = torch.tensor(list(itertools.chain.from_iterable(ids)), device=device)
    embeds_TE = encoder.get_input_embeddings()(ids_T)
    if len(poolings) == 1:
        return {poolings[0]: embed_packed(encoder, embeds_TE, layout, poolings[0])}  # type: ignore[arg-type]
    hidden_TH = encode_tokens(encoder, embeds_TE, layout)
    return {pooling: pool_packed(hidden_TH, layout, pooling) for pooling in poolings}  # type: ignore[arg-type]


def _encode_padded(
    encoder: PreTrainedModel, ids: list[list[int]], tokenizer: PreTrainedTokenizerBase, poolings: Sequence[ReadPooling]
) -> dict[ReadPooling, Tensor]:
    batch = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt").to(encoder.device)
    mask_BL = batch["attention_mask"]
    output = encoder(input_ids=batch["input_ids"], attention_mask=mask_BL)
    return {
        pooling: output.pooler_output if pooling == "pooler" else pool(output.last_hidden_state, mask_BL, pooling)
        for pooling in poolings
    }
