"""Rows in and rows out, for the command line: JSON lines, Parquet, folders and patterns of these, the Hub."""

import glob
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

from .hub import head_of, repeated
from .records import attach_record, find_record, origin_of
from .shards import MAX_SHARD_SIZE, SIDECAR, check_folder, write_shards


logger = logging.getLogger(__name__)

JSON_SUFFIXES = tuple(f".{kind}{packed}" for kind in ("jsonl", "json") for packed in ("", ".gz", ".zst"))
PARQUET_SUFFIX = ".parquet"
UNREADABLE = "unreadable"  # column that keeps the original of a line that does not fit the others
RECORDS = (
    "origin",
    "building",
    "measuring",
    "ppl_response",
    "reward",
    "embedding",
    "ranking",
    "selection",
)  # kinds that stay with rows from one command to the next


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


def is_pattern(data: str) -> bool:
    """Whether a name stands for many files, such as `data/*.parquet`."""
    return glob.has_magic(data) and not Path(data).expanduser().exists()


def _folder_of(pattern: str) -> Path:
    """The folder that a pattern begins in."""
    parts = Path(pattern).expanduser().absolute().parts
    return Path(*takewhile(lambda part: not glob.has_magic(part), parts))


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


def attach_sidecar(ds, data: str) -> None:
    """Give rows read from a file the records beside it, which Parquet and JSON lines cannot hold; and where they are from."""
    kept = read_sidecar(data)
    path = _folder_of(data) if is_pattern(data) else Path(data).expanduser()
    name = path.name if path.exists() else None
    origin = origin_of(ds) or kept.get("origin") or ({"name": name} if name else None)
    for kind, record in {**kept, "origin": origin}.items():
        if kind in RECORDS and isinstance(record, dict) and find_record(ds, kind) is None:
            attach_record(ds, kind, record)


def sidecar_of(ds) -> dict[str, Any]:
    """The records that rows carry, for the file beside them."""
    found = {kind: find_record(ds, kind) for kind in RECORDS}
    return {kind: record for kind, record in found.items() if record is not None}


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


def save_rows(ds, output: str, record: dict[str, Any], max_shard_size: str = MAX_SHARD_SIZE) -> None:
    """Write a dataset as `.jsonl`, `.parquet`, or else a folder of Parquet shards, and beside it how it came about.

    The output appears whole or not at all: it is written under another name first.
    """
    path = Path(output).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_file_name(output):
        return write_shards(ds, ds.features, path, record, max_shard_size)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.name.endswith(".jsonl"):
            _write_json_lines(ds, partial)
        else:
            ds.to_parquet(str(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sidecar_path(path).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def is_file_name(output: str) -> bool:
    """Whether an output is one file, and not a folder of shards."""
    return output.endswith((".jsonl", PARQUET_SUFFIX)) and not Path(output).expanduser().is_dir()


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
    is_folder = path.is_dir() or output.endswith("/")
    if path.suffix and not path.name.endswith((".jsonl", PARQUET_SUFFIX)) and not is_folder:
        raise ValueError(f"--output {output!r} ends in {path.suffix!r}; use .jsonl, .parquet, or a folder's name.")
    check_folder(path)
    check_writable(output, path.absolute().parents)


def check_writable(output: str, places: Iterable[Path]) -> None:
    """Let an output pass if the first of the places that exists is a folder that can be written to.

    Raises:
        ValueError: it is none.
    """
    place = next(x for x in places if x.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(f"--output {output!r} cannot be written: {place} is not a folder that you can write to.")


def sidecar_path(path: str | os.PathLike) -> Path:
    """Where the record of an output is kept: inside a folder (of a pattern too), else beside the file."""
    path = _folder_of(str(path)) if is_pattern(str(path)) else Path(path).expanduser()
    return path / SIDECAR if path.is_dir() else path.with_name(f"{path.name}.{SIDECAR}")


def read_sidecar(data: str) -> dict[str, Any]:
    """The record kept with a dataset, empty where there is none."""
    path = sidecar_path(data)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
