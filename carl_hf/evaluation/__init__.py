"""Measure encoders: a task takes embeddings or an `encode` callable and gives metrics; none knows a model class.

A user's first call is [`evaluate_encoder`].
"""

from carl_hf.utils.lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__,
    {"suite": ["Evaluation", "evaluate_encoder", "run_tasks"], "encoder": ["TextEncoder", "load_text_encoder"]},
)
