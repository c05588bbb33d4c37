"""How far a model's outputs shift when only a name, a pronoun or a group is exchanged in a sentence.

The sentences (exchanges.yaml) were written for this purpose. For a model without such a bias the shifts are noise
around 0. They say nothing about other kinds of bias, other sentences or other languages.
"""

import importlib.resources
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import yaml

EXCHANGES: dict[str, dict[str, Any]] = yaml.safe_load(
    (importlib.resources.files("carl_hf.export") / "exchanges.yaml").read_text("utf-8")
)
"""name -> {"sentences": each with a slot `{}`, "groups": name -> words that are put into the slot}"""


def measure_bias(
    predict: Callable[[Sequence[str]], np.ndarray], outputs: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Shifts of a model's outputs under each of [`EXCHANGES`].

    Args:
        predict: texts -> (N, K). outputs: K names, such as valence and arousal.

    Returns:
        exchange -> output -> {"shift": group -> [mean over the sentences of the group's output minus the mean of all
        groups, standard error of that mean], "largest": the largest difference between two groups in one sentence}.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, exchange in EXCHANGES.items():
        groups, sentences = exchange["groups"], exchange["sentences"]
        texts = [sentence.format(word) for words in groups.values() for sentence in sentences for word in words]
        predicted = np.asarray(predict(texts), dtype=float)
        by_group = predicted.reshape(len(groups), len(sentences), -1, len(outputs)).mean(axis=2)  # over the words
        shifts = by_group - by_group.mean(axis=0)
        mean = shifts.mean(axis=1)
        error = shifts.std(axis=1, ddof=1) / np.sqrt(len(sentences))
        largest = np.ptp(by_group, axis=0).max(axis=0)
        result[kind] = {
            output: {
                "shift": {group: [float(mean[i, k]), float(error[i, k])] for i, group in enumerate(groups)},
                "largest": float(largest[k]),
            }
            for k, output in enumerate(outputs)
        }
    return result
