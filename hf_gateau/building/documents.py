"""Documents, read one at a time: text files, rows of JSON lines and Parquet, rows of the Hub."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.finding import is_record, kind_of
from ..files.reading import load_rows
from ..files.sidecar import is_pattern
from ..files.texts import read_user_text
from ..rows.conversations import MARKER
from ..settings import a_type
from .config import DocumentConfig


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

TEXT_SUFFIX = ".txt"


@dataclass(frozen=True)
class Document:
    """One text and what is known of it.

    Attributes:
        id: what the row's provenance names it by.
        source: documents of one source may be joined.
        text: as it stands in the file, with "\\n" at the ends of lines; offsets are of its characters.
        license: None where nothing says.
    """

    id: str
    source: str
    text: str
    license: str | None = None


class Documents:
    """Documents of a dataset that are usable and no copies of others, by place; texts are read when they are asked for.

    Attributes:
        places: rows of the dataset.
        sources: of each of `places`.
        dropped: why rows are none of `places`, and how many.
    """

    def __init__(self, ds: Dataset, config: DocumentConfig, name: str, dropped: Counter | None = None):
        columns = [config.text_column, config.id_column, config.source_column, config.license_column]
        self.ds = ds.select_columns(list(dict.fromkeys(filter(None, columns))))
        self.config, self.name = config, name
        self.dropped = Counter(dropped)
        self.places: list[int] = []
        self.sources: list[str] = []
        self._read_through()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> Document:
        return self._document(self.places[i], self.ds[self.places[i]])

    def _document(self, place: int, row: dict[str, Any]) -> Document:
        config = self.config
        name = row[config.id_column] if config.id_column else None
        license_name = row[config.license_column] if config.license_column else config.license
        return Document(
            f"{self.name}:{place}" if name is None else str(name),
            self._source(row),
            row[config.text_column],
            None if license_name is None else str(license_name),
        )

    def _source(self, row: dict[str, Any]) -> str:
        source = row[self.config.source_column] if self.config.source_column else None
        return self.name if source is None else str(source)

    def _read_through(self) -> None:
        """Find the usable ones, with one copy of each."""
        from tqdm.auto import tqdm

        text_column, seen = self.config.text_column, set()
        columns = [text_column, *filter(None, [self.config.source_column])]
        read = self.ds.select_columns(columns)
        for place, row in enumerate(tqdm(read, desc="Documents", unit="")):
            text = row[text_column]
            problem = _problem(text)
            digest = None if problem else hashlib.sha256(" ".join(text.split()).encode()).digest()
            if problem or digest in seen:
                self.dropped[problem or "a copy of another document"] += 1
                continue
            seen.add(digest)
            self.places.append(place)
            self.sources.append(self._source(row))


def _problem(text: Any) -> str | None:
    """Why a text cannot be used; None where it can."""
    if not isinstance(text, str):
        return f"the text is {a_type(text)}, not a string"
    if not any(character.isalnum() for character in text):
        return "the text is empty"
    if MARKER in text:
        return f"the text holds the private-use marker {MARKER!r}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the text holds a lone surrogate, which is no valid Unicode"
    return None


def load_documents(
    data: str,
    config: DocumentConfig,
    *,
    split: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
) -> Documents:
    """The documents that a name stands for.

    Args:
        data: a .txt file, a pattern of such files, a folder that holds some at any depth; or what `load_rows` reads.
        config: the columns to read.
        split, name, revision: as in `load_rows`.
        limit: take the first ones only, this many.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a column is missing, a folder holds both text files and others, or no document is usable.
    """
    files = _text_files(data)
    dropped: Counter = Counter()
    if files:
        ds, dropped = _read_files(files[:limit], _root_of(data))
        config = DocumentConfig("text", "id", "source", license=config.license)
    else:
        ds = load_rows(data, split=split, name=name, revision=revision)
        ds = ds.select(range(min(limit, len(ds)))) if limit is not None else ds
    _check_columns(ds.column_names, config, data)
    documents = Documents(ds, config, Path(data).name if Path(data).expanduser().exists() else data, dropped)
    if not len(documents):
        raise ValueError(f"{data!r} holds no usable document ({dict(documents.dropped) or 'none at all'}).")
    return documents


def _check_columns(columns: list[str], config: DocumentConfig, data: str) -> None:
    for setting in ("text_column", "id_column", "source_column", "license_column"):
        if (column := getattr(config, setting)) is not None and column not in columns:
            raise ValueError(f"{data!r} has no column {column!r}; name one of {columns} with --{setting}.")


def _text_files(data: str) -> list[Path]:
    """The text files that a name stands for, in order; empty where it stands for something else."""
    path = Path(data).expanduser()
    if is_pattern(data):
        found = (Path(x) for x in glob.glob(os.path.expanduser(data), recursive=True))
        return sorted(x for x in found if x.is_file() and x.suffix == TEXT_SUFFIX)
    if path.is_dir():
        files = sorted(x for x in path.rglob(f"*{TEXT_SUFFIX}") if x.is_file())
        others = [x.name for x in path.rglob("*") if kind_of(x.name) and not is_record(x.name)] if files else []
        if others:
            raise ValueError(
                f"{data!r} holds {len(files)} text files and {len(others)} others such as {others[0]!r}; say which are "
                f"meant with a pattern, such as '{data.rstrip('/')}/**/*{TEXT_SUFFIX}'."
            )
        return files
    if path.suffix == TEXT_SUFFIX and not path.is_file():
        raise FileNotFoundError(f"There is no file {data!r}.")
    return [path] if path.suffix == TEXT_SUFFIX else []


def _root_of(data: str) -> Path:
    """What the names of text files are told from: a folder; of a pattern, the one that it begins in."""
    path = Path(data).expanduser()
    if path.is_dir():
        return path
    parts = path.parent.parts
    magic = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:magic])


def _read_files(files: list[Path], root: Path) -> tuple[Dataset, Counter]:
    """Text files as rows, and how many could not be read, by reason."""
    from datasets import Dataset, Features, Value

    rows, dropped = [], Counter()
    for path in files:
        try:
            text = read_user_text(path)
        except (ValueError, OSError) as error:
            logger.warning("%s is left out: %s", path, error)
            dropped["the file is not UTF-8" if isinstance(error, ValueError) else "the file cannot be read"] += 1
            continue
        folder = path.parent.relative_to(root).as_posix()
        source = (root.resolve().name or "documents") if folder == "." else folder
        rows.append({"id": path.relative_to(root).as_posix(), "source": source, "text": text})
    features = Features({name: Value("string") for name in ("id", "source", "text")})
    columns = {name: [row[name] for row in rows] for name in features}
    return Dataset.from_dict(columns, features), dropped
