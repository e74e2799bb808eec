"""Measurements that survive a crash: one SQLite file, one row per sample and measuring configuration.

Measured rows are committed, and flushed to the disk, before the next are measured. Many processes of one machine may
write to the file at once (SQLite's write-ahead log); for several machines there is `folder`. Nothing here ever
deletes a row but `prune`, which is asked to.
"""

import json
import os
import sqlite3
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .owners import has_ended
from .schema import NewerError, SchemaError, is_current, migrate, transaction


STORE_VARIABLE = "HF_GATEAU_STORE"
OFF = ("off", "false", "no", "0")
BUSY_TIMEOUT = 120.0  # seconds to wait for another process's commit
KEYS_PER_QUERY = 500
BROKEN = ("malformed", "not a database", "no column", "no such")  # in what SQLite says of a file
KEPT = "What was measured before is kept; run again to go on from there"

TABLES = {
    "measurements": "sample_key",
    "row_values": "content_key",
}  # -> what tells their rows apart in a configuration
# Evidence of tokens, fields of `Measurement` -> `array` type code of lists: f of 32 bits, i of whole numbers; None: one number.
TOKEN_FIELDS = {
    "num_far_segments": None,
    "token_nll_long": "f",
    "token_nll_short": "f",
    "token_nll_no_context": "f",
    "token_nll_far": "f",
    "token_nll_near": "f",
    "token_far_segment": "i",
}
SEGMENT_FIELDS = (
    "segment_ppl",
    "token_nll_far",
    "token_nll_near",
    "token_far_segment",
)  # of passes over segments alone
LISTS = {
    "segment_ppl": "d",
    "segment_attention": "d",
    "segment_heads": "d",
    **TOKEN_FIELDS,
}  # columns of `measurements`; d is of 64 bits
Value = float | list[float]  # of a row in `row_values`: a list is kept in float32
Text = str  # kept there too, of what is no row's, such as what all rows are measured by


@dataclass(frozen=True)
class Measurement:
    """The raw numbers of one sample, everything that needed a model; each is a column of `measurements`.

    Attributes:
        ppl_short, ppl_long, ppl_no_context (`float`): Eq. 1 under the short sibling, under the long model, and under
            the long model without the context.
        segment_ppl (`list[float]`): perplexity of the response from each segment alone (Eq. 3, unnormalised); None where the
            segments are not measured yet, as all that only they tell.
        segment_attention (`list[float]`): mean attention per token of each segment (Eq. 4, unnormalised).
        segment_heads (`list[float]`, *optional*): what retrieval heads see of each segment, in nats (`measuring.heads`). A row
            that has it may lack the two before, which its segments were not measured for.

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
    segment_ppl: list[float] | None = None
    segment_attention: list[float] | None = None
    segment_heads: list[float] | None = None
    num_far_segments: int | None = None
    token_nll_long: list[float] | None = None
    token_nll_short: list[float] | None = None
    token_nll_no_context: list[float] | None = None
    token_nll_far: list[float] | None = None
    token_nll_near: list[float] | None = None
    token_far_segment: list[int] | None = None

    def without_segments(self) -> "Measurement":
        """The same without what only passes over segments tell."""
        return replace(self, **dict.fromkeys(SEGMENT_FIELDS))

    def without_tokens(self) -> "Measurement":
        """The same without the evidence of tokens; what `segment_heads` needs stays."""
        num_far = None if self.segment_heads is None else self.num_far_segments
        return replace(self, **dict.fromkeys(TOKEN_FIELDS) | {"num_far_segments": num_far})


class MeasureError(RuntimeError):
    """A row whose measurement failed; the message is the reason kept in `gateau_error`."""


class StoreError(RuntimeError):
    """The store cannot be read or written. What was committed before stays in the file."""


def newer_store(path: Path, reason: NewerError) -> str:
    """What is said of a store that a newer version made."""
    return f"The measurement store {path} {reason}. Install that one, or name another place in {STORE_VARIABLE}."


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
        names = [field.name for field in fields(Measurement)]
        rows = self._rows(names, "measurements", config_key, sample_keys)
        return {key: Measurement(*map(_unpacked, values, map(LISTS.get, names))) for key, *values in rows}

    def put(self, config_key: str, sample_key: str, measurement: Measurement) -> None:
        """`put_all` of one."""
        self.put_all(config_key, {sample_key: measurement})

    def put_all(self, config_key: str, measurements: Mapping[str, Measurement]) -> None:
        """Commit measurements, by sample key; they are on the disk when this returns. Measured twice, the first one stays."""
        names = [field.name for field in fields(Measurement)]
        packed = ({x: _packed(getattr(found, x), LISTS.get(x)) for x in names} for found in measurements.values())
        self._insert("measurements", config_key, dict(zip(measurements, packed, strict=True)))

    def get_values(self, config_key: str, content_keys: Iterable[str]) -> dict[str, Value | Text]:
        """The values there are of what another scorer than the pair measured, by content key."""
        rows = self._rows(["value"], "row_values", config_key, content_keys)
        return {key: _unpacked(value, "f") for key, value in rows}

    def put_values(self, config_key: str, values: Mapping[str, Value | Text]) -> None:
        """Commit values, by content key; as `put_all`."""
        self._insert("row_values", config_key, {key: {"value": _packed(value, "f")} for key, value in values.items()})

    def _rows(self, columns: list[str], table: str, config_key: str, keys: Iterable[str]) -> Iterator[tuple]:
        """Key and those columns of the rows that a table has of some keys."""
        keys, name = list(dict.fromkeys(keys)), TABLES[table]
        with self._connected() as connection:
            for a in range(0, len(keys), KEYS_PER_QUERY):
                chunk = keys[a : a + KEYS_PER_QUERY]
                among = f"{name} IN ({','.join('?' * len(chunk))})"
                query = f"SELECT {', '.join([name, *columns])} FROM {table} WHERE config_key = ? AND {among}"
                yield from connection.execute(query, [config_key, *chunk])

    def _insert(self, table: str, config_key: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Commit rows of a table by key; of one that is there the count of times alone changes."""
        if not rows:
            return
        about = {"config_key": config_key, "times_measured": 1, "created": time.time()}
        whole = [{TABLES[table]: key, **about, **row} for key, row in rows.items()]
        names = list(whole[0])
        with self._connected() as connection, transaction(connection):
            connection.executemany(
                f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)}) "
                "ON CONFLICT DO UPDATE SET times_measured = times_measured + 1",
                whole,
            )

    def claim(self, config_key: str, keys: Iterable[str], owner: str, seconds: float) -> dict[str, str]:
        """Mark rows as being measured by `owner` for some seconds, all but those that others have marked; returns these, with
        their owners."""
        with self._connected() as connection, _unflushed(connection), transaction(connection):
            connection.execute("DELETE FROM claims WHERE expires < ?", [time.time()])
            others = self._claimed(connection, config_key, owner)
            mine = [[config_key, key, owner, time.time() + seconds] for key in keys if key not in others]
            connection.executemany(
                "REPLACE INTO claims (config_key, row_key, owner, expires) VALUES (?, ?, ?, ?)", mine
            )
            return {key: others[key] for key in keys if key in others}

    def claimed(self, config_key: str, owner: str, seconds: float) -> dict[str, str]:
        """The rows that others than `owner` are measuring, and who."""
        with self._connected() as connection:
            return self._claimed(connection, config_key, owner)

    def _claimed(self, connection: sqlite3.Connection, config_key: str, owner: str) -> dict[str, str]:
        query = "SELECT row_key, owner FROM claims WHERE config_key = ? AND owner != ? AND expires >= ?"
        found = connection.execute(query, [config_key, owner, time.time()]).fetchall()
        ended = {name for name in {name for _, name in found} if has_ended(name)}
        return {key: name for key, name in found if name not in ended}

    def renew(self, config_key: str, owner: str, seconds: float) -> None:
        """Let what `owner` has marked stay so for some seconds from now."""
        with self._connected() as connection, _unflushed(connection):
            connection.execute(
                "UPDATE claims SET expires = ? WHERE config_key = ? AND owner = ?",
                [time.time() + seconds, config_key, owner],
            )

    def release(self, config_key: str, owner: str) -> None:
        """Take the marks of `owner` away."""
        with self._connected() as connection, _unflushed(connection):
            connection.execute("DELETE FROM claims WHERE config_key = ? AND owner = ?", [config_key, owner])

    def describe(self, config_key: str, description: dict) -> None:
        """Keep what a configuration key stands for."""
        with self._connected() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO configurations (config_key, description, created) VALUES (?, ?, ?)",
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
                for table in ("configurations", "claims"):
                    connection.execute(f"DELETE FROM {table} WHERE config_key = ?", [key])
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
        except NewerError as error:
            raise StoreError(newer_store(self.path, error)) from error
        except (sqlite3.Error, OSError, SchemaError) as error:
            raise StoreError(self._explain(error)) from error

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None)  # every statement commits
        try:
            connection.execute("PRAGMA synchronous = FULL")
            current = is_current(connection)  # a file that is no store, or a newer one, is left as it is
            _use_write_ahead_log(connection)
            if not current:
                migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _explain(self, error: Exception) -> str:
        text = str(error)
        if "full" in text or "No space" in text:
            return (
                f"The disk of the measurement store {self.path} is full ({error}). {KEPT} once there is space, or "
                f"move the file and name its new place in {STORE_VARIABLE}."
            )
        if isinstance(error, SchemaError) or any(x in text for x in BROKEN):
            return (
                f"{self.path} is no intact measurement store ({error}). Nothing in it was changed. Move it aside and "
                f"run again, or name another place in {STORE_VARIABLE} ('off' for none)."
            )
        if "locked" in text or "busy" in text:
            return (
                f"The measurement store {self.path} is held by another process ({error}, after {BUSY_TIMEOUT:.0f} s). {KEPT} "
                f"once that one has ended or let go of it, or name another place in {STORE_VARIABLE}."
            )
        return (
            f"The measurement store {self.path} cannot be used ({error}). {KEPT}, with {STORE_VARIABLE} naming a "
            "file on a local disk that you can write to, or 'off'."
        )

    def __reduce__(self):
        return MeasurementStore, (self.path,)


@contextmanager
def _unflushed(connection: sqlite3.Connection) -> Iterator[None]:
    """Commits that need not outlive a crash, and so do not wait for the disk."""
    connection.execute("PRAGMA synchronous = NORMAL")
    try:
        yield
    finally:
        connection.execute("PRAGMA synchronous = FULL")


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """SQLite does not wait by itself here, where several processes open a new file at once."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def _packed(value: Any, kind: str | None) -> Any:
    """A list as its numbers' bytes, of an `array` type code; all else as it is."""
    return array(kind, value).tobytes() if isinstance(value, list) else value


def _unpacked(value: Any, kind: str | None) -> Any:
    if not isinstance(value, bytes):
        return value
    values = array(kind)
    values.frombytes(value)
    return values.tolist()
