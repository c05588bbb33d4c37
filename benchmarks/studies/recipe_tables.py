"""The tables of recipe.py: the development score of all recipes, and test metrics of the reported ones, which the
chosen one is compared with by a paired bootstrap."""

import json
import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from development import SCORED
from run_tables import mean_and_std, number_text, slug

from carl_hf.evaluation.statistics import interval, resample_rows
from carl_hf.report.tables import MISSING, table

if TYPE_CHECKING:
    from recipe import Study

Records = dict[str, dict[int, dict[str, Any]]]
"""Recipe -> seed -> the record of a run."""


def _path(*keys: str) -> Callable[[dict[str, Any]], float]:
    def read(metrics: dict[str, Any]) -> float:
        for key in keys:
            metrics = metrics[key]
        return metrics

    return read


TESTED: dict[str, tuple[Callable[[dict[str, Any]], float], int]] = {
    "feeling over topic": (_path("space", "feeling-over-topic", "accuracy"), 1),
    "nearness": (_path("space", "emobank", "nearness", "both"), 3),
    "k-NN V": (_path("space", "emobank", "knn", "valence", "pearson"), 3),
    "k-NN A": (_path("space", "emobank", "knn", "arousal", "pearson"), 3),
    "probe V": (_path("va", "emobank", "valence", "pearson"), 3),
    "probe A": (_path("va", "emobank", "arousal", "pearson"), 3),
    "six": (_path("emotion", "goemotions-six", "accuracy"), 1),
    "six p@10": (_path("space", "goemotions-six", "precision_at_10"), 3),
    "SST5": (_path("polarity", "sst5", "accuracy"), 1),
    "CR": (_path("polarity", "cr", "accuracy"), 1),
    "MR": (_path("polarity", "mr", "accuracy"), 1),
    "STS": (_path("semantics", "stsb", "spearman"), 3),
    "emoji pairs": (_path("space", "emoji-pairs", "accuracy"), 1),
}
"""Column of the table of test parts -> where its figure stands in results.json, and digits to print."""

PAIRED = {
    "feeling over topic": "space/feeling-over-topic", "six p@10": "space/goemotions-six", "SST5": "polarity/sst5",
    "CR": "polarity/cr", "MR": "polarity/mr", "six": "emotion/goemotions-six",
}  # fmt: skip
"""Column -> the items of the evaluation whose mean it is."""


def read_record(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A run's record.

    Raises:
        ValueError: if it was made with other settings than these.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    changed = sorted(key for key in settings if record["settings"].get(key) != settings[key])
    if changed:
        raise ValueError(
            f"{path} was run with other settings ({', '.join(changed)}) than {record['name']!r} has now: remove it, "
            "or rename the recipe."
        )
    return record


def read_records(study: "Study", folder: Path) -> Records:
    """The records in a folder of the study's recipes and seeds."""
    found: Records = {}
    for name in study.recipes:
        for seed in study.seeds:
            path = folder / f"{slug(name)}-{seed}.json"
            if path.is_file():
                found.setdefault(name, {})[seed] = read_record(path, study.settings(name))
    return found


def render(study: "Study", records: Records, folder: Path) -> str:
    """The tables of the records; `folder` holds their test items."""
    sections = [
        "# Recipes\n\nRendered by benchmarks/studies/recipe.py from the records beside it; seeds "
        f"{', '.join(map(str, study.seeds))} unless a row has fewer. Mean ± standard deviation over seeds. Baseline: "
        f"{study.baseline}. Chosen: {study.chosen or 'nothing yet'}."
    ]
    if records:
        sections.append(f"## Development parts\n\n{_dev_table(study, records)}")
    tested = {name: {s: run for s, run in runs.items() if "test" in run} for name, runs in records.items()}
    tested = {name: runs for name, runs in tested.items() if runs}
    if tested:
        sections.append(f"## Test parts\n\n{_test_table(tested)}")
    if study.chosen in tested and len(tested) > 1:
        sections.append(_gains_table(study, tested, folder))
    return "\n\n".join(sections) + "\n"


def _dev_table(study: "Study", records: Records) -> str:
    rows = []
    for name, runs in records.items():
        dev = [run["dev"] for run in runs.values()]
        detector = [run["detector_auc"] for run in runs.values() if run.get("detector_auc")]
        seconds = [run["training_seconds"] for run in runs.values() if "training_seconds" in run]
        rows.append(
            [name, str(len(runs)), *(mean_and_std([d[key] for d in dev], 3) for key in SCORED),
             mean_and_std([d["score"] for d in dev], 1),
             mean_and_std([d["radius"] for d in detector], 3), str(next(iter(runs.values()))["steps"]),
             _precision(runs, "bf16"), mean_and_std(seconds, 0), _precision(runs, "dev_bf16")]
        )  # fmt: skip
    header = [
        "recipe", "seeds", *SCORED, "score", "detector AUC", "updates", "trained in", "seconds", "measured in",
    ]  # fmt: skip
    return table(header, rows)


def _precision(runs: dict[int, dict[str, Any]], key: str) -> str:
    """The number formats of these runs by this entry of their records; of none without it."""
    found = {"bfloat16" if run[key] else "float32" for run in runs.values() if key in run}
    return " and ".join(sorted(found)) or MISSING


def _test_table(tested: Records) -> str:
    rows = []
    for name, runs in tested.items():
        cells = [
            mean_and_std([float(read(run["test"])) for run in runs.values()], digits)
            for read, digits in TESTED.values()
        ]
        rows.append([name, str(len(runs)), *cells, _precision(runs, "test_bf16")])
    return table(["recipe", "seeds", *TESTED, "measured in"], rows)


def _gains_table(study: "Study", tested: Records, folder: Path) -> str:
    """The chosen recipe over each other one, by the paired bootstrap over test items of the mean over shared seeds."""
    rows = []
    for name, runs in tested.items():
        if name == study.chosen:
            continue
        untrained = study.recipes[name].training is None  # one run for all seeds
        shared = sorted(tested[study.chosen] if untrained else set(runs) & set(tested[study.chosen]))
        pairs = [
            (_items(folder, name, min(runs) if untrained else seed), _items(folder, study.chosen, seed))
            for seed in shared
        ]
        if pairs and all(one and two for one, two in pairs):
            rows.append([name, str(len(shared)), *(_with_interval(gain) for gain in paired_gains(pairs).values())])
    return (
        f"{study.chosen} over each of the others, in points, mean over shared seeds, with 95 % intervals of the "
        "paired bootstrap over test items:\n\n" + table(["over", "seeds", *PAIRED], rows)
    )


def items_of(found: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """What the bootstrap needs of an encoder's test items ("task/corpus" -> arrays): the share of each item that is
    right. No label can be read from it."""
    kept = {}
    for key in PAIRED.values():
        items = found[key]
        if key == "space/goemotions-six":
            kept[key] = np.asarray(items["precision_at_10"], dtype=np.float32)
        elif key.startswith("space/"):
            kept[key] = np.asarray(items["accuracy"], dtype=np.float32) / 100
        else:
            kept[key] = np.asarray(items["predictions"]) == np.asarray(items["references"])
    return kept


def items_path(folder: Path, file: str) -> Path:
    return folder / "items" / f"{file}.npz"


def _items(folder: Path, name: str, seed: int) -> dict[str, np.ndarray] | None:
    """The test items of a run; None, and a warning, where they cannot be read."""
    path = items_path(folder, f"{slug(name)}-{seed}")
    try:
        with np.load(path) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s, the test items of %r, cannot be read: its gains are left out. %s", path, name, error)
        return None


def paired_gains(
    pairs: Sequence[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]],
) -> dict[str, tuple[float, list[float]]]:
    """What the second of each pair has over the first.

    Args:
        pairs: for every seed, the test items of two encoders, as [`items_of`] gives them.

    Returns:
        column of [`PAIRED`] -> (gain in points, its interval), of the mean over seeds; test items are resampled,
        the same for all encoders.
    """
    result = {}
    for number, (column, key) in enumerate(PAIRED.items()):
        differences = 100 * np.mean([two[key].astype(float) - one[key] for one, two in pairs], axis=0)
        resampled = differences[resample_rows(len(differences), seed=number)].mean(1)
        result[column] = (float(differences.mean()), interval(resampled))
    return result


def _with_interval(gain: tuple[float, list[float]]) -> str:
    value, (low, high) = gain
    return " ".join(
        [number_text(value, 1, signed=True),
         f"[{number_text(low, 1, signed=True)}, {number_text(high, 1, signed=True)}]"]
    )  # fmt: skip
