"""Measurements of many machines: a folder on a disk that they share, in which every process writes files of its own.

    FOLDER/gateau_store.json                     says that the folder is a store, and of which version
    FOLDER/<config_key>/configuration.json       what the key stands for
    FOLDER/<config_key>/<host>-<pid>-<x>.jsonl   one line a measured row, flushed to the disk before the next is measured
    FOLDER/<config_key>/<host>-<pid>-<x>.claims  the rows that the process is measuring; its time tells whether it still does

No file has two writers, so no lock is needed, which shared disks rarely keep. A line that a crash tore is passed over. A field
that lines of older versions lack has its default, so a new field of `Measurement` with one needs nothing here; `VERSION` is
raised when older versions would misread the folder.
"""

import base64
import json
import os
import shutil
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from uuid import uuid4

from .owners import has_ended, new_name
from .schema import NewerError
from .sqlite import (
    KEPT,
    STORE_VARIABLE,
    TOKEN_FIELDS,
    Measurement,
    MeasurementStore,
    StoreError,
    Text,
    Value,
    newer_store,
    resolve_store_path,
)


VERSION = 1
FIELDS = Measurement.__dataclass_fields__
MARKER, CONFIGURATION, CLAIMS = "gateau_store.json", "configuration.json", ".claims"


@dataclass
class _Row:
    """Where a row's measurement stands, and how often it was measured."""

    path: Path
    offset: int  # bytes
    created: float
    times_measured: int = 1


@dataclass
class _Known:
    """What has been read of one configuration: how far each file, and where the rows are."""

    offsets: dict[Path, int] = field(default_factory=dict)
    rows: dict[str, _Row] = field(default_factory=dict)


class FolderStore:
    """Measurements in a folder, for processes on several machines; the same methods as `MeasurementStore`.

    Args:
        path: the folder; made when needed.

    Raises:
        StoreError: the folder cannot be written to, or holds something else.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._known: dict[str, _Known] = {}
        self._name, self._process = None, None
        with self._explained():
            self._mark()

    def get(self, config_key: str, sample_keys: Iterable[str]) -> dict[str, Measurement]:
        """The measurements there are, by sample key; reads only what was written since the last call."""
        return self._get(config_key, sample_keys)

    def get_values(self, config_key: str, content_keys: Iterable[str]) -> dict[str, Value | Text]:
        """The values there are of what another scorer than the pair measured, by content key."""
        return self._get(config_key, content_keys)

    def _get(self, config_key: str, keys: Iterable[str]) -> dict:
        keys = dict.fromkeys(keys)
        with self._explained():
            rows = self._refresh(config_key).rows
            return dict(_read_rows({key: rows[key] for key in keys if key in rows}))

    def put(self, config_key: str, sample_key: str, measurement: Measurement) -> None:
        """`put_all` of one."""
        self.put_all(config_key, {sample_key: measurement})

    def put_all(self, config_key: str, measurements: Mapping[str, Measurement]) -> None:
        """Append measurements, by sample key; they are on the disk when this returns. Measured twice, the first one stays."""
        self._append(config_key, {key: _line(found) for key, found in measurements.items()})

    def put_values(self, config_key: str, values: Mapping[str, Value | Text]) -> None:
        """Likewise values, by content key."""
        self._append(config_key, {key: {"value": value} for key, value in values.items()})

    def _append(self, config_key: str, found: dict[str, dict]) -> None:
        created = time.time()
        rows = [{"key": key, "created": created, **row} for key, row in found.items()]
        lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        with self._explained():
            folder = self.path / config_key
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / self._own_name()
            is_new = not path.exists()
            with path.open("ab+", buffering=0) as stream:  # opened and closed each time: so NFS shows it to others
                if _is_torn(stream):
                    lines = b"\n" + lines
                if stream.write(lines) != len(lines):
                    raise OSError(f"no space: {path} took only a part of a row")
                os.fsync(stream.fileno())
            if is_new:
                _flush_folder(folder)

    def claim(self, config_key: str, keys: Iterable[str], owner: str, seconds: float) -> dict[str, str]:
        """See `MeasurementStore.claim`. Disks that show files late may let two processes measure one row; one row counts."""
        keys = set(keys)
        with self._explained():
            path = self.path / config_key / f"{owner}{CLAIMS}"
            others = self._claimed(config_key, owner, seconds)
            _write_claims(path, keys - others.keys())
            # Who claimed meanwhile sees this claim too, or is seen here; the first by name keeps the row.
            others |= {k: name for k, name in self._claimed(config_key, owner, seconds).items() if name < owner}
            _write_claims(path, keys - others.keys())
        return {key: others[key] for key in keys & others.keys()}

    def claimed(self, config_key: str, owner: str, seconds: float) -> dict[str, str]:
        """See `MeasurementStore.claimed`."""
        with self._explained():
            return self._claimed(config_key, owner, seconds)

    def _claimed(self, config_key: str, owner: str, seconds: float) -> dict[str, str]:
        """A machine's clock may be wrong, so the disk's is asked: by it claims of more than some seconds ago are void."""
        folder, found = self.path / config_key, {}
        others = [path for path in folder.glob(f"*{CLAIMS}") if path.stem != owner and not has_ended(path.stem)]
        if others:
            now = _time_of_disk(folder / f".{owner}.now")
            for path in others:
                with suppress(OSError, ValueError):  # gone by now, or being replaced
                    if now - path.stat().st_mtime <= seconds:
                        found |= dict.fromkeys(json.loads(path.read_text()), path.stem)
        return found

    def renew(self, config_key: str, owner: str, seconds: float) -> None:
        """See `MeasurementStore.renew`."""
        with self._explained(), suppress(FileNotFoundError):
            os.utime(self.path / config_key / f"{owner}{CLAIMS}")

    def release(self, config_key: str, owner: str) -> None:
        """See `MeasurementStore.release`."""
        with self._explained():
            (self.path / config_key / f"{owner}{CLAIMS}").unlink(missing_ok=True)

    def describe(self, config_key: str, description: dict) -> None:
        """Keep what a configuration key stands for."""
        path = self.path / config_key / CONFIGURATION
        with self._explained():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{self._own_name()}")
                with partial.open("w") as stream:
                    json.dump({"description": description, "created": time.time()}, stream, sort_keys=True)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(partial, path)

    def configurations(self) -> list[dict]:
        """One dict a configuration: `config_key`, `description`, `num_rows`, `num_measured` (rows measured twice count
        twice), `created` and `last_measured` (seconds since 1970)."""
        found = []
        with self._explained():
            for path in self.path.glob(f"[!.]*/{CONFIGURATION}"):
                rows = self._refresh(path.parent.name).rows.values()
                about = json.loads(path.read_text())
                sizes = {"num_rows": len(rows), "num_measured": sum(row.times_measured for row in rows)}
                last = max((row.created for row in rows), default=about["created"])
                found.append({"config_key": path.parent.name, **about, **sizes, "last_measured": last})
        return sorted(found, key=lambda configuration: configuration["last_measured"])

    def prune(self, config_keys: Iterable[str]) -> int:
        """Delete the measurements of some configurations and give the space back; returns how many rows went."""
        deleted = 0
        with self._explained():
            for key in config_keys:
                deleted += len(self._refresh(key).rows)
                self._known.pop(key)
                if (self.path / key).is_dir():
                    doomed = self.path / f".{key}-{uuid4().hex[:8]}"
                    os.replace(self.path / key, doomed)  # gone for everybody at once
                    shutil.rmtree(doomed)
        return deleted

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        with self._explained():
            return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    def _mark(self) -> None:
        """Mark the folder as a store; refuse one that holds something else."""
        self.path.mkdir(parents=True, exist_ok=True)
        marker = self.path / MARKER
        if marker.exists():
            self._check_version(marker)
            return
        others = sorted(path.name for path in self.path.iterdir() if not path.name.startswith(f".{MARKER}"))
        # What another process has made since then, it made after the marker: listed now, the folder shows it.
        if others and MARKER not in os.listdir(self.path):
            raise StoreError(
                f"{self.path} is a folder that holds something else ({', '.join(others[:3])}), no measurement store. Name a "
                f"new or empty folder, or a file, in {STORE_VARIABLE} or with --store."
            )
        partial = marker.with_name(f".{MARKER}-{uuid4().hex[:8]}")
        partial.write_text(json.dumps({"what": "measurements of hf_gateau", "version": VERSION}))
        os.replace(partial, marker)  # whole at once; another process may have been faster, and wrote the same

    def _check_version(self, marker: Path) -> None:
        text = marker.read_text()
        try:
            version = json.loads(text)["version"] if text else VERSION  # older versions wrote it bit by bit
            is_newer = version > VERSION
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{marker} does not say of which version the measurement store is ({text[:80]!r}). Write "
                f'{{"version": {VERSION}}} into it, or name another place in {STORE_VARIABLE}.'
            ) from error
        if is_newer:
            raise StoreError(newer_store(self.path, NewerError(version, VERSION)))

    def _own_name(self) -> str:
        """Of the file that no other process writes to, nor this one's parent before a fork."""
        if self._process != os.getpid():
            self._name, self._process = f"{new_name()}.jsonl", os.getpid()
        return self._name

    def _refresh(self, config_key: str) -> _Known:
        """Read what the files have gained since the last time; from the start where one is gone (pruned)."""
        folder = self.path / config_key
        entries = list(os.scandir(folder)) if folder.is_dir() else []
        sizes = {Path(x.path): x.stat().st_size for x in entries if x.name.endswith(".jsonl") and x.name[0] != "."}
        known = self._known.get(config_key)
        if known is None or known.offsets.keys() - sizes.keys():
            known = self._known[config_key] = _Known()
        for path in sorted(sizes):
            if sizes[path] > known.offsets.get(path, 0):
                _read_new_lines(known, path)
        return known

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the disk, made plain."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"The measurement store in the folder {self.path} cannot be used ({error}). {KEPT}, once there is space and "
                f"you can write there, or with {STORE_VARIABLE} naming another folder."
            ) from error

    def __reduce__(self):
        return FolderStore, (self.path,)


def open_store(path: str | os.PathLike) -> MeasurementStore | FolderStore:
    """The store at a path that `resolve_store_path` gave: a folder where there is one, else a SQLite file.

    Raises:
        StoreError: it cannot be opened, or is no store.
    """
    return FolderStore(path) if Path(path).is_dir() else MeasurementStore(path)


def known_description(config_key: str) -> dict | None:
    """What a configuration key stands for, as far as the store of this machine knows; see `GateauScorer.describe`."""
    path = resolve_store_path(None)
    if path is None or not path.exists():
        return None
    for known in open_store(path).configurations():
        if known["config_key"] == config_key:
            return {"config_key": config_key, **known["description"]}
    return None


def known_measuring(ranking: dict | None) -> dict | None:
    """The models that measured rows, by their ranking's record; None where several did, or nothing is known of them."""
    keys = (ranking or {}).get("measuring_configs", [])
    return known_description(keys[0]) if len(keys) == 1 else None


def _read_new_lines(known: _Known, path: Path) -> None:
    offset = known.offsets.get(path, 0)
    with path.open("rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                break  # being written, or torn at the end
            if (row := _parse(line)) is not None:
                _count(known.rows, row["key"], _Row(path, offset, row["created"]))
            offset += len(line)
    known.offsets[path] = offset


def _count(rows: dict[str, _Row], key: str, row: _Row) -> None:
    """The first of a row's measurements stays; every reader must find the same one, whatever it read first."""
    before = rows.setdefault(key, row)
    if before is not row:
        row.times_measured = before.times_measured = before.times_measured + row.times_measured
        rows[key] = min(before, row, key=lambda x: (x.created, x.path))


def _read_rows(rows: dict[str, _Row]) -> Iterator[tuple[str, Measurement | Value | Text]]:
    in_order = sorted(rows.items(), key=lambda item: (item[1].path, item[1].offset))
    for path, group in groupby(in_order, key=lambda item: item[1].path):
        with path.open("rb") as stream:
            for key, row in group:
                stream.seek(row.offset)
                yield key, _found(json.loads(stream.readline()))


def _parse(line: bytes) -> dict | None:
    """The row in a line; None where a crash tore it: no part of an object is an object."""
    try:
        row = json.loads(line)
        return row if _found(row) is not None and {"key", "created"} <= row.keys() else None
    except (ValueError, TypeError, KeyError):
        return None


def _line(measurement: Measurement) -> dict:
    """A measurement for a line, its evidence of tokens as base64 of its bytes, a quarter of what numbers in digits take."""
    line = asdict(measurement)
    for name, kind in TOKEN_FIELDS.items():
        if kind is not None and line[name] is not None:
            line[name] = base64.b64encode(array(kind, line[name]).tobytes()).decode()
    return {name: value for name, value in line.items() if value is not None}


def _found(row: dict) -> Measurement | Value | Text:
    """What a line holds: a value, or a measurement."""
    if "value" in row:
        return row["value"]
    found = {name: row[name] for name in FIELDS if name in row}
    for name, kind in TOKEN_FIELDS.items():
        if kind is not None and name in found:
            found[name] = array(kind, base64.b64decode(found[name])).tolist()
    return Measurement(**found)


def _write_claims(path: Path, keys: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(sorted(keys)))
    os.replace(partial, path)


def _time_of_disk(probe: Path) -> float:
    """What time it is (seconds since 1970) by the clock that a disk dates files with."""
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _is_torn(stream) -> bool:
    """Whether a file's last line lacks its end, as after a full disk."""
    if not stream.seek(0, os.SEEK_END):
        return False
    stream.seek(-1, os.SEEK_END)
    return stream.read(1) != b"\n"


def _flush_folder(folder: Path) -> None:
    """A new file's name outlives a crash too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
