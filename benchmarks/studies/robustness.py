"""How far do a model's valence and arousal move when a text is written otherwise, or its word embeddings are shaken?

    python benchmarks/studies/robustness.py --model runs/with-ptd/encoder runs/without/encoder minilm-l6@mean \\
        --corpus emobank --data_dir DIR

Of a model with a valence-arousal head, its outputs; of any other encoder, those of a ridge probe that is fitted on the
corpus's training texts. For every perturbation, over the texts that it changes: the mean |shift|, also in units of the
clean predictions' standard deviation, r between clean and perturbed, and r with the labels before and after. Leaves
robustness.json and robustness.md in the output folder.

Synonyms are those of WordNet's first sense, for words of four letters or more with at most three senses. Its dict
files: apt-get install wordnet-base, or https://wordnet.princeton.edu.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from carl_hf import CarlConfig, CarlModel, load_va_dataset
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import environment_record, use_all_cores
from carl_hf.data.loading import Split
from carl_hf.encoders import (
    classifier_outputs,
    embed_texts,
    is_va_regressor,
    load_classifier,
    load_config,
    load_measured_encoder,
    load_tokenizer,
    resolve_encoder,
    stated_pooling,
)
from carl_hf.evaluation.encoder import split_pooling
from carl_hf.evaluation.probes import fit_ridge
from carl_hf.evaluation.statistics import interval, pearson, resample_rows
from carl_hf.evaluation.valence_arousal import DIMENSIONS, labels_of
from carl_hf.report.tables import escape, fraction, table
from carl_hf.utils.atomic_files import write_json
from carl_hf.utils.fields import setting

Predict = Callable[[Sequence[str]], np.ndarray]
"""Texts to (N, 2) valence and arousal."""


@dataclass
class RobustnessArguments:
    model: list[str] = setting(["minilm-l6@mean"], "Models: MODEL or MODEL@POOLING, pooling cls or mean.")
    corpus: str = setting("demo", "Corpus with valence and arousal, and splits.")
    split: Split = setting("validation", "Split whose texts are perturbed.")
    texts: int = setting(500, "Texts at most.")
    data_dir: str | None = setting(None, "Folder with local copies of the corpora.")
    perturbations: list[str] = setting(["typos", "upper", "punctuation", "synonyms"], "Those of texts.")
    rate: float = setting(0.2, "Share of the words that get a typo or a synonym; at least one in a text.")
    radii: list[float] = setting([0.1, 0.5, 2.0], "Lengths of the noise on a token, relative to its embedding's.")
    wordnet: str = setting("/usr/share/wordnet", "Folder with WordNet's dict files.")
    max_length: int = setting(128, "Tokens kept of a text.")
    output_dir: str = setting("runs/robustness", "Folder of robustness.json and robustness.md.")
    num_threads: int | None = setting(None, "CPU threads (default: all cores).")
    seed: int = setting(42, "Seed of the perturbations and of the bootstrap.")

    def __post_init__(self):
        unknown = [name for name in self.perturbations if name not in ("typos", "upper", "punctuation", "synonyms")]
        if unknown:
            raise ValueError(f"There is no perturbation {unknown[0]!r}: typos, upper, punctuation, synonyms.")
        if not 0 < self.rate <= 1 or min(self.radii, default=0) < 0:
            raise ValueError("--rate must lie in (0, 1], and --radii be zero or more.")


class WordNet:
    """The synonyms of a word from WordNet's dict files (`index.*`, `data.*`)."""

    def __init__(self, folder: str | Path):
        self._senses: dict[str, list[tuple[int, int, str, int]]] = {}  # (times tagged, senses, part of speech, place)
        self._data: dict[str, bytes] = {}
        try:
            for part in ("noun", "verb", "adj", "adv"):
                self._data[part] = (Path(folder) / f"data.{part}").read_bytes()
                for line in (Path(folder) / f"index.{part}").read_text(encoding="utf-8").splitlines():
                    if not line.startswith(" "):  # the licence
                        lemma, _, count, *rest = line.split()
                        places = rest[-int(count) :]
                        sense = int(rest[-int(count) - 1]), int(count), part, int(places[0])
                        self._senses.setdefault(lemma, []).append(sense)
        except OSError as error:
            raise ValueError(
                f"Synonyms need WordNet's dict files in --wordnet {folder}: apt-get install wordnet-base, or leave "
                f"synonyms out of --perturbations. {error}"
            ) from error

    def synonyms(self, word: str) -> list[str]:
        """Single words with the most usual sense of `word`; none if it has more than three senses."""
        senses = self._senses.get(word, [])
        if not senses or sum(count for _, count, _, _ in senses) > 3:
            return []
        _, _, part, place = max(senses, key=lambda sense: sense[0])
        line = self._data[part][place : self._data[part].index(b"\n", place)].decode()
        fields = line.split(" ")
        words = [name.lower() for name in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
        return [name for name in dict.fromkeys(words) if name.isalpha() and name != word]


def with_words(
    text: str, rng: np.random.Generator, *, rate: float, change: Callable[[str, np.random.Generator], str | None]
) -> str:
    """The text with a share of its words, at least one, changed by `change`, which gives None for one that it cannot
    change."""
    found = [(match.span(), change(match[0], rng)) for match in re.finditer(r"[^\W\d_]{4,}", text)]
    found = [(span, new) for span, new in found if new is not None]
    count = min(len(found), max(1, round(rate * len(text.split()))))
    for i in sorted(rng.permutation(len(found))[:count], reverse=True):
        (start, end), new = found[i]
        text = text[:start] + new + text[end:]
    return text


def swapped(word: str, rng: np.random.Generator) -> str | None:
    """The word with two neighbouring letters, not the first, exchanged."""
    places = [i for i in range(1, len(word) - 1) if word[i] != word[i + 1]]
    if not places:
        return None
    i = int(rng.choice(places))
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def synonym(word: str, rng: np.random.Generator, wordnet: WordNet) -> str | None:
    names = wordnet.synonyms(word.lower())
    if not names:
        return None
    name = str(rng.choice(names))
    return name.capitalize() if word[0].isupper() else name


def perturbed(texts: Sequence[str], name: str, args: RobustnessArguments) -> list[str]:
    rng = np.random.default_rng(args.seed)
    if name == "upper":
        return [text.upper() for text in texts]
    if name == "punctuation":
        return [re.sub(r"([.,;:!?])", r"\1\1", text) for text in texts]
    change = swapped if name == "typos" else partial(synonym, wordnet=WordNet(args.wordnet))
    return [with_words(text, rng, rate=args.rate, change=change) for text in texts]


@contextmanager
def noise(table: nn.Module, radius: float, spared: Sequence[int], seed: int) -> Iterator[None]:
    """Within it, the word embeddings looked up in `table` are moved in a random direction by `radius` times their
    length, but for the tokens `spared`."""
    generator = torch.Generator().manual_seed(seed)

    def move(module: nn.Module, given: tuple[Tensor], embeds: Tensor) -> Tensor:
        direction = torch.randn(embeds.shape, generator=generator).to(embeds)
        direction = direction / direction.norm(dim=-1, keepdim=True) * embeds.norm(dim=-1, keepdim=True)
        kept = torch.isin(given[0], torch.tensor(spared, device=given[0].device)).unsqueeze(-1)
        return torch.where(kept, embeds, embeds + radius * direction)

    hook = table.register_forward_hook(move)
    try:
        yield
    finally:
        hook.remove()


def load_answers(name: str, args: RobustnessArguments) -> tuple[Predict, nn.Module, list[int], str]:
    """How the model answers, its word embeddings, the special tokens, and what gives the answers: its own head, or a
    probe."""
    folder, pooling = split_pooling(name)
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifies = any(a.endswith("ForSequenceClassification") for a in config.architectures or ())
    if classifies and is_va_regressor(config):
        head = load_classifier(folder).to(device).eval()

        def answer(texts: Sequence[str]) -> np.ndarray:
            outputs = classifier_outputs(head, texts, tokenizer, max_length=args.max_length)[:, :2]
            return 2 * outputs.double().numpy() - 1

        return answer, head.get_input_embeddings(), tokenizer.all_special_ids, "head"
    carl = isinstance(config, CarlConfig)
    if pooling == "auto":
        pooling = config.pooling if carl else stated_pooling(resolve_encoder(folder)) or "cls"
    encoder = CarlModel.from_pretrained(resolve_encoder(folder)).encoder if carl else load_measured_encoder(folder)
    encoder.to(device).eval()

    def embed(texts: Sequence[str]) -> np.ndarray:
        return embed_texts(encoder, list(texts), tokenizer, pooling=pooling, max_length=args.max_length).numpy()

    parts = [load_va_dataset(args.corpus, split=split, data_dir=args.data_dir) for split in ("train", "validation")]
    fitted = [array for part in parts for array in (embed(part["text"]), labels_of(part))]
    probe = fit_ridge(*fitted, chosen_by="squared_error")
    return lambda texts: probe(embed(texts)), encoder.get_input_embeddings(), tokenizer.all_special_ids, pooling


def shift(clean_N2: np.ndarray, moved_N2: np.ndarray, labels_N2: np.ndarray, seed: int) -> dict[str, Any]:
    """Dimension -> {"shift": mean |moved - clean|, "relative_shift": in units of the standard deviation of clean,
    "pearson": of clean with moved, "pearson_labels": [of clean, of moved], and 95 % intervals of the first three}."""
    rows, found = resample_rows(len(clean_N2), seed), {}
    columns = zip(clean_N2.T, moved_N2.T, labels_N2.T, strict=True)
    for name, (clean, moved, labels) in zip(DIMENSIONS, columns, strict=True):

        def measures(clean: np.ndarray, moved: np.ndarray) -> dict[str, np.ndarray]:
            distance = np.abs(moved - clean).mean(-1)
            deviation = np.maximum(clean.std(-1), np.finfo(float).tiny)
            return {"shift": distance, "relative_shift": distance / deviation, "pearson": pearson(clean, moved)}

        values, resampled = measures(clean, moved), measures(clean[rows], moved[rows])
        found[name] = {key: float(value) for key, value in values.items()} | {
            f"{key}_interval": interval(value) for key, value in resampled.items()
        }
        found[name]["pearson_labels"] = [float(pearson(side, labels)) for side in (clean, moved)]
    return found


def measure(name: str, texts: Sequence[str], labels_N2: np.ndarray, args: RobustnessArguments) -> dict[str, Any]:
    """Perturbation -> number of texts that it changes, and [`shift`] over them."""
    answer, words, special, answered_by = load_answers(name, args)
    clean, found = answer(texts), {}
    for perturbation in args.perturbations:
        other = perturbed(texts, perturbation, args)
        changed = [i for i, (before, after) in enumerate(zip(texts, other, strict=True)) if before != after]
        found[perturbation] = {"texts": len(changed)}
        if len(changed) > 1:
            moved = answer([other[i] for i in changed])
            found[perturbation] |= shift(clean[changed], moved, labels_N2[changed], args.seed)
    for radius in args.radii:
        with noise(words, radius, special, args.seed):
            moved = answer(texts)
        found[f"noise {radius:g}"] = {"texts": len(texts), **shift(clean, moved, labels_N2, args.seed)}
    return {"answers": answered_by, "perturbations": found}


def render(results: dict[str, Any]) -> str:
    header = ["model", "perturbation", "texts"]
    header += [f"{name}: {what}" for name in DIMENSIONS for what in ("shift", "in sd", "r", "r with labels")]
    rows = []
    for model, measured in results.items():
        for perturbation, found in measured["perturbations"].items():
            rows.append([escape(model), perturbation, str(found["texts"])])
            for name in DIMENSIONS:
                of = found.get(name)
                if of is None:
                    rows[-1] += ["–"] * 4
                    continue
                rows[-1] += [fraction(of[key]) for key in ("shift", "relative_shift", "pearson")]
                rows[-1].append(" to ".join(map(fraction, of["pearson_labels"])))
    return table(header, rows, text_columns=2)


def main() -> None:
    try:
        args = parse_script_arguments(RobustnessArguments)
        use_all_cores(args.num_threads)
        data = load_va_dataset(args.corpus, split=args.split, data_dir=args.data_dir)
        data = data.select(np.random.default_rng(args.seed).permutation(len(data))[: args.texts])
        texts, labels = list(data["text"]), labels_of(data)
        results = {name: measure(name, texts, labels, args) for name in args.model}
    except ValueError as error:
        sys.exit(f"error: {error}")
    folder = Path(args.output_dir)
    settings = {key: value for key, value in vars(args).items() if key not in ("data_dir", "output_dir", "wordnet")}
    write_json(folder / "robustness.json", {"settings": settings, **environment_record(), "models": results})
    (folder / "robustness.md").write_text(render(results) + "\n", encoding="utf-8")
    print(render(results))


if __name__ == "__main__":
    main()
