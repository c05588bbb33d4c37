"""Warnings that are the same however often what they are of is read."""

import functools
import logging

logger = logging.getLogger(__name__)


@functools.lru_cache(maxsize=10_000)
def log_once(message: str) -> None:
    """Logs a warning the first time."""
    logger.warning("%s", message)
