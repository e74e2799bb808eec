"""Stores of other versions: older ones are brought up to date, newer ones and what is no store are refused and left alone."""

import json
import sqlite3
from array import array
from dataclasses import asdict

import pytest

from hf_gateau.cli import main
from hf_gateau.store.folder import MARKER, VERSION, FolderStore, open_store
from hf_gateau.store.schema import MIGRATIONS, NewerError, migrate
from hf_gateau.store.sqlite import STORE_VARIABLE, MeasurementStore, StoreError
from tests.measured import measurement
from tests.processes import run_together


pytestmark = pytest.mark.quick

# As versions wrote them before there were versions
FIRST = """
CREATE TABLE configurations (config_key TEXT PRIMARY KEY, description TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE measurements (
    config_key TEXT NOT NULL, sample_key TEXT NOT NULL,
    ppl_short REAL NOT NULL, ppl_long REAL NOT NULL, ppl_no_context REAL NOT NULL,
    segment_ppl BLOB NOT NULL, segment_attention BLOB NOT NULL,
    times_measured INTEGER NOT NULL DEFAULT 1, created REAL NOT NULL,
    PRIMARY KEY (config_key, sample_key)) WITHOUT ROWID;
"""
SECOND = (
    FIRST
    + """CREATE TABLE row_values (
    config_key TEXT NOT NULL, content_key TEXT NOT NULL, value NOT NULL,
    times_measured INTEGER NOT NULL DEFAULT 1, created REAL NOT NULL,
    PRIMARY KEY (config_key, content_key)) WITHOUT ROWID;
"""
)


def write(path, script, version=0, *, mode="wal"):
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.executescript(script)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.commit()
    connection.close()


def put_old(path):
    numbers = measurement(1)
    blobs = [array("d", values).tobytes() for values in (numbers.segment_ppl, numbers.segment_attention)]
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO configurations VALUES ('old', '{}', 1.0)")
        row = ["old", "a", numbers.ppl_short, numbers.ppl_long, numbers.ppl_no_context, *blobs, 2, 5.0]
        connection.execute("INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.close()


def version_of(path) -> int:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("PRAGMA user_version").fetchone()[0]
    finally:
        connection.close()


@pytest.mark.parametrize("mode", ["wal", "delete"])
@pytest.mark.parametrize("script", [FIRST, SECOND], ids=["first", "second"])
def test_a_store_without_a_version_goes_on(script, mode, tmp_path):
    path = tmp_path / "s.sqlite"
    write(path, script, mode=mode)
    put_old(path)
    store = MeasurementStore(path)
    assert store.get("old", ["a"]) == {"a": measurement(1)} and version_of(path) == len(MIGRATIONS)
    store.put("old", "b", measurement(2))
    store.describe("new", {})
    store.put_values("new", {"x": 0.1, "y": 2.5})
    store.put_values("new", {"x": 9.0})
    again = MeasurementStore(path)
    assert again.get("old", ["a", "b"]) == {"a": measurement(1), "b": measurement(2)}
    assert again.get_values("new", ["x", "y", "z"]) == {"x": 0.1, "y": 2.5}  # the first stays
    sizes = {found["config_key"]: (found["num_rows"], found["num_measured"]) for found in store.configurations()}
    assert sizes == {"old": (2, 3), "new": (2, 3)} and store.prune(["new"]) == 2
    assert store.get("old", ["a"]) and store.get_values("new", ["x"]) == {}


def migrate_file(path, migrations):
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        migrate(connection, migrations)
        return [name for name, *_ in connection.execute("SELECT name FROM pragma_table_info('measurements')")]
    finally:
        connection.close()


COLUMN = ("ALTER TABLE measurements ADD COLUMN token_nll BLOB",)


def test_a_column_is_one_entry(tmp_path):
    path = tmp_path / "s.sqlite"
    write(path, FIRST)
    put_old(path)
    assert "token_nll" in migrate_file(path, (*MIGRATIONS, COLUMN)) and version_of(path) == len(MIGRATIONS) + 1
    assert "token_nll" in migrate_file(path, (*MIGRATIONS, COLUMN))  # not a second time
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT sample_key, token_nll FROM measurements").fetchall() == [("a", None)]
    connection.close()


def test_a_migration_that_fails_changes_nothing(tmp_path):
    path = tmp_path / "s.sqlite"
    write(path, FIRST)
    put_old(path)

    def fails(connection):
        connection.execute("DELETE FROM measurements")
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(sqlite3.OperationalError):
        migrate_file(path, (*MIGRATIONS, COLUMN, fails))
    assert version_of(path) == 0 and MeasurementStore(path).get("old", ["a"]) == {"a": measurement(1)}


def open_one(path):
    MeasurementStore(path).put("old", "b", measurement(2))


def test_many_processes_migrate_one_store(tmp_path):
    path = tmp_path / "s.sqlite"
    write(path, FIRST)
    put_old(path)
    run_together(open_one, [(path,)] * 4, method="fork")
    assert MeasurementStore(path).get("old", ["a", "b"]) == {"a": measurement(1), "b": measurement(2)}


OTHERS = {
    "another program's": "CREATE TABLE notes (text TEXT)",
    "another measurements": "CREATE TABLE measurements (something TEXT)",
    "no times_measured": FIRST.replace("times_measured INTEGER NOT NULL DEFAULT 1, ", ""),
    "a column too many": FIRST.replace("created REAL NOT NULL,\n", "created REAL NOT NULL, mine REAL NOT NULL,\n"),
    "no key": FIRST.replace(",\n    PRIMARY KEY (config_key, sample_key)) WITHOUT ROWID", ")"),
}


@pytest.mark.parametrize("script", OTHERS.values(), ids=OTHERS)
def test_other_tables_are_refused_when_the_file_is_opened_and_left_alone(script, tmp_path):
    path = tmp_path / "s.sqlite"
    write(path, script, mode="delete")
    before = path.read_bytes()
    with pytest.raises(
        StoreError, match=f"is no intact measurement store .*Nothing in it was changed.*{STORE_VARIABLE}"
    ):
        MeasurementStore(path)
    assert path.read_bytes() == before and [x.name for x in tmp_path.iterdir()] == ["s.sqlite"]


def test_a_store_that_lacks_a_table_of_its_version_is_told(tmp_path):
    path = tmp_path / "s.sqlite"
    write(path, FIRST, version=len(MIGRATIONS))
    with pytest.raises(StoreError, match="is no intact measurement store .no such table"):
        MeasurementStore(path).put_values("config", {"a": 1.0})


def test_a_newer_store_is_refused_and_left_alone(tmp_path, capsys):
    path = tmp_path / "s.sqlite"
    write(path, SECOND, version=99, mode="delete")
    before = path.read_bytes()
    told = f"has version 99, and this hf_gateau reads up to {len(MIGRATIONS)}: a newer one made it. Install that one, or name"
    with pytest.raises(StoreError, match=told):
        MeasurementStore(path)
    assert main(["store", "--store", str(path)]) == 2
    assert "has version" in capsys.readouterr().err.splitlines()[0]
    assert path.read_bytes() == before
    with pytest.raises(NewerError):  # where another process was faster
        migrate_file(path, MIGRATIONS)


def test_a_truncated_store_is_told(tmp_path):
    path = tmp_path / "s.sqlite"
    store = MeasurementStore(path)
    for i in range(200):
        store.put("config", str(i), measurement(i))
    with store._connected() as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
    for size in (path.stat().st_size // 2, 5000, 50):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(StoreError, match=f"is no intact measurement store.*{STORE_VARIABLE}"):
            MeasurementStore(path).get("config", map(str, range(200)))


def test_a_store_that_another_process_holds_is_told(tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite"
    store = MeasurementStore(path)
    monkeypatch.setattr("hf_gateau.store.sqlite.BUSY_TIMEOUT", 0.1)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="is held by another process .* once that one has ended"):
        MeasurementStore(path).put("config", "a", measurement(1))
    holder.execute("ROLLBACK")
    holder.close()
    assert store.get("config", ["a"]) == {}


# Folders


def marked(path, text):
    FolderStore(path).put("config", "a", measurement(1))
    (path / MARKER).write_text(text)
    return path


def test_a_folder_of_a_newer_version_is_refused(tmp_path, capsys):
    path = marked(tmp_path / "s", json.dumps({"version": VERSION + 1}))
    with pytest.raises(
        StoreError, match=f"has version {VERSION + 1}, and this hf_gateau reads up to {VERSION}: a newer one"
    ):
        open_store(path)
    assert main(["store", "--store", f"{path}/"]) == 2
    assert "has version" in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": "new"}'])
def test_a_folder_whose_version_cannot_be_read_is_told_and_can_be_mended(text, tmp_path):
    path = marked(tmp_path / "s", text)
    with pytest.raises(StoreError, match='does not say of which version .* Write {"version": 1} into it'):
        FolderStore(path)
    (path / MARKER).write_text('{"version": 1}')
    assert FolderStore(path).get("config", ["a"]) == {"a": measurement(1)}


def test_a_folder_whose_marker_is_being_written_opens(tmp_path):
    assert FolderStore(marked(tmp_path / "s", "")).get("config", ["a"]) == {"a": measurement(1)}
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / f".{MARKER}-0123").write_text("{")  # another process is about to
    FolderStore(tmp_path / "t")


def test_lines_with_more_or_fewer_fields_than_today_are_read(tmp_path, monkeypatch):
    """More: a newer version's, of which nothing else changed. Fewer: an older one's, whose field has a default."""
    from dataclasses import dataclass

    from hf_gateau.store import folder
    from hf_gateau.store.sqlite import Measurement

    @dataclass(frozen=True)
    class Wider(Measurement):
        token_nll: list[float] | None = None

    path = tmp_path / "s"
    FolderStore(path).put("config", "a", measurement(1))
    with monkeypatch.context() as patch:
        patch.setattr(folder, "Measurement", Wider)
        patch.setattr(folder, "FIELDS", Wider.__dataclass_fields__)
        store = FolderStore(path)
        assert store.get("config", ["a"]) == {"a": Wider(**asdict(measurement(1)))}
        store.put("config", "b", Wider(**asdict(measurement(2)), token_nll=[0.5]))
        assert store.get("config", ["b"])["b"].token_nll == [0.5]
    assert FolderStore(path).get("config", ["a", "b"]) == {"a": measurement(1), "b": measurement(2)}
