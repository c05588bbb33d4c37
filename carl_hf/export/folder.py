"""The folder of an export: which files it may hold, and how they are written."""

import contextlib
import glob
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from filelock import FileLock, Timeout

from carl_hf.encoders.hub_files import find_file
from carl_hf.encoders.packaged import resolve_encoder
from carl_hf.encoders.stated import EXPORT_RECORD
from carl_hf.export.cards import render_card
from carl_hf.export.contents import check_content
from carl_hf.export.provenance import Provenance, named_digests, with_head
from carl_hf.utils.atomic_files import apply_umask, write_errors, write_json
from carl_hf.utils.suggestions import listed

_IN_USE = "in-use.lock"

_PUBLISHED = re.compile(
    r"README\.md|carl_export\.json|config\.json|modules\.json|sentence_bert_config\.json|1_Pooling/config\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(txt|json)"
    r"|merges\.txt|bpe\.codes|chat_template\.jinja|(spiece|spm|tokenizer|sentencepiece(\.bpe)?)\.model"
    r"|figures/[A-Za-z0-9_.-]+\.png|onnx/model(_quantized)?\.onnx"
)

_OF_A_DOWNLOAD = (".cache/huggingface/", ".gitattributes")
_GRAPHS = ("onnx/model.onnx", "onnx/model_quantized.onnx")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SLOW_VOCABULARY = {"vocab.txt", "bpe.codes", "spiece.model", "spm.model", "tokenizer.model", "sentencepiece.model",
                    "sentencepiece.bpe.model"}  # fmt: skip
_REMEDY = (
    "What was written before is untouched: free space on the disk, or mend what the message says, and export again."
)


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """The carl_export.json of an export, or None for any other folder.

    Raises:
        ValueError: if the file is damaged.
    """
    path = Path(folder) / EXPORT_RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        origin = record["provenance"]
        needed = {"base_model", "corpora", "method", "trained_on_test_rows"}
        if origin is None or (
            needed <= set(origin) and all(isinstance(origin.get(kind, {}), dict) for kind in ("files", "partly"))
        ):
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise _damaged(path)


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is no valid record of an export: it was cut short or changed. Export again.")


def record_of(model: str) -> dict[str, Any] | None:
    """The same of a model by the name that loads it, of the Hub too; None for one that is no export, or not there.

    Raises:
        ValueError: if the record is damaged, or the Hub could not be asked for it.
    """
    with contextlib.suppress(OSError):
        if path := find_file(resolve_encoder(model), EXPORT_RECORD):
            return read_record(Path(path).parent)
    return None


def with_earlier_training(provenance: Provenance, encoder: str) -> Provenance:
    """The provenance of a model that was made from `encoder`: if that is an export, its base model, corpora (also of a
    head that was trained with it) and method of training come first, and its licence still holds."""
    record = record_of(encoder) or {}
    if (earlier := record.get("provenance")) is None:
        return provenance
    earlier = with_head(earlier, record.get("head"))
    # of which data sets on the Hub an older version had held out a test part, its record does not say
    partly = earlier.get("partly", {name: name for name in earlier["corpora"] if "/" in name})
    methods = [method for method in (earlier["method"], provenance.method) if method is not None]
    return replace(
        provenance,
        base_model=earlier["base_model"],
        corpora=list(dict.fromkeys([*earlier["corpora"], *provenance.corpora])),
        trained_on_test_rows=earlier["trained_on_test_rows"] or provenance.trained_on_test_rows,
        method=", then ".join(methods) or None,
        files=named_digests(earlier.get("files", {}).items(), provenance.files.items()),
        partly=named_digests(partly.items(), provenance.partly.items()),
        tenth_kept=provenance.tenth_kept and earlier.get("tenth_kept", False),
        base_licence=earlier.get("licence"),
        settings=earlier.get("settings") if provenance.method is None else provenance.settings,
    )


def export_files(folder: str | Path) -> list[str]:
    """The files of an export, relative to `folder`, sorted.

    Raises:
        ValueError: if the folder is no complete export, a file is damaged, or it holds anything that is not part of
            one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    record = read_record(folder)
    if record is None:
        raise ValueError(
            f"{folder} is no export: it holds no {EXPORT_RECORD}. export_encoder, export_va_regressor and "
            "export_emotion_classifier write one."
        )
    if not {"kind", "pooling", "versions", "results", "widget", "card_sha256"} <= set(record):
        raise _damaged(folder / EXPORT_RECORD)
    if foreign := _foreign_files(folder):
        links = (
            " (links, as in the Hub's cache: hf download NAME --local-dir DIR)" * (folder / foreign[0]).is_symlink()
        )
        raise ValueError(
            f"{folder} holds files that are not part of an export: {listed(foreign)}{links}. Move them away."
        )
    files = _files(folder)
    needed = {"README.md", "config.json", "tokenizer_config.json"}
    if not _SLOW_VOCABULARY & set(files):
        needed.add("tokenizer.json")
    if record["kind"] == "encoder":
        needed |= {"modules.json", "sentence_bert_config.json", "1_Pooling/config.json"}
    needed |= {*record.get("figures", ())} | ({*_GRAPHS} if record.get("onnx") else set())
    missing = sorted(needed - set(files)) + _missing_weights(folder, files)
    if missing:
        raise ValueError(f"{folder} is no complete export: it lacks {', '.join(missing)}. Export again.")
    check_weights_of(folder, record)
    return files


def check_weights_of(folder: Path, record: dict[str, Any]) -> None:
    """Raises a ValueError if the weights are not those that the record, and with it the card, was written for."""
    stated = record.get("weights")  # none of an export of before there was one, which is not read for it
    if stated is not None and stated != _digest_of_weights(folder):
        raise ValueError(
            f"{folder}: the weights were changed since the export, and the card has the figures of the earlier ones: "
            "export the model again."
        )


def _digest_of_weights(folder: Path) -> str:
    """The same for the same weights in any number of files."""
    digests = {}
    for path in folder.glob("model*.safetensors"):
        with safetensors.safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no dictionary
                values = weights.get_tensor(name)
                content = values.flatten().view(torch.uint8).numpy()
                digests[name] = hashlib.sha256(f"{values.dtype} {values.shape}".encode() + content.data).hexdigest()
    return _sha256(json.dumps(digests, sort_keys=True))


def _missing_weights(folder: Path, files: Sequence[str]) -> list[str]:
    """What is missing of the weights. Every file is opened: a ValueError names a damaged one."""
    contents: dict[str, Any] = {}
    for file in files:
        try:
            if file.endswith(".json"):
                contents[file] = json.loads((folder / file).read_text(encoding="utf-8"))
            elif file.endswith(".safetensors"):
                with safetensors.safe_open(folder / file, "pt") as weights:  # compares the size with the header's
                    contents[file] = set(weights.keys())
            else:
                check_content(folder / file)
        except (ValueError, safetensors.SafetensorError) as error:
            raise ValueError(f"{folder / file} is damaged ({error}). Export again.") from error
    index = contents.get(_INDEX)
    if index is None:
        return [] if contents.get(_WEIGHTS) else ["the weights"]
    shards = index.get("weight_map", {})
    return sorted({shard for key, shard in shards.items() if key not in contents.get(shard, ())}) or (
        [] if shards else ["the weights"]
    )


def check_replaceable(folder: Path) -> None:
    """Refuses to replace anything other than an export.

    Raises:
        ValueError: if `folder` exists and holds anything that is not part of an export.
    """
    if folder.exists():
        foreign = _foreign_files(folder) if folder.is_dir() else [folder.name]
        if foreign or (any(folder.iterdir()) and read_record(folder) is None):
            what = f": {', '.join(foreign[:3])}" if foreign else ""
            raise ValueError(f"{folder} holds something else than an export{what}. Name another folder, or empty it.")


@contextlib.contextmanager
def replacing_export(folder: str | Path) -> Iterator[Path]:
    """A new folder that replaces `folder` when everything is written. What a killed export has left is removed.

    Raises:
        ValueError: if `folder` exists and holds anything that is not part of an export. OSError: if it cannot be
            written; what was there stays.
    """
    folder = Path(folder).resolve()
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".export-{folder.name[:100]}-"
    for left in folder.parent.glob(f"{glob.escape(prefix)}*"):
        _remove_unless_in_use(left, folder)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as work, FileLock(Path(work) / _IN_USE):
        new, old = Path(work) / "new", Path(work) / "old"
        new.mkdir()
        with write_errors(str(folder), _REMEDY):
            yield new
        apply_umask(new)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise


def _remove_unless_in_use(left: Path, folder: Path) -> None:
    """Removes the working copy of an export to `folder` that was killed: its lock is free. If it was killed between
    moving the old export away and the new one in, the old one is put back first."""
    if not (left / _IN_USE).is_file():
        return
    with contextlib.suppress(Timeout), FileLock(left / _IN_USE, timeout=0):
        if (left / "old").exists() and not folder.exists():
            (left / "old").rename(folder)
        shutil.rmtree(left, ignore_errors=True)


def check_figures(figures: Sequence[str | Path]) -> list[str]:
    """Where they lie in an export; a ValueError unless each is a PNG file with a plain name that no other has."""
    published = [f"figures/{Path(figure).name}" for figure in figures]
    for source, target in zip(figures, published, strict=True):
        if not _PUBLISHED.fullmatch(target) or published.count(target) > 1:
            raise ValueError(
                f"The figure {Path(source).name!r} cannot be published: name each PNG file differently, with letters, "
                "digits and hyphens."
            )
        if not Path(source).is_file():
            raise ValueError(f"There is no figure {source}.")
    return published


def write_record(folder: Path, record: dict[str, Any], figures: Sequence[str | Path], name: str) -> None:
    """Copies the figures, and writes carl_export.json and the card that is rendered from it."""
    published = check_figures(figures)
    for source, target in zip(figures, published, strict=True):
        (folder / "figures").mkdir(exist_ok=True)
        shutil.copy(source, folder / target)
    _write_card(folder, {**record, "figures": published, "weights": _digest_of_weights(folder)}, name)


def update_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes the record anew, and the card too unless that was edited by hand."""
    if _edited(folder, record):
        write_json(folder / EXPORT_RECORD, record)
    else:
        _write_card(folder, record, folder.resolve().name)


def _write_card(folder: Path, record: dict[str, Any], name: str) -> None:
    card = render_card(record, name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_json(folder / EXPORT_RECORD, {**record, "card_sha256": _sha256(card)})


def _edited(folder: Path, record: dict[str, Any]) -> bool:
    return _sha256((folder / "README.md").read_text(encoding="utf-8")) != record["card_sha256"]


def card_for(folder: Path, repo_id: str) -> bytes:
    """The export's card, rendered for a repository; unchanged if it was edited by hand."""
    record = read_record(folder)
    if _edited(folder, record):
        return (folder / "README.md").read_bytes()
    return render_card(record, repo_id).encode("utf-8")


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    return [name for name in names if not name.startswith(_OF_A_DOWNLOAD)]


def _foreign_files(folder: Path) -> list[str]:
    return [f for f in _files(folder) if not _PUBLISHED.fullmatch(f) or (folder / f).is_symlink()]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
