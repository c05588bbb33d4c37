"""How fast answers come: AffectPipeline against transformers' pipelines, `score` on long tables, and its start.

    python benchmarks/serve.py --model runs/carl-demo --data_dir DIR

Answers: valence, arousal and emotions of the same texts, cut at the same length, in turn; medians of the ratios. A
table of short rows is scored in a process of its own: its peak memory, and CPU time beside that of such texts in
memory, both without the start. The start is the CPU time of `score` on one row, over that of importing torch and
transformers.
"""

import functools
import itertools
import re
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from start import BASELINES, cpu_seconds
from step_cost import seconds
from training_steps import in_own_process, run_benchmark

from carl_hf import AffectPipeline, load_va_dataset
from carl_hf.commands.environment import environment_record, use_all_cores
from carl_hf.commands.score import ScoreArguments, score
from carl_hf.data.labelled import read_polarity
from carl_hf.encoders.loading import load_classifier, load_tokenizer
from carl_hf.report.tables import table

PEER_BATCH = 64


@dataclass
class ServeArguments:
    model: str = field(default="runs/carl-demo", metadata={"help": "Folder with va/ and emotion/."})
    corpora: list[str] = field(default_factory=lambda: ["emobank", "imdb"], metadata={"help": "Whose texts are read."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with local copies of the corpora."})
    texts: int = field(default=512, metadata={"help": "Texts of each corpus."})
    table_rows: list[int] = field(
        default_factory=lambda: [10_000, 1_000_000], metadata={"help": "Rows of the tables."}
    )
    rounds: int = field(default=5, metadata={"help": "Rounds, after one that is not counted."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def texts_of(args: ServeArguments, corpus: str) -> list[str]:
    if corpus == "imdb":
        texts = read_polarity(corpus, args.data_dir).texts
    else:
        texts = load_va_dataset(corpus, split="train", data_dir=args.data_dir)["text"]
    rows = np.random.default_rng(0).permutation(len(texts))[: args.texts]
    return [texts[int(row)] for row in rows]


def answering(args: ServeArguments, corpus: str) -> dict[str, Any]:
    """Texts a second of AffectPipeline, and of a pipeline of transformers for each of its models."""
    texts, affect = texts_of(args, corpus), AffectPipeline.from_pretrained(args.model, windows=False)
    pipelines = [
        transformers.pipeline("text-classification", load_classifier(name), tokenizer=load_tokenizer(name), top_k=None)
        for name in affect.names.values()
    ]

    def theirs() -> list[Any]:
        return [each(texts, batch_size=PEER_BATCH, truncation=True) for each in pipelines]

    ours, answers = affect(texts), theirs()
    found = [next(one["score"] for one in each if one["label"] == "valence") for each in answers[0]]
    difference = np.abs(ours["valence"] - np.clip(found, 0, 1)).max()
    runs = [(seconds(functools.partial(affect, texts)), seconds(theirs)) for _ in range(args.rounds)]
    return {
        "what": f"{corpus}, {len(texts)} texts", "texts_a_second": len(texts) / statistics.median(a for a, _ in runs),
        "transformers_texts_a_second": len(texts) / statistics.median(b for _, b in runs),
        "ratio": statistics.median(b / a for a, b in runs), "all_ratios": [b / a for a, b in runs],
        "passes": len(affect._readers), "largest_difference": float(difference),
    }  # fmt: skip


def scoring(args: ServeArguments, rows: int) -> dict[str, Any]:
    """Peak memory of `score` on a table of short rows, and CPU time of a row beside that in memory."""
    use_all_cores(args.num_threads)
    words = np.random.default_rng(0).choice("a warm quiet day or cold loud night of joy and fear".split(), (1000, 5))
    texts = [" ".join(row) for row in words]
    affect = AffectPipeline.from_pretrained(args.model)
    affect(texts[:10])  # loads the models
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "texts.csv", Path(folder) / "scored.csv"
        with source.open("w", encoding="utf-8") as file:
            file.write("text\n")
            file.writelines(f"{text}\n" for text in itertools.islice(itertools.cycle(texts), rows))
        began = time.process_time()
        score(ScoreArguments([str(source)], output=str(output)), affect, show_progress=False)
        spent = time.process_time() - began
    peak = peak_mib()
    began, few = time.process_time(), min(rows, 20_000)
    for _ in affect.stream(itertools.islice(itertools.cycle(texts), few)):
        pass
    in_memory = (time.process_time() - began) / few
    return {
        "rows": rows, "peak_mib": peak, "cpu_microseconds_a_row": 1e6 * spent / rows,
        "in_memory_cpu_microseconds_a_row": 1e6 * in_memory, "rate_over_in_memory": in_memory * rows / spent,
    }  # fmt: skip


def peak_mib() -> float:
    """The most memory that this process has had. `ru_maxrss` begins with that of the process that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 1024


def starting(args: ServeArguments) -> dict[str, Any]:
    """CPU seconds from the start of `score` to its first and only row."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "one.csv"
        source.write_text("text\nA warm bath.\n", encoding="utf-8")
        words = ["-m", "carl_hf_cli", "score", str(source), "--model", str(Path(args.model).resolve())]
        words += ["--output", str(Path(folder) / "scored.csv"), "--overwrite", "true"]
        runs = [(cpu_seconds(words), *(cpu_seconds(["-c", base]) for base in BASELINES)) for _ in range(args.rounds)]
    return {
        "cpu_seconds": statistics.median(run[0] for run in runs),
        "ratios": [statistics.median(run[0] / run[i + 1] for run in runs) for i in range(len(BASELINES))],
    }  # fmt: skip


def measure(args: ServeArguments) -> dict[str, Any]:
    result = {
        "settings": {"model": Path(args.model).name, "transformers_batch": PEER_BATCH, "rounds": args.rounds},
        "answers": [answering(args, corpus) for corpus in args.corpora],
        "score": [in_own_process(scoring, args, rows) for rows in args.table_rows],
        "start": starting(args), "baselines": BASELINES,
    }  # fmt: skip
    return {**result, "device": "cuda" if torch.cuda.is_available() else "cpu", **environment_record()}


def render(result: dict[str, Any]) -> str:
    answers = [
        [row["what"], f"{row['texts_a_second']:.0f}", f"{row['transformers_texts_a_second']:.0f}",
         f"{row['ratio']:.2f} ({min(row['all_ratios']):.2f} to {max(row['all_ratios']):.2f})", f"{row['passes']}",
         f"{row['largest_difference']:.0e}"]
        for row in result["answers"]
    ]  # fmt: skip
    tables = [
        [f"{row['rows']:,}", f"{row['peak_mib']:.0f}", f"{row['cpu_microseconds_a_row']:.0f}",
         f"{row['in_memory_cpu_microseconds_a_row']:.0f}", f"{row['rate_over_in_memory']:.2f}"]
        for row in result["score"]
    ]  # fmt: skip
    header = ["AffectPipeline", "texts a second", "transformers", "ratio (range)", "passes", "largest difference"]
    columns = ["`score`, short rows", "peak MiB", "CPU µs a row", "in memory", "rate over in memory"]
    start = " and ".join(
        f"{ratio:.2f} of `{base}`" for ratio, base in zip(result["start"]["ratios"], result["baselines"], strict=True)
    )
    first = f"Start of `score` to its first row: {result['start']['cpu_seconds']:.2f} CPU seconds, {start}."
    return "\n\n".join([table(header, answers), table(columns, tables), first])


def main() -> None:
    run_benchmark(ServeArguments, measure, render)


if __name__ == "__main__":
    main()
