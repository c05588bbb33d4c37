"""The tables of recipe.py: development metrics of all recipes, and test metrics of the reported ones, which the chosen
one is compared with by a paired bootstrap."""

import json
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from run_tables import mean_and_std, number_text, slug
from screening import flat, lenth_error, lenth_margin, main_effects

from carl_hf.evaluation.statistics import interval, pearson, resample_rows
from carl_hf.report.tables import table
from carl_hf.utils.atomic_files import write_json

if TYPE_CHECKING:
    from recipe import Study

Records = dict[str, dict[int, dict[str, Any]]]
"""Recipe -> seed -> the record of a run."""

TRANSFER = ("emotion/goemotions-six", "polarity/sst5", "polarity/cr", "polarity/mr")
DEV_METRICS = {"valence": 3, "arousal": 3, "goemotions-six": 1, "sst5": 1, "score": 1}
"""Name in a record -> digits to print."""
_VA = "va/emobank"


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


def render(study: "Study", records: Records, folder: Path, truth: np.ndarray | None) -> str:
    """The tables of the records.

    Args:
        records: from [`read_records`].
        folder: holds their test items, and gains.json.
        truth: (N, 2) valence and arousal of EmoBank's test texts, for the bootstrap; without it the gains in
            gains.json are shown.
    """
    sections = [
        "# Recipes on the same encoder\n\nRendered by benchmarks/studies/recipe.py from the records beside it; "
        f"{study.encoder}, seeds {', '.join(map(str, study.seeds))} unless a row has fewer. Mean ± standard deviation "
        f"over seeds. Baseline: {study.baseline}. Chosen: {study.chosen or 'nothing yet'}."
    ]
    if records:
        sections.append(f"## Development splits\n\n{_dev_table(study, records)}")
    seeds = _shared_seeds(study, records)
    if seeds:
        sections.append(f"## Screening\n\n{_screening_table(study, records, seeds)}")
    tested = _tested(study, records)
    if tested:
        sections.append(f"## Test splits\n\n{_test_table(tested)}")
        gains = _gains(study, tested, folder, truth)
        if gains is not None:
            sections.append(gains)
    return "\n\n".join(sections) + "\n"


def _tested(study: "Study", records: Records) -> Records:
    """The runs of the reported recipes that were measured on test splits."""
    tested = {
        name: {seed: run for seed, run in runs.items() if "test" in run}
        for name, runs in records.items()
        if name in study.reported
    }
    return {name: runs for name, runs in tested.items() if runs}


def tradeoff(study: "Study", records: Records) -> dict[str, list[np.ndarray]]:
    """Tested recipe -> for every seed, (3,): Spearman's rho on the STS benchmark, mean r of valence and arousal, mean
    accuracy of the transfer tasks (percent). Of untrained encoders those that are joined alone."""
    return {
        name: [_point(run["test"]) for run in runs.values()]
        for name, runs in _tested(study, records).items()
        if name in study.joined or study.recipes[name].training is not None
    }


def _point(metrics: dict[str, Any]) -> np.ndarray:
    va = metrics["va"]["emobank"]
    return np.array(
        [
            metrics["semantics"]["stsb"]["spearman"],
            (va["valence"]["pearson"] + va["arousal"]["pearson"]) / 2,
            np.mean([_accuracy(metrics, key) for key in TRANSFER]),
        ]
    )


def _dev_table(study: "Study", records: Records) -> str:
    rows = []
    base = {seed: run["dev"]["score"] for seed, run in records.get(study.baseline, {}).items()}
    for name, runs in records.items():
        dev = [run["dev"] for run in runs.values()]
        shared = [run["dev"]["score"] - base[seed] for seed, run in runs.items() if seed in base]
        detector = [run["detector_auc"] for run in runs.values() if run.get("detector_auc")]
        rows.append(
            [name, str(len(runs)), *(mean_and_std([d[key] for d in dev], 3) for key in ("valence", "arousal")),
             *(mean_and_std([d[key] for d in dev], 1) for key in ("goemotions-six", "sst5", "score")),
             mean_and_std(shared, 1, signed=True) if name != study.baseline else "",
             *(mean_and_std([d[at] for d in detector], 3) for at in ("radius", "no radius")),
             str(next(iter(runs.values()))["steps"]), " and ".join(sorted({_precision(run) for run in runs.values()})),
             mean_and_std([run["training_seconds"] for run in runs.values() if "training_seconds" in run], 0)]
        )  # fmt: skip
    header = ["recipe", "seeds", "V r", "A r", "six", "SST5", "score", "over baseline", "detector AUC",
              "AUC, radius 0", "updates", "precision", "seconds"]  # fmt: skip
    return table(header, rows)


def _precision(run: dict[str, Any]) -> str:
    return "bfloat16" if run.get("bf16") else "float32"


def _shared_seeds(study: "Study", records: Records) -> list[int]:
    """Seeds that all runs of the screening have; none where there is no screening."""
    return sorted(
        set.intersection(*(set(records.get(name, {})) for name in study.screening)) if study.screening else ()
    )


def _screening_table(study: "Study", records: Records, seeds: Sequence[int]) -> str:
    metrics = [
        {key: float(np.mean([records[name][seed]["dev"][key] for seed in seeds])) for key in DEV_METRICS}
        for name in study.screening
    ]
    effects = main_effects([flat(study.settings(name)["recipe"]) for name in study.screening], metrics)
    effects.sort(key=lambda effect: -abs(effect.gains["score"]))
    rows = [
        [e.setting, e.low, e.high, *_gains_text(e.gains)]
        for e in effects
    ]  # fmt: skip
    errors = {key: lenth_error([e.gains[key] for e in effects]) for key in DEV_METRICS}
    for title, factor in (
        ("standard error of each (Lenth)", 1.0),
        ("margin of each, 95 %", lenth_margin(len(effects))),
    ):
        limits = [number_text(factor * errors[key], digits) for key, digits in DEV_METRICS.items()]
        rows.append([title, "", "", *limits])
    return (
        f"Main effects over {len(metrics)} runs, {study.screening[0]} among them, seeds {', '.join(map(str, seeds))}: "
        "a metric at the second value minus at the first, mean over all other settings. An effect within its margin "
        "is not significant.\n\n" + table(["setting", "from", "to", "V r", "A r", "six", "SST5", "score"], rows)
    )


def _gains_text(gains: dict[str, float]) -> list[str]:
    return [number_text(gains[key], digits, signed=True) for key, digits in DEV_METRICS.items()]


def _test_table(tested: Records) -> str:
    rows = []
    for name, runs in tested.items():
        metrics = [run["test"] for run in runs.values()]
        va = [f["va"]["emobank"] for f in metrics]
        accuracies = [[_accuracy(f, key) for f in metrics] for key in TRANSFER]
        rows.append(
            [name, str(len(runs)), *(mean_and_std([v[d]["pearson"] for v in va], 3) for d in ("valence", "arousal")),
             *(mean_and_std(values, 1) for values in accuracies),
             mean_and_std(np.mean(accuracies, axis=0).tolist(), 1),
             mean_and_std([f["semantics"]["stsb"]["spearman"] for f in metrics], 3)]
        )  # fmt: skip
    return table(["recipe", "seeds", "V r", "A r", "six", "SST5", "CR", "MR", "mean of the four", "STS rho"], rows)


def _accuracy(metrics: dict[str, Any], key: str) -> float:
    task, corpus = key.split("/")
    return metrics[task][corpus]["accuracy"]


def _gains(study: "Study", tested: Records, folder: Path, truth: np.ndarray | None) -> str | None:
    """The chosen recipe over each other one, by the paired bootstrap over test items of the mean over shared seeds."""
    path = folder / "gains.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    gains = {}
    for name, runs in tested.items():
        if name == study.chosen or study.chosen not in tested:
            continue
        untrained = study.recipes[name].training is None  # one run for all seeds
        shared = sorted(tested[study.chosen] if untrained else set(runs) & set(tested[study.chosen]))
        if not shared:
            continue
        pairs = [
            (_items(folder, name, min(runs) if untrained else seed), _items(folder, study.chosen, seed))
            for seed in shared
        ]
        if truth is not None and all(one and two for one, two in pairs):
            gains[name] = {"chosen": study.chosen, "seeds": shared, **paired_gains(pairs, truth)}
        elif known.get(name, {}).get("chosen") == study.chosen and known[name]["seeds"] == shared:
            gains[name] = known[name]
    if not gains:
        return None
    write_json(path, gains)
    rows = [
        [name, str(len(gain["seeds"])), *(_with_interval(gain[key], 3) for key in ("valence", "arousal")),
         _with_interval(gain["transfer"], 1)]
        for name, gain in gains.items()
    ]  # fmt: skip
    return (
        f"{study.chosen} over each of the others, mean over shared seeds, with 95 % intervals of the paired bootstrap "
        "over test items:\n\n" + table(["over", "seeds", "V r", "A r", "mean of the four (points)"], rows)
    )


def items_of(found: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """What the bootstrap needs of an encoder's test items ("task/corpus" -> predictions and references): predicted
    valence and arousal, and for each transfer task which items were right. No label can be read from it."""
    hits = {task: np.asarray(found[task]["predictions"]) == np.asarray(found[task]["references"]) for task in TRANSFER}
    return {_VA: np.asarray(found[_VA]["predictions"], dtype=np.float32)} | hits


def items_path(folder: Path, file: str) -> Path:
    return folder / "items" / f"{file}.npz"


def _items(folder: Path, name: str, seed: int) -> dict[str, np.ndarray] | None:
    """The test items of a run; None, and a warning, where they cannot be read."""
    path = items_path(folder, f"{slug(name)}-{seed}")
    try:
        with np.load(path) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s, the test items of %r, cannot be read: its gains are not made anew. %s", path, name, error)
        return None


def paired_gains(
    pairs: Sequence[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]], truth: np.ndarray
) -> dict[str, Any]:
    """What the second of each pair has over the first.

    Args:
        pairs: for every seed, the test items of two encoders, as [`items_of`] gives them.
        truth: (N, 2) valence and arousal of EmoBank's test texts.

    Returns:
        {"valence", "arousal": differences of r on EmoBank; "transfer": of the mean accuracy of the four transfer
        tasks, in points}: each {"gain", "interval"}, of the mean over seeds; test items are resampled, each task's by
        themselves, the same for all encoders.
    """
    result = {}
    rows = resample_rows(len(truth), seed=42)
    everything = np.arange(len(truth))
    for number, dimension in enumerate(("valence", "arousal")):

        def gain(rows: np.ndarray, number: int = number) -> np.ndarray:
            of_pairs = [
                pearson(two[_VA][rows, number], truth[rows, number])
                - pearson(one[_VA][rows, number], truth[rows, number])
                for one, two in pairs
            ]
            return np.mean(of_pairs, axis=0)

        result[dimension] = {"gain": float(gain(everything)), "interval": interval(gain(rows))}
    points, resampled = [], []
    for number, task in enumerate(TRANSFER):
        differences = 100 * np.mean([two[task].astype(float) - one[task] for one, two in pairs], axis=0)
        points.append(differences.mean())
        resampled.append(differences[resample_rows(len(differences), seed=number)].mean(1))
    result["transfer"] = {"gain": float(np.mean(points)), "interval": interval(np.mean(resampled, axis=0))}
    return result


def _with_interval(gain: dict[str, Any], digits: int) -> str:
    low, high = gain["interval"]
    return f"{number_text(gain['gain'], digits, signed=True)} [{number_text(low, digits, signed=True)}, " + (
        f"{number_text(high, digits, signed=True)}]"
    )
