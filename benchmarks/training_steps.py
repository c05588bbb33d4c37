"""Training steps to compare: CARL in this trainer, a plain implementation of CARL, and SimCSE-style training.

Shape suffixes: B texts, G the same, L tokens of the longest, E width of the word embeddings, H width of the encoder, D
projection width.
"""

import functools
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from carl_hf import CarlDataCollator, CarlModel, CarlTrainer, CarlTrainingArguments, load_va_dataset
from carl_hf.adversary import pgd_perturbation, select_salient_tokens, token_saliency
from carl_hf.collator import slices_of
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import use_all_cores
from carl_hf.encoders import pool
from carl_hf.encoders.loading import load_encoder, load_tokenizer
from carl_hf.encoders.packaged import resolve_encoder
from carl_hf.encoders.packing import TokenLayout, encode_tokens, use_packed_attention
from carl_hf.losses import focal_detection_loss, mccl_loss, simcse_loss
from carl_hf.momentum import update_target
from carl_hf.utils.atomic_files import write_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

OURS = "CARL, this trainer"
PLAIN = "CARL, plain, padded"
PEER = "SimCSE, packed"


@dataclass
class BenchArguments:
    """What all steps that are compared have in common."""

    data_dir: str | None = field(default=None, metadata={"help": "Folder with local copies of the corpora."})
    corpus: str = field(default="emobank", metadata={"help": "Corpus of the texts, by name; or a file, with --scale."})
    scale: list[float] | None = field(default=None, metadata={"help": "Least and greatest label of the file."})
    encoder: str = field(default="minilm-l6", metadata={"help": "Hub id, folder or 'minilm-l6'."})
    batch_size: int = field(default=128, metadata={"help": "Texts of a batch."})
    bf16: bool = field(default=False, metadata={"help": "bfloat16 autocast."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def run_benchmark(
    arguments: type[BenchArguments],
    measure: Callable[[Any], dict[str, Any]],
    render: Callable[[dict[str, Any]], str],
) -> None:
    """A benchmark's main: arguments from the command line, tables to standard output, the record to --output."""
    try:
        args = parse_script_arguments(arguments)
        use_all_cores(args.num_threads)
        result = measure(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(render(result))
    if args.output is not None:
        write_json(Path(args.output), result)


def in_own_process(work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """Runs the work in a new process, since one keeps memory from earlier work."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def peer_model(encoder: str, *, max_length: int, device: torch.device) -> "SentenceTransformer":
    """The encoder with CLS pooling in sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    word = Transformer(resolve_encoder(encoder), max_seq_length=max_length)
    return SentenceTransformer(modules=[word, Pooling(word.get_word_embedding_dimension(), "cls")], device=str(device))


class Update:
    """One optimizer step on a loss, as every training loop makes it."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)  # the Trainer's default

    def __call__(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


@dataclass
class Step:
    """A training step: `run` on what `prepare`, which is not timed, makes of a batch."""

    run: Callable[[Any], None]
    prepare: Callable[[dict[str, Any]], Any] = lambda batch: batch


class Bench:
    """The steps that are compared, each with its own model."""

    def __init__(self, args: BenchArguments):
        self.args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = load_tokenizer(args.encoder)
        self.texts = load_va_dataset(
            args.corpus, split="train", data_dir=args.data_dir, scale=args.scale and tuple(args.scale)
        ).shuffle(seed=0)
        if len(self.texts) < args.batch_size:
            raise ValueError(f"{args.corpus} has {len(self.texts)} training texts: lower --batch_size.")
        self.collator = CarlDataCollator(self.tokenizer)
        self.recipe = CarlTrainingArguments("unused", objectives=["mccl", "ptd"], use_cpu=True)

    def trainer(self, **settings: Any) -> CarlTrainer:
        """With the two losses that [`Bench.plain`] computes too; `objectives` replaces them."""
        args = CarlTrainingArguments(
            "unused", per_device_train_batch_size=self.args.batch_size, bf16=self.args.bf16, report_to="none",
            use_cpu=self.device.type == "cpu", save_strategy="no",
            **{"objectives": ["mccl", "ptd=0.2"], "perturb_half": False, **settings},
        )  # fmt: skip
        model = CarlModel.from_encoder(self.args.encoder, contrast_layers="prediction").to(self.device).train()
        trainer = CarlTrainer(model=model, args=args, train_dataset=self.texts, processing_class=self.tokenizer)
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    def batch(self, number: int, *, texts: int | None = None) -> dict[str, Any]:
        """The batch with this number, or its first texts; wraps around at the end of the corpus."""
        first = number * self.args.batch_size
        rows = self.texts.select([i % len(self.texts) for i in range(first, first + (texts or self.args.batch_size))])
        batch = self.collator(list(rows))
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16)

    def steps(self, only: Sequence[str] | None = None) -> dict[str, Step]:
        """Name -> a step on a batch; those named in `only`, or all.

        Raises:
            ValueError: if there is no step of a name.
        """
        made = {
            "one forward, no gradient, sliced": functools.partial(self.forward, _sliced),
            "one forward, no gradient, packed": functools.partial(self.forward, _packed),
            "SimCSE, padded": functools.partial(self.simcse, _padded),
            "SimCSE, sliced": functools.partial(self.simcse, _sliced),
            PEER: functools.partial(self.simcse, _packed),
            "SimCSE, sentence-transformers' trainer": self.sentence_transformers,
            PLAIN: self.plain,
            OURS: self.ours,
        }
        unknown = [name for name in only or () if name not in made]
        if unknown:
            raise ValueError(f"There is no step {unknown[0]!r}: choose from {', '.join(map(repr, made))}.")
        return {name: make() for name, make in made.items() if only is None or name in only}

    def ours(self, **settings: Any) -> Step:
        trainer = self.trainer(**settings)
        model = trainer.model
        update = Update(list(model.online_parameters()))

        def step(batch: dict[str, Any]) -> None:
            with self.autocast():  # as the prepared model's own
                trainer.training_step(model, dict(batch))
            update()
            update_target(model.target, model.online, 0.99)

        parts = trainer.args.gradient_cache_parts
        return Step(step, lambda batch: batch if parts == 1 else self._in_parts(batch, parts))

    def _in_parts(self, batch: dict[str, Any], parts: int) -> dict[str, Any]:
        """The same batch with the slices of `parts` chunks."""
        lengths = batch["attention_mask"].sum(1).tolist()
        slices, numbers = slices_of(lengths, slices=self.collator.slices, chunks=parts)
        return {**batch, "slices": slices, "slices_per_chunk": numbers}

    def forward(self, encode: "Encode") -> Step:
        encoder = load_encoder(self.args.encoder).to(self.device)
        use_packed_attention(encoder)

        def step(batch: dict[str, Any]) -> None:
            with torch.no_grad(), self.autocast():
                encode(encoder, batch)

        return Step(step)

    def simcse(self, encode: "Encode") -> Step:
        """Two views of every text by dropout, in-batch negatives; padded: both views as one batch."""
        encoder = load_encoder(self.args.encoder).to(self.device).train()
        use_packed_attention(encoder)
        update = Update(list(encoder.parameters()))

        def views(batch: dict[str, Any]) -> Sequence[Tensor]:
            if encode is not _padded:
                return [encode(encoder, batch) for _ in range(2)]
            twice = {name: batch[name].repeat(2, 1) for name in ("input_ids", "attention_mask")}
            return encode(encoder, twice).chunk(2)

        def step(batch: dict[str, Any]) -> None:
            with self.autocast():
                loss = simcse_loss(*views(batch), temperature=0.05)
            loss.backward()
            update()

        return Step(step)

    def sentence_transformers(self) -> Step:
        """The same loss in that library's trainer: pairs of a text with itself, batches of its collator."""
        from datasets import Dataset
        from sentence_transformers import SentenceTransformerTrainer
        from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
        from sentence_transformers.losses import MultipleNegativesRankingLoss

        model = peer_model(self.args.encoder, max_length=self.collator.max_length, device=self.device)
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

        model.train()

        def collate(batch: dict[str, Any]) -> dict[str, Any]:
            texts = self.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
            return trainer.data_collator([{"anchor": text, "positive": text} for text in texts])

        def step(collated: dict[str, Any]) -> None:
            with self.autocast():  # as the prepared model's own
                trainer.training_step(model, dict(collated))
            update()

        return Step(step, collate)

    def plain(self) -> Step:
        """A straightforward implementation of CARL: a padded batch, and separate passes for the target, the attack,
        the clean and the perturbed texts."""
        args = self.recipe
        model = CarlModel.from_encoder(self.args.encoder, contrast_layers="prediction").to(self.device).train()
        update = Update(list(model.online_parameters()))

        def encode(embeds_BLE: Tensor, mask: Tensor) -> Tensor:
            return model.encoder(inputs_embeds=embeds_BLE, attention_mask=mask).last_hidden_state

        @torch.no_grad()
        def project_target(ids: Tensor, mask: Tensor) -> Tensor:
            hidden_BLH = model.target.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            return model.target.project(pool(hidden_BLH, mask, model.config.pooling))

        def mccl(batch: dict[str, Any], embeds_BLE: Tensor, target_GD: Tensor) -> Tensor:
            mask = batch["attention_mask"]
            pooled_BH = pool(encode(embeds_BLE, mask), mask, model.config.pooling)
            return mccl_loss(
                model.predict(pooled_BH), target_GD, batch["va"], batch["va"], temperature=args.temperature,
                label_temperature=args.label_temperature, kernel=args.label_kernel,
            )  # fmt: skip

        def step(batch: dict[str, Any]) -> None:
            ids, mask, eligible = batch["input_ids"], batch["attention_mask"], batch["eligible"]
            with self.autocast():
                target_GD = project_target(ids, mask)
                embeds_BLE = model.word_embeddings(ids).detach().requires_grad_()
                (gradient_BLE,) = torch.autograd.grad(mccl(batch, embeds_BLE, target_GD), embeds_BLE)
                chosen_BL = select_salient_tokens(token_saliency(gradient_BLE), eligible, fraction=0.1)
                delta_BLE = pgd_perturbation(
                    lambda _: None, embeds_BLE, chosen_BL, radius=args.perturbation_radius, relative=True,
                    step_size=args.pgd_step_size, steps=1, first_gradient=gradient_BLE,
                )  # fmt: skip
                l_mccl = mccl(batch, model.word_embeddings(ids), target_GD)
                logits_BL = model.detect(encode(model.word_embeddings(ids) + delta_BLE, mask))
                l_ptd = focal_detection_loss(logits_BL, chosen_BL, eligible, gamma=args.focal_gamma)
                loss = args.weights["mccl"] * l_mccl + args.weights["ptd"] * l_ptd
            loss.backward()
            update()
            update_target(model.target, model.online, 0.99)

        return Step(step)


Encode = Callable[[PreTrainedModel, dict[str, Any]], Tensor]


def length_slices(tensor_BL: Tensor, slices: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """The rows of a length-sorted batch in slices, each cut to the (rows, width) that the collator found for it."""
    parts = tensor_BL.split([rows for rows, _, _ in slices])
    return [part[:, :width] for part, (_, width, _) in zip(parts, slices, strict=True)]


def _padded(encoder: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]


def _sliced(encoder: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    ids, masks = (length_slices(batch[name], batch["slices"]) for name in ("input_ids", "attention_mask"))
    pairs = zip(ids, masks, strict=True)
    return torch.cat([encoder(input_ids=i, attention_mask=m).last_hidden_state[:, 0] for i, m in pairs])


def _packed(encoder: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    layout = TokenLayout.of(batch)
    words_TE = encoder.get_input_embeddings()(layout.pack(batch["input_ids"]))
    return encode_tokens(encoder, words_TE, layout)[layout.first_B]
