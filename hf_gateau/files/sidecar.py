"""The record that stands beside a file of rows: how they came about, which Parquet and JSON lines cannot hold."""

import glob
import json
import os
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..records import attach_record, find_record, origin_of
from .replacing import SIDECAR, record_of, recover_folder


RECORDS = (
    "origin",
    "building",
    "measuring",
    "ppl_response",
    "window_nll",
    "reward",
    "embedding",
    "ranking",
    "selection",
)  # kinds that stay with rows from one command to the next


def is_pattern(data: str) -> bool:
    """Whether a name stands for many files, such as `data/*.parquet`."""
    return glob.has_magic(data) and not Path(data).expanduser().exists()


def folder_of_pattern(pattern: str) -> Path:
    """The folder that a pattern begins in."""
    parts = Path(pattern).expanduser().absolute().parts
    return Path(*takewhile(lambda part: not glob.has_magic(part), parts))


def attach_sidecar(ds, data: str) -> None:
    """Give rows read from a file the records beside it, which Parquet and JSON lines cannot hold; and where they are from."""
    kept = read_sidecar(data)
    path = folder_of_pattern(data) if is_pattern(data) else Path(data).expanduser()
    name = path.name if path.exists() else None
    origin = origin_of(ds) or kept.get("origin") or ({"name": name} if name else None)
    for kind, record in {**kept, "origin": origin}.items():
        if kind in RECORDS and isinstance(record, dict) and find_record(ds, kind) is None:
            attach_record(ds, kind, record)


def sidecar_of(ds) -> dict[str, Any]:
    """The records that rows carry, for the file beside them."""
    found = {kind: find_record(ds, kind) for kind in RECORDS}
    return {kind: record for kind, record in found.items() if record is not None}


def sidecar_path(path: str | os.PathLike) -> Path:
    """Where the record of an output is kept: inside a folder (of a pattern too), else beside the file."""
    path = folder_of_pattern(str(path)) if is_pattern(str(path)) else Path(path).expanduser()
    recover_folder(path)
    return path / SIDECAR if path.is_dir() else record_of(path)


def read_sidecar(data: str) -> dict[str, Any]:
    """The record kept with a dataset, empty where there is none."""
    path = sidecar_path(data)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
