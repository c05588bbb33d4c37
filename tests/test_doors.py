"""By whichever door texts, encoders, tokenizers and checkpoints come in: the right result, or one line that refuses.

A cell of the table is a door by a room. What a room gives for the plainest door (a Dataset, a loaded encoder, its own
tokenizer, a checkpoint as it was written) is the right result of all its doors; none may raise anything but a
ValueError or TypeError of one line.
"""

import copy
import json
import os
import shutil
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
import transformers
from conftest import Tags, make_trainer, saved, tiny_config, tiny_encoder, toy_dataset
from huggingface_hub import constants
from loopback_hub import File, Repository
from safetensors.torch import load_file, save_file

from carl_hf import CarlModel, export_encoder, export_va_regressor, load_va_dataset
from carl_hf.encoders.embedding import embed_texts
from carl_hf.evaluation.encoder import load_text_encoder

pytest.importorskip("sklearn")
TEXTS = ["joywow joywow joywow", "woezzz"]
CLASSES = ["happy", "sad"]

# ---- texts


def labelled_rows():
    rows = toy_dataset(24)
    return rows.add_column("label", [CLASSES["woe" in text] for text in rows["text"]])


def rows_file(rows, folder):
    rows.to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


DATA = {
    "Dataset": lambda rows, folder: rows,
    "file": lambda rows, folder: datasets.Dataset.from_parquet(rows_file(rows, folder), cache_dir=str(folder)),
    "path": rows_file,
    "Hub data set": lambda rows, folder: load_va_dataset("org/rows", split="train", scale=(-1, 1)),
    "Hub id": lambda rows, folder: "org/rows",
    "list": lambda rows, folder: rows.to_list(),
    "IterableDataset": lambda rows, folder: rows.to_iterable_dataset(),
    "DataFrame": lambda rows, folder: rows.to_pandas(),
    "DatasetDict": lambda rows, folder: datasets.DatasetDict(train=rows),
    "torch format": lambda rows, folder: rows.with_format("torch"),
    "ClassLabel": lambda rows, folder: rows.cast_column("label", datasets.ClassLabel(names=[*CLASSES, "none"])),
    "other columns": lambda rows, folder: rows.rename_columns({"text": "sentence"}),
    "stream of other columns": lambda rows, folder: rows.rename_columns({"text": "words"}).to_iterable_dataset(),
    "stream of numbers": lambda rows, folder: rows.to_iterable_dataset().map(lambda row: {"text": 3}),
}


def train(rows, folder, tokenizer):
    trainer = make_trainer(folder, tokenizer, data=rows, probe_texts=0)
    return [trainer.train().training_loss, trainer.state.global_step]


def stream(rows, folder, tokenizer):
    return train(rows.to_iterable_dataset() if isinstance(rows, datasets.Dataset) else rows, folder, tokenizer)


def evaluate(rows, folder, tokenizer):
    metrics = make_trainer(folder, tokenizer, dev=rows).evaluate()
    prefix = "eval_train" if isinstance(rows, dict) else "eval"  # a dictionary holds several sets
    return [metrics[f"{prefix}_{name}"] for name in ("loss", "mccl", "ptd")]


def finetune(rows, folder, tokenizer, model=None):
    model = model or CarlModel.from_encoder(tiny_encoder(), heads=["classifier"], classes=CLASSES)
    trainer = make_trainer(folder, tokenizer, model=model, data=rows, objectives=["cross_entropy"], probe_texts=0)
    trainer.train()
    return trainer.model.classifier(trainer.model.embed(TEXTS, tokenizer)).detach()


def page(rows, folder, tokenizer, use):
    app = use("app")
    if isinstance(rows, datasets.Dataset):
        rows.to_csv(folder / "rows.csv")
        rows = str(folder / "rows.csv")
    status, file = app.show_file(use("models"), rows)
    if not file.visible:
        raise ValueError(Tags(status).text)
    return pd.read_csv(file.value["path"])[["valence", "arousal"]].to_numpy()


def embed(rows, folder, tokenizer):
    texts = rows["text"] if isinstance(rows, datasets.Dataset) else rows
    return embed_texts(tiny_encoder(), texts, tokenizer, pooling="cls")


def export_head(rows, folder, tokenizer):
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8).eval()
    export_va_regressor(model, tokenizer, folder / "va", train=rows)
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder / "va").classifier.weight.detach()


# ---- encoders


def stored(model, folder, tokenizer):
    return str(saved(model, tokenizer, folder / "model"))


def damaged(folder, tokenizer, change):
    name = stored(tiny_encoder(), folder, tokenizer)
    weights = change(load_file(folder / "model" / "model.safetensors"))
    save_file(weights, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    return name


def renamed(folder, tokenizer, change):
    """The folder of an encoder whose configuration `change` has altered."""
    name = stored(tiny_encoder(), folder, tokenizer)
    path = folder / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return name


def headed():
    model = transformers.BertForSequenceClassification(tiny_config())
    model.bert.load_state_dict(tiny_encoder().state_dict())
    return model


def adapted(add):
    peft = pytest.importorskip("peft")
    encoder, lora = tiny_encoder(), peft.LoraConfig(target_modules=["query"])
    return (encoder.add_adapter(lora), encoder)[1] if add else peft.get_peft_model(encoder, lora)


ENCODERS = {
    "object": lambda *given: tiny_encoder(),
    "folder": lambda *given: stored(tiny_encoder(), *given),
    "Hub id": lambda *given: "org/tiny",
    "Hub id that does not exist": lambda *given: "org/none",
    "configuration of a later version": lambda *given: renamed(*given, {"transformers_version": "99.0", "new": [1]}),
    "kind of a later version": lambda *given: renamed(*given, {"model_type": "bert99", "architectures": ["Bert99"]}),
    "bfloat16": lambda *given: tiny_encoder().to(torch.bfloat16),
    "bfloat16, folder": lambda *given: stored(tiny_encoder().to(torch.bfloat16), *given),
    "with a head": lambda *given: headed(),
    "with a head, folder": lambda *given: stored(headed(), *given),
    "adapter of PEFT": lambda *given: adapted(add=False),
    "adapter of PEFT, folder": lambda *given: stored(adapted(add=False), *given),
    "adapter added": lambda *given: adapted(add=True),
    "half of the weights": lambda *given: damaged(
        *given, lambda weights: {key: value for key, value in weights.items() if "layer.1" not in key}
    ),
    "prefixed weights": lambda *given: damaged(
        *given, lambda weights: {f"_orig_mod.{key}": value for key, value in weights.items()}
    ),
}


def train_encoder(encoder, folder, tokenizer):
    """The trained embeddings, which the export has too."""
    trainer = make_trainer(folder, tokenizer, model=CarlModel.from_encoder(encoder, projection_dim=8), max_steps=2)
    trainer.train()
    export_encoder(trainer.model, tokenizer, folder / "trained")
    found = trainer.model.embed(TEXTS, tokenizer)
    torch.testing.assert_close(
        torch.as_tensor(load_text_encoder(str(folder / "trained"))(TEXTS)), found, rtol=1e-4, atol=1e-5
    )
    return found


def finetune_encoder(encoder, folder, tokenizer):
    model = CarlModel.from_encoder(encoder, heads=["classifier"], classes=CLASSES)
    return finetune(labelled_rows(), folder, tokenizer, model)


def embed_encoder(encoder, folder, tokenizer):
    if isinstance(encoder, str):
        return load_text_encoder(encoder)(TEXTS)
    return embed_texts(encoder, TEXTS, tokenizer, pooling="cls")


def export(encoder, folder, tokenizer):
    """What transformers gives for the export and a padded batch."""
    export_encoder(CarlModel.from_encoder(encoder, projection_dim=8).eval(), tokenizer, folder / "export")
    batch = transformers.AutoTokenizer.from_pretrained(folder / "export")(TEXTS, padding=True, return_tensors="pt")
    return transformers.AutoModel.from_pretrained(folder / "export")(**batch).last_hidden_state[:, 0].detach()


# ---- tokenizers


def changed(tokenizer, name=None, value=None):
    tokenizer = copy.deepcopy(tokenizer)
    if name is None:
        tokenizer.add_tokens([*(f"<{i}>" for i in range(100)), "joywow", "woezzz"])  # beyond the encoder's 128 rows
    else:
        setattr(tokenizer, name, value)
    return tokenizer


TOKENIZERS = {
    "its own": lambda tokenizer: tokenizer,
    "left-padded": lambda tokenizer: changed(tokenizer, "padding_side", "left"),
    "larger": changed,
    "without pad": lambda tokenizer: changed(tokenizer, "pad_token", None),
}

# ---- checkpoints

MADE = Path(__file__).parent / "made_by_0_1_0" / "checkpoint-4"


def rewritten(folder, name, change):
    path = folder / "checkpoint-2" / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    record = json.loads((folder / "checkpoint-2" / "checkpoint.json").read_text())  # which holds the files' sizes
    if name in record["bytes"]:
        record["bytes"][name] = path.stat().st_size
        (folder / "checkpoint-2" / "checkpoint.json").write_text(json.dumps(record))


def as_by_0_1_0(folder):
    for name in ("config.json", "checkpoint.json"):
        kept = json.loads((MADE / name).read_text())
        rewritten(folder, name, lambda content, kept=kept: {k: v for k, v in content.items() if k in kept})


def by_a_later_version(folder):
    for name in ("config.json", "checkpoint.json"):
        rewritten(folder, name, lambda content: {**content, "new": {"setting": 1}, "transformers_version": "99.0"})


CHECKPOINTS = {
    "as it was written": lambda folder: None,
    "as version 0.1.0 wrote them": as_by_0_1_0,
    "of a later version": by_a_later_version,
    "with a setting that is gone": lambda folder: rewritten(
        folder, "checkpoint.json", lambda content: {**content, "layer_decay": 0.9}
    ),
    "with an unknown contrast": lambda folder: rewritten(
        folder, "config.json", lambda content: {**content, "contrast_layers": "three"}
    ),
    "without its record": lambda folder: (folder / "checkpoint-2" / "checkpoint.json").unlink(),
    "cut short": lambda folder: os.truncate(folder / "checkpoint-2" / "model.safetensors", 9000),
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("trained")
    make_trainer(folder, tokenizer, max_steps=2, save_strategy="steps", save_steps=2).train()
    return folder / "checkpoint-2"


def resume(checkpoint, folder, tokenizer):
    trainer = make_trainer(folder, tokenizer, max_steps=4)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.model.embed(TEXTS, tokenizer)


def load(checkpoint, folder, tokenizer):
    return CarlModel.from_pretrained(checkpoint).embed(TEXTS, tokenizer)


def evaluate_checkpoint(checkpoint, folder, tokenizer):
    return load_text_encoder(checkpoint)(TEXTS)


def copied(door, folder, tokenizer, use):
    shutil.copytree(use("trained"), folder / "checkpoint-2")
    door(folder)
    return str(folder / "checkpoint-2"), folder, tokenizer


TABLE = {
    "texts": (DATA, [train, stream, finetune, evaluate, embed, export_head, page],
              lambda door, folder, tokenizer, use: (door(labelled_rows(), folder), folder, tokenizer)),
    "encoder": (ENCODERS, [train_encoder, finetune_encoder, embed_encoder, export],
                lambda door, folder, tokenizer, use: (door(folder, tokenizer), folder, tokenizer)),
    "tokenizer": (TOKENIZERS, [train_encoder, embed_encoder, export],
                  lambda door, folder, tokenizer, use: (tiny_encoder(), folder, door(tokenizer))),
    "checkpoint": (CHECKPOINTS, [resume, load, evaluate_checkpoint], copied),
}  # fmt: skip
CELLS = [
    pytest.param(kind, door, room, id=f"{door}-{room.__name__}")
    for kind, (doors, rooms, _) in TABLE.items() for door in doors for room in rooms
    if (room is not stream or "Dataset" == door or "format" in door)
    and (room is not page or door in ("Dataset", "path"))
    and (room is not finetune or door != "IterableDataset")  # in another order
]  # fmt: skip
ACCEPTED = {  # in every room, or at least in this one
    "Dataset", "file", "Hub data set", "torch format", "ClassLabel", "list-train", "list-finetune",
    "list-evaluate", "IterableDataset-train", "IterableDataset-evaluate", "DataFrame-train", "DataFrame-finetune",
    "DataFrame-evaluate", "DatasetDict-evaluate", "object", "folder", "Hub id-train_encoder",
    "Hub id-finetune_encoder", "Hub id-embed_encoder", "Hub id-export", "configuration of a later version",
    "bfloat16", "bfloat16, folder", "with a head-export",
    "with a head, folder-train_encoder", "its own", "left-padded", "as it was written", "as version 0.1.0 wrote them",
    "of a later version-load", "of a later version-evaluate_checkpoint", "with a setting that is gone-load",
    "without its record-load",
}  # fmt: skip
RIGHT = {}


@pytest.fixture(scope="module")
def models(app, exports):
    return app.load_models(app.PageArguments(model=str(exports[0])))


@pytest.fixture
def published(hub, tiny, tmp_path, monkeypatch):
    """An encoder and a data set on a Hub."""
    hub.repositories["org/tiny"] = Repository("org/tiny", private=False)
    files = {path.name: File(path.name, data=path.read_bytes()) for path in tiny.iterdir()}
    hub.repositories["org/tiny"].commit("main", files, "tiny")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(train=labelled_rows()))


@pytest.mark.parametrize("kind, door, room", CELLS)
def test_a_cell_gives_the_right_result_or_one_line(kind, door, room, tmp_path, tokenizer, request):
    doors, _, arrange = TABLE[kind]
    use = request.getfixturevalue

    def result(of, door, folder):
        given = arrange(doors[door], folder, tokenizer, use)
        torch.manual_seed(0)  # of the layers around an encoder
        return torch.as_tensor(of(*given, *([use] if of is page else [])))

    wanted = (kind, stream if door == "IterableDataset" and room is train else room)
    if wanted not in RIGHT:
        (tmp_path / "right").mkdir()
        RIGHT[wanted] = result(wanted[1], next(iter(doors)), tmp_path / "right")
    if door.startswith("Hub"):
        use("published")
    try:
        found = result(room, door, tmp_path)
    except (ValueError, TypeError) as error:
        assert len(str(error).strip().splitlines()) == 1, repr(error)
        assert door not in ACCEPTED and f"{door}-{room.__name__}" not in ACCEPTED, repr(error)
        return
    if "adapter" not in door or room is not train_encoder:  # which trains other weights than the plain encoder
        tolerance = 0.03 if "bfloat16" in door else 1e-5
        torch.testing.assert_close(found, RIGHT[wanted], rtol=tolerance, atol=tolerance)
