"""Examples on a model's page: a few texts, and what the model makes of them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_SOURCE = "I could dance all day, this is the best news in years!"
_EXAMPLES = {
    "Joyful": "We hugged and cheered until we had no voice left.",
    "Calm": "A warm bath, soft music, and nothing left to do tonight.",
    "Furious": "How dare you lie to my face again!",
    "Sad": "The house has felt so empty since she left.",
}


def similarity_widget(embed: Callable[[Sequence[str]], np.ndarray]) -> dict[str, Any]:
    """A text and others by their nearness to it; `embed` gives vectors of length 1."""
    sentences = list(_EXAMPLES.values())
    vectors = embed([_SOURCE, *sentences])
    return {
        "example_title": "Which feels like it?", "source_sentence": _SOURCE, "sentences": sentences,
        "output": _ranked(sentences, vectors[1:] @ vectors[0]),
    }  # fmt: skip


def text_widgets(predict: Callable[[Sequence[str]], np.ndarray], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Texts and the answers of a model with these labels."""
    outputs = predict(list(_EXAMPLES.values()))
    return [
        {"text": text, "example_title": title, "output": _ranked(labels, scores)}
        for (title, text), scores in zip(_EXAMPLES.items(), outputs, strict=True)
    ]


def _ranked(labels: Sequence[str], scores: np.ndarray) -> list[dict[str, Any]]:
    """As a pipeline returns them: the highest score first."""
    pairs = sorted(zip(labels, scores, strict=True), key=lambda pair: -pair[1])
    return [{"label": label, "score": round(float(score), 4)} for label, score in pairs]
