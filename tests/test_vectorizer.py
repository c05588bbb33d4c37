"""CarlVectorizer in scikit-learn: its own checks, pipelines, searches, other processes."""

import contextlib
import copy
import json
import pickle
import shutil
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from conftest import EMOTIONS, emotions, run_script, tiny_encoder

sklearn = pytest.importorskip("sklearn")

from joblib import Parallel, delayed  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.compose import ColumnTransformer  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils.estimator_checks import estimator_checks_generator  # noqa: E402
from sklearn.utils.validation import validate_data  # noqa: E402
from transformers import AutoModel, AutoTokenizer  # noqa: E402

from carl_hf import CarlModel, export_encoder  # noqa: E402
from carl_hf.encoders import embed_texts  # noqa: E402
from carl_hf.evaluation import encoder  # noqa: E402
from carl_hf.evaluation.encoder import load_text_encoder  # noqa: E402
from carl_hf.explain import Explainer  # noqa: E402
from carl_hf.inference import CarlVectorizer  # noqa: E402


class OfNumbers(CarlVectorizer):
    """The same for rows of numbers, which scikit-learn's checks hand out: each is written down and embedded."""

    def fit(self, X, y=None):
        return super().fit(self._written(X, reset=True), y)

    def transform(self, X):
        return super().transform(self._written(X, reset=False))

    def _written(self, X, *, reset):
        rows = validate_data(self, X, reset=reset)
        return [" ".join(f"{number:.2g}" for number in row) for row in rows.tolist()]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = False, True
        return tags


@pytest.fixture(scope="module")
def vectors(tiny):
    return CarlVectorizer(str(tiny), pooling="mean", max_length=32)


def test_vectors_are_those_of_embed_texts(tiny, vectors):
    texts = ["joy wow", "woe", "calm sea"]
    encoder, tokenizer = AutoModel.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    expected = embed_texts(encoder, texts, tokenizer, pooling="mean", max_length=32).numpy()
    for given in (texts, pd.Series(texts, index=[3, 4, 5]), np.array(texts)):
        np.testing.assert_allclose(vectors.fit_transform(given), expected, atol=1e-6)
    unit = clone(vectors).set_params(normalize=True).transform(texts)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    table = clone(vectors).set_output(transform="pandas").fit_transform(texts)
    assert table.shape == (3, 16) and table.columns[15] == "carlvectorizer15"


def test_an_export_for_longer_texts_is_read_as_long(tokenizer, tmp_path):
    """By all that load it by its name."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 256
    model = CarlModel.from_encoder(tiny_encoder(max_position_embeddings=256), pooling="mean").eval()
    folder = export_encoder(model, tokenizer, tmp_path / "encoder", max_length=160)
    text = " ".join(["joy", "woe", "calm", "storm", "sea"] * 40)
    whole, cut = (model.embed([text], tokenizer, max_length=length).numpy() for length in (160, 128))
    assert np.abs(whole - cut).max() > 1e-3
    np.testing.assert_allclose(CarlVectorizer(str(folder)).fit_transform([text]), whole, atol=1e-5)
    np.testing.assert_allclose(CarlVectorizer(str(folder), max_length=128).fit_transform([text]), cut, atol=1e-5)
    assert Explainer.from_pretrained(str(folder)).max_length == 160
    pd.DataFrame({"text": [text]}).to_parquet(tmp_path / "in.parquet")
    words = [tmp_path / "in.parquet", "--model", folder, "--output_dir", tmp_path / "out", "--num_threads", 1]
    assert run_script("examples/embed.py", *words) is None
    np.testing.assert_allclose(pd.read_parquet(tmp_path / "out")["embedding"][0], whole[0], atol=1e-5)
    assert json.loads((tmp_path / "out" / "_manifest.json").read_text())["settings"]["max_length"] == 160
    (folder / "carl_export.json").write_text("{}")
    with pytest.raises(ValueError, match=r"encoder: carl_export.json is damaged. Export the model again."):
        CarlVectorizer(str(folder)).fit([text])


@pytest.mark.filterwarnings("ignore:Can't test estimator")
def test_the_checks_of_scikit_learn(tiny):
    names = []
    for estimator in (CarlVectorizer(str(tiny)), OfNumbers(str(tiny), max_length=32)):
        for instance, check in estimator_checks_generator(estimator):
            with contextlib.suppress(unittest.SkipTest):  # says that it does not apply
                check(instance)
                names.append(check.func.__name__)
    assert {"check_estimator_cloneable", "check_fit_idempotent", "check_transformer_general"} <= set(names)
    assert len(names) > 30


def test_a_search_over_a_pipeline_in_two_processes(vectors):
    corpus = emotions(size=60)
    labels = np.array(EMOTIONS)[corpus.labels]
    model = make_pipeline(vectors, LogisticRegression(max_iter=200))
    search = GridSearchCV(
        model, {"carlvectorizer__pooling": ["cls", "mean"], "logisticregression__C": [1, 100]}, n_jobs=2, cv=2
    )
    search.fit(corpus.texts, labels)
    assert search.best_score_ > 0.9 and len(search.cv_results_["params"]) == 4
    assert (search.predict(corpus.texts) == labels).mean() > 0.9
    columns = ColumnTransformer([("vectors", vectors, "text")], remainder="passthrough")
    assert columns.fit_transform(pd.DataFrame({"text": ["joy", "woe"], "n": [1, 2]})).shape == (2, 17)


def test_joblib_and_pickles_carry_the_settings_alone(vectors):
    expected = vectors.fit(["joy"]).transform(["joy", "woe"])
    packed = pickle.dumps(vectors)
    assert len(packed) < 1000 and np.array_equal(pickle.loads(packed).transform(["joy", "woe"]), expected)
    (found,) = Parallel(n_jobs=2)(delayed(vectors.transform)(texts) for texts in [["joy", "woe"]])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_copies_of_the_same_settings_share_one_encoder(vectors, monkeypatch):
    encoder._loaded.cache_clear()
    loads, load = [], encoder.load_text_encoder
    monkeypatch.setattr(encoder, "load_text_encoder", lambda *n, **s: loads.append(1) or load(*n, **s))
    for _ in range(3):
        clone(vectors).fit_transform(["joy"])
    assert len(loads) == 1


def test_another_encoder_in_the_same_folder_is_read_anew(tiny, tmp_path):
    folder, texts, labels = tmp_path / "encoder", ["joy", "woe", "calm", "storm"], [0, 1, 0, 1]
    shutil.copytree(tiny, folder)
    given = {"memory": str(tmp_path / "cache")}
    make_pipeline(CarlVectorizer(str(folder)), LogisticRegression(), **given).fit(texts, labels)
    tiny_encoder(initializer_range=0.3).save_pretrained(folder)
    for options in (given, {}):
        model = make_pipeline(CarlVectorizer(str(folder)), LogisticRegression(), **options).fit(texts, labels)
        expected = LogisticRegression().fit(load_text_encoder(str(folder)).embed(texts), labels)
        np.testing.assert_allclose(model[-1].coef_, expected.coef_, atol=1e-6)


@pytest.mark.parametrize("changed", [{"normalize": True}, {"pooling": "cls"}, {"max_length": 4}])
def test_settings_that_change_the_vectors_ask_for_another_fit(changed, vectors):
    fitted = clone(vectors).fit(["joy"]).set_params(**changed)
    with pytest.raises(ValueError, match="made otherwise .length, pooling, normalize.: fit again"):
        fitted.transform(["joy"])
    assert fitted.fit(["joy"]).transform(["joy"]).shape == (1, 16)


def test_a_model_copied_without_its_folders_is_named_unless_it_states_its_pooling_twice(tokenizer, tmp_path):
    model = CarlModel.from_encoder(tiny_encoder(), pooling="mean")
    folder = export_encoder(model, tokenizer, tmp_path / "encoder", max_length=32)
    expected = CarlVectorizer(str(folder)).transform(["joy woe"])
    shutil.rmtree(folder / "1_Pooling")
    np.testing.assert_array_equal(CarlVectorizer(str(folder)).transform(["joy woe"]), expected)
    (folder / "carl_export.json").unlink()
    with pytest.raises(ValueError, match="lacks 1_Pooling/config.json, which states its pooling: copy or download"):
        CarlVectorizer(str(folder)).fit(["joy"])
    assert CarlVectorizer(str(folder), pooling="mean").transform(["joy woe"]) == pytest.approx(expected)


def test_threads_that_ask_together_load_one_encoder(vectors, monkeypatch):
    encoder._loaded.cache_clear()
    loads, load = [], encoder.load_text_encoder

    def slowly(*names, **settings):
        loads.append(1)
        time.sleep(0.2)
        return load(*names, **settings)

    monkeypatch.setattr(encoder, "load_text_encoder", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(vectors.transform, [["joy"]] * 4))
    assert len(loads) == 1


class ByIndex:
    def __len__(self):
        return 2

    def __getitem__(self, row):
        return ["joy", "woe"][row]


def test_texts_by_their_row_alone_are_read(vectors):
    assert vectors.transform(ByIndex()).shape == (2, 16)


@pytest.mark.parametrize("given, message", [
    ("joy", "got one str: pass"), ({"text": ["joy"]}, "got one dict"),
    (["joy", None], "text 1 is missing: drop or fill it"), ([], "got no texts"),
    (["joy", 3], "text 1 is no text but int"),
    (5, "a list of texts, got 5"), (None, "a list of texts, got None"),
    (pd.DataFrame({"text": ["joy"]}), r"a table of shape \(1, 1\): table\['text'\]"),
])  # fmt: skip
def test_anything_but_texts_is_refused(given, message, vectors):
    for call in (vectors.fit, vectors.transform):
        with pytest.raises(ValueError, match=message):
            call(given)


def test_fit_takes_no_generator_which_transform_would_find_empty(vectors):
    with pytest.raises(ValueError, match=r"a generator has them once: list\(texts\)"):
        vectors.fit_transform(text for text in ["joy", "woe"])
