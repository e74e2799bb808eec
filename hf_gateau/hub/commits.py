"""Commits to the Hub that are whole or not there at all: tried again when somebody else was faster or the server stumbled.

The real client does the work; `files.hub_reading` has what reading and writing share.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..files.hub_reading import CONFLICTS, STUMBLES, UNCHANGED, HubError, again, explained


logger = logging.getLogger(__name__)


def open_repository(
    repo_id: str, repo_type: str, private: bool | None, revision: str | None, space_sdk: str | None = None
) -> str:
    """Make the repository and the branch where they do not exist; returns the repository's full name.

    Raises:
        HubError: you may not, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api, options = HfApi(), {"repo_type": repo_type, "exist_ok": True}
    with explained(f"Opening {repo_id}", "Nothing was written; try again"):
        full_name = again(
            lambda: api.create_repo(repo_id, private=private, space_sdk=space_sdk, **options).repo_id, STUMBLES
        )
        if revision is not None and not revision.startswith("refs/pr/"):
            again(lambda: api.create_branch(full_name, branch=revision, **options), STUMBLES)
    return full_name


def upload(repo_id: str, repo_type: str, path_in_repo: str, file: Path, revision: str | None, create_pr: bool) -> Any:
    """Send one large file ahead of its commit, see `upload_all`."""
    return upload_all(repo_id, repo_type, {path_in_repo: file}, revision, create_pr)[0]


def upload_all(
    repo_id: str, repo_type: str, files: Mapping[str, Path], revision: str | None, create_pr: bool
) -> list[Any]:
    """Send files ahead of their commit, by their paths in the repository, and return what the commit needs. What the Hub has is not
    sent again; what is small goes with the commit.

    Raises:
        HubError: a file could not be sent, also not after the client's own repetitions.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    additions = [CommitOperationAdd(path, file) for path, file in files.items()]
    where = {"repo_type": repo_type, "revision": revision, "create_pr": create_pr}
    what = next(iter(files)) if len(files) == 1 else f"{len(files)} files"
    with explained(f"Sending {what} to {repo_id}", UNCHANGED):
        HfApi().preupload_lfs_files(repo_id, additions, **where)  # which repeats its requests itself
    return additions


def commit(
    repo_id: str, repo_type: str, revision: str | None, create_pr: bool, message: str, plan: Callable[[str], list]
) -> Any:
    """One commit, made anew on what is there as often as somebody else was faster or the server stumbled.

    Args:
        plan: from the commit that the repository is at to the operations that are to follow it.

    Returns:
        `huggingface_hub`'s `CommitInfo`.

    Raises:
        HubError: it did not work out.
    """
    from huggingface_hub import HfApi

    api = HfApi()

    def attempt():
        head = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
        where = {"repo_type": repo_type, "revision": revision, "create_pr": create_pr, "parent_commit": head}
        return api.create_commit(repo_id, plan(head), commit_message=message, **where)

    with explained(f"The commit to {repo_id}", UNCHANGED):
        # A pull request whose answer got lost must not be opened twice.
        return attempt() if create_pr else again(attempt, (*CONFLICTS, *STUMBLES))


def check_arrived(repo_id: str, repo_type: str, uploads: list, revision: str) -> None:
    """Make sure that a commit holds what was sent ahead, also where others wrote to the repository meanwhile.

    Raises:
        HubError: it does not.
    """
    from huggingface_hub import HfApi

    wanted, where = {x.path_in_repo: x.upload_info.sha256.hex() for x in uploads}, {"repo_type": repo_type}
    with explained(f"Looking at the new commit of {repo_id}", "Push again to be sure"):
        found = again(lambda: HfApi().get_paths_info(repo_id, list(wanted), revision=revision, **where), STUMBLES)
    there = {x.path: x.lfs.sha256 for x in found if x.lfs is not None}
    if missing := [path for path, digest in wanted.items() if there.get(path) != digest]:
        raise HubError(f"{repo_id} was changed by somebody else meanwhile and lacks {', '.join(missing)}. Push again.")
