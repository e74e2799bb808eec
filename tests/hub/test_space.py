"""The explorer as a static Space: the real client against the tests' own Hub, in a process of its own, and in a browser."""

from pathlib import Path

import pytest
import yaml

from tests.browser import chromium, until, watched
from tests.measured import measured
from tests.servers.hub_client import Client, ClientError, cli
from tests.servers.hub_server import Fault, HubServer, check_card


SPACE, NUM_ROWS = "tester/explorer", 12
MINE = "Written by hand.\n"


# ---- in the client's process


def ranked(num_rows: int, seed: int = 0):
    from hf_gateau import rank

    texts = [{"role": "user", "content": "A long story.\n\nWho?"}, {"role": "assistant", "content": "Ida."}]
    return rank(measured(num_rows, seed, messages=[texts] * num_rows))


def push(folder: str, num_rows: int, seed: int, **settings) -> str:
    from hf_gateau import push_explorer, write_explorer

    page = write_explorer(ranked(num_rows, seed), folder)
    return push_explorer(page.parent, SPACE, **settings)


def push_folder(folder: str) -> str:
    from hf_gateau import push_explorer

    return push_explorer(folder, SPACE)


def write_text(path: str, text: str) -> None:
    from huggingface_hub import HfApi

    HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id=SPACE, repo_type="space")


def save_ranked(path: str) -> None:
    ranked(NUM_ROWS).to_parquet(path)


# ---- in the tests


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with HubServer(tmp_path_factory.mktemp("hub"), token="hf_" + "abcdefghij" * 4) as server:
        yield server
        assert server.errors == []


@pytest.fixture(scope="module")
def author(server, tmp_path_factory):
    with Client(server, tmp_path_factory.mktemp("author")) as client:
        yield client


def readme(server) -> tuple[str, dict]:
    text = server.read(SPACE, "README.md", "space").decode()
    assert check_card(text, "space") == ([], [])
    return text, yaml.safe_load(text.split("---\n")[1])


def test_one_commit_brings_the_page_and_the_next_replaces_it(server, author, tmp_path):
    address = author(push, str(tmp_path / "explorer"), NUM_ROWS, 0, title="Mine: rows", dataset="tester/scored")
    assert "/spaces/tester/explorer/commit/" in address
    text, metadata = readme(server)
    assert metadata["sdk"] == "static" and metadata["app_file"] == "index.html" and metadata["title"] == "Mine: rows"
    assert metadata["datasets"] == ["tester/scored"] and "huggingface.co/datasets/tester/scored" in text
    local = {
        x.relative_to(tmp_path / "explorer").as_posix(): x for x in (tmp_path / "explorer").rglob("*") if x.is_file()
    }
    first = server.files(SPACE, "space")
    assert first.keys() - {".gitattributes"} == {*local, "README.md"}
    assert all(server.read(SPACE, path, "space") == file.read_bytes() for path, file in local.items())
    num_commits = len(server.commits(SPACE, "space"))

    author(write_text, "notes.html", "mine")
    author(write_text, "data/rows-00009.js", "of an earlier, larger push")
    author(write_text, "README.md", text + MINE)
    author(push, str(tmp_path / "explorer"), NUM_ROWS + 5, 1)
    assert len(server.commits(SPACE, "space")) == num_commits + 4  # three by hand
    files = server.files(SPACE, "space")
    assert "data/rows-00009.js" not in files and "notes.html" in files
    assert files["data/numbers.js"] != first["data/numbers.js"]
    text, metadata = readme(server)
    assert text.endswith(MINE) and "datasets" not in metadata


def test_what_arrived_opens_in_a_browser(server, author, tmp_path):
    author(push, str(tmp_path / "explorer"), NUM_ROWS, 2)
    for path in server.files(SPACE, "space"):
        file = tmp_path / "space" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(server.read(SPACE, path, "space"))
    with chromium() as browser, watched(browser) as open_page:
        tab = open_page(tmp_path / "space" / "index.html", "row=3")
        until(tab, "document.querySelector('#row-body section') !== null")
        assert "Ida." in tab.locator("#row-body").inner_text()


def test_a_failed_push_changes_nothing(server, author, tmp_path):
    before = server.refs(SPACE, "space")
    server.faults.append(fault := Fault(status=403, methods=("POST",), match="/commit/"))
    with pytest.raises(ClientError, match="you may not write there"):
        author(push, str(tmp_path / "explorer"), NUM_ROWS, 3)
    server.faults.clear()
    assert fault.fired == 1 and server.refs(SPACE, "space") == before
    with pytest.raises(ClientError, match="holds no explorer"):
        author(push_folder, str(tmp_path))


def test_the_command_pushes_what_it_writes(server, author, tmp_path):
    author(save_ranked, str(tmp_path / "ranked.parquet"))
    status, printed, _ = author(
        cli, "explore", tmp_path / "ranked.parquet", "-o", tmp_path / "out", "--push_space", SPACE
    )
    assert status == 0 and "Pushed: " in printed and "/spaces/tester/explorer" in printed
    assert server.read(SPACE, "data/heads.js", "space") == Path(tmp_path / "out" / "data" / "heads.js").read_bytes()
    status, _, said = author(cli, "explore", tmp_path / "ranked.parquet", "--push_space", "no name")
    assert status == 2 and "no Space's name" in said
