"""What is read from the Hub: tried again where the server stumbles, and one clear message when nothing helps.

The real client does the work; writing, in `hub.commits`, shares what is here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..redaction import redact


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


def repeated(read: Callable[[], Any], doing: str) -> Any:
    """What a call that only reads returns, after some more attempts where the server or the connection stumbles.

    Raises:
        HubError: nothing helped.
    """
    with explained(doing, "Try again"):
        return again(read, STUMBLES)


def head_of(repo_id: str, repo_type: str, revision: str | None) -> str | None:
    """The commit that a revision is at; None where there is no such repository or revision, or you may not see it.

    Raises:
        HubError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with explained(f"Reading {repo_id}", "Try again"):
        try:
            return again(lambda: HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision).sha, STUMBLES)
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
            file = again(lambda: hf_hub_download(repo_id, path, repo_type=repo_type, revision=commit_hash), STUMBLES)
        except RemoteEntryNotFoundError:  # not its sibling, which says that the Hub did not answer
            return None
    with open(file, encoding="utf-8", errors="replace", newline="") as stream:
        return stream.read()


def again(attempt: Callable[[], Any], statuses: Iterable[int]) -> Any:
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
