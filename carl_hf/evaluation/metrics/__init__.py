"""The metrics of this package for the `evaluate` library, each in a folder that is also a Hub Space."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

METRICS = ("alignment_uniformity", "emotion_classification", "va_agreement")


def load_metric(name: str) -> "evaluate.EvaluationModule":
    """Loads one of [`METRICS`] by its path, without the Hub; what is added to it stays in memory.

    Raises:
        ValueError: for an unknown name, or if the library `evaluate` is not installed.
    """
    if name not in METRICS:
        raise ValueError(f"Unknown metric {name!r}: choose from {', '.join(METRICS)}.")
    try:
        import evaluate
    except ImportError as error:
        raise ValueError("Metrics need the library evaluate: pip install 'carl_hf[eval]'.") from error
    return evaluate.load(str(Path(__file__).parent / name), keep_in_memory=True)
