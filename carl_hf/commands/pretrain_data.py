"""The data of examples/pretrain.py: corpora loaded and mixed, or streamed, and kept apart from what is measured."""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset

from carl_hf import Provenance, load_va_dataset
from carl_hf.commands.pretrain import KNOWN, PretrainArguments
from carl_hf.data.bad_rows import Skipped
from carl_hf.data.corpora import CORPORA
from carl_hf.data.label_spaces import read_label_space
from carl_hf.data.labelled import EMOTION, ClassCorpus, read_emotion
from carl_hf.data.loading import NoRatingsError, NoSplitError, find_bad_rows
from carl_hf.data.mixing import class_names, mix_datasets, remove_overlap, rows_with_va, va_from_class_labels
from carl_hf.data.splits import SPLITS, is_drawn, split_rows, text_key
from carl_hf.data.streaming import stream_va_dataset
from carl_hf.evaluation.emotion import class_dataset
from carl_hf.export.intervals import FEWEST
from carl_hf.export.seen import has_seen_measured
from carl_hf.export.task_heads import FEWEST_TEXTS, check_classes

STREAMED_TEXTS_OF_HEAD = 10_000
"""Texts of a stream to which the valence-arousal head is fitted if no corpus is measured."""


class PretrainData:
    """What a run trains on and is measured on.

    Args:
        script: names the corpora and how they are read. seed: of mixing and shuffling.

    Attributes:
        train: training texts, mixed or streamed, without the validation and test texts of whatever is measured or
            fitted. dev: validation texts, or None.
        measured: corpus -> split -> texts, with labels on the corpus's original scale mapped to [-1, 1]; "train" and
            "validation" and, after [`read_test_splits`], "test".
        emotions: corpus for the emotion classifier, or None.
        keeps_tenth: whether a tenth of the texts is kept from training for the valence-arousal head.

    Raises:
        ValueError: for a corpus that is missing or cannot be used.
    """

    def __init__(self, script: PretrainArguments, *, seed: int):
        self._script, self._seed = script, seed
        self._partly: list[str] = []  # corpora of which validation texts judge training, without being measured on
        self.measured = self._measured_splits()
        self.emotions: ClassCorpus | None = None
        if script.emotion_corpus is not None:
            text_column = script.text_column if self._has_emotions(script.corpora) else None
            named = tuple((c, t) for c, t in (("text", text_column), ("label", script.label_column)) if t)
            self.emotions = _emotion_corpus(script.emotion_corpus, script.data_dir, script.skip_bad_rows, named)
            check_classes(self.emotions)
        self._skipped = self._skipped_when_loaded()
        self._skipped_in_stream: dict[str, Skipped] = {}
        self._watched = [*self.measured, *self._partly, *(corpus for corpus in script.corpora if corpus in EMOTION)]
        self._held_out = [*self._held_out_texts(self._watched), *self._held_out_emotions()]
        self._for_va_head = self._drawn_for_va_head()
        self.keeps_tenth = self._for_va_head is not None
        self._held_out += self._for_va_head["text"] if self.keeps_tenth else []
        self.train = self._stream() if script.streams else self._mix()
        validation = [(self.load(corpus, "validation"), 1.0) for corpus in self._watched]
        self.dev = mix_datasets(validation, seed=seed) if validation else None

    @property
    def class_names(self) -> list[str]:
        """Class labels of the training texts; none of a stream."""
        return [] if self._script.streams else class_names(self.train)

    @property
    def size(self) -> int | None:
        """Number of training texts; None for a stream, which nobody has counted."""
        return None if self._script.streams else len(self.train)

    def provenance(self, method: str) -> Provenance:
        return self._script.provenance(method, tenth_kept=self.keeps_tenth, emotions=self.emotions)

    def measures_seen_rows(self) -> bool:
        """Whether training, this one or that of the encoder before, has seen test rows of what is measured."""
        return self._script.include_eval_rows or has_seen_measured(self._script.encoder, self.measured)

    def load(
        self, corpus: str, split: str, *, original_scale: bool = False, agreement_weights: bool = False
    ) -> Dataset:
        """One split of a corpus, its labels normalized as for training or, for metrics and task heads, by the corpus's
        original scale."""
        script = self._script
        if corpus in EMOTION:
            return self._load_class_labels(corpus, split)
        normalization = "scale" if original_scale else script.normalization
        source = {"data_dir": script.data_dir} if corpus in CORPORA else {
            "skip_bad_rows": script.skip_bad_rows, **self._format([corpus])
        }  # fmt: skip
        return load_va_dataset(
            corpus, split=split, normalization=normalization, agreement_weights=agreement_weights,  # type: ignore[arg-type]
            dominance=script.dominance, **source,
        )  # fmt: skip

    def _load_measured(self, corpus: str, split: str) -> Dataset:
        return rows_with_va(self.load(corpus, split, original_scale=True))

    def read_test_splits(self) -> None:
        """Adds the test splits to `measured`: read only once everything is trained and chosen."""
        for corpus, splits in self.measured.items():
            splits["test"] = self._load_measured(corpus, "test")

    def for_va_head(self) -> tuple[Dataset | None, Dataset | None]:
        """Training and validation texts of the exported valence-arousal head; no training texts if there are too few.
        Where no corpus is measured, the latter are a tenth of the texts, which training leaves out; of a stream, None.

        It is fitted on the measured corpora alone, if there are any: raters of different corpora mean different things
        by arousal, and on EmoBank and the Facebook posts together its arousal on EmoBank falls to r = .18.
        """
        fitted = [(remove_overlap(splits["train"], [self._held_out]), 1.0) for splits in self.measured.values()]
        if fitted:
            train = mix_datasets(fitted, seed=self._seed)
        elif self._script.streams:  # its beginning: `take` ignores how many passes have been made
            train = rows_with_va(Dataset.from_list(list(self.train.take(STREAMED_TEXTS_OF_HEAD))))
        else:
            train = rows_with_va(self._mix(original_scale=True))
        if len(train) < FEWEST_TEXTS:
            logging.info("%d texts with both VA labels are too few for a valence-arousal head: no va/.", len(train))
            return None, None
        validation = [(splits["validation"], 1.0) for splits in self.measured.values()]
        return train, mix_datasets(validation, seed=self._seed) if validation else self._for_va_head

    def for_emotion_head(
        self, train: Dataset | None, dev: Dataset | None, *, shared: bool
    ) -> tuple[ClassCorpus | None, Dataset | None]:
        """The corpus of emotion/, and None. If va/, with these texts, is to share its encoder: the corpus without
        training texts by which va/ is chosen or measured, and the texts whose answers are kept, unless that leaves a
        class without texts."""
        corpus = self.emotions
        if not shared or corpus is None or train is None:
            return corpus, None
        judging = [dev, *(splits["test"] for splits in self.measured.values())]
        held_out = {text_key(text) for data in judging if data is not None for text in data["text"]}
        split = np.full(len(corpus.texts), "none", dtype="<U10")
        for name, rows in zip(SPLITS, split_rows(corpus), strict=True):
            split[rows] = name
        seen = [i for i in np.flatnonzero(split == "train") if text_key(corpus.texts[i]) in held_out]
        split[seen] = "none"
        apart = dataclasses.replace(corpus, split=split)
        try:
            check_classes(apart)
        except ValueError as error:
            logging.info("va/ and emotion/ have an encoder each: %d texts are in both corpora. %s", len(seen), error)
            return corpus, None
        if seen:
            logging.info("Left out of training emotion/: %d texts by which va/ is measured.", len(seen))
        return apart, train

    def _drawn_for_va_head(self) -> Dataset | None:
        """About a tenth of the training texts, for what is chosen and calibrated after training: on texts that the
        encoder has seen, every answer looks better than it is."""
        if self.measured or self._script.streams or self._script.include_eval_rows:
            return None
        if self._script.begins_with_an_encoder_that_has_seen_all():
            logging.info("The encoder has seen all of these texts: va/ gets no intervals.")
            return None
        texts = rows_with_va(self._mix(original_scale=True))
        # by their hashes: a second training of the model, with another seed, keeps the same texts
        drawn = [i for i, text in enumerate(texts["text"]) if is_drawn(text)]
        different = {tuple(texts[i].values()): i for i in drawn}  # a corpus with a weight is repeated
        if len(different) < FEWEST or len(texts) - len(drawn) < FEWEST_TEXTS:
            return None
        drawn = texts.select(sorted(different.values()))
        logging.info("%d of %d texts are kept from training, to choose va/ and its intervals.", len(drawn), len(texts))
        return drawn

    def skipped_rows(self, workers: int) -> dict[str, dict[str, Any]]:
        """Corpus -> the rows that were left out, by reason. Those of a stream are known once it has been read, and not
        if worker processes of the data loader have read it."""
        if workers == 0:
            return self._skipped | {file: found.record() for file, found in self._skipped_in_stream.items()}
        if self._script.skip_bad_rows and self._script.streams:
            logging.warning(
                "A worker of the data loader has read the stream, so that how many of its rows were left out is in "
                "the log alone, not in results.json; --dataloader_num_workers 0 records it."
            )
        return self._skipped

    def _skipped_when_loaded(self) -> dict[str, dict[str, Any]]:
        script = self._script
        if not script.skip_bad_rows:
            return {}
        loaded = dict.fromkeys([*([] if script.streams else script.corpora), *(script.measure or [])])
        settings: dict[str, Any] = {"agreement_weights": script.agreement_weights, "dominance": script.dominance}
        bad = {c: find_bad_rows(c, **settings, **self._format([c])) for c in loaded if c not in KNOWN}
        if self.emotions is not None:
            bad.setdefault(script.emotion_corpus, self.emotions.skipped)  # type: ignore[call-overload]
        return {corpus: Skipped.of(rows).record() for corpus, rows in bad.items() if rows}

    def _measured_splits(self) -> dict[str, dict[str, Dataset]]:
        """Corpus -> its train and validation splits, for the corpora to be measured on. Checks that they have a test
        split too."""
        script, measured = self._script, {}
        trained = [] if script.streams else script.corpora
        for corpus in trained if script.measure is None else script.measure:
            if corpus in EMOTION:
                if script.measure is not None:
                    raise ValueError(f"--measure takes corpora with VA labels; {corpus} has class labels.")
                logging.info("%s has class labels. Not measured here: carl-hf evaluate measures it.", corpus)
                continue
            try:
                splits = {split: self._load_measured(corpus, split) for split in SPLITS}
            except NoSplitError as error:
                if script.measure is not None:
                    raise
                logging.info("%s Not measured.", error)
                continue
            if all(map(len, splits.values())):
                del splits["test"]  # only when everything is trained and chosen
                measured[corpus] = splits
            elif script.measure is not None:
                raise ValueError(f"--measure needs texts with both valence and arousal in each split of {corpus}.")
            else:
                logging.info("%s has a split without both valence and arousal. Not measured.", corpus)
                self._partly.append(corpus)
        return measured

    def _held_out_texts(self, corpora: Iterable[str]) -> list[str]:
        """The texts, not the labels, of validation and test splits, which training texts must not repeat."""
        splits = [self.load(c, split, original_scale=True) for c in corpora for split in ("validation", "test")]
        return [text for split in splits for text in split["text"]]

    def _held_out_emotions(self) -> list[str]:
        """The same of the corpus for the emotion classifier, whose card reports on its test texts."""
        if self.emotions is None:
            return []
        return [self.emotions.texts[i] for rows in split_rows(self.emotions)[1:] for i in rows]

    def _mix(self, *, original_scale: bool = False) -> Dataset:
        script = self._script
        split = "all" if script.include_eval_rows else "train"
        weights = script.weights or [1.0] * len(script.corpora)
        weighted = script.agreement_weights and not original_scale
        texts = [
            self._load_weighted(corpus, split) if weighted else self.load(corpus, split, original_scale=original_scale)
            for corpus in script.corpora
        ]
        if weighted and not any("weight" in part.column_names for part in texts):
            raise ValueError("--agreement_weights: none of the corpora says how its raters agree (docs/data.md).")
        mixed = mix_datasets(list(zip(texts, weights, strict=True)), seed=self._seed)
        return mixed if script.include_eval_rows else remove_overlap(mixed, [self._held_out])

    def _load_weighted(self, corpus: str, split: str) -> Dataset:
        try:
            return self.load(corpus, split, agreement_weights=corpus not in EMOTION)
        except NoRatingsError as error:
            logging.info("%s Its texts weigh 1.", error)
            return self.load(corpus, split)

    def _stream(self) -> datasets.IterableDataset:
        script = self._script
        for corpus in script.corpora:
            if corpus in KNOWN:
                raise ValueError(f"--shuffle_buffer streams files; {corpus} is a corpus that fits into memory.")
        return stream_va_dataset(
            script.corpora, held_out=self._held_out, skip_bad_rows=script.skip_bad_rows,
            shuffle_buffer=script.shuffle_buffer, seed=self._seed, skipped=self._skipped_in_stream,
            dominance=script.dominance, **self._format(script.corpora),
        )  # fmt: skip

    def _has_emotions(self, corpora: Sequence[str]) -> bool:
        """Whether one of these files or Hub datasets is the corpus of the emotion classifier too."""
        emotions = self._script.emotion_corpus
        own = [Path(corpus).resolve() for corpus in corpora if corpus not in KNOWN]
        return emotions is not None and Path(emotions).resolve() in own

    def _format(self, corpora: Sequence[str]) -> dict[str, Any]:
        """Scale and columns of these files and Hub datasets."""
        script = self._script
        named = {"text": script.text_column, "valence": script.valence_column, "arousal": script.arousal_column}
        if self._has_emotions(corpora) and not script.streams:
            named["label"] = script.label_column
        return {
            "scale": tuple(script.scale) if script.scale else None,
            "columns": {ours: theirs for ours, theirs in named.items() if theirs},
        }

    def _load_class_labels(self, corpus: str, split: str) -> Dataset:
        """Texts of an emotion corpus with one class label each, in the splits of the evaluation."""
        whole = _emotion_corpus(corpus, self._script.data_dir, self._script.skip_bad_rows, ())
        rows = dict(zip(SPLITS, split_rows(whole), strict=True))
        texts = class_dataset(whole, np.concatenate(list(rows.values())) if split == "all" else rows[split])
        if self._script.va_from_names is None or split == "validation":  # metrics are of labels that raters gave
            return texts
        return va_from_class_labels(texts, read_label_space(self._script.va_from_names))


@functools.lru_cache(maxsize=2)
def _emotion_corpus(
    name: str, data_dir: str | None, skip_bad_rows: bool, columns: Sequence[tuple[str, str]]
) -> ClassCorpus:
    return read_emotion(name, data_dir, dict(columns), skip_bad_rows=skip_bad_rows)
