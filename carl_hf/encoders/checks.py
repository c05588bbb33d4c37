"""Whether a model's weights, its tokenizer and its positions suffice for what is asked of it."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.utils.log_once import log_once
from carl_hf.utils.setting_types import at_least
from carl_hf.utils.suggestions import first_line

_MOST_UNUSED_ROWS = 1000  # of an embedding, often padded by tens; cased BERT lacks 1,526 tokens of uncased


def check_weights_file(config: dict[str, Any]) -> None:
    """Raises a ValueError if the configuration names a file of weights other than safetensors, which is a pickle."""
    file = config.get("transformers_weights")
    if file is not None and not str(file).endswith(".safetensors"):
        raise ValueError(f"config.json names {file!r} as transformers_weights, which is no safetensors: not opened.")


def check_loaded(name: str, info: dict[str, Any], optional: tuple[str, ...] = ()) -> None:
    """Raises a ValueError if weights are missing, which transformers fills with random numbers.

    Args:
        info: from `from_pretrained(..., output_loading_info=True)`. optional: beginnings of keys that may be missing.
    """
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(optional))
    if not missing:
        return
    prefixes = [key.removesuffix(missing[0]) for key in info["unexpected_keys"] if key.endswith(f".{missing[0]}")]
    remedy = (
        f"its keys begin with {prefixes[0]!r} (a compiled or wrapped model was saved): strip it from every key."
        if prefixes
        else "save the whole model again."
    )
    shown = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
    raise ValueError(f"{name} lacks {len(missing)} weights of its architecture ({shown}): {remedy}")


@contextlib.contextmanager
def damaged_weights_named(name: object = "the model") -> Iterator[None]:
    """Makes a ValueError with the model's name of what safetensors raises for a damaged file."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"The weights of {name} are damaged ({error}); a file of Git LFS has to be fetched by git lfs pull."
        ) from error


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises a ValueError if the tokenizer has tokens for which the model has no embedding, or lacks its emoji; warns
    if it has so few that it looks like another model's."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows: pass the tokenizer that "
            "belongs to the model, or add rows: model.resize_token_embeddings(len(tokenizer))."
        )
    if len(tokenizer) < rows - _MOST_UNUSED_ROWS:
        log_once(f"The tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows: is it another's?")
    config = getattr(model.config, "encoder", model.config)
    if getattr(config, "emoji_tokens", 0) and "\U0001f600" not in tokenizer.get_vocab():
        raise ValueError(
            "The model has tokens for emoji, the tokenizer has none: load that of the model's folder, or "
            "load_tokenizer(name, emoji=True)."
        )


@torch.no_grad()
def say_if_padding_is_read(encoder: PreTrainedModel) -> None:
    """Logs it if an encoder reads padding, as FNet and ConvBERT do: a text's vector then depends on those that happen
    to be encoded with it."""
    words, training = encoder.get_input_embeddings(), encoder.training
    if not isinstance(words, nn.Module):  # Perceiver
        return
    padding = encoder.config.to_dict().get("pad_token_id") or 0
    tokens = [i for i in range(min(8, len(words.weight))) if i != padding]
    ids = torch.tensor([tokens + [padding] * len(tokens)], device=words.weight.device)
    encoder.eval()
    try:
        alone = encoder(input_ids=ids[:, : len(tokens)]).last_hidden_state
        padded = encoder(input_ids=ids, attention_mask=(torch.arange(ids.numel()) < len(tokens)).to(ids)[None])
        read = not torch.allclose(padded.last_hidden_state[:, : len(tokens)], alone, 1e-2, 1e-3, equal_nan=True)
    except TypeError:  # it takes no mask
        read = True
    except (ValueError, RuntimeError, AttributeError, NotImplementedError):  # it runs otherwise, and says so then
        read = False
    finally:
        encoder.train(training)
    if read:
        log_once(f"{type(encoder).__name__} reads padding: a text's vector depends on the texts of its batch.")


@torch.no_grad()
def check_word_embeddings(encoder: PreTrainedModel) -> None:
    """Raises a ValueError unless the encoder gives word embeddings, which a training step perturbs, the states that it
    gives their tokens."""
    words, training, settings = encoder.get_input_embeddings(), encoder.training, encoder.config.to_dict()
    if "flash" in str(encoder.config._attn_implementation):  # it runs in half precision alone
        return
    if not isinstance(words, nn.Module):
        raise ValueError(f"{type(encoder).__name__} has no layer of word embeddings: CARL cannot train it.")
    tokens = [i for i in range(min(8, len(words.weight))) if i != settings.get("pad_token_id")]
    ids = torch.tensor([tokens], device=words.weight.device)
    encoder.eval()
    try:
        states = encoder(input_ids=ids).last_hidden_state
        try:
            by_words = encoder(inputs_embeds=words(ids)).last_hidden_state
        except (ValueError, TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"{type(encoder).__name__} does not read word embeddings: {first_line(error)}") from error
    finally:
        encoder.train(training)
    if not torch.allclose(states, by_words, rtol=1e-2, atol=1e-3, equal_nan=True):
        raise ValueError(f"{type(encoder).__name__} reads word embeddings otherwise than their tokens: CARL cannot "
                         "train it.")  # fmt: skip


def check_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises a ValueError if the tokenizer cannot pad."""
    if tokenizer.pad_token_id is None:
        raise ValueError("The tokenizer has no padding token: tokenizer.pad_token = '[PAD]', or another that it has.")


def check_unicode(texts: Iterable[str]) -> None:
    """Raises a ValueError for a text with half a character (a lone surrogate), which no tokenizer takes."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"The text {ascii(text[:80])} holds half a character: correct or remove it.") from error


def kept_length(max_length: int, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel | None = None) -> int:
    """The tokens that are kept of a text, at most those of its tokenizer and, if it is given, of the encoder, which is
    said once if they are fewer; a ValueError for fewer than three."""
    at_least("max_length", max_length, 3)  # two special tokens and one of the text
    limits = {"tokenizer": tokenizer.model_max_length, "encoder": encoder and usable_positions(encoder)}
    for owner, limit in limits.items():
        if limit is not None and max_length > limit:
            log_once(f"Texts are read up to {limit} tokens, the {owner}'s limit, not up to {max_length}.")
            max_length = limit
    return max_length


def usable_positions(encoder: PreTrainedModel) -> int | None:
    """The most tokens that a text may have; None where the configuration states no limit."""
    positions = encoder.config.to_dict().get("max_position_embeddings")
    tables = (module for name, module in encoder.named_modules() if name.endswith("position_embeddings"))
    first = next((table.padding_idx for table in tables if isinstance(table, nn.Embedding)), None)
    # RoBERTa's positions begin after that of the padding
    return positions if positions is None or first is None else positions - first - 1


def check_positions(encoder: PreTrainedModel, max_length: int) -> None:
    """Raises a ValueError if the encoder has fewer positions than a text may have tokens."""
    positions = usable_positions(encoder)
    if positions is not None and max_length > positions:
        raise ValueError(
            f"{encoder.name_or_path or 'The encoder'} has {positions} positions, fewer than max_length {max_length}: "
            "lower --max_length."
        )
