"""Publishing to a Hub on loopback and loading from it, each client a fresh process with an empty cache."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import emotions, tiny_encoder
from loopback_hub import LoopbackHub
from test_export import FILES, LAYOUT

from carl_hf import CarlModel, export_encoder
from carl_hf.export.folder import card_for, export_files
from carl_hf.export.hub import push_export

WORKER = str(Path(__file__).with_name("hub_worker.py"))
PUSH = str(Path(__file__).parent.parent / "examples" / "push_to_hub.py")


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub") as running:
        yield running


def fresh(hub, tmp_path, *command, xet=False, **env):
    """A command in a new process with an empty cache."""
    home = tmp_path / f"home-{len(list(tmp_path.glob('home-*')))}"
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300,
        env=hub.env(home, xet=xet, OMP_NUM_THREADS="1", **env),
    )  # fmt: skip
    assert hub.token not in done.stdout + done.stderr and "hf_wrong" not in done.stdout + done.stderr
    return done


def worker(hub, tmp_path, *arguments, **settings):
    done = fresh(hub, tmp_path, WORKER, *arguments, **settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rsplit("RESULT ", 1)[1]), done.stderr


def digests(folder):
    return {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in export_files(folder)}


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_what_is_pushed_is_loaded_elsewhere_without_carl_hf(xet, hub, tmp_path, exports):
    folder, vectors = exports
    for kind, repo_id in (("encoder", "org/carl-tiny"), ("va", "org/carl-tiny-va"), ("emotion", "org/carl-tiny-emo")):
        head = [] if kind == "encoder" else ["--head", kind]
        arguments = ["--export", folder, "--repo_id", repo_id, *head]
        pushed = fresh(hub, tmp_path, PUSH, *arguments, *(["--private"] if xet else []), xet=xet)
        assert pushed.returncode == 0 and f"Published {len(export_files(folder / kind))} files" in pushed.stdout
        repository = hub.repositories[repo_id]
        contents = [file.data or hub.content(file.sha256) for file in repository.files().values()]
        assert not [data for data in contents if hub.token.encode() in data or str(tmp_path).encode() in data]
        assert repository.private == xet and set(repository.files()) == set(export_files(folder / kind))
        assert bool(repository.files()["model.safetensors"].xet_hash) == xet
        found, stderr = worker(hub, tmp_path, "pull", repo_id, kind, xet=xet)
        expected = digests(folder / kind)
        found["files"].pop(".gitattributes")
        card = found["files"].pop("README.md")
        assert card != expected.pop("README.md") and found["files"] == expected  # the card names the repository
        assert repo_id in repository.files()["README.md"].data.decode()
        assert found["odd"] == {} and "not initialized" not in stderr and "Warning" not in stderr
        if kind == "encoder":
            assert found["embeddings"] == [pytest.approx(row.tolist(), abs=1e-5) for row in vectors]
            units = vectors / vectors.norm(dim=1, keepdim=True)
            assert found["sentence_embeddings"] == [pytest.approx(row.tolist(), abs=1e-5) for row in units]
        else:
            labels = {"va": {"valence", "arousal"}, "emotion": set(emotions().classes)}[kind]
            assert all({answer["label"] for answer in answers} == labels for answers in found["answers"])
    # a second push uploads nothing
    commits, start = len(hub.repositories["org/carl-tiny"].commits), len(hub.log)
    again = fresh(hub, tmp_path, PUSH, "--export", folder, "--repo_id", "org/carl-tiny", xet=xet)
    assert again.returncode == 0 and "nothing was uploaded" in again.stdout
    assert len(hub.repositories["org/carl-tiny"].commits) == commits
    assert not [path for method, path, _ in hub.log[start:] if method == "PUT" or "/commit/" in path]


def test_refusals_name_the_remedy_and_change_nothing(hub, tmp_path, exports):
    folder = exports[0] / "encoder"
    wrong, _ = worker(hub, tmp_path, "push", folder, "org/model", HF_TOKEN="hf_wrong" + "x" * 20)
    assert "does not accept the token" in wrong["error"] and "hf auth login" in wrong["error"]
    foreign, _ = worker(hub, tmp_path, "push", folder, "somebody/model")
    assert "may not write to somebody/model" in foreign["error"]
    assert hub.repositories == {}
    dry = fresh(hub, tmp_path, PUSH, "--export", folder, "--repo_id", "org/model", "--dry_run")
    assert dry.returncode == 0 and "model.safetensors" in dry.stdout and "Nothing was sent" in dry.stdout
    assert f"{(folder / 'model.safetensors').stat().st_size:,} bytes" in dry.stdout and hub.repositories == {}
    worker(hub, tmp_path, "push", folder, "org/model")
    visible, _ = worker(hub, tmp_path, "push", folder, "org/model", json.dumps({"private": True}))
    assert "org/model is public already" in visible["error"]
    for repo_id, revision, words in (
        ("org/nothing", "main", "RepositoryNotFoundError"),
        ("org/model", "no-such-branch", "RevisionNotFoundError"),
    ):
        done = fresh(hub, tmp_path, WORKER, "pull", repo_id, "encoder", revision)
        assert done.returncode == 1 and words in done.stderr
    hub.repositories["org/model"].private = True
    secret = fresh(hub, tmp_path, WORKER, "pull", "org/model", "encoder", HF_TOKEN="")
    assert secret.returncode == 1 and "RepositoryNotFoundError" in secret.stderr


@pytest.mark.parametrize(
    "cut, xet",
    [("/_lfs/", False), ("/commit/", True)],
    ids=["in the weights, lfs", "in the commit, xet"],
)
def test_a_push_that_breaks_off_leaves_the_last_state_and_can_be_run_again(
    cut, xet, hub, tmp_path, exports, tokenizer
):
    folder = exports[0] / "encoder"
    worker(hub, tmp_path, "push", folder, "org/model")
    before, head = hub.repositories["org/model"].files(), hub.repositories["org/model"].refs["main"]
    other = CarlModel.from_encoder(tiny_encoder(hidden_size=32), pooling="mean", projection_dim=8)
    changed = export_encoder(other, tokenizer, tmp_path / "changed", max_length=32)
    hub.cut = cut
    broken = fresh(hub, tmp_path, PUSH, "--export", changed, "--repo_id", "org/model", xet=xet)
    assert broken.returncode == 1 and "broke off" in broken.stderr and "run the same command again" in broken.stderr
    hub.cut = None
    assert hub.repositories["org/model"].refs["main"] == head and hub.repositories["org/model"].files() == before
    assert worker(hub, tmp_path, "pull", "org/model", "encoder")[0]["odd"] == {}
    again, _ = worker(hub, tmp_path, "push", changed, "org/model", xet=xet)
    assert again["changed"] and worker(hub, tmp_path, "pull", "org/model", "encoder")[0]["odd"] == {}
    assert hub.repositories["org/model"].files()["1_Pooling/config.json"].data != before["1_Pooling/config.json"].data


def test_branches_pull_requests_messages_and_stale_files(hub, tmp_path, exports):
    folder = exports[0] / "encoder"
    worker(hub, tmp_path, "push", folder, "org/model", json.dumps({"commit_message": "First"}))
    repository = hub.repositories["org/model"]
    assert repository.commits[repository.refs["main"]]["title"] == "First"
    head = repository.refs["main"]
    va = exports[0] / "va"
    moved, _ = worker(hub, tmp_path, "push", va, "org/model", json.dumps({"branch": "heads"}))
    assert set(repository.files("heads")) == FILES and set(moved["removed"]) == LAYOUT
    proposed, _ = worker(hub, tmp_path, "push", va, "org/model", json.dumps({"pull_request": True}))
    assert "/discussions/" in proposed["url"] and repository.refs["main"] == head
    assert set(repository.files()) == FILES | LAYOUT


@pytest.mark.parametrize("strategy", ["call", "end", "every_save", "checkpoint", "all_checkpoints"])
def test_the_trainer_publishes_the_clean_export_and_nothing_else(strategy, hub, tmp_path, tokenizer):
    pytest.importorskip("sklearn")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    trained, _ = worker(hub, tmp_path, "train", tmp_path, "org/model", strategy)
    repository = hub.repositories["org/model"]
    assert set(repository.files()) == FILES | LAYOUT
    assert "base_model: org/base" in repository.files()["README.md"].data.decode()
    titles = [commit["title"] for commit in repository.commits.values()]
    expected = {"call": ["End of training"], "end": ["Model save"]}
    steps = ["Training in progress, step 2", "Training in progress, step 4"]
    assert titles == ["initial commit", *expected.get(strategy, steps)]
    if strategy in ("call", "every_save"):
        found, _ = worker(hub, tmp_path, "pull", "org/model", "encoder")
        assert found["embeddings"] == [pytest.approx(row, abs=1e-5) for row in trained["embeddings"]]


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
    ],
)  # fmt: skip
def test_only_whole_and_clean_exports_are_pushed(spoil, message, tmp_path, tokenizer):
    folder = export_encoder(CarlModel.from_encoder(tiny_encoder(), projection_dim=8), tokenizer, tmp_path / "encoder")
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        push_export(folder, "org/model")


def test_a_card_is_rendered_for_the_repository_unless_it_was_edited(tmp_path, exports):
    shutil.copytree(exports[0] / "va", tmp_path / "renamed")
    assert b'"org/model"' in card_for(tmp_path / "renamed", "org/model")
    with (tmp_path / "renamed" / "README.md").open("a") as card:
        card.write("One more remark.\n")
    card = card_for(tmp_path / "renamed", "org/model")
    assert card.endswith(b"One more remark.\n") and b'"org/model"' not in card


def test_wrong_arguments_of_a_push(tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        push_export(tmp_path / "nowhere", "org/model")
    with pytest.raises(ValueError, match="is no repository id"):
        push_export(tmp_path, "not a name/../x")
    with pytest.raises(ValueError, match="names no owner: write owner/carl"):
        push_export(tmp_path, "carl")
    with pytest.raises(ValueError, match="goes against main"):
        push_export(tmp_path, "org/model", branch="other", pull_request=True)
    done = subprocess.run([sys.executable, PUSH, "--export", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and "--export DIR --repo_id org/name" in done.stderr and "Traceback" not in done.stderr
    both = ["--export", tmp_path, "--repo_id", "org/x", "--private", "--public"]
    done = subprocess.run([sys.executable, PUSH, *both], capture_output=True, text=True)
    assert done.returncode == 1 and "exclude each other" in done.stderr
