"""Parsing of command lines: flags win over a YAML file, the file over a preset, the preset over the defaults."""

import argparse
import contextlib
import dataclasses
import os
import re
import reprlib
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from carl_hf.commands.environment import is_faster_in_bf16
from carl_hf.training_args import REMOVED, CarlTrainingArguments
from carl_hf.utils.progress import bars_only_in_a_terminal
from carl_hf.utils.suggestions import did_you_mean
from carl_hf.utils.yaml_files import read_as_written

Script = TypeVar("Script")

_RECIPE = set(CarlTrainingArguments.__annotations__)
_TRAINER = {f.name for f in dataclasses.fields(TrainingArguments)}
_MAPPINGS = {f.name for f in dataclasses.fields(TrainingArguments) if "dict" in str(f.type)}
_GROUPS = (
    "this script",
    "CARL (carl_hf.CarlTrainingArguments)",
    "training (transformers.TrainingArguments, with the defaults of this recipe)",
    "training, the rest (transformers.TrainingArguments)",
)
_METAVARS = {int: "N", float: "X", str: "TEXT", string_to_bool: "true|false"}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Names each flag once, in lines of at most 110 characters."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=min(110, shutil.get_terminal_size().columns - 2))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return max(action.option_strings, key=len)
        return f"{action.option_strings[0]} {self._format_args(action, action.dest.upper())}"


class _ShortFormatter(_HelpFormatter):
    """A line for each flag, none for a flag that is another one's opposite."""

    def add_argument(self, action: argparse.Action) -> None:
        if not isinstance(action, argparse._StoreFalseAction):
            super().add_argument(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [textwrap.shorten(text, width, placeholder=" ...")]


class _ShortHelp(argparse.Action):
    """Prints a line for each of the script's own settings, not those of training."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        parser.formatter_class = _ShortFormatter
        parser._action_groups = [group for group in parser._action_groups if group.title not in _GROUPS[1:]]
        parser.print_help()
        parser.exit()


class _ExplicitParser(HfArgumentParser):
    """An HfArgumentParser that returns only the flags that were given: a file or a preset may set the others."""

    def __init__(self, classes: Sequence[type], leading: str | None = None, **options: Any):
        self._group_of: dict[str, argparse._ArgumentGroup] = {}
        self._leading = leading  # the setting that words before the first flag belong to
        words = f"[{leading.upper()} ...] " if leading else ""
        usage = f"%(prog)s {words}[--config FILE] [--NAME VALUE ...]"
        cli = sys.modules.get("carl_hf_cli")
        if cli and cli.running:  # not as a script
            options["prog"] = f"carl-hf {cli.running[0]}"
            for name, (script, _) in cli.SCRIPTS.items():
                called = rf"((accelerate launch -q|python) )?examples/{re.escape(script)}"
                options["description"] = re.sub(called, f"carl-hf {name}", options.get("description") or "")
        super().__init__([], usage=usage, add_help=False, **options)
        groups = [self.add_argument_group(title) for title in _GROUPS]
        for dataclass in classes:
            for field in dataclasses.fields(dataclass):
                self._group_of[field.name] = groups[_group(dataclass, field.name)]
            self._add_dataclass_arguments(dataclass)
        own = {*classes[0].__annotations__}  # before what a script shares with others; a dataclass lists that first
        groups[0]._group_actions.sort(key=lambda action: (action.dest != leading, action.dest not in own))

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        args = sys.argv[1:] if args is None else args
        if self._leading and args and not re.fullmatch(r"-+[^\W\d][\w-]*(=.*)?", args[0], re.DOTALL):
            first, *rest = args[args[0] == "--" :] or [""]
            if first.startswith("-") and (not rest or rest[0].startswith("--")):  # one text, that begins with a dash
                args = [f"--{self._leading}={first}", *rest]
            else:
                args = [f"--{self._leading}", first, *rest]
        names = ["--" + word.split("=")[0][2:].replace("-", "_") for word in args if word.startswith("--")]
        for name in {name for name in names if names.count(name) > 1}:
            action = self._option_string_actions.get(name)
            if action is not None and action.nargs in ("+", "*"):
                self.error(f"{name} is given twice: name all its values behind one.")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if self._leading and message.startswith("unrecognized arguments: ") and "-" not in message.split(": ")[1][:1]:
            message += f" ({self._leading} come first, before all flags)"
        raise super().error(_without_tokens(message))

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        name = options.get("dest") or names[0].lstrip("-")
        default, choices = options.get("default"), ", ".join(map(str, options.get("choices") or ()))
        help_text = re.sub(r"%(?!\()", "%%", (options.get("help") or "").replace("%%", "%"))
        if options.get("action") == "store_false":
            help_text = f"The same as --{name} false."
        elif default not in (None, argparse.SUPPRESS):
            shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
            help_text += f" (default: {shown.replace('%', '%%')})" if shown else ""
        if name == "bf16" and default is None:
            options |= {
                "type": lambda word: None if word == "auto" else string_to_bool(word),
                "metavar": "true|false|auto",
            }
        if len(choices) > 50:
            options["metavar"], help_text = "NAME", f"{help_text} One of: {choices}."
        elif not choices and options.get("type") in _METAVARS:
            options.setdefault("metavar", _METAVARS[options["type"]])
        add = self._group_of[name].add_argument if name in self._group_of else super().add_argument
        return add(*names, **{**options, "help": help_text, "default": argparse.SUPPRESS})


def _group(dataclass: type, name: str) -> int:
    """Index into `_GROUPS`."""
    if dataclass is not CarlTrainingArguments:
        return 0
    return (2 if name in _RECIPE else 3) if name in _TRAINER else 1


class _FileParser(_ExplicitParser):
    """The same for the entries of a file: a wrong value is a ValueError."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_arguments(
    script_class: type[Script], argv: Sequence[str] | None = None, *, description: str | None = None,
    default_config: Path | None = None, default_config_unless: Sequence[str] = (),
) -> tuple[Script, CarlTrainingArguments]:  # fmt: skip
    """Reads a script's own arguments and CarlTrainingArguments from flags and the YAML file that `--config` names.

    In place of unset, and of `auto`, `bf16` is on where the CPU that trains is faster in bfloat16, unless a preset
    decides. Progress bars are off where stderr is no terminal, unless `--disable_tqdm false`.

    Args:
        script_class: a dataclass with the script's own arguments. argv: the command line without the program's name.
        description: what `--help` begins with (default: the docstring of the module of `script_class`).
        default_config: file that is read if neither `--config` nor one of the flags in `default_config_unless` is
            given.

    Raises:
        ValueError: for a removed flag, an unreadable file, an unknown key or a wrong value in it, or settings that
            CarlTrainingArguments refuses. Unknown flags end the program as argparse does.
    """
    flags, settings = _flags_and_file(
        (script_class, CarlTrainingArguments), argv, description, default_config, default_config_unless
    )
    # momentum and its half-life are two forms of one setting: the flag replaces either form in the file
    for one, other in (("momentum", "momentum_half_life"), ("momentum_half_life", "momentum")):
        if one in flags and other not in flags:
            settings.pop(other, None)
    settings.update(flags)
    settings.setdefault("disable_tqdm", not sys.stderr.isatty())
    if settings.get("bf16") is None:
        settings.pop("bf16", None)
        on_cpu = settings.get("use_cpu") or not torch.accelerator.is_available()
        if on_cpu and not settings.get("fp16") and settings.get("preset") != "paper" and is_faster_in_bf16():
            settings["bf16"] = True
    if not torch.accelerator.is_available():
        settings.setdefault("dataloader_pin_memory", False)  # torch warns of what it cannot do
    own = {f.name: settings.pop(f.name) for f in dataclasses.fields(script_class) if f.name in settings}  # type: ignore[arg-type]
    return script_class(**own), CarlTrainingArguments(**settings)


def parse_script_arguments(
    script_class: type[Script], argv: Sequence[str] | None = None, *, description: str | None = None,
    leading: str | None = None,
) -> Script:  # fmt: skip
    """The same for a script that does not train: its own arguments alone. Words before the first flag are values of
    `leading`."""
    flags, settings = _flags_and_file((script_class,), argv, description, leading=leading)
    return script_class(**{**settings, **flags})


def _flags_and_file(
    classes: Sequence[type], argv: Sequence[str] | None, description: str | None, default_config: Path | None = None,
    default_config_unless: Sequence[str] = (), leading: str | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """The settings given as flags, and those in the YAML file."""
    bars_only_in_a_terminal()
    argv = sys.argv[1:] if argv is None else list(argv)
    removed = REMOVED if CarlTrainingArguments in classes else {}
    for word in argv:
        name = word.split("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in removed:
            raise ValueError(f"--{name} was removed: {removed[name]}.")
    description = description or getattr(sys.modules.get(classes[0].__module__), "__doc__", None)
    parser = _ExplicitParser(classes, leading, description=description, formatter_class=_HelpFormatter)
    if CarlTrainingArguments in classes:
        parser.add_argument("-h", "--help", action=_ShortHelp, nargs=0, help="This overview.")
        parser.add_argument("--help-all", action="help", help="Every setting, those of training too, in full.")
    else:
        parser.add_argument("-h", "--help", "--help-all", action="help", help="This text.")
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these arguments; flags win over it.")
    flags = vars(parser.parse_args(argv))
    config = flags.pop("config", None)
    if config is None and not any(name in flags for name in default_config_unless):
        config = default_config
    known = {f.name for c in classes for f in dataclasses.fields(c) if f.init}
    settings = {} if config is None else _read_settings(Path(config), known, removed, _FileParser(classes))
    unset = {f.name for c in classes for f in dataclasses.fields(c) if f.default is not None}
    settings = {name: value for name, value in settings.items() if value is not None or name not in unset}
    settings, flags = ({name: _expanded(value) for name, value in given.items()} for given in (settings, flags))
    if not 0 <= (seed := {**settings, **flags}.get("seed") or 0) < 2**32:
        raise ValueError(f"--seed must lie between 0 and {2**32 - 1}, got {seed}.")
    return flags, settings


def _expanded(value: Any) -> Any:
    """A setting in which ~ is the home folder, as a shell makes it of a word."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _read_settings(path: Path, known: set[str], removed: dict[str, str], parser: _FileParser) -> dict[str, Any]:
    content, written = read_as_written(path, "the configuration")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'name: value' lines.")
    settings: dict[str, Any] = {}
    for name, value in content.items():
        if name in removed:
            raise ValueError(f"{path}: {name} was removed: {removed[name]}.")
        if name not in known:
            raise ValueError(f"{path}: unknown setting {reprlib.repr(name)}{did_you_mean(str(name)[:50], known)}")
        if isinstance(value, dict) and name not in _MAPPINGS:
            raise ValueError(f"{path}: {name} must be a value or a list of values, not a mapping.")
        if value is None or isinstance(value, dict) or name == "preset":
            settings[name] = value
            continue
        if isinstance(value, list) and any(isinstance(item, (list, dict)) for item in value):
            raise ValueError(f"{path}: {name} must be a value or a list of values, not a list of lists or mappings.")
        if isinstance(value, list) and None in value:
            raise ValueError(f"{path}: {name} has an empty item: remove it.")
        try:
            settings |= _parsed(parser, name, written.get(name, value), value)
        except ValueError as error:
            raise ValueError(f"{path}: {str(error)[:500]}") from error
    return settings


def _parsed(parser: _FileParser, name: str, written: Any, read: Any) -> dict[str, Any]:
    """A setting parsed as the flag of that name, so that types and checks are the same: as it is written, or, if the
    flag does not take that, as YAML reads it (`on`, `.inf`, `0x10`, but no 1:30 as a number of base 60)."""

    def parsed(value: Any) -> dict[str, Any]:
        words = list(map(str, value)) if isinstance(value, list) else [str(value)]
        return vars(parser.parse_args([f"--{name}", *words] if len(words) != 1 else [f"--{name}={words[0]}"]))

    try:
        return parsed(written)
    except ValueError:
        if written == str(read) or ":" in str(written):
            raise
        with contextlib.suppress(ValueError):
            return parsed(read)
        raise


def public_command(script: str, argv: Sequence[str] | None = None) -> str:
    """The command `script` with its arguments (default: this process's), without tokens."""
    return _without_tokens(" ".join([script, *(sys.argv[1:] if argv is None else argv)]))


def _without_tokens(text: str) -> str:
    # argparse takes --hub-token for --hub_token, and --hub_t, too; a mistyped name does not give the token away either
    text = re.sub(r"(--(?:hub[_-]t[\w-]*|[\w-]*token)[ =])\S+", r"\1***", text)
    return re.sub(r"\bhf_\w{16,}", "hf_***", text)
