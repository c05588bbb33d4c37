"""Agreement of predicted with true valence and arousal, as an `evaluate` metric."""

# evaluate reads this file's imports line by line and takes "import a, b" for one package: one module a line
import datasets
import evaluate

from carl_hf.evaluation.statistics import agreement

_DESCRIPTION = """
Pearson r, Spearman rho, concordance correlation (CCC) and mean absolute error of numbers that are predicted for each
text, such as valence and arousal, one dimension after the other.
"""
_CITATION = "Lin, A Concordance Correlation Coefficient to Evaluate Reproducibility, Biometrics 45(1), 255-268, 1989"
_INPUTS = """
Args:
    predictions: list of N lists of K numbers, such as [valence, arousal].
    references: list of N lists of K numbers on the same scale.
    dimensions (list of K str): names of the numbers; default ["valence", "arousal"].

Returns:
    for each dimension a dict with "pearson", "spearman", "ccc" in [-1, 1] and "mae" in the unit of the scale. A
    correlation that is undefined because a side is constant is None, and "pearson_reason" says why.

Example:
    >>> from carl_hf.evaluation.metrics import load_metric
    >>> metric = load_metric("va_agreement")
    >>> result = metric.compute(
    ...     predictions=[[0.1, 0.0], [0.5, 0.2], [0.9, -0.2]], references=[[0.0, 0.0], [0.4, 0.3], [0.8, -0.1]]
    ... )
    >>> {name: round(value, 3) for name, value in result["valence"].items()}
    {'pearson': 1.0, 'spearman': 1.0, 'ccc': 0.955, 'mae': 0.1}
"""
_NUMBERS = datasets.Sequence(datasets.Value("float64"))
_FEATURES = {"predictions": _NUMBERS, "references": _NUMBERS}


class VAAgreement(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(_DESCRIPTION, _CITATION, datasets.Features(_FEATURES), inputs_description=_INPUTS)

    def _compute(self, predictions, references, dimensions=("valence", "arousal")):
        return agreement(predictions, references, dimensions)
