"""Where a model comes from: the data, licences and settings that its card states."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from carl_hf.data.corpora import CORPORA, CorpusSpec
from carl_hf.data.files import SUFFIXES
from carl_hf.encoders.packaged import HUB_IDS
from carl_hf.training_args import CarlTrainingArguments

# From the least to the most strict. What is made from several may be shared under the last of them: CC BY-SA 4.0
# allows adaptations under GPL-3.0.
_LICENCES = ("apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "gpl-3.0")
_OTHER_FIELDS = (
    "seed", "max_steps", "gradient_accumulation_steps", "optim", "weight_decay", "max_grad_norm",
    "lr_scheduler_kwargs", "label_smoothing_factor", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args",
    "data_seed", "train_sampling_strategy",
)  # fmt: skip
# of a training that is resumed: how long and in which parts; what a batch is, its completion record states itself
_MAY_CHANGE = (
    "preset", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "gradient_cache_parts", "eval_steps", "probe_texts", "toward_plain", "bf16",
)  # fmt: skip
_NO_SETTINGS = ("logging_steps", "remove_unused_columns", "per_device_eval_batch_size")


@dataclass(frozen=True)
class CorpusFacts:
    """A corpus on a card: its licence as its authors state it, its source and its pinned revision."""

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


def corpus_facts(name: str) -> CorpusFacts | CorpusSpec | None:
    """Licence, source and revision of a corpus of [`carl_hf.data.corpora`] or of the evaluation; None for others."""
    return CORPORA.get(name) or _EMOTION_CORPORA.get(name)


@dataclass(frozen=True)
class Provenance:
    """What an export was made from.

    Args:
        base_model: the encoder that training started from: a Hub id, `"minilm-l6"`, `"mpnet-base"`, or a folder, which
            is not published.
        corpora: training corpora: names of [`carl_hf.data.corpora`], Hub ids, or files, published without their
            folder.
        licence: of the model, as a Hub identifier; by default it follows from the corpora.
        trained_on_test_rows: whether it was trained on their test splits too; evaluations mark such metrics.
        settings: training settings that differ from the defaults; None if unknown.
        method: of training; None for an encoder that was not trained. A trainer replaces the default by its
            objectives.
        language: of the texts, a two-letter code.
        files: training files of which no test part was held out: name -> [`file_digest`], by which evaluations know
            them again. partly: files and Hub data sets of which one was: name -> digest, or the name of a data set.
        base_licence: of the export that training started from, beside which that of the corpora holds.
        tenth_kept: whether all trainings have left out the texts of [`carl_hf.data.splits.is_drawn`].
        reading: how the corpora were read, which a resumed training must keep; not published.

    Raises:
        ValueError: for a licence that is no identifier, and corpora that are no list of names.
    """

    base_model: str | None = None
    corpora: Sequence[str] = ()
    licence: str | None = None
    trained_on_test_rows: bool = False
    settings: dict[str, Any] | None = None
    method: str | None = "CARL"
    language: str = "en"
    files: Mapping[str, str] = field(default_factory=dict)
    base_licence: str | None = None
    tenth_kept: bool = False
    partly: Mapping[str, str] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.corpora, str) or not all(isinstance(corpus, str) for corpus in self.corpora):
            raise ValueError(f"corpora must be a list of names, got {self.corpora!r}.")
        if self.licence is not None and not re.fullmatch(r"[a-z0-9.-]+", self.licence):
            raise ValueError(f"The licence must be an identifier of the Hub such as cc-by-4.0, got {self.licence!r}.")

    def record(self, head_corpora: Sequence[str] = ()) -> dict[str, Any]:
        """As in carl_export.json: without local folders, and with the licence that `head_corpora` require too."""
        data_licence = _both_licences(self.base_licence, licence_of([*self.corpora, *head_corpora]))
        record = asdict(self) | {
            "base_model": public_model_id(self.base_model),
            "corpora": [public_corpus_name(corpus) for corpus in self.corpora],
            "licence": self.licence or data_licence,
            "data_licence": data_licence,
            "settings": _without_folders(self.settings),
        }
        del record["reading"]
        return record


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's size and its first and last MiB: the same file, whatever its name and folder."""
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        found = hashlib.sha256(str(size).encode())
        for start in (0, max(0, size - 2**20)):
            file.seek(start)
            found.update(file.read(2**20))
    return found.hexdigest()


def named_digests(*files: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name -> digest of pairs of these, each digest once; of files that have one name, the later are numbered."""
    found: dict[str, str] = {}
    for name, digest in itertools.chain(*files):
        if digest not in found.values():
            names = itertools.chain([name], (f"{name} ({i})" for i in itertools.count(2)))
            found[next(free for free in names if free not in found)] = digest
    return found


def digests_of(corpora: Iterable[str]) -> dict[str, str]:
    """Name -> [`file_digest`] of those that are files."""
    return named_digests((Path(path).name, file_digest(path)) for path in corpora if Path(path).is_file())


def known_digests(*records: Mapping[str, Any]) -> set[str]:
    """Digests of all files that parts of a record (its provenance, its head) name, and names of data sets that were
    held out in part."""
    return {digest for of in records for kind in ("files", "partly") for digest in of.get(kind, {}).values()}


def held_out_in_part(corpora: Iterable[str]) -> dict[str, str]:
    """[`Provenance.partly`] of training on these but for their test part."""
    corpora = list(corpora)
    on_the_hub = (name for name in map(public_corpus_name, corpora) if "/" in name)
    return {**digests_of(corpora), **{name: name for name in on_the_hub}}


def with_head(origin: Mapping[str, Any], head: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What an encoder was made from, of its record, and what else it was trained on together with its head."""
    if head is None or head.get("frozen", True):
        return origin
    corpora = list(dict.fromkeys([*origin["corpora"], *head.get("corpora", ())]))
    merged = {
        kind: named_digests(origin.get(kind, {}).items(), head.get(kind, {}).items())
        for kind in ("files", "partly") if kind in origin or kind in head
    }  # fmt: skip
    return {**origin, "corpora": corpora, **merged}


def public_model_id(name: str | None) -> str | None:
    """The Hub id of a model; None for a folder or what is no valid id."""
    if name in HUB_IDS:
        return HUB_IDS[name]
    return name if name is not None and _is_repo_id(name) and not Path(name).exists() else None


def without_configuration(name: str) -> str:
    """The id of a Hub data set that may be named "owner/name:configuration"; any other name up to a colon."""
    return name.partition(":")[0]


def is_file_name(name: str) -> bool:
    """Whether a corpus's name is a file's; one of a Hub data set may have a dot too."""
    return "/" not in public_corpus_name(name) and Path(name).suffix.lower() in SUFFIXES


def known_by_content(origin: Mapping[str, Any], name: str) -> bool:
    """Whether a record has the content of a training file of this name: another file of that name is another one."""
    return is_file_name(name) and name in {*origin.get("files", {}), *origin.get("partly", {})}


def public_corpus_name(name: str) -> str:
    """A corpus's name without its local folder; Hub ids keep their owner, and their configuration."""
    repo_id = without_configuration(name)
    on_the_hub = _is_repo_id(repo_id) and (repo_id == name or "/" in repo_id) and not Path(name).exists()
    if corpus_facts(name) is not None or on_the_hub:
        return name
    return re.split(r"[/\\]", name)[-1]


def is_public_corpus(name: str) -> bool:
    """Whether this names a corpus that carl_hf knows, or a data set on the Hub."""
    repo_id = without_configuration(name)
    return corpus_facts(name) is not None or ("/" in repo_id and _is_repo_id(repo_id))


def licence_of(corpora: Sequence[str]) -> str:
    """The Hub identifier of the licence that a model trained on `corpora` needs: the strictest of theirs; "other" if
    one of them may not be shared, else "unknown" if the licence of one is not known."""
    facts = [corpus_facts(corpus) for corpus in corpora]
    licences = [fact.licence.lower() for fact in facts if fact is not None]
    if not set(licences) <= set(_LICENCES):
        return "other"
    return max(licences, key=_LICENCES.index) if facts and None not in facts else "unknown"


def _both_licences(base: str | None, corpora: str) -> str:
    """The licence of a model that was made from one with the licence `base`: the stricter of the two; "other" if they
    are not on one ladder."""
    if base is None or base == corpora:
        return corpora
    for unclear in ("other", "unknown"):
        if unclear in (base, corpora):
            return unclear
    return max(base, corpora, key=_LICENCES.index) if {base, corpora} <= set(_LICENCES) else "other"


def run_settings(provenance: Provenance, encoder: str) -> dict[str, Any]:
    """What a training must keep to be resumed: its corpora and how they are read, its settings that shape the model,
    and the encoder, if that has a name. Folders count by their last two names, so that a run can be moved."""
    settings = {k: v for k, v in (provenance.settings or {}).items() if k not in _MAY_CHANGE}
    if encoder and not (Path(encoder) / "trainer_state.json").exists():  # not loaded from the checkpoint itself
        settings["encoder"] = "/".join(Path(encoder).resolve().parts[-2:]) if Path(encoder).exists() else encoder
    record = {
        "corpora": [public_corpus_name(corpus) for corpus in provenance.corpora],
        "trained_on_test_rows": provenance.trained_on_test_rows,
    }
    return json.loads(json.dumps({**record, **provenance.reading, **settings}, default=str))


def differing_settings(args: CarlTrainingArguments) -> dict[str, Any]:
    """The settings of a run that shape the model and differ from the defaults: no paths, no logging."""
    # from the fields: another instance of the arguments would reset the running accelerator's state
    defaults = {f.name: f.default_factory() if f.default is MISSING else f.default for f in fields(args) if f.init}  # type: ignore[operator]
    shaping = [*CarlTrainingArguments.__annotations__, *_OTHER_FIELDS]
    values = {name: getattr(args, name) for name in shaping if name not in _NO_SETTINGS}
    return {
        name: value.value if isinstance(value, Enum) else value
        for name, value in values.items()
        if value != defaults[name] and (value or defaults[name])  # None and {} are the same: lr_scheduler_kwargs
    }


def _without_folders(setting: Any) -> Any:
    """A setting in which paths are cut to the file's name."""
    if isinstance(setting, dict):
        return {key: _without_folders(value) for key, value in setting.items()}
    if isinstance(setting, (list, tuple)):
        return [_without_folders(value) for value in setting]
    return re.split(r"[/\\]", str(setting).rstrip("/\\"))[-1] if isinstance(setting, (str, Path)) else setting


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith(".") and not re.search(r"\.(csv|tsv|parquet|jsonl?|txt)$", name)
