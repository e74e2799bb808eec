"""Which files a folder or a pattern stands for: those of one kind that hold the data; what else lies there is told, or refused.

Our own outputs among the data are no data: they are left out, or the next run would read its own rows again. Where a folder has
nothing else they are what is read, as long as they are parts of one whole.
"""

from __future__ import annotations

import glob
import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from .csv_files import header_of
from .json_records import UNREADABLE, UNREADABLE_REASON, read_records
from .replacing import SIDECAR, record_of


logger = logging.getLogger(__name__)

JSON_SUFFIXES = tuple(f".{kind}{packed}" for kind in ("jsonl", "json", "ndjson") for packed in ("", ".gz", ".zst"))
PARQUET_SUFFIX = ".parquet"
# What one reader reads -> how its files end
KINDS = {
    "json": JSON_SUFFIXES,
    "parquet": (PARQUET_SUFFIX,),
    "csv": (".csv", ".csv.gz"),
    "tsv": (".tsv", ".tsv.gz"),
    "arrow": (".arrow",),
}
SUFFIXES = tuple(suffix for suffixes in KINDS.values() for suffix in suffixes)
# What files that are no text begin with -> what they are, and how they end where they are read
SIGNATURES = {
    b"PAR1": ("Parquet", PARQUET_SUFFIX),
    b"ARROW1": ("Arrow", ".arrow"),
    b"\x1f\x8b": ("packed by gzip", ".gz"),
    b"\x28\xb5\x2f\xfd": ("packed by Zstandard", ".zst"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", None),
    b"\xd0\xcf\x11\xe0": ("a document or spreadsheet of an older Office", None),
    b"BZh": ("packed by bzip2", None),
    b"\xfd7zXZ": ("packed by xz", None),
    b"SQLite format 3": ("a SQLite database", None),
    b"%PDF-": ("a PDF", None),
}
NOT_TOLD = ("readme", "license", "dataset_info", "config.json")  # beginnings of names of what usually lies beside data
COLUMN_PREFIX = "gateau_"


class Output(NamedTuple):
    """What a file of ours is: measured, or ranked too; and what its record says of how it was measured."""

    is_ranked: bool
    measuring: str


def kind_of(file: str) -> str | None:
    """The kind of a file by its name; None for what holds no rows."""
    name = os.path.basename(file).lower()
    return next((kind for kind, suffixes in KINDS.items() if name.endswith(suffixes)), None)


def check_signature(file: str) -> None:
    """Refuse a file that is by its first bytes something else than by its name.

    Raises:
        ValueError: what it is, and what to do.
    """
    with open(file, "rb") as stream:
        head = stream.read(max(map(len, SIGNATURES)))
    what, suffix = next((found for sign, found in SIGNATURES.items() if head.startswith(sign)), (None, None))
    if what is None or (suffix is not None and file.lower().endswith(suffix)):
        return
    named = f"rename it so that it ends in {suffix}" if suffix else "write its rows as .jsonl, .parquet or .csv"
    raise ValueError(f"{file!r} is {what} by its first bytes, and not by its name; {named}.")


def is_record(file: str) -> bool:
    """Whether a file is what stands beside the rows that `save_rows` writes."""
    return os.path.basename(file) == SIDECAR or file.endswith(f".{SIDECAR}")


def files_of_pattern(pattern: str) -> list[str]:
    """The files that a pattern stands for, in order of their names; `**` is any depth of folders.

    Raises:
        FileNotFoundError: there is none.
        ValueError: they are of several kinds, or no data set together.
    """
    found = sorted(x for x in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(x))
    found = [file for file in found if not is_record(file)]
    if not found:
        raise FileNotFoundError(f"No file matches {pattern!r}.")
    if strange := [file for file in found if kind_of(file) is None]:
        raise ValueError(
            f"{pattern!r} stands for {counted(found)}, and {strange[0]!r} is of no form that is read; give one kind of files, "
            "such as 'DIR/*.jsonl'."
        )
    return _one_data_set(pattern, found, os.path.dirname(pattern))


def files_of_folder(folder: Path) -> dict[str, list[str]]:
    """The files of rows in a folder, at any depth, by the split that `datasets` takes their names for; empty without any.

    Raises:
        ValueError: they are of several kinds, no data set together, or only some have the name of a split.
    """
    there = sorted(_visible(folder))
    rows = [file for file in there if kind_of(file)]
    if not rows:
        return {}
    rows = _one_data_set(str(folder), rows, str(folder))
    splits = _splits(folder, rows)
    if apart := sorted(set(rows) - {file for part in splits.values() for file in part}):
        raise ValueError(
            f"{str(folder)!r}: by their names files are of the split {' or '.join(splits)}, but {len(apart)} are of none, such "
            f"as {_within(folder, apart[0])!r}; name those that are meant, such as '{folder}/*{_suffix(apart[0])}'."
        )
    if others := [file for file in there if not kind_of(file) and _is_worth_telling(file)]:
        logger.warning("%r: %s are read; %s are not", str(folder), counted(rows), counted(others))
    return splits


def counted(files: list[str]) -> str:
    """Files in words, by how they end: "3 .jsonl, 1 .parquet"."""
    counts = Counter(map(_suffix, files)).most_common()
    return ", ".join(f"{count:,} {suffix}" for suffix, count in counts)


def columns_of(file: str) -> list[str]:
    """The columns that a file begins with; empty where they cannot be told."""
    kind = kind_of(file)
    try:
        if kind == "parquet":
            import pyarrow.parquet as pq

            return pq.read_schema(file).names
        if kind == "json":
            row = next(iter(read_records(file, file))).row
            return [name for name in row if name not in (UNREADABLE, UNREADABLE_REASON)]
        return header_of(file)[0] if kind in ("csv", "tsv") else []
    except (OSError, ValueError, StopIteration):  # Arrow's errors are of these; who reads the file says what is wrong
        return []


def _visible(folder: Path) -> list[str]:
    """Files at any depth that are not hidden, nor a cache's, nor records of ours."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(x for x in folders if not x.startswith((".", "__")))
        names = (x for x in names if not x.startswith((".", "__")) and not is_record(x))
        found += [os.path.join(place, x) for x in names if not (x.startswith("cache-") and x.endswith(".arrow"))]
    return found


def _one_data_set(name: str, files: list[str], place: str) -> list[str]:
    """The files without those that are empty or ours, if what remains is one data set."""
    if empty := [file for file in files if not os.path.getsize(file) and kind_of(file) not in ("parquet", "arrow")]:
        logger.warning("%r: %d files are empty, such as %s", name, len(empty), empty[0])
        files = [file for file in files if file not in empty] or files
    columns = {file: columns_of(file) for file in files}
    outputs = {file: output for file in files if (output := _output(file, columns[file]))}
    if outputs and len(outputs) < len(files):
        logger.warning(
            "%r: %d files are outputs of hf-gateau and are left out, such as %s; to read one, name it",
            name,
            len(outputs),
            next(iter(outputs)),
        )
        files = [file for file in files if file not in outputs]
    elif len(set(outputs.values())) > 1 or _are_rankings(outputs):
        shown = ", ".join(os.path.basename(_unit(file)) for file in list(dict.fromkeys(map(_unit, outputs)))[:3])
        raise ValueError(f"{name!r} holds several outputs of hf-gateau ({shown}), which share rows; name one of them.")
    _check_kinds(name, files, place)
    _check_columns(name, files, columns)
    return files


def _unit(file: str) -> str:
    """What a file is an output or a part of an output of."""
    folder = os.path.dirname(file)
    return folder if os.path.isfile(os.path.join(folder, SIDECAR)) else file


def _output(file: str, columns: list[str]) -> Output | None:
    """What a file of ours is, by its columns or the record beside it; a record of the origin alone is of data."""
    unit = Path(_unit(file))
    record = unit / SIDECAR if unit.is_dir() else record_of(unit)
    try:
        kept = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    if kept.keys() <= {"origin"} and not any(column.startswith(COLUMN_PREFIX) for column in columns):
        return None
    return Output(f"{COLUMN_PREFIX}rank" in columns, json.dumps(kept.get("measuring"), sort_keys=True))


def _are_rankings(outputs: dict[str, Output]) -> bool:
    """Whether there are several rankings, each of which has all rows; unlike measured parts, they are no whole."""
    return any(x.is_ranked for x in outputs.values()) and len(set(map(_unit, outputs))) > 1


def _check_kinds(name: str, files: list[str], place: str) -> None:
    if len({kind_of(file) for file in files}) > 1:
        kinds = {kind_of(file): file for file in reversed(files)}
        patterns = " or ".join(f"'{os.path.join(place, '*' + _suffix(file))}'" for file in reversed(kinds.values()))
        raise ValueError(
            f"{name!r} holds {counted(files)}: one kind of files is read at a time, so that no row is read twice or left out; "
            f"name one, such as {patterns}."
        )


def _check_columns(name: str, files: list[str], columns: dict[str, list[str]]) -> None:
    """Tell of files that share no column with the others, as a file of settings among rows."""
    told = {file: columns[file] for file in files if columns[file]}
    counts = Counter(column for found in told.values() for column in set(found))
    alone = [file for file, found in told.items() if all(counts[column] == 1 for column in found)]
    if len(told) > 1 and alone:
        logger.warning(
            "%r: %d of %d files share no column with the others, such as %s (%s); name the files that are meant",
            name,
            len(alone),
            len(files),
            alone[-1],
            ", ".join(told[alone[-1]]),
        )


def _splits(folder: Path, rows: list[str]) -> dict[str, list[str]]:
    """Files by split, as `datasets` would part them if the folder held nothing else."""
    from datasets.data_files import _get_data_files_patterns, resolve_pattern

    by_place, base = {os.path.abspath(file): file for file in rows}, glob.escape(os.path.abspath(folder))

    def resolve(pattern: str) -> list[str]:
        try:
            return [by_place[file] for file in resolve_pattern(pattern, base) if file in by_place]
        except FileNotFoundError:
            return []

    patterns = _get_data_files_patterns(resolve)
    return {str(split): sorted({file for x in part for file in resolve(x)}) for split, part in patterns.items()}


def _suffix(file: str) -> str:
    name = os.path.basename(file).lower()
    known = [suffix for suffix in SUFFIXES if name.endswith(suffix)]
    return max(known, key=len) if known else os.path.splitext(name)[1] or "files without a suffix"


def _within(folder: Path, file: str) -> str:
    return os.path.relpath(file, folder)


def _is_worth_telling(file: str) -> bool:
    return not os.path.basename(file).lower().startswith(NOT_TOLD)
