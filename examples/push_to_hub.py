"""Publishes what examples/pretrain.py has exported on the Hugging Face Hub.

    python examples/push_to_hub.py --export out --repo_id org/carl-roberta --dry_run
    python examples/push_to_hub.py --export out --repo_id org/carl-roberta --private
    python examples/push_to_hub.py --export out --repo_id org/carl-roberta-va --head va
    python examples/push_to_hub.py --export out --repo_id org/carl-roberta-emotion --head emotion --pull_request

The repository then holds exactly the export. The token is that of HF_TOKEN or `hf auth login`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from carl_hf import push_export
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.export.folder import read_record
from carl_hf.export.hub import Push


@dataclass
class PushArguments:
    export: str | None = field(
        default=None, metadata={"help": "Output folder of examples/pretrain.py, or an exported folder itself."}
    )
    repo_id: str | None = field(default=None, metadata={"help": "Repository on the Hub: org/name."})
    head: Literal["va", "emotion"] | None = field(
        default=None, metadata={"help": "Publish va/ or emotion/ of the output folder in place of encoder/."}
    )
    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    public: bool = field(default=False, metadata={"help": "Make a new repository public (the default there)."})
    branch: str = field(default="main", metadata={"help": "Branch to push to; made if it does not exist."})
    pull_request: bool = field(default=False, metadata={"help": "Open a pull request against main instead."})
    message: str | None = field(default=None, metadata={"help": "Commit message."})
    dry_run: bool = field(default=False, metadata={"help": "Only list what would be published."})

    def __post_init__(self):
        if self.export is None or self.repo_id is None:
            raise ValueError("Name the folder and the repository: --export DIR --repo_id org/name.")
        if self.private and self.public:
            raise ValueError("--private and --public exclude each other.")

    def folder(self) -> Path:
        folder = Path(self.export)
        if self.head is None and read_record(folder) is not None:
            return folder
        return folder / (self.head or "encoder")


def report(push: Push, dry_run: bool) -> str:
    lines = [f"{size:>14,} bytes  {file}" for file, size in push.files.items()]
    lines += [f"{'removed':>20}  {file}" for file in push.removed]
    total = f"{len(push.files)} files, {sum(push.files.values()):,} bytes"
    where = push.repo_id if push.branch == "main" else f"{push.repo_id}, branch {push.branch}"
    if dry_run:
        return "\n".join([*lines, f"Would publish {total} in {where}. Nothing was sent."])
    if not push.changed:
        return f"{where} holds this export already: nothing was uploaded."
    return "\n".join([*lines, f"Published {total}: {push.url}"])


def main() -> None:
    try:
        args = parse_script_arguments(PushArguments)
        push = push_export(
            args.folder(), args.repo_id, private=True if args.private else False if args.public else None,
            branch=args.branch, pull_request=args.pull_request, commit_message=args.message, dry_run=args.dry_run,
        )  # fmt: skip
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(report(push, args.dry_run))


if __name__ == "__main__":
    main()
