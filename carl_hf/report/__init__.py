"""Results as tables, pages and pictures.

Reads what `evaluation` measured; of its own it computes only what the majority class would score.
"""

from carl_hf.utils.lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__, {"page": ["print_summary", "write_report"], "pictures": ["draw_pictures"], "plots": ["plot_circumplex"]}
)
