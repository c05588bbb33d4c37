"""Publishing an export on the Hugging Face Hub: one commit, or none."""

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from carl_hf.encoders.hub_files import is_of_the_client
from carl_hf.export.folder import EXPORT_RECORD, card_for, export_files, read_record
from carl_hf.version import __version__

logger = logging.getLogger(__name__)
_KEPT = re.compile(r"\.gitattributes|LICENSE(\.(md|txt))?")
"""Files of a repository that belong to no export, and stay."""


@dataclass(frozen=True)
class Push:
    """What [`push_export`] did, or with `dry_run` would do.

    Args:
        repo_id, branch: where. files: path -> bytes, of the whole export. removed: files of the repository that are
            not in the export.
        url: of the commit or pull request. changed: whether anything was uploaded. Both None for a dry run.
    """

    repo_id: str
    branch: str
    files: dict[str, int]
    removed: list[str]
    url: str | None
    changed: bool | None


def push_export(
    folder: str | Path, repo_id: str, *, private: bool | None = None, branch: str = "main",
    pull_request: bool = False, commit_message: str | None = None, token: str | None = None, dry_run: bool = False,
) -> Push:  # fmt: skip
    """Makes a repository on the Hub hold exactly an export, beside a LICENSE of its own, in one commit; without
    changes there is no commit.

    The commit is the last step: a push that was interrupted leaves the repository as it was and can be run again. The
    card is rendered for `repo_id`, unless it was edited by hand.

    Args:
        folder: an export. repo_id: "owner/name"; made if it does not exist.
        private: visibility of a new repository (public by default); an existing one must have it already.
        branch: to push to; made from main if it does not exist. pull_request: open one against main instead.
        token: by default that of HF_TOKEN or `hf auth login`.
        dry_run: only list what would be pushed; the repository need not exist.

    Raises:
        ValueError: if the folder is no export, the repository id, branch or visibility is not possible, the repository
            holds another kind of model, or the push was refused or broke off; the message says what to do.
    """
    _check_id(repo_id)
    if pull_request and branch != "main":
        raise ValueError("A pull request goes against main: leave out the branch, or push to the branch itself.")
    folder, files = Path(folder), export_files(folder)
    api = HfApi(token=token, library_name="carl_hf", library_version=__version__)
    card = card_for(folder, repo_id)
    sizes = {file: len(card) if file == "README.md" else (folder / file).stat().st_size for file in files}
    with errors_explained(repo_id, branch, sending=not dry_run):
        if dry_run:
            if token or get_token():
                api.whoami()
            else:
                logger.warning("There is no token, which a push needs: set HF_TOKEN, or run `hf auth login`.")
            if not api.repo_exists(repo_id):
                return Push(repo_id, branch, sizes, [], None, None)
        else:
            api.create_repo(repo_id, private=private, exist_ok=True)
        _check_visibility(api, repo_id, private)
        is_new = _is_new(api, repo_id, branch)
        head, present = _check_kind(api, repo_id, "main" if is_new else branch, read_record(folder)["kind"])
        if is_new and not dry_run:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        removed = sorted(file for file in present - set(files) if not _KEPT.fullmatch(file))
        if dry_run:
            return Push(repo_id, branch, sizes, removed, None, None)
        # not upload_folder: with hf_xet installed it may split a push into several commits
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
    return Push(repo_id, branch, sizes, removed, commit.pr_url or commit.commit_url, commit.oid != head)


def check_repository(repo_id: str, kind: str, *, private: bool | None, branch: str, token: str | None) -> None:
    """What [`push_export`] checks of a repository that exists: that it is as visible as asked for, and holds no model
    of another kind.

    Raises:
        ValueError: if not, or if the Hub refuses or cannot be asked; the message says what to do.
    """
    api = HfApi(token=token, library_name="carl_hf", library_version=__version__)
    with errors_explained(repo_id, branch, sending=False):
        _check_visibility(api, repo_id, private)
        _check_kind(api, repo_id, "main" if _is_new(api, repo_id, branch) else branch, kind)


def _check_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no repository id such as org/carl-roberta: {error}") from error
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} names no owner: write owner/{repo_id}.")


def _check_visibility(api: HfApi, repo_id: str, private: bool | None) -> None:
    is_private = bool(api.repo_info(repo_id).private)
    if private is not None and is_private != private:
        raise ValueError(
            f"{repo_id} is {'private' if is_private else 'public'} already: change that on its settings page, "
            "or push without saying which."
        )


def _is_new(api: HfApi, repo_id: str, branch: str) -> bool:
    """Whether there is no such branch: a push makes it from main."""
    return not branch.startswith("refs/") and branch not in {r.name for r in api.list_repo_refs(repo_id).branches}


def _check_kind(api: HfApi, repo_id: str, branch: str, kind: str) -> tuple[str, set[str]]:
    """The commit and the files of a branch; a ValueError if they are another kind of model, which a push would
    replace."""
    head = api.repo_info(repo_id, revision=branch).sha
    present = set(api.list_repo_files(repo_id, revision=head))
    there = None
    if EXPORT_RECORD in present:
        with tempfile.TemporaryDirectory() as work:
            api.hf_hub_download(repo_id, EXPORT_RECORD, revision=head, local_dir=work)
            try:
                there = (read_record(work) or {}).get("kind")
            except ValueError as error:
                raise ValueError(f"The {EXPORT_RECORD} of {repo_id} is damaged: delete it there first.") from error
    others = sorted(file for file in present if file != "README.md" and not _KEPT.fullmatch(file))
    if there != kind and (there is not None or others):
        what = "a model" if "config.json" in present else others[0] if others else ""
        what = f"{what} that is no export of carl_hf" if there is None else f"an export of the kind {there!r}"
        raise ValueError(f"{repo_id} holds {what}, this one is of the kind {kind!r}: name a repository of its own.")
    return head, present


@contextlib.contextmanager
def errors_explained(repo_id: str, branch: str, *, sending: bool) -> Iterator[None]:
    """Errors of the Hub as a ValueError that says what to do; with `sending`, something may have been sent."""
    try:
        yield
    except Exception as error:
        known = (HfHubHTTPError, LocalTokenNotFoundError, OSError, RuntimeError)
        if not (is_of_the_client(error) or isinstance(error, known)):
            raise
        raise ValueError(_explained(error, repo_id, branch, sending=sending)) from error


def _explained(error: Exception, repo_id: str, branch: str, *, sending: bool) -> str:
    """What went wrong, and what to do."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked: unset it to push."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    reason = said or f"{type(error).__name__}: {error}".splitlines()[0]
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return (
            f"The Hub does not accept the token for {repo_id}: set HF_TOKEN to one with write access, or run `hf auth "
            "login`."
        )
    if status == 403:
        return f"The token may not write to {repo_id} ({reason}): use one of an owner or member with write access."
    if isinstance(error, RepositoryNotFoundError):
        return f"The Hub has no repository {repo_id} that this token may see."
    if status == 412:
        return f"{repo_id} changed during the push: run it again."
    if status in (409, 429):
        wait = "asks to wait" if status == 429 else "is busy with another change"
        return f"The Hub {wait} ({reason}). Nothing was changed in {repo_id}: run the same command again later."
    if status is not None and status < 500:
        return f"The Hub refused{' the push to' if sending else ''} {repo_id} ({branch}): {reason}"
    if not sending:
        return f"The Hub could not be asked for {repo_id} ({reason}): run the same command again. Nothing was sent."
    return (
        f"The push to {repo_id} broke off ({reason}). The repository is as it was, or, if only the answer was lost, "
        "holds the new export; run the same command again."
    )
