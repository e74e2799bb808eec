"""Rows out, for the command line: JSON lines, Parquet, or a folder of Parquet shards."""

import glob
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .finding import PARQUET_SUFFIX
from .replacing import replace_file, written_alone
from .shards import MAX_SHARD_SIZE, check_folder, parquet_features, write_parquet, write_shards
from .sidecar import sidecar_path


def save_rows(ds, output: str, record: dict[str, Any], max_shard_size: str = MAX_SHARD_SIZE) -> None:
    """Write a dataset as `.jsonl`, `.parquet`, or else a folder of Parquet shards, and beside it how it came about.

    The output appears whole and with its record, or not at all: it is written under another name first.
    """
    path = Path(output).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_file_name(output):
        return write_shards(ds, ds.features, path, record, max_shard_size)
    with written_alone(path):
        for stale in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.partial"):  # of runs that were killed
            stale.unlink(missing_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            if path.name.endswith(".jsonl"):
                _write_json_lines(ds, partial)
            else:
                write_parquet(ds, ds.features, partial)
            replace_file(partial, path, json.dumps(record, indent=2) + "\n")
        finally:
            partial.unlink(missing_ok=True)


def is_file_name(output: str) -> bool:
    """Whether an output is one file, and not a folder of shards."""
    return output.endswith((".jsonl", PARQUET_SUFFIX)) and not Path(output).expanduser().is_dir()


def _write_json_lines(ds, path: Path) -> None:
    """Every digit of every float, which `Dataset.to_json` cuts after the tenth decimal."""
    with path.open("w", encoding="utf-8") as stream:
        for row in ds:
            line = json.dumps(row, ensure_ascii=False, default=str)
            try:
                stream.write(line + "\n")
            except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
                stream.write(json.dumps(row, default=str) + "\n")


def check_output(output: str) -> None:
    """Refuse a place that cannot be written to before any time is spent on what goes there.

    Raises:
        ValueError: the suffix is of no known form, the output cannot be a folder or a file there, or is a file that
            somebody else wrote.
    """
    path = Path(output).expanduser()
    is_folder = path.is_dir() or output.endswith("/")
    if path.suffix and not path.name.endswith((".jsonl", PARQUET_SUFFIX)) and not is_folder:
        raise ValueError(f"--output {output!r} ends in {path.suffix!r}; use .jsonl, .parquet, or a folder's name.")
    check_folder(path)
    if path.is_file() and path.stat().st_size and not sidecar_path(path).is_file():
        raise ValueError(
            f"--output {output!r} is there, and no record beside it says that hf-gateau wrote it; name another file, or remove "
            "it first."
        )
    check_writable(output, path.absolute().parents)


def check_writable(output: str, places: Iterable[Path]) -> None:
    """Let an output pass if the first of the places that exists is a folder that can be written to.

    Raises:
        ValueError: it is none.
    """
    place = next(x for x in places if x.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(f"--output {output!r} cannot be written: {place} is not a folder that you can write to.")


def check_types(ds, output: str) -> None:
    """Refuse rows whose types the output cannot hold before any time is spent on them.

    Raises:
        ValueError: Parquet has no such type; the message names the column.
    """
    if output.endswith(".jsonl") or ds.features is None:  # a stream's types may be unknown before it is read
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    for field in parquet_features(ds.features).arrow_schema:
        try:
            pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])).close()
        except pa.ArrowException as error:
            raise ValueError(
                f"Parquet cannot hold the column {field.name!r}, whose type is {field.type} ({error}); leave it out, or "
                "name a .jsonl file as --output."
            ) from error
