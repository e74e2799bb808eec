"""The tests' own Hub against the real clients, which run in one subprocess: they read their environment at import."""

import base64
import hashlib
import http.client
import inspect
import itertools
import json
import os
import random
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.servers.hub_server import HubServer, Request, check_card


NUMBERS = itertools.count(1)


# ---- in the subprocess: what the clients are asked to do; everything returned goes through JSON


def call_api(method: str, endpoint: str | None = None, **arguments):
    """Call a method of HfApi; objects come back as dictionaries."""
    from huggingface_hub import HfApi

    result = getattr(HfApi(endpoint=endpoint), method)(**arguments)
    return list(result) if inspect.isgenerator(result) else result


def commit_text(repo_id: str, path: str, text: str, **options) -> dict:
    """Commit one small file."""
    from huggingface_hub import HfApi

    named = {"path_or_fileobj": text.encode(), "path_in_repo": path, "repo_id": repo_id, "repo_type": "dataset"}
    return vars(HfApi().upload_file(**named, **options))


def push_rows(repo_id: str, count: int, config: str, **options) -> dict:
    from datasets import Dataset

    rows = [{"text": f"row {i}", "score": i / 8} for i in range(count)]
    return vars(Dataset.from_list(rows).push_to_hub(repo_id, config_name=config, split="train", **options))


def load_rows(repo_id: str, *config: str, **options) -> list[dict]:
    from datasets import load_dataset

    return list(load_dataset(repo_id, *config, split="train", **options))


def push_card(kind: str, repo_id: str, text: str) -> str:
    import huggingface_hub

    return getattr(huggingface_hub, kind)(text).push_to_hub(repo_id)


def load_card(kind: str, repo_id: str) -> list:
    """Metadata and text of a card, checked by the Hub."""
    import huggingface_hub

    card = getattr(huggingface_hub, kind).load(repo_id)
    card.validate()
    return [card.data.to_dict(), card.text]


def read_range(path: str, start: int, stop: int) -> str:
    from huggingface_hub import HfFileSystem

    return HfFileSystem().cat_file(path, start=start, end=stop).hex()


def work() -> None:
    """Answer calls, a line of JSON each, until the pipe closes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        name, positional, named = json.loads(line)
        try:
            answer = {"result": globals()[name](*positional, **named)}
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            answer = {"error": type(error).__name__, "status": status, "message": str(error)}
        answers.write(json.dumps(answer, default=lambda value: getattr(value, "__dict__", str(value))) + "\n")


# ---- in the tests


class ClientError(Exception):
    """What a client raised: the name of its class, the HTTP status if it had an answer, the message."""

    def __init__(self, error: str, status: int | None, message: str):
        super().__init__(f"{error}: {message}")
        self.error = error
        self.status = status


class Client:
    """The subprocess; attributes are the functions above."""

    def __init__(self, server: HubServer, folder: Path):
        self.log = open(folder / "client.log", "w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.test_hub_server"],
            cwd=ROOT,
            env={**server.environment(folder / "home"), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def __getattr__(self, name: str):
        def call(*positional, **named):
            self.process.stdin.write(json.dumps([name, positional, named]) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
            if "error" in answer:
                raise ClientError(**answer)
            return answer["result"]

        return call

    def close(self) -> None:
        self.process.communicate(timeout=20)
        self.log.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def running(folder):
    with HubServer(folder / "root") as server:
        yield server


@pytest.fixture(scope="module")
def client(running, folder):
    client = Client(running, folder)
    yield client
    client.close()


@pytest.fixture
def server(running):
    """The server without earlier requests and faults; every fault that a test sets must have struck by its end."""
    running.requests.clear()
    running.faults.clear()
    yield running
    assert [fault for fault in running.faults if not fault.fired] == []
    assert running.errors == []


@pytest.fixture
def repo(server, client) -> str:
    """A fresh data set for a test."""
    repo_id = f"tester/data-{next(NUMBERS)}"
    client.call_api("create_repo", repo_id=repo_id, repo_type="dataset")
    server.requests.clear()
    return repo_id


def ask(server: HubServer, method: str, path: str, value=None, token: str | None = "", **headers):
    """One request without a client library; returns status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    if token is not None:
        headers["Authorization"] = f"Bearer {token or server.token}"
    body = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def answers(server: HubServer, part: str) -> list[int | None]:
    """Statuses of the requests whose path has a part."""
    return [request.status for request in server.requests if part in request.path]


# ---- accounts and repositories


def test_the_token_names_the_user(server, client):
    user = client.call_api("whoami")
    assert (user["name"], [org["name"] for org in user["orgs"]]) == ("tester", ["acme"])
    with pytest.raises(ClientError, match="Invalid user token") as caught:
        client.call_api("whoami", token="hf_wrong")
    assert caught.value.status == 401
    assert server.requests == [("GET", "/api/whoami-v2", 200), ("GET", "/api/whoami-v2", 401)]


def test_repositories_are_created_once_and_deleted(server, client):
    made = {"repo_id": "acme/made", "repo_type": "model"}
    assert client.call_api("create_repo", **made) == f"{server.url}/acme/made"
    assert client.call_api("create_repo", **made, exist_ok=True) == f"{server.url}/acme/made"
    with pytest.raises(ClientError, match="already created") as caught:
        client.call_api("create_repo", **made)
    assert caught.value.status == 409
    assert server.exists("acme/made", "model") and not server.exists("acme/made", "dataset")
    client.call_api("delete_repo", **made)
    assert not server.exists("acme/made", "model")


def test_other_namespaces_are_closed(server, client):
    with pytest.raises(ClientError, match="no write access to stranger") as caught:
        client.call_api("create_repo", repo_id="stranger/data", repo_type="dataset")
    assert caught.value.status == 403
    server.store.create("dataset", "stranger/data", "stranger", private=False)
    with pytest.raises(ClientError) as caught:
        client.commit_text("stranger/data", "a.txt", "mine")
    assert caught.value.status == 403
    assert list(server.files("stranger/data")) == [".gitattributes"]


def test_private_repositories_show_only_to_their_owner(server, client):
    named = {"repo_id": "tester/secret", "repo_type": "dataset"}
    client.call_api("create_repo", **named, private=True)
    assert server.private("tester/secret")
    assert client.call_api("repo_info", **named)["private"] is True
    with pytest.raises(ClientError, match="RepositoryNotFoundError") as caught:
        client.call_api("repo_info", **named, token=False)
    assert caught.value.status == 401
    with HubServer(server.root, token="hf_other", user="other", orgs=()) as elsewhere:
        with pytest.raises(ClientError, match="RepositoryNotFoundError") as caught:
            client.call_api("repo_info", endpoint=elsewhere.url, token="hf_other", **named)
        assert caught.value.status == 404
    client.call_api("update_repo_settings", **named, private=False)
    assert client.call_api("repo_info", **named, token=False)["private"] is False


def test_what_is_missing_is_named(server, client, repo):
    cases = [
        ("RepositoryNotFoundError", {"repo_id": "tester/none"}),
        ("RevisionNotFoundError", {"repo_id": repo, "revision": "none"}),
    ]
    for error, arguments in cases:
        with pytest.raises(ClientError) as caught:
            client.call_api("repo_info", repo_type="dataset", **arguments)
        assert (caught.value.error, caught.value.status) == (error, 404)
    with pytest.raises(ClientError) as caught:
        client.call_api("hf_hub_download", repo_id=repo, filename="none.txt", repo_type="dataset")
    assert caught.value.status == 404 and "EntryNotFound" in caught.value.error


# ---- files, commits, revisions


@pytest.mark.parametrize("part_size", [None, 1_000_000])
def test_a_folder_goes_up_and_comes_down(server, client, repo, tmp_path, monkeypatch, part_size):
    monkeypatch.setattr(server, "part_size", part_size)
    weights = random.Random(part_size or 0).randbytes(2_500_000)
    (tmp_path / "up/sub").mkdir(parents=True)
    (tmp_path / "up/sub/weights.safetensors").write_bytes(weights)
    (tmp_path / "up/notes ü.txt").write_text("hello")
    (tmp_path / "up/empty.txt").write_text("")
    named = {"repo_id": repo, "repo_type": "dataset"}
    client.call_api("upload_folder", folder_path=str(tmp_path / "up"), **named)

    puts = [request.path for request in server.requests if request.method == "PUT"]
    address = f"/lfs/{hashlib.sha256(weights).hexdigest()}"
    assert puts == ([f"{address}/part/{i}" for i in (1, 2, 3)] if part_size else [address])
    assert answers(server, "/verify") == [200]
    assert server.read(repo, "sub/weights.safetensors") == weights
    assert server.read(repo, "notes ü.txt") == b"hello"
    assert list(server.store.blobs.glob("part-*")) + list(server.store.blobs.glob("incoming-*")) == []

    server.requests.clear()
    client.call_api("upload_folder", folder_path=str(tmp_path / "up"), **named)
    assert {request.method for request in server.requests} == {"GET", "POST"} and answers(server, "/commit/") == []
    assert len(server.commits(repo)) == 2

    before = server.commits(repo)[0]["oid"]
    client.call_api("delete_folder", path_in_repo="sub", **named)
    assert set(server.files(repo)) == {".gitattributes", "notes ü.txt", "empty.txt"}
    down = Path(client.call_api("snapshot_download", revision=before, **named))
    assert (down / "sub/weights.safetensors").read_bytes() == weights
    assert (down / "notes ü.txt").read_text() == "hello"
    assert not (Path(client.call_api("snapshot_download", **named)) / "sub").exists()


def test_lists_of_files_and_commits(server, client, repo):
    first = client.commit_text(repo, "a/b/one.txt", "1", commit_message="One")["oid"]
    second = client.commit_text(repo, "a/two.parquet", "22", commit_message="Two", commit_description="why")["oid"]
    named = {"repo_id": repo, "repo_type": "dataset"}

    listed = client.call_api("list_repo_tree", path_in_repo="a", **named)
    assert sorted(item["path"] for item in listed) == ["a/b", "a/two.parquet"]
    listed = client.call_api("list_repo_tree", recursive=True, **named)
    assert sorted(item["path"] for item in listed) == [".gitattributes", "a", "a/b", "a/b/one.txt", "a/two.parquet"]
    (large,) = client.call_api("get_paths_info", paths=["a/two.parquet", "none"], **named)
    assert large["lfs"]["sha256"] == hashlib.sha256(b"22").hexdigest() and large["size"] == 2
    info = client.call_api("repo_info", files_metadata=True, **named)
    assert {item["rfilename"]: item["size"] for item in info["siblings"]}["a/b/one.txt"] == 1

    info = client.call_api("repo_info", expand=["sha"], **named)
    assert (info["sha"], info["private"], info["siblings"]) == (second, None, None)

    commits = client.call_api("list_repo_commits", **named)
    assert [commit["title"] for commit in commits] == ["Two", "One", "initial commit"]
    assert [commit["commit_id"] for commit in commits[:2]] == [second, first] and commits[0]["message"] == "why"
    assert [commit["oid"] for commit in server.commits(repo)[:2]] == [second, first]
    assert "a/two.parquet" not in client.call_api("list_repo_files", revision=first, **named)


def test_branches_and_tags(server, client, repo):
    named = {"repo_id": repo, "repo_type": "dataset"}
    start = server.refs(repo)["main"]
    client.call_api("create_branch", branch="next/one", **named)
    with pytest.raises(ClientError) as caught:
        client.call_api("create_branch", branch="next/one", **named)
    assert caught.value.status == 409
    head = client.commit_text(repo, "new.txt", "new", revision="next/one")["oid"]
    client.call_api("create_tag", tag="v1", revision="next/one", **named)
    assert server.refs(repo) == {"main": start, "next/one": head, "refs/tags/v1": head}
    refs = client.call_api("list_repo_refs", **named)
    assert {ref["name"]: ref["target_commit"] for ref in refs["branches"]} == {"main": start, "next/one": head}
    assert [ref["name"] for ref in refs["tags"]] == ["v1"]
    path = client.call_api("hf_hub_download", filename="new.txt", revision="v1", **named)
    assert Path(path).read_text() == "new"
    client.call_api("delete_branch", branch="next/one", **named)
    client.call_api("delete_tag", tag="v1", **named)
    assert server.refs(repo) == {"main": start}


def test_pull_requests(server, client, repo):
    named = {"repo_id": repo, "repo_type": "dataset"}
    start = server.refs(repo)["main"]
    first = client.commit_text(repo, "new.txt", "one", create_pr=True)
    assert (first["pr_revision"], first["pr_num"]) == ("refs/pr/1", 1)
    assert first["pr_url"] == f"{server.url}/datasets/{repo}/discussions/1"
    assert client.commit_text(repo, "new.txt", "two", create_pr=True)["pr_num"] == 2
    later = client.commit_text(repo, "more.txt", "more", revision="refs/pr/1")
    assert server.refs(repo)["main"] == start and list(server.files(repo)) == [".gitattributes"]
    assert server.commits(repo, revision="refs/pr/1")[0]["oid"] == later["oid"]
    assert server.read(repo, "new.txt", revision="refs/pr/2") == b"two"

    files = client.call_api("list_repo_files", revision="refs/pr/1", **named)
    assert sorted(files) == [".gitattributes", "more.txt", "new.txt"]
    path = client.call_api("hf_hub_download", filename="new.txt", revision="refs/pr/1", **named)
    assert Path(path).read_text() == "one"
    refs = client.call_api("list_repo_refs", include_pull_requests=True, **named)
    assert [ref["name"] for ref in refs["pull_requests"]] == ["refs/pr/1", "refs/pr/2"]
    assert ask(server, "GET", f"/datasets/{repo}/resolve/refs/pr/1/new.txt")[2] == b"one"


def test_a_stranger_may_open_a_pull_request_but_not_commit(server, client, repo):
    with HubServer(server.root, token="hf_other", user="other", orgs=()) as elsewhere:
        lines = [
            {"key": "header", "value": {"summary": "Mine"}},
            {"key": "file", "value": {"path": "a.txt", "content": base64.b64encode(b"a").decode()}},
        ]
        body = b"\n".join(json.dumps(line).encode() for line in lines)
        address = f"/api/datasets/{repo}/commit/main"
        assert ask(elsewhere, "POST", address, body)[0] == 403
        assert ask(elsewhere, "POST", f"{address}?create_pr=1", body, token=None)[0] == 401
        assert ask(elsewhere, "POST", f"{address}?create_pr=1", body)[0] == 200
    assert set(server.refs(repo)) == {"main", "refs/pr/1"}
    assert server.commits(repo, revision="refs/pr/1")[0]["author"] == "other"


def test_ranges(server, client, repo):
    client.commit_text(repo, "digits.txt", "0123456789")
    assert bytes.fromhex(client.read_range(f"datasets/{repo}/digits.txt", 2, 5)) == b"234"
    assert 206 in answers(server, "digits.txt")
    address = f"/datasets/{repo}/resolve/main/digits.txt"
    cases = [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=10-", 416, b""),
    ]
    for asked, status, expected in cases:
        assert ask(server, "GET", address, Range=asked)[::2] == (status, expected)
    status, headers, body = ask(server, "HEAD", address)
    assert (status, headers["Content-Length"], body) == (200, "10", b"")
    assert headers["X-Repo-Commit"] == server.refs(repo)["main"]


# ---- data sets and cards


def test_two_configurations_of_a_data_set(server, client, repo):
    first = client.push_rows(repo, 3, "top", set_default=True)["oid"]
    client.push_rows(repo, 8, "all")
    assert [row["score"] for row in client.load_rows(repo, "all")] == [i / 8 for i in range(8)]
    assert [row["text"] for row in client.load_rows(repo)] == ["row 0", "row 1", "row 2"]
    assert [commit["oid"] for commit in server.commits(repo)][1] == first
    assert "all/train-00000-of-00001.parquet" not in server.files(repo, revision=first)
    assert len(client.load_rows(repo, "top", revision=first)) == 3

    pull = client.push_rows(repo, 5, "all", create_pr=True)
    assert len(client.load_rows(repo, "all", revision=pull["pr_revision"])) == 5
    assert len(client.load_rows(repo, "all")) == 8


def test_cards_go_up_and_come_back(server, client, repo):
    client.call_api("create_repo", repo_id="acme/tuned")
    cases = [("DatasetCard", repo, "dataset"), ("ModelCard", "acme/tuned", "model")]
    for kind, repo_id, repo_type in cases:
        text = "---\nlicense: mit\ntags:\n- gateau\n---\n\n# Card\n"
        assert "/commit/" in client.push_card(kind, repo_id, text)
        assert server.read(repo_id, "README.md", repo_type).decode() == text
        metadata, body = client.load_card(kind, repo_id)
        assert metadata == {"license": "mit", "tags": ["gateau"]} and body.strip() == "# Card"
        assert client.call_api("repo_info", repo_id=repo_id, repo_type=repo_type)["tags"] == ["gateau"]


def test_a_broken_card_is_refused(server, client, repo):
    with pytest.raises(ClientError, match='ValueError: Invalid metadata in README.md.\n- "tags" must be a list'):
        client.commit_text(repo, "README.md", "---\ntags: gateau\n---\n")
    with pytest.raises(ClientError, match="Invalid metadata in README.md.\n- YAML is invalid"):
        client.commit_text(repo, "README.md", "---\nlicense: [mit\n---\n")
    assert answers(server, "/commit/") == []  # refused before

    content = base64.b64encode(b"---\nlicense: 3\n---\n").decode()
    lines = [
        {"key": "header", "value": {"summary": "No check before"}},
        {"key": "file", "value": {"path": "README.md", "content": content}},
    ]
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    status, headers, _ = ask(server, "POST", f"/api/datasets/{repo}/commit/main", body)
    assert status == 400 and '"license" must be a string' in headers["X-Error-Message"]
    assert len(server.commits(repo)) == 1


@pytest.mark.parametrize(
    ("front_matter", "wrong"),
    [
        ("license: mit\ntags: [a, b]\ndatasets: a/b\nbase_model: [a/b, c/d]", None),
        ("configs:\n- config_name: top\n  data_files: top/*.parquet", None),
        ("license: [mit]", "license"),
        ("license: 3", "license"),
        ("tags: gateau", "tags"),
        ("tags: [a, 1]", "tags"),
        ("datasets: {a: b}", "datasets"),
        ("base_model: 7", "base_model"),
        ("base_model: [a/b, 7]", "base_model"),
        ("configs: top", "configs"),
        ("configs: [top]", "configs"),
        ("configs:\n- data_files: top/*.parquet", "configs"),
        ("- a\n- b", "mapping"),
        ("a: [b", "invalid"),
    ],
)
def test_checks_of_cards(front_matter, wrong):
    errors, warnings = check_card(f"---\n{front_matter}\n---\n# Title\n---\ntags: not metadata\n---\n", "model")
    assert warnings == []
    assert errors == [] if wrong is None else len(errors) == 1 and wrong in errors[0]


def test_checks_of_cards_without_metadata_and_of_data_sets():
    for text in ("# Title\n", "---\n---\n# Title\n"):
        assert check_card(text, "model") == ([], ["empty or missing yaml metadata in repo card"])
    assert check_card("---\nlicense: [mit, cc-by-4.0]\n---\n", "dataset") == ([], [])


# ---- faults


def test_a_commit_that_fails_is_not_applied(server, client, repo):
    server.fail(status=500, match="/commit/")
    with pytest.raises(ClientError) as caught:
        client.commit_text(repo, "a.txt", "a")
    assert caught.value.status == 500 and len(server.commits(repo)) == 1
    client.commit_text(repo, "a.txt", "a")
    assert len(server.commits(repo)) == 2 and answers(server, "/commit/") == [500, 200]


def test_a_commit_whose_answer_is_lost_is_applied(server, client, repo):
    server.fail(after=True, match="/commit/")
    with pytest.raises(ClientError) as caught:
        client.commit_text(repo, "a.txt", "a")
    assert caught.value.status is None and caught.value.error == "RemoteProtocolError"
    assert answers(server, "/commit/") == [None] and server.read(repo, "a.txt") == b"a"


def test_clients_retry_what_they_can(server, client, repo):
    server.fail(status=503, match="/preupload/")
    server.fail(status=429, headers={"Retry-After": "0"}, match="/objects/batch")
    cut = server.cut(at=1, match="/lfs/")
    lost = server.fail(after=True, match="/verify")
    client.commit_text(repo, "a.parquet", "a" * 50_000)
    assert answers(server, "/preupload/") == [503, 200]
    assert answers(server, "/objects/batch") == [429, 200]
    assert [request.status for request in server.requests if request.method == "PUT"] == [None, 200]
    assert answers(server, "/verify") == [None, 200]
    assert cut.fired == lost.fired == 1 and server.read(repo, "a.parquet") == b"a" * 50_000
    assert list(server.store.blobs.glob("incoming-*")) == []


def test_a_stale_parent_is_refused(server, client, repo):
    start = server.refs(repo)["main"]
    head = client.commit_text(repo, "a.txt", "a", parent_commit=start)["oid"]
    with pytest.raises(ClientError, match="A commit has happened since") as caught:
        client.commit_text(repo, "a.txt", "b", parent_commit=start)
    assert caught.value.status == 412 and server.refs(repo)["main"] == head
    client.commit_text(repo, "a.txt", "b", parent_commit=head[:7])
    assert server.read(repo, "a.txt") == b"b"


def test_faults_count_the_requests_that_fit(server):
    third = server.fail(at=3, status=503, times=2)
    write = server.fail(at=2, status=429, times=2, writes=True)
    card = {"content": "", "repoType": "model"}
    asked = [("GET", "/api/whoami-v2"), ("POST", "/api/validate-yaml")] * 3
    got = [ask(server, method, path, card if method == "POST" else None) for method, path in asked]
    assert [status for status, _, _ in got] == [200, 200, 503, 503, 200, 429]  # the first fault set wins
    assert (third.fired, write.fired) == (2, 1)
    server.faults.clear()
    server.fail(at=1, status=429, headers={"Retry-After": "7"}, writes=True)
    assert ask(server, "GET", "/api/whoami-v2")[0] == 200
    status, headers, _ = ask(server, "POST", "/api/validate-yaml", card)
    assert (status, headers["Retry-After"]) == (429, "7")
    with pytest.raises(ValueError, match="counted from 1"):
        server.fail(at=0)


def test_before_a_request_is_handled(server):
    seen = []
    server.before(2, lambda: seen.append(server.exists("tester/hooked", "model")))
    server.before(3, lambda: seen.append("dropped"), drop=True)
    assert ask(server, "GET", "/api/whoami-v2")[0] == 200 and seen == []
    assert ask(server, "POST", "/api/repos/create", {"name": "hooked"})[0] == 200
    assert seen == [False] and server.exists("tester/hooked", "model")
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "POST", "/api/repos/create", {"name": "dropped"})
    assert seen == [False, "dropped"] and not server.exists("tester/dropped", "model")
    assert server.requests[-1] == Request("POST", "/api/repos/create", None)


def test_a_client_killed_before_its_second_request(server):
    code = (
        "import sys, urllib.request as u\n"
        "for name in ('one', 'two'):\n"
        '    body = b\'{"name": "killed-%s"}\' % name.encode()\n'
        "    u.urlopen(u.Request(sys.argv[1], body, {'Authorization': 'Bearer ' + sys.argv[2]}))\n"
    )
    processes = []
    server.before(2, lambda: (processes[0].kill(), processes[0].wait()), drop=True, match="/repos/create")
    command = [sys.executable, "-c", code, f"{server.url}/api/repos/create", server.token]
    processes.append(subprocess.Popen(command))
    assert processes[0].wait(timeout=20) == -9
    assert server.exists("tester/killed-one", "model") and not server.exists("tester/killed-two", "model")


def test_clients_that_leave(tmp_path, capfd):
    sha256 = hashlib.sha256(b"whole").hexdigest()
    with HubServer(tmp_path) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:  # a reset before any request
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with socket.create_connection(("127.0.0.1", server.port)) as connection:  # the middle of an upload
            connection.sendall(f"PUT /lfs/{sha256} HTTP/1.1\r\nHost: hub\r\nContent-Length: 5\r\n\r\nwh".encode())
        deadline = time.monotonic() + 10
        while (server.num_connections or not server.requests) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.requests == [("PUT", f"/lfs/{sha256}", None)]
        assert not server.store.blob(sha256).exists() and list(server.store.blobs.glob("incoming-*")) == []
        assert ask(server, "PUT", f"/lfs/{sha256}", b"wrong")[0] == 400 and not server.store.blob(sha256).exists()
        assert ask(server, "PUT", f"/lfs/{sha256}", b"whole")[0] == 200 and server.store.blob(sha256).exists()
        assert capfd.readouterr().err == ""


# ---- running


def test_a_restart_keeps_everything_and_ends_connections(tmp_path):
    with HubServer(tmp_path) as server:
        ask(server, "POST", "/api/repos/create", {"name": "kept", "type": "dataset", "visibility": "private"})
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("GET", "/api/validate-yaml")
        assert connection.getresponse().read()
        server.stop()
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            connection.request("GET", "/api/validate-yaml")
            connection.getresponse()
        with pytest.raises(ConnectionError):
            ask(server, "GET", "/api/whoami-v2")
        url = server.start().url
        assert url == server.url and ask(server, "GET", "/api/whoami-v2")[0] == 200
    with HubServer(tmp_path) as server:
        assert server.private("tester/kept") and list(server.files("tester/kept")) == [".gitattributes"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak memory from /proc")
def test_the_command_streams_large_files(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.servers.hub_server", "--root", str(tmp_path), "--user", "someone"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        ready, url = process.stdout.readline().split()
        assert ready == "READY"
        remote = HubServer(tmp_path, port=int(url.rsplit(":", 1)[1]))  # never started: knows port and token
        assert json.loads(ask(remote, "GET", "/api/whoami-v2")[2])["name"] == "someone"
        ask(remote, "POST", "/api/repos/create", {"name": "large"})
        size = 200_000_000
        sha256 = hashlib.sha256(bytes(size)).hexdigest()
        assert ask(remote, "PUT", f"/lfs/{sha256}", bytes(size))[0] == 200
        lines = [
            {"key": "header", "value": {"summary": "Large"}},
            {"key": "lfsFile", "value": {"path": "zeros.bin", "oid": sha256, "size": size}},
        ]
        body = b"\n".join(json.dumps(line).encode() for line in lines)
        assert ask(remote, "POST", "/api/models/someone/large/commit/main", body)[0] == 200
        assert len(ask(remote, "GET", "/someone/large/resolve/main/zeros.bin")[2]) == size
        (peak,) = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmHWM" in line]
        assert int(peak.split()[1]) * 1024 < size / 2
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    work()
