"""Command lines of the examples: flags and YAML files over presets, and where a run may write."""

import argparse
import dataclasses
import difflib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from transformers import HfArgumentParser

from carl_hf.training_args import CarlTrainingArguments

Script = TypeVar("Script")


class _ExplicitParser(HfArgumentParser):
    """An HfArgumentParser that returns only the flags that were given, so that others can come from a file or
    preset."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        default = options.get("default")
        if default not in (None, argparse.SUPPRESS) and "%(default)s" not in (options.get("help") or ""):
            options["help"] = f"{options.get('help') or ''} (default: {str(default).replace('%', '%%')})"
        return super().add_argument(*names, **{**options, "default": argparse.SUPPRESS})


def parse_arguments(
    script_class: type[Script], argv: Sequence[str] | None = None, *, default_config: Path | None = None
) -> tuple[Script, CarlTrainingArguments]:
    """Reads a script's own arguments and CarlTrainingArguments from flags and a YAML file.

    `--config FILE` names the file (`default_config` without it); flags win over the file, the file over the preset,
    the preset over the defaults.

    Args:
        script_class: a dataclass with the script's own arguments. argv: the command line without the program's name.

    Raises:
        ValueError: for an unreadable file or an unknown key in it (with the nearest valid name), or a value that does
            not fit. Unknown flags end the program as argparse does.
    """
    parser = _ExplicitParser([script_class, CarlTrainingArguments], formatter_class=argparse.HelpFormatter)
    parser.add_argument("--config", help="YAML file with any of these arguments; flags win over it.")
    flags = vars(parser.parse_args(argv))
    config = flags.pop("config", default_config)
    script_names = {f.name for f in dataclasses.fields(script_class)}
    training_names = {f.name for f in dataclasses.fields(CarlTrainingArguments) if f.init}
    settings = _read_yaml(Path(config), script_names | training_names) if config is not None else {}
    # momentum and its half-life are two forms of one setting: the flag replaces either form in the file
    for one, other in (("momentum", "momentum_half_life"), ("momentum_half_life", "momentum")):
        if one in flags and other not in flags:
            settings.pop(other, None)
    settings.update(flags)
    script = script_class(**{k: v for k, v in settings.items() if k in script_names})
    return script, CarlTrainingArguments(**{k: v for k, v in settings.items() if k not in script_names})


def _read_yaml(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"Cannot read the configuration {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'name: value' lines.")
    for name in content:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            raise ValueError(f"{path}: unknown setting {name!r}" + (f"; did you mean {close[0]!r}?" if close else "."))
    # YAML 1.1 reads 1e-4 as a string
    return {k: _number(v) if isinstance(v, str) else v for k, v in content.items()}


def _number(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value


def use_all_cores(num_threads: int | None) -> None:
    """Sets torch's threads: `num_threads`, else the user's OMP_NUM_THREADS, else this process's share of the cores.

    `accelerate launch` sets OMP_NUM_THREADS=1 where the user has set nothing, which would leave all cores but one
    idle; so a 1 there counts as unset.
    """
    if num_threads is None and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        num_threads = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if num_threads is not None:
        torch.set_num_threads(num_threads)


_RESULTS = ("results.json", "encoder", "figures")


def prepare_output_dir(folder: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a folder that holds another run, unless it is to be resumed, or overwritten (then its results go).

    Raises:
        ValueError: if the folder holds a run, or is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file; name a folder.")
    old = [folder / name for name in _RESULTS if (folder / name).exists()] + sorted(folder.glob("checkpoint-*"))
    if not old or resume:
        return
    if not overwrite:
        raise ValueError(
            f"--output_dir {folder} holds another run ({', '.join(path.name for path in old)}). Name another folder, "
            "continue it with --resume_from_checkpoint last, or replace it with --overwrite_output_dir true."
        )
    for path in old:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def last_checkpoint(folder: str | Path) -> str:
    """The newest whole checkpoint of a run. One that a kill has left unfinished (the Trainer's state comes last) is
    passed over.

    Raises:
        ValueError: if there is none.
    """
    checkpoints = [path for path in Path(folder).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for path in sorted(checkpoints, key=lambda path: -int(path.name.split("-")[-1])):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            print(f"{path} is unfinished: passed over.", file=sys.stderr)
            continue
        return str(path)
    raise ValueError(f"There is no whole checkpoint in {folder} to resume from.")
