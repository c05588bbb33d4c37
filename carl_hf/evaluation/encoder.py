"""Any encoder as a function from texts to vectors, with its vectors kept on disk."""

import functools
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.configuration_carl import CarlConfig
from carl_hf.encoders import loading
from carl_hf.encoders.checks import check_positions, check_tokenizer, kept_length
from carl_hf.encoders.embedding import PoolingChoice, classifier_outputs, embed_poolings, list_of_texts
from carl_hf.encoders.packaged import resolve_encoder
from carl_hf.encoders.stated import reading_length, stated_pooling
from carl_hf.modeling_carl import CarlModel
from carl_hf.utils.atomic_files import write_atomically
from carl_hf.utils.devices import default_device

logger = logging.getLogger(__name__)

_CACHE_FORMAT = "1"
_LOADING: dict[Any, threading.Lock] = {}
_CHUNK = 10_000  # texts embedded before their vectors are saved: what a kill can lose


class EmbeddingCache:
    """Vectors (`width`,) of texts in memory and, where a folder is given, on disk. Its files are written whole or not
    at all; one that another version wrote, or that is damaged, is ignored with a warning."""

    def __init__(self, folder: Path | None, width: int):
        self.folder = folder
        self._rows: dict[bytes, np.ndarray] = {}
        for path in sorted(folder.glob("*.safetensors")) if folder is not None else ():
            try:
                with safe_open(path, framework="numpy") as file:
                    if (file.metadata() or {}).get("format") != _CACHE_FORMAT:
                        logger.warning("%s was written by another version of carl_hf: not used.", path)
                        continue
                    keys, vectors = file.get_tensor("keys"), file.get_tensor("vectors")
                if keys.dtype != np.uint8 or keys.shape[1:] != (16,) or vectors.dtype != np.float32:
                    raise ValueError("its tensors are of another type")
                if vectors.shape != (len(keys), width) or not np.isfinite(vectors).all():
                    raise ValueError(f"not every text has a finite vector of {width} numbers")
            except (OSError, SafetensorError, ValueError, TypeError) as error:  # TypeError: types that NumPy lacks
                logger.warning("%s cannot be read (%s): not used.", path, error)
                continue
            self._rows.update((key.tobytes(), vector) for key, vector in zip(keys, vectors, strict=True))

    def __contains__(self, text: str) -> bool:
        return _key(text) in self._rows

    def __getitem__(self, text: str) -> np.ndarray:
        return self._rows[_key(text)]

    def add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        self._rows.update(zip(map(_key, texts), vectors, strict=True))
        if self.folder is not None:
            _write_vectors(self.folder, texts, vectors)


def _write_vectors(folder: Path, texts: Sequence[str], vectors: np.ndarray) -> None:
    keys = b"".join(map(_key, texts))
    name = hashlib.sha256(keys).hexdigest()[:16]
    tensors = {"keys": np.frombuffer(keys, dtype=np.uint8).reshape(-1, 16), "vectors": vectors}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        body = save(tensors, metadata={"format": _CACHE_FORMAT})
        path = folder / f"{name}.safetensors"
        write_atomically(path, lambda file: file.write(body), partial_name=f"{name}.{os.getpid()}.partial")
    except OSError as error:
        logger.warning("Embeddings are not kept, because %s cannot be written (%s): --cache_dir.", folder, error)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


class TextEncoder:
    """A function from texts to vectors: what the evaluation measures.

    Args:
        name: shown in results. embed: list of N texts -> float32 `Tensor` (N, H) under each of one or more poolings.
        width: H. pooling: the one that is measured; the others cost next to nothing and are cached for later.
        fingerprint: changes with everything else that changes the vectors.
        cache_dir: folder of the cache; None keeps the vectors in memory only, for texts asked for again.
    """

    def __init__(
        self, name: str, embed: Callable[[list[str]], dict[str, Tensor]], *, width: int, pooling: str,
        fingerprint: str, cache_dir: str | Path | None,
    ):  # fmt: skip
        self.name, self.width, self.pooling, self.fingerprint = name, width, pooling, fingerprint
        self._embed = embed
        self._folder = None if cache_dir is None else Path(cache_dir) / fingerprint
        self._cache = EmbeddingCache(None if self._folder is None else self._folder / pooling, width)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, H). A text that is repeated, or was asked for before, is embedded once."""
        texts = list_of_texts(texts)
        missing = [text for text in dict.fromkeys(texts) if text not in self._cache]
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            vectors = self._vectors(chunk)
            self._cache.add(chunk, vectors.pop(self.pooling))
            for pooling, values in vectors.items() if self._folder is not None else ():
                _write_vectors(self._folder / pooling, chunk, values)
        if not len(texts):
            return np.zeros((0, self.width), dtype=np.float32)
        return np.stack([self._cache[text] for text in texts])

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, H), computed anew; nothing is kept, neither in memory nor on disk."""
        return self._vectors(list_of_texts(texts))[self.pooling]

    def _vectors(self, texts: list[str]) -> dict[str, np.ndarray]:
        vectors = {pooling: tensor.numpy() for pooling, tensor in self._embed(texts).items()}
        if not all(np.isfinite(values).all() for values in vectors.values()):
            raise ValueError(f"{self.name} gives vectors that are not finite: its weights are damaged.")
        return vectors


def split_pooling(name: str, default: PoolingChoice = "auto") -> tuple[str, PoolingChoice]:
    """The model and its pooling from "MODEL" or "MODEL@POOLING"."""
    model, _, pooling = name.rpartition("@")
    return (model, pooling) if pooling in get_args(PoolingChoice) else (name, default)  # type: ignore[return-value]


def default_cache_dir() -> Path:
    return Path(HF_HOME) / "carl_hf" / "embeddings"


def load_text_encoder(
    name: str, *, pooling: PoolingChoice = "auto", max_length: int | None = 128, batch_size: int = 64,
    cache_dir: str | Path | None = None, device: str | torch.device | None = None, show_progress: bool = True,
    bf16: bool = False,
) -> TextEncoder:  # fmt: skip
    """An encoder from a Hub id, a folder (of a plain encoder, a CARL checkpoint or a sentence-transformers model) or
    `"minilm-l6"`.

    Args:
        pooling: `"auto"` takes what the folder states (a CARL checkpoint's configuration, a sentence-transformers
            layout), else `"cls"`; `"pooler"` is the encoder's own pooler output. A sentence-transformers model with
            modules beyond cls or mean pooling and normalisation, or a default prompt, runs, under `"auto"`, through
            that library.
            Vectors are not normalised.
        max_length: tokens kept of a text, at most those of the tokenizer; None for as many as an export of this
            package was made for, and 128 for any other model.
        device: where it runs; an accelerator where there is one, by default.
        show_progress: a bar for every call, where stderr is a terminal.
        bf16: compute in bfloat16 (autocast): faster on GPUs, CPUs with AMX and AMD's with AVX-512 BF16. Vectors then
            have about three digits; those kept in the cache are others than float32's. Otherwise they are computed in
            float32, whatever autocast surrounds the call.

    Raises:
        ValueError: if there is no such model or no tokenizer with it, or `"pooler"` is asked of an encoder that has
            none, or sentence-transformers is needed and not installed.
    """
    if pooling not in get_args(PoolingChoice):
        raise ValueError(f"Unknown pooling {pooling!r}: choose from {', '.join(get_args(PoolingChoice))}.")
    resolved, config = resolve_encoder(name), loading.load_config(name)
    settings = ["bf16"] if bf16 else []
    max_length = reading_length(name) if max_length is None else max_length
    if pooling == "auto":
        stated = config.pooling if isinstance(config, CarlConfig) else stated_pooling(resolved)
        if stated is None and not Path(resolved).is_dir():
            logger.warning("%s states no pooling: its first token is taken. Choose another with --pooling.", name)
        pooling = stated or "cls"  # type: ignore[assignment]
    if pooling == "other":
        model, tokenizer = _sentence_transformer(name, max_length, default_device(device))
        pooling, max_length = "sentence-transformers", model.max_seq_length
        width = model.encode(["a"], show_progress_bar=False).shape[1]
        if prompt := model.prompts.get(model.default_prompt_name):  # before every text
            settings.append(prompt)

        def embed(texts: list[str]) -> dict[Any, Tensor]:
            bar = None if show_progress else False  # None: as its logger's level says
            found = model.encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=bar)
            return {pooling: found.float().cpu()}
    else:
        model, tokenizer, max_length = _plain_encoder(name, resolved, config, pooling, max_length)
        model.to(default_device(device)).eval()
        width = model.config.hidden_size

        def embed(texts: list[str]) -> dict[Any, Tensor]:
            return embed_poolings(
                model, texts, tokenizer, poolings=sorted({"cls", "mean", pooling}), batch_size=batch_size,  # type: ignore[arg-type]
                max_length=max_length, progress=f"{Path(name).name}: {len(texts):,} texts" if show_progress else None,
            )  # fmt: skip

    embed = torch.autocast(default_device(device).type, torch.bfloat16, enabled=bf16)(embed)
    fingerprint = fingerprint_of(model, tokenizer_state(tokenizer), max_length, *settings)
    return TextEncoder(name, embed, width=width, pooling=pooling, fingerprint=fingerprint, cache_dir=cache_dir)


def shared_encoder(
    name: str, pooling: PoolingChoice, max_length: int | None, batch_size: int, device: str | torch.device | None,
    bf16: bool = False,
) -> TextEncoder:  # fmt: skip
    """[`load_text_encoder`] without a bar, once in a process for the same settings and files."""
    settings = (name, pooling, max_length, batch_size, device, bf16, stamp_of(name))
    with _LOADING.setdefault(settings, threading.Lock()):  # threads that ask together load it once
        return _loaded(*settings)


def stamp_of(name: str) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of the files of an encoder: another one has been saved in its place if they are
    others. Nothing of one on the Hub."""
    files = sorted(file for file in Path(name).rglob("*") if file.is_file()) if Path(name).is_dir() else ()
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@functools.lru_cache(maxsize=2)
def _loaded(
    name: str,
    pooling: PoolingChoice,
    max_length: int | None,
    batch_size: int,
    device: str | torch.device | None,
    bf16: bool,
    stamp: Any,
) -> TextEncoder:
    return load_text_encoder(
        name, pooling=pooling, max_length=max_length, batch_size=batch_size, device=device, show_progress=False,
        bf16=bf16,
    )  # fmt: skip


def _plain_encoder(
    name: str, resolved: str, config: PreTrainedConfig, pooling: str, max_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int]:
    """The encoder, its tokenizer, and how many tokens of a text it reads."""
    if isinstance(config, CarlConfig):
        encoder = CarlModel.from_pretrained(resolved).encoder
    else:
        encoder = loading.load_measured_encoder(name)
    tokenizer = loading.load_tokenizer(name)
    if pooling == "cls":
        try:
            loading.check_encoder(encoder)
        except ValueError as error:  # the first token of a decoder sees no other
            raise ValueError(f"{name}: {error} Its mean may be measured: {name}@mean.") from error
    if pooling == "pooler" and getattr(encoder, "pooler", None) is None:
        raise ValueError(f"{name} has no pooler: choose --pooling cls or mean.")
    max_length = kept_length(max_length, tokenizer)
    check_positions(encoder, max_length)
    check_tokenizer(encoder, tokenizer)
    return encoder, tokenizer, max_length


def _sentence_transformer(name: str, max_length: int, device: torch.device) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model, which reads so many tokens of a text, and its tokenizer."""
    try:
        model = loading.load_sentence_transformer(name, device=str(device))
    except ImportError as error:
        raise ValueError(
            f"{name} is a sentence-transformers model with modules of its own: pip install sentence-transformers, or "
            "choose --pooling cls or mean."
        ) from error
    model.max_seq_length = min(max_length, model.max_seq_length or max_length)
    return model, model.tokenizer


def load_va_head(
    name: str,
    *,
    max_length: int = 128,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    bf16: bool = False,
) -> Callable[[Sequence[str]], np.ndarray] | None:
    """The trained valence-arousal head of a sequence-classification model, if it has one: texts -> (N, 2) in [-1, 1].

    Such a model has the regression problem type, the labels valence and arousal, and outputs in [0, 1].
    `bf16`: compute in bfloat16 (autocast).
    """
    if not loading.is_va_regressor(loading.load_config(name)):
        return None
    tokenizer, model = loading.load_tokenizer(name), loading.load_classifier(name).to(default_device(device)).eval()

    def predict(texts: Sequence[str]) -> np.ndarray:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            outputs = classifier_outputs(model, texts, tokenizer, batch_size=batch_size, max_length=max_length)
        return (2 * outputs[:, :2] - 1).clamp(-1, 1).numpy().astype(float)  # without dominance

    return predict


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> str:
    """Everything that the token ids of a text depend on, as one string."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state |= {"truncation": None, "padding": None}  # set by the last call, no property of the tokenizer
    else:
        varying = ("_file", "_path", "is_local", "local_files_only")  # where it was loaded from
        settings = {k: v for k, v in tokenizer.init_kwargs.items() if not k.endswith(varying)}
        state = {"vocabulary": tokenizer.get_vocab(), "class": type(tokenizer).__name__, "settings": settings}
    return json.dumps(state, sort_keys=True, default=str) + ("" if tokenizer.truncation_side == "right" else "left")


def _plain_config(model: nn.Module) -> str:
    """The configurations of a model's transformers, without what a copy of them may differ in."""
    varying = ("transformers_version", "_name_or_path", "dtype")
    configs = [module.config.to_dict() for module in model.modules() if isinstance(module, PreTrainedModel)]
    own = [{key: value for key, value in config.items() if key not in varying} for config in configs]
    return json.dumps(own, sort_keys=True, default=str)


def fingerprint_of(model: nn.Module, *settings: object) -> str:
    """A checksum of a model's weights and structure, and of settings."""
    # besides the weights: what has none, such as the number of attention heads, activations and normalisation
    digest = hashlib.sha256(repr((settings, str(model), _plain_config(model))).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
