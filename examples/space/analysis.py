"""What the demo page shows of a text, without the page: models, numbers, neighbours, CSV files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from carl_hf import AffectPipeline, load_va_dataset
from carl_hf.commands.score import ScoreArguments, score
from carl_hf.commands.shards import Survey
from carl_hf.data.bad_rows import MAX_CHARACTERS, refuse
from carl_hf.data.files import EMPTY, column_names, read_pieces
from carl_hf.encoders.embedding import embed_texts
from carl_hf.encoders.loading import is_va_regressor, load_config
from carl_hf.explain import Attribution, Explainer, Method, Target

MOST_SENTENCES = 20
MOST_CHARACTERS = 20_000
MOST_ROWS = 2000
_MOST_COLUMNS = 100
_MOST_BYTES = 5_000_000  # of a file
_NEIGHBOURS = 3


@dataclass(frozen=True)
class Neighbour:
    """A text of the demo corpus: its cosine with the text that was asked for, and its label."""

    text: str
    label: str
    cosine: float


@dataclass(frozen=True)
class Reading:
    """What the models say of a text: valence and arousal in [-1, 1], probabilities of emotions (greatest first), of a
    classifier that judges each by itself those over their thresholds ("joy, surprise", "" for none; else None), how
    many of its tokens no model knows, the nearest texts of the demo corpus, and the words that count; these two by its
    first tokens alone, if it is longer than the encoder reads (`attribution.truncated`)."""

    text: str
    valence: float
    arousal: float
    emotions: dict[str, float]
    several: str | None
    unknown: int
    neighbours: list[Neighbour]
    attribution: Attribution


class Models:
    """An encoder, a valence-arousal regressor and an emotion classifier, each a folder or a Hub id.

    Texts are compared with the test split of the demo corpus, which training reads only if it is told to.

    Raises:
        ValueError: if one of them cannot be loaded, or is of another kind.
    """

    def __init__(self, encoder: str, va: str, emotion: str):
        config = load_config(encoder)
        if any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
            kind = "valence-arousal regressor" if is_va_regressor(config) else "classifier"
            raise ValueError(f"--encoder {encoder} is a {kind}, whose vectors are not compared: name encoder/.")
        self.affect = AffectPipeline(va, emotion, probabilities=True)
        self.va, self.encoder = Explainer.from_pretrained(va), Explainer.from_pretrained(encoder)
        corpus = load_va_dataset("demo", split="test")
        self._texts, self._labels = list(corpus["text"]), list(corpus["label"])
        self._vectors_NH = self._embed(self._texts)

    def neighbours(self, texts: Sequence[str]) -> list[list[Neighbour]]:
        """The reference texts with the greatest cosines."""
        best = (self._embed(texts) @ self._vectors_NH.T).topk(_NEIGHBOURS)
        return [
            [Neighbour(self._texts[i], self._labels[i], c) for c, i in zip(cosines, rows, strict=True)]
            for cosines, rows in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def read(self, texts: Sequence[str], target: Target, method: Method) -> list[Reading]:
        """Everything that the page shows of these texts; a ValueError for one without a token."""
        table, classes = self.affect(texts), self.affect.classes
        for text in (text for text, valence in zip(texts, table["valence"], strict=True) if valence != valence):
            raise ValueError(f"Nothing in {text[:20]!r} is read by the models: write it in words.")
        said = table["emotions"] if "emotions" in table else [None] * len(table)
        places = 2 * table[["valence", "arousal"]] - 1
        shares = table[[f"emotion_{name}" for name in classes]].set_axis(classes, axis=1)
        return [
            Reading(
                text, *place, dict(sorted(emotions.items(), key=lambda pair: -pair[1])), several, unknown, neighbours,
                self.va.explain(text, target, method),
            )
            for text, place, emotions, several, unknown, neighbours in zip(
                texts, places.to_numpy().tolist(), shares.to_dict("records"), said, table["tokens_unknown"],
                self.neighbours(texts), strict=True,
            )
        ]  # fmt: skip

    def score_file(self, path: Path, finished: Path) -> Survey:
        """Writes a copy of a CSV file with the answers in further columns, which begin with `predicted_` where the
        file has such columns already, once more if it has those too.

        Raises:
            ValueError: for a file that is empty, no CSV in UTF-8, too large, or without a column `text` or any text
                in it.
        """
        try:
            names, prefix = {*_check_file(path)}, ""
            while any(f"{prefix}{name}" in names for name in self.affect.schema().names):
                prefix += "predicted_"
            args = ScoreArguments(
                [str(path)], output=str(finished), overwrite=True, prefix=prefix, num_threads=torch.get_num_threads()
            )
            return score(args, self.affect, show_progress=False)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "The file")) from None

    def _embed(self, texts: Sequence[str]) -> torch.Tensor:
        return embed_texts(
            self.encoder.model, texts, self.encoder.tokenizer, pooling=self.encoder.pooling,
            max_length=self.encoder.max_length, normalize=True,
        )  # fmt: skip


def sentences_of(text: str) -> list[str]:
    """The lines of a text that are not blank.

    Raises:
        ValueError: if there is none, or too many, or the text is too long.
    """
    if isinstance(text, str) and len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"The text has {len(text):,} characters, and this page reads {MOST_CHARACTERS:,}: shorten it."
        )
    if not isinstance(text, str) or not text.strip():
        raise ValueError("There is nothing to read yet: type a sentence, or choose an example.")
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if len(found) > MOST_SENTENCES:
        raise ValueError(
            f"{len(found)} sentences are too many for one picture: give at most {MOST_SENTENCES}, or a CSV file."
        )
    return found


def _check_file(path: Path) -> list[str]:
    """The columns of a CSV file that keeps the page's limits."""
    if path.suffix.lower() != ".csv":
        raise ValueError(f"A {path.suffix or 'nameless'} file is not read here: save the table as CSV in UTF-8.")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"The file is larger than {_MOST_BYTES // 10**6} MB: split it.")
    names, rows, filled = column_names(path), 0, False
    if len(names) > _MOST_COLUMNS:
        raise ValueError(f"The file has {len(names):,} columns, and this page reads {_MOST_COLUMNS}.")
    if "text" not in names:
        given = ", ".join(map(repr, names))[:200]
        raise ValueError(
            f"The file has no column named 'text', in small letters and without spaces (its columns: {given}): rename "
            "the one with the texts."
        )
    remedy = "correct it, with quotation marks around a cell that holds the separator or a line break"
    for piece in read_pieces(path):
        refuse(path, [row for row in piece.bad if row.reason != EMPTY[0]], remedy)
        rows += len(piece.frame) + len(piece.bad)
        length = piece.frame["text"].str.len()
        if length.max() > MAX_CHARACTERS:
            raise ValueError(
                f"The text in row {length.idxmax()} has more than {MAX_CHARACTERS:,} characters: shorten it."
            )
        filled = filled or piece.frame["text"].str.strip().ne("").any()
    if rows > MOST_ROWS:
        raise ValueError(f"The file has {rows:,} rows, and this page reads {MOST_ROWS:,}: split it.")
    if not filled:
        raise ValueError("The column text is empty: give at least one row with a text.")
    return names
