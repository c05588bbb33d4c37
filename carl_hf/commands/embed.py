"""The command line of examples/embed.py."""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import torch

from carl_hf.commands.sharded import Answer, ShardArguments
from carl_hf.encoders.stated import reading_length
from carl_hf.evaluation.encoder import TextEncoder, shared_encoder, split_pooling
from carl_hf.utils.fields import setting
from carl_hf.utils.suggestions import first_line

_RESERVED = ("row", "text", "embedding")  # the columns that a shard always has
_SETTINGS = ("max_length", "bf16", "dtype", "shard_rows", "text_column", "keep_columns")


@dataclass
class EmbedArguments(ShardArguments):
    model: str = setting(
        "minilm-l6",
        "Hub id, folder (encoder, CARL checkpoint, sentence-transformers model), 'minilm-l6', 'mpnet-base'. NAME@cls, "
        "NAME@mean and NAME@pooler choose a pooling (without: the one that the model's folder states, else cls).",
    )
    output_dir: str = setting("runs/embedded", "Folder for the shards.")
    overwrite_output_dir: bool = setting(False, "Replace the shards in the folder.")
    keep_columns: list[str] = setting([], "Columns to copy into the shards.")
    shard_rows: int = setting(50_000, "Rows of a shard; a killed process loses at most one shard.")
    dtype: Literal["float32", "float16"] = setting("float32", "Number format of the stored embeddings.")
    bf16: bool = setting(False, "Compute in bfloat16 (autocast).")
    max_length: int | None = setting(None, "Tokens to keep of a text (default: those of an export, else 128).")

    def __post_init__(self):
        super().__post_init__()
        if len({*self.keep_columns}) < len(self.keep_columns):
            raise ValueError("--keep_columns names a column twice.")
        taken = [column for column in self.keep_columns if column in (*_RESERVED, self.text_column)]
        if taken:
            raise ValueError(f"--keep_columns {taken[0]}: the shards have such a column anyway; leave it out.")

    def shard_settings(self) -> dict[str, Any]:
        """The arguments that the content of a shard depends on."""
        length = self.max_length or reading_length(split_pooling(self.model)[0])
        return {name: getattr(self, name) for name in _SETTINGS} | {"max_length": length}

    def load(self, device: torch.device) -> TextEncoder:
        """The encoder that `--model` names."""
        return shared_encoder(*split_pooling(self.model), self.max_length, self.batch_size, device, self.bf16)

    def answer_on(self, device: torch.device, schema: pa.Schema) -> Answer:
        """Text, embedding (a fixed-size list) and the columns to keep, typed as `schema`, of rows with these."""
        encoder = self.load(device)

        def answer(rows: pa.Table) -> pa.Table:
            texts = rows[self.text_column].cast(pa.string())
            vectors = encoder.embed(texts.to_pylist()).astype(self.dtype)
            embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
            try:
                kept = rows.select(self.keep_columns).cast(schema)
            except pa.ArrowException as error:
                raise ValueError(
                    f"A column of --keep_columns {' '.join(self.keep_columns)} cannot be written as one type for all "
                    f"inputs ({first_line(error)}): leave it out, or give it one type."
                ) from error
            return pa.table(
                {"text": texts, "embedding": embedding, **dict(zip(schema.names, kept.columns, strict=True))}
            )

        return answer
