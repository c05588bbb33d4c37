"""What the Hub says, and does not say: no answer is not "there is none"."""

import json
import sys
from unittest.mock import Mock

import pytest
from conftest import run_script, tiny_encoder
from huggingface_hub import constants, snapshot_download
from loopback_hub import File, Refusal
from test_hub import run_push
from transformers import AutoModel, AutoTokenizer

from carl_hf import AffectPipeline, CarlModel, CarlTrainer, CarlTrainingArguments, Provenance, export_encoder
from carl_hf.encoders import hub_files, loading
from carl_hf.encoders.stated import exported_pooling, reading_length
from carl_hf.evaluation.encoder import load_text_encoder
from carl_hf.explain import Explainer
from carl_hf.export.folder import record_of
from carl_hf.export.hub import push_export
from carl_hf.export.seen import trained_on

BUSY = Refusal(503, "Service unavailable")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def mean(hub, cache, tmp_path, tokenizer):
    """Id of an encoder that is pooled by the mean, reads 16 tokens, and was trained on the Facebook posts."""
    origin = Provenance(base_model="google-bert/bert", corpora=["facebook"], method="CARL")
    model = CarlModel.from_encoder(tiny_encoder(), pooling="mean", projection_dim=8)
    push_export(export_encoder(model, tokenizer, tmp_path / "mean", max_length=16, provenance=origin), "org/mean")
    return "org/mean"


def facts(name):
    explainer = Explainer.from_pretrained(name)
    encoder = load_text_encoder(name, max_length=None)
    return (explainer.pooling, encoder.pooling, exported_pooling(name), reading_length(name), trained_on(name),
            record_of(name) is None)  # fmt: skip


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_file_that_the_hub_does_not_give_is_not_one_that_is_not_there(status, hub, mean):
    hub.refusals = [("carl_export.json|modules.json|1_Pooling", Refusal(status, "Slow down"))]
    for read in (
        exported_pooling,
        reading_length,
        record_of,
        trained_on,
        load_text_encoder,
        Explainer.from_pretrained,
    ):
        with pytest.raises(ValueError, match="org/mean.* the Hub could not be asked .*try again, or set HF_HUB_OFF"):
            read(mean)
    hub.refusals = []
    assert facts(mean) == ("mean", "mean", "mean", 16, ["facebook"], False)


def test_offline_a_whole_download_is_read_whole_and_half_of_one_is_said(hub, mean, monkeypatch, caplog, tmp_path):
    facts(mean)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert facts(mean) == ("mean", "mean", "mean", 16, ["facebook"], False) and not caplog.records
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    AutoModel.from_pretrained(mean), AutoTokenizer.from_pretrained(mean)  # these ask for no record
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert facts(mean) == ("cls", "cls", None, 128, [], True)
    said = [r.message for r in caplog.records if "it is not known whether org/mean states a pooling" in r.message]
    assert len(said) == 1 and "is to be downloaded whole: hf download org/mean" in said[0]


@pytest.mark.parametrize(
    "refusal", [Refusal(401, "Expired"), Refusal(403, "Restricted", "GatedRepo"), Refusal(403, "x")]
)
def test_what_was_downloaded_is_known_without_being_let_in(refusal, hub, mean, monkeypatch, tmp_path):
    facts(mean)
    hub.refusals = [("/org/", refusal)]
    assert (exported_pooling(mean), reading_length(mean), trained_on(mean)) == ("mean", 16, ["facebook"])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    for read in (exported_pooling, reading_length, record_of, trained_on):
        with pytest.raises(ValueError, match="org/mean, carl_export.json: the Hub('s model is gated| refuses)"):
            read(mean)


@pytest.mark.parametrize("kind", ["ReadError", "ProxyError", "RemoteProtocolError"])
def test_a_connection_that_breaks_is_the_hubs_silence(kind, mean, monkeypatch):
    broken = getattr(sys.modules.get("httpx2") or sys.modules["httpx"], kind)("cut off")
    monkeypatch.setattr(hub_files, "hf_hub_download", Mock(side_effect=broken))
    with pytest.raises(ValueError, match="could not be asked .cut off.: try again"):
        exported_pooling("org/other")
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", Mock(side_effect=broken))
    with pytest.raises(hub_files.UnreachableError, match="Cannot load the model 'org/other': .*cut off"):
        loading.load_config("org/other")


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (BUSY, "the Hub could not be asked"),
        (Refusal(429, "Too many"), "the Hub could not be asked"),
        (Refusal(403, "Restricted", "GatedRepo"), "the Hub's model is gated: ask for it on its page"),
    ],
)
def test_a_head_that_the_hub_does_not_give_is_not_left_out(refusal, reason, hub, mean, exports):
    push_export(exports[0] / "va", f"{mean}-va")
    push_export(exports[0] / "emotion", f"{mean}-emotion")
    hub.refusals = [(f"{mean}-va/", refusal)]
    with pytest.raises(ValueError, match=f"Cannot load the model '{mean}-va': .*{reason}"):
        AffectPipeline.from_pretrained(mean)
    hub.refusals = []
    del hub.repositories[f"{mean}-va"]
    assert "valence" not in AffectPipeline.from_pretrained(mean)(["joywow"])


def test_what_a_private_model_or_a_broken_connection_needs_is_said(hub, mean, monkeypatch):
    hub.repositories[mean].private = True
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="Cannot load the model 'org/mean': .*a private one: hf auth login"):
        load_text_encoder(mean)
    hub.repositories[mean].private = False
    hub.refusals = [("tokenizer", BUSY)]
    with pytest.raises(ValueError, match="the Hub could not be asked"):
        load_text_encoder(mean)


def test_a_licence_in_the_repository_stays_and_other_files_are_no_readme(hub, exports):
    encoder = exports[0] / "encoder"
    push_export(encoder, "org/model")
    repository = hub.repositories["org/model"]

    def add(*names):
        files = {name: File(name, data=b"x") for name in names}
        repository.commit("main", {**repository.files(), **files}, "mine")

    add("LICENSE")
    assert push_export(encoder, "org/model").removed == [] and "LICENSE" in repository.files()
    add("LICENSE_weights.bin")
    assert push_export(encoder, "org/model", dry_run=True).removed == ["LICENSE_weights.bin"]
    del hub.repositories["org/model"]
    push_export(encoder, "org/model")
    repository = hub.repositories["org/model"]
    repository.commit("main", {"README.md.bak": File("README.md.bak", data=b"x")}, "another's")
    with pytest.raises(ValueError, match=r"holds README.md.bak that is no export"):
        push_export(encoder, "org/model")


def test_what_the_hub_says_is_passed_on(hub, exports, monkeypatch, capsys):
    encoder = exports[0] / "encoder"
    push_export(encoder, "org/model")
    for status, message, expected in (
        (403, "storage limit reached", r"may not write to org/model \(.*storage limit reached"),
        (400, "Invalid metadata", "refused the push to org/model.*Invalid metadata"),
        (409, "Another commit", "busy with another change .*Another commit.* Nothing was changed"),
    ):
        hub.refusals = [("/preupload/", Refusal(status, message))]
        with pytest.raises(ValueError, match=expected):
            push_export(encoder, "org/model")
    hub.refusals = [("/refs", BUSY)]
    with pytest.raises(ValueError, match="could not be asked for org/model.* Nothing was sent"):
        push_export(encoder, "org/model", dry_run=True)
    hub.refusals = []
    with pytest.raises(ValueError, match="does not accept the token"):
        push_export(encoder, "org/new", dry_run=True, token="hf_wrong" + "x" * 20)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for how in ({}, {"dry_run": True}):
        with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set, so the Hub is not asked: unset it to push"):
            push_export(encoder, "org/model", **how)


def test_a_dry_run_without_a_token_says_so(hub, exports, monkeypatch, tmp_path, caplog):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "none"))
    push_export(exports[0] / "encoder", "org/model", dry_run=True)
    assert "There is no token, which a push needs" in caplog.text


def test_a_downloaded_export_is_pushed_on_and_a_cached_one_explained(hub, mean, tmp_path, capsys):
    folder = snapshot_download(mean, local_dir=tmp_path / "mine")
    assert (tmp_path / "mine" / ".cache" / "huggingface").is_dir()
    _, error = run_push(capsys, "--export", folder, "--repo_id", "org/copy")
    assert error is None and set(hub.repositories["org/copy"].files()) == set(hub.repositories[mean].files())
    _, error = run_push(capsys, "--export", snapshot_download(mean), "--repo_id", "org/copy")
    assert "(links, as in the Hub's cache: hf download NAME --local-dir DIR). Move" in str(error)


def test_the_trainer_finds_a_repository_of_another_kind_before_it_trains(hub, exports, tmp_path, tokenizer):
    push_export(exports[0] / "va", "org/taken")

    def trainer(**pushing):
        args = CarlTrainingArguments(
            str(tmp_path / "out"), max_steps=2, push_to_hub=True, use_cpu=True, report_to="none", **pushing
        )
        return CarlTrainer(model=CarlModel.from_encoder(tiny_encoder()), args=args, processing_class=tokenizer)

    with pytest.raises(ValueError, match="org/taken holds an export of the kind 'va', this one is of the kind 'enc"):
        trainer(hub_model_id="org/taken")
    with pytest.raises(ValueError, match="org/taken holds an export of the kind 'va'"):
        trainer(hub_model_id="org/taken", hub_revision="new")
    for dry_run in (True, False):
        with pytest.raises(ValueError, match="org/taken holds an export of the kind 'va'"):
            push_export(exports[0] / "encoder", "org/taken", branch="new", dry_run=dry_run)
    assert set(hub.repositories["org/taken"].refs) == {"main"}
    with pytest.raises(ValueError, match="org/taken is public already"):
        trainer(hub_model_id="org/taken", hub_private_repo=True)
    with pytest.raises(ValueError, match="may not write to somebody/model"):
        trainer(hub_model_id="somebody/model")


def test_a_damaged_record_on_the_hub_is_named(hub, mean, exports):
    repository = hub.repositories[mean]
    repository.commit("main", {**repository.files(), "carl_export.json": File("carl_export.json", data=b"{")}, "cut")
    with pytest.raises(ValueError, match="The carl_export.json of org/mean is damaged: delete it there first"):
        push_export(exports[0] / "encoder", mean)


def test_a_report_names_the_commit_of_a_model_on_the_hub(hub, mean, tmp_path):
    commit = hub.repositories[mean].refs["main"]
    pytest.importorskip("sklearn")
    words = ("--model", mean, "--tasks", "geometry", "--output_dir", tmp_path / "out", "--no_cache", "true")
    assert run_script("examples/evaluate.py", *words) is None
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["models"][mean]["commit"] == commit
    assert f"| {commit} |" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
