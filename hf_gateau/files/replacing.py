"""Outputs that replace earlier ones: whoever is killed at any moment leaves the old or the new, whole and with its record.

A folder NAME goes through these states; `recover_folder` leads each of them to the first or the last:

    NAME (old), NAME.partial (new, whole)
    .NAME.replaced (old), NAME.partial (new)
    .NAME.replaced (old), NAME (new)
    .NAME.removed (what is left of old), NAME (new)

A file and the record beside it are two, so the new record first stands under a name that says which file it is of:
.NAME.SIZE-MODIFIED.gateau.json. Who reads the file takes that one if it is of the file that is there.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


SIDECAR = "gateau.json"


@contextmanager
def written_alone(path: Path) -> Iterator[None]:
    """The right to write an output, for this process alone.

    Raises:
        RuntimeError: another process has it.
    """
    from filelock import FileLock, Timeout

    lock = path.with_name(f".{path.name}.writing")  # not .lock, which who calls may hold
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise RuntimeError(f"Another process is writing {path}; wait for it, or name another --output.") from error


def partial_folder(folder: Path) -> Path:
    """What a folder is called while it is written."""
    return folder.with_name(f"{folder.name}.partial")


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _removed(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.removed")


def replace_folder(folder: Path) -> None:
    """Put the whole `partial_folder` in the place of a folder, for who has it `written_alone`."""
    settle_folder(folder)
    try:
        if folder.is_dir():
            os.replace(folder, _replaced(folder))
        os.replace(partial_folder(folder), folder)
    except BaseException:
        if _replaced(folder).is_dir() and not folder.is_dir():
            os.replace(_replaced(folder), folder)
        raise
    settle_folder(folder)


def settle_folder(folder: Path) -> None:
    """Bring a replacement that was interrupted to its end, for who has the folder `written_alone`."""
    replaced, removed, partial = _replaced(folder), _removed(folder), partial_folder(folder)
    if removed.is_dir():
        shutil.rmtree(removed)
    if not replaced.is_dir():
        return
    if not folder.is_dir():
        os.replace(partial if partial.is_dir() else replaced, folder)
    if replaced.is_dir():
        os.replace(replaced, removed)  # its name means that it is whole, so it must not lose it bit by bit
        shutil.rmtree(removed)


def recover_folder(folder: Path) -> None:
    """The same for who only wants to read; does nothing where no replacement was interrupted, or while one goes on."""
    if _replaced(folder).is_dir() or _removed(folder).is_dir():
        with suppress(RuntimeError), written_alone(folder):
            settle_folder(folder)


def replace_file(partial: Path, path: Path, record: str) -> None:
    """Put a whole file in the place of another, and its record beside it, for who has it `written_alone`.

    Args:
        partial (`Path`): the new file, in the same folder.
        path (`Path`): where to.
        record (`str`): the text of the new record.
    """
    synced(partial)
    pending = _pending(path, partial.stat())
    pending.write_text(record, encoding="utf-8")
    synced(pending)
    os.replace(partial, path)
    os.replace(pending, record_beside(path))
    for stale in _all_pending(path):
        stale.unlink(missing_ok=True)


def record_of(path: Path) -> Path:
    """Where the record of the file that is there stands."""
    pending = _pending(path, path.stat()) if path.is_file() else None
    return pending if pending is not None and pending.is_file() else record_beside(path)


def record_beside(path: Path) -> Path:
    """Where the record of a file stands once the file is in its place."""
    return path.with_name(f"{path.name}.{SIDECAR}")


def _pending(path: Path, stat: os.stat_result) -> Path:
    return path.with_name(f".{path.name}.{stat.st_size}-{stat.st_mtime_ns}.{SIDECAR}")


def _all_pending(path: Path) -> list[Path]:
    return list(path.parent.glob(f".{glob.escape(path.name)}.[0-9]*-[0-9]*.{SIDECAR}"))


def synced(path: Path) -> Path:
    """A file that is on the disk, and not only in the system's memory."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
    return path
