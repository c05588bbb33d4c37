"""By whichever door texts, an encoder or a tokenizer come in: the right result, or one line that refuses.

A cell of the table is a door by a room. What a room gives for the plainest door (a Dataset, a loaded encoder, its own
tokenizer) is the right result of all its doors; none may raise anything but a ValueError or TypeError of one line.
"""

import copy

import datasets
import pytest
import torch
import transformers
from conftest import make_trainer, tiny_config, tiny_encoder, toy_dataset
from safetensors.torch import load_file, save_file

from carl_hf import CarlModel, export_encoder, export_va_regressor
from carl_hf.encoders.embedding import embed_texts
from carl_hf.evaluation.encoder import load_text_encoder

pytest.importorskip("sklearn")
TEXTS = ["joywow joywow joywow", "woezzz"]

# ---- texts


def rows_file(rows, folder):
    rows.to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


DATA = {
    "Dataset": lambda rows, folder: rows,
    "file": lambda rows, folder: datasets.Dataset.from_parquet(rows_file(rows, folder), cache_dir=str(folder)),
    "path": rows_file,
    "list": lambda rows, folder: rows.to_list(),
    "IterableDataset": lambda rows, folder: rows.to_iterable_dataset(),
    "DataFrame": lambda rows, folder: rows.to_pandas(),
    "DatasetDict": lambda rows, folder: datasets.DatasetDict(train=rows),
    "NumPy format": lambda rows, folder: rows.with_format("numpy"),
    "torch format": lambda rows, folder: rows.with_format("torch"),
    "Arrow format": lambda rows, folder: rows.with_format("arrow"),
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


def embed(rows, folder, tokenizer):
    texts = rows["text"] if isinstance(rows, datasets.Dataset) else rows
    return embed_texts(tiny_encoder(), texts, tokenizer, pooling="cls")


def export_head(rows, folder, tokenizer):
    model = CarlModel.from_encoder(tiny_encoder(), projection_dim=8).eval()
    export_va_regressor(model, tokenizer, folder / "va", train=rows)
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder / "va").classifier.weight.detach()


# ---- encoders


def saved(model, folder, tokenizer):
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


def damaged(folder, tokenizer, change):
    name = saved(tiny_encoder(), folder, tokenizer)
    weights = change(load_file(folder / "model" / "model.safetensors"))
    save_file(weights, folder / "model" / "model.safetensors", metadata={"format": "pt"})
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
    "folder": lambda *given: saved(tiny_encoder(), *given),
    "bfloat16": lambda *given: tiny_encoder().to(torch.bfloat16),
    "bfloat16, folder": lambda *given: saved(tiny_encoder().to(torch.bfloat16), *given),
    "with a head": lambda *given: headed(),
    "with a head, folder": lambda *given: saved(headed(), *given),
    "adapter of PEFT": lambda *given: adapted(add=False),
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

TABLE = {
    "texts": (DATA, [train, stream, evaluate, embed, export_head],
              lambda door, folder, tokenizer: (door(toy_dataset(24), folder), folder, tokenizer)),
    "encoder": (ENCODERS, [train_encoder, embed_encoder, export],
                lambda door, folder, tokenizer: (door(folder, tokenizer), folder, tokenizer)),
    "tokenizer": (TOKENIZERS, [train_encoder, embed_encoder, export],
                  lambda door, folder, tokenizer: (tiny_encoder(), folder, door(tokenizer))),
}  # fmt: skip
CELLS = [
    pytest.param(kind, door, room, id=f"{door}-{room.__name__}")
    for kind, (doors, rooms, _) in TABLE.items() for door in doors for room in rooms
    if room is not stream or "Dataset" == door or "format" in door
]  # fmt: skip
RIGHT = {}


@pytest.mark.parametrize("kind, door, room", CELLS)
def test_a_cell_gives_the_right_result_or_one_line(kind, door, room, tmp_path, tokenizer):
    doors, _, arrange = TABLE[kind]
    wanted = (kind, stream if door == "IterableDataset" and room is train else room)
    if wanted not in RIGHT:
        (tmp_path / "right").mkdir()
        RIGHT[wanted] = torch.as_tensor(wanted[1](*arrange(next(iter(doors.values())), tmp_path / "right", tokenizer)))
    try:
        found = torch.as_tensor(room(*arrange(doors[door], tmp_path, tokenizer)))
    except (ValueError, TypeError) as error:
        assert len(str(error).strip().splitlines()) == 1 and door != next(iter(doors)), repr(error)
        return
    if "adapter" not in door or room is not train_encoder:  # which trains other weights than the plain encoder
        tolerance = 0.03 if "bfloat16" in door else 1e-5
        torch.testing.assert_close(found, RIGHT[wanted], rtol=tolerance, atol=tolerance)
