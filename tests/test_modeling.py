import copy
from unittest.mock import Mock

import pytest
import torch
from conftest import saved, tiny_config, tiny_encoder
from transformers import AutoConfig, AutoModel, trainer_utils

from carl_hf import CarlConfig, CarlModel
from carl_hf.encoders import load_tokenizer
from carl_hf.encoders.packing import TokenLayout

FAMILIES = ["bert", "roberta", "modernbert", "deberta-v2", "mpnet", "distilbert", "electra", "xlm-roberta"]
IDS = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 2, 1, 1]])
MASK = (IDS != 1).long()


def project_target(model: CarlModel) -> torch.Tensor:
    layout = TokenLayout(MASK, [(2, 5, 8)])
    return model.project_target(layout.pack(IDS), layout)


def assert_target_is_frozen_copy(model: CarlModel) -> None:
    assert not any(p.requires_grad for p in model.target.parameters())
    assert not any(module.training for module in model.target.modules())
    for (name, target), (other, online) in zip(
        model.target.named_parameters(), model.online.named_parameters(), strict=True
    ):
        assert name == other and torch.equal(target, online)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_all_parts(family):
    encoder = tiny_encoder(family).eval()
    expected = encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
    model = CarlModel.from_encoder(encoder, projection_dim=8, contrast_layers="prediction")
    assert model.encoder is encoder
    output = model(IDS, MASK)
    torch.testing.assert_close(output.last_hidden_state[MASK.bool()], expected[MASK.bool()], atol=1e-5, rtol=1e-5)
    assert output.embedding.shape == (2, 16) and output.prediction.shape == (2, 8)
    assert project_target(model).shape == (2, 8) and model.detect(output.last_hidden_state).shape == (2, 5)
    assert_target_is_frozen_copy(model)
    has_pooler = {"bert", "roberta", "mpnet", "xlm-roberta"}
    assert model.config.encoder_has_pooler == (family in has_pooler) and (model.online.dense is None) == (
        family in has_pooler
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_keeps_the_target_and_freezes_it(family, tmp_path):
    layers = {"projection_dim": 8, "contrast_layers": "prediction"}
    model = CarlModel.from_encoder(tiny_encoder(family), pooling="mean", **layers).eval()
    with torch.no_grad():  # a target that has moved on its own
        for p in model.target.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is CarlModel and loaded.config.pooling == "mean"
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert not any(p.requires_grad for p in loaded.target.parameters())
    assert all(p.requires_grad for p in loaded.online_parameters())
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CarlConfig)


def test_target_is_frozen_however_the_model_came_about(carl):
    built = CarlModel(CarlConfig(encoder=tiny_config(), projection_dim=8, heads=carl.config.heads))
    for model in (built, carl, copy.deepcopy(carl)):
        model.train()
        assert_target_is_frozen_copy(model)
        assert model.online.training
        model.target.train()
        assert not model.target.training
    carl.load_state_dict(built.state_dict())
    assert_target_is_frozen_copy(carl)


def test_target_gives_the_same_twice_in_training_while_the_online_branch_drops_out(carl):
    carl.train()
    assert torch.equal(project_target(carl), project_target(carl))
    assert not torch.equal(carl(IDS, MASK).prediction, carl(IDS, MASK).prediction)


def test_target_stays_float32_in_a_bfloat16_model(carl, tmp_path):
    carl.save_pretrained(tmp_path)
    model = CarlModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in model.target.parameters()} == {torch.float32}
    assert {p.dtype for p in model.online.parameters()} == {torch.bfloat16}


def test_the_pooler_is_used_without_its_tanh(carl):
    pooled = torch.randn(2, 16)
    expected = carl.online.projection(carl.encoder.pooler.dense(pooled))
    torch.testing.assert_close(carl.online.project(pooled), expected)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_fewer_layers_before_the_contrast(family, tmp_path):
    pooled = torch.randn(2, 16)
    without_prediction = CarlModel.from_encoder(tiny_encoder(family), projection_dim=8, contrast_layers="projection")
    torch.testing.assert_close(without_prediction.predict(pooled), without_prediction.online.project(pooled))
    bare = CarlModel.from_encoder(tiny_encoder(family), contrast_layers="none")
    assert torch.equal(bare.predict(pooled), pooled)
    for model in (without_prediction, bare):
        model.eval().save_pretrained(tmp_path / model.config.contrast_layers)
        loaded = CarlModel.from_pretrained(tmp_path / model.config.contrast_layers).eval()
        assert torch.equal(loaded(IDS, MASK).prediction, model(IDS, MASK).prediction)
        assert torch.equal(project_target(loaded), project_target(model))
    for name, _ in bare.target.named_parameters():
        assert name.startswith("encoder.")
    with torch.no_grad():  # a target of its own
        bare.target.encoder.get_input_embeddings().weight.mul_(2)
        states = bare.target.encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(project_target(bare), states[:, 0])
    assert (bare(IDS, MASK).embedding - project_target(bare)).abs().max() > 0.1
    old = without_prediction.config.to_dict() | {"contrast_layers": None}
    assert (
        CarlConfig(**{name: value for name, value in old.items() if value is not None}).contrast_layers == "prediction"
    )
    names = [name for name, _ in bare.named_parameters()]
    assert not any(
        "projection" in name or "prediction" in name or ".dense." in name.split("encoder")[0] for name in names
    )


def test_the_forward_pass_reads_what_a_tokenizer_of_bert_gives_but_no_left_padding(carl):
    ids, mask = torch.tensor([[5, 6, 7], [5, 6, 1]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    expected = carl.eval()(ids, mask).embedding
    assert torch.equal(carl(ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids)).embedding, expected)
    with pytest.raises(ValueError, match="padded on the left"):
        carl(ids.flip(1), attention_mask=mask.flip(1))


def test_dropout_that_is_turned_off_is_off_in_attention_too():
    model = CarlModel.from_encoder(tiny_encoder("modernbert", attention_dropout=0.3), dropout=0.0).train()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).embedding, model(ids).embedding)


def test_an_encoder_that_reads_tokens_otherwise_than_their_word_embeddings_is_refused():
    with pytest.raises(ValueError, match="reads word embeddings otherwise"):
        CarlModel.from_encoder(tiny_encoder("esm", token_dropout=True, mask_token_id=3, emb_layer_norm_before=False))


@pytest.mark.parametrize("kind, settings, message", [
    ("ibert", {}, "does not read word embeddings"),
    ("perceiver", {"d_model": 16, "d_latents": 16, "num_latents": 4, "num_blocks": 1, "num_self_attends_per_block": 1,
                   "num_self_attention_heads": 2, "num_cross_attention_heads": 2}, "has no layer of word embeddings"),
])  # fmt: skip
def test_an_encoder_without_usual_word_embeddings_is_refused(kind, settings, message):
    tiny = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16}  # fmt: skip
    encoder = AutoModel.from_config(AutoConfig.for_model(kind, **{**tiny, **settings}))
    with pytest.raises(ValueError, match=message):
        CarlModel.from_encoder(encoder)


def test_embed_leaves_the_training_mode_and_takes_no_lone_string(carl, tokenizer):
    carl.train()
    assert torch.equal(carl.embed(["abc"], tokenizer), carl.embed(["abc"], tokenizer))
    assert carl.encoder.training
    assert carl.embed([], tokenizer).shape == (0, 16)
    with pytest.raises(ValueError, match="list of texts"):
        carl.embed("abc", tokenizer)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"pooling": "max"}, "'cls' or 'mean'"),
        ({"projection_dim": 0}, "positive"),
        ({"contrast_layers": "all"}, "choose prediction, projection, none"),
        ({"contrast_layers": "none+none"}, "choose prediction, projection, none"),
    ],
)
def test_bad_architecture_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        CarlModel.from_encoder(tiny_encoder(), **bad)


def test_an_encoder_is_a_name_a_path_or_a_model(tmp_path, tokenizer):
    folder = saved(tiny_encoder(), tokenizer, tmp_path)  # a Path
    models = [CarlModel.from_encoder(path).state_dict() for path in (folder, str(folder))]
    assert all(torch.equal(weight, models[1][name]) for name, weight in models[0].items() if ".encoder." in name)
    for wrong in (None, 3, torch.nn.Sequential()):
        with pytest.raises(ValueError, match=f"transformers model, got {type(wrong).__name__}"):
            CarlModel.from_encoder(wrong)


def test_unknown_encoder_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="no such folder.*minilm-l6"):
        CarlModel.from_encoder("nobody/no-such-encoder")
    with pytest.raises(ValueError, match="Cannot load the encoder"):
        CarlModel.from_encoder(str(tmp_path))
    with pytest.raises(ValueError, match="Cannot load a tokenizer"):
        load_tokenizer(str(tmp_path))


def test_what_is_no_text_encoder_is_refused():
    sizes = {"vocab_size": 32, "n_embd": 8, "n_layer": 1, "n_head": 1}
    for model in (
        AutoModel.from_config(AutoConfig.for_model("gpt2", **sizes)),
        AutoModel.from_config(AutoConfig.for_model("t5", vocab_size=32, d_model=8, d_ff=8, num_layers=1, num_heads=1)),
    ):
        with pytest.raises(ValueError, match="no bidirectional text encoder"):
            CarlModel.from_encoder(model)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_trainer_does_not_warn_of_the_tokens_of_the_encoder_s_own_tokenizer(family, tokenizer, monkeypatch):
    monkeypatch.setattr(trainer_utils.logger, "warning", warned := Mock())
    trainer_utils.align_special_tokens(CarlModel.from_encoder(tiny_encoder(family)), tokenizer)
    assert not warned.called
    trainer_utils.align_special_tokens(CarlModel.from_encoder(tiny_encoder(family, pad_token_id=3)), tokenizer)
    assert "'pad_token_id': 1" in str(warned.call_args)
