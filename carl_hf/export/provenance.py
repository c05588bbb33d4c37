"""Where a model comes from: what its card must say about data, licences and settings."""

import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from carl_hf.data.corpora import CORPORA
from carl_hf.encoders.loading import PACKAGED_ENCODER
from carl_hf.training_args import CarlTrainingArguments

_PACKAGED_ENCODER_ID = "sentence-transformers/all-MiniLM-L6-v2"
# From the least to the most demanding. What is made from several may be passed on under the last of them: CC BY-SA 4.0
# allows its adaptations to go under GPL-3.0.
_LICENCES = ("apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "gpl-3.0")
_OTHER_FIELDS = (
    "seed", "max_steps", "gradient_accumulation_steps", "optim", "weight_decay", "max_grad_norm",
    "lr_scheduler_kwargs", "label_smoothing_factor", "adam_beta1", "adam_beta2", "adam_epsilon",
)  # fmt: skip
_NO_SETTINGS = ("logging_steps", "remove_unused_columns", "per_device_eval_batch_size", "bf16")  # bf16: by device


@dataclass(frozen=True)
class CorpusFacts:
    """What a card says of a corpus: licence as stated by its authors, source, and pinned revision."""

    licence: str
    source: str
    revision: str | None = None


_GOEMOTIONS = CorpusFacts("Apache-2.0", "Demszky et al. 2020, github.com/google-research/google-research.")
_EMOTION_CORPORA = {
    "goemotions-six": _GOEMOTIONS,
    "goemotions-ekman": _GOEMOTIONS,
    "goemotions-28": _GOEMOTIONS,
    "isear": CorpusFacts("research only", "Scherer and Wallbott 1994, Swiss Center for Affective Sciences, Geneva."),
    "emolit12": CorpusFacts("CC-BY-SA-4.0", "Rei and Mladenic 2023."),
}


def corpus_facts(name: str) -> CorpusFacts | None:
    """Licence and source of a corpus of [`carl_hf.data.corpora`] or of the evaluation; None for one's own."""
    if name in CORPORA:
        spec = CORPORA[name]
        return CorpusFacts(spec.licence, spec.source, spec.revision)
    return _EMOTION_CORPORA.get(name)


@dataclass(frozen=True)
class Provenance:
    """What an export records of its origin.

    Args:
        base_model: the encoder that training started from: a Hub id, `"minilm-l6"`, or a folder (which is not
            published).
        corpora: training corpora, by the names of [`carl_hf.data.corpora`], Hub ids, or files (published by name,
            without their folder).
        licence: of the result, as a Hub identifier; by default it follows from the corpora.
        trained_on_test_rows: whether their held-out parts were trained on; an evaluation marks such figures.
        settings: training settings that differ from the defaults; None if they are not known.
        method: what it was trained by; None for an encoder that was not. For the default a trainer names its
            objectives.
        language: of the texts, as a two-letter code.

    Raises:
        ValueError: for a licence that is no identifier.
    """

    base_model: str | None = None
    corpora: Sequence[str] = ()
    licence: str | None = None
    trained_on_test_rows: bool = False
    settings: dict[str, Any] | None = None
    method: str | None = "CARL"
    language: str = "en"

    def __post_init__(self):
        if self.licence is not None and not re.fullmatch(r"[a-z0-9.-]+", self.licence):
            raise ValueError(f"The licence must be an identifier of the Hub such as cc-by-4.0, got {self.licence!r}.")

    def record(self, head_corpora: Sequence[str] = ()) -> dict[str, Any]:
        """As it is written into an export, with the licence that `head_corpora` ask for too: nothing in it names a
        folder of this machine."""
        return {
            "base_model": public_model_id(self.base_model),
            "corpora": [public_corpus_name(corpus) for corpus in self.corpora],
            "licence": self.licence or licence_of([*self.corpora, *head_corpora]),
            "trained_on_test_rows": self.trained_on_test_rows,
            "settings": self.settings,
            "method": self.method,
            "language": self.language,
        }


def public_model_id(name: str | None) -> str | None:
    """The Hub id of a model, or None where it has none that could be published: a folder, or no valid id."""
    if name == PACKAGED_ENCODER:
        return _PACKAGED_ENCODER_ID
    return name if name is not None and _is_repo_id(name) and not Path(name).exists() else None


def public_corpus_name(name: str) -> str:
    """A corpus's name without folders; Hub ids keep their owner."""
    if corpus_facts(name) is not None or (_is_repo_id(name) and not Path(name).exists()):
        return name
    return re.split(r"[/\\]", name)[-1]


def is_public_corpus(name: str) -> bool:
    """Whether others can find a corpus by this name: one that carl_hf knows, or a data set on the Hub."""
    return corpus_facts(name) is not None or ("/" in name and _is_repo_id(name))


def licence_of(corpora: Sequence[str]) -> str:
    """The licence under which a model trained on `corpora` may be passed on, as the Hub writes it: the most demanding
    of theirs; "other" where one may not be passed on, else "unknown" where one is not known."""
    facts = [corpus_facts(corpus) for corpus in corpora]
    licences = [fact.licence.lower() for fact in facts if fact is not None]
    if not set(licences) <= set(_LICENCES):
        return "other"
    return max(licences, key=_LICENCES.index) if facts and None not in facts else "unknown"


def differing_settings(args: CarlTrainingArguments) -> dict[str, Any]:
    """The settings of a run that differ from the defaults: those that shape the model, no paths and no logging."""
    # from the fields: making another object of arguments would reset the running accelerator's state
    defaults = {f.name: f.default_factory() if f.default is MISSING else f.default for f in fields(args) if f.init}
    shaping = [*CarlTrainingArguments.__annotations__, *_OTHER_FIELDS]
    values = {name: getattr(args, name) for name in shaping if name not in _NO_SETTINGS}
    return {
        name: value.value if isinstance(value, Enum) else value
        for name, value in values.items()
        if value != defaults[name] and (value or defaults[name])  # unset and empty are one: lr_scheduler_kwargs
    }


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith(".") and not re.search(r"\.(csv|tsv|parquet|jsonl?|txt)$", name)
