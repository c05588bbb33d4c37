"""Loading a pretrained encoder and its tokenizer, from a Hub id, a folder, or a name of `packaged.py`."""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils.logging import EmptyTqdm, set_tqdm_hook

from carl_hf.encoders.checks import check_loaded, check_weights_file, say_if_padding_is_read
from carl_hf.encoders.emoji_tokens import add_emoji, with_emoji
from carl_hf.encoders.hub_files import UnreachableError, find_file, hub_answer, is_of_the_client, optional_json
from carl_hf.encoders.layout import Pooling
from carl_hf.encoders.packaged import HUB_IDS, resolve_encoder
from carl_hf.encoders.stated import exported_pooling
from carl_hf.utils.suggestions import first_line

# or transformers asks a service of the Hub to convert a model without safetensors, and loads what it proposes
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")
_CHECKPOINT = "This is a checkpoint of CARL training: name its export, the folder encoder/ of the run."
logger = logging.getLogger(__name__)
_loading = threading.RLock()


@contextlib.contextmanager
def without_weights_bar() -> Iterator[None]:
    """Keeps transformers, in this thread, from showing a bar for the weights that it reads, which takes a moment; a
    download, another thread and the user's setting keep theirs. One thread at a time loads."""
    thread = threading.get_ident()

    def make(factory: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            return EmptyTqdm(*args, **kwargs)
        return factory(*args, **kwargs) if before is None else before(factory, args, kwargs)

    with _loading:
        before = set_tqdm_hook(make)
        try:
            yield
        finally:
            set_tqdm_hook(before)


def load_config(name: str) -> PreTrainedConfig:
    """The configuration of a model, without its weights.

    Raises:
        ValueError: if there is no such model; [`UnreachableError`] if that is not known.
    """
    resolved = resolve_encoder(name)
    try:
        return AutoConfig.from_pretrained(resolved, trust_remote_code=False)
    except Exception as error:  # of the Hub's client too
        answer = hub_answer(error, resolved)
        if answer is None and not isinstance(error, (OSError, ValueError)):
            raise
        kind = UnreachableError if answer is not None and answer[1] else ValueError
        raise kind(f"Cannot load the model {name!r}: {_why_not(resolved, error)}") from error


def load_encoder(name: str | Path, *, emoji: bool = False) -> PreTrainedModel:
    """Loads an encoder in float32, in eval mode. Only a pooler may be missing from its weights, which is then random.

    Args:
        emoji: give it vectors for emoji ([`carl_hf.encoders.with_emoji`]), to be read with
            `load_tokenizer(name, emoji=True)`.

    Raises:
        ValueError: if there is no such encoder, none in safetensors, or weights are missing; for a checkpoint of
            training.
    """
    name = str(name)
    encoder, info = _from_pretrained(AutoModel, name)
    check_loaded(name, info, optional=("pooler.",))
    if encoder.config.model_type == "carl":
        raise ValueError(_CHECKPOINT)
    forget_head(encoder.config)
    if emoji:
        check_encoder(encoder)
        with_emoji(load_tokenizer(name), encoder)
    return encoder


def forget_head(config: PreTrainedConfig) -> None:
    """Takes what this package has added of a head's answers out of the configuration of its encoder."""
    for answers in ("intervals", "thresholds"):
        vars(config).pop(answers, None)


def load_measured_encoder(name: str) -> PreTrainedModel:
    """As [`load_encoder`], without a pooler that the weights lack: transformers would fill it with random numbers."""
    encoder, info = _from_pretrained(AutoModel, name)
    check_loaded(name, info, optional=("pooler.",))
    say_if_padding_is_read(encoder)
    if any(key.startswith("pooler.") for key in info["missing_keys"]):
        encoder.pooler = None
    return encoder


def named_or_loaded(encoder: str | Path | PreTrainedModel, *, pooling: Pooling, emoji: bool) -> PreTrainedModel:
    """The encoder that a model is built around, checked: loaded by its name, or the loaded one without a head on it.
    Logs it if this package has exported it for another pooling."""
    if isinstance(encoder, (str, Path)):
        name, own = str(encoder), exported_pooling(str(encoder))
        encoder = load_encoder(name, emoji=emoji)
        if own not in (None, pooling):
            logger.warning("%s was trained with pooling %s, and goes on with %s: pooling=%r.", name, own, pooling, own)
    elif not hasattr(encoder, "get_input_embeddings"):
        raise ValueError(f"An encoder is a name, a folder or a transformers model, got {type(encoder).__name__}; of a "
                         "SentenceTransformer take [0].auto_model.")  # fmt: skip
    elif emoji:
        raise ValueError("emoji=True takes the encoder's name; for a loaded one: with_emoji(tokenizer, encoder).")
    encoder = encoder.base_model if isinstance(encoder, PreTrainedModel) else encoder
    check_encoder(encoder)
    return encoder


def load_classifier(name: str, **settings: Any) -> PreTrainedModel:
    """Loads a sequence-classification model in float32, in eval mode; `settings`, such as `num_labels`, replace those
    of its configuration: its head and pooler may then be new.

    Raises:
        ValueError: if there is no such model, none in safetensors, or weights are missing.
    """
    model, info = _from_pretrained(AutoModelForSequenceClassification, name, **settings)
    base = f"{model.base_model_prefix}."
    head = {key for key in info["missing_keys"] if not key.startswith(base)} | {f"{base}pooler."}
    check_loaded(name, info, optional=tuple(head) if settings else ())
    return model


def _from_pretrained(auto: Any, name: str, **settings: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """From safetensors alone: other files of weights are pickles, which can run code when they are opened."""
    resolved = resolve_encoder(name)
    try:
        check_weights_file(optional_json(resolved, "config.json") or {})
        with without_weights_bar():
            return auto.from_pretrained(
                resolved, dtype="float32", use_safetensors=True, output_loading_info=True, trust_remote_code=False,
                **settings,
            )  # fmt: skip
    except Exception as error:
        # what a wrong config.json ends in, unless a setting is wrong
        odd = not settings and isinstance(error, KeyError | TypeError | AttributeError)
        known = isinstance(error, OSError | ValueError | RuntimeError | SafetensorError)
        if not (odd or known or is_of_the_client(error)):
            raise
        reason = f"perhaps its config.json fits no model ({error!r})." if odd else _why_not(resolved, error)
        if isinstance(error, SafetensorError):
            reason = (
                f"its model.safetensors is damaged ({error}); a file of Git LFS has to be fetched by git lfs pull."
            )
        if re.search(r"no(t appear to have a)? file named model\.safetensors", str(error)):
            reason = (
                "it has no weights in safetensors, and others are not opened, because a pickle can run code. If you "
                "trust its source, convert it once: AutoModel.from_pretrained(NAME).save_pretrained(FOLDER), and its "
                "tokenizer."
            )
        raise ValueError(f"Cannot load the encoder {name!r}: {reason}") from error


def check_encoder(encoder: PreTrainedModel) -> None:
    """Refuses what CARL cannot train.

    Raises:
        ValueError: unless the model's family has a masked-language-model head, which bidirectional text encoders have
            and decoders and vision models have not; for an encoder-decoder; for an encoder with PEFT adapters.
    """
    check_no_adapters(encoder)
    kind, family = type(encoder).__name__, encoder.config.model_type
    if family == "carl":
        raise ValueError(_CHECKPOINT)
    if family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or encoder.config.is_encoder_decoder:
        raise ValueError(f"{kind} ({family}) is no bidirectional text encoder such as BERT or RoBERTa.")
    if encoder.config.to_dict().get("is_decoder"):
        raise ValueError(f"{kind} is configured as a decoder (is_decoder), which reads one way only.")


def check_no_adapters(model: nn.Module) -> None:
    """Raises a ValueError if a model, or a part of it, has PEFT adapters."""
    if any(type(module).__module__.split(".")[0] == "peft" for module in model.modules()):
        raise ValueError(
            "The model has PEFT adapters (LoRA), which would not be saved with it: merge them into the encoder first, "
            "get_peft_model(encoder, ...).merge_and_unload(), and train all weights."
        )


def load_tokenizer(name: str, *, emoji: bool = False) -> PreTrainedTokenizerBase:
    """Loads the tokenizer that belongs to `name`.

    Args:
        emoji: give it the tokens for emoji of `load_encoder(name, emoji=True)`. An export brings its own.

    Raises:
        ValueError: if there is none.
    """
    resolved = resolve_encoder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolved, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises the bare class
        raise ValueError(f"Cannot load a tokenizer for {name!r}: {_why_not(resolved, error)}") from error
    if len(tokenizer) - len(tokenizer.all_special_tokens) < 10:  # what transformers makes without the files
        remedy = "Save it beside the model: tokenizer.save_pretrained(folder)."
        if not Path(resolved).is_dir():
            for file in ("tokenizer_config.json", "tokenizer.json"):
                find_file(resolved, file)  # or says that the Hub could not be asked
            remedy = f"If it was not downloaded whole: hf download {resolved}."
        raise ValueError(f"Cannot load a tokenizer for {name!r}: it has no vocabulary. {remedy}")
    if emoji:
        add_emoji(tokenizer)
    return tokenizer


def load_sentence_transformer(name: str, **settings: Any) -> Any:
    """A model of sentence-transformers, which has to be installed: from safetensors, with no code but that library's.

    Raises:
        ValueError: if one of its modules is another's code, or comes with a pickle alone.
    """
    import sentence_transformers

    if int(sentence_transformers.__version__.split(".")[0]) < 6:
        raise ValueError("Older sentence-transformers run any code that a model names: sentence-transformers>=6.")
    resolved = resolve_encoder(name)
    listed = optional_json(resolved, "modules.json")
    if listed is None:
        load_config(name)  # whose errors name the export, if it is a run
        logger.warning("%s states no pooling: sentence-transformers takes the mean of its last states. (Of a run, "
                       "name its encoder/.)", name)  # fmt: skip
    modules = [(module["type"], module["path"]) for module in listed or ()]
    for kind, folder in modules:  # grows by the modules within
        if not kind.startswith("sentence_transformers."):
            raise ValueError(f"{name} has a module of the type {kind}, which is code of its own: not loaded.")
        within = f"{folder}/" if folder else ""
        parts = (optional_json(resolved, f"{within}router_config.json") or {}).get("types", {})
        modules += [(part, f"{within}{key}") for key, part in parts.items()]
        check_weights_file(optional_json(resolved, f"{within}config.json") or {})
        weights, pickled = (
            find_file(resolved, f"{within}{file}") for file in ("model.safetensors", "pytorch_model.bin")
        )
        if pickled and not weights and not kind.endswith(".Transformer"):  # its shards may have other names
            raise ValueError(
                f"{name}: {within}pytorch_model.bin is not opened, because a pickle can run code: save it anew."
            )
    model_kwargs = {"use_safetensors": True, "trust_remote_code": False}
    with without_weights_bar():
        return sentence_transformers.SentenceTransformer(
            resolved, trust_remote_code=False, model_kwargs=model_kwargs, **settings
        )


def is_va_regressor(config: PreTrainedConfig, model_class: str | None = None) -> bool:
    """Whether a configuration is that of a sequence-classification model which predicts valence and arousal, and
    perhaps dominance after them, in [0, 1]. An encoder that was taken out of one keeps its labels.

    Args:
        model_class: of a loaded model, whose configuration may still name the class that it was made from.
    """
    architectures = [model_class] if model_class else config.architectures or ["ForSequenceClassification"]
    return (
        any(name.endswith("ForSequenceClassification") for name in architectures)
        and config.problem_type == "regression"
        and list(config.id2label.values()) in (["valence", "arousal"], ["valence", "arousal", "dominance"])
    )


def _why_not(name: str, error: Exception) -> str:
    if Path(name).is_dir():
        if Path(name, "adapter_config.json").is_file() and not Path(name, "config.json").is_file():
            return (
                "it holds PEFT adapters (LoRA) without their encoder. Merge them and save that: "
                "PeftModel.from_pretrained(encoder, FOLDER).merge_and_unload().save_pretrained(NEW), tokenizer too."
            )
        if Path(name, "encoder", "config.json").is_file() and not Path(name, "config.json").is_file():
            return f"it is the folder of a run: name its export, {name.rstrip('/')}/encoder."
        return first_line(error)
    answer = hub_answer(error, name)
    if answer is not None and answer[1]:
        return f"there is no such folder, and {answer[0]}"
    reason = answer[0] if answer is not None else f"the Hub gave no such model ({first_line(error)})"
    return (
        f"there is no such folder, and {reason} Pass the folder of a downloaded model, a Hub id, "
        f"{' or '.join(map(repr, HUB_IDS))}."
    )
