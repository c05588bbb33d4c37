"""Data sets of the Hub."""

import datasets
from datasets import Dataset

from carl_hf.data.bad_rows import usual_split
from carl_hf.utils.log_once import log_once
from carl_hf.utils.suggestions import first_line, listed


def load_hub_dataset(name: str) -> datasets.DatasetDict:
    """The splits of a Hub data set, "owner/name" or "owner/name:configuration", on disk and mapped into memory; a
    ValueError if it cannot be loaded."""
    try:
        return datasets.load_dataset(*name.split(":", 1))
    except Exception as error:  # whatever the Hub client raises
        reason, hint = first_line(error), ""
        if "available configs" in str(error):
            reason = " ".join(str(error).split("\n")[:2])
            hint = f"Name one of its configurations: {name}:CONFIGURATION. "
        raise ValueError(
            f"Cannot load the Hub dataset {name!r} ({type(error).__name__}: {reason}), and there is no such file or "
            f"folder. {hint}With a local copy, give its file instead."
        ) from error


def usual_splits(name: str, parts: datasets.DatasetDict) -> dict[str, Dataset]:
    """Those splits of a Hub data set that are for training, validation or test by their names; one alone that has
    another name is for training."""
    usual = {split: part for split, part in parts.items() if usual_split(split) is not None}
    if not usual and len(parts) == 1:
        return {"train": next(iter(parts.values()))}
    others = listed([split for split in parts if split not in usual])
    if not usual:
        raise ValueError(f"{name} has the splits {others}: none is called train, validation (or dev) or test.")
    if others:
        log_once(f"{name}: of its splits, {others} are left out: none is called train, validation (or dev) or test.")
    return usual
