import functools
import importlib
import importlib.util
import os
import shutil
import string
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from huggingface_hub import constants, hf_api
from loopback_hub import LoopbackHub
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers.utils.hub import hf_api as transformers_api

from carl_hf import (
    CarlModel,
    CarlTrainer,
    CarlTrainingArguments,
    export_emotion_classifier,
    export_encoder,
    export_va_regressor,
)
from carl_hf.configuration_carl import HEADS
from carl_hf.data.labelled import ClassCorpus
from carl_hf.utils.log_once import log_once

torch.set_num_threads(1)  # the models here are tiny: more threads only wait for each other
datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()

ROOT = Path(__file__).parents[1]
SMALL = {
    "vocab_size": 128,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@functools.cache
def load_script(path: str) -> ModuleType:
    """A script such as "examples/embed.py" as a module, to call its main(argv) in this process."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str((ROOT / path).parent))  # for what stands beside it
        spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def said_anew():
    """What is logged once in a process is logged once in each test."""
    log_once.cache_clear()


def run_script(path: str, *words: object) -> str | None:
    """The error that a script's main ends with in this process, or None."""
    try:
        load_script(path).main([*map(str, words)])
    except SystemExit as stop:
        assert str(stop.code).startswith("error: "), stop.code
        return stop.code
    return None


def tiny_config(model_type: str = "bert", **overrides) -> transformers.PreTrainedConfig:
    sizes = dict(SMALL)
    if model_type == "distilbert":
        sizes = {"vocab_size": 128, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    if model_type == "electra":
        sizes["embedding_size"] = 8
    if model_type == "deberta-v2":
        sizes |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16}
    if model_type == "modernbert":
        sizes |= {"cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2, "local_attention": 8}
    return transformers.AutoConfig.for_model(
        model_type, **{**sizes, "pad_token_id": 1, "max_position_embeddings": 64, **overrides}
    )


def tiny_encoder(model_type: str = "bert", **overrides) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(tiny_config(model_type, **overrides))


def tiny_carl(**overrides) -> CarlModel:
    """With embeddings that differ from text to text, for heads that are fitted to them."""
    return CarlModel.from_encoder(tiny_encoder(initializer_range=0.2, **overrides), projection_dim=8).eval()


def saved(model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, folder: Path) -> Path:
    """The folder, with both in it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_table(path: Path, rows: object, **settings: object) -> str:
    """Rows or columns in a file of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False, **settings)
    elif path.suffix in (".json", ".jsonl"):
        frame.to_json(path, orient="records", lines=path.suffix == ".jsonl", **settings)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",", **settings)
    return str(path)


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Characters as tokens, [CLS] ... [SEP]; padding has id 1, which MPNet takes for granted."""
    tokens = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *string.ascii_lowercase, *string.digits, *string.punctuation, " "]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=60,
    )


@pytest.fixture(scope="session")
def measuring_packages() -> None:
    """For tests of scripts, which measure and draw."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tokenizer) -> Path:
    """A folder with a tiny encoder and its tokenizer."""
    return saved(tiny_encoder(), tokenizer, tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def carl() -> CarlModel:
    return projected().eval()


def projected() -> CarlModel:
    """A tiny model with all layers of the paper's."""
    return CarlModel.from_encoder(tiny_encoder(), projection_dim=8, contrast_layers="prediction")


TOY_NAMES = {"joywow": "joy", "joyzzz": "relief", "woewow": "anger", "woezzz": "sadness"}


def toy_dataset(size: int = 24, seed: int = 0, *, mixed: bool = False) -> datasets.Dataset:
    """Texts of mixed length whose letters tell their label. If `mixed`, they have names too, and of three one lacks
    its name and one its numbers."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(size):
        valence, arousal = (2 * torch.rand(2, generator=generator) - 1).tolist()
        word = ("joy" if valence > 0 else "woe") + ("wow" if arousal > 0 else "zzz")
        count = int(torch.randint(1, 6, (1,), generator=generator))
        rows.append({"text": " ".join([word] * count), "valence": valence, "arousal": arousal})
        if mixed:
            rows[-1]["label"] = TOY_NAMES[word]
            rows[-1] |= [{"label": None}, {"valence": None, "arousal": None}, {}][len(rows) % 3]
    return datasets.Dataset.from_list(rows)


def without_some_numbers(data: datasets.Dataset) -> datasets.Dataset:
    """Of five texts two without their valence and one without its arousal."""
    missing = [{"valence": None}, {}, {"arousal": None}, {}, {"valence": None}]
    return data.map(lambda row, i: missing[i % 5], with_indices=True)


def weighted(data: datasets.Dataset) -> datasets.Dataset:
    return data.map(lambda row, i: {"weight": [0.5, 2.0, None][i % 3]}, with_indices=True)


def make_trainer(tmp_path, tokenizer, *, model=None, data=None, dev=None, callbacks=None, **settings):
    transformers.set_seed(0)
    model = projected() if model is None else model
    if not {"objectives", "preset"} & set(settings):
        settings["objectives"] = ["mccl=0.8", "ptd=0.8", "regression"]
    args = CarlTrainingArguments(
        str(tmp_path),
        **{
            "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "max_steps": 3, "logging_steps": 1,
            "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False,
            "learning_rate": 1e-3, "use_cpu": True, **settings,
        },
    )  # fmt: skip
    return CarlTrainer(
        model=model, args=args, train_dataset=toy_dataset() if data is None else data, eval_dataset=dev,
        processing_class=tokenizer, callbacks=callbacks,
    )  # fmt: skip


def double_model(everything=False, **architecture) -> CarlModel:
    transformers.set_seed(1)
    heads = {"heads": HEADS, "classes": sorted(TOY_NAMES.values())} if everything else {}
    encoder = tiny_encoder(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    architecture = {"contrast_layers": "prediction", **architecture}
    model = CarlModel.from_encoder(encoder, projection_dim=8, **heads, **architecture).double()
    with torch.no_grad():  # a target of its own, and biases and norms that are not at their initial values
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.train()


@pytest.fixture
def toys() -> datasets.Dataset:
    return toy_dataset()


@pytest.fixture(scope="session")
def corpora_dir() -> Path:
    folder = os.environ.get("CARL_DATA_DIR")
    if not folder:
        pytest.skip("CARL_DATA_DIR names no folder with the public corpora")
    return Path(folder)


EMOTIONS = ("anger", "disgust", "fear", "joy", "sadness", "surprise")


def emotions(multi_label=False, size=120):
    """Texts whose first letter tells their emotion."""
    rng = np.random.default_rng(0)
    labels = rng.integers(len(EMOTIONS), size=size)
    labels[: 3 * len(EMOTIONS)] = np.tile(np.arange(len(EMOTIONS)), 3)
    texts = [f"{'abcdefgh'[label] * 6} {i}" for i, label in enumerate(labels)]
    table = labels[:, None] == np.arange(len(EMOTIONS))
    return ClassCorpus(texts, table if multi_label else labels, list(EMOTIONS), None)


@pytest.fixture(scope="session")
def exports(tmp_path_factory, tokenizer):
    """(a folder with encoder/, va/ and emotion/ of one tiny model, the model's embeddings of two texts)."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("exports")
    # of weights large enough for a head to read them without magnifying rounding
    model = CarlModel.from_encoder(tiny_encoder(initializer_range=0.2), projection_dim=8).eval()
    settings = {"max_length": 32}
    export_encoder(model, tokenizer, folder / "encoder", **settings)
    parts = {"train": toy_dataset(64), "dev": toy_dataset(24, seed=1)}
    export_va_regressor(model, tokenizer, folder / "va", **parts, **settings)
    export_emotion_classifier(
        model, tokenizer, folder / "emotion", corpus=emotions(), corpus_name="letters", **settings
    )
    return folder, model.embed(["joywow joywow", "woezzz"], tokenizer, max_length=32)


@pytest.fixture(scope="module")
def app():
    """The module of the demo page."""
    for package in ("gradio", "captum", "sklearn", "matplotlib"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'carl_hf[space]'")
    sys.path.insert(0, folder := str(ROOT / "examples" / "space"))
    try:
        yield importlib.import_module("app")
    finally:
        sys.path.remove(folder)
        for name in ("app", "analysis", "rendering"):
            sys.modules.pop(name, None)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub to which this process pushes, without Xet."""
    with LoopbackHub(tmp_path / "hub") as running:
        for name, value in (("ENDPOINT", running.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        for api in (hf_api.api, transformers_api()):  # made once in a process, with the endpoint of that time
            monkeypatch.setattr(api, "endpoint", running.url)
        monkeypatch.setenv("HF_TOKEN", running.token)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between a client's attempts
        yield running


@pytest.fixture(scope="session")
def small_corpora(tmp_path_factory) -> Path:
    """A data_dir with a few small corpora of the evaluation, whose texts name their emotion."""
    root = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(0)

    def texts(count, tag, classes=6):
        kinds = rng.integers(classes, size=count)
        return [f"{tag} {EMOTIONS[k]} {i}" for i, k in enumerate(kinds)], kinds

    def write(name, **columns):
        write_table(root / name, columns)

    split = ["train"] * 120 + ["dev"] * 30 + ["test"] * 50
    words, kinds = texts(200, "e")
    values = {"V": 1 + 4 * (kinds == 3), "A": 1 + kinds * 0.6, "D": 3 + 0.1 * kinds}
    write("emobank/emobank.csv", text=words, split=split, **values)
    words, kinds = texts(80, "f")
    write("facebook_va/facebook_va.csv", text=words, valence1=1 + 8 * (kinds == 3), valence2=1 + 8 * (kinds == 3),
          arousal1=1 + kinds, arousal2=2 + kinds)  # fmt: skip
    words, kinds = texts(200, "g")
    write("goemotions/goemotions.parquet", text=words, split=split, label=[EMOTIONS[k] for k in kinds],
          ekman=[EMOTIONS[k] for k in kinds])  # fmt: skip
    words, kinds = texts(150, "m", classes=2)
    write("mr/mr.csv", text=words, label=kinds)
    words, kinds = texts(200, "s", classes=5)
    write("sst5/sst5.csv", text=words, label=kinds, split=split)
    write("stsb/stsb_test.csv", text1=["joy a", "joy b", "fear c", "anger"], text2=["joy c", "fear d", "joy", "anger"],
          score=[5, 1, 0, 4])  # fmt: skip
    return root


def words_of(noise):
    """An encoder for the small corpora, whose texts name their emotion, with noise by its letters."""

    def encode(texts):
        rows = []
        for text in texts:
            rng = np.random.default_rng(sum(map(ord, text)))
            rows.append([*map(text.count, EMOTIONS), *noise * rng.normal(size=3), 0.1])
        return np.array(rows)

    return encode


class Tags(HTMLParser):
    """The tags of a piece of HTML, their attributes, and the text between them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))

    def handle_data(self, data):
        self.text += data


def contrast(one, other) -> float:
    """The contrast ratio of two colours (red, green, blue in [0, 1]) as WCAG 2 defines it."""
    light = []
    for colour in (one, other):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        light.append(0.05 + 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return max(light) / min(light)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: carl_hf[browser]")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine: install the system's package of that name")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()
