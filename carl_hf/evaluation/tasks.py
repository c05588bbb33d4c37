"""What is measured: the settings of the tasks, and the corpora that they name."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from carl_hf.data import labelled as data
from carl_hf.data.corpora import CORPORA
from carl_hf.data.feeling import read_feeling_triplets
from carl_hf.data.splits import split_rows
from carl_hf.evaluation.senteval import PROTOCOLS, fewest_of_a_class

TASKS = ("va", "polarity", "emotion", "geometry", "semantics", "space", "detector")

Encode = Callable[[Sequence[str]], np.ndarray]
"""List of N texts -> (N, H) embeddings."""
Measured = tuple[dict[str, Any], dict[str, np.ndarray]]
"""Metrics as in results.json, and arrays by test text: "predictions" and "references", or what a plot needs."""


# names of results, which a file of one's own may not have
_TAKEN = (*CORPORA, *data.EMOTION, *data.POLARITY, "stsb", "demo", "dimensions", "feeling-over-topic", "emoji-pairs")


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Args:
        tasks: any of [`TASKS`]. data_dir: folder with local copies of the corpora; without one only the bundled demo
            corpus is measured. seed: of folds, splits, draws and bootstraps.
        va, polarity: names of corpora; IMDB, which has by far the most tokens, is not among the defaults. emotion:
            names of corpora, or files with the columns `text`, `label` and maybe `split`.
        protocol: SentEval's, for polarity. shots: training texts a class of few-shot emotion probes.
        strict: a corpus that is missing is an error.
        columns, skip_bad_rows: of the files, as for [`carl_hf.data.labelled.read_emotion`].
    """

    tasks: Sequence[str] = TASKS[:-1]
    data_dir: str | Path | None = None
    seed: int = 42
    va: Sequence[str] = ("emobank", "facebook")
    polarity: Sequence[str] = ("mr", "cr", "sst5")
    emotion: Sequence[str] = ("goemotions-six", "goemotions-ekman", "isear", "emolit12")
    protocol: Literal["fast", "test"] = "fast"
    shots: Sequence[int] = ()
    strict: bool = False
    columns: Mapping[str, str] | None = None
    skip_bad_rows: bool = False

    def __post_init__(self):
        for what, given, known in (
            ("task", self.tasks, TASKS),
            ("va corpus", self.va, tuple(CORPORA)),
            ("polarity corpus", self.polarity, data.POLARITY),
            ("emotion corpus", [name for name in self.emotion if not Path(name).suffix], (*data.EMOTION, "demo")),
            ("protocol", [self.protocol], ("fast", "test")),
        ):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ValueError(f"Unknown {what} {unknown[0]!r}: choose from {', '.join(known)}.")
        if self.strict and self.data_dir is None:
            raise ValueError(
                "strict: without data_dir the demo corpus alone is measured. Name the folder of the others."
            )
        if any(count < 1 for count in self.shots):
            raise ValueError(f"Few-shot probes need at least 1 text a class, got {min(self.shots)}.")


class Corpora:
    """Everything that the settings name, read at once: wrong files are found before any work, and several encoders
    are measured on one copy.

    Attributes `va`, `polarity`, `emotion`, `geometry` (classes), `curve` (valence), `semantics`, `detector`, and for
    the task `space` `space_va`, `space_emotion`, `space_polarity`, `space_probe`: name -> corpus; `triplets`: those of
    the test part, or None. `skipped`: "task/corpus" -> why it is missing.

    Raises:
        ValueError: for a file with missing columns or wrong values; for a missing corpus, if the settings are strict.
    """

    def __init__(self, settings: Settings):
        self.skipped: dict[str, str] = {}
        folder, only_demo = settings.data_dir, settings.data_dir is None

        @functools.cache
        def read_once(reader: Callable[..., Any], name: str) -> Any:
            return reader(folder) if reader is data.read_sts else reader(name, folder)

        def read(task: str, names: Sequence[str], reader: Callable[..., Any]) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for name in names if task in settings.tasks else ():
                try:
                    corpus = read_once(reader, name)
                except data.MissingCorpus as error:
                    if settings.strict:
                        raise ValueError(f"{task}/{name}: {error} Without --strict it would be skipped.") from error
                    self.skipped[f"{task}/{name}"] = str(error)
                    continue
                key = Path(name).stem if Path(name).suffix else name
                if key != name and key in _TAKEN:
                    raise ValueError(f"The file {name} would be taken for the corpus {key}: rename it.")
                if key in found:
                    raise ValueError(f"Two corpora are called {key!r}: rename the file {name}.")
                found[key] = corpus
            return found

        def read_names(name: str, folder: str | Path | None) -> data.ClassCorpus:
            if name in (*data.EMOTION, "demo"):
                return data.read_emotion(name, folder)
            return data.read_emotion(name, folder, settings.columns, skip_bad_rows=settings.skip_bad_rows)

        own_va, polarity = (tuple(dict.fromkeys(names)) for names in (settings.va, settings.polarity))
        va, demo = ("demo",) if only_demo else ("emobank",), ("demo",) if only_demo else ()
        self.va = read("va", demo or own_va, data.read_va)
        self.polarity = self._divisible(read("polarity", polarity, data.read_polarity), settings)
        emotion = tuple(dict.fromkeys((*demo, *settings.emotion)))
        self.emotion = read("emotion", emotion, read_names)
        self.geometry = read("geometry", demo or ("goemotions-six", "emolit12"), read_names)
        self.curve = read("geometry", va, data.read_va)
        self.detector = read("detector", va, data.read_va)
        self.semantics = read("semantics", ("stsb",), data.read_sts)
        self.triplets = read_feeling_triplets("test") if "space" in settings.tasks else None
        self.space_va = read("space", demo or own_va, data.read_va)
        single = [name for name in emotion if name not in ("goemotions-ekman", "goemotions-28")]
        self.space_emotion = self._retrievable(read("space", single, read_names))
        self.space_polarity = read("space", polarity, data.read_polarity)
        self.space_probe = read("space", va, data.read_va)

    def _divisible(self, corpora: Mapping[str, data.ClassCorpus], settings: Settings) -> dict[str, Any]:
        """Those with splits, or with enough texts of each class for nested cross-validation."""
        found, least = {}, fewest_of_a_class(PROTOCOLS[settings.protocol])
        for name, corpus in corpora.items():
            texts = np.bincount(corpus.labels, minlength=len(corpus.classes))
            if corpus.split is not None or texts.min() >= least:
                found[name] = corpus
                continue
            few = f"class {corpus.classes[texts.argmin()]} has {texts.min()} texts, cross-validation needs {least}"
            if settings.strict:
                raise ValueError(f"polarity/{name}: {few}. Without --strict it would be skipped.")
            self.skipped[f"polarity/{name}"] = few
        return found

    def _retrievable(self, corpora: Mapping[str, data.ClassCorpus]) -> dict[str, Any]:
        """Those with a training text and as many test texts of one class alone as there are classes."""
        found = {}
        for name, corpus in corpora.items():
            train, _, test = split_rows(corpus)
            texts = [int((corpus.labels[rows].sum(1) == 1).sum()) if corpus.multi_label else len(rows)
                     for rows in (train, test)]  # fmt: skip
            if texts[0] and texts[1] >= len(corpus.classes):
                found[name] = corpus
            else:
                few = f"{texts[1]} test texts have one class alone, fewer than the {len(corpus.classes)} classes"
                self.skipped[f"space/{name}"] = few if texts[0] else "no training text has one class alone"
        return found

    def emotion_files(self, names: Sequence[str]) -> dict[str, data.ClassCorpus]:
        """Those of the names that are files -> what was read of them."""
        read = {**self.space_emotion, **self.emotion}
        return {name: read[Path(name).stem] for name in names if Path(name).suffix and Path(name).stem in read}
