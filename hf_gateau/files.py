"""Rows in and rows out, for the command line: JSON lines, Parquet, `save_to_disk` folders, the Hub."""

import json
import logging
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from .hub import repeated
from .records import attach_record, find_record, origin_of


logger = logging.getLogger(__name__)

JSON_SUFFIXES, PARQUET_SUFFIX = (".jsonl", ".json", ".jsonl.gz", ".json.gz"), ".parquet"
UNREADABLE = "unreadable"  # column that keeps the original of a line that does not fit the others
SIDECAR = "gateau.json"
RECORDS = ("origin", "measuring", "ranking", "selection")  # kinds that stay with rows from one command to the next


def load_rows(data: str, *, split: str | None = None, name: str | None = None, revision: str | None = None):
    """Load one split of a dataset.

    Args:
        data (`str`): a `.jsonl` or `.parquet` file, a folder (of `save_to_disk`, or of such files), or a Hub id.
        split, name, revision (`str`, *optional*): as in `datasets.load_dataset`; `split` may be left out where there
            is a train split, or one split alone.

    Raises:
        FileNotFoundError: `data` looks like a path and is not there.
        ValueError: the file is of no known form, or the split must be named.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk

    path = Path(data).expanduser()
    if path.is_dir() and any((path / file).exists() for file in ("dataset_info.json", "dataset_dict.json")):
        loaded = load_from_disk(str(path))
    elif path.is_file() and path.name.endswith(JSON_SUFFIXES):
        loaded = _load_json(path)
    elif path.is_file() and path.name.endswith(PARQUET_SUFFIX):
        loaded = load_dataset("parquet", data_files=str(path), split="train")
    elif path.is_file():
        raise ValueError(f"{data!r} is of no known form; give a .jsonl or .parquet file, a folder, or a Hub id.")
    elif path.is_dir() or not _looks_like_a_path(data):
        loaded = repeated(lambda: load_dataset(data, name, revision=revision), f"Loading {data}")
    else:
        raise FileNotFoundError(f"There is no file or folder {data!r}.")
    return _choose_split(loaded, split) if isinstance(loaded, DatasetDict) else loaded


def attach_sidecar(ds, data: str) -> None:
    """Give rows read from a file the records beside it, which Parquet and JSON lines cannot hold; and where they are from."""
    kept = read_sidecar(data)
    origin = (
        origin_of(ds)
        or kept.get("origin")
        or ({"name": Path(data).name} if Path(data).expanduser().exists() else None)
    )
    for kind, record in {**kept, "origin": origin}.items():
        if kind in RECORDS and isinstance(record, dict) and find_record(ds, kind) is None:
            attach_record(ds, kind, record)


def sidecar_of(ds) -> dict[str, Any]:
    """The records that rows carry, for the file beside them."""
    found = {kind: find_record(ds, kind) for kind in RECORDS}
    return {kind: record for kind, record in found.items() if record is not None}


def _looks_like_a_path(data: str) -> bool:
    return data.startswith((".", "/", "~")) or data.count("/") > 1 or data.endswith((*JSON_SUFFIXES, PARQUET_SUFFIX))


def _choose_split(splits, split: str | None):
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    split = split or "train"
    if split not in splits:
        raise ValueError(f"There is no split {split!r}; name one of {', '.join(splits)} with --split.")
    return splits[split]


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
    import gzip

    from datasets import Dataset

    with (gzip.open if path.name.endswith(".gz") else open)(path, "rt", encoding="utf-8", errors="replace") as stream:
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


def save_rows(ds, output: str, record: dict[str, Any]) -> None:
    """Write a dataset as `.jsonl`, `.parquet`, or else a `save_to_disk` folder, and beside it how it came about.

    The output appears whole or not at all: it is written under another name first.
    """
    path = Path(output).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.name.endswith(".jsonl"):
            _write_json_lines(ds, partial)
        elif path.name.endswith(PARQUET_SUFFIX):
            ds.to_parquet(str(partial))
        else:
            ds.save_to_disk(str(partial))
            if path.is_dir():
                shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
    sidecar_path(path).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _write_json_lines(ds, path: Path) -> None:
    """Every digit of every float, which `Dataset.to_json` cuts after the tenth decimal."""
    with path.open("w", encoding="utf-8") as stream:
        for row in ds:
            stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def check_output(output: str) -> None:
    """Refuse a place that cannot be written to before any time is spent on what goes there.

    Raises:
        ValueError: the suffix is of no known form, or the output cannot be a folder or a file there.
    """
    path = Path(output).expanduser()
    if path.suffix and not path.name.endswith((".jsonl", PARQUET_SUFFIX)) and not path.is_dir():
        raise ValueError(f"--output {output!r} ends in {path.suffix!r}; use .jsonl, .parquet, or a folder's name.")
    if path.is_dir() and any(path.iterdir()) and not (path / "dataset_info.json").exists():
        raise ValueError(f"--output {output!r} is a folder that holds something else; name a new one.")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"--output {output!r} cannot be written: {parent} is not a folder that you can write to.")


def sidecar_path(path: str | os.PathLike) -> Path:
    """Where the record of an output is kept: inside a folder, else beside the file."""
    path = Path(path).expanduser()
    return path / SIDECAR if path.is_dir() else path.with_name(f"{path.name}.{SIDECAR}")


def read_sidecar(data: str) -> dict[str, Any]:
    """The record kept with a dataset, empty where there is none."""
    path = sidecar_path(data)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
