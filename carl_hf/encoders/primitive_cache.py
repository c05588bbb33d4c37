"""oneDNN's cache of compiled matrix products, kept small where every batch has a shape of its own."""

import os

CAPACITY = 128
"""Products that are kept: more than a step makes between two uses of one. oneDNN's own 1,024 take about 100 MiB."""


def bound_primitive_cache() -> None:
    """Lets oneDNN, with which torch computes on CPUs, keep [`CAPACITY`] compiled products in place of 1,024, unless
    ONEDNN_PRIMITIVE_CACHE_CAPACITY says otherwise.

    It compiles one for each shape. Packed batches hardly ever have the same number of tokens, so that old ones are of
    no use and only fill the memory of a long run. oneDNN reads the variable at its first product: later calls are too
    late, and change nothing.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(CAPACITY))
