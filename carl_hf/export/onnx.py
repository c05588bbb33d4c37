"""The encoder as an ONNX graph, through the exporter of transformers (extra `[onnx]`)."""

import contextlib
import importlib.util
import io
import logging
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from carl_hf.export.folder import read_record
from carl_hf.utils.atomic_files import named_in_errors

_TEXTS = (
    "Good.",
    "What a wonderful day!",
    "I waited for three hours in the rain, and then they told me to go home. " * 5,
)


def export_onnx(folder: str | Path, *, tolerance: float = 1e-4) -> Path:
    """Adds onnx/model.onnx to an exported encoder, where sentence-transformers and onnxruntime look for it, after
    comparing its output with the model's.

    Args:
        folder: written by [`carl_hf.export_encoder`].
        tolerance: largest allowed difference of the last hidden states, relative to their largest absolute value.

    Returns:
        the file. The graph takes the tokenizer's outputs, of any batch size and length, and returns
        `last_hidden_state`.

    Raises:
        ValueError: if the folder holds no exported encoder, a package is missing, or the outputs differ; then nothing
            is written.
    """
    folder = Path(folder)
    if (read_record(folder) or {}).get("kind") != "encoder":
        raise ValueError(f"{folder} holds no exported encoder: export_encoder writes one.")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"The ONNX export needs {package}: pip install 'carl_hf[onnx]'.")
    import onnx_ir
    import onnxruntime
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False).eval()
    sample = dict(tokenizer(list(_TEXTS[:2]), padding=True, return_tensors="pt"))
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the exporter's progress
            program = OnnxExporter().export(model, sample, config=OnnxConfig(dynamic=True)).program
    finally:
        exporter_log.setLevel(level)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=folder.parent) as work:
        path = Path(work) / "model.onnx"
        with named_in_errors(folder / "onnx" / path.name):
            onnx_ir.save(program, str(path))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        batch = dict(tokenizer(list(_TEXTS), padding=True, truncation=True, return_tensors="pt"))
        inputs = {value.name: batch[value.name].numpy() for value in session.get_inputs()}
        found = session.run(["last_hidden_state"], inputs)[0]
        with torch.no_grad():
            expected = model(**batch).last_hidden_state.numpy()
        real = batch["attention_mask"].numpy().astype(bool)
        error = float(np.abs(found - expected)[real].max() / np.abs(expected[real]).max())
        if not error <= tolerance:
            raise ValueError(f"The ONNX graph differs from the model by {error:.1e}, more than {tolerance:.1e}.")
        (folder / "onnx").mkdir(exist_ok=True)
        return path.replace(folder / "onnx" / "model.onnx")
