"""What the demo page shows of a text, without the page: models, numbers, neighbours, CSV files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from carl_hf import load_va_dataset
from carl_hf.data.bad_rows import MAX_CHARACTERS, refuse
from carl_hf.data.files import Piece, column_names, read_pieces
from carl_hf.encoders import is_va_regressor, load_classifier, load_config, load_tokenizer
from carl_hf.encoders.embedding import classifier_outputs, embed_texts
from carl_hf.explain import Attribution, Explainer, Method, Target
from carl_hf.export.task_heads import class_probabilities

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
    """What the models say of a text: valence and arousal in [-1, 1], probabilities of emotions (greatest first), the
    nearest texts of the demo corpus, and the words that count."""

    text: str
    valence: float
    arousal: float
    emotions: dict[str, float]
    neighbours: list[Neighbour]
    attribution: Attribution


class Models:
    """An encoder, a valence-arousal regressor and an emotion classifier, each a folder or a Hub id.

    Texts are compared with the test split of the demo corpus, which no training reads.

    Raises:
        ValueError: if one of them cannot be loaded, or is of another kind.
    """

    def __init__(self, encoder: str, va: str, emotion: str):
        if not is_va_regressor(load_config(va)):
            raise ValueError(f"{va} is no valence-arousal regressor: name the folder va/ of an export.")
        config = load_config(emotion)
        if config.problem_type not in ("single_label_classification", "multi_label_classification"):
            raise ValueError(f"{emotion} is no emotion classifier: name the folder emotion/ of an export.")
        self.va, self.encoder = Explainer.from_pretrained(va), Explainer.from_pretrained(encoder)
        self._emotion_tokenizer = load_tokenizer(emotion)
        self._emotion = load_classifier(emotion)
        self._several = config.problem_type == "multi_label_classification"
        corpus = load_va_dataset("demo", split="test")
        self._texts, self._labels = list(corpus["text"]), list(corpus["label"])
        self._vectors_NH = self._embed(self._texts)

    def valence_arousal(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, 2) in [-1, 1]."""
        outputs = classifier_outputs(self.va.model, texts, self.va.tokenizer, max_length=self.va.max_length)
        return (2 * outputs[:, :2] - 1).clamp(-1, 1)  # without dominance

    def emotions(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Probabilities of each text's emotions, the greatest first."""
        logits = classifier_outputs(self._emotion, texts, self._emotion_tokenizer)
        rows = class_probabilities(logits.numpy().astype(float), multi_label=self._several)
        names = [self._emotion.config.id2label[i] for i in range(rows.shape[1])]
        return [dict(sorted(zip(names, row.tolist(), strict=True), key=lambda pair: -pair[1])) for row in rows]

    def neighbours(self, texts: Sequence[str]) -> list[list[Neighbour]]:
        """The reference texts with the greatest cosines."""
        best = (self._embed(texts) @ self._vectors_NH.T).topk(_NEIGHBOURS)
        return [
            [Neighbour(self._texts[i], self._labels[i], c) for c, i in zip(cosines, rows, strict=True)]
            for cosines, rows in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def read(self, texts: Sequence[str], target: Target, method: Method) -> list[Reading]:
        """Everything that the page shows of these texts."""
        answers = zip(
            texts, self.valence_arousal(texts).tolist(), self.emotions(texts), self.neighbours(texts), strict=True
        )
        return [
            Reading(text, *va, emotions, neighbours, self.va.explain(text, target, method))
            for text, va, emotions, neighbours in answers
        ]

    def with_answers(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A copy of the table with the columns valence, arousal and emotion; empty where the text is."""
        filled = frame["text"].str.strip() != ""
        texts = frame["text"][filled].tolist()
        answers = pd.DataFrame(self.valence_arousal(texts).numpy().round(4), columns=["valence", "arousal"])
        answers["emotion"] = [next(iter(emotions)) for emotions in self.emotions(texts)]
        answers.index = frame.index[filled]
        return frame.drop(columns=answers.columns, errors="ignore").join(answers)

    def _embed(self, texts: Sequence[str]) -> torch.Tensor:
        return embed_texts(
            self.encoder.model, texts, self.encoder.tokenizer, pooling=self.encoder.pooling,
            max_length=self.encoder.max_length, normalize=True,
        )  # fmt: skip


def sentences_of(text: str) -> list[str]:
    """The lines of a text that are not blank.

    Raises:
        ValueError: if there is none, or too many, or one without any letter, or the text is too long.
    """
    if isinstance(text, str) and len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"The text has {len(text):,} characters, and this page reads {MOST_CHARACTERS:,}: shorten it."
        )
    if not isinstance(text, str) or not text.strip():
        raise ValueError("There is nothing to read yet: type a sentence, or choose an example.")
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines, start=1):
        if line and not any(letter.isalpha() for letter in line):
            raise ValueError(f"Line {number} holds no letter ({line[:20]}): write a sentence in words.")
    found = [line for line in lines if line]
    if len(found) > MOST_SENTENCES:
        raise ValueError(
            f"{len(found)} sentences are too many for one picture: give at most {MOST_SENTENCES}, or a CSV file."
        )
    return found


def read_csv(path: str | Path) -> pd.DataFrame:
    """A table with a column `text`; every cell is a string, an empty one "".

    Raises:
        ValueError: for a file that is empty, no CSV in UTF-8, too large, or without the column or any text in it.
    """
    path = Path(path)
    if path.suffix.lower() != ".csv":
        raise ValueError(f"A {path.suffix or 'nameless'} file is not read here: save the table as CSV in UTF-8.")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"The file is larger than {_MOST_BYTES // 10**6} MB: split it.")
    try:
        names = column_names(path)
        if len(names) > _MOST_COLUMNS:
            raise ValueError(f"The file has {len(names):,} columns, and this page reads {_MOST_COLUMNS}.")
        if "text" not in names:
            given = ", ".join(names)[:200]
            raise ValueError(
                f"The file has no column named text (its columns: {given}): rename the one with the texts."
            )
        pieces = read_pieces(path, rows=MOST_ROWS)
        piece = next(pieces, Piece(pd.DataFrame(columns=names, dtype=object), []))
        if further := sum(len(more.frame) + len(more.bad) for more in pieces):
            rows = MOST_ROWS + further
            raise ValueError(f"The file has {rows:,} rows, and this page reads {MOST_ROWS:,}: split it.")
        damaged = [row for row in piece.bad if row.reason != "empty row"]
        remedy = "correct it, with quotation marks around a cell that holds a comma, and save the file as 'CSV UTF-8'"
        refuse(path, damaged, remedy)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), "The file")) from None
    frame = piece.frame.reindex(sorted([*piece.frame.index, *(row.number for row in piece.bad)]), fill_value="")
    if not frame["text"].str.strip().any():
        raise ValueError("The column text is empty: give at least one row with a text.")
    length = frame["text"].str.len()
    if length.max() > MAX_CHARACTERS:
        raise ValueError(f"The text in row {length.idxmax()} has more than {MAX_CHARACTERS:,} characters: shorten it.")
    return frame
