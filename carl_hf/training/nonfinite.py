"""Steps whose loss or gradient is not finite: skipped, counted, and the texts behind them named.

Shape suffixes: B texts of this process, L tokens of the longest, H width of the encoder.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

SKIPPED_STEPS = "skipped_steps.jsonl"
LIMIT = 10
"""Skipped steps in a row after which training stops."""
_SHOWN_TEXTS, _SHOWN_CHARACTERS = 3, 100


@dataclass(frozen=True)
class _Batch:
    """What is kept of a batch until the optimizer's step."""

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    embedding_BH: Tensor
    loss: Tensor
    usable: Tensor  # texts of the global batch with a label for an objective

    def suspects(self) -> Tensor:
        """(B,) booleans: texts whose embedding is not finite; none if all are so, which no text has caused."""
        found_B = ~self.embedding_BH.isfinite().all(-1)
        return found_B & ~found_B.all()

    def texts(self, chosen_B: Tensor, tokenizer: Any) -> list[str]:
        """The chosen texts, as far as the encoder has read them."""
        rows = chosen_B.nonzero().flatten().tolist()
        ids = [self.input_ids_BL[row][self.attention_mask_BL[row].bool()].tolist() for row in rows]
        if tokenizer is None:
            return [str(tokens) for tokens in ids]
        return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in ids]


class SkipNonFiniteSteps(TrainerCallback):
    """Drops the gradients of a step whose loss or gradient is not finite on any process: the optimizer then changes
    neither weights nor its own state; the schedule goes on. The step is counted, a warning names the texts, and a line
    of `skipped_steps.jsonl` in the output folder holds them all.

    Under fp16 the loss scaler skips a step whose gradient overflows, to find its scale. Such a step is counted, but
    reported only if its loss is not finite either.

    Args:
        accelerator: of the trainer. tokenizer: decodes the texts; None names them by their token ids.
        log: takes an entry for the trainer's log, from which a resumed training takes the count.

    Attributes:
        total (`int`): steps skipped since training began, also before it was resumed.
        skipped (`bool`): whether the present step is.

    Raises (in training):
        ValueError: for a step in which no text has a label for an objective.
        FloatingPointError: after [`LIMIT`] skipped steps in a row.
    """

    def __init__(self, accelerator: Accelerator, tokenizer: Any, log: Callable[[dict[str, float]], None]):
        self.accelerator, self.tokenizer, self.log = accelerator, tokenizer, log
        self.total, self.in_a_row, self.skipped = 0, 0, False
        self.grad_norm: Tensor | None = None
        self._batches: list[_Batch] = []
        self._last_loss: Tensor | None = None

    def watch(self, inputs: dict[str, Any], embedding_BH: Tensor, loss: Tensor, usable: Tensor) -> Tensor:
        """Keeps what is needed to judge this batch. Returns the loss to log: the last finite one, 0 before any."""
        self._batches.append(
            _Batch(inputs["input_ids"], inputs["attention_mask"], embedding_BH.detach(), loss, usable)
        )
        last = torch.zeros_like(loss) if self._last_loss is None else self._last_loss
        self._last_loss = torch.where(loss.isfinite(), loss, last)
        return self._last_loss

    def on_train_begin(self, args, state, control, **kwargs):
        self.total = max((entry.get("skipped_steps", 0) for entry in state.log_history), default=0)
        self.in_a_row, self._batches = 0, []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        batches, self._batches = self._batches, []
        bad_loss = ~torch.stack([batch.loss.isfinite() for batch in batches]).all()
        bad_gradient = ~torch.as_tensor(self.grad_norm, device=bad_loss.device).isfinite()
        unlabelled = torch.stack([batch.usable for batch in batches]).sum() == 0
        bad = torch.stack([bad_loss, bad_gradient, unlabelled]).float()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad)
        loss_is_bad, gradient_is_bad, nothing_to_learn = bad.bool().tolist()  # the only synchronization of a step
        if nothing_to_learn:
            raise ValueError(
                f"No text of step {state.global_step + 1} has a label that an objective uses. Name the columns of "
                "train_dataset text, and valence and arousal (in [-1, 1]) or label (a class of the model); a stream "
                "in which only some texts have them must be shuffled."
            )
        self.skipped = loss_is_bad or gradient_is_bad
        if not self.skipped:
            self.in_a_row = 0
            return
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        self.log({"skipped_steps": self.total})
        if loss_is_bad or self.accelerator.scaler is None:
            for parameter in model.parameters():
                parameter.grad = None
            self._report(batches, state.global_step + 1, Path(args.output_dir))
        if self.in_a_row >= LIMIT:
            raise FloatingPointError(
                f"Training stopped at step {state.global_step + 1}: the loss or gradient of the last {self.in_a_row} "
                f"steps was not finite. {SKIPPED_STEPS} in {args.output_dir} names their texts; the last checkpoint "
                "is untouched. A lower --learning_rate, or --bf16 in place of --fp16, is the usual remedy."
            )

    def _report(self, batches: Sequence[_Batch], step: int, folder: Path) -> None:
        def gather(chosen: Callable[[_Batch], Tensor]) -> list[str]:
            return gather_object([text for batch in batches for text in batch.texts(chosen(batch), self.tokenizer)])

        suspects = gather(_Batch.suspects)
        texts = suspects or gather(lambda batch: batch.attention_mask_BL.any(-1))
        losses = gather_object([batch.loss.item() for batch in batches])
        if not self.accelerator.is_main_process:
            return
        what = "gradient is" if torch.tensor(losses).isfinite().all() else "loss is"
        whose = "Caused by" if suspects else "No text is to blame alone; the step's texts"
        shown = "; ".join(repr(text[:_SHOWN_CHARACTERS]) for text in texts[:_SHOWN_TEXTS])
        if len(texts) > _SHOWN_TEXTS:
            shown += f" and {len(texts) - _SHOWN_TEXTS} more, see {folder / SKIPPED_STEPS}"
        told = f"its {what} not finite (skipped so far: {self.total}). {whose}: {shown}."
        logger.warning("Step %d was skipped: %s", step, told)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / SKIPPED_STEPS).open("a", encoding="utf-8") as file:
            entry = {"step": step, "losses": [str(x) for x in losses], "blamed": bool(suspects), "texts": texts}
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
