"""A store that is a folder does what the SQLite one does, for processes that share nothing but a disk."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_gateau.store import folder
from hf_gateau.store.folder import FolderStore, known_description, open_store
from hf_gateau.store.sqlite import STORE_VARIABLE, MeasurementStore, StoreError, resolve_store_path
from tests.measured import measurement
from tests.processes import run_together


pytestmark = pytest.mark.quick


@pytest.fixture()
def store(tmp_path) -> FolderStore:
    return FolderStore(tmp_path / "new" / "folder")


def files(store) -> list:
    return sorted(store.path.rglob("*.jsonl"))


def test_numbers_come_back_to_the_last_bit(store):
    store.put("config", "a", measurement(1))
    for reader in (store, FolderStore(store.path), pickle.loads(pickle.dumps(store))):
        assert reader.get("config", ["a", "b"]) == {"a": measurement(1)}
    assert store.get("other", ["a"]) == {}


def test_measured_twice_the_first_one_stays_for_every_reader(tmp_path):
    one, two = FolderStore(tmp_path / "s"), FolderStore(tmp_path / "s")
    one.describe("config", {"long": "x"})
    two.describe("config", {"long": "another"})
    for seed, writer in enumerate((two, one, two)):
        writer.put("config", "a", measurement(seed))
    assert len(files(one)) == 2
    for reader in (one, two, FolderStore(tmp_path / "s")):
        assert reader.get("config", ["a"])["a"] == measurement(0)
        (configuration,) = reader.configurations()
        assert (configuration["num_rows"], configuration["num_measured"]) == (1, 3)
        assert configuration["description"] == {"long": "x"}
        assert configuration["created"] <= configuration["last_measured"] <= time.time()


def test_prune_deletes_what_it_is_told_and_writers_go_on(store):
    for config in ("one", "two"):
        store.describe(config, {})
        store.put(config, "a", measurement(1))
    other, before = FolderStore(store.path), store.num_bytes
    assert other.get("one", ["a"]) and store.prune(["one", "never there"]) == 1
    assert store.num_bytes < before
    assert [configuration["config_key"] for configuration in store.configurations()] == ["two"]
    assert other.get("one", ["a"]) == {} and other.get("two", ["a"]) == {"a": measurement(1)}
    other.put("one", "b", measurement(2))  # it was writing all along
    assert store.get("one", ["a", "b"]) == {"b": measurement(2)}


def test_reads_only_what_is_new(store, monkeypatch):
    """Lines parsed on the way to 100 rows, each looked up before it is measured, as in a run: 100, not 5,050."""
    real, parsed = folder._parse, []
    monkeypatch.setattr(folder, "_parse", lambda line: parsed.append(line) or real(line))
    writer = FolderStore(store.path)
    for i in range(100):
        assert store.get("config", [str(i)]) == {}
        writer.put("config", str(i), measurement(i))
    assert store.get("config", map(str, range(100))) == {str(i): measurement(i) for i in range(100)}
    assert len(parsed) == 100


@pytest.mark.parametrize("cut", [1, 10, 60, -1])
def test_torn_line_is_passed_over_and_breaks_nothing_after_it(store, cut):
    """At every stage of a torn write: read while it is torn, appended to by its own process, read by others."""
    store.put("config", "a", measurement(1))
    store.put("config", "torn", measurement(2))
    (path,) = files(store)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:cut])
    reader = FolderStore(store.path)
    assert reader.get("config", ["a", "torn"]) == {"a": measurement(1)}
    store.put("config", "b", measurement(3))
    whole = {"torn": measurement(2)} if cut == -1 else {}  # only the line's end was missing
    for each in (reader, FolderStore(store.path)):
        assert each.get("config", ["a", "torn", "b"]) == {"a": measurement(1), "b": measurement(3)} | whole


def test_lines_of_garbage_are_passed_over(store):
    store.put("config", "a", measurement(1))
    with files(store)[0].open("ab") as stream:
        stream.write(b'\0\0\0\n{"key": "b"}\n[1]\n\xff\xfe\n\n')
    assert FolderStore(store.path).get("config", ["a", "b"]) == {"a": measurement(1)}


def write_many(path, start):
    store = FolderStore(path)
    for i in range(start, start + 60):
        store.put("config", str(i), measurement(i))
        store.get("config", [str(i + 30)])


def test_many_processes_share_the_folder(tmp_path):
    run_together(write_many, [(tmp_path / "s", start) for start in (0, 30, 60)])
    store = FolderStore(tmp_path / "s")
    assert len(files(store)) == 3
    assert store.get("config", map(str, range(120))) == {str(i): measurement(i) for i in range(120)}


def test_forked_child_writes_a_file_of_its_own(store):
    store.put("config", "a", measurement(1))
    run_together(store.put, [("config", "b", measurement(2))], method="fork")
    assert len(files(store)) == 2
    assert store.get("config", ["a", "b"]) == {"a": measurement(1), "b": measurement(2)}


ENDLESS_WRITER = """
import itertools, sys
from hf_gateau.store.folder import FolderStore
from hf_gateau.store.sqlite import Measurement
store = FolderStore(sys.argv[1])
for i in itertools.count():
    store.put("config", str(i), Measurement(i / 3, 2.0, 3.0, [i / 7] * 20_000, [5.0]))
    print(i, flush=True)
"""


def test_writer_killed_in_the_middle_loses_nothing_that_was_told(tmp_path):
    """Lines of 0.4 MB, so that most kills hit a write; every row that `put` returned for is there, five kills long."""
    store = FolderStore(tmp_path / "s")
    for kill in range(5):
        writer = subprocess.Popen([sys.executable, "-c", ENDLESS_WRITER, store.path], stdout=subprocess.PIPE)
        told = [writer.stdout.readline() for _ in range(kill + 2)]
        os.kill(writer.pid, signal.SIGKILL)
        told += writer.stdout.readlines()
        writer.wait()
        num_told = sum(line.endswith(b"\n") for line in told)
        found = store.get("config", map(str, range(num_told)))
        assert [found[str(i)].ppl_short for i in range(num_told)] == [i / 3 for i in range(num_told)]
        assert all(found[str(i)].segment_ppl == [i / 7] * 20_000 for i in range(num_told))
    assert len(files(store)) == 5


def test_full_disk_is_a_clear_error_and_the_next_row_is_whole(store, monkeypatch):
    import resource

    store.put("config", "kept", measurement(1))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (files(store)[0].stat().st_size + 50, limit[1]))  # a write ends halfway
    try:
        with pytest.raises(StoreError, match="cannot be used .* run again to go on from there"):
            store.put("config", "lost", measurement(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    store.put("config", "after", measurement(3))
    assert FolderStore(store.path).get("config", ["kept", "lost", "after"]) == {
        "kept": measurement(1),
        "after": measurement(3),
    }


def test_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=f"holds something else \\(thesis.tex\\).*{STORE_VARIABLE}"):
        FolderStore(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_unwritable_place_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=f"cannot be used .*{STORE_VARIABLE}"):
        FolderStore(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match="cannot be made"):
        resolve_store_path(f"{tmp_path}/file/store/")


def test_folder_or_file(tmp_path, monkeypatch):
    assert isinstance(open_store(resolve_store_path(f"{tmp_path}/new/")), FolderStore)
    assert isinstance(open_store(resolve_store_path(f"{tmp_path}/new")), FolderStore)  # it is one by now
    assert isinstance(open_store(resolve_store_path(f"{tmp_path}/new.sqlite")), MeasurementStore)
    monkeypatch.setenv(STORE_VARIABLE, f"{tmp_path}/shared/")
    assert resolve_store_path(None).is_dir()


def test_scorer_command_and_descriptions_take_a_folder(rows, tiny_model, tmp_path, monkeypatch, capsys):
    from hf_gateau import GateauScorer
    from hf_gateau.cli import main

    store = f"{tmp_path}/shared/"
    monkeypatch.setenv(STORE_VARIABLE, store)
    settings = {
        "long_model": tiny_model,
        "short_window": 200,
        "segment_length": 64,
        "max_length": 700,
        "device": "cpu",
    }
    first = GateauScorer(**settings)(rows[0])
    monkeypatch.setattr("hf_gateau.measuring.passes.measure_samples", None)
    again = GateauScorer(**settings)
    assert again(rows[0]) == first  # nothing was measured
    key = again.describe()["config_key"]
    assert known_description(key)["long"]["model"] == tiny_model and known_description("nokey") is None
    assert main(["store", "--store", store]) == 0
    assert f"{key}          1 rows" in capsys.readouterr().out
    assert main(["store", "--store", store, "--prune", key]) == 0
    assert "1 measurements deleted" in capsys.readouterr().out and known_description(key) is None


# A new folder, and several who open it


def test_a_store_that_another_process_makes_meanwhile_is_no_other_thing(tmp_path, monkeypatch):
    """It claims the folder, and measures, after we have looked for the marker and before we look what else there is."""
    real, others = os.listdir, []

    def busy(path):
        if not others:
            others.append(None)
            others[0] = FolderStore(tmp_path / "s")
            others[0].describe("config", {})
            others[0].put("config", "a", measurement(1))
        return real(path)

    iterated = Path.iterdir
    monkeypatch.setattr(os, "listdir", busy)
    monkeypatch.setattr(Path, "iterdir", lambda self: busy(self) and iterated(self))
    assert FolderStore(tmp_path / "s").get("config", ["a"]) == {"a": measurement(1)}
    assert len(others) == 1


def open_at_once(kind, paths, barrier):
    for path in paths:
        barrier.wait()
        store = kind(path)
        store.describe("config", {})
        store.put_values("config", {str(os.getpid()): 1.0})


@pytest.mark.parametrize("kind, num_stores", [(FolderStore, 150), (MeasurementStore, 10)])
def test_many_processes_open_new_stores_at_once(kind, num_stores, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, paths = context.Barrier(8, timeout=30), [tmp_path / str(i) for i in range(num_stores)]
    run_together(open_at_once, [(kind, paths, barrier)] * 8, method="fork")
    assert all(kind(path).configurations()[0]["num_rows"] == 8 for path in paths)


def test_a_folder_of_something_else_is_refused_as_before(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(StoreError, match="holds something else \\(mine.txt\\)"):
        FolderStore(tmp_path)
    assert [x.name for x in tmp_path.iterdir()] == ["mine.txt"]
