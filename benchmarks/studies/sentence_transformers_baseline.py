"""What one would do without CARL: sentence-transformers' own trainer on pairs of the same texts, with CoSENT or AnglE
on a similarity made from the distance of their valence and arousal.

    python benchmarks/studies/sentence_transformers_baseline.py --loss cosent --corpora emobank facebook \\
        --data_dir DIR --output_dir runs/cosent
    python examples/evaluate.py --model minilm-l6 runs/carl-minilm/encoder runs/cosent --data_dir DIR

In every pass each text is in one pair, drawn anew, so that a pass costs as many encoded texts as a pass of
examples/pretrain.py. The texts and their labels are those of examples/pretrain.py. The folder holds a model of
sentence-transformers, and run.json.
"""

import logging
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import torch
from transformers import set_seed

from carl_hf import CarlTrainingArguments
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import environment_record, use_all_cores
from carl_hf.commands.pretrain import PretrainArguments
from carl_hf.commands.pretrain_data import PretrainData
from carl_hf.data.mixing import rows_with_va
from carl_hf.encoders import Pooling, resolve_encoder
from carl_hf.evaluation.valence_arousal import labels_of
from carl_hf.utils.atomic_files import write_json
from carl_hf.utils.fields import setting


@dataclass
class BaselineArguments:
    loss: Literal["cosent", "angle"] = setting("cosent", "Loss on the similarities: CoSENT or AnglE.")
    encoder: str = setting("minilm-l6", "Encoder to start from: Hub id, folder or 'minilm-l6'.")
    pooling: Pooling = setting("mean", "Pooling of the encoder's last hidden states.")
    corpora: list[str] = setting(["demo"], "Training corpora with valence and arousal by name.")
    data_dir: str | None = setting(None, "Folder with local copies of the corpora.")
    output_dir: str = setting("runs/sentence-transformers", "Folder for the trained model.")
    passes: int = setting(2, "Passes over the training texts.")
    batch_size: int = setting(128, "Texts of a batch: twice its pairs.")
    learning_rate: float = setting(1e-4, "Peak learning rate of AdamW; cosine, 10 % warm-up.")
    max_length: int = setting(128, "Tokens kept of a text.")
    bf16: bool = setting(False, "bfloat16 autocast.")
    num_threads: int | None = setting(None, "CPU threads (default: all cores).")
    seed: int = setting(42, "Random seed.")

    def __post_init__(self):
        for name, least in (("passes", 1), ("batch_size", 4)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}.")


def pairs_of(texts: datasets.Dataset, *, passes: int, seed: int) -> datasets.Dataset:
    """Pairs with their similarity in [0, 1]: 1 - distance of (valence, arousal) / the largest one among the pairs. In
    each pass each text is in one pair, but for one text of an odd number."""
    rng = np.random.default_rng(seed)
    half = len(texts) // 2
    rows = np.concatenate([rng.permutation(len(texts))[: 2 * half].reshape(half, 2) for _ in range(passes)])
    labels, words = labels_of(texts, any_unit=True), np.array(texts["text"], dtype=object)
    distances = np.linalg.norm(labels[rows[:, 0]] - labels[rows[:, 1]], axis=1)
    similarity = 1 - distances / max(distances.max(), np.finfo(float).tiny)
    return datasets.Dataset.from_dict(
        {"sentence1": list(words[rows[:, 0]]), "sentence2": list(words[rows[:, 1]]), "score": similarity}
    )


def main() -> None:
    try:
        args = parse_script_arguments(BaselineArguments)
        if (Path(args.output_dir) / "modules.json").exists():
            raise ValueError(f"--output_dir {args.output_dir} holds a model: name another folder.")
        try:
            from sentence_transformers import (
                SentenceTransformer,
                SentenceTransformerTrainer,
                SentenceTransformerTrainingArguments,
            )
            from sentence_transformers.sentence_transformer.losses import AnglELoss, CoSENTLoss
            from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule
            from sentence_transformers.sentence_transformer.modules import Transformer
        except ImportError as error:
            raise ValueError("This study needs pip install 'sentence-transformers>=6'.") from error
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        use_all_cores(args.num_threads)
        script = PretrainArguments(corpora=args.corpora, data_dir=args.data_dir)
        script.settle(CarlTrainingArguments("unused", use_cpu=True))
        texts = rows_with_va(PretrainData(script, seed=args.seed).train)
        if len(texts) < args.batch_size:
            raise ValueError(f"{len(texts)} texts do not fill one batch of {args.batch_size}: lower --batch_size.")
        set_seed(args.seed)
        transformer = Transformer(resolve_encoder(args.encoder), max_seq_length=args.max_length)
    except ValueError as error:
        sys.exit(f"error: {error}")
    width = transformer.get_embedding_dimension()
    model = SentenceTransformer(modules=[transformer, PoolingModule(width, pooling_mode=args.pooling)])
    pairs = pairs_of(texts, passes=args.passes, seed=args.seed)
    training = SentenceTransformerTrainingArguments(
        args.output_dir, num_train_epochs=1, per_device_train_batch_size=args.batch_size // 2, seed=args.seed,
        learning_rate=args.learning_rate, lr_scheduler_type="cosine", warmup_steps=0.1, bf16=args.bf16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no", report_to="none", logging_steps=10, dataloader_drop_last=True,
        dataloader_pin_memory=False, disable_tqdm=not sys.stderr.isatty(),
    )  # fmt: skip
    loss = {"cosent": CoSENTLoss, "angle": AnglELoss}[args.loss](model)
    trainer = SentenceTransformerTrainer(model=model, args=training, train_dataset=pairs, loss=loss)
    start = time.perf_counter()
    trainer.train()
    seconds = round(time.perf_counter() - start, 1)
    model.save_pretrained(args.output_dir, create_model_card=False)
    cost = {"training_texts": len(texts), "pairs": len(pairs), "steps": trainer.state.global_step, "seconds": seconds}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    record = {**asdict(args), "normalization": script.normalization, **cost, "losses": losses, **environment_record()}
    write_json(Path(args.output_dir) / "run.json", record)
    print(f"{len(texts)} texts, {len(pairs)} pairs in {seconds} s; the model is in {args.output_dir}")


if __name__ == "__main__":
    main()
