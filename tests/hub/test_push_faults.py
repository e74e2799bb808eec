"""Pushes that are disturbed at every one of their requests: by errors, lost answers, broken connections, a killed process,
other people's commits. The Hub shows the state before or the state after, whole, and repeating leads where an undisturbed
push leads."""

import fnmatch
import io
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from hf_gateau.quickstart import LONG_MODEL, PLANTED, SEGMENT_LENGTH, SHORT_WINDOW
from tests.servers.hub_client import Client, ClientError, cli, in_a_child
from tests.servers.hub_server import HubServer


REPO, SOURCE = "tester/scored", "acme/source"
NUM_ROWS = 16
PAIR = {"long_model": LONG_MODEL, "short_window": SHORT_WINDOW, "segment_length": SEGMENT_LENGTH, "device": "cpu"}
OLD = {"configs": {"top50": 0.5, "gone": 0.25}, "alpha": 0.8}
NEW = {"configs": {"top50": 0.5, "fresh": 0.4}, "alpha": 0.3}
CARD = "---\nlicense: cc-by-4.0\n---\n# Source\n"


# ---- in the client's process


def prepare(folder: str) -> None:
    """Scored rows in a folder, the repository that they are from, and a push that draws one figure, each once."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    import hf_gateau.report.drawing
    import hf_gateau.report.figures
    from hf_gateau import GateauScorer

    HfApi().create_repo(SOURCE, repo_type="dataset")
    HfApi().upload_file(path_or_fileobj=CARD.encode(), path_in_repo="README.md", repo_id=SOURCE, repo_type="dataset")
    ds = load_dataset("json", data_files=PLANTED, split="train").select(range(NUM_ROWS))
    ds.map(GateauScorer(**PAIR), batched=True).save_to_disk(folder)
    draw, save, known = hf_gateau.report.figures.figures, hf_gateau.report.drawing.save_png, {}

    def save_once(figure, place):
        if figure.text not in known:
            save(figure, data := io.BytesIO())
            known[figure.text] = data.getvalue()
        place.write(known[figure.text])

    hf_gateau.report.figures.figures = lambda *arguments, **named: draw(*arguments, **named)[:1]
    hf_gateau.report.figures.segment_figures = lambda *arguments: []
    hf_gateau.report.drawing.save_png = save_once


def forget(*names: str) -> None:
    """Empty a cache, so that everything is asked for again."""
    for name in names:
        shutil.rmtree(Path(os.environ["HF_HOME"], name), ignore_errors=True)


def push(folder: str, configs: dict, alpha: float, **options) -> str:
    forget("hub")
    from datasets import load_from_disk

    from hf_gateau import push_scored, rank

    return push_scored(rank(load_from_disk(folder), alpha=alpha), REPO, configs, source=SOURCE, **options)


def push_split(folder: str) -> None:
    """Another split, as somebody else may do meanwhile."""
    from datasets import DatasetDict, load_from_disk

    from hf_gateau import push_scored, rank

    parts = {"validation": rank(load_from_disk(folder).select(range(8)))}
    push_scored(DatasetDict(parts), REPO, {"top50": 0.5}, source=SOURCE)


def save_ranked(folder: str, alpha: float) -> str:
    from datasets import load_from_disk

    from hf_gateau import rank
    from hf_gateau.files.sidecar import sidecar_of
    from hf_gateau.files.writing import save_rows

    ds = rank(load_from_disk(folder), alpha=alpha)
    save_rows(ds, f"{folder}.parquet", sidecar_of(ds))
    return f"{folder}.parquet"


def load(name: str = "default", revision: str | None = None) -> list:
    from hf_gateau import load_scored

    return load_scored(REPO, name, revision=revision)["id"][:]


def load_afresh(revision: str | None = None) -> list:
    """With nothing in the cache."""
    forget("hub", "datasets")
    return load(revision=revision)


# ---- in the tests


class Disturbed:
    """A server that can be set back to where the old push had ended, and what the new push makes of it undisturbed."""

    def __init__(self, server: HubServer, client: Client, folder: Path):
        self.server, self.client, self.rows = server, client, str(folder / "rows")
        self.saved, self.pid_file = folder / "saved", folder / "pid"
        client(prepare, self.rows)
        client(push, self.rows, **OLD)
        shutil.copytree(server.root, self.saved)
        self.old, self.start = server.files(REPO), server.refs(REPO)["main"]
        server.requests.clear()
        self.push()
        self.requests = list(server.requests)
        (self.committed,) = [at for at, x in enumerate(self.requests, 1) if "/commit/" in x.path]
        self.new = server.files(REPO)
        assert self.new.keys() - self.old.keys() and self.old.keys() - self.new.keys()

    def set_back(self) -> None:
        self.server.faults.clear()
        self.server.requests.clear()
        shutil.rmtree(self.server.root)
        shutil.copytree(self.saved, self.server.root)

    def push(self, **options) -> str:
        return self.client(push, self.rows, **{**NEW, **options})

    def some_requests(self, every: int) -> list[tuple[int, object]]:
        """Every so manieth of the requests with its number from 1, and the first, the commit, and the last."""
        chosen = {1, self.committed, len(self.requests), *range(every, len(self.requests) + 1, every)}
        return [(at, request) for at, request in enumerate(self.requests, 1) if at in chosen]

    def count(self, *methods: str) -> int:
        return sum(request.method in methods for request in self.requests)

    def check_old(self, loads: bool = True) -> None:
        """Nothing is changed for those who read, and the data load."""
        assert self.server.refs(REPO)["main"] == self.start and self.server.files(REPO) == self.old
        check_whole(self.server, self.server.commits(REPO)[0]["files"])
        if loads:
            assert len(self.client(load)) == NUM_ROWS

    def check_new(self, about: object = None) -> None:
        """What the undisturbed push leads to, in one commit, and every commit whole."""
        assert self.server.files(REPO) == self.new, about
        titles = [commit["title"] for commit in self.server.commits(REPO)]
        assert titles == ["Scored with hf_gateau"] * 2 + ["initial commit"]
        for commit in self.server.commits(REPO)[:-1]:
            check_whole(self.server, commit["files"])

    def push_fails(self, **options) -> str:
        """The message of a push that gives up: one line, of our own error."""
        with pytest.raises(ClientError) as caught:
            self.push(**options)
        assert caught.value.error == "HubError", caught.value
        assert "\n" not in caught.value.message and len(caught.value.message) < 600
        return caught.value.message


WHOLE: set[tuple] = set()


def check_whole(server: HubServer, files: dict[str, dict]) -> None:
    """Every configuration that the README of a commit names is there, and holds what the record says."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    from hf_gateau.hub.scored import rows_digest

    shas = {path: entry["sha256"] for path, entry in files.items()}
    if (key := tuple(sorted(shas.items()))) in WHOLE:
        return
    texts = {path: server.store.blob(shas[path]).read_text("utf-8") for path in ("README.md", "gateau.json")}
    record = json.loads(texts["gateau.json"])
    named = {
        x["config_name"]: x["data_files"] for x in yaml.safe_load(texts["README.md"].split("---\n")[1])["configs"]
    }
    assert set(named) == {"default", *record["selections"]}
    used = {"README.md", "gateau.json", ".gitattributes"}
    for name, places in named.items():
        entries = record["splits"] if name == "default" else record["selections"][name]
        assert {place["split"] for place in places} == set(entries)
        for place in places:
            paths = sorted(fnmatch.filter(files, place["path"]))
            used |= set(paths)
            tables = [pq.read_table(io.BytesIO(server.store.blob(shas[path]).read_bytes())) for path in paths]
            assert rows_digest(Dataset(pa.concat_tables(tables))) == entries[place["split"]]["digest"]
    assert {path for path in files if f"]({path})" in texts["README.md"]} | used == set(files)
    WHOLE.add(key)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "tmp").mkdir()
    with HubServer(folder / "hub") as server:
        with Client(server, folder / "client", TMPDIR=str(folder / "tmp")) as client:
            yield Disturbed(server, client, folder)
        assert server.errors == [] and "Traceback" not in client.log


@pytest.fixture(autouse=True)
def _set_back(disturbed):
    disturbed.set_back()


# All requests in the slow lane; a multiple of four, which the tests below count in
EACH_OR_SOME = pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])


# ---- once: the push finds its way


ONCE = {
    "500": lambda server, at: server.fail(at, status=500),
    "503": lambda server, at: server.fail(at, status=503),
    "no answer": lambda server, at: server.before(at, lambda: None, drop=True),
    "answer lost": lambda server, at: server.fail(at, after=True),
}


@pytest.mark.parametrize(
    "how", [pytest.param(x, marks=pytest.mark.slow if x in ("503", "no answer") else ()) for x in ONCE]
)
@EACH_OR_SOME
def test_one_request_fails(every, how, disturbed):
    for at, request in disturbed.some_requests(every):
        is_read = request.method in ("GET", "HEAD")
        if is_read and how != "500":
            continue
        disturbed.set_back()
        fault = ONCE[how](disturbed.server, at)
        disturbed.push()
        assert fault.fired == 1
        disturbed.check_new(request)


@pytest.mark.parametrize("how", ["500", "no answer"])
def test_the_sources_card_is_read_again(how, disturbed):
    (at,) = [at for at, request in enumerate(disturbed.requests, 1) if SOURCE in request.path]
    fault = ONCE[how](disturbed.server, at)
    disturbed.push()
    assert fault.fired == 1 and b"license: cc-by-4.0" in disturbed.server.read(REPO, "README.md")
    disturbed.check_new()


def test_an_upload_is_cut_off(disturbed):
    for at in range(1, disturbed.count("PUT") + 1):
        disturbed.set_back()
        fault = disturbed.server.cut(at)
        disturbed.push()
        assert fault.fired == 1
        disturbed.check_new()


@pytest.mark.parametrize("status", [409, 412])
def test_the_commit_collides(status, disturbed):
    fault = disturbed.server.fail(status=status, match="/commit/")
    disturbed.push()
    assert fault.fired == 1
    disturbed.check_new()


# ---- for good: the push gives up, and nothing has happened


@EACH_OR_SOME
def test_everything_fails_from_a_request_on(every, disturbed):
    for at, _ in disturbed.some_requests(every):
        disturbed.set_back()
        fault = disturbed.server.fail(at, status=500, times=1000)
        message = disturbed.push_fails()
        assert fault.fired >= 5 and " failed: " in message, message
        disturbed.server.faults.clear()
        if at <= disturbed.committed:
            disturbed.check_old(loads=at % 4 == 0)
            assert "Nothing was written" in message or "has not changed" in message or "Reading" in message, message
        if at % 4 == 0 or at >= disturbed.committed:
            disturbed.push()
            disturbed.check_new()


def test_uploads_are_cut_off_again_and_again(disturbed):
    disturbed.server.cut(1, times=1000)
    assert disturbed.push_fails().startswith("Sending data/train-00000-of-00001.parquet to tester/scored failed: ")
    disturbed.server.faults.clear()
    disturbed.check_old()
    disturbed.push()
    disturbed.check_new()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_what_is_refused_is_not_repeated(status, disturbed):
    fault = disturbed.server.fail(status=status, times=1000, match="/commit/")
    disturbed.push_fails()
    assert fault.fired == 1
    disturbed.server.faults.clear()
    disturbed.check_old()


def test_the_commits_answer_is_lost(disturbed):
    lost = disturbed.server.fail(after=True, match="/commit/")
    disturbed.push()
    assert lost.fired == 1
    disturbed.check_new()


def test_the_commits_answer_is_lost_and_the_server_gone(disturbed):
    """Applied, but nobody says so; repeating makes no second commit."""
    server = disturbed.server
    lost = server.fail(after=True, match="/commit/")
    gone = server.fail(disturbed.committed + 1, status=503, times=1000)
    disturbed.push_fails()
    assert lost.fired == 1 and gone.fired
    server.faults.clear()
    disturbed.push()
    disturbed.check_new()


def test_a_lost_answer_opens_no_second_pull_request(disturbed):
    fault = disturbed.server.fail(after=True, match="/commit/")
    disturbed.push_fails(create_pr=True)
    assert fault.fired == 1 and set(disturbed.server.refs(REPO)) == {"main", "refs/pr/1"}
    check_whole(disturbed.server, disturbed.server.commits(REPO, revision="refs/pr/1")[0]["files"])
    disturbed.check_old()


def test_the_command_says_it_in_one_line(disturbed):
    rows = disturbed.client(save_ranked, disturbed.rows, 0.3)
    disturbed.server.fail(status=502, times=1000, match="/commit/")
    status, out, errors = disturbed.client(cli, "push", rows, REPO)
    said = [line for line in errors.splitlines() if not line.startswith("WARNING: Try ")]
    assert status == 2 and out == "" and said[1:] == ["(HF_GATEAU_TRACEBACK=1 shows where.)"], errors
    assert said[0].startswith(f"hf-gateau push: The commit to {REPO} failed: ") and "Traceback" not in errors
    assert said[0].endswith("push again, and what has arrived is not sent twice.")
    disturbed.server.faults.clear()
    disturbed.check_old()


# ---- killed


@pytest.mark.slow
def test_killed_before_each_write(disturbed):
    server, pid_file = disturbed.server, disturbed.pid_file

    def kill():
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():  # until its parent has waited for it
            time.sleep(0.001)

    writes = [request for request in disturbed.requests if request.method in ("POST", "PUT", "DELETE")]
    (committed,) = [at for at, request in enumerate(writes, 1) if "/commit/" in request.path]
    for at in sorted({*range(1, len(writes), 2), committed, len(writes)}):
        disturbed.set_back()
        fault = server.before(at, kill, drop=True, writes=True)
        call = [__name__, "push", pid_file, disturbed.rows]
        assert disturbed.client(in_a_child, *call, **NEW) == -signal.SIGKILL, at
        assert fault.fired == 1
        server.faults.clear()
        if at <= committed:
            disturbed.check_old(loads=at == committed)
        disturbed.push()
        disturbed.check_new(writes[at - 1])
        assert not list(server.store.blobs.glob("incoming-*"))


# ---- meanwhile, others


def commit_by_hand(server: HubServer, change) -> None:
    """Somebody edits the README on the Hub."""
    repository = server.store.repository("dataset", REPO)
    with server.store.lock:
        parent = repository.resolve()
        files = repository.files()
        text = change(server.store.blob(files["README.md"]["sha256"]).read_text("utf-8"))
        files["README.md"] = server.store.add_small(text.encode())
        repository.set_ref("main", repository.write_commit(parent, "By hand", "", "somebody", files))


@pytest.mark.parametrize("num_edits", [1, 3])
def test_an_edit_between_our_reading_and_our_commit_survives(num_edits, disturbed):
    server = disturbed.server

    def edit():
        commit_by_hand(server, lambda text: text.replace("---\n\n#", "language: [en]\n---\n\n#") + "\n## By hand\n")

    fault = server.before(1, edit, times=num_edits, match="/commit/")
    disturbed.push()
    assert fault.fired == num_edits
    answers = [request.status for request in server.requests if "/commit/" in request.path]
    assert answers == [412] * num_edits + [200]
    titles = [commit["title"] for commit in server.commits(REPO)]
    assert titles[: num_edits + 1] == ["Scored with hf_gateau"] + ["By hand"] * num_edits
    text = server.read(REPO, "README.md").decode()
    assert text.count("## By hand\n") == num_edits and "fresh" in text and "gone" not in text.split("---\n")[1]
    others = {path: sha for path, sha in disturbed.new.items() if path != "README.md"}
    assert others.items() <= server.files(REPO).items()
    check_whole(server, server.commits(REPO)[0]["files"])


def test_another_split_that_arrives_meanwhile_stays(disturbed):
    server, client = disturbed.server, disturbed.client
    client(push_split, disturbed.rows)
    other = server.refs(REPO)["main"]
    repository = server.store.repository("dataset", REPO)
    repository.set_ref("main", disturbed.start)
    fault = server.before(1, lambda: repository.set_ref("main", other), match="/commit/")
    disturbed.push()
    assert fault.fired == 1 and [commit["oid"] for commit in server.commits(REPO)][1] == other
    record = json.loads(server.read(REPO, "gateau.json"))
    assert set(record["splits"]) == {"train", "validation"}
    assert {name: set(splits) for name, splits in record["selections"].items()} == {
        "top50": {"train", "validation"},
        "fresh": {"train"},
    }
    check_whole(server, server.commits(REPO)[0]["files"])


# ---- reading


def test_loading_while_requests_fail(disturbed):
    """The rows, or an error that says what failed; never others."""
    server, client = disturbed.server, disturbed.client
    rows = client(load_afresh)
    server.requests.clear()
    assert client(load_afresh) == rows
    num_requests = len(server.requests)
    for how in ("500", "no answer"):
        for at in range(1, num_requests + 1):
            server.faults.clear()
            fault = ONCE[how](server, at)
            assert client(load_afresh) == rows, (how, at)
            assert fault.fired == 1


def test_rows_and_record_are_of_one_commit(disturbed):
    """Somebody pushes in the middle of our loading."""
    server, client = disturbed.server, disturbed.client
    rows = client(load_afresh)
    disturbed.push()
    later = server.refs(REPO)["main"]
    repository = server.store.repository("dataset", REPO)
    repository.set_ref("main", disturbed.start)
    server.requests.clear()
    client(load_afresh)
    for at in range(1, len(server.requests) + 1):
        repository.set_ref("main", disturbed.start)
        server.faults.clear()
        server.before(at, lambda: repository.set_ref("main", later))
        assert client(load_afresh) == rows
