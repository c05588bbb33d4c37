"""The score by which recipes are chosen: the mean of six numbers between 0 and 1, all on development parts. recipe.py
uses it; of any other encoders it is printed by

    python benchmarks/studies/development.py --model minilm-l6@mean runs/carl-mpnet/encoder --data_dir DIR --bf16 true

- feeling over topic: share of the development triplets that are in order
- label nearness: Spearman's rho of cosine with nearness of labels, over all pairs of EmoBank's development texts
- neighbours: r of the mean label of the 10 nearest training texts, mean of valence and arousal, EmoBank
- probe: r of a ridge probe, mean of valence and arousal, EmoBank
- same emotion: precision at 10 of retrieval, GoEmotions' six emotions
- sentiment: mean accuracy on SST5, CR and MR of a logistic probe. CR and MR have no development part: a third of the
  texts, every third one, stands in for it, by ten-fold cross-validation within that third

The score was fixed before the first run.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carl_hf import load_va_dataset
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import use_all_cores
from carl_hf.data.feeling import read_feeling_triplets
from carl_hf.data.labelled import ClassCorpus, read_emotion, read_polarity, read_va
from carl_hf.data.splits import split_rows
from carl_hf.encoders.embedding import EncodeOnce
from carl_hf.evaluation.emotion import class_dataset
from carl_hf.evaluation.encoder import load_text_encoder, split_pooling
from carl_hf.evaluation.neighbours import knn_predictions, retrieval
from carl_hf.evaluation.polarity import measure_polarity
from carl_hf.evaluation.space import label_nearness, measure_feeling
from carl_hf.evaluation.statistics import pearson
from carl_hf.report.tables import fraction, table
from carl_hf.training.dev_probe import DevProbe
from carl_hf.utils.fields import setting

SCORED = ("feeling over topic", "label nearness", "neighbours", "probe", "same emotion", "sentiment")
SST5_TEXTS = 3000
"""Training texts that the probe on SST5 is fitted to."""


@dataclass
class DevelopmentArguments:
    model: list[str] = setting(["minilm-l6@mean"], "Models: MODEL or MODEL@POOLING.")
    data_dir: str | None = setting(None, "Folder with local copies of the corpora.")
    bf16: bool = setting(False, "bfloat16 autocast.")
    num_threads: int | None = setting(None, "CPU threads (default: all cores).")


class DevelopmentScore:
    """Measures encoders on the development parts, which are read once.

    Args:
        data_dir: folder with local copies of the corpora.
    """

    def __init__(self, data_dir: str | Path | None):
        self._va, self._six = read_va("emobank", data_dir), read_emotion("goemotions-six", data_dir)
        self._emobank = [load_va_dataset("emobank", split=s, data_dir=data_dir) for s in ("train", "validation")]
        sst5 = read_polarity("sst5", data_dir)
        self._sst5 = [class_dataset(sst5, rows) for rows in split_rows(sst5)[:2]]
        self._thirds = {name: _third(read_polarity(name, data_dir)) for name in ("cr", "mr")}

    def __call__(self, encode: Callable[[Sequence[str]], np.ndarray]) -> dict[str, float]:
        """Every number of the score, what some of them are the mean of, and `score`, in percent."""
        encode_once = EncodeOnce(encode)
        found = self._space(encode_once)
        probe = DevProbe(self._emobank[0], texts=len(self._emobank[0]), seed=42)(encode_once, self._emobank[1])
        found |= {
            "V probe": probe["valence_pearson"],
            "A probe": probe["arousal_pearson"],
            "probe": probe["va_pearson"],
        }
        sst5 = DevProbe(self._sst5[0], texts=SST5_TEXTS, seed=42)(encode_once, self._sst5[1])
        found["sst5"] = sst5["label_accuracy"] / 100
        for name, corpus in self._thirds.items():
            found[name] = measure_polarity(encode_once, corpus, protocol="fast")[0]["accuracy"] / 100
        found["sentiment"] = float(np.mean([found[name] for name in ("sst5", "cr", "mr")]))
        return found | {"score": 100 * float(np.mean([found[name] for name in SCORED]))}

    def _space(self, encode: EncodeOnce) -> dict[str, float]:
        """What is read off the vectors by cosine, with nothing fitted."""
        texts, labels = self._va.texts, self._va.labels[:, :2]
        train, dev = self._va.rows("train"), self._va.rows("validation")
        known, asked = (encode([texts[i] for i in rows]) for rows in (train, dev))
        predictions = knn_predictions(known, labels[train], asked)
        (base, base_labels), (queries, query_labels) = (self._six.part(rows) for rows in split_rows(self._six)[:2])
        same = retrieval(encode(queries), query_labels, encode(base), base_labels)
        feeling = measure_feeling(encode, read_feeling_triplets("validation"), seed=42)[0]
        return {
            "feeling over topic": feeling["accuracy"] / 100,
            "label nearness": label_nearness(asked, labels[dev])["both"],
            "neighbours": float(pearson(predictions.T, labels[dev].T).mean()),
            "same emotion": float(same["precision_at_10"].mean()),
        }


def held_out_texts(data_dir: str | Path | None) -> list[list[str]]:
    """All texts that recipes are measured on, which none is trained on."""
    parts = ("validation", "test")
    texts = [list(load_va_dataset("emobank", split=part, data_dir=data_dir)["text"]) for part in parts]
    six = read_emotion("goemotions-six", data_dir)
    texts += [six.part(rows)[0] for rows in split_rows(six)[1:]]
    return texts + [read_polarity(name, data_dir).texts for name in ("sst5", "cr", "mr")]


def _third(corpus: ClassCorpus) -> ClassCorpus:
    texts, labels = corpus.part(np.arange(0, len(corpus.texts), 3))
    return ClassCorpus(texts, labels, corpus.classes, None)


def main() -> None:
    rows = []
    try:
        args = parse_script_arguments(DevelopmentArguments)
        use_all_cores(args.num_threads)
        measure = DevelopmentScore(args.data_dir)
        for name in args.model:
            model, pooling = split_pooling(name)
            found = measure(load_text_encoder(model, pooling=pooling, cache_dir=None, bf16=args.bf16))
            rows.append([name, *(fraction(found[key]) for key in SCORED), f"{found['score']:.1f}"])
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(table(["model", *SCORED, "score"], rows))


if __name__ == "__main__":
    main()
