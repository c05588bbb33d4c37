"""Texts in, a table of valence, arousal and emotions out."""

import contextlib
import hashlib
import itertools
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from transformers import PreTrainedConfig

from carl_hf.data.bad_rows import is_blank
from carl_hf.data.files import PIECE
from carl_hf.encoders.hub_files import UnreachableError
from carl_hf.encoders.loading import is_va_regressor, load_config
from carl_hf.evaluation.encoder import fingerprint_of, tokenizer_state
from carl_hf.export.task_heads import class_probabilities
from carl_hf.inference.readers import Reader
from carl_hf.inference.windows import windows_of
from carl_hf.utils.devices import default_device
from carl_hf.utils.setting_types import at_least

logger = logging.getLogger(__name__)

_HEADS = ("va", "emotion")
_LOADING = threading.RLock()


class AffectPipeline:
    """Valence, arousal and emotions of texts, by the exports `va/` and `emotion/`, or one of them.

    The models are loaded at the first call, once in each process: the object itself is small to pickle. Where both
    have the same encoder weights, one pass serves both.

    Args:
        va, emotion: folder or Hub id of a valence-arousal regressor and of an emotion classifier.
        device: where they run; an accelerator where there is one, by default.
        batch_size: texts of 32 tokens that are encoded together; of shorter ones more.
        max_length: tokens of a window at most, by default as many as the model was exported for.
        windows: read a longer text in windows, whose answers are averaged by their lengths; if False, its beginning.
        probabilities: also a column `emotion_NAME` for each class.
        intervals: also the columns `valence_low`, `valence_high` and so on, between which the labels of nine in ten
            texts lie that are like those the model was calibrated on, each dimension by itself
            ([`carl_hf.export.intervals`]).
        bf16: compute in bfloat16 (autocast): faster on GPUs, and on CPUs that have such matrix products; answers
            move in the third decimal.

    Raises:
        ValueError: if one of them cannot be found or is of another kind, or both are None; for intervals without a
            regressor, or of one that has none; for a class "probability" whose column would be another's; for a
            batch or a length that is no number, or too small.
    """

    def __init__(
        self, va: str | Path | None = None, emotion: str | Path | None = None, *,
        device: str | torch.device | None = None, batch_size: int = 64, max_length: int | None = None,
        windows: bool = True, probabilities: bool = False, intervals: bool = False, bf16: bool = False,
    ):  # fmt: skip
        self.names = {head: _located(name) for head, name in zip(_HEADS, (va, emotion), strict=True) if name}
        if not self.names:
            raise ValueError("AffectPipeline needs a model: va=, emotion=, or AffectPipeline.from_pretrained(NAME).")
        at_least("batch_size", batch_size, 1)
        if max_length is not None:
            at_least("max_length", max_length, 3)  # two special tokens and one of the text
        self.device, self.batch_size, self.max_length = device, batch_size, max_length
        self.windows, self.probabilities, self.bf16 = windows, probabilities, bf16
        configs = {head: load_config(name) for head, name in self.names.items()}
        for head, config in configs.items():
            if _kind(config) != head:
                what = "valence-arousal regressor" if head == "va" else "emotion classifier"
                raise ValueError(f"{self.names[head]} is no {what}: name the folder {head}/ of an export.")
        labels = {
            head: tuple(config.id2label[i] for i in range(config.num_labels)) for head, config in configs.items()
        }
        self.dimensions, self.classes = labels.get("va", ()), labels.get("emotion", ())  # as the models order them
        self.widths: dict[str, float] = {}
        if probabilities and "probability" in self.classes:
            raise ValueError(f"{self.names['emotion']} has a class 'probability', whose column would be that of the "
                             "most probable one: probabilities=False.")  # fmt: skip
        if intervals and "va" not in configs:
            raise ValueError("intervals are of valence and arousal, and no va/ is named: va=, or do without.")
        if intervals:
            self.widths = _stated(configs.get("va"), "intervals", self.dimensions)
            if not self.widths:
                raise ValueError("intervals: the model states none. An export made with at least 9 development texts "
                                 "that training has not seen has them. Export it anew, or do without.")  # fmt: skip
        self._multi_label = "emotion" in configs and configs["emotion"].problem_type == "multi_label_classification"
        self.thresholds = _stated(configs.get("emotion"), "thresholds", self.classes) if self._multi_label else {}
        self._read_as = {head: _digest(config) for head, config in configs.items()}
        self._readers: list[tuple[Reader, list[str]]] | None = None

    @classmethod
    def from_pretrained(cls, name: str | Path, **settings: Any) -> "AffectPipeline":
        """The pipeline of a run.

        Args:
            name: a folder with `va/` and `emotion/` (the output of examples/pretrain.py), or one of them; or a Hub id:
                of such an export, or NAME of the encoder, beside which NAME-va and NAME-emotion are looked for. One
                of the two is enough.
            settings: as the class takes them.

        Raises:
            ValueError: if there is no such model, or (unless HF_HUB_OFFLINE is set) the Hub does not say whether
                there is one of the two.
        """
        if not isinstance(name, (str, Path)):
            raise ValueError(f"AffectPipeline.from_pretrained takes a folder or a Hub id, got {name!r}.")
        folder = Path(name)
        inside: dict[str, Any] = {head: folder / head for head in _HEADS if (folder / head / "config.json").is_file()}
        if inside:
            return cls(**inside, **settings)
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise ValueError(f"{name} holds no va/ and no emotion/, and is no export: name the output of pretrain.")
        kind = _kind(load_config(str(name)))
        if kind is not None:
            return cls(**{kind: name}, **settings)  # type: ignore[arg-type]
        found, errors = {}, []
        for head in _HEADS:
            try:
                load_config(f"{name}-{head}")
                found[head] = f"{name}-{head}"
            except UnreachableError:
                raise
            except ValueError as error:
                errors.append(error)
        if not found:
            run = folder.resolve().parent
            hint = f": name its run, {folder.parent}" if any((run / head).is_dir() for head in _HEADS) else ""
            raise ValueError(
                f"{name} is an encoder, with no {name}-va or {name}-emotion beside it{hint}."
            ) from errors[0]
        for missing in errors:
            logger.warning("Answers without it: %s", missing)
        return cls(**found, **settings)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": None}

    def __call__(self, texts: Iterable[str | None]) -> pd.DataFrame:
        """A row for each text, in order.

        Args:
            texts: any iterable of texts: a list, a column of a table, a generator. One that is None, NaN, white
                space or nothing that the tokenizer reads has no answers.

        Returns:
            a table with the columns valence, arousal and, if the model has it, dominance (float32 in [0, 1], outputs
            beyond are clipped; `2 * x - 1` is in [-1, 1]), emotion (the most probable), emotion_probability (float32),
            emotions (only of a model that was trained on texts with several labels and states their thresholds: those
            whose probability reaches its threshold, the most probable first, such as "joy, surprise"; maybe none),
            tokens_cut (tokens of the text that were not read; only with `windows=False`) and tokens_unknown (tokens
            that the tokenizer does not know, read as [UNK]); of two models with other limits or tokenizers the larger
            count. Columns of a model that is not there are left out. The index is that of a Series, else 0, 1, ...

        Raises:
            ValueError: for anything but texts, for a damaged model, and for one that was replaced by another with
                other classes, thresholds or intervals since the pipeline was made.
        """
        table = pd.concat(list(self.stream(texts)), ignore_index=True)
        return table.set_axis(texts.index) if isinstance(texts, pd.Series) else table

    def stream(self, texts: Iterable[str | None], *, rows: int = PIECE) -> Iterator[pd.DataFrame]:
        """The same in tables of at most `rows` rows (for no texts, one without rows), read as they are asked for: so
        the memory does not grow with the texts."""
        is_one = isinstance(texts, (str, bytes, dict, set, frozenset, pd.DataFrame)) or getattr(texts, "ndim", 1) != 1
        if is_one or not isinstance(texts, Iterable):
            hint = "[text]" if isinstance(texts, (str, bytes)) else "table['text'], or a list"
            raise ValueError(f"AffectPipeline takes texts, got one {type(texts).__name__}: pass {hint}.")
        if rows < 1:
            raise ValueError(f"rows must be positive, got {rows}.")
        remaining, first = iter(texts), 0
        while (taken := list(itertools.islice(remaining, rows))) or not first:
            table = self._table(taken, first)
            if isinstance(texts, pd.Series):
                table = table.set_axis(texts.index[first : first + len(taken)])
            yield table
            first += len(taken)
            if not taken:
                return

    def schema(self) -> pa.Schema:
        """Names and types of the table's columns for Arrow, Parquet and the engines that divide tables."""
        types = {"float32": pa.float32(), "int64": pa.int32(), "object": pa.string()}
        return pa.schema([(name, types[str(dtype)]) for name, dtype in self._table([], 0).dtypes.items()])

    def fingerprint(self) -> str:
        """A checksum that changes with everything the answers depend on but for the texts."""
        models = (module for reader, _ in self._loaded() for module in (reader.encoder, *reader.heads))
        limits = [(reader.max_length, tokenizer_state(reader.tokenizer)) for reader, _ in self._loaded()]
        settings = (limits, self.batch_size, self.windows, self.probabilities, self.widths, self.thresholds,
                    self.dimensions, self.classes, self.bf16)  # fmt: skip
        digests = [fingerprint_of(model, settings) for model in models]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:32]

    def _table(self, cells: list[Any], first: int) -> pd.DataFrame:
        texts = {}
        for row, cell in enumerate(cells):
            if isinstance(cell, str) and not is_blank(cell):
                texts[row] = cell
            elif not is_blank(cell):
                raise ValueError(f"Text {first + row} is no text but {type(cell).__name__} ({str(cell)[:40]}).")
        read = self._read(list(texts.values())) if texts else {}
        rows, with_tokens = np.array([*texts], dtype=int), read.pop("with_tokens", np.zeros(0, dtype=bool))
        columns: dict[str, Any] = {}

        def put(name: str, found: Any, empty: Any, dtype: Any, where: np.ndarray = rows[with_tokens]) -> None:
            columns[name] = np.full(len(cells), empty, dtype=dtype)
            columns[name][where] = found

        if self.dimensions:
            values = read["va"][with_tokens].clip(0, 1) if read else np.empty((0, len(self.dimensions)))
            for i, name in enumerate(self.dimensions):
                put(name, values[:, i], np.nan, np.float32)
            for i, (name, width) in enumerate(self.widths.items()):
                put(f"{name}_low", (values[:, i] - width).clip(0, 1), np.nan, np.float32)
                put(f"{name}_high", (values[:, i] + width).clip(0, 1), np.nan, np.float32)
        if self.classes:
            values = read["emotion"][with_tokens] if read else np.empty((0, len(self.classes)))
            put("emotion", np.array(self.classes, dtype=object)[values.argmax(axis=1)], None, object)
            put("emotion_probability", values.max(axis=1), np.nan, np.float32)
            if self.thresholds:
                put("emotions", [self._reached(row) for row in values], None, object)
            for i, name in enumerate(self.classes if self.probabilities else ()):
                put(f"emotion_{name}", values[:, i], np.nan, np.float32)
        for name in ("tokens_cut", "tokens_unknown"):
            put(name, read.get(name, []), 0, np.int64, rows)
        return pd.DataFrame(columns, index=range(first, first + len(cells)))

    def _reached(self, probabilities_C: np.ndarray) -> str:
        """The classes whose probability reaches its threshold, the most probable first."""
        order = np.argsort(-probabilities_C, kind="stable")
        names = [(self.classes[c], probabilities_C[c]) for c in order]
        return ", ".join(name for name, probability in names if probability >= self.thresholds[name])

    def _read(self, texts: list[str]) -> dict[str, Any]:
        """Answers (N, K) of each model, and what of the texts was not read."""
        answers: dict[str, Any] = {}
        for reader, heads in self._loaded():
            found = windows_of(texts, reader.tokenizer, reader.max_length, cut=not self.windows)
            with torch.autocast(reader.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
                outputs = reader.logits(found.ids, batch_size=self.batch_size)
            for head, logits in zip(heads, outputs, strict=True):
                values = logits.numpy().astype(float)
                if not np.isfinite(values).all():
                    raise ValueError(f"{self.names[head]} gives answers that are not finite: its weights are damaged.")
                if head == "emotion":
                    values = class_probabilities(values, multi_label=self._multi_label)
                answers[head] = found.average(values)
            for name, own in (("cut", found.cut), ("unknown", found.unknown)):
                answers[f"tokens_{name}"] = np.maximum(answers.get(f"tokens_{name}", 0), own)
            answers["with_tokens"] = np.add.reduceat(found.lengths, found.first) > 0
        return answers

    def _loaded(self) -> list[tuple[Reader, list[str]]]:
        if self._readers is None:
            with _LOADING:  # threads that ask together load the models once
                self._load()
        return self._readers

    def _load(self) -> None:
        if self._readers is None:
            device = default_device(self.device)
            readers: list[tuple[Reader, list[str]]] = []
            for head, name in self.names.items():
                reader = Reader(name, device=device, max_length=self.max_length)
                if _digest(reader.config) != self._read_as[head]:
                    raise ValueError(
                        f"{name} was replaced by another model since this pipeline was made: make it anew."
                    )
                if readers and readers[0][0].takes(reader):
                    readers[0][1].append(head)
                else:
                    readers.append((reader, [head]))
            self._readers = readers


def _located(name: str | Path) -> str:
    """A folder's absolute path, which holds in another process too; a Hub id as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else str(name)


def _stated(config: PreTrainedConfig | None, attribute: str, names: Sequence[str]) -> dict[str, float]:
    """The number that a configuration states for each of the names; empty unless it states all."""
    known = getattr(config, attribute, None)
    return {name: known[name] for name in names} if isinstance(known, dict) and set(names) <= set(known) else {}


def _digest(config: PreTrainedConfig) -> str:
    """Of what a pipeline takes from a configuration before it loads the model."""
    known = [getattr(config, name, None) for name in ("id2label", "problem_type", "intervals", "thresholds")]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def _kind(config: PreTrainedConfig) -> str | None:
    """`"va"`, `"emotion"`, or None for a model that is no classifier."""
    if is_va_regressor(config):
        return "va"
    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    return "emotion" if classifies and config.problem_type != "regression" and config.num_labels > 1 else None
