"""The command line of examples/push_to_hub.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from carl_hf.export.folder import read_record
from carl_hf.export.hub import Push
from carl_hf.utils.fields import setting


@dataclass
class PushArguments:
    export: str | None = setting(None, "Output folder of a training, or an exported folder.")
    repo_id: str | None = setting(None, "Repository on the Hub: org/name.")
    head: Literal["va", "emotion"] | None = setting(None, "Publish the folder va/ or emotion/ instead of encoder/.")
    private: bool = setting(False, "Make a new repository private.")
    public: bool = setting(False, "Make a new repository public (the Hub's default).")
    branch: str = setting("main", "Branch to push to; created if it does not exist.")
    pull_request: bool = setting(False, "Open a pull request against main instead.")
    message: str | None = setting(None, "Commit message.")
    dry_run: bool = setting(False, "Only list what would be published.")

    def __post_init__(self):
        if self.export is None or self.repo_id is None:
            raise ValueError("Name the folder and the repository: --export DIR --repo_id org/name.")
        if self.private and self.public:
            raise ValueError("--private and --public exclude each other.")

    def folder(self) -> Path:
        """The export to publish."""
        folder = Path(self.export)
        if self.head is None and read_record(folder) is not None:
            return folder
        return folder / (self.head or "encoder")


def print_push(push: Push, *, dry_run: bool) -> None:
    lines = [f"{size:>14,} bytes  {file}" for file, size in push.files.items()]
    lines += [f"{'removed':>20}  {file}" for file in push.removed]
    total = f"{len(push.files)} files, {sum(push.files.values()):,} bytes"
    where = push.repo_id if push.branch == "main" else f"{push.repo_id}, branch {push.branch}"
    if dry_run:
        lines.append(f"Would publish {total} in {where}. Nothing was sent.")
    elif push.changed:
        lines.append(f"Published {total}: {push.url}")
    else:
        lines = [f"{where} holds this export already: nothing was uploaded."]
    print("\n".join(lines))
