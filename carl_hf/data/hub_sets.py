"""Data sets of the Hub."""

import datasets

from carl_hf.utils.suggestions import first_line


def load_hub_dataset(name: str) -> datasets.DatasetDict:
    """The splits of a Hub data set, on disk and mapped into memory; a ValueError if it cannot be loaded."""
    try:
        return datasets.load_dataset(name)
    except Exception as error:  # whatever the Hub client raises
        raise ValueError(
            f"Cannot load the Hub dataset {name!r} ({type(error).__name__}: {first_line(error)}), and there is no "
            "such file or folder. With a local copy, give its file instead."
        ) from error
