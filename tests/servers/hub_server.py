"""A local server that speaks the Hugging Face Hub's HTTP API, on the standard library, with faults on request.

    python -m tests.servers.hub_server --root DIR --port 0          # prints READY http://127.0.0.1:PORT

The real clients talk to it: huggingface_hub, datasets, transformers, trl (`HF_ENDPOINT`; uploads through LFS, so
`HF_HUB_DISABLE_XET=1`). All state lies on disk, so that a server can stop and another can start on the same root:

    ROOT/blobs/SHA256                                  contents of files, large files and small
    ROOT/{models,datasets,spaces}/NAMESPACE/NAME/refs.json    {"main": SHA, "refs/pr/1": SHA, "refs/tags/v1": SHA}
    ROOT/{models,datasets,spaces}/NAMESPACE/NAME/meta.json    {"private": false}
    ROOT/{models,datasets,spaces}/NAMESPACE/NAME/SHA.json     a commit: parent, title, message, date, author, files

Read in this order: Fault (what a test may break), check_card (what the Hub refuses in a card), Repository and Store
(the disk), Handler (one method an endpoint, the table ROUTES), HubServer (what tests use).
"""

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


CHUNK_BYTES = 1 << 20  # bodies pass through memory in pieces of this size
LFS_THRESHOLD_BYTES = 10_000_000
LFS_SUFFIXES = tuple(".parquet .arrow .safetensors .bin .pt .pth .model .npy .npz .gz .zip .zst .png .jpg".split())
WRITE_METHODS = ("POST", "PUT", "DELETE")
FULL_SHA = re.compile(r"[0-9a-f]{40}")


class HubError(Exception):
    """An error answer: HTTP status, the text for the user, and the Hub's X-Error-Code where it has one."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.commit = commit


class Request(NamedTuple):
    """One answered request; `path` has its query, `status` is None where the connection closed without an answer."""

    method: str
    path: str
    status: int | None


@dataclass
class Fault:
    """What happens to `times` requests in a row, from the `at`-th one that fits, counted from when it was set.

    A request fits by its method (all of them if `methods` is empty) and by `match`, a part of its path with query.
    """

    at: int = 1
    times: int = 1
    methods: tuple[str, ...] = ()
    match: str = ""
    callback: Callable[[], object] | None = None  # called before anything of the body is read
    status: int | None = None  # answered instead of handling the request
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False  # not handled: the connection closes without an answer
    cut: bool = False  # the same, after half of the body was read
    lose_answer: bool = False  # handled, then the connection closes without an answer
    seen: int = 0  # requests that fitted so far
    fired: int = 0  # requests it was applied to: a test of a fault asserts it

    def strikes(self, method: str, path: str) -> bool:
        """Count a request; says whether it is one of those the fault is for."""
        if (self.methods and method not in self.methods) or self.match not in path:
            return False
        self.seen += 1
        return self.at <= self.seen < self.at + self.times


# ---------------------------------------------------------------------------------------------------------- cards

FRONT_MATTER = re.compile(r"\A\s*---\r?\n(.*?)\r?\n?^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


def is_text(value) -> bool:
    return isinstance(value, str)


def is_texts(value) -> bool:
    return isinstance(value, list) and all(is_text(item) for item in value)


def is_text_or_texts(value) -> bool:
    return is_text(value) or is_texts(value)


def is_configs(value) -> bool:
    return isinstance(value, list) and all(isinstance(c, dict) and is_text(c.get("config_name")) for c in value)


CARD_CHECKS = {
    "license": (is_text, "a string"),
    "license_name": (is_text, "a string"),
    "library_name": (is_text, "a string"),
    "pipeline_tag": (is_text, "a string"),
    "pretty_name": (is_text, "a string"),
    "tags": (is_texts, "a list of strings"),
    "task_categories": (is_texts, "a list of strings"),
    "datasets": (is_text_or_texts, "a string or a list of strings"),
    "base_model": (is_text_or_texts, "a string or a list of strings"),
    "language": (is_text_or_texts, "a string or a list of strings"),
    "configs": (is_configs, "a list of mappings with a config_name"),
}


def card_metadata(text: str) -> dict | None:
    """The front matter of a card; None without one. Raises ValueError if it is no YAML, or no mapping."""
    match = FRONT_MATTER.match(text)
    if match is None:
        return None
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(f"YAML is invalid: {error}") from error
    if metadata is not None and not isinstance(metadata, dict):
        raise ValueError(f"YAML must be a mapping, got {type(metadata).__name__}")
    return metadata


def check_card(text: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a README's metadata, as the Hub's `validate-yaml` gives them."""
    try:
        metadata = card_metadata(text)
    except ValueError as error:
        return [str(error)], []
    if not metadata:
        return [], ["empty or missing yaml metadata in repo card"]
    checks = dict(CARD_CHECKS)
    if repo_type == "space" and metadata.get("sdk") not in ("static", "gradio", "docker"):
        return ['"sdk" must be one of static, gradio, docker'], []
    if repo_type == "dataset":
        checks["license"] = (is_text_or_texts, "a string or a list of strings")
    errors = [
        f'"{name}" must be {expected}'
        for name, (accepts, expected) in checks.items()
        if metadata.get(name) is not None and not accepts(metadata[name])
    ]
    return errors, []


# ----------------------------------------------------------------------------------------------------------- disk


def write_json(path: Path, value) -> None:
    """Replace a file whole, so that a server which stops half-way leaves the old one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    os.replace(temporary, path)


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repository:
    """A model or data set on disk: its references, its commits, its settings."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def exists(self) -> bool:
        return (self.folder / "refs.json").is_file()

    @property
    def private(self) -> bool:
        return json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))["private"]

    @private.setter
    def private(self, value: bool) -> None:
        write_json(self.folder / "meta.json", {"private": bool(value)})

    def refs(self) -> dict[str, str]:
        """Commit of every reference: branches by name, others as refs/pr/N and refs/tags/NAME."""
        if not self.exists:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return json.loads((self.folder / "refs.json").read_text(encoding="utf-8"))

    def set_ref(self, name: str, sha: str | None) -> None:
        refs = self.refs() if self.exists else {}
        if sha is None:
            del refs[name]
        else:
            refs[name] = sha
        write_json(self.folder / "refs.json", refs)

    def resolve(self, revision: str = "main") -> str:
        """Commit that a branch, tag, pull request or sha names; HubError 404 if none."""
        refs = self.refs()
        sha = refs.get(revision) or refs.get(f"refs/tags/{revision}")
        if sha is None and FULL_SHA.fullmatch(revision) and (self.folder / f"{revision}.json").is_file():
            sha = revision
        if sha is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def commit(self, sha: str) -> dict:
        return json.loads((self.folder / f"{sha}.json").read_text(encoding="utf-8"))

    def files(self, revision: str = "main") -> dict[str, dict]:
        return self.commit(self.resolve(revision))["files"]

    def history(self, revision: str = "main") -> list[dict]:
        """Commits from a revision back to the first, each with its `oid`."""
        commits = []
        sha = self.resolve(revision)
        while sha:
            commits.append({"oid": sha, **self.commit(sha)})
            sha = commits[-1]["parent"]
        return commits

    def write_commit(self, parent: str | None, title: str, message: str, author: str, files: dict[str, dict]) -> str:
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        commit = {"parent": parent, "title": title, "message": message, "author": author, "date": date, "files": files}
        unique = json.dumps(commit, sort_keys=True).encode() + uuid.uuid4().bytes
        sha = hashlib.sha1(unique).hexdigest()
        write_json(self.folder / f"{sha}.json", commit)
        return sha

    def next_pull_request(self) -> int:
        numbers = [int(name.rsplit("/", 1)[1]) for name in self.refs() if name.startswith("refs/pr/")]
        return 1 + max(numbers, default=0)


class Store:
    """The folder of a server. `lock` is held by whoever reads a reference in order to change it."""

    def __init__(self, root):
        self.root = Path(root)
        self.blobs = self.root / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()

    def repository(self, repo_type: str, repo_id: str) -> Repository:
        return Repository(self.root / f"{repo_type}s" / repo_id)

    def create(self, repo_type: str, repo_id: str, author: str, private: bool) -> bool:
        """Make a repository with its first commit; False if it is there already."""
        with self.lock:
            repository = self.repository(repo_type, repo_id)
            if repository.exists:
                return False
            repository.folder.mkdir(parents=True, exist_ok=True)
            repository.private = private
            attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
            files = {".gitattributes": self.add_small(attributes.encode())}
            repository.set_ref("main", repository.write_commit(None, "initial commit", "", author, files))
            return True

    def blob(self, sha256: str) -> Path:
        return self.blobs / sha256

    def add_small(self, data: bytes) -> dict:
        """Keep a file that came inside a commit; returns its entry."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.receive(sha256, iter([data]))
        return {"size": len(data), "sha256": sha256, "oid": git_oid(data), "lfs": False}

    def large_entry(self, sha256: str) -> dict:
        """Entry of a file that was uploaded before; HubError 400 if it never was."""
        if not self.blob(sha256).is_file():
            raise HubError(400, f"LFS object {sha256} was never uploaded")
        size = self.blob(sha256).stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return {"size": size, "sha256": sha256, "oid": git_oid(pointer), "lfs": True, "pointer_size": len(pointer)}

    def receive(self, sha256: str, chunks: Iterator) -> None:
        """Stream a file to its place, which it gets only when it is whole and its hash is right."""
        temporary = self.blobs / f"incoming-{uuid.uuid4().hex}"
        digest = hashlib.sha256()
        try:
            with open(temporary, "wb", buffering=0) as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != sha256:
                raise HubError(400, f"The content's sha256 is {digest.hexdigest()}, not {sha256}")
            os.replace(temporary, self.blob(sha256))
        finally:
            temporary.unlink(missing_ok=True)

    def part(self, sha256: str, number: int) -> Path:
        return self.blobs / f"part-{sha256}-{number:05d}"

    def receive_part(self, sha256: str, number: int, chunks: Iterator) -> None:
        with open(self.part(sha256, number), "wb", buffering=0) as file:
            for chunk in chunks:
                file.write(chunk)

    def join_parts(self, sha256: str, numbers: list[int]) -> None:
        """Make one file of the parts that were uploaded."""
        parts = [self.part(sha256, number) for number in numbers]
        missing = [number for number, part in zip(numbers, parts, strict=True) if not part.is_file()]
        if missing:
            raise HubError(400, f"Parts {missing} of {sha256} were never uploaded")
        self.receive(sha256, (chunk for part in parts for chunk in read_chunks(part)))
        for part in parts:
            part.unlink()


def read_chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


# ----------------------------------------------------------------------------------------------------------- HTTP


def lfs_fields(entry: dict, name_of_hash: str) -> dict:
    return {name_of_hash: entry["sha256"], "size": entry["size"], "pointerSize": entry["pointer_size"]}


def tree_item(path: str, entry: dict) -> dict:
    """A file as `tree` and `paths-info` list it."""
    item = {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"]}
    return {**item, "lfs": lfs_fields(entry, "oid")} if entry["lfs"] else item


def folder_item(path: str, commit: str) -> dict:
    oid = hashlib.sha1(f"{commit}/{path}".encode()).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def sibling(path: str, entry: dict, with_blobs: bool) -> dict:
    """A file as the repository's own description lists it."""
    item = {"rfilename": path}
    if with_blobs:
        item |= {"size": entry["size"], "blobId": entry["oid"]}
        if entry["lfs"]:
            item["lfs"] = lfs_fields(entry, "sha256")
    return item


def upload_mode(file: dict) -> str:
    """Whether a file of a preupload request goes through LFS or inside the commit."""
    binary = b"\0" in base64.b64decode(file.get("sample") or "")
    large = file["size"] > LFS_THRESHOLD_BYTES
    return "lfs" if binary or large or file["path"].endswith(LFS_SUFFIXES) else "regular"


class Handler(BaseHTTPRequestHandler):
    """One connection of a client; `hub`, the HubServer, is set on a subclass."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes
    hub: "HubServer"

    # -- the request

    def log_message(self, *arguments) -> None:
        """Nothing goes to stderr: tests read `HubServer.requests`."""

    def handle_request(self) -> None:
        self.answered = False
        self.body = self.body_chunks()
        self.fault = self.hub.next_fault(self.command, self.path)
        try:
            self.serve()
        except ConnectionError:  # the client left, or a fault closes the connection
            self.close_connection = True
            if not self.answered:
                self.record(None)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def serve(self) -> None:
        """Apply the request's fault, then its route; every failure becomes an answer."""
        try:
            if self.fault:
                self.apply(self.fault)
            self.route()
        except HubError as error:
            self.answer_error(error)
        except ConnectionError:
            raise
        except Exception as error:
            self.hub.errors.append(error)
            traceback.print_exc()
            if self.answered:
                raise ConnectionAbortedError("failed in the middle of an answer") from error
            self.answer(500, {"error": f"{type(error).__name__}: {error}"})

    def apply(self, fault: Fault) -> None:
        """The one place where faults act; an answer that gets lost is lost in `begin_answer`."""
        if fault.callback:
            fault.callback()
        if fault.cut:
            self.read_half()
        if fault.cut or fault.drop:
            raise ConnectionAbortedError("fault: closed without an answer")
        if fault.status:
            raise HubError(fault.status, f"Fault: {fault.status} on request")

    def route(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        for methods, pattern, endpoint in ROUTES:
            match = pattern.fullmatch(url.path)
            if match and self.command in methods:
                named = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                return endpoint(self, **named)
        raise HubError(404, f"Not found: {self.command} {url.path}")

    def body_chunks(self) -> Iterator[memoryview]:
        """The request's body in pieces; ConnectionError if the client stops short."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield from self.exactly(int(self.headers.get("Content-Length") or 0))
            return
        while size := self.chunk_size():
            yield from self.exactly(size)
            self.rfile.readline()
        self.rfile.readline()

    def chunk_size(self) -> int:
        line = self.rfile.readline()
        if not line:
            raise ConnectionResetError("the client left in the middle of a body")
        return int(line.split(b";")[0], 16)

    def exactly(self, size: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(size, CHUNK_BYTES)))
        while size:
            count = self.rfile.readinto(buffer[: min(size, len(buffer))])
            if not count:
                raise ConnectionResetError("the client left in the middle of a body")
            size -= count
            yield buffer[:count]

    def read_half(self) -> None:
        """Read a part of the body, at most half of it; the rest stays unread, which resets the connection."""
        size = self.headers.get("Content-Length")
        size = self.chunk_size() if size is None else int(size)
        self.rfile.read(min(size // 2, CHUNK_BYTES))

    def read(self) -> bytes:
        return b"".join(bytes(chunk) for chunk in self.body)

    def json(self) -> dict:
        data = self.read()
        return json.loads(data) if data else {}

    # -- the answer

    def record(self, status: int | None) -> None:
        self.answered = True
        self.hub.requests.append(Request(self.command, self.path, status))

    def begin_answer(self, status: int, headers: dict) -> None:
        """Record and send the head. The body is read to its end first, or the connection could not be used again."""
        for _ in self.body:
            pass
        if self.fault and self.fault.lose_answer:
            raise ConnectionAbortedError("fault: the answer is lost")
        self.record(status)
        self.send_response(status)
        for name, value in {"X-Request-Id": uuid.uuid4().hex[:8], **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def answer(self, status: int, value=b"", **headers) -> None:
        """Send bytes, or anything else as JSON."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.begin_answer(status, {"Content-Type": "application/json", "Content-Length": len(data), **headers})
        if self.command != "HEAD":
            self.wfile.write(data)

    def answer_error(self, error: HubError) -> None:
        one_line = " ".join(error.message.split()).encode("ascii", "replace").decode()
        headers = {"X-Error-Message": one_line, **(self.fault.headers if self.fault else {})}
        if error.code:
            headers["X-Error-Code"] = error.code
        if error.commit:
            headers["X-Repo-Commit"] = error.commit
        self.answer(error.status, {"error": error.message}, **headers)

    @property
    def base(self) -> str:
        return f"http://{self.headers['Host']}"

    def web_url(self, repo_type: str, repo_id: str) -> str:
        return f"{self.base}/{'' if repo_type == 'model' else f'{repo_type}s/'}{repo_id}"

    # -- who asks

    def signed_in(self) -> bool:
        """Whether the request has the token; HubError 401 on a wrong one."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        if token and token != self.hub.token:
            raise HubError(401, "Invalid credentials in Authorization header")
        return bool(token)

    def owns(self, namespace: str) -> bool:
        return self.signed_in() and namespace in (self.hub.user, *self.hub.orgs)

    def require_user(self) -> None:
        if not self.signed_in():
            raise HubError(401, "Access requires authentication")

    def require_writer(self, namespace: str) -> None:
        self.require_user()
        if not self.owns(namespace):
            raise HubError(403, f"Forbidden: you have no write access to {namespace}")

    def readable(self, repo_type: str, repo_id: str) -> Repository:
        """The repository, if it is there and the user may read it."""
        repository = self.hub.store.repository(repo_type, repo_id)
        signed_in = self.signed_in()
        if not repository.exists or (repository.private and not self.owns(repo_id.split("/")[0])):
            raise HubError(404 if signed_in else 401, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, repo_type: str, repo_id: str) -> Repository:
        """The repository, if the user may write it."""
        repository = self.readable(repo_type, repo_id)
        self.require_writer(repo_id.split("/")[0])
        return repository

    def committable(self, repo_type: str, repo_id: str) -> Repository:
        """The repository, if the user may commit as asked: a pull request needs no write access."""
        if not self.wants_pull_request:
            return self.writable(repo_type, repo_id)
        self.require_user()
        return self.readable(repo_type, repo_id)

    @property
    def wants_pull_request(self) -> bool:
        return self.query.get("create_pr") == ["1"]

    # -- account and repositories

    def whoami(self) -> None:
        self.require_user()
        name = self.hub.user
        orgs = [{"type": "org", "name": org, "roleInOrg": "write"} for org in self.hub.orgs]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        user = {"type": "user", "id": name, "name": name, "fullname": name, "isPro": False}
        self.answer(200, {**user, "orgs": orgs, "auth": auth})

    def create_repo(self) -> None:
        wanted = self.json()
        self.require_user()
        namespace = wanted.get("organization") or self.hub.user
        self.require_writer(namespace)
        repo_type, repo_id = wanted.get("type", "model"), f"{namespace}/{wanted['name']}"
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        url = self.web_url(repo_type, repo_id)
        if self.hub.store.create(repo_type, repo_id, self.hub.user, private):
            self.answer(200, {"url": url, "name": repo_id})
        else:
            self.answer(409, {"url": url, "error": "You already created this repo"})

    def delete_repo(self) -> None:
        wanted = self.json()
        self.require_user()
        repo_id = f"{wanted.get('organization') or self.hub.user}/{wanted['name']}"
        with self.hub.store.lock:
            repository = self.writable(wanted.get("type", "model"), repo_id)
            shutil.rmtree(repository.folder)
        self.answer(200, {})

    def settings(self, repo_type: str, repo_id: str) -> None:
        wanted = self.json()
        repository = self.writable(repo_type, repo_id)
        if "visibility" in wanted:
            repository.private = wanted["visibility"] == "private"
        self.answer(200, {"private": repository.private})

    def repo_info(self, repo_type: str, repo_id: str, revision: str = "main") -> None:
        repository = self.readable(repo_type, repo_id)
        sha = repository.resolve(revision)
        commit = repository.commit(sha)
        card = self.hub.card_data(commit["files"])
        info = {
            "_id": sha[:24],
            "id": repo_id,
            "author": repo_id.split("/")[0],
            "sha": sha,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": card.get("tags") or [],
            "cardData": card,
            "lastModified": commit["date"],
            "createdAt": repository.history(sha)[-1]["date"],
            "siblings": [
                sibling(path, entry, "blobs" in self.query) for path, entry in sorted(commit["files"].items())
            ],
        }
        wanted = self.query.get("expand", [])
        if wanted:
            info = {name: value for name, value in info.items() if name in ("_id", "id", *wanted)}
        self.answer(200, {**info, "modelId": repo_id} if repo_type == "model" else info)

    def unknown_repo(self, repo_type: str) -> None:
        """Names without a namespace: clients expect to hear that the repository is missing, and then create it."""
        raise HubError(404, f"Repository not found: {repo_type}", "RepoNotFound")

    # -- references and history

    def list_refs(self, repo_type: str, repo_id: str) -> None:
        groups = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        for name, sha in self.readable(repo_type, repo_id).refs().items():
            if name.startswith("refs/pr/"):
                group, short, full = "pullRequests", name, name
            elif name.startswith("refs/tags/"):
                group, short, full = "tags", name.removeprefix("refs/tags/"), name
            else:
                group, short, full = "branches", name, f"refs/heads/{name}"
            groups[group].append({"name": short, "ref": full, "targetCommit": sha})
        if "include_prs" not in self.query:
            del groups["pullRequests"]
        self.answer(200, groups)

    def create_ref(self, repository: Repository, name: str, revision: str) -> None:
        with self.hub.store.lock:
            if name in repository.refs():
                raise HubError(409, f"Reference already exists: {name}")
            repository.set_ref(name, repository.resolve(revision))
        self.answer(200, {})

    def delete_ref(self, repository: Repository, name: str) -> None:
        with self.hub.store.lock:
            if name not in repository.refs():
                raise HubError(404, f"Reference does not exist: {name}", "RevisionNotFound")
            repository.set_ref(name, None)
        self.answer(200, {})

    def branch(self, repo_type: str, repo_id: str, name: str) -> None:
        repository = self.writable(repo_type, repo_id)
        if self.command == "POST":
            self.create_ref(repository, name, self.json().get("startingPoint") or "main")
        elif name == "main":
            raise HubError(403, "The main branch cannot be deleted")
        else:
            self.delete_ref(repository, name)

    def tag(self, repo_type: str, repo_id: str, name: str) -> None:
        """POST names the revision in the path and the tag in the body; DELETE names the tag in the path."""
        repository = self.writable(repo_type, repo_id)
        if self.command == "POST":
            self.create_ref(repository, f"refs/tags/{self.json()['tag']}", name)
        else:
            self.delete_ref(repository, f"refs/tags/{name}")

    def list_commits(self, repo_type: str, repo_id: str, revision: str) -> None:
        history = self.readable(repo_type, repo_id).history(revision)
        self.answer(
            200,
            [
                {
                    "id": commit["oid"],
                    "title": commit["title"],
                    "message": commit["message"],
                    "date": commit["date"],
                    "authors": [{"user": commit["author"]}],
                }
                for commit in history
            ],
        )

    # -- listing files

    def tree(self, repo_type: str, repo_id: str, revision: str, path: str = "") -> None:
        repository = self.readable(repo_type, repo_id)
        sha = repository.resolve(revision)
        commit = repository.commit(sha)
        prefix = f"{path.strip('/')}/" if path.strip("/") else ""
        inside = {name: entry for name, entry in commit["files"].items() if name.startswith(prefix)}
        if prefix and not inside:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound", sha)
        recursive = self.flag("recursive")
        folders, files = set(), {}
        for name, entry in inside.items():
            parents = name[len(prefix) :].split("/")[:-1]
            depths = range(1, 1 + (len(parents) if recursive else min(1, len(parents))))
            folders |= {prefix + "/".join(parents[:depth]) for depth in depths}
            if recursive or not parents:
                files[name] = entry
        items = [folder_item(name, sha) for name in sorted(folders)]
        items += [tree_item(name, entry) for name, entry in sorted(files.items())]
        if self.flag("expand"):  # the revision's own commit stands for the last one that touched each file
            last = {"id": sha, "title": commit["title"], "date": commit["date"]}
            items = [{**item, "lastCommit": last} for item in items]
        self.answer(200, items)

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")

    def paths_info(self, repo_type: str, repo_id: str, revision: str) -> None:
        repository = self.readable(repo_type, repo_id)
        sha = repository.resolve(revision)
        files = repository.commit(sha)["files"]
        items = []
        for path in (path.strip("/") for path in self.wanted_paths()):
            if path in files:
                items.append(tree_item(path, files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                items.append(folder_item(path, sha))
        self.answer(200, items)

    def wanted_paths(self) -> list[str]:
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = self.json()["paths"]
        else:
            paths = parse_qs(self.read().decode()).get("paths", [])
        return [paths] if isinstance(paths, str) else paths

    # -- uploading

    def validate_yaml(self) -> None:
        wanted = self.json()
        errors, warnings = check_card(wanted["content"], wanted.get("repoType", "model"))
        report = {
            "errors": [{"message": message} for message in errors],
            "warnings": [{"message": message} for message in warnings],
        }
        self.answer(400 if errors else 200, report)

    def preupload(self, repo_type: str, repo_id: str, revision: str) -> None:
        repository = self.committable(repo_type, repo_id)
        sha = repository.resolve(revision)
        present = repository.commit(sha)["files"]
        files = []
        for file in self.json()["files"]:
            answer = {"path": file["path"], "uploadMode": upload_mode(file), "shouldIgnore": False}
            entry = present.get(file["path"])
            if entry:
                answer["oid"] = entry["sha256"] if entry["lfs"] else entry["oid"]
            files.append(answer)
        self.answer(200, {"files": files, "commitOid": sha})

    def lfs_batch(self, repo_id: str, prefix: str = "") -> None:
        self.require_user()
        self.readable(prefix.removesuffix("s/") if prefix else "model", repo_id)
        objects = [self.lfs_object(wanted["oid"], wanted["size"]) for wanted in self.json()["objects"]]
        headers = {"Content-Type": "application/vnd.git-lfs+json"}
        self.answer(200, {"transfer": "basic", "objects": objects}, **headers)

    def lfs_object(self, sha256: str, size: int) -> dict:
        """Where to upload an object; no `actions` says that it is there already."""
        known = {"oid": sha256, "size": size}
        if self.hub.store.blob(sha256).is_file():
            return known
        href = f"{self.base}/lfs/{sha256}"
        upload = {"href": href}
        if self.hub.part_size and size > self.hub.part_size:
            count = -(-size // self.hub.part_size)
            parts = {f"{number:05d}": f"{href}/part/{number}" for number in range(1, count + 1)}
            upload["header"] = {"chunk_size": str(self.hub.part_size), **parts}
        return {**known, "actions": {"upload": upload, "verify": {"href": f"{href}/verify"}}}

    def lfs_put(self, sha256: str) -> None:
        self.hub.store.receive(sha256, self.body)
        self.answer(200)

    def lfs_put_part(self, sha256: str, number: str) -> None:
        self.hub.store.receive_part(sha256, int(number), self.body)
        self.answer(200, ETag=f'"{sha256}-{number}"')

    def lfs_complete(self, sha256: str) -> None:
        self.hub.store.join_parts(sha256, [part["partNumber"] for part in self.json()["parts"]])
        self.answer(200, {})

    def lfs_verify(self, sha256: str) -> None:
        self.require_user()
        blob = self.hub.store.blob(sha256)
        whole = blob.is_file() and blob.stat().st_size == self.json()["size"]
        self.answer(200 if whole else 404, {})

    def commit(self, repo_type: str, repo_id: str, revision: str) -> None:
        operations = [json.loads(line) for line in self.read().splitlines() if line.strip()]
        repository = self.committable(repo_type, repo_id)
        header = next(operation["value"] for operation in operations if operation["key"] == "header")
        with self.hub.store.lock:
            parent = repository.resolve(revision)
            if not parent.startswith(header.get("parentCommit") or ""):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            if revision not in repository.refs():
                raise HubError(400, f"Commits go to branches and pull requests, not to {revision}")
            files = self.changed_files(repo_type, repository, parent, operations)
            title, message = header["summary"], header.get("description", "")
            number = repository.next_pull_request() if self.wants_pull_request else None
            sha = repository.write_commit(parent, title, message, self.hub.user, files)
            repository.set_ref(f"refs/pr/{number}" if number else revision, sha)
        web = self.web_url(repo_type, repo_id)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{web}/commit/{sha}", "hookOutput": ""}
        if number:
            answer["pullRequestUrl"] = f"{web}/discussions/{number}"
        self.answer(200, answer)

    def changed_files(self, repo_type: str, repository: Repository, parent: str, operations: list[dict]) -> dict:
        """The parent's files after a commit's operations."""
        files = repository.commit(parent)["files"]
        for operation in operations:
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = self.small_file(repo_type, value)
            elif key == "lfsFile":
                files[value["path"]] = self.hub.store.large_entry(value["oid"])
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound", parent)
            elif key == "deletedFolder":
                prefix = f"{value['path'].rstrip('/')}/"
                files = {path: entry for path, entry in files.items() if not path.startswith(prefix)}
            elif key != "header":
                raise HubError(400, f"Unknown operation in a commit: {key}")
        return files

    def small_file(self, repo_type: str, value: dict) -> dict:
        data = base64.b64decode(value["content"])
        if value["path"] == "README.md":
            errors, _ = check_card(data.decode(), repo_type)
            if errors:
                raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
        return self.hub.store.add_small(data)

    # -- downloading

    def resolve(self, repo_id: str, revision: str, path: str, prefix: str = "") -> None:
        repository = self.readable(prefix.removesuffix("s/") if prefix else "model", repo_id)
        sha = repository.resolve(revision)
        entry = repository.commit(sha)["files"].get(path)
        if entry is None:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound", sha)
        etag = f'"{entry["sha256"] if entry["lfs"] else entry["oid"]}"'
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        headers |= {"X-Repo-Commit": sha, "ETag": etag}
        if entry["lfs"]:
            headers |= {"X-Linked-Size": entry["size"], "X-Linked-ETag": etag}
        self.send_file(self.hub.store.blob(entry["sha256"]), entry["size"], headers)

    def send_file(self, path: Path, size: int, headers: dict) -> None:
        """Send a file, or the range asked for, from disk to socket."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(match[1]) if match else 0
        stop = min(int(match[2]) + 1, size) if match and match[2] else size
        if match and start >= size:
            return self.answer(416, **{"Content-Range": f"bytes */{size}"})
        if match:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self.begin_answer(206 if match else 200, {**headers, "Content-Length": stop - start})
        if self.command == "GET" and stop > start:
            with open(path, "rb") as file:
                self.connection.sendfile(file, start, stop - start)


KIND = r"/api/(?P<repo_type>model|dataset|space)s"
REPO = r"(?P<repo_id>\w[\w.-]*/\w[\w.-]*)"
REVISION = r"(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+)"
SHA256 = r"(?P<sha256>[0-9a-f]{64})"
ROUTES = [
    (methods.split(), re.compile(pattern), endpoint)
    for methods, pattern, endpoint in [
        ("GET", r"/api/whoami-v2", Handler.whoami),
        ("POST", r"/api/repos/create", Handler.create_repo),
        ("DELETE", r"/api/repos/delete", Handler.delete_repo),
        ("POST", r"/api/validate-yaml", Handler.validate_yaml),
        ("GET", rf"{KIND}/[^/]+", Handler.unknown_repo),
        ("GET", rf"{KIND}/{REPO}(?:/revision/{REVISION})?", Handler.repo_info),
        ("PUT", rf"{KIND}/{REPO}/settings", Handler.settings),
        ("GET", rf"{KIND}/{REPO}/refs", Handler.list_refs),
        ("POST DELETE", rf"{KIND}/{REPO}/branch/(?P<name>.+)", Handler.branch),
        ("POST DELETE", rf"{KIND}/{REPO}/tag/(?P<name>.+)", Handler.tag),
        ("GET", rf"{KIND}/{REPO}/commits/{REVISION}", Handler.list_commits),
        ("GET", rf"{KIND}/{REPO}/tree/{REVISION}(?:/(?P<path>.*))?", Handler.tree),
        ("POST", rf"{KIND}/{REPO}/paths-info/{REVISION}", Handler.paths_info),
        ("POST", rf"{KIND}/{REPO}/preupload/{REVISION}", Handler.preupload),
        ("POST", rf"{KIND}/{REPO}/commit/{REVISION}", Handler.commit),
        ("POST", rf"/(?P<prefix>datasets/|spaces/)?{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
        ("PUT", rf"/lfs/{SHA256}", Handler.lfs_put),
        ("PUT", rf"/lfs/{SHA256}/part/(?P<number>\d+)", Handler.lfs_put_part),
        ("POST", rf"/lfs/{SHA256}", Handler.lfs_complete),
        ("POST", rf"/lfs/{SHA256}/verify", Handler.lfs_verify),
        ("GET HEAD", rf"/(?P<prefix>datasets/|spaces/)?{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
    ]
]


class Listener(ThreadingHTTPServer):
    """A thread a connection; keeps the open connections so that `HubServer.stop` can end them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, handler):
        super().__init__(address, handler)
        self.open_connections: set[socket.socket] = set()

    def process_request(self, request, client_address) -> None:
        self.open_connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self.open_connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address) -> None:
        """A client that leaves is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def close_connections(self) -> None:
        for connection in list(self.open_connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # its thread closed it in the meantime


# ---------------------------------------------------------------------------------------------------------- tests


class HubServer:
    """The Hub in a thread, for tests: a context manager.

        with HubServer(tmp_path / "hub") as server:
            server.fail(at=1, status=500, match="/commit/")
            subprocess.run(command, env=server.environment(tmp_path / "home"), check=True)
            assert server.commits("tester/scored")[0]["title"] == "Upload dataset"

    Args:
        root: folder of all state; an earlier server's folder goes on where that one stopped.
        token: the one token that is accepted.
        user: whose token it is; may write in the namespace of that name.
        orgs: further namespaces the user may write in.
        part_size: bytes; larger files are uploaded in parts of that size. None: every file in one piece.
        port: 0 takes a free one, which `stop` and `start` keep.

    Attributes:
        requests: every Request answered, in the order of the answers; `server.requests.clear()` starts afresh.
        faults: every Fault set, with how often it `fired`; `server.faults.clear()` takes them back.
        errors: exceptions inside the server, which are its own bugs; leaving the context raises the first.
    """

    def __init__(
        self,
        root,
        *,
        token: str = "hf_test_token",
        user: str = "tester",
        orgs: tuple[str, ...] = ("acme",),
        part_size: int | None = None,
        port: int = 0,
    ):
        self.store = Store(root)
        self.token = token
        self.user = user
        self.orgs = tuple(orgs)
        self.part_size = part_size
        self.port = port
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[Exception] = []
        self._fault_lock = threading.Lock()
        self._listener: Listener | None = None

    # -- running

    @property
    def root(self) -> Path:
        return self.store.root

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def num_connections(self) -> int:
        """Connections that are open now; clients keep theirs for their next request."""
        return len(self._listener.open_connections) if self._listener else 0

    def start(self) -> "HubServer":
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._listener = Listener(("127.0.0.1", self.port), handler)
        self.port = self._listener.server_address[1]
        threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Close the port and every connection; `start` opens the same port again."""
        if self._listener is not None:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener.close_connections()
            self._listener = None

    def __enter__(self) -> "HubServer":
        return self.start()

    def __exit__(self, kind, error, trace) -> None:
        self.stop()
        if self.errors and error is None:
            raise self.errors[0]

    def environment(self, home) -> dict[str, str]:
        """The whole environment of a subprocess that uses this server, with its Hugging Face home in `home`.

        Nothing of the surrounding Hugging Face settings or proxies goes with it.
        """
        dropped = re.compile(r"HF_(?!GATEAU_).*|HUGGING_?FACE_.*|TRANSFORMERS_.*|.*_proxy", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not dropped.fullmatch(name)}
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
        }

    # -- faults

    def fail(
        self,
        at: int = 1,
        *,
        status: int = 500,
        headers: dict[str, str] | None = None,
        after: bool = False,
        times: int = 1,
        writes: bool = False,
        match: str = "",
    ) -> Fault:
        """The `at`-th request from now on (1 is the next) gets `status` and is not executed.

        after: it is executed instead, and its answer is lost: the connection closes.
        times: so many requests in a row.
        writes: only POST, PUT and DELETE count.
        match: only requests count whose path with query has this in it, such as "/commit/".
        """
        methods = WRITE_METHODS if writes else ()
        outcome = {"lose_answer": True} if after else {"status": status, "headers": headers or {}}
        return self._set(Fault(at=at, times=times, methods=methods, match=match, **outcome))

    def cut(self, at: int = 1, *, times: int = 1, match: str = "/lfs/") -> Fault:
        """The connection of the `at`-th upload (PUT) from now on closes in the middle of its body."""
        return self._set(Fault(at=at, times=times, methods=("PUT",), match=match, cut=True))

    def before(
        self,
        at: int,
        callback: Callable[[], object],
        *,
        drop: bool = False,
        times: int = 1,
        writes: bool = False,
        match: str = "",
    ) -> Fault:
        """Call `callback` when the `at`-th request from now on arrived, before it is handled.

        drop: the request is not executed and gets no answer. A killed client's last request may have arrived whole,
        so that a test which kills the client wants this, or the request takes effect.
        """
        methods = WRITE_METHODS if writes else ()
        return self._set(Fault(at=at, times=times, methods=methods, match=match, callback=callback, drop=drop))

    def _set(self, fault: Fault) -> Fault:
        if fault.at < 1 or fault.times < 1:
            raise ValueError(f"Requests are counted from 1: got at={fault.at}, times={fault.times}.")
        with self._fault_lock:
            self.faults.append(fault)
        return fault

    def next_fault(self, method: str, path: str) -> Fault | None:
        """Count a request in every fault; the first that strikes, in the order they were set, applies."""
        with self._fault_lock:
            striking = [fault for fault in self.faults if fault.strikes(method, path)]
            if not striking:
                return None
            striking[0].fired += 1
            return striking[0]

    # -- what is on the disk

    def exists(self, repo_id: str, repo_type: str = "dataset") -> bool:
        return self.store.repository(repo_type, repo_id).exists

    def private(self, repo_id: str, repo_type: str = "dataset") -> bool:
        return self.store.repository(repo_type, repo_id).private

    def refs(self, repo_id: str, repo_type: str = "dataset") -> dict[str, str]:
        """Commit of every branch (by its name), pull request (refs/pr/N) and tag (refs/tags/NAME)."""
        return self.store.repository(repo_type, repo_id).refs()

    def commits(self, repo_id: str, repo_type: str = "dataset", revision: str = "main") -> list[dict]:
        """Commits, newest first: oid, parent, title, message, author, date, files (path to entry)."""
        return self.store.repository(repo_type, repo_id).history(revision)

    def files(self, repo_id: str, repo_type: str = "dataset", revision: str = "main") -> dict[str, str]:
        """The sha256 of every file."""
        entries = self.store.repository(repo_type, repo_id).files(revision)
        return {path: entry["sha256"] for path, entry in entries.items()}

    def read(self, repo_id: str, path: str, repo_type: str = "dataset", revision: str = "main") -> bytes:
        """Content of a file; KeyError if the revision has none of that path."""
        entry = self.store.repository(repo_type, repo_id).files(revision)[path]
        return self.store.blob(entry["sha256"]).read_bytes()

    def card_data(self, files: dict[str, dict]) -> dict:
        """Front matter of a commit's README; empty without one."""
        if "README.md" not in files:
            return {}
        text = self.store.blob(files["README.md"]["sha256"]).read_text(encoding="utf-8")
        return card_metadata(text) or {}


def main() -> None:
    parser = argparse.ArgumentParser(description="A local Hugging Face Hub for tests and benchmarks.")
    parser.add_argument("--root", required=True, help="folder of all state")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--token", default="hf_test_token", help="the one token that is accepted")
    parser.add_argument("--user", default="tester", help="whose token it is")
    parser.add_argument("--orgs", nargs="*", default=["acme"], help="namespaces the user may also write in")
    parser.add_argument("--part-size", type=int, help="bytes; larger files are uploaded in parts")
    server = HubServer(**vars(parser.parse_args())).start()
    print(f"READY {server.url}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        server.stop()


if __name__ == "__main__":
    main()
