"""How much do a few labels of one's own help a valence-arousal head that has seen another corpus?

    python benchmarks/studies/adapt.py --model runs/carl-emobank --corpus facebook --data_dir DIR

A number of texts is drawn from the corpus, the head is adapted to them as `carl-hf adapt` does, and measured on texts
that are in none of the draw's labels: Pearson r, CCC, mean error in [0, 1], and the share of labels within the 90 %
interval; mean and standard deviation over the draws, and how often each way was chosen. Larger draws hold the smaller.
The model must not have seen the corpus. Leaves adapt.json and adapt.md in the output folder; draws that are in
adapt.json already are not repeated.
"""

import copy
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carl_hf import load_va_dataset
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import environment_record, is_faster_in_bf16, use_all_cores
from carl_hf.data.mixing import rows_with_va
from carl_hf.data.splits import numbered
from carl_hf.encoders import classifier_outputs, load_classifier, load_tokenizer
from carl_hf.evaluation.encoder import fingerprint_of
from carl_hf.evaluation.statistics import agreement
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of
from carl_hf.export.adapting import ALONE, FINETUNED, WAYS, adapt_va_regressor
from carl_hf.export.head_training import HeadTraining
from carl_hf.export.last_layer import last_layer, last_layer_inputs
from carl_hf.inference import AffectPipeline
from carl_hf.report.tables import fraction, table
from carl_hf.utils.atomic_files import write_json
from carl_hf.utils.devices import default_device
from carl_hf.utils.fields import setting

_METRICS = {"pearson": "r", "ccc": "CCC", "mae": "mean error", "coverage": "within the interval"}


@dataclass
class AdaptStudyArguments:
    model: str = setting("runs/carl-emobank", "Run with va/, or a va/, that has not seen the corpus.")
    corpus: str = setting("facebook", "Corpus that labels are drawn from: all its rows, whatever their split.")
    labels: list[int] = setting([20, 50, 200], "Numbers of labels.")
    draws: int = setting(20, "Draws of texts.")
    data_dir: str | None = setting(None, "Folder with local copies of the corpora.")
    output_dir: str = setting("runs/adapt", "Folder of adapt.json and adapt.md.")
    num_threads: int | None = setting(None, "CPU threads (default: all cores).")
    seed: int = setting(42, "Seed of the first draw; the others count on.")


def measured(model: PreTrainedModel, answers: np.ndarray, truth: np.ndarray) -> dict[str, dict[str, float | None]]:
    """Dimension -> metrics of answers and labels in [0, 1]."""
    found, intervals = agreement(answers, truth, DIMENSIONS), getattr(model.config, "intervals", None)
    for k, name in enumerate(DIMENSIONS):
        within = None if intervals is None else float(np.mean(np.abs(answers - truth)[:, k] <= intervals[name]))
        found[name] = {"coverage": within, **{key: found[name][key] for key in ("pearson", "ccc", "mae")}}
    return found


def drawn_rows(number_N: np.ndarray, labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows in a random order, in which those of one text (one number) follow each other, and the rows of the texts
    that are not among the first `labels` rows."""
    drawn = np.random.default_rng(seed).permutation(number_N.max() + 1)
    order = drawn.argsort()[number_N].argsort(kind="stable")
    return order, np.flatnonzero(~np.isin(number_N, number_N[order[:labels]]))


def draws(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Dataset, args: AdaptStudyArguments,
    known: set[int],
) -> Iterator[list[dict[str, Any]]]:  # fmt: skip
    """The records of each draw that is not known, one of each number of labels, 0 included."""
    inputs_NH, _ = last_layer_inputs(model, tokenizer, data["text"], max_length=128)

    def answer(own: PreTrainedModel, chosen: str, rows: np.ndarray) -> np.ndarray:
        if chosen == FINETUNED:
            outputs = classifier_outputs(own, data.select(rows)["text"], tokenizer)
        else:  # of the encoder as it was
            with torch.no_grad():
                outputs = own.get_submodule(last_layer(own))(torch.from_numpy(inputs_NH[rows]).to(own.device)).cpu()
        return outputs.numpy().astype(float)[:, :2].clip(0, 1)

    truth, number_N = (labels_of(data) + 1) / 2, numbered(data["text"])
    for seed in sorted(set(range(args.seed, args.seed + args.draws)) - known):
        order, test = drawn_rows(number_N, max(args.labels), seed)
        before = measured(model, answer(model, ALONE, test), truth[test])
        records = [{"labels": 0, "seed": seed, "chosen": ALONE} | before]
        for count in args.labels:
            own = copy.deepcopy(model)
            training = HeadTraining(batch_size=16, seed=seed, bf16=is_faster_in_bf16())
            found = adapt_va_regressor(own, tokenizer, data.select(order[:count]), training=training)
            result = measured(own, answer(own, found["chosen"], test), truth[test])
            records.append({"labels": count, "seed": seed, "chosen": found["chosen"], **result})
            print(seed, count, found["chosen"], flush=True)
        yield records


def render(records: list[dict[str, Any]]) -> str:
    """The table of means and standard deviations over the draws."""
    rows = []
    for count in sorted({record["labels"] for record in records}):
        own = [record for record in records if record["labels"] == count]
        cells = []
        for name in DIMENSIONS:
            for metric in _METRICS:
                values = [record[name][metric] for record in own if record[name][metric] is not None]
                spread = f" ± {fraction(float(np.std(values, ddof=1)))}" if len(values) > 1 else ""
                cells.append(f"{fraction(float(np.mean(values)))}{spread}" if values else "not stated")
        chosen = Counter(record["chosen"] for record in own)
        rows.append([str(count), *cells, ", ".join(f"{way} {chosen[way]}" for way in WAYS if chosen[way])])
    header = ["labels", *(f"{name}, {title}" for name in DIMENSIONS for title in _METRICS.values()), "chosen"]
    return table(header, rows)


def main() -> None:
    try:
        args = parse_script_arguments(AdaptStudyArguments)
        use_all_cores(args.num_threads)
        data = rows_with_va(load_va_dataset(args.corpus, data_dir=args.data_dir))
        if min(args.labels, default=0) < 20 or len(data) <= max(args.labels) + 1:
            raise ValueError(
                f"--labels {args.labels}: at least 20, and fewer than the {len(data)} texts of the corpus."
            )
        name = AffectPipeline.from_pretrained(args.model).names["va"]
        model = load_classifier(name).to(default_device())
        path, records = Path(args.output_dir) / "adapt.json", []
        about = {"model": args.model, "checksum": fingerprint_of(model), "corpus": args.corpus, "labels": args.labels}
        if path.exists():
            earlier = json.loads(path.read_text(encoding="utf-8"))
            records = earlier.pop("records")
            if any(earlier.get(key) != value for key, value in about.items()):
                raise ValueError(f"{path} holds another study: choose another --output_dir.")
        known = {record["seed"] for record in records}
        for found in draws(model, load_tokenizer(name), data, args, known):
            records += found
            write_json(path, {**about, **environment_record(), "records": records})
        path.with_suffix(".md").write_text(render(records) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(render(records))


if __name__ == "__main__":
    main()
