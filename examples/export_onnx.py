"""Adds ONNX graphs in float32 and int8 to exports, after comparing them with the models.

python examples/export_onnx.py runs/carl-demo
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.outputs import errors_in_one_line
from carl_hf.export.onnx import export_onnx
from carl_hf.utils.fields import setting


@dataclass
class OnnxArguments:
    exports: list[str] = setting([], "Exports, or folders with encoder/, va/ and emotion/.")

    def __post_init__(self):
        if not self.exports:
            raise ValueError("Name a folder: carl-hf export-onnx runs/carl-demo")

    def folders(self) -> list[Path]:
        found = []
        for folder in map(Path, self.exports):
            inside = [folder / kind for kind in ("encoder", "va", "emotion")]
            found += list(filter(Path.is_dir, inside)) or [folder]
        return found


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_script_arguments(OnnxArguments, argv, description=__doc__, leading="exports")
    for folder in args.folders():
        print(*export_onnx(folder), sep="\n")


if __name__ == "__main__":
    main()
