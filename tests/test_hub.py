import json

import pytest
import torch
from conftest import tiny_encoder
from transformers import AutoModel, AutoTokenizer

from carl_hf import CarlModel, export_encoder

TEXTS = ["a text", "another, longer text", "x" * 300]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_export_is_a_plain_encoder(pooling, tmp_path, tokenizer):
    model = CarlModel.from_encoder(tiny_encoder(), pooling=pooling, projection_dim=8).eval()
    folder = export_encoder(model, tokenizer, tmp_path / "new" / "encoder", max_length=32)
    loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(loaded) is type(model.encoder)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    own = AutoTokenizer.from_pretrained(folder)
    assert own.model_max_length == 32 and tokenizer.model_max_length == 60
    batch = own(TEXTS, padding=True, truncation=True, return_tensors="pt")
    states = loaded(**batch).last_hidden_state
    weights = batch["attention_mask"].unsqueeze(-1)
    expected = states[:, 0] if pooling == "cls" else (states * weights).sum(1) / weights.sum(1)
    torch.testing.assert_close(model.embed(TEXTS, tokenizer, max_length=32), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loaded.pooler.dense.weight, model.encoder.pooler.dense.weight)
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names <= {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "modules.json", "sentence_bert_config.json",
    }  # fmt: skip
    assert "target" not in json.dumps(json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_sentence_transformers_reads_the_same_folder(pooling, tmp_path, tokenizer):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = CarlModel.from_encoder(tiny_encoder(), pooling=pooling, projection_dim=8)
    folder = export_encoder(model, tokenizer, tmp_path, max_length=32)
    found = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    expected = model.embed(TEXTS, tokenizer, max_length=32, normalize=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
