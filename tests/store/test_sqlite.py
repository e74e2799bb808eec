"""Measurements survive crashes, other processes, and a disk that fails."""

import json
import sqlite3
import subprocess
import sys

import pytest

from hf_gateau.store.sqlite import STORE_VARIABLE, Measurement, MeasurementStore, StoreError, resolve_store_path
from tests.measured import measurement
from tests.processes import run_together


pytestmark = pytest.mark.quick


def test_numbers_come_back_to_the_last_bit(tmp_path):
    store = MeasurementStore(tmp_path / "new" / "folder" / "s.sqlite")
    store.put("config", "a", measurement(1))
    again = MeasurementStore(store.path)
    assert again.get("config", ["a", "b"]) == {"a": measurement(1)}
    assert again.get("other", ["a"]) == {}
    many = [f"k{i}" for i in range(1200)]  # more than SQLite takes in one query
    for key in many[::100]:
        store.put("config", key, measurement(2))
    assert store.get("config", many).keys() == set(many[::100])


def test_measured_twice_the_first_one_stays_and_it_is_counted(tmp_path):
    store = MeasurementStore(tmp_path / "s.sqlite")
    store.describe("config", {"long": "x"})
    store.put("config", "a", measurement(1))
    store.put("config", "a", measurement(2))
    assert store.get("config", ["a"])["a"] == measurement(1)
    (configuration,) = store.configurations()
    assert (configuration["num_rows"], configuration["num_measured"]) == (1, 2)
    assert configuration["description"] == {"long": "x"}


def test_prune_deletes_what_it_is_told_and_no_more(tmp_path):
    store = MeasurementStore(tmp_path / "s.sqlite")
    for config in ("one", "two"):
        store.describe(config, {})
        store.put(config, "a", measurement(1))
    assert store.prune(["one"]) == 1
    assert [configuration["config_key"] for configuration in store.configurations()] == ["two"]
    assert store.get("two", ["a"]) == {"a": measurement(1)}


def write_many(path, start):
    store = MeasurementStore(path)
    for i in range(start, start + 60):
        store.put("config", str(i), measurement(i))


def test_many_processes_share_the_file(tmp_path):
    path = tmp_path / "s.sqlite"
    run_together(write_many, [(path, start) for start in (0, 30, 60)])
    store = MeasurementStore(path)
    assert store.get("config", map(str, range(120))) == {str(i): measurement(i) for i in range(120)}


def test_forked_child_opens_its_own_connection(tmp_path):
    store = MeasurementStore(tmp_path / "s.sqlite")
    run_together(store.put, [("config", "a", measurement(1))], method="fork")
    assert store.get("config", ["a"]) == {"a": measurement(1)}


def test_killed_writer_loses_nothing_that_was_committed(tmp_path):
    code = (
        "import os, signal, sys; from hf_gateau.store.sqlite import *\n"
        "store = MeasurementStore(sys.argv[1]); store.put('config', 'a', Measurement(1., 2., 3., [4.], [5.]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "s.sqlite"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    assert MeasurementStore(path).get("config", ["a"]) == {"a": Measurement(1.0, 2.0, 3.0, [4.0], [5.0])}


def test_full_disk_is_a_clear_error_and_keeps_what_was_there(tmp_path):
    store = MeasurementStore(tmp_path / "s.sqlite")
    store.put("config", "kept", measurement(1))
    with store._connected() as connection:  # SQLite's own limit raises what a full disk raises
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    big = Measurement(1.0, 1.0, 1.0, [1.0] * 100_000, [1.0])
    with pytest.raises(StoreError, match="is full .* run again to go on"):
        store.put("config", "lost", big)
    assert MeasurementStore(store.path).get("config", ["kept", "lost"]) == {"kept": measurement(1)}


@pytest.mark.parametrize("content", [b"this is no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_corrupt_file_is_a_clear_error_and_is_left_alone(tmp_path, content):
    path = tmp_path / "s.sqlite"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"no intact measurement store.*{STORE_VARIABLE}"):
        MeasurementStore(path)
    assert path.read_bytes() == content


def test_foreign_database_is_refused(tmp_path):
    path = tmp_path / "s.sqlite"
    sqlite3.connect(path).execute("CREATE TABLE measurements (something TEXT)")
    with pytest.raises(StoreError, match="no intact measurement store"):
        MeasurementStore(path).get("config", ["a"])


def test_unwritable_place_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=f"cannot be used .*{STORE_VARIABLE}"):
        MeasurementStore(tmp_path / "file" / "s.sqlite")


def test_where_the_store_lies(tmp_path, monkeypatch):
    monkeypatch.delenv(STORE_VARIABLE, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    assert resolve_store_path(None) == tmp_path / "gateau" / "measurements.sqlite"
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "elsewhere.sqlite"))
    assert resolve_store_path(None) == resolve_store_path(True) == tmp_path / "elsewhere.sqlite"
    monkeypatch.setenv(STORE_VARIABLE, "off")
    assert resolve_store_path(None) is None and resolve_store_path(False) is None
    assert resolve_store_path(str(tmp_path / "named.sqlite")) == tmp_path / "named.sqlite"


def test_description_is_json(tmp_path):
    store = MeasurementStore(tmp_path / "s.sqlite")
    store.describe("config", {"b": 1, "a": [None]})
    with store._connected() as connection:
        (text,) = connection.execute("SELECT description FROM configurations").fetchone()
    assert json.loads(text) == {"a": [None], "b": 1}
