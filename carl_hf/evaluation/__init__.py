"""Measure encoders: a task takes embeddings or an `encode` callable and gives metrics. Only what measures parts of a
model (its detector, a fine-tuning of it, before and after training) knows a model class.

A user's first call is [`evaluate_encoder`].
"""

from carl_hf.utils.lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__,
    {"suite": ["Evaluation", "evaluate_encoder", "run_tasks"], "encoder": ["TextEncoder", "load_text_encoder"]},
)
