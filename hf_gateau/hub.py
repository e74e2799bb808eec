"""What speaks to the Hub: reading a file of a repository, and commits that are whole or not there at all.

The real clients do the work. What they leave to their caller is here: a commit that is tried again when somebody else was
faster or the server stumbled, and one clear message when nothing helps.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .cards import is_repo_id, one_line, readme_metadata
from .redaction import redact


logger = logging.getLogger(__name__)

TRIES, FIRST_WAIT = 5, 1.0  # of a commit; seconds, doubled each time
CONFLICTS, STUMBLES = (409, 412), (408, 429, 500, 502, 503, 504)


UNCHANGED = "What others see there has not changed; push again, and what has arrived is not sent twice"


class HubError(RuntimeError):
    """The Hub refused, or could not be reached; the message says what was left undone."""


def client_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises when a request fails: its own errors, its HTTP library's, and the system's."""
    from huggingface_hub.errors import HfHubHTTPError

    return (HfHubHTTPError.__bases__[0], OSError)


def status_of(error: Exception) -> int | None:
    """The HTTP status that an error came with; None for a connection that broke."""
    return getattr(getattr(error, "response", None), "status_code", None)


def explain(error: Exception, doing: str, afterwards: str) -> HubError:
    """A failed request as one message: what was being done, why it failed, what to do."""
    wraps = isinstance(error, RuntimeError) and error.__cause__ is not None  # the client's "Error while uploading"
    cause = error.__cause__ if wraps else error
    status, reason = status_of(cause), " ".join(str(cause).split())[:300] or type(cause).__name__
    if status == 401:
        reason, afterwards = "the Hub does not know you", "Log in with `hf auth login`, or set HF_TOKEN"
    elif status == 403:
        reason, afterwards = "you may not write there", "Use a token with write access, or another repository"
    return HubError(redact(f"{doing} failed: {reason}. {afterwards}."))


@contextmanager
def explained(doing: str, afterwards: str) -> Iterator[None]:
    """Failed requests of a block as one message each, see `explain`."""
    try:
        yield
    except HubError:
        raise
    except (*client_errors(), RuntimeError) as error:
        raise explain(error, doing, afterwards) from error


# Reading


def repeated(read: Callable[[], Any], doing: str) -> Any:
    """What a call that only reads returns, after some more attempts where the server or the connection stumbles.

    Raises:
        HubError: nothing helped.
    """
    with explained(doing, "Try again"):
        return _again(read, STUMBLES)


def head_of(repo_id: str, repo_type: str, revision: str | None) -> str | None:
    """The commit that a revision is at; None where there is no such repository or revision, or you may not see it.

    Raises:
        HubError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with explained(f"Reading {repo_id}", "Try again"):
        try:
            return _again(lambda: HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision).sha, STUMBLES)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None


def read_text(repo_id: str, repo_type: str, path: str, commit_hash: str) -> str | None:
    """A text file of a repository at one commit; None where the commit has none of that name.

    Raises:
        HubError: the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with explained(f"Reading {path} of {repo_id}", "Try again"):
        try:
            file = _again(lambda: hf_hub_download(repo_id, path, repo_type=repo_type, revision=commit_hash), STUMBLES)
        except RemoteEntryNotFoundError:  # not its sibling, which says that the Hub did not answer
            return None
    with open(file, encoding="utf-8", errors="replace", newline="") as stream:
        return stream.read()


def license_of(name: str | None, repo_type: str, revision: str | None = None) -> dict[str, str]:
    """What the metadata of a repository, or of a model's folder, say of its licence; empty where they say nothing, or you
    may not see them. Nothing is guessed.

    Raises:
        HubError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    metadata: dict[str, Any] = {}
    if name and os.path.isdir(name):
        readme = Path(name, "README.md")
        metadata = readme_metadata(readme.read_text("utf-8", "replace") if readme.is_file() else None)
    elif is_repo_id(name):
        with explained(f"Reading the licence of {name}", "Try again"):
            try:
                ask = partial(HfApi().repo_info, name, repo_type=repo_type, revision=revision)
                card = _again(ask, STUMBLES).card_data
                metadata = card.to_dict() if card is not None else {}
            except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
                logger.info("The licence of %s is not known: %s", name, error)
    names = ("license", "license_name", "license_link")
    return {key: one_line(metadata[key]) for key in names if isinstance(metadata.get(key), str)}


# Writing


def open_repository(repo_id: str, repo_type: str, private: bool | None, revision: str | None) -> str:
    """Make the repository and the branch where they do not exist; returns the repository's full name.

    Raises:
        HubError: you may not, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api, options = HfApi(), {"repo_type": repo_type, "exist_ok": True}
    with explained(f"Opening {repo_id}", "Nothing was written; try again"):
        full_name = _again(lambda: api.create_repo(repo_id, private=private, **options).repo_id, STUMBLES)
        if revision is not None and not revision.startswith("refs/pr/"):
            _again(lambda: api.create_branch(full_name, branch=revision, **options), STUMBLES)
    return full_name


def upload(repo_id: str, repo_type: str, path_in_repo: str, file: Path, revision: str | None, create_pr: bool) -> Any:
    """Send one large file ahead of its commit, and return what the commit needs. What the Hub has is not sent again.

    Raises:
        HubError: the file could not be sent, also not after the client's own repetitions.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    addition = CommitOperationAdd(path_in_repo, file)
    where = {"repo_type": repo_type, "revision": revision, "create_pr": create_pr}
    with explained(f"Sending {path_in_repo} to {repo_id}", UNCHANGED):
        HfApi().preupload_lfs_files(repo_id, [addition], **where)  # which repeats its requests itself
    return addition


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
        return attempt() if create_pr else _again(attempt, (*CONFLICTS, *STUMBLES))


def check_arrived(repo_id: str, repo_type: str, uploads: list, revision: str) -> None:
    """Make sure that a commit holds what was sent ahead, also where others wrote to the repository meanwhile.

    Raises:
        HubError: it does not.
    """
    from huggingface_hub import HfApi

    wanted, where = {x.path_in_repo: x.upload_info.sha256.hex() for x in uploads}, {"repo_type": repo_type}
    with explained(f"Looking at the new commit of {repo_id}", "Push again to be sure"):
        found = _again(lambda: HfApi().get_paths_info(repo_id, list(wanted), revision=revision, **where), STUMBLES)
    there = {x.path: x.lfs.sha256 for x in found if x.lfs is not None}
    if missing := [path for path, digest in wanted.items() if there.get(path) != digest]:
        raise HubError(f"{repo_id} was changed by somebody else meanwhile and lacks {', '.join(missing)}. Push again.")


def _again(attempt: Callable[[], Any], statuses: Iterable[int]) -> Any:
    """What the attempt returns, after some more attempts where the server or the connection stumbles."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    for number in range(1, TRIES + 1):
        try:
            return attempt()
        except client_errors() as error:
            status = status_of(error)
            is_ours = isinstance(error, OfflineModeIsEnabled) or getattr(error, "errno", None) is not None
            if number == TRIES or (is_ours if status is None else status not in statuses):
                raise
            logger.warning("Try %d of %d: %s", number, TRIES, redact(" ".join(str(error).split())[:200]))
            time.sleep(FIRST_WAIT * 2 ** (number - 1))
