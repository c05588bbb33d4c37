"""Affective text embeddings for Hugging Face transformers: CARL (arXiv 2502.20613)."""

from transformers import AutoConfig, AutoModel

from carl_hf.collator import CarlDataCollator
from carl_hf.configuration_carl import CarlConfig
from carl_hf.data import load_va_dataset
from carl_hf.evaluation.suite import evaluate_encoder
from carl_hf.export import export_emotion_classifier, export_encoder, export_va_regressor
from carl_hf.hub import push_export
from carl_hf.modeling_carl import CarlModel, CarlOutput
from carl_hf.provenance import Provenance
from carl_hf.trainer import CarlTrainer
from carl_hf.training_args import CarlTrainingArguments
from carl_hf.version import __version__

AutoConfig.register(CarlConfig.model_type, CarlConfig, exist_ok=True)
AutoModel.register(CarlConfig, CarlModel, exist_ok=True)

__all__ = [
    "CarlConfig",
    "CarlDataCollator",
    "CarlModel",
    "CarlOutput",
    "CarlTrainer",
    "CarlTrainingArguments",
    "Provenance",
    "__version__",
    "evaluate_encoder",
    "export_emotion_classifier",
    "export_encoder",
    "export_va_regressor",
    "load_va_dataset",
    "push_export",
]
