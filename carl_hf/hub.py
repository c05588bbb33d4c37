"""Publishing an export on the Hugging Face Hub: one commit, or none."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from carl_hf.cards import render_card
from carl_hf.export import EXPORT_RECORD, read_record
from carl_hf.version import __version__

logger = logging.getLogger(__name__)

_PUBLISHED = re.compile(
    r"README\.md|carl_export\.json|config\.json|modules\.json|sentence_bert_config\.json|1_Pooling/config\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(txt|json)|merges\.txt"
    r"|[a-z.]+\.model"  # of SentencePiece
    r"|figures/[^/]+\.png|onnx/model\.onnx"
)


@dataclass(frozen=True)
class Push:
    """What [`push_export`] did, or would do.

    Args:
        repo_id, branch: where. files: path -> bytes of everything that the export holds. removed: files of the
            repository that are not in it, and go.
        url: of the commit or pull request; None for a dry run. changed: whether there was anything to upload.
    """

    repo_id: str
    branch: str
    files: dict[str, int]
    removed: list[str]
    url: str | None
    changed: bool


def export_files(folder: str | Path) -> list[str]:
    """The files of an export, relative to `folder`, sorted.

    Raises:
        ValueError: if the folder is no whole export, or holds anything that is not to be published.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    if read_record(folder) is None:
        raise ValueError(
            f"{folder} is no export: it holds no {EXPORT_RECORD}. export_encoder, export_va_regressor and "
            "export_emotion_classifier write one."
        )
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    strange = [f for f in files if not _PUBLISHED.fullmatch(f) or (folder / f).is_symlink()]
    if strange:
        raise ValueError(f"{folder} holds files that are not part of an export: {', '.join(strange)}. Move them away.")
    missing = {"README.md", "config.json", "tokenizer_config.json"} - set(files)
    if missing or not any(file.endswith(".safetensors") for file in files):
        raise ValueError(
            f"{folder} is no whole export: it lacks {', '.join(sorted(missing)) or 'the weights'}. Export again."
        )
    return files


def push_export(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    branch: str = "main",
    pull_request: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> Push:
    """Makes a repository on the Hub hold exactly an export: changed files go up and others go away, in one commit.

    Until that commit the repository keeps its last state; a push that was interrupted is simply run again, and one
    that would change nothing makes no commit. The card is rendered for `repo_id`, unless it was edited by hand.

    Args:
        folder: an export. repo_id: "owner/name"; made if it does not exist.
        private: visibility of a new repository (public by default). One that exists must have it already.
        branch: to push to; made from main if it does not exist. pull_request: propose the commit instead.
        token: by default that of HF_TOKEN or `hf auth login`.
        dry_run: only say what would be pushed; the repository may not exist yet.

    Raises:
        ValueError: for a folder that is no export, a repository id, branch or visibility that cannot be, or a push
            that the Hub refused or that broke off; the message says what to do.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no repository id such as org/carl-roberta: {error}") from error
    if pull_request and branch != "main":
        raise ValueError("A pull request goes against main: leave out the branch, or push to the branch itself.")
    folder, files = Path(folder), export_files(folder)
    api = HfApi(token=token, library_name="carl_hf", library_version=__version__)
    card = _card(folder, repo_id)
    sizes = {file: len(card) if file == "README.md" else (folder / file).stat().st_size for file in files}
    try:
        if dry_run and not api.repo_exists(repo_id):
            return Push(repo_id, branch, sizes, [], None, True)
        if not dry_run:
            api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.repo_info(repo_id)
        if private is not None and bool(info.private) != private:
            raise ValueError(
                f"{repo_id} is {'private' if info.private else 'public'} already: change that on its settings page, "
                "or push without saying which."
            )
        removed = _others(api, repo_id, branch, files, dry_run)
        if dry_run:
            return Push(repo_id, branch, sizes, removed, None, True)
        head = api.repo_info(repo_id, revision=branch).sha
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(path, is_folder=False) for path in removed),
                *(CommitOperationAdd(f, card if f == "README.md" else folder / f) for f in files),
            ],
            commit_message=commit_message or f"Upload by carl_hf {__version__}",
            revision=branch,
            create_pr=pull_request,
            parent_commit=None if pull_request else head,
        )
    except Exception as error:
        raise _explained(error, repo_id, branch) from error
    changed = commit.oid != head
    return Push(repo_id, branch, sizes, removed, commit.pr_url or commit.commit_url, changed)


def _card(folder: Path, repo_id: str) -> bytes:
    written = (folder / "README.md").read_text(encoding="utf-8")
    record = read_record(folder)
    return (render_card(record, repo_id) if written == render_card(record, folder.name) else written).encode("utf-8")


def _others(api: HfApi, repo_id: str, branch: str, files: Sequence[str], dry_run: bool) -> list[str]:
    """Files of the branch that are not in the export; makes the branch where there is none."""
    if branch not in {ref.name for ref in api.list_repo_refs(repo_id).branches}:
        if dry_run:
            branch = "main"
        else:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
    there = api.list_repo_files(repo_id, revision=branch)
    return sorted(set(there) - set(files) - {".gitattributes"})


def _explained(error: Exception, repo_id: str, branch: str) -> Exception:
    """A ValueError that names the remedy, for what the Hub or the way to it may refuse."""
    if isinstance(error, ValueError) and not isinstance(error, (HfHubHTTPError, HFValidationError)):
        return error
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return ValueError(
            f"The Hub does not accept the token for {repo_id}: set HF_TOKEN to one with write access, or run `hf auth "
            "login`."
        )
    if status == 403:
        return ValueError(f"The token may not write to {repo_id}: use one of an owner or member with write access.")
    if isinstance(error, RepositoryNotFoundError):
        return ValueError(f"The Hub has no repository {repo_id} that this token may see.")
    if status == 412:
        return ValueError(f"{repo_id} changed during the push: run it again.")
    if status is not None and status < 500:
        return ValueError(f"The Hub refused the push to {repo_id} ({branch}): {error}")
    if isinstance(error, (OSError, RuntimeError, HfHubHTTPError)) or type(error).__module__.startswith("http"):
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return ValueError(
            f"The push to {repo_id} broke off ({reason}). The repository keeps its last state; run the same command "
            "again."
        )
    return error
