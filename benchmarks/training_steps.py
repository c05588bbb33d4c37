"""Training steps that benchmarks compare: CARL as the trainer runs it, CARL done plainly, and SimCSE-style training.

Shape suffixes: B texts, G the same, L tokens of the longest, E width of the word embeddings, H width of the encoder, D
projection width.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments, load_va_dataset
from carl_hf.adversary import pgd_perturbation, select_salient_tokens, token_saliency
from carl_hf.collator import length_slices
from carl_hf.encoders import load_encoder, load_tokenizer, resolve_encoder
from carl_hf.losses import focal_detection_loss, mccl_loss, simcse_loss
from carl_hf.momentum import update_target

OURS = "CARL, this trainer"
PLAIN = "CARL, plain, padded"
FORWARD = "one forward, no gradient, sliced"


@dataclass
class BenchArguments:
    """What is the same for all that is compared."""

    data_dir: str | None = field(default=None, metadata={"help": "Folder with local copies of the corpora."})
    corpus: str = field(default="emobank", metadata={"help": "Corpus of the texts, by name."})
    encoder: str = field(default="minilm-l6", metadata={"help": "Hub id, folder or 'minilm-l6'."})
    batch_size: int = field(default=128, metadata={"help": "Texts of a batch."})
    bf16: bool = field(default=False, metadata={"help": "bfloat16 autocast."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the figures."})


class Update:
    """One optimizer step on a loss, as every training loop makes it."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def __call__(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Bench:
    """The steps that are compared, each on a model of its own."""

    def __init__(self, args: BenchArguments):
        self.args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = load_tokenizer(args.encoder)
        self.texts = load_va_dataset(args.corpus, split="train", data_dir=args.data_dir).shuffle(seed=0)
        if len(self.texts) < args.batch_size:
            raise ValueError(f"{args.corpus} has {len(self.texts)} training texts: lower --batch_size.")
        self.trainer = self.carl_trainer()

    def carl_trainer(self, **settings: Any) -> CarlTrainer:
        args = CarlTrainingArguments(
            "unused", per_device_train_batch_size=self.args.batch_size, bf16=self.args.bf16, report_to="none",
            use_cpu=self.device.type == "cpu", save_strategy="no", **settings,
        )  # fmt: skip
        model = CarlModel.from_encoder(self.args.encoder).to(self.device).train()
        trainer = CarlTrainer(model=model, args=args, train_dataset=self.texts, processing_class=self.tokenizer)
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    def batch(self, number: int) -> dict[str, Any]:
        """The batch of this number; after the last text the first follows."""
        first = number * self.args.batch_size
        rows = self.texts.select([i % len(self.texts) for i in range(first, first + self.args.batch_size)])
        batch = self.trainer.data_collator(list(rows))
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16)

    def steps(self, only: Sequence[str] | None = None) -> dict[str, Callable[[dict[str, Any]], None]]:
        """Name -> a step on a batch; those named in `only`, or all.

        Raises:
            ValueError: if there is no step of a name.
        """
        made = {
            FORWARD: self.forward,
            "SimCSE, padded": functools.partial(self.simcse, sliced=False),
            "SimCSE, sliced": functools.partial(self.simcse, sliced=True),
            "SimCSE, sentence-transformers' trainer": self.sentence_transformers,
            PLAIN: self.plain,
            OURS: self.ours,
        }
        unknown = [name for name in only or () if name not in made]
        if unknown:
            raise ValueError(f"There is no step {unknown[0]!r}: choose from {', '.join(map(repr, made))}.")
        return {name: make() for name, make in made.items() if only is None or name in only}

    def ours(self) -> Callable[[dict[str, Any]], None]:
        trainer, model = self.trainer, self.trainer.model
        update = Update(list(model.online_parameters()))

        def step(batch: dict[str, Any]) -> None:
            trainer.training_step(model, dict(batch))
            update()
            update_target(model.target, model.online, 0.99)

        return step

    def forward(self) -> Callable[[dict[str, Any]], None]:
        encoder = load_encoder(self.args.encoder).to(self.device)

        def step(batch: dict[str, Any]) -> None:
            with torch.no_grad(), self.autocast():
                for ids, mask in _slices(batch):
                    encoder(input_ids=ids, attention_mask=mask)

        return step

    def simcse(self, *, sliced: bool) -> Callable[[dict[str, Any]], None]:
        """Two views of every text by dropout, in-batch negatives; padded: both views as one batch."""
        encoder = load_encoder(self.args.encoder).to(self.device).train()
        update = Update(list(encoder.parameters()))

        def embed(ids: Tensor, mask: Tensor) -> Tensor:
            return encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]

        def views(batch: dict[str, Any]) -> list[Tensor]:
            if sliced:
                return [torch.cat([embed(ids, mask) for ids, mask in _slices(batch)]) for _ in range(2)]
            ids, mask = batch["input_ids"], batch["attention_mask"]
            return list(embed(torch.cat([ids, ids]), torch.cat([mask, mask])).chunk(2))

        def step(batch: dict[str, Any]) -> None:
            with self.autocast():
                loss = simcse_loss(*views(batch), temperature=0.05)
            loss.backward()
            update()

        return step

    def sentence_transformers(self) -> Callable[[dict[str, Any]], None]:
        """The same loss by that library's trainer: pairs of a text with itself, its collator's batches."""
        from datasets import Dataset
        from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
        from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
        from sentence_transformers.losses import MultipleNegativesRankingLoss
        from sentence_transformers.models import Pooling, Transformer

        word = Transformer(resolve_encoder(self.args.encoder), max_seq_length=128)
        model = SentenceTransformer(
            modules=[word, Pooling(word.get_word_embedding_dimension(), "cls")], device=str(self.device)
        )
        args = Arguments(
            "unused", bf16=self.args.bf16, use_cpu=self.device.type == "cpu", report_to="none", save_strategy="no",
            per_device_train_batch_size=self.args.batch_size,
        )  # fmt: skip
        pairs = Dataset.from_dict({"anchor": self.texts["text"], "positive": self.texts["text"]})
        trainer = SentenceTransformerTrainer(
            model=model, args=args, train_dataset=pairs, loss=MultipleNegativesRankingLoss(model)
        )
        trainer.current_gradient_accumulation_steps = 1
        update = Update(list(model.parameters()))

        def step(batch: dict[str, Any]) -> None:
            model.train()
            texts = self.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
            collated = trainer.data_collator([{"anchor": text, "positive": text} for text in texts])
            trainer.training_step(model, collated)
            update()

        return step

    def plain(self) -> Callable[[dict[str, Any]], None]:
        """CARL as one would first write it: a padded batch; passes of their own for the target, the attack, the clean
        and the perturbed texts."""
        args = self.trainer.args
        model = CarlModel.from_encoder(self.args.encoder).to(self.device).train()
        update = Update(list(model.online_parameters()))

        def mccl(batch: dict[str, Any], embeds_BLE: Tensor, target_GD: Tensor) -> Tensor:
            pooled_BH = model.pool(model.encode(embeds_BLE, batch["attention_mask"]), batch["attention_mask"])
            return mccl_loss(
                model.predict(pooled_BH), target_GD, batch["va"], batch["va"], temperature=args.temperature,
                label_temperature=args.label_temperature, kernel=args.label_kernel,
            )  # fmt: skip

        def step(batch: dict[str, Any]) -> None:
            ids, mask, eligible = batch["input_ids"], batch["attention_mask"], batch["eligible"]
            with self.autocast():
                target_GD = model.project_target(ids, mask)
                embeds_BLE = model.word_embeddings(ids).detach().requires_grad_()
                (gradient_BLE,) = torch.autograd.grad(mccl(batch, embeds_BLE, target_GD), embeds_BLE)
                chosen_BL = select_salient_tokens(token_saliency(gradient_BLE), eligible, fraction=0.1)
                delta_BLE = pgd_perturbation(
                    lambda _: None, embeds_BLE, chosen_BL, radius=args.perturbation_radius, relative=True,
                    step_size=args.pgd_step_size, steps=1, first_gradient=gradient_BLE,
                )  # fmt: skip
                l_mccl = mccl(batch, model.word_embeddings(ids), target_GD)
                logits_BL = model.detect(model.encode(model.word_embeddings(ids) + delta_BLE, mask))
                l_ptd = focal_detection_loss(logits_BL, chosen_BL, eligible, gamma=args.focal_gamma)
                loss = args.mccl_weight * l_mccl + args.ptd_weight * l_ptd
            loss.backward()
            update()
            update_target(model.target, model.online, 0.99)

        return step


def _slices(batch: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    ids, masks = (length_slices(batch[name], batch["slices"]) for name in ("input_ids", "attention_mask"))
    return list(zip(ids, masks, strict=True))
