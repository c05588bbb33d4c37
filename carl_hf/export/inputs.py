"""What an export is given, checked before anything is trained or fitted for it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from carl_hf.data.mixing import warn_of_one_side
from carl_hf.data.splits import text_keys
from carl_hf.encoders.checks import check_padding
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of
from carl_hf.export.folder import check_figures, check_replaceable, read_record
from carl_hf.export.task_heads import with_development
from carl_hf.modeling_carl import CarlModel

logger = logging.getLogger(__name__)


def check_target(
    model: object, kinds: type | tuple[type, ...], tokenizer: PreTrainedTokenizerBase, folder: str | Path,
    figures: Sequence[str | Path],
) -> None:  # fmt: skip
    """Raises a ValueError unless `model` is of one of these `kinds`, the tokenizer can pad, the folder may be replaced
    by an export, and the figures can be copied into it."""
    if not isinstance(model, kinds):
        wanted = " or a ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise ValueError(f"An export is made of a {wanted}, got a {type(model).__name__}.")
    check_padding(tokenizer)
    check_replaceable(Path(folder).resolve())
    check_figures(figures)


def held_out(test: Mapping[str, Dataset] | None) -> dict[str, Dataset]:
    """Test texts of each corpus in plain format; a ValueError for anything but {corpus: texts}."""
    if not isinstance(test, Mapping) and test is not None:
        raise ValueError(f"test is a mapping from the corpus's name to its texts, got a {type(test).__name__}.")
    return {name: _texts(data, f"test[{name!r}]") for name, data in (test or {}).items()}


def check_rated(
    train: Dataset | None, dev: Dataset | None, test: Mapping[str, Dataset], corpora: Sequence[str]
) -> None:
    """Checks what a valence-arousal head is fitted to, chosen and measured by. Warns of labels on one side of the
    scale, and of training texts that are to choose or to measure it too.

    Raises:
        ValueError: for anything but datasets of texts, and a name in place of the list of `corpora`.
    """
    if isinstance(corpora, str):
        raise ValueError(f"corpora must be a list of names, got {corpora!r}.")
    fitted = {name: _texts(data, name) for name, data in (("train", train), ("dev", dev)) if data is not None}
    if train is None:
        return
    for column, values in zip(DIMENSIONS, labels_of(fitted["train"]).T, strict=True):
        warn_of_one_side("train", column, values)
    seen = text_keys(fitted["train"]["text"], "train")
    for name, data in {"dev": dev, **test}.items():
        if data is not None and (repeated := len(seen & text_keys(data["text"], name))):
            logger.warning("%s shares %d texts with train, so that its figures are partly of texts that the head has "
                           "seen: carl_hf.data.remove_overlap leaves them out of train.", name, repeated)  # fmt: skip


def check_beside(beside: str | Path | None, model: object, training: object) -> None:
    """Raises a ValueError unless the folder `beside`, if there is one, holds an exported emotion classifier, and a
    linear head of a [`CarlModel`] is to share its encoder."""
    if beside is None:
        return
    if training is not None or not isinstance(model, CarlModel):
        raise ValueError("beside= is for the linear head of a CarlModel: leave out training=, or beside=.")
    if (read_record(beside) or {}).get("kind") != "emotion":
        raise ValueError(f"{beside} is no exported emotion classifier: pass the folder that holds one, or None.")


def check_keep(keep: Dataset | None, model: object, training: object) -> None:
    """Raises a ValueError unless `keep`, if it is given, can be fitted to, and a [`CarlModel`] is to be trained."""
    if keep is None:
        return
    if training is None or not isinstance(model, CarlModel):
        raise ValueError("keep= is for a CarlModel that is trained: pass training= too, or leave out keep=.")
    labels_of(with_development(keep, None, seed=0)[0])


def probe_sample(train: Dataset | None, most: int, fewest: int) -> Dataset | None:
    """At most `most` of the texts, drawn at random; a ValueError for fewer than `fewest`."""
    if train is None:
        return None
    data = _texts(train, "train")
    if len(data) < fewest:
        raise ValueError(f"train has {len(data)} texts, the measure of bias needs at least {fewest}: or leave it out.")
    return data.select(np.random.default_rng(0).permutation(len(data))[:most])


def _texts(data: object, name: str) -> Dataset:
    if not isinstance(data, Dataset):
        raise ValueError(f"{name} is a datasets.Dataset of texts, got a {type(data).__name__}: Dataset.from_list.")
    if "text" not in data.column_names:
        raise ValueError(f"{name} has no column 'text' (it has {', '.join(data.column_names)}): rename the column.")
    if len(data) == 0:
        raise ValueError(f"{name} is empty.")
    return data.with_format(None)
