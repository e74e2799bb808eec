"""An explorer as a static Space: a page on the Hub that everybody can open."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

from ..files.hub_reading import read_text
from ..markdown import escape, is_repo_id, link
from ..redaction import redact
from .commits import commit, open_repository, upload_all
from .readme import TAGS, merge_readme


PIECES = re.compile(r"data/(?:(?:numbers|heads|rows-\d+|texts-\d+)\.js|[a-z_]+-(?:light|dark)\.svg)")
PAGE = re.compile(r"[a-z]+\.(?:js|css|svg|html)|gateau_explorer\.json")


def push_explorer(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    title: str | None = None,
    dataset: str | None = None,
    private: bool | None = None,
    commit_message: str = "Explorer of scored rows, by hf_gateau",
) -> str:
    """Push the folder that `write_explorer` has written, as a static Space, in one commit. Rows of an earlier push
    are taken away; your own files, and your own text and metadata in the README, stay.

    Args:
        folder: of the explorer.
        repo_id (`str`): OWNER/NAME of the Space, or NAME for your own; made where it does not exist.
        title (`str`, *optional*): of the Space. Default: its name.
        dataset (`str`, *optional*): the Hub's name of the scored data, which the Space then links to.
        private (`bool`, *optional*): whether a Space that does not exist yet is made private.
        commit_message (`str`): of the commit.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the folder holds no explorer.
        HubError: the Hub refused or could not be reached.
    """
    folder = Path(folder).expanduser()
    files = {x.relative_to(folder).as_posix(): x for x in sorted(folder.rglob("*")) if x.is_file()}
    files = {path: file for path, file in files.items() if PIECES.fullmatch(path) or PAGE.fullmatch(path)}
    if "index.html" not in files or "data/numbers.js" not in files:
        raise ValueError(
            f"{str(folder)!r} holds no explorer; write one first, with `hf-gateau explore` or write_explorer."
        )
    repo_id = open_repository(repo_id, "space", private, None, space_sdk="static")
    uploads = upload_all(repo_id, "space", files, None, False)
    plan = partial(_operations, repo_id=repo_id, uploads=uploads, title=title, dataset=dataset)
    return commit(repo_id, "space", None, False, commit_message, plan).commit_url


def _operations(head: str, repo_id: str, uploads: list, title: str | None, dataset: str | None) -> list:
    """What the commit is made of, on what is in the repository at one moment."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi().list_repo_tree(repo_id, repo_type="space", revision=head, recursive=True)
    there = {x.path for x in tree if isinstance(x, RepoFile)}
    stale = {path for path in there if PIECES.fullmatch(path)} - {x.path_in_repo for x in uploads}
    readme = _readme(read_text(repo_id, "space", "README.md", head), repo_id, title, dataset)
    new = [*uploads, CommitOperationAdd("README.md", readme.encode())]
    return [*new, *(CommitOperationDelete(path) for path in sorted(stale))]


def _readme(readme: str | None, repo_id: str, title: str | None, dataset: str | None) -> str:
    name = title or repo_id.split("/")[-1]
    metadata = {"title": name, "sdk": "static", "app_file": "index.html", "tags": TAGS}
    told = "Long instruction rows, scored by how much their response needs the long context, to look through, rank and choose from."
    block = f"{told} The page loads nothing from outside this Space."
    if is_repo_id(dataset):
        metadata["datasets"] = [dataset]
        block += f" The rows: {link(dataset, 'dataset')}."
    return merge_readme(readme, escape(name), redact(block), redact(metadata))
