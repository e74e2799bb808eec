"""An output must not be what is read: it would replace it, or be read with it the next time."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from .replacing import record_beside
from .sidecar import folder_of_pattern, is_pattern


IS, INSIDE, AROUND = "is", "is in", "is a folder around"  # how an output meets an input
EXAMPLE_SHARD = "train-00000-of-00001.parquet"  # what a folder of rows holds


def check_apart(
    output: str | os.PathLike | None,
    *inputs: str | os.PathLike | None,
    name: str = "--output",
    around: bool = False,
    inside: bool = False,
) -> None:
    """Refuse an output that is an input, its record, a file or folder in it, or a folder that it is in. Symbolic and hard links
    and relative paths are the files that they lead to.

    Args:
        output: file or folder that is to be written; None for none.
        inputs: files, folders or patterns that are read. A Hub id is in nobody's way, but where the output would be taken for it.
        name (`str`): of the setting that names the output.
        around (`bool`): whether the output may be a folder that an input is in; it may where files are added to the folder, and
            not where the folder is replaced.
        inside (`bool`): whether it may be in an input; it may where the input is a model.

    Raises:
        ValueError: they are not apart.
    """
    if output is None:
        return
    place = _real(output)
    for given in filter(None, map(str, inputs)):
        if is_pattern(given):
            clash = _clash_of_pattern(place, given)
        else:
            path = _real(given)
            clash = _clash(place, path) if path.exists() else IS if path == place else None
        if clash is not None and not (clash == AROUND and around) and not (clash == INSIDE and inside):
            raise ValueError(f"{name} {str(output)!r} {clash} {given!r}, which is read here; name another place.")


def _real(path: str | os.PathLike) -> Path:
    return Path(os.path.realpath(os.path.expanduser(path)))


def _clash(place: Path, given: Path) -> str | None:
    """How an output meets a file or folder; None where it does not."""
    if _are_same(place, given):
        return IS
    if given.is_dir() and place.is_relative_to(given):
        return INSIDE
    if given.is_relative_to(place):
        return AROUND
    if given.is_dir():
        return "is linked to a file of" if any(_are_same(place, x) for x in _files(given)) else None
    beside = [(place, record_beside(given)), (record_beside(place), given)]
    return "has the record of" if any(_are_same(x, y) for x, y in beside) else None


def _clash_of_pattern(place: Path, pattern: str) -> str | None:
    """The same of a pattern: of what it stands for now, and of what it would stand for."""
    files = (_real(x) for x in glob.iglob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(x))
    if clash := next(filter(None, (_clash(place, file) for file in files)), None):
        return AROUND if clash == AROUND else "meets a file of"
    base = folder_of_pattern(pattern)
    parts = Path(pattern).expanduser().absolute().relative_to(base).parts
    for written in (place, place / EXAMPLE_SHARD):
        if written.is_relative_to(_real(base)) and _matches(written.relative_to(_real(base)).parts, parts):
            return "matches"
    return AROUND if _real(base).is_relative_to(place) else None


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path is of a pattern, in which `**` is any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _are_same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def _files(folder: Path) -> Iterator[Path]:
    return (x for x in folder.rglob("*") if x.is_file())
