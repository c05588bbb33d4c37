"""An encoder as a transformer of scikit-learn: texts to vectors."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
except ImportError as error:
    raise ImportError("CarlVectorizer needs scikit-learn: pip install 'carl_hf[eval]'") from error

from carl_hf.data.bad_rows import is_blank
from carl_hf.encoders.embedding import PoolingChoice
from carl_hf.evaluation.encoder import TextEncoder, shared_encoder, stamp_of


class CarlVectorizer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Embeds texts; for pipelines, grid searches and joblib.

    Nothing is learnt; `fit` notes which encoder it was and how texts are read, so that another one, saved in its
    place, is refused. It is loaded when it is first needed, once in each process for the same settings and files; a
    pickle holds the settings and the files' times of change, so that a `memory` of joblib computes the vectors anew
    for another encoder.

    Args:
        model: Hub id or folder of an encoder: the export `encoder/`, or any other, as in
            [`carl_hf.evaluation.encoder.load_text_encoder`].
        pooling: `"auto"` takes what the folder states, else `"cls"`; `"mean"` or `"pooler"`.
        max_length: tokens kept of a text, by default as many as an export was made for, and 128 of any other model.
        batch_size: texts of 32 tokens that are encoded together.
        normalize: scale every vector to length 1. device: an accelerator where there is one, by default.
    """

    def __init__(
        self, model: str = "runs/carl-demo/encoder", *, pooling: PoolingChoice = "auto",
        max_length: int | None = None, batch_size: int = 64, normalize: bool = False, device: str | None = None,
    ):  # fmt: skip
        self.model = model
        self.pooling = pooling
        self.max_length = max_length
        self.batch_size = batch_size
        self.normalize = normalize
        self.device = device

    def fit(self, X: Any, y: Any = None) -> "CarlVectorizer":
        """Checks the texts and loads the encoder.

        Raises:
            ValueError: for anything but a list of texts, or an encoder that cannot be loaded.
        """
        if isinstance(X, Iterator):
            raise ValueError(
                "CarlVectorizer reads the texts of fit again, and a generator has them once: list(texts)."
            )
        _texts(X)
        self.fingerprint_ = self._fingerprint(self._encoder())
        return self

    def transform(self, X: Any) -> np.ndarray:
        """float32 (number of texts, width of the encoder).

        Args:
            X: a list, array or column of texts.

        Raises:
            ValueError: as [`fit`], and for another encoder, length, pooling or `normalize` than in `fit`.
        """
        encoder = self._encoder()
        current = self._fingerprint(encoder)
        if getattr(self, "fingerprint_", current) != current:
            raise ValueError(
                f"{self.model} is another encoder than in fit, or its vectors are made otherwise (length, pooling, "
                "normalize): fit again."
            )
        vectors = encoder.embed(_texts(X))
        if self.normalize:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(np.finfo(np.float32).tiny)
        return vectors

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stamp": stamp_of(str(self.model))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({name: value for name, value in state.items() if name != "_stamp"})

    def _encoder(self) -> TextEncoder:
        return shared_encoder(str(self.model), self.pooling, self.max_length, self.batch_size, self.device)

    def _fingerprint(self, encoder: TextEncoder) -> tuple[str, str, bool]:
        """Changes with all that the vectors of a text depend on."""
        return encoder.fingerprint, encoder.pooling, bool(self.normalize)

    @property
    def _n_features_out(self) -> int:
        return self._encoder().width

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        tags.requires_fit, tags.transformer_tags.preserves_dtype = False, []
        return tags


def _texts(X: Any) -> Sequence[str]:
    if isinstance(X, (str, bytes, dict, set)):
        raise ValueError(f"CarlVectorizer takes a list of texts, got one {type(X).__name__}: pass [text].")
    if not hasattr(X, "__iter__") and not hasattr(X, "__getitem__"):
        raise ValueError(f"CarlVectorizer takes a list of texts, got {X!r}.")
    found = list(X) if getattr(X, "ndim", 1) == 1 else None
    wrong = None if found is None else next((row for row, text in enumerate(found) if not isinstance(text, str)), None)
    if found is None or wrong is not None:
        if found is None:
            raise ValueError(f"CarlVectorizer takes a list or a column of texts, got a table of shape {X.shape}: "
                             "table['text'].")  # fmt: skip
        what = "missing" if is_blank(found[wrong]) else f"no text but {type(found[wrong]).__name__}"
        raise ValueError(f"CarlVectorizer takes texts alone, and text {wrong} is {what}: drop or fill it.")
    if not found:
        raise ValueError("CarlVectorizer got no texts: 0 sample(s), and a minimum of 1 is required.")
    return found
