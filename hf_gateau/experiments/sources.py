"""Data and models of a grid: files and Hub ids as they are, and what functions make, made once and kept in FOLDER/made."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..evaluation.results import write_whole
from ..runtime import import_function
from .grid import Source


def digest(value: Any, size: int = 16) -> str:
    """Hex digits that stand for a JSON-like value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:size]


def write_json(path: Path, value: Any) -> None:
    """A file that is whole or not there."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def rows_of(source: Source, folder: Path, what: str) -> Source:
    """The rows as a source with a name: a file, a folder or a Hub id.

    A function gives a `Dataset`, or a list of rows, and gets `options`.
    """
    from datasets import Dataset

    from ..files import save_rows, sidecar_of
    from ..scripts.arguments import resolve_shipped

    if source.make is None:
        return Source(resolve_shipped(_expanded(source.name)), split=source.split, config=source.config)
    path = folder / "made" / f"{source.make.partition(':')[2]}-{digest([source.make, source.options], 12)}.parquet"
    if not path.exists():
        rows = import_function(source.make, f"{what}: {source.make!r}")(**source.options)
        rows = rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows))
        save_rows(rows, str(path), sidecar_of(rows))
    return Source(str(path))


def model_of(source: Source, folder: Path) -> str:
    """The model's folder or Hub id. A function gets the folder to save model and tokenizer into, and `options`."""
    from ..scripts.arguments import resolve_shipped

    if source.make is None:
        return resolve_shipped(_expanded(source.name))
    path = folder / "made" / f"model-{digest([source.make, source.options], 12)}"
    if not path.exists():
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        import_function(source.make, f"model: {source.make!r}")(str(partial), **source.options)
        partial.replace(path)
    return str(path)


def _expanded(name: str) -> str:
    """A path of this machine as a whole one, since cells may run elsewhere; other names as they are."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def load_source(source: Source):
    """The rows of a source with a name, with the records beside them.

    Raises:
        ValueError, FileNotFoundError: see `load_rows`.
    """
    from ..files import attach_sidecar, load_rows

    ds = load_rows(source.name, split=source.split, name=source.config)
    attach_sidecar(ds, source.name)
    return ds
