"""How many texts a second an exported encoder embeds: this package against SentenceTransformer.encode.

    python benchmarks/encode.py --data_dir DIR

Same encoder, texts, pooling, dtype and threads, in turn; medians of the ratios. Each library forms its batches as it
does by default: that one of 32 texts, this one of as many tokens as 64 texts of 32 tokens have (on a GPU, raise both).
Two sets of texts: the corpus's own, and short ones of mixed length (their first one to twelve words).
"""

import functools
import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from step_cost import Operations, multiplication_rate, seconds
from training_steps import BenchArguments, peer_model, run_benchmark

from carl_hf import load_va_dataset
from carl_hf.commands.environment import environment_record
from carl_hf.encoders.embedding import embed_texts
from carl_hf.encoders.loading import load_encoder, load_tokenizer
from carl_hf.report.tables import table


@dataclass
class EncodeArguments(BenchArguments):
    batch_size: int = field(default=64, metadata={"help": "Of this package: texts of 32 tokens."})
    peer_batch_size: int = field(default=32, metadata={"help": "Of SentenceTransformer.encode: texts."})
    texts: int = field(default=1000, metadata={"help": "Texts of each set."})
    rounds: int = field(default=7, metadata={"help": "Rounds, after one that is not counted."})


def measure(args: EncodeArguments) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer, encoder = load_tokenizer(args.encoder), load_encoder(args.encoder).to(device)
    peer = peer_model(args.encoder, max_length=128, device=device)
    long = load_va_dataset(args.corpus, split="train", data_dir=args.data_dir).shuffle(seed=0)["text"][: args.texts]
    lengths = np.random.default_rng(0).integers(1, 13, len(long))
    sets = {
        args.corpus: list(long),
        "short": [" ".join(text.split()[:n]) for text, n in zip(long, lengths, strict=True)],
    }
    rows = []
    for name, texts in sets.items():
        ours = functools.partial(
            embed_texts, encoder, texts, tokenizer, pooling="cls", batch_size=args.batch_size, max_length=128
        )
        theirs = functools.partial(peer.encode, texts, batch_size=args.peer_batch_size, show_progress_bar=False)
        difference = np.abs(ours().numpy() - theirs()).max()
        with Operations() as counter:
            ours()
        pairs = []
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            for _ in range(args.rounds):
                pairs.append((seconds(ours), seconds(theirs)))
        ratios = [other / own for own, other in pairs]
        rows.append(
            {"texts": name, "number": len(texts), "seconds": statistics.median(own for own, _ in pairs),
             "sentence_transformers_seconds": statistics.median(other for _, other in pairs),
             "throughput_over_sentence_transformers": statistics.median(ratios), "all_ratios": ratios,
             "operations": counter.total,
             "largest_difference": float(difference)}
        )  # fmt: skip
    settings = {name: getattr(args, name) for name in ("corpus", "encoder", "batch_size", "peer_batch_size", "bf16")}
    rate = multiplication_rate(args.bf16, device)
    return {"settings": settings, "matrix_products_per_second": rate, "rows": rows, **environment_record()}


def render(result: dict[str, Any]) -> str:
    rows = [
        [row["texts"], f"{row['number'] / row['seconds']:.0f}",
         f"{row['number'] / row['sentence_transformers_seconds']:.0f}",
         f"{row['throughput_over_sentence_transformers']:.2f} ({min(row['all_ratios']):.2f} to "
         f"{max(row['all_ratios']):.2f})", f"{row['largest_difference']:.0e}",
         f"{row['operations'] / row['seconds'] / result['matrix_products_per_second']:.0%}"]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["texts", "texts a second", "SentenceTransformer", "ratio (range)", "largest difference",
              "share of the machine's rate"]  # fmt: skip
    return table(header, rows)


def main() -> None:
    run_benchmark(EncodeArguments, measure, render)


if __name__ == "__main__":
    main()
