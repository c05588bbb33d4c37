"""Everything that ships, by one command: trains, evaluates and exports the models, and writes their cards.

    python benchmarks/release.py --data_dir DIR
    python benchmarks/release.py --data_dir DIR --only carl-demo carl-minilm --push ORG

A finished model of this version is skipped; one that was interrupted goes on from its last checkpoint. A folder that
holds another run is refused. Weights stay in the folder of runs; cards and pictures go to model_cards/. --push
publishes what is finished as ORG/NAME, ORG/NAME-va and ORG/NAME-emotion.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from carl_hf import __version__
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.export.folder import read_record
from carl_hf.training.checkpoints import last_checkpoint

ROOT = Path(__file__).parents[1]

MODELS = {
    "carl-demo": ["--config", "examples/configs/demo.yaml"],
    "carl-minilm": ["--config", "examples/configs/carl-minilm.yaml", "--emotion_corpus", "goemotions-ekman"],
    "carl-mpnet": ["--config", "examples/configs/carl-mpnet.yaml", "--emotion_corpus", "goemotions-ekman"],
}
"""Name -> the flags of examples/pretrain.py that make it; without any, it takes the first one's."""
KINDS = ("encoder", "va", "emotion")  # in the order of writing
WHERE = {"--output_dir", "--data_dir", "--resume_from_checkpoint", "--overwrite_output_dir", "--num_threads"}


@dataclass
class ReleaseArguments:
    data_dir: str | None = field(default=None, metadata={"help": "Folder with local copies of the corpora."})
    runs_dir: str = field(default="runs", metadata={"help": "Folder of the runs."})
    only: list[str] | None = field(default=None, metadata={"help": f"Of {', '.join(MODELS)}; default: all."})
    push: str | None = field(default=None, metadata={"help": "Organisation to publish the models under."})


def made_by(output: Path) -> dict[str, str] | None:
    """The flags of the run in a folder that was measured there, but those that say where; None if there is none."""
    if not (output / "results.json").is_file():
        return None
    words = json.loads((output / "results.json").read_text(encoding="utf-8"))["run"]["command"].split()[1:]
    flags = "".join(f"\n{word}" if word.startswith("--") else f" {word}" for word in words).strip().splitlines()
    return {name: value for name, _, value in (flag.partition(" ") for flag in flags) if name not in WHERE}


def command(name: str, args: ReleaseArguments) -> list[str] | None:
    """The command that makes a model, or goes on with it; None if it stands.

    Raises:
        ValueError: if its folder holds another run, or one of another version.
    """
    output = Path(args.runs_dir) / name
    records, flags = [read_record(output / kind) for kind in KINDS], made_by(output)
    wanted = dict(zip(MODELS[name][::2], MODELS[name][1::2], strict=True))
    versions = {record["versions"]["carl_hf"] for record in records if record is not None}
    if flags is None:  # nothing, or a run that was stopped before it was measured
        own = not any(records) or any(output.glob("checkpoint-*"))
    else:
        own = wanted == (flags or {"--config": "examples/configs/demo.yaml"})
    if not own or versions - {__version__}:
        raise ValueError(
            f"{output} holds a run of carl_hf {', '.join(versions)} with the flags {flags}, not {name}: move it away, "
            "or name another --runs_dir."
        )
    if all(records) and flags is not None:
        return None
    words = [*MODELS[name], "--output_dir", str(output)]
    words += ["--data_dir", args.data_dir] if args.data_dir else []
    try:
        last_checkpoint(output)
        words += ["--resume_from_checkpoint", "last"]
    except ValueError:  # nothing to go on with
        words += ["--overwrite_output_dir", "true"]
    return [sys.executable, str(ROOT / "examples" / "pretrain.py"), *words]


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
        try:
            words, output = command(name, args), Path(args.runs_dir) / name
        except ValueError as error:
            sys.exit(f"error: {error}")
        print(f"{name}: {'stands' if words is None else ' '.join(words[1:])}", flush=True)
        if words is not None:
            run(words)
        run([sys.executable, str(ROOT / "model_cards" / "collect.py"), str(output), name])
        for kind in KINDS if args.push else ():
            repo_id = f"{args.push}/{name}" if kind == "encoder" else f"{args.push}/{name}-{kind}"
            push = ["--export", str(output / kind), "--repo_id", repo_id]
            run([sys.executable, str(ROOT / "examples" / "push_to_hub.py"), *push])


if __name__ == "__main__":
    main()
