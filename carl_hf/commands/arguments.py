"""Command lines of the examples: flags and YAML files over presets, and where a run may write."""

import argparse
import dataclasses
import datetime
import importlib.util
import inspect
import logging
import os
import platform
import re
import reprlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import transformers
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.hf_argparser import string_to_bool

from carl_hf.training.checkpoints import last_checkpoint, read_completion_record
from carl_hf.training.nonfinite import SKIPPED_STEPS
from carl_hf.training_args import CarlTrainingArguments
from carl_hf.utils.progress import bars_only_in_a_terminal
from carl_hf.utils.suggestions import did_you_mean
from carl_hf.utils.yaml_files import read_yaml
from carl_hf.version import __version__

Script = TypeVar("Script")


_RECIPE = set(CarlTrainingArguments.__annotations__)
_TRAINER = {f.name for f in dataclasses.fields(TrainingArguments)}
_GROUPS = {
    "script": "this script",
    "carl": "CARL (carl_hf.CarlTrainingArguments)",
    "recipe": "training (transformers.TrainingArguments, with the defaults of this recipe)",
    "trainer": "training, the rest (transformers.TrainingArguments)",
}
_METAVARS = {int: "N", float: "X", str: "TEXT", string_to_bool: "true|false"}
_WIDTH = 110


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of one flag each: its name once, no wider than `_WIDTH`."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=min(_WIDTH, shutil.get_terminal_size().columns - 2))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return max(action.option_strings, key=len)
        return f"{action.option_strings[0]} {self._format_args(action, action.dest.upper())}"


class _ExplicitParser(HfArgumentParser):
    """An HfArgumentParser that returns only the flags that were given: what else holds comes from a file or preset."""

    def __init__(self, classes: Sequence[type], **options: Any):
        self._group_of: dict[str, argparse._ArgumentGroup] = {}
        super().__init__([], usage="%(prog)s [--config FILE] [--NAME VALUE ...]", **options)
        self.dataclass_types = list(classes)
        groups = {key: self.add_argument_group(title) for key, title in _GROUPS.items()}
        for dataclass in classes:
            for field in dataclasses.fields(dataclass):
                self._group_of[field.name] = groups[_group_key(dataclass, field.name)]
            self._add_dataclass_arguments(dataclass)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        name = options.get("dest") or names[0].lstrip("-")
        default, choices = options.get("default"), ", ".join(map(str, options.get("choices") or ()))
        help_text = re.sub(r"%(?!\()", "%%", (options.get("help") or "").replace("%%", "%"))
        if options.get("action") == "store_false":
            help_text = f"The same as --{name} false."
        elif default not in (None, argparse.SUPPRESS):
            shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
            help_text += f" (default: {shown.replace('%', '%%')})" if shown else ""
        if len(choices) > 50:
            options["metavar"], help_text = "NAME", f"{help_text} One of: {choices}."
        elif not choices and options.get("type") in _METAVARS:
            options.setdefault("metavar", _METAVARS[options["type"]])
        add = self._group_of[name].add_argument if name in self._group_of else super().add_argument
        return add(*names, **{**options, "help": help_text, "default": argparse.SUPPRESS})


def _group_key(dataclass: type, name: str) -> str:
    if dataclass is not CarlTrainingArguments:
        return "script"
    return ("recipe" if name in _RECIPE else "trainer") if name in _TRAINER else "carl"


class _FileParser(_ExplicitParser):
    """The same for the entries of a file: a value that does not fit is a ValueError."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_arguments(
    script_class: type[Script],
    argv: Sequence[str] | None = None,
    *,
    default_config: Path | None = None,
    default_config_unless: Sequence[str] = (),
) -> tuple[Script, CarlTrainingArguments]:
    """Reads a script's own arguments and CarlTrainingArguments from flags and a YAML file.

    `--config FILE` names the file; flags win over the file, the file over the preset, the preset over the defaults.
    Where stderr is no terminal, progress bars are off unless `--disable_tqdm false`. `--help` begins with the
    docstring of the script's module.

    Args:
        script_class: a dataclass with the script's own arguments. argv: the command line without the program's name.
        default_config: file that is read if neither `--config` nor one of the flags in `default_config_unless` is
            given.

    Raises:
        ValueError: for an unreadable file or an unknown key in it (with the nearest valid name), or a value in it
            that does not fit, or settings that CarlTrainingArguments refuses. Unknown flags end the program as
            argparse does.
    """
    flags, settings = _flags_and_file(
        (script_class, CarlTrainingArguments), argv, default_config, default_config_unless
    )
    # momentum and its half-life are two forms of one setting: the flag replaces either form in the file
    for one, other in (("momentum", "momentum_half_life"), ("momentum_half_life", "momentum")):
        if one in flags and other not in flags:
            settings.pop(other, None)
    settings.update(flags)
    settings.setdefault("disable_tqdm", not sys.stderr.isatty())
    if not torch.accelerator.is_available():
        settings.setdefault("dataloader_pin_memory", False)  # torch warns of what it cannot do
    script_names = {f.name for f in dataclasses.fields(script_class)}
    script = script_class(**{k: v for k, v in settings.items() if k in script_names})
    return script, CarlTrainingArguments(**{k: v for k, v in settings.items() if k not in script_names})


def parse_script_arguments(
    script_class: type[Script], argv: Sequence[str] | None = None, *, description: str | None = None
) -> Script:
    """Reads a script's arguments from flags and the YAML file that `--config` names; flags win.

    Args:
        description: what `--help` begins with (default: the docstring of the module of `script_class`).

    Raises:
        ValueError: as [`parse_arguments`].
    """
    flags, settings = _flags_and_file((script_class,), argv, None, (), description)
    return script_class(**{**settings, **flags})


def _flags_and_file(
    classes: Sequence[type],
    argv: Sequence[str] | None,
    default_config: Path | None,
    default_unless: Sequence[str],
    description: str | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was given as flags, and what the YAML file holds."""
    bars_only_in_a_terminal()
    module = inspect.getmodule(classes[0])  # None where it was started by runpy
    description = description or (module and module.__doc__)
    parser = _ExplicitParser(classes, description=description, formatter_class=_HelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these arguments; flags win over it.")
    flags = vars(parser.parse_args(argv))
    config = flags.pop("config", None)
    if config is None and not any(name in flags for name in default_unless):
        config = default_config
    if config is None:
        return flags, {}
    known = {f.name for c in classes for f in dataclasses.fields(c) if f.init}
    return flags, _read_yaml(Path(config), known, _FileParser(classes, add_help=False))


def _read_yaml(path: Path, known: set[str], parser: _FileParser) -> dict[str, Any]:
    content = read_yaml(path, "the configuration")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'name: value' lines.")
    settings = {}
    for name, value in content.items():
        if name not in known:
            raise ValueError(f"{path}: unknown setting {reprlib.repr(name)}{did_you_mean(str(name)[:50], known)}")
        if value is None or isinstance(value, dict) or name == "preset":
            settings[name] = value
            continue
        if isinstance(value, list) and any(isinstance(item, (list, dict)) for item in value):
            raise ValueError(f"{path}: {name} must be a value or a list of values, not a list of lists or mappings.")
        # read as the flag of that name would be, so that a value has the same type and the same checks from both
        words = [str(v) for v in value] if isinstance(value, list) else [str(value)]
        try:
            settings |= vars(parser.parse_args([f"--{name}", *words] if len(words) != 1 else [f"--{name}={words[0]}"]))
        except ValueError as error:
            raise ValueError(f"{path}: {str(error)[:500]}") from error
    return settings


def available_cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_measuring_script(*, main_process: bool = True) -> None:
    """Sets up what a script prints, and looks for the packages that its measurements and figures need.

    Raises:
        ValueError: if one of them is not installed; the message names the remedy.
    """
    logging.basicConfig(level=logging.INFO if main_process else logging.ERROR, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for module, package in (("sklearn", "scikit-learn"), ("scipy", "scipy"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"This script measures and draws with {package}: pip install 'carl_hf[eval]'.")


def use_all_cores(num_threads: int | None) -> None:
    """Sets torch's threads: `num_threads`, else the user's OMP_NUM_THREADS, else this process's share of the cores.

    `accelerate launch` sets OMP_NUM_THREADS=1 where the user has set nothing, which would leave all cores but one
    idle; so a 1 there counts as unset.
    """
    if num_threads is None and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        num_threads = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def processor() -> str:
    """The CPU's name and what it has for narrow products, where the system says so; else the architecture."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    name = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    wide = [word for word in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{word}\b", info)]
    return " ".join([name[1].strip() if name else platform.machine(), *wide])


def environment_record() -> dict[str, Any]:
    """The machine, threads, versions and day that a result belongs to."""
    return {
        "machine": platform.processor() or platform.machine(),
        "processor": processor(),
        "date": f"{datetime.date.today()}",
        "threads": torch.get_num_threads(),
        "versions": {
            "carl_hf": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def leave_at_once() -> NoReturn:
    """Ends this process with exit code 0, without tearing down what it holds.

    For processes that have nothing left to do after distributed training. A gloo group is torn down by waiting for its
    threads, which may themselves wait for the interpreter's lock: now and then (torch 2.13) that hangs, or aborts the
    interpreter's exit.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


_RESULTS = ("results.json", SKIPPED_STEPS, "encoder", "va", "emotion", "hub", "figures")


def results_of_a_run(folder: str | Path) -> list[Path]:
    """What an earlier run has left in a folder: its checkpoints, exports, figures and results."""
    folder = Path(folder)
    return [folder / name for name in _RESULTS if (folder / name).exists()] + sorted(folder.glob("checkpoint-*"))


def check_output_dir(folder: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a folder that holds another run, unless that is to be resumed or overwritten.

    Raises:
        ValueError: if the folder holds a run, or is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file; name a folder.")
    old = results_of_a_run(folder)
    if old and not resume and not overwrite:
        raise ValueError(
            f"--output_dir {folder} holds another run ({', '.join(path.name for path in old)}). Name another folder, "
            "continue it with --resume_from_checkpoint last, or replace it with --overwrite_output_dir true."
        )


def prepare_output(args: CarlTrainingArguments, *, overwrite: bool) -> str | None:
    """Checks where a run may write, and finds the checkpoint that it resumes from, if it does: `last` stands for the
    newest whole one, `auto` for that or, where there is none, a new run.

    Raises:
        ValueError: if the folder holds another run, or there is no such checkpoint, or it is incomplete.
    """
    resume = args.resume_from_checkpoint
    if args.process_index == 0:
        check_output_dir(args.output_dir, resume=bool(resume), overwrite=overwrite)
    if resume == "last":
        return last_checkpoint(args.output_dir)
    if resume == "auto":
        try:
            return last_checkpoint(args.output_dir)
        except ValueError:  # incomplete ones at most: a complete folder without any is another run
            unfinished = all(path.name.startswith("checkpoint-") for path in results_of_a_run(args.output_dir))
            check_output_dir(args.output_dir, resume=unfinished, overwrite=overwrite)
            return None
    if resume and not Path(resume).is_dir():
        raise ValueError(f"--resume_from_checkpoint {resume} is no checkpoint folder; 'last' finds the newest one.")
    if resume:
        read_completion_record(resume)
    return resume


def train_or_exit(trainer: Trainer, resume: str | None) -> None:
    """Trains; what a user can remedy (a full disk, a diverged loss, a text that cannot be used) ends the program with
    one line."""
    try:
        trainer.train(resume_from_checkpoint=resume)
    except (ValueError, OSError, FloatingPointError) as error:
        message = str(error).strip()
        if message.startswith("Caught "):  # in a worker: torch adds its traceback
            message = message.splitlines()[-1].split(": ", 1)[-1]
        sys.exit(f"error: {message}")


def public_command(script: str) -> str:
    """The command of this process without its tokens."""
    # argparse takes --hub-token for --hub_token, and --hub_t, too
    return re.sub(r"(--(?:hub[_-]t[\w-]*|[\w-]*token)[ =])\S+", r"\1***", " ".join([script, *sys.argv[1:]]))


def remove_results(folder: str | Path) -> None:
    """Removes what an earlier run has left in a folder, and nothing else."""
    for path in results_of_a_run(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
