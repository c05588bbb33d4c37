"""Affective text embeddings for Hugging Face transformers: CARL (arXiv 2502.20613).

This level holds the paper, the subpackages all around it (docs/architecture.md). Names load their module when used.
"""

from typing import TYPE_CHECKING

from transformers import AutoConfig

from carl_hf.configuration_carl import CarlConfig
from carl_hf.utils.lazy import lazy_names
from carl_hf.version import __version__

if TYPE_CHECKING:
    from carl_hf.collator import CarlDataCollator
    from carl_hf.data.loading import load_va_dataset
    from carl_hf.evaluation.suite import evaluate_encoder
    from carl_hf.export.exports import export_emotion_classifier, export_encoder, export_va_regressor
    from carl_hf.export.hub import push_export
    from carl_hf.export.provenance import Provenance
    from carl_hf.inference.pipeline import AffectPipeline
    from carl_hf.modeling_carl import CarlModel, CarlOutput
    from carl_hf.trainer import CarlTrainer
    from carl_hf.training_args import CarlTrainingArguments

AutoConfig.register(CarlConfig.model_type, CarlConfig, exist_ok=True)  # which registers its model

__getattr__, _lazy = lazy_names(
    __name__,
    {
        "collator": ["CarlDataCollator"],
        "data.loading": ["load_va_dataset"],
        "evaluation.suite": ["evaluate_encoder"],
        "export.exports": ["export_emotion_classifier", "export_encoder", "export_va_regressor"],
        "export.hub": ["push_export"],
        "export.provenance": ["Provenance"],
        "inference.pipeline": ["AffectPipeline"],
        "modeling_carl": ["CarlModel", "CarlOutput"],
        "trainer": ["CarlTrainer"],
        "training_args": ["CarlTrainingArguments"],
    },
)
__all__ = [
    "AffectPipeline",
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
