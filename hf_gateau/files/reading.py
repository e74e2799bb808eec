"""Rows in, for the command line: JSON lines, Parquet, folders and patterns of these, the Hub."""

import glob
import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

from ..records import attach_record
from .hub_reading import head_of, repeated
from .sidecar import is_pattern


logger = logging.getLogger(__name__)

JSON_SUFFIXES = tuple(f".{kind}{packed}" for kind in ("jsonl", "json") for packed in ("", ".gz", ".zst"))
PARQUET_SUFFIX = ".parquet"
UNREADABLE = "unreadable"  # column that keeps the original of a line that does not fit the others


def load_rows(
    data: str,
    *,
    split: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
):
    """Load one split of a dataset.

    Args:
        data (`str`): a JSON-lines file (`.jsonl`, also `.gz` or `.zst`) or a `.parquet` file, a pattern such as
            `data/*.parquet`, a folder (of such files, or of `save_to_disk`), or a Hub id.
        split, name, revision (`str`, *optional*): as in `datasets.load_dataset`; `split` may be left out where there
            is a train split, or one split alone.
        streaming (`bool`): as an `IterableDataset`, of which nothing is kept on the disk.

    Raises:
        FileNotFoundError: `data` looks like a path or pattern, and nothing is there.
        ValueError: the files are of no known form or cannot be read, or the split must be named.
    """
    from datasets import load_dataset, load_from_disk

    path = Path(data).expanduser()
    if path.is_dir() and any((path / file).exists() for file in ("dataset_info.json", "dataset_dict.json")):
        ds = _choose_split(load_from_disk(str(path)), split)
        return ds.to_iterable_dataset() if streaming else ds
    if path.is_file() and path.name.endswith(JSON_SUFFIXES) and not streaming:
        return _readable(data, lambda: _load_json(path))
    if path.is_file():
        return _load_files([str(path)], streaming)
    if path.is_dir():
        return _choose_split(_readable(data, lambda: load_dataset(str(path), name, streaming=streaming)), split)
    if is_pattern(data):
        return _load_files(_matches(data), streaming)
    if _looks_like_a_path(data):
        raise FileNotFoundError(f"There is no file or folder {data!r}.")
    return _choose_split(_load_from_hub(data, name, revision, streaming), split)


def _matches(pattern: str) -> list[str]:
    """The files that a pattern stands for, in order of their names; `**` is any depth of folders."""
    files = sorted(x for x in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(x))
    if not files:
        raise FileNotFoundError(f"No file matches {pattern!r}.")
    return files


def _load_files(files: list[str], streaming: bool):
    from datasets import load_dataset

    forms = {"parquet": (PARQUET_SUFFIX,), "json": JSON_SUFFIXES}
    form = next((form for form, suffixes in forms.items() if all(x.endswith(suffixes) for x in files)), None)
    if form is None:
        shown = repr(files[0]) if len(files) == 1 else f"{len(files)} files such as {files[0]!r}"
        raise ValueError(
            f"{shown}: of no known form; give .jsonl or .parquet files (one kind), a folder, or a Hub id."
        )
    return _readable(files[0], lambda: load_dataset(form, data_files=files, split="train", streaming=streaming))


def _readable(data: str, load):
    """What is loaded, with the reason in one line where `datasets` cannot read it."""
    from datasets.exceptions import DatasetsError

    try:
        return load()
    except (DatasetsError, ValueError) as error:
        reason = str(error.__cause__ or error)
        hint = "; pip install zstandard" if "zstd not supported" in reason else ""
        raise ValueError(f"{data!r} cannot be read: {reason}{hint}") from error


def _load_from_hub(repo_id: str, name: str | None, revision: str | None, streaming: bool):
    """From the Hub; a stream, which leaves no cached file to tell it, with a record of the commit that it comes from."""
    from datasets import load_dataset

    commit_hash = head_of(repo_id, "dataset", revision) if streaming else revision
    options = {"revision": commit_hash or revision, "streaming": streaming}
    loaded = repeated(lambda: load_dataset(repo_id, name, **options), f"Loading {repo_id}")
    for ds in loaded.values() if streaming else ():
        attach_record(ds, "origin", {"repo_id": repo_id, "config": ds.info.config_name, "revision": commit_hash})
    return loaded


def _looks_like_a_path(data: str) -> bool:
    return data.startswith((".", "/", "~")) or data.count("/") > 1 or data.endswith((*JSON_SUFFIXES, PARQUET_SUFFIX))


def _choose_split(loaded, split: str | None):
    if not isinstance(loaded, dict):
        return loaded
    if split is None and len(loaded) == 1:
        split = next(iter(loaded))
    split = split or "train"
    if split not in loaded:
        raise ValueError(f"There is no split {split!r}; name one of {', '.join(loaded)} with --split.")
    return loaded[split]


def _load_json(path: Path):
    """`datasets`' own reader, or, where lines do not fit together, ours, which keeps every line as a row."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return load_dataset("json", data_files=str(path), split="train")
    except (DatasetGenerationError, StopIteration) as error:  # the latter: a file without a row
        logger.info("datasets cannot read %s as it is (%s); reading it line by line.", path, error.__cause__)
        return _load_uneven_lines(path)


def _load_uneven_lines(path: Path):
    """One row a line, with null where a value does not fit its column, and such a line's original in `unreadable`."""
    import fsspec
    from datasets import Dataset

    with fsspec.open(str(path), "rt", compression="infer", encoding="utf-8", errors="replace") as stream:
        lines = [line for line in stream if line.strip()]
    rows, bad = [], set()
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        bad |= set() if isinstance(row, dict) else {i}
        rows.append(row if isinstance(row, dict) else {})
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        columns[name], misfits = _fitting_array([row.get(name) for row in rows])
        bad |= misfits
    columns[UNREADABLE] = [lines[i].strip() if i in bad else None for i in range(len(lines))]
    shown = ", ".join(str(i + 1) for i in sorted(bad)[:10]) + (", ..." if len(bad) > 10 else "")
    logger.warning("%d of %d lines of %s do not fit the others (line %s).", len(bad), len(lines), path, shown)
    return Dataset.from_dict(columns)


def _fitting_array(values: list) -> tuple[Any, set[int]]:
    """An Arrow array of the values' commonest type, null where a value is of another, and the places of those."""
    import pyarrow as pa

    def array(items, kind=None):
        try:
            return pa.array(items, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeEncodeError):
            return None

    if (whole := array(values)) is not None:
        return whole, set()
    kinds = Counter(item.type for value in values if value is not None and (item := array([value])) is not None)
    kind = kinds.most_common(1)[0][0] if kinds else pa.null()
    misfits = {i for i, value in enumerate(values) if value is not None and array([value], kind) is None}
    return pa.array([None if i in misfits else value for i, value in enumerate(values)], kind), misfits
