"""Adds an ONNX graph to an exported encoder, after comparing it with the model.

python examples/export_onnx.py runs/carl-demo/encoder
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.export.onnx import export_onnx
from carl_hf.utils.fields import setting


@dataclass
class OnnxArguments:
    exports: list[str] = setting([], "Folders encoder/, or output folders of examples/pretrain.py.")

    def __post_init__(self):
        if not self.exports:
            raise ValueError("Name a folder: carl-hf export-onnx runs/carl-demo/encoder")

    def folders(self) -> list[Path]:
        inside = ((Path(name), Path(name) / "encoder") for name in self.exports)
        return [encoder if encoder.is_dir() else folder for folder, encoder in inside]


def main(argv: Sequence[str] | None = None) -> None:
    try:
        args = parse_script_arguments(OnnxArguments, argv, description=__doc__, leading="exports")
        for folder in args.folders():
            print(export_onnx(folder))
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
