"""The exports as ONNX graphs in float32 and int8, for onnxruntime and transformers.js (extra `[onnx]`)."""

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.data.loading import load_va_dataset
from carl_hf.encoders.loading import load_classifier, load_encoder, load_tokenizer
from carl_hf.export.folder import check_weights_of, read_record, update_record
from carl_hf.utils.atomic_files import named_in_errors

logger = logging.getLogger(__name__)

_TEXTS = (
    "Good.",
    "What a wonderful day!",
    "I waited for three hours in the rain, and then they told me to go home. " * 5,
)
_MEASURE = {
    "encoder": "mean cosine", "va": "mean absolute difference", "emotion": "share of texts with the same emotion",
}  # fmt: skip
_LEAST_AGREEMENT, _MOST_ERROR = {"encoder": 0.99, "emotion": 0.95}, 0.02
_COMPARED = 200  # texts on which the answers of int8 are compared with those of float32


def export_onnx(folder: str | Path, *, tolerance: float = 1e-4) -> list[Path]:
    """Adds onnx/model.onnx (float32) and onnx/model_quantized.onnx (weights in int8) to an export, where onnxruntime's
    users, transformers.js and sentence-transformers look for them. The card and its record then state their sizes, and
    how far the answers of int8 are from those of float32 on texts of the demo corpus.

    Args:
        folder: of any of the three exports.
        tolerance: largest allowed difference of float32's outputs from the model's, relative to their largest absolute
            value.

    Returns:
        the two files. Both graphs take the tokenizer's outputs, of any batch size and length, and return
        `last_hidden_state` (of an encoder) or `logits`.

    Raises:
        ValueError: if the folder holds no export, a package is missing, or the outputs differ; then nothing is
            written.
    """
    folder = Path(folder)
    record = read_record(folder)
    if record is None:
        raise ValueError(f"{folder} holds no export: export_encoder and its like write one.")
    check_weights_of(folder, record)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"The ONNX export needs {package}: pip install 'carl_hf[onnx]'.")
    tokenizer = load_tokenizer(str(folder))
    model = (load_encoder if record["kind"] == "encoder" else load_classifier)(str(folder))
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=folder.parent) as work:
        exact, small = Path(work) / "model.onnx", Path(work) / "model_quantized.onnx"
        with named_in_errors(folder / "onnx" / exact.name):
            _save_graph(model, dict(tokenizer(list(_TEXTS[:2]), padding=True, return_tensors="pt")), exact)
        error = _difference(model, tokenizer, exact)
        if not error <= tolerance:
            raise ValueError(f"The ONNX graph differs from the model by {error:.1e}, more than {tolerance:.1e}.")
        with named_in_errors(folder / "onnx" / small.name):
            _quantize(exact, small)
        texts = load_va_dataset("demo", split="test")["text"][:_COMPARED]
        expected, found = (_answers(path, tokenizer, texts, record["pooling"]) for path in (exact, small))
        agreement = _agreement(record["kind"], expected, found, (record.get("head") or {}).get("thresholds"))
        if not (agreement <= _MOST_ERROR if record["kind"] == "va" else agreement >= _LEAST_AGREEMENT[record["kind"]]):
            logger.warning("The answers of int8 (%s) differ much from those of float32: %s %.3g on %d texts. Use %s.",
                           small.name, _MEASURE[record["kind"]], agreement, len(texts), exact.name)  # fmt: skip
        record["onnx"] = {
            "bytes": [path.stat().st_size for path in (exact, small)], "texts": len(texts), "agreement": agreement,
            "texts_in_a_call": 1,
        }  # fmt: skip
        (folder / "onnx").mkdir(exist_ok=True)
        paths = [path.replace(folder / "onnx" / path.name) for path in (exact, small)]
        update_record(folder, record)
    return paths


def _save_graph(model: PreTrainedModel, sample: dict[str, torch.Tensor], path: Path) -> None:
    import onnx_ir
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    with _quiet():
        onnx_ir.save(OnnxExporter().export(model, sample, config=OnnxConfig(dynamic=True)).program, str(path))


def _quantize(source: Path, target: Path) -> None:
    """Word embeddings and matrices in int8, a scale for each column of a matrix; activations as the texts need them.

    Float32 stays what reads a layer's wide inner states, whose few large values int8 cannot hold beside the others.
    Seven bits of the eight are used, since two products of eight overflow on processors without VNNI."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # the exporter's shapes, some of which are of the graph before it was simplified
    weights = {weight.name: weight.dims for weight in model.graph.initializer if len(weight.dims) == 2}
    narrowing = {name for name, (inputs, outputs) in weights.items() if inputs > outputs}
    exact = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in narrowing]
    with _quiet():
        quantize_dynamic(model, target, per_channel=True, reduce_range=True, nodes_to_exclude=exact)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' progress, and their advice to their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(before)


def _run(path: Path, batches: Iterable[Mapping[str, Any]]) -> Iterator[np.ndarray]:
    """The graph's output for each of some batches from the tokenizer."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in batches:
        yield session.run(None, {value.name: np.asarray(batch[value.name]) for value in session.get_inputs()})[0]


@torch.no_grad()
def _difference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> float:
    batch = tokenizer(list(_TEXTS), padding=True, truncation=True, return_tensors="pt")
    expected, (found,) = model(**batch)[0].numpy(), _run(path, [batch])
    if expected.ndim == 3:  # hidden states, of which those of padding mean nothing
        real = batch["attention_mask"].numpy().astype(bool)
        found, expected = found[real], expected[real]
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _answers(path: Path, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pooling: str) -> np.ndarray:
    """(texts, K): logits, or pooled vectors of length 1, of each text in a batch of its own: int8 rounds what a layer
    reads by the largest number in the batch, so that a text's answer depends on the others."""
    batches = [tokenizer([text], truncation=True, return_tensors="np") for text in texts]
    found = []
    for batch, output in zip(batches, _run(path, batches), strict=True):
        if output.ndim == 3:
            mask = batch["attention_mask"][..., None]
            output = output[:, 0] if pooling == "cls" else (output * mask).sum(1) / mask.sum(1)
            output = output / np.linalg.norm(output, axis=1, keepdims=True)
        found.append(output)
    return np.concatenate(found)


def _agreement(kind: str, exact: np.ndarray, small: np.ndarray, thresholds: Mapping[str, float] | None) -> float:
    """Mean cosine of an encoder's vectors, mean absolute difference of valence and arousal, share of texts with the
    same most probable emotion or, by `thresholds`, the same emotions."""
    if kind == "encoder":
        return float((exact * small).sum(1).mean())
    if kind == "va":
        return float(np.abs(exact - small).mean())
    if thresholds is not None:
        cuts = np.array([*thresholds.values()])
        least = np.log(cuts / (1 - cuts))  # of the logits
        return float(((exact >= least) == (small >= least)).all(1).mean())
    return float((exact.argmax(1) == small.argmax(1)).mean())
