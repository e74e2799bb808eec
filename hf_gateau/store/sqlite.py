"""Measurements that survive a crash: one SQLite file, one row per sample and measuring configuration.

Measured rows are committed, and flushed to the disk, before the next are measured. Many processes of one machine may
write to the file at once (SQLite's write-ahead log); for several machines there is `folder_store`. Nothing here ever
deletes a row but `prune`, which is asked to.
"""

import json
import os
import sqlite3
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path


STORE_VARIABLE = "HF_GATEAU_STORE"
OFF = ("off", "false", "no", "0")
BUSY_TIMEOUT = 120.0  # seconds to wait for another process's commit
KEYS_PER_QUERY = 500
KEPT = "What was measured before is kept; run again to go on from there"

SCHEMA = """
CREATE TABLE IF NOT EXISTS configurations (config_key TEXT PRIMARY KEY, description TEXT NOT NULL, created REAL NOT NULL)
WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS measurements (
    config_key TEXT NOT NULL, sample_key TEXT NOT NULL,
    ppl_short REAL NOT NULL, ppl_long REAL NOT NULL, ppl_no_context REAL NOT NULL,
    segment_ppl BLOB NOT NULL, segment_attention BLOB NOT NULL,
    times_measured INTEGER NOT NULL DEFAULT 1, created REAL NOT NULL,
    PRIMARY KEY (config_key, sample_key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS row_values (
    config_key TEXT NOT NULL, content_key TEXT NOT NULL, value NOT NULL,
    times_measured INTEGER NOT NULL DEFAULT 1, created REAL NOT NULL,
    PRIMARY KEY (config_key, content_key)) WITHOUT ROWID;
"""
TABLES = ("measurements", "row_values")
Value = float | list[float]  # of a row in `row_values`: a list is kept in float32


@dataclass(frozen=True)
class Measurement:
    """The raw numbers of one sample, everything that needed a model.

    Attributes:
        ppl_short, ppl_long, ppl_no_context (`float`): Eq. 1 under the short sibling, under the long model, and under
            the long model without the context.
        segment_ppl (`list[float]`): perplexity of the response from each segment alone (Eq. 3, unnormalised).
        segment_attention (`list[float]`): mean attention per token of each segment (Eq. 4, unnormalised).

    Evidence of tokens, None where it was not kept; R response tokens, numbers as float32, in nats:
        num_far_segments (`int`): the first segments, which end before all that the short sibling sees of the context.
        token_nll_long, token_nll_short, token_nll_no_context (`list[float]`, R): negative log-likelihoods whose means are the
            logarithms of the perplexities above.
        token_nll_far, token_nll_near (`list[float]`, R): the lowest over far and over near segments alone; empty without one.
        token_far_segment (`list[int]`, R): the far segment that it is lowest for; empty without one.
    """

    ppl_short: float
    ppl_long: float
    ppl_no_context: float
    segment_ppl: list[float]
    segment_attention: list[float]
    num_far_segments: int | None = None
    token_nll_long: list[float] | None = None
    token_nll_short: list[float] | None = None
    token_nll_no_context: list[float] | None = None
    token_nll_far: list[float] | None = None
    token_nll_near: list[float] | None = None
    token_far_segment: list[int] | None = None

    @property
    def has_tokens(self) -> bool:
        """Whether the evidence of tokens was kept."""
        return self.token_nll_long is not None

    def without_tokens(self) -> "Measurement":
        """The same without the evidence of tokens."""
        return replace(self, **dict.fromkeys(TOKEN_FIELDS))


# Fields of evidence -> the code of `array` that they are kept in; None: one number.
TOKEN_FIELDS = {
    "num_far_segments": None,
    "token_nll_long": "f",
    "token_nll_short": "f",
    "token_nll_no_context": "f",
    "token_nll_far": "f",
    "token_nll_near": "f",
    "token_far_segment": "i",
}


class MeasureError(RuntimeError):
    """A row whose measurement failed; the message is the reason kept in `gateau_error`."""


class StoreError(RuntimeError):
    """The store cannot be read or written. What was committed before stays in the file."""


def default_store_path() -> Path | None:
    """`$HF_GATEAU_STORE` ('off' for none), else `gateau/measurements.sqlite` under `HF_HOME`."""
    if value := os.environ.get(STORE_VARIABLE):
        return resolve_store_path(value)
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "gateau" / "measurements.sqlite"


def resolve_store_path(store: str | os.PathLike | bool | None) -> Path | None:
    """The path of a `store` setting; None where it says that there is to be no store.

    A path that ends in a slash is a folder, for many machines (see `FolderStore`); it is made here.

    Raises:
        StoreError: the folder cannot be made.
    """
    if store is None or store is True:
        return default_store_path()
    if store is False or str(store).lower() in OFF:
        return None
    path = Path(store).expanduser()
    if str(store).endswith("/"):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"The folder {path} of the measurement store cannot be made ({error}).") from error
    return path


class MeasurementStore:
    """Measurements in one SQLite file.

    Args:
        path: the file; it and its folder are made when needed.

    Raises:
        StoreError: the file cannot be opened or is no store.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._connection, self._process = None, None
        with self._connected():
            pass

    def get(self, config_key: str, sample_keys: Iterable[str]) -> dict[str, Measurement]:
        """The measurements there are, by sample key."""
        columns = "sample_key, ppl_short, ppl_long, ppl_no_context, segment_ppl, segment_attention"
        rows = self._rows(columns, "measurements", config_key, sample_keys)
        return {key: Measurement(*ppl, _floats(a), _floats(b)) for key, *ppl, a, b in rows}

    def put(self, config_key: str, sample_key: str, measurement: Measurement) -> None:
        """`put_all` of one."""
        self.put_all(config_key, {sample_key: measurement})

    def put_all(self, config_key: str, measurements: Mapping[str, Measurement]) -> None:
        """Commit measurements, by sample key; they are on the disk when this returns. Measured twice, the first one stays."""
        rows = ([key, *map(_value, vars(found).values())] for key, found in measurements.items())
        self._insert("measurements", config_key, rows)

    def get_values(self, config_key: str, content_keys: Iterable[str]) -> dict[str, Value]:
        """The values there are of what another scorer than the pair measured, by content key."""
        rows = self._rows("content_key, value", "row_values", config_key, content_keys)
        return {key: _floats(value, "f") if isinstance(value, bytes) else value for key, value in rows}

    def put_values(self, config_key: str, values: Mapping[str, Value]) -> None:
        """Commit values, by content key; as `put_all`."""
        self._insert("row_values", config_key, ([key, _value(value, "f")] for key, value in values.items()))

    def _rows(self, columns: str, table: str, config_key: str, keys: Iterable[str]) -> Iterator[tuple]:
        """Those columns, the first of which is the key, of the rows that a table has of some keys."""
        keys = list(dict.fromkeys(keys))
        with self._connected() as connection:
            for a in range(0, len(keys), KEYS_PER_QUERY):
                chunk = keys[a : a + KEYS_PER_QUERY]
                among = f"{columns.partition(',')[0]} IN ({','.join('?' * len(chunk))})"
                query = f"SELECT {columns} FROM {table} WHERE config_key = ? AND {among}"
                yield from connection.execute(query, [config_key, *chunk])

    def _insert(self, table: str, config_key: str, rows: Iterable[list]) -> None:
        """Commit rows of a table, each a key and its values; of one that is there the count of times alone changes."""
        created = time.time()
        whole = [[config_key, *row, 1, created] for row in rows]
        if not whole:
            return
        with self._connected() as connection, _transaction(connection):
            connection.executemany(
                f"INSERT INTO {table} VALUES ({', '.join('?' * len(whole[0]))}) "
                "ON CONFLICT DO UPDATE SET times_measured = times_measured + 1",
                whole,
            )

    def describe(self, config_key: str, description: dict) -> None:
        """Keep what a configuration key stands for."""
        with self._connected() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO configurations VALUES (?, ?, ?)",
                [config_key, json.dumps(description, sort_keys=True), time.time()],
            )

    def configurations(self) -> list[dict]:
        """One dict a configuration: `config_key`, `description`, `num_rows`, `num_measured` (rows measured twice count
        twice), `created` and `last_measured` (seconds since 1970)."""
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT c.config_key, description, COUNT(times_measured), COALESCE(SUM(times_measured), 0), c.created, "
                "COALESCE(MAX(m.created), c.created) FROM configurations c LEFT JOIN ("
                + " UNION ALL ".join(f"SELECT config_key, times_measured, created FROM {table}" for table in TABLES)
                + ") m USING (config_key) GROUP BY c.config_key ORDER BY 6"
            ).fetchall()
        names = ("config_key", "description", "num_rows", "num_measured", "created", "last_measured")
        return [dict(zip(names, [row[0], json.loads(row[1]), *row[2:]], strict=True)) for row in rows]

    def prune(self, config_keys: Iterable[str]) -> int:
        """Delete the measurements of some configurations and give the space back; returns how many rows went."""
        keys = list(config_keys)
        with self._connected() as connection:
            deleted = 0
            for key in keys:
                for table in TABLES:
                    deleted += connection.execute(f"DELETE FROM {table} WHERE config_key = ?", [key]).rowcount
                connection.execute("DELETE FROM configurations WHERE config_key = ?", [key])
            connection.execute("VACUUM")
        return deleted

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """The process's own connection (SQLite's do not survive a fork), with SQLite's errors made plain."""
        try:
            if self._process != os.getpid():
                self._inherited = self._connection  # never closed here: it is the parent's
                self._connection, self._process = self._open(), os.getpid()
            yield self._connection
        except (sqlite3.Error, OSError) as error:
            raise StoreError(self._explain(error)) from error

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None)  # every statement commits
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(SCHEMA)
        return connection

    def _explain(self, error: Exception) -> str:
        text = str(error)
        if "full" in text or "No space" in text:
            return (
                f"The disk of the measurement store {self.path} is full ({error}). {KEPT} once there is space, or "
                f"move the file and name its new place in {STORE_VARIABLE}."
            )
        if "malformed" in text or "not a database" in text or "no column" in text or "no such" in text:
            return (
                f"{self.path} is no intact measurement store ({error}). Nothing in it was changed. Move it aside and "
                f"run again, or name another place in {STORE_VARIABLE} ('off' for none)."
            )
        return (
            f"The measurement store {self.path} cannot be used ({error}). {KEPT}, with {STORE_VARIABLE} naming a "
            "file on a local disk that you can write to, or 'off'."
        )

    def __reduce__(self):
        return MeasurementStore, (self.path,)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _value(value: float | list[float], kind: str = "d") -> float | bytes:
    return array(kind, value).tobytes() if isinstance(value, list) else value


def _floats(blob: bytes, kind: str = "d") -> list[float]:
    values = array(kind)
    values.frombytes(blob)
    return values.tolist()
