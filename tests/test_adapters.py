"""PEFT adapters, which would not be saved with the model, are refused by every door."""

import pytest
from conftest import make_trainer, tiny_encoder, toy_dataset

from carl_hf import CarlModel, export_encoder, export_va_regressor
from carl_hf.encoders import load_config, load_encoder
from carl_hf.evaluation.encoder import load_text_encoder

peft = pytest.importorskip("peft")
LORA = peft.LoraConfig(target_modules=["query"])


def test_adapters_are_refused_by_model_trainer_and_export(carl, tmp_path, tokenizer):
    with pytest.raises(ValueError, match="takes no PEFT adapters"):
        carl.add_adapter(LORA)
    with pytest.raises(ValueError, match="takes no PEFT adapters"):
        carl.load_adapter(str(tmp_path))
    with pytest.raises(ValueError, match="has PEFT adapters .*merge"):
        CarlModel.from_encoder(peft.get_peft_model(tiny_encoder(), LORA))
    encoder = tiny_encoder()
    encoder.add_adapter(LORA)
    with pytest.raises(ValueError, match="has PEFT adapters .*merge"):
        CarlModel.from_encoder(encoder)
    trainer = make_trainer(tmp_path, tokenizer)
    for model in (carl, trainer.model):
        model.encoder.add_adapter(LORA)
    doors = [
        lambda: make_trainer(tmp_path, tokenizer, model=carl), trainer.train,
        lambda: carl.save_pretrained(tmp_path / "saved"),
        lambda: export_encoder(carl, tokenizer, tmp_path / "encoder"),
        lambda: export_va_regressor(carl, tokenizer, tmp_path / "va", train=toy_dataset(64)),
    ]  # fmt: skip
    for door in doors:
        with pytest.raises(ValueError, match="has PEFT adapters .*merge"):
            door()


def test_a_folder_of_adapters_alone_is_named_and_trains_merged(tmp_path, tokenizer):
    peft.get_peft_model(tiny_encoder(), LORA).save_pretrained(tmp_path / "lora")
    for load in (load_encoder, load_config, load_text_encoder, CarlModel.from_encoder):
        with pytest.raises(ValueError, match="^Cannot load .* holds PEFT adapters .*Merge them and save that"):
            load(str(tmp_path / "lora"))
    merged = peft.PeftModel.from_pretrained(tiny_encoder(), str(tmp_path / "lora")).merge_and_unload()
    make_trainer(tmp_path, tokenizer, model=CarlModel.from_encoder(merged, projection_dim=8)).train()
