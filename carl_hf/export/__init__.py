"""Trained models out: plain folders with cards, pushes to the Hub, ONNX.

A user's first call is [`export_encoder`]; what is exported loads without carl_hf.
"""

from carl_hf.utils.lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "exports": ["export_emotion_classifier", "export_encoder", "export_va_regressor"],
        "head_training": ["HeadTraining"],
        "hub": ["Push", "push_export"],
        "onnx": ["export_onnx"],
        "provenance": ["Provenance"],
    },
)
