"""What is loaded, written and sent: docs/security.md."""

import ast
import configparser
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_trainer, tiny_config, tiny_encoder, toy_dataset
from huggingface_hub import constants
from loopback_hub import File, Repository
from transformers import AutoModel, AutoModelForSequenceClassification

from carl_hf import CarlModel, CarlTrainingArguments
from carl_hf.commands.arguments import public_command
from carl_hf.encoders.loading import load_classifier, load_config, load_encoder, load_tokenizer
from carl_hf.evaluation.encoder import load_text_encoder
from carl_hf.training.checkpoints import CompletionRecord, mark_complete

FOLDERS = ("carl_hf", "examples", "benchmarks", "model_cards")
CODE = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
TOKEN = "hf_canaryCANARYcanaryCANARY"
NEVER = {"allow_pickle", "read_pickle", "pickle", "joblib", "dill", "eval", "exec", "shell",
         "verify"}  # fmt: skip
NEVER_CALLED = {"torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "os.system"}


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_runs_what_it_reads(path):
    """No pickles, no code from models or data sets, no shell; weights from safetensors."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = {alias.name for alias in node.names} if isinstance(node, (ast.Import, ast.ImportFrom)) else set()
        names |= {node.id} if isinstance(node, ast.Name) else {node.arg} if isinstance(node, ast.keyword) else set()
        assert not names & NEVER
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in NEVER_CALLED
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("trust_remote_code", "False") == "False"
            loads = called.startswith(("Auto", "auto.")) and called.endswith((".from_pretrained", ".from_config"))
            if loads or called.endswith("SentenceTransformer") and node.args:
                assert "trust_remote_code" in given, ast.unparse(node)
            if called.endswith(".from_pretrained") and called.startswith(("AutoModel", "auto.")):
                assert "use_safetensors" in given, ast.unparse(node)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("kind", ["encoder", "carl", "classifier"])
def test_pickled_weights_are_not_opened(kind, tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    make, loaders, error, message = {
        "encoder": (tiny_encoder, (load_encoder, load_text_encoder, CarlModel.from_encoder),
                    ValueError, "no weights in safetensors.*convert it once.*save_pretrained"),
        "carl": (lambda: CarlModel.from_encoder(tiny_encoder()),
                 (CarlModel.from_pretrained, AutoModel.from_pretrained),
                 OSError, "no file named model.safetensors"),
        "classifier": (lambda: AutoModelForSequenceClassification.from_config(tiny_config()), (load_classifier,),
                       ValueError, "no weights in safetensors"),
    }[kind]  # fmt: skip
    make().save_pretrained("model")
    tokenizer.save_pretrained("model")
    Path("model/model.safetensors").unlink()
    Path("model/pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    for load in loaders:
        with pytest.raises(error, match=message):
            load("model")
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    "load", [load_encoder, load_config, load_tokenizer, load_text_encoder, CarlModel.from_encoder]
)
def test_code_of_a_model_neither_runs_nor_is_asked_about(load, tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    code = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.Slow", "own.Fast"]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unknown", "auto_map": code}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": code}))
    with pytest.raises(ValueError, match="Cannot load"):
        load(str(tmp_path))
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_named_by_the_configuration_is_not_opened(tiny, tmp_path):
    for kind, load in (("encoder", load_encoder), ("carl", CarlModel.from_pretrained)):
        folder = tmp_path / kind
        (tiny_encoder() if kind == "encoder" else CarlModel.from_encoder(tiny_encoder())).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))
        (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ValueError, match="'adapter_model.bin' as transformers_weights"):
            load(str(folder))


def test_no_service_is_asked_to_convert_a_model_of_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.repositories["org/pickled"] = Repository("org/pickled", private=False)
    files = {"config.json": tiny_config().to_json_string().encode(), "pytorch_model.bin": pickle.dumps(Bomb())}
    files = {name: File(name, data=content) for name, content in files.items()}
    hub.repositories["org/pickled"].commit("main", files, "pickled")
    for load in (load_encoder, CarlModel.from_encoder):
        with pytest.raises(ValueError, match="no weights in safetensors"):
            load("org/pickled")
    assert hub.log and all(method in ("GET", "HEAD") for method, _, _ in hub.log)
    assert not any(re.search("commits|discussions|convert", path) for _, path, _ in hub.log)


def test_pickled_weights_of_a_checkpoint_are_not_opened(tmp_path, tokenizer):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, tokenizer, **settings).train()
    checkpoint = tmp_path / "checkpoint-2"
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    mark_complete(checkpoint, CompletionRecord(global_batch=8, batches=1))
    with pytest.raises(ValueError, match="holds pytorch_model.bin, a pickle"):
        make_trainer(tmp_path, tokenizer, **settings).train(resume_from_checkpoint="last")


@pytest.mark.parametrize("kind, message", [("own.Module", "type own.Module"), ("pickle", "pytorch_model.bin is not")])
def test_modules_of_a_sentence_transformer_run_no_code(kind, message, tiny, tmp_path, monkeypatch):
    library = pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(library, "SentenceTransformer", lambda *_, **__: pytest.fail("the library was called"))
    shutil.copytree(tiny, tmp_path / "model")
    types = [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Dense")]
    types[2] = types[2] if kind == "pickle" else kind
    modules = [{"idx": i, "name": str(i), "path": f"{i}_" if i else "", "type": t} for i, t in enumerate(types)]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "model" / "2_").mkdir()
    (tmp_path / "model" / "2_" / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=message):
        load_text_encoder(str(tmp_path / "model"))


def test_arguments_show_and_keep_no_token(tmp_path):
    args = CarlTrainingArguments(str(tmp_path / "out"), hub_token=TOKEN, use_cpu=True)
    torch.save(args, tmp_path / "training_args.bin")
    assert args.hub_token == TOKEN
    for shown in (repr(args), str(args), args.to_json_string(), str(args.to_sanitized_dict())):
        assert TOKEN not in shown
    assert TOKEN.encode() not in (tmp_path / "training_args.bin").read_bytes()
    with pytest.raises(ValueError, match="hub_token must be a text") as refused:
        CarlTrainingArguments(str(tmp_path / "out"), hub_token=[TOKEN])
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("flag", ["--hub_token {}", "--hub-token {}", "--hub_t={}", "--hub-tok={}"])
def test_a_command_is_recorded_without_its_token(flag, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *flag.format(TOKEN).split(" "), "--seed", "3"])
    assert public_command("pretrain.py") == f"pretrain.py {flag.format('***')} --seed 3"


@pytest.mark.usefixtures("measuring_packages")
def test_a_run_keeps_no_token_and_writes_into_its_folder_alone(tiny, tmp_path):
    """A corpus named like a way out of the folder, tokens in the environment and on the command line."""
    (tmp_path / "data").mkdir()
    corpus = tmp_path / "data" / "..%2f.. ..\\..\\own.csv"
    frame = toy_dataset(120).to_pandas()
    frame["split"] = ["train"] * 60 + ["dev"] * 30 + ["test"] * 30
    frame["text"] = frame["text"] + [f" {i}" for i in range(120)]
    frame.to_csv(corpus, index=False)
    with corpus.open("a") as file:
        file.write("short\n")
    before = set(tmp_path.rglob("*"))
    command = [
        sys.executable, str(ROOT / "examples" / "pretrain.py"), "--encoder", str(tiny), "--scale", "-1", "1",
        "--corpora", f"data/../data/{corpus.name}", "--skip_bad_rows", "true", "--output_dir", "out",
        "--max_steps", "2", "--per_device_train_batch_size", "16", "--num_threads", "1",
        "--use_cpu", "true", "--hub-token", TOKEN, "--run_name", "../../run", "--hub_model_id", "../../model",
    ]  # fmt: skip
    home = str(tmp_path / "home")
    environment = {
        "HF_TOKEN": TOKEN, "HF_HOME": home, "HF_HUB_OFFLINE": "1", "HOME": home, "MPLCONFIGDIR": home,
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    written = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert {path.relative_to(tmp_path).parts[0] for path in written} <= {"out", "home"}
    assert {path.name for path in written} >= {"results.json", "training_args.bin", "circumplex-own-csv.png"}
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert '"skipped_rows"' in (tmp_path / "out" / "results.json").read_text()
    assert "1 bad rows left out. wrong number of cells: 1 (row 121)" in done.stderr


def test_floors_of_the_packages_exclude_known_vulnerabilities():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    floors = dict(
        re.findall(
            r"^([\w-]+)>=([\d.]+)", setup["options"]["install_requires"] + extras["space"] + extras["mteb"], re.M
        )
    )
    for package, floor in {
        "torch": (2, 6),  # CVE-2025-32434: weights_only=True was not safe
        "transformers": (4, 53),  # regular expressions without end, pickles of old models
        "datasets": (4, 0),  # before, a data set could bring a script
        "pyarrow": (14, 0, 1),  # CVE-2023-47248: code from a file
        "pyyaml": (5, 4),  # CVE-2020-14343
        "gradio": (6, 0),
        "sentence-transformers": (6,),  # before, a local modules.json could name any class
    }.items():
        assert tuple(map(int, floors[package].split("."))) >= floor, package
