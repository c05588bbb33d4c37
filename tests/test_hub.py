"""Publishing to a Hub on loopback, and loading from it in a fresh process without carl_hf."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import emotions, run_script, tiny_encoder, toy_dataset
from huggingface_hub import HfApi, constants
from test_export import FILES, LAYOUT
from transformers import AutoModelForSequenceClassification

from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments, Provenance, export_encoder, export_va_regressor
from carl_hf.commands.adapt import AdaptArguments, adapt
from carl_hf.export.folder import card_for, export_files, record_of, with_earlier_training
from carl_hf.export.hub import push_export
from carl_hf.export.seen import trained_on

LOAD = Path(__file__).with_name("load_exports.py")
PUSH = Path(__file__).parents[1] / "examples" / "push_to_hub.py"
TEXTS = ["joywow joywow", "woezzz"]


def fresh(arguments, env):
    """Python in a new process."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)


def run_push(capsys, *arguments):
    """What examples/push_to_hub.py prints, and its error."""
    error = run_script("examples/push_to_hub.py", *arguments)
    return capsys.readouterr().out, error


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_what_is_pushed_is_loaded_elsewhere_without_carl_hf(xet, hub, tmp_path, exports, monkeypatch, capsys):
    folder, vectors = exports
    ids = {kind: f"org/carl-{kind}" for kind in ("encoder", "va", "emotion")}
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    for kind, repo_id in ids.items():
        arguments = ["--export", folder, "--repo_id", repo_id, *([] if kind == "encoder" else ["--head", kind])]
        if xet:
            arguments.append("--private")
        if xet and kind == "encoder":  # in a process of its own
            done = fresh([PUSH, *arguments], hub.env(tmp_path / "maker", xet=True))
            printed, error = done.stdout, done.stderr if done.returncode else None
            assert hub.token not in done.stdout + done.stderr
        else:
            printed, error = run_push(capsys, *arguments)
        assert error is None
        assert f"Published {len(export_files(folder / kind))} files" in printed
        repository = hub.repositories[repo_id]
        contents = {path: file.data or hub.content(file.sha256) for path, file in repository.files().items()}
        assert not [path for path, data in contents.items() if str(tmp_path).encode() in data]
        assert repository.private == xet and bool(repository.files()["model.safetensors"].xet_hash) == xet
        assert f'"{repo_id}"' in contents["README.md"].decode()  # the card names the repository
        local = {path: (folder / kind / path).read_bytes() for path in export_files(folder / kind)}
        assert contents.pop("README.md") != local.pop("README.md") and contents == local
    command = [sys.executable, "-W", "error", LOAD, json.dumps(ids), json.dumps(TEXTS)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=hub.env(tmp_path / "user", xet=xet)
    )
    assert done.returncode == 0, done.stderr
    assert "not initialized" not in done.stderr and "Warning" not in done.stderr
    found = json.loads(done.stdout.rsplit("RESULT ", 1)[1])
    assert found["odd"] == {}
    torch.testing.assert_close(torch.tensor(found["embeddings"]), vectors, atol=1e-5, rtol=1e-5)
    units = vectors / vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(torch.tensor(found["unit_embeddings"]), units, atol=1e-5, rtol=1e-5)
    for kind, labels in (("va", {"valence", "arousal"}), ("emotion", set(emotions().classes))):
        assert all({output["label"] for output in outputs} == labels for outputs in found[kind])
    # a second push uploads nothing
    commits, start = len(hub.repositories[ids["encoder"]].commits), len(hub.log)
    printed, error = run_push(capsys, "--export", folder, "--repo_id", ids["encoder"])
    assert error is None and "nothing was uploaded" in printed
    assert len(hub.repositories[ids["encoder"]].commits) == commits
    assert not [path for method, path, _ in hub.log[start:] if method == "PUT" or "/commit/" in path]


def test_refusals_name_the_remedy_and_change_nothing(hub, exports, monkeypatch, capsys):
    folder = exports[0] / "encoder"
    with pytest.raises(ValueError, match="does not accept the token.*hf auth login"):
        push_export(folder, "org/model", token="hf_wrong" + "x" * 20)
    with pytest.raises(ValueError, match="may not write to somebody/model"):
        push_export(folder, "somebody/model")
    printed, error = run_push(capsys, "--export", folder, "--repo_id", "org/model", "--dry_run")
    assert error is None and "Nothing was sent" in printed
    assert f"{(folder / 'model.safetensors').stat().st_size:,} bytes  model.safetensors" in printed
    assert hub.repositories == {}
    push_export(folder, "org/model")
    with pytest.raises(ValueError, match="org/model is public already"):
        push_export(folder, "org/model", private=True)
    repository, list_files = hub.repositories["org/model"], HfApi.list_repo_files

    def commit_in_between(*args, **kwargs):
        repository.commit("main", {}, "somebody else's")
        return list_files(*args, **kwargs)

    monkeypatch.setattr(HfApi, "list_repo_files", commit_in_between)
    with pytest.raises(ValueError, match="org/model changed during the push: run it again"):
        push_export(folder, "org/model")
    assert repository.files() == {}


def test_a_model_on_the_hub_has_its_record(hub, tmp_path, tokenizer, exports, monkeypatch):
    """By which its licence is handed on, what it has seen is marked, and adapt knows the texts of its training."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    origin = Provenance(base_model="google-bert/bert", corpora=["facebook"], method="CARL")
    made = CarlModel.from_encoder(tiny_encoder(), projection_dim=8)
    push_export(export_encoder(made, tokenizer, tmp_path / "encoder", provenance=origin), "org/carl")
    later = with_earlier_training(Provenance(base_model="org/carl", corpora=["demo"], method="X"), "org/carl").record()
    assert later["licence"] == "gpl-3.0" and later["base_model"] == "google-bert/bert"
    assert later["corpora"] == ["facebook", "demo"] and later["method"] == "CARL, then X"
    assert trained_on("org/carl") == ["facebook"] and record_of("org/nothing") is record_of(str(tmp_path)) is None
    regressor = AutoModelForSequenceClassification.from_pretrained(exports[0] / "va")
    va = export_va_regressor(regressor, tokenizer, tmp_path / "va", provenance=Provenance(corpora=["org/texts"]))
    push_export(va, "org/carl-va")
    with pytest.raises(ValueError, match="org/carl-va was trained on org/texts"):
        adapt(AdaptArguments("org/texts", "org/carl-va", str(tmp_path / "new")))


@pytest.mark.parametrize("cut", ["/_lfs/", "/commit/"], ids=["in the weights", "in the commit"])
def test_a_push_that_breaks_off_leaves_the_last_state_and_can_be_run_again(cut, hub, tmp_path, exports, tokenizer):
    push_export(exports[0] / "encoder", "org/model")
    repository = hub.repositories["org/model"]
    before, head = repository.files(), repository.refs["main"]
    other = CarlModel.from_encoder(tiny_encoder(hidden_size=32), pooling="mean", projection_dim=8)
    changed = export_encoder(other, tokenizer, tmp_path / "changed", max_length=32)
    hub.cut = cut
    with pytest.raises(ValueError, match="broke off.* run the same command again"):
        push_export(changed, "org/model")
    hub.cut = None
    assert repository.refs["main"] == head and repository.files() == before
    assert push_export(changed, "org/model").changed
    weights = repository.files()["model.safetensors"]
    assert hub.content(weights.sha256) == (changed / "model.safetensors").read_bytes()
    assert repository.files()["1_Pooling/config.json"].data == (changed / "1_Pooling" / "config.json").read_bytes()


def test_branches_pull_requests_messages_and_stale_files(hub, tmp_path, exports):
    encoder, va = exports[0] / "encoder", exports[0] / "va"
    push_export(encoder, "org/model", commit_message="First")
    repository = hub.repositories["org/model"]
    head = repository.refs["main"]
    assert repository.commits[head]["title"] == "First"
    for how in ({"dry_run": True}, {"branch": "heads"}, {"pull_request": True}):
        with pytest.raises(ValueError, match="holds an export of the kind 'encoder', this one is of the kind 'va'"):
            push_export(va, "org/model", **how)
    larger = shutil.copytree(encoder, tmp_path / "larger")
    (larger / "figures").mkdir()
    (larger / "figures" / "a.png").write_bytes(PNG)
    push_export(larger, "org/model", branch="more")
    assert set(push_export(encoder, "org/model", branch="more").removed) == {"figures/a.png"}
    assert set(repository.files("more")) == FILES | LAYOUT
    assert "/discussions/" in push_export(larger, "org/model", pull_request=True).url
    assert repository.refs["main"] == head and set(repository.files()) == FILES | LAYOUT


@pytest.mark.parametrize("strategy", ["call", "end", "all_checkpoints"])
def test_the_trainer_publishes_the_clean_export_and_nothing_else(strategy, hub, tmp_path, tokenizer):
    """By its own means; strategy "call" is trainer.push_to_hub()."""
    pytest.importorskip("sklearn")
    pushing = {} if strategy == "call" else {"push_to_hub": True, "hub_strategy": strategy, "hub_always_push": True}
    args = CarlTrainingArguments(
        str(tmp_path / "out"), max_steps=4, save_steps=2, save_strategy="steps", per_device_train_batch_size=8,
        hub_model_id="org/model", use_cpu=True, report_to="none", disable_tqdm=True, **pushing,
    )  # fmt: skip
    trainer = CarlTrainer(
        model=CarlModel.from_encoder(tiny_encoder(), projection_dim=8), args=args, train_dataset=toy_dataset(64),
        processing_class=tokenizer, provenance=Provenance(base_model="org/base", corpora=["demo"]),
    )  # fmt: skip
    trainer.train()
    if strategy == "call":
        trainer.push_to_hub()
    elif strategy == "end":
        trainer.save_model()  # with this strategy a Trainer pushes when its model is saved
    else:
        trainer._finish_current_push()
    repository = hub.repositories["org/model"]
    assert set(repository.files()) == FILES | LAYOUT
    assert "base_model: org/base" in repository.files()["README.md"].data.decode()
    titles = [commit["title"] for commit in repository.commits.values()]
    expected = {"call": ["End of training"], "end": ["Model save"]}
    steps = ["Training in progress, step 2", "Training in progress, step 4"]
    assert titles == ["initial commit", *expected.get(strategy, steps)]
    weights = safetensors.torch.load(hub.content(repository.files()["model.safetensors"].sha256))
    torch.testing.assert_close(weights, dict(trainer.model.encoder.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["org/model", None], ids=["named", "by the output folder"])
def test_a_private_push_of_the_trainer_is_private(name, hub, tmp_path, tokenizer):
    args = CarlTrainingArguments(
        str(tmp_path / "out"), hub_model_id=name, use_cpu=True, report_to="none", per_device_train_batch_size=8
    )  # fmt: skip
    trainer = CarlTrainer(
        model=CarlModel.from_encoder(tiny_encoder(), projection_dim=8), args=args, train_dataset=toy_dataset(64),
        processing_class=tokenizer,
    )  # fmt: skip
    push = trainer.push_to_hub(private=True)
    assert hub.repositories[push.repo_id].private
    with pytest.raises(ValueError, match="is private already"):
        trainer.push_to_hub(private=False)
    with pytest.raises(TypeError, match="visibility"):
        trainer.push_to_hub(visibility="private")


# the least PNG file, and an ONNX file of IR version 8 with an empty graph of the name "g"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(25) + b"\x00\x00\x00\x00IEND\xaeB`\x82"
ONNX = b"\x08\x08" + b"\x3a\x03" + b"\x12\x01g"


def add(folder, name, content):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def shard(folder):
    """Divides the weights into two files; returns the first."""
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves, names = (list(weights)[::2], list(weights)[1::2]), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, keys in zip(names, halves, strict=True):
        safetensors.torch.save_file({key: weights[key] for key in keys}, folder / name)
    where = {key: name for name, keys in zip(names, halves, strict=True) for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert len(export_files(folder)) == len(FILES | LAYOUT) + 2
    return folder / names[0]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: (folder / "training_args.bin").write_bytes(b""), "not part of an export: training_args.bin"),
        (lambda folder: (folder / "checkpoint-1").mkdir() or (folder / "checkpoint-1" / "optimizer.pt").touch(),
         "checkpoint-1/optimizer.pt"),
        (lambda folder: (folder / "model.safetensors").unlink(), "lacks the weights"),
        (lambda folder: (folder / "README.md").unlink(), "lacks README.md"),
        (lambda folder: (folder / "carl_export.json").unlink(), "is no export"),
        (lambda folder: (folder / "vocab.txt").symlink_to("/etc/hostname"), "vocab.txt"),
        (lambda folder: (folder / "figures").symlink_to("/etc"), "not part of an export: figures"),
        (lambda folder: (folder / "customers.model").touch(), "not part of an export: customers.model"),
        (lambda folder: (folder / ".ssh_id.model").touch(), "not part of an export: .ssh_id.model"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "lacks tokenizer.json"),
        (lambda folder: (folder / "modules.json").unlink(), "lacks modules.json"),
        (lambda folder: (folder / "1_Pooling" / "config.json").unlink(), "lacks 1_Pooling/config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: truncate(folder / "model.safetensors"), "model.safetensors is damaged"),
        (lambda folder: shard(folder).unlink(), "lacks model-00001-of-00002.safetensors"),
        (lambda folder: truncate(shard(folder)), "model-00001-of-00002.safetensors is damaged"),
        (lambda folder: add(folder, "figures/a.png", PNG[:-1]), "a.png is damaged .no whole PNG"),
        (lambda folder: add(folder, "figures/a.png", b"<svg>"), "a.png is damaged .no whole PNG"),
        (lambda folder: add(folder, "onnx/model.onnx", ONNX[:-1]), "model.onnx is damaged .it is cut short"),
        (lambda folder: add(folder, "onnx/model.onnx", b"version https://git-lfs"), "model.onnx is damaged"),
        (lambda folder: add(folder, "onnx/model.onnx", b""), "model.onnx is damaged .no ONNX file with a graph"),
        (lambda folder: add(folder, "vocab.txt", b"\xff\xfe"), "vocab.txt is damaged"),
        (lambda folder: add(folder, "spiece.model", b""), "spiece.model is damaged"),
    ],
)  # fmt: skip
def test_only_complete_and_clean_exports_are_pushed(spoil, message, tmp_path, exports):
    spoil(shutil.copytree(exports[0] / "encoder", tmp_path / "encoder"))
    with pytest.raises(ValueError, match=message):
        push_export(tmp_path / "encoder", "org/model")


def test_a_model_of_somebody_else_is_not_replaced(hub, exports):
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("org/theirs")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="org/theirs")
    with pytest.raises(ValueError, match="holds a model that is no export of carl_hf"):
        push_export(exports[0] / "encoder", "org/theirs")
    assert set(hub.repositories["org/theirs"].files()) == {"config.json"}


def test_a_card_is_rendered_for_the_repository_unless_it_was_edited(tmp_path, exports):
    folder = shutil.copytree(exports[0] / "va", tmp_path / "renamed")
    assert b'"org/model"' in card_for(folder, "org/model")
    with (folder / "README.md").open("a") as card:
        card.write("One more remark.\n")
    card = card_for(folder, "org/model")
    assert card.endswith(b"One more remark.\n") and b'"org/model"' not in card


def test_wrong_arguments_of_a_push(tmp_path, capsys):
    for folder, repo_id, settings, message in (
        (tmp_path / "nowhere", "org/model", {}, "There is no folder"),
        (tmp_path, "not a name/../x", {}, "is no repository id"),
        (tmp_path, "carl", {}, "names no owner: write owner/carl"),
        (tmp_path, "org/model", {"branch": "other", "pull_request": True}, "goes against main"),
    ):
        with pytest.raises(ValueError, match=message):
            push_export(folder, repo_id, **settings)
    error = run_push(capsys, "--export", tmp_path)[1]
    assert "--export DIR --repo_id org/name" in error
    error = run_push(capsys, "--export", tmp_path, "--repo_id", "org/x", "--private", "--public")[1]
    assert "exclude each other" in error
