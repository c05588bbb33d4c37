"""`va/` and `emotion/` in scripts: how they are trained, what is printed of it, and where a model has them."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from carl_hf import CarlTrainingArguments
from carl_hf.encoders import Pooling
from carl_hf.encoders.stated import exported_pooling
from carl_hf.export.folder import read_record
from carl_hf.export.head_training import HeadTraining
from carl_hf.inference.pipeline import AffectPipeline
from carl_hf.utils.fields import setting


@dataclass
class HeadArguments:
    """What the scripts that train an encoder and export its heads have in common."""

    pooling: Pooling | None = setting(
        None, "Pooling of the encoder's last hidden states (default: that of the export which it is, else cls)."
    )
    dropout: float | None = setting(None, "Dropout of the encoder in training (default: the encoder's own).")
    data_dir: str | None = setting(None, "Folder with local copies of the corpora.")
    licence: str | None = setting(
        None, "Licence of the exports, as the Hub writes it (default: follows from the corpora)."
    )
    language: str = setting("en", "Language of the texts, for the model card.")
    num_threads: int | None = setting(None, "CPU threads (default: all cores).")
    overwrite_output_dir: bool = setting(False, "Replace the run in the output folder.")
    heads: Literal["auto", "finetuned", "frozen"] = setting(
        "auto",
        "What va/ and emotion/ are. finetuned: with at least 1,000 training texts, encoder and head fine-tuned "
        "together, if that is better on development texts than a linear head on the frozen encoder. frozen: always "
        "the latter. auto: as finetuned, but if the regression is among --objectives (the encoder was then trained to "
        "predict valence and arousal already), va/ is a linear head on the encoder of emotion/, which keeps its "
        "answers, so that one pass serves both; on the frozen one if that costs more than 0.01 of R2.",
    )
    heads_learning_rate: float | None = setting(
        None, "Learning rate of that fine-tuning (default: 0.04 / width of the encoder, 1e-4 for minilm-l6)."
    )
    heads_epochs: int = setting(HeadTraining.epochs, "Epochs of that fine-tuning at most.")

    def head_training(self, args: CarlTrainingArguments, head: Literal["va", "emotion"]) -> HeadTraining | None:
        """None for frozen encoders."""
        if self.heads == "frozen" or (self.heads == "auto" and head == "va" and "regression" in args.weights):
            return None
        return HeadTraining(self.heads_learning_rate, self.heads_epochs, bf16=args.bf16, seed=args.seed)


def settled_pooling(pooling: Pooling | None, encoder: str) -> Pooling:
    """The pooling that is asked for; else that of the export which the encoder is; else cls."""
    if pooling is None and (own := exported_pooling(encoder) or "cls") != "cls":
        logging.info("%s was trained with --pooling %s, which is kept.", encoder, own)
        return own
    return pooling or "cls"


def va_regressor(model: str) -> str:
    """The folder or Hub id of the valence-arousal regressor of a model, named as [`AffectPipeline.from_pretrained`]
    takes it; a ValueError if it has none."""
    name = AffectPipeline.from_pretrained(model).names.get("va")
    if name is None:
        raise ValueError(f"--model {model} has no valence-arousal regressor: name a run with va/.")
    return name


def print_heads(output: Path) -> None:
    """Says of each head in the output folder whether its encoder is frozen or fine-tuned, and why."""
    for kind in ("va", "emotion"):
        found = ((read_record(output / kind) or {}).get("head") or {}).get("development")
        if found and "shared" in found:
            where = "the encoder of emotion/" if found["chosen"] == "shared" else "an encoder of its own"
            print(f"{kind}/ reads {where}: {found['metric']} on development texts {found['shared']:.4g} "
                  f"on that of emotion/, {found['frozen']:.4g} before emotion/ was trained.")  # fmt: skip
        elif found:
            finetuned = "not finite" if found["finetuned"] is None else f"{found['finetuned']:.4g}"
            chosen = "fine-tuned" if found["chosen"] == "finetuned" else "frozen"
            print(f"{kind}/ is {chosen}: {found['metric']} on development texts {found['frozen']:.4g} "
                  f"frozen, {finetuned} fine-tuned.")  # fmt: skip
