"""Texts to vectors by any encoder, in batches of texts of similar length."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.encoders.fast_cpu import limit_primitive_cache
from carl_hf.encoders.packing import TokenLayout, embed_packed, encode_tokens, pool, pool_packed, use_packed_attention

ReadPooling = Literal["cls", "mean", "pooler"]
"""What an encoder is measured with: also its own pooler output."""
PoolingChoice = Literal["auto", "cls", "mean", "pooler"]
"""What a user asks for: `"auto"` is the pooling that the model's folder states, else `"cls"`."""
StatedPooling = Literal["cls", "mean", "other"]
"""What a folder of sentence-transformers states: `"other"` is more than pooling and normalisation."""

_TOKENS_OF_A_TEXT = 32  # a batch holds so many tokens for each of its nominal texts
_TEXTS_OF_A_SLICE = 16  # whose attention is computed together


@torch.no_grad()
def embed_texts(
    encoder: PreTrainedModel,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    pooling: ReadPooling,
    batch_size: int = 64,
    max_length: int = 128,
    normalize: bool = False,
) -> Tensor:
    """Embeddings of texts, dropout off.

    Args:
        texts: any number of texts. batch_size: texts of 32 tokens that are encoded together; of shorter ones more.
            The encoder goes on computing attention by `carl_hf.encoders.packing` (the same result).
        pooling: `"cls"`, `"mean"`, or `"pooler"` (the encoder's own pooler output, tanh included).
        max_length: tokens kept of a text, at most those of the tokenizer. normalize: scale every vector to length 1.

    Returns:
        float32 `Tensor` (number of texts, H) on the CPU, in the order of the texts.
    """
    (result,) = embed_poolings(
        encoder, texts, tokenizer, poolings=(pooling,), batch_size=batch_size, max_length=max_length
    ).values()
    return F.normalize(result, dim=-1) if normalize else result


@torch.no_grad()
def embed_poolings(
    encoder: PreTrainedModel,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    poolings: Sequence[ReadPooling],
    batch_size: int = 64,
    max_length: int = 128,
    progress: str | None = None,
) -> dict[ReadPooling, Tensor]:
    """The embeddings of [`embed_texts`], to rounding, under several poolings, from one pass.

    Args:
        progress: title of a progress bar, shown where the output is a terminal; none by default.
    """
    if isinstance(texts, str):
        raise ValueError("embed takes a list of texts, got one string: pass [text].")
    limit_primitive_cache()
    was_training = encoder.training
    encoder.eval()
    try:
        max_length = min(max_length, tokenizer.model_max_length)
        tokens = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"] if len(texts) else []
        order = sorted(
            range(len(tokens)), key=lambda i: -len(tokens[i])
        )  # longest first: memory fails at once or never
        results = {pooling: torch.empty(len(tokens), encoder.config.hidden_size) for pooling in poolings}
        disable = None if progress else True  # None: only where the output is a terminal
        packed = use_packed_attention(encoder) and "pooler" not in poolings
        with tqdm(total=sum(map(len, tokens)), desc=progress, unit="tok", unit_scale=True, disable=disable) as bar:
            for rows in _batches(order, tokens, batch_size * _TOKENS_OF_A_TEXT, padded=not packed):
                ids = [tokens[i] for i in rows]
                if packed:
                    found = _encode_packed(encoder, ids, poolings)
                else:
                    found = _encode_padded(encoder, ids, tokenizer, poolings)
                for pooling, vectors in found.items():
                    results[pooling][rows] = vectors.float().cpu()
                bar.update(sum(map(len, ids)))
    finally:
        encoder.train(was_training)
    return results


def _batches(order: Sequence[int], tokens: Sequence[Sequence[int]], most: int, *, padded: bool) -> Iterator[list[int]]:
    """Numbers of consecutive texts, longest first, with at most so many tokens together, padding counted if there is
    any; or of one text."""
    rows, count = [], 0
    for i in order:
        length = len(tokens[rows[0] if padded and rows else i])
        if rows and count + length > most:
            yield rows
            rows, count, length = [], 0, len(tokens[i])
        rows.append(i)
        count += length
    if rows:
        yield rows


def _encode_packed(
    encoder: PreTrainedModel, ids: Sequence[Sequence[int]], poolings: Sequence[ReadPooling]
) -> dict[ReadPooling, Tensor]:
    layout = TokenLayout.of_lengths(
        [len(text) for text in ids], texts_of_slice=_TEXTS_OF_A_SLICE, device=encoder.device
    )
    ids_T = torch.tensor([number for text in ids for number in text], device=encoder.device)
    embeds_TE = encoder.get_input_embeddings()(ids_T)
    if len(poolings) == 1:
        return {poolings[0]: embed_packed(encoder, embeds_TE, layout, poolings[0])}
    hidden_TH = encode_tokens(encoder, embeds_TE, layout)
    return {pooling: pool_packed(hidden_TH, layout, pooling) for pooling in poolings}


def _encode_padded(
    encoder: PreTrainedModel,
    ids: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    poolings: Sequence[ReadPooling],
) -> dict[ReadPooling, Tensor]:
    batch = tokenizer.pad({"input_ids": list(ids)}, padding_side="right", return_tensors="pt").to(encoder.device)
    output = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return {
        pooling: output.pooler_output
        if pooling == "pooler"
        else pool(output.last_hidden_state, batch["attention_mask"], pooling)
        for pooling in poolings
    }


@torch.no_grad()
def classifier_outputs(
    model: PreTrainedModel,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 64,
    max_length: int = 128,
) -> Tensor:
    """What a sequence-classification model gives for texts, dropout off: float32 logits (number of texts, K) on the
    CPU, in the order of the texts."""
    was_training = model.training
    model.eval()
    try:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        rows_and_logits = []
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer(
                [texts[i] for i in rows], truncation=True, padding=True, padding_side="right", return_tensors="pt",
                max_length=min(max_length, tokenizer.model_max_length),
            )  # fmt: skip
            rows_and_logits.append((rows, model(**batch.to(model.device)).logits.float().cpu()))
    finally:
        model.train(was_training)
    result = torch.empty(len(texts), rows_and_logits[0][1].shape[1] if rows_and_logits else 0)
    for rows, logits in rows_and_logits:
        result[rows] = logits
    return result
