"""Data and models of a grid: files and Hub ids as they are, and what functions make, made once and kept in FOLDER/made."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.results import write_whole
from ..quickstart import resolve_shipped
from ..settings import import_function
from .grid import Grid, Source


def digest(value: Any, size: int = 16) -> str:
    """Hex digits that stand for a JSON-like value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:size]


def write_json(path: Path, value: Any) -> None:
    """A file that is whole or not there."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Making:
    """Rows, or the model, that a function makes into FOLDER/made."""

    source: Source
    folder: Path
    what: str
    is_model: bool = False

    @property
    def path(self) -> Path:
        named = digest([self.source.make, self.source.options], 12)
        name = f"model-{named}" if self.is_model else f"{self.source.make.partition(':')[2]}-{named}.parquet"
        return self.folder / "made" / name

    @property
    def log(self) -> Path:
        """What the function says, where several are made at a time."""
        return self.path.with_suffix(".log")

    def run(self) -> Path:
        """Make it, unless it is there; another run that is at the same is waited for. Whole or not there.

        Raises:
            ValueError: there is no such function.
            RuntimeError: it failed.
        """
        from filelock import FileLock

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            if not self.path.exists():
                (self._make_model if self.is_model else self._make_rows)()
        return self.path

    def _make_rows(self) -> None:
        from datasets import Dataset

        from ..files.sidecar import sidecar_of
        from ..files.writing import save_rows

        rows = self._call()
        rows = rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows))
        save_rows(rows, str(self.path), sidecar_of(rows))

    def _make_model(self) -> None:
        partial = self.path.with_name(f".{self.path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir()
        self._call(str(partial))
        partial.replace(self.path)

    def _call(self, *arguments: str) -> Any:
        function = import_function(self.source.make, f"{self.what}: {self.source.make!r}")
        try:
            return function(*arguments, **self.source.options)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise RuntimeError(f"{self.what}: {self.source.make} failed: {said}") from error


def to_make(grid: Grid, folder: Path) -> list[Making]:
    """What is still to be made of a grid's measured rows and model."""
    sources = [(f"data: {name}", source, False) for name, source in grid.data.items()]
    found = [
        Making(source, folder, what, is_model)
        for what, source, is_model in [*sources, ("model", grid.model, True)]
        if source.make is not None
    ]
    return [x for x in found if not x.path.exists()]


def rows_of(source: Source, folder: Path, what: str) -> Source:
    """The rows as a source with a name: a file, a folder or a Hub id.

    A function gives a `Dataset`, or a list of rows, and gets `options`.
    """
    if source.make is None:
        return Source(resolve_shipped(_expanded(source.name)), split=source.split, config=source.config)
    return Source(str(Making(source, folder, what).run()))


def model_of(source: Source, folder: Path) -> str:
    """The model's folder or Hub id. A function gets the folder to save model and tokenizer into, and `options`."""
    if source.make is None:
        return resolve_shipped(_expanded(source.name))
    return str(Making(source, folder, "model", is_model=True).run())


def _expanded(name: str) -> str:
    """A path of this machine as a whole one, since cells may run elsewhere; other names as they are."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def load_source(source: Source):
    """The rows of a source with a name, with the records beside them.

    Raises:
        ValueError, FileNotFoundError: see `load_rows`.
    """
    from ..files.reading import load_rows
    from ..files.sidecar import attach_sidecar

    ds = load_rows(source.name, split=source.split, name=source.config)
    attach_sidecar(ds, source.name)
    return ds
