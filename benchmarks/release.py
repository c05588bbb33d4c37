"""Everything that ships, by one command: trains, evaluates and exports the models, and writes their cards.

    python benchmarks/release.py --data_dir DIR
    python benchmarks/release.py --data_dir DIR --only carl-demo carl-minilm --push ORG

A finished model is skipped; one that was interrupted goes on from its last checkpoint. Weights stay in the folder of
runs; cards and pictures go to model_cards/. --push publishes what is finished as ORG/NAME, ORG/NAME-va and so on.
"""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.export.folder import read_record
from carl_hf.training.checkpoints import last_checkpoint

ROOT = Path(__file__).parents[1]

MODELS = {
    "carl-demo": ["--config", "examples/configs/demo.yaml"],
    "carl-minilm": ["--config", "examples/configs/carl-minilm.yaml", "--emotion_corpus", "goemotions-ekman"],
    "carl-mpnet": ["--config", "examples/configs/carl-mpnet.yaml", "--emotion_corpus", "goemotions-ekman"],
}
"""Name -> the flags of examples/pretrain.py that make it."""


@dataclass
class ReleaseArguments:
    data_dir: str | None = field(default=None, metadata={"help": "Folder with local copies of the corpora."})
    runs_dir: str = field(default="runs", metadata={"help": "Folder of the runs."})
    only: list[str] | None = field(default=None, metadata={"help": f"Of {', '.join(MODELS)}; default: all."})
    push: str | None = field(default=None, metadata={"help": "Organisation to publish the models under."})


def command(name: str, args: ReleaseArguments) -> list[str] | None:
    """The command that makes a model, or goes on with it; None if it stands."""
    output = Path(args.runs_dir) / name
    if all(read_record(output / kind) for kind in ("encoder", "va", "emotion")):  # in the order of writing
        return None
    flags = [*MODELS[name], "--output_dir", str(output)]
    flags += ["--data_dir", args.data_dir] if args.data_dir else []
    try:
        last_checkpoint(output)
        flags += ["--resume_from_checkpoint", "last"]
    except ValueError:  # nothing to go on with
        flags += ["--overwrite_output_dir", "true"]
    return [sys.executable, str(ROOT / "examples" / "pretrain.py"), *flags]


def run(words: list[str]) -> None:
    if subprocess.run(words, cwd=ROOT).returncode:
        sys.exit(f"error: {' '.join(words[1:])} failed; mend what it says, and start again: what stands is kept.")


def main() -> None:
    try:
        args = parse_script_arguments(ReleaseArguments)
        unknown = [name for name in args.only or () if name not in MODELS]
        if unknown:
            raise ValueError(f"There is no model {unknown[0]!r}: choose from {', '.join(MODELS)}.")
    except ValueError as error:
        sys.exit(f"error: {error}")
    for name in args.only or MODELS:
        words, output = command(name, args), Path(args.runs_dir) / name
        print(f"{name}: {'stands' if words is None else ' '.join(words[1:])}", flush=True)
        if words is not None:
            run(words)
        run([sys.executable, str(ROOT / "model_cards" / "collect.py"), str(output), name])
        if args.push:
            push = ["--export", str(output), "--repo_id", f"{args.push}/{name}"]
            run([sys.executable, str(ROOT / "examples" / "push_to_hub.py"), *push])


if __name__ == "__main__":
    main()
