"""The Python API on values of any kind: what is promised, or a ValueError or TypeError of a few lines.

25 examples each, always the same; `pytest -m slow` takes 1,000 new ones.
"""

import math
from collections.abc import Callable
from typing import Any

import datasets
import pandas as pd
import pytest
import torch

pytest.importorskip("hypothesis")
from conftest import tiny_encoder, toy_dataset
from hypothesis import strategies as st
from test_fuzz import cells, fuzz, is_text

from carl_hf import CarlDataCollator, CarlModel, load_va_dataset
from carl_hf.adversary import pgd_perturbation, select_salient_tokens
from carl_hf.configuration_carl import HEADS
from carl_hf.data import mix_datasets
from carl_hf.encoders import embed_texts
from carl_hf.explain import Explainer
from carl_hf.losses import label_similarity
from carl_hf.momentum import cosine_momentum, momentum_from_half_life

pytestmark = pytest.mark.parametrize("examples", [25, pytest.param(1000, marks=pytest.mark.slow)])

VALUES = st.recursive(  # with numbers of a size that can be computed with
    st.one_of(
        st.sampled_from([None, True, 0, -1, -3, 1, 2, 2.5, 1e9, math.nan, math.inf, "", "ab", ["a", "a"], [1, 2]]),
        st.integers(-3, 300),
        st.floats(),
        st.text(max_size=6),
        st.binary(max_size=2),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)


def value(*usual: Any) -> st.SearchStrategy:
    return st.one_of(st.sampled_from(usual), VALUES)


def named(**usual: tuple) -> st.SearchStrategy:
    """Some of these arguments, mostly with usual values."""
    return st.fixed_dictionaries({}, optional={name: value(*values) for name, values in usual.items()})


def refused(call: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """What a call gives, or None where it refuses; any other exception is a bug."""
    try:
        return call(*arguments, **settings)
    except (ValueError, TypeError) as error:
        assert str(error) and len(str(error)) < 3000
        return None


TEXTS = st.one_of(st.lists(cells("calm", "a wild night", "naïve 😀"), max_size=4), VALUES)


def test_embeddings(examples, tokenizer):
    encoder = tiny_encoder()

    def check(texts: Any, chosen: dict[str, Any]) -> None:
        found = refused(embed_texts, encoder, texts, tokenizer, **{"pooling": "mean", **chosen})
        if found is not None:
            assert found.shape == (len(texts), 16) and found.isfinite().all() and found.dtype == torch.float32
            others = {name: chosen[name] for name in ("pooling", "max_length") if name in chosen}
            alone = [embed_texts(encoder, [text], tokenizer, **{"pooling": "mean", **others}) for text in texts]
            alone = torch.cat([*alone, torch.empty(0, 16)])
            expected = torch.nn.functional.normalize(alone) if chosen.get("normalize") else alone
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    settings = named(pooling=("cls", "mean", "pooler"), batch_size=(1, 64), max_length=(3, 128), normalize=(True,))
    fuzz(examples, check, TEXTS, settings)


def test_batches(examples, tokenizer):
    def check(rows: Any, chosen: dict[str, Any]) -> None:
        collate = refused(CarlDataCollator, tokenizer, **chosen)
        batch = collate and refused(collate, rows)
        if batch:
            assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["eligible"].shape
            assert len(batch["input_ids"]) == len(rows) and batch["input_ids"].shape[1] <= collate.max_length
            assert sorted(batch["row"].tolist()) == list(range(len(rows)))
            assert ((batch["va"].abs() <= 1) | batch["va"].isnan()).all()
            assert ((batch["weight"] > 0) & batch["weight"].isfinite()).all()
            assert sum(texts for texts, _, _ in batch["slices"]) == len(rows)
            assert sum(tokens for _, _, tokens in batch["slices"]) == batch["attention_mask"].sum()
            for position, i in enumerate(batch["row"].tolist()):
                given = rows[i].get("valence")
                expected = math.nan if given is None else float(given)
                assert batch["va"][position, 0].item() == pytest.approx(expected, abs=1e-6, nan_ok=True)
                label = rows[i].get("label")
                names = [*collate.class_indices]
                assert batch["class"][position] == (names.index(label) if label in names else -1)

    row = st.fixed_dictionaries(
        {"text": cells("calm", "a wild night")},
        optional={
            "valence": cells(0.5, -1, 0, None), "arousal": cells(1, -0.3, math.nan), "dominance": cells(0, None),
            "label": cells("joy", "fear", None), "weight": cells(1, 0.5, None),
        },
    )  # fmt: skip
    rows = st.one_of(st.lists(row, max_size=5), st.lists(st.one_of(row, VALUES), max_size=3), VALUES)
    settings = named(
        max_length=(3, 8, 128), slices=(1, 8), chunks=(1, 3), classes=(["joy", "fear"],), angles=({"joy": 0.5},),
        dominance=(True,),
    )  # fmt: skip
    fuzz(examples, check, rows, settings)


def test_sources_of_texts(examples, tmp_path):
    path = str(tmp_path / "own.csv")
    frame = pd.DataFrame({"text": ["a", "b", "c"], "valence": [1, 3, 5], "arousal": [5, 1, 2], "label": [*"xyx"]})
    frame.to_csv(path, index=False)

    def check(source: Any, chosen: dict[str, Any]) -> None:
        dataset = refused(load_va_dataset, source, **{"scale": (1, 5), **chosen})
        if dataset is not None:
            assert len(dataset) and all(map(is_text, dataset["text"]))
            numbers = [x for name in ("valence", "arousal") if name in dataset.column_names for x in dataset[name]]
            assert numbers and all(-1 <= x <= 1 for x in numbers if x is not None)
            if source == path and chosen.get("normalization", "scale") == "scale" and not chosen.get("columns"):
                least, greatest = chosen.get("scale", (1, 5))
                assert dataset["valence"][0] == pytest.approx(2 * (1 - least) / (greatest - least) - 1)

    settings = named(
        split=("train", "all"), scale=((1, 5), [0, 10]), columns=({"valence": "arousal"}, {"text": "label"}),
        normalization=("scale", "observed", "standardized"), skip_bad_rows=(True,), data_dir=(str(tmp_path),),
        dominance=(True,), agreement_weights=(True,),
    )  # fmt: skip
    sources = st.one_of(*[st.just(path)] * 3, st.sampled_from(["demo", frame, toy_dataset(3), [path]]), VALUES)
    fuzz(examples, check, sources, settings)


def test_mixtures(examples):
    toys = {"toys": toy_dataset(4), "mixed": toy_dataset(6, mixed=True), "bare": toy_dataset(3).select_columns("text")}

    def check(parts: Any, seed: Any) -> None:
        if isinstance(parts, list):
            parts = [(toys.get(part, part) if isinstance(part, str) else part, weight) for part, weight in parts]
        mixed = refused(mix_datasets, parts, seed=seed)
        if mixed is not None:
            assert len(mixed) == sum(int(w) * len(part) + round(w % 1 * len(part)) for part, w in parts)
            assert set(mixed["text"]) <= {text for toy in toys.values() for text in toy["text"]}

    stream = toy_dataset(2).to_iterable_dataset()
    others = st.sampled_from([datasets.DatasetDict(a=toy_dataset(2)), pd.DataFrame(), stream])
    pair = st.tuples(st.one_of(value(*toys), others), value(0, 1, 0.5, 2.25))
    fuzz(examples, check, st.one_of(*[st.lists(pair, max_size=3)] * 3, st.none(), st.integers()), value(0, 42))


def test_arguments_of_losses_and_attack(examples):
    va_B2, saliency_BL = torch.rand(3, 2) * 2 - 1, torch.rand(3, 5)

    def check(kernel: Any, fraction: Any, pgd: dict[str, Any], momentum: tuple) -> None:
        similarity = refused(label_similarity, va_B2, va_B2, kernel=kernel)
        assert similarity is None or (similarity.abs() <= 1 + 1e-6).all()
        chosen = refused(select_salient_tokens, saliency_BL, saliency_BL > 0, fraction=fraction)
        assert chosen is None or (chosen.sum(1) == max(1, math.ceil(fraction * 5 - 1e-9))).all()
        attack = {"radius": 0.1, "step_size": 0.1, "steps": 1, **pgd}
        mask_BL = torch.ones(2, 3, dtype=torch.bool)
        moved = refused(pgd_perturbation, lambda e: e.sum(), torch.rand(2, 3, 4), mask_BL, relative=False, **attack)
        if moved is not None:
            assert moved.isfinite().all() and (moved.norm(dim=-1) <= attack["radius"] * (1 + 1e-5) + 1e-6).all()
        at = refused(cosine_momentum, *momentum)
        assert at is None or momentum[2] <= at <= 1
        of_half_life = refused(momentum_from_half_life, momentum[2])
        assert of_half_life is None or 0 <= of_half_life <= 1

    pgd = named(radius=(0, 0.5), step_size=(0, 0.1), steps=(1, 2))
    momentum = st.tuples(value(0, 5), value(5, 10), value(0.9, 0, 1))
    fuzz(examples, check, value("cosine", "distance"), value(0.1, 1), pgd, momentum)


def test_models(examples, tokenizer):
    encoder = tiny_encoder()

    def check(chosen: dict[str, Any]) -> None:
        model = refused(CarlModel.from_encoder, encoder, **chosen)
        if model is not None:
            assert (model.classifier is not None) == ("classifier" in (chosen.get("heads") or ()))
            for name in ("pooling", "projection_dim", "contrast_layers"):
                assert getattr(model.config, name) == chosen.get(name, getattr(model.config, name))
            dropout = {m.p for m in model.encoder.modules() if isinstance(m, torch.nn.Dropout)}
            assert chosen.get("dropout") is None or dropout == {chosen["dropout"]}
            assert model.embed(["joy"], tokenizer).isfinite().all()

    settings = named(
        pooling=("cls", "mean"), projection_dim=(1, 8), contrast_layers=("none", "none+prediction"), heads=(HEADS, []),
        classes=(["joy", "fear"],), dropout=(0, 0.5), dominance=(True,),
    )  # fmt: skip
    fuzz(examples, check, settings)


@pytest.mark.parametrize("kind", ["va", "encoder"])
def test_explanations(kind, examples, exports):
    pytest.importorskip("captum")
    whole = Explainer.from_pretrained(str(exports[0] / kind))

    def check(made: dict[str, Any], text: Any, other: Any, target: Any, method: Any, chosen: dict[str, Any]) -> None:
        explainer = refused(Explainer, whole.model, whole.tokenizer, **made)
        if explainer is None:
            return
        if kind == "va":
            found = [refused(explainer.explain, text, target, method, **chosen)]
        else:
            found = refused(explainer.explain_similarity, text, other, method, **chosen) or [None]
        for attribution in found:
            if attribution is not None:
                assert len(attribution.tokens) == len(attribution.scores) == len(attribution.spans) > 0
                assert all(map(math.isfinite, attribution.scores)) and math.isfinite(attribution.prediction)
                assert attribution.tokens == tuple(attribution.text[a:b] for a, b in attribution.spans)
                assert attribution.to_html() and attribution.to_terminal(colour=True)

    texts = value("joywow woe", "a", "so  calm\n")
    made, chosen = named(pooling=("cls", "mean"), max_length=(4, 32)), named(unit=("word", "token"), steps=(1, 8))
    targets, methods = value("valence", "arousal"), value("integrated_gradients", "gradient_norm")
    fuzz(examples, check, made, texts, texts, targets, methods, chosen)
