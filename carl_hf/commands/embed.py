"""The command line of examples/embed.py."""

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from carl_hf.utils.fields import setting

_RESERVED = ("row", "text", "embedding")  # the columns that a shard always has
_SETTINGS = ("max_length", "bf16", "dtype", "shard_rows", "text_column", "keep_columns")


@dataclass
class EmbedArguments:
    model: str = setting(
        "minilm-l6",
        "Hub id, folder (encoder, CARL checkpoint, sentence-transformers model), 'minilm-l6', 'mpnet-base'. NAME@cls, "
        "NAME@mean and NAME@pooler choose a pooling (without: the one that the model's folder states, else cls).",
    )
    texts: list[str] = setting([], "Files (.csv, .tsv, .jsonl, .parquet), folders, patterns, or Hub data sets.")
    text_column: str = setting("text", "Name of the column with the texts.")
    keep_columns: list[str] = setting([], "Columns to copy into the shards.")
    output_dir: str = setting("runs/embedded", "Folder for the shards.")
    overwrite_output_dir: bool = setting(False, "Replace the shards in the folder.")
    shard_rows: int = setting(50_000, "Rows of a shard; a killed process loses at most one shard.")
    dtype: Literal["float32", "float16"] = setting("float32", "Number format of the stored embeddings.")
    bf16: bool = setting(False, "Compute in bfloat16 (autocast).")
    max_length: int = setting(128, "Tokens to keep of a text.")
    batch_size: int = setting(64, "Texts of 32 tokens in a batch; of shorter ones there are more.")
    num_threads: int | None = setting(None, "CPU threads (default: all cores).")

    def __post_init__(self):
        if not self.texts:
            raise ValueError("--texts is missing: name a file, a folder, a pattern or a Hub data set.")
        for name in ("shard_rows", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be positive, got {getattr(self, name)}.")
        if len({*self.keep_columns}) < len(self.keep_columns):
            raise ValueError("--keep_columns names a column twice.")
        taken = [column for column in self.keep_columns if column in (*_RESERVED, self.text_column)]
        if taken:
            raise ValueError(f"--keep_columns {taken[0]}: the shards have such a column anyway; leave it out.")

    def shard_settings(self) -> dict[str, Any]:
        """The arguments that the content of a shard depends on."""
        return {name: getattr(self, name) for name in _SETTINGS}


@contextlib.contextmanager
def remedy_for_a_full_disk(folder: str) -> Iterator[None]:
    """Turns errors of the file system into a ValueError that says how to continue."""
    try:
        yield
    except OSError as error:
        remedy = "make room" if error.errno == errno.ENOSPC else "see to that"
        raise ValueError(
            f"--output_dir {folder} cannot be written ({error.strerror}). The finished shards are complete: {remedy} "
            "and start the same command again."
        ) from error
