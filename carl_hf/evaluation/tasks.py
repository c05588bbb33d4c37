"""What is to be measured, and the corpora that this needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from carl_hf.data import labelled as data
from carl_hf.data.corpora import CORPORA

TASKS = ("va", "polarity", "emotion", "geometry", "semantics", "detector")


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Args:
        tasks: any of [`TASKS`]. data_dir: folder with local copies of the corpora; without one only the bundled demo
            corpus is measured. seed: of folds, splits, draws and bootstraps.
        va: corpora of valence and arousal. polarity: its corpora; IMDB has by far the most tokens, so that it is asked
            for by name. emotion: names or files (`text`, `label`, maybe `split`).
        protocol: SentEval's `"fast"` or `"test"` protocol for polarity. shots: sizes of few-shot probes.
        strict: a corpus that is not there is an error.
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
        if any(count < 1 for count in self.shots):
            raise ValueError(f"Few-shot probes need at least 1 text a class, got {min(self.shots)}.")


class Corpora:
    """Everything that the settings name, read at once: wrong files are found before any work, and several encoders
    are measured on one copy.

    `va`, `emotion`, `polarity`: name -> corpus. `geometry`: name -> classified corpus. `curve`: name and corpus of the
    valence curve, or None. `sts`: text pairs with scores, or None. `skipped`: "task/corpus" -> why it is not there.

    Raises:
        ValueError: for a file with missing columns or wrong values; for a corpus that is not there, if the settings
            are strict.
    """

    def __init__(self, settings: Settings):
        self._strict = settings.strict
        self._read: dict[tuple[Any, ...], Any] = {}
        self.skipped: dict[str, str] = {}
        tasks, folder = settings.tasks, settings.data_dir

        def read(task: str, names: Sequence[str], reader: Callable[..., Any]) -> dict[str, Any]:
            found = {}
            for name in names:
                corpus = self._attempt(f"{task}/{name}", reader, name, folder)
                if corpus is not None:
                    found[_key(name, found)] = corpus
            return found

        own = folder is None
        self.va = read("va", ("demo",) if own else settings.va, data.read_va) if "va" in tasks else {}
        self.polarity = read("polarity", settings.polarity, data.read_polarity) if "polarity" in tasks else {}
        emotion = (*(("demo",) if own else ()), *settings.emotion)
        self.emotion = read("emotion", emotion, data.read_emotion) if "emotion" in tasks else {}
        self.geometry: dict[str, data.ClassCorpus] = {}
        self.curve: dict[str, data.VaCorpus] = {}
        if "geometry" in tasks:
            self.geometry = read("geometry", ("demo",) if own else ("goemotions-six", "emolit12"), data.read_emotion)
            self.curve = read("geometry", ("demo" if own else "emobank",), data.read_va)
        self.detector = read("detector", ("demo" if own else "emobank",), data.read_va) if "detector" in tasks else {}
        self.sts = self._attempt("semantics/stsb", data.read_sts, folder) if "semantics" in tasks else None

    def _attempt(self, key: str, reader: Callable[..., Any], *arguments: Any) -> Any:
        """The reader's result, or None if the corpus is missing."""
        known = (reader, *arguments)
        if known in self._read:
            return self._read[known]
        try:
            self._read[known] = reader(*arguments)
        except data.MissingCorpus as error:
            if self._strict:
                raise ValueError(f"{key}: {error} Without --strict it would be skipped.") from error
            self.skipped[key] = str(error)
            return None
        return self._read[known]


def _key(name: str, others: Mapping[str, Any]) -> str:
    """Name in the results: a file's without folder and ending."""
    key = Path(name).stem if Path(name).suffix else name
    if key in others:
        raise ValueError(f"Two corpora are called {key!r}: rename the file {name}.")
    return key
