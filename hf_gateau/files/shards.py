"""A folder of Parquet shards, as `datasets` reads it: written in bounded memory, and there whole or not at all.

While it is written it is called `NAME.partial`. Every shard in there is whole, for it gets its name once it is closed; the
folder gets its own when the last shard and the record are in it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .replacing import SIDECAR, partial_folder, recover_folder, replace_folder, settle_folder, synced, written_alone


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features, IterableDataset

MAX_SHARD_SIZE = "500MB"  # as in `datasets`
ROW_GROUP_BYTES = 32 * 2**20  # in memory at once, when writing and for whoever streams it; `datasets` takes 100 MB
ROWS_A_TABLE = 100  # read at a time: each may be a book
SHARD = re.compile(r"train-\d{5,}-of-\d{5,}\.parquet")
UNFINISHED_SHARD = re.compile(r"\.?train-\d{5,}(-of-\d{5,})?\.parquet")


def num_bytes_of(size: str) -> int:
    """Bytes of a size such as 500MB or 2GiB.

    Raises:
        ValueError: it is no size, or 0.
    """
    from datasets.utils.py_utils import convert_file_size_to_int

    try:
        num_bytes = convert_file_size_to_int(size)
    except ValueError:
        num_bytes = 0
    if num_bytes < 1:
        raise ValueError(f"--max_shard_size is a size, got {size!r}; give a number and a unit, such as 500MB.")
    return num_bytes


def write_shards(
    ds: Dataset | IterableDataset,
    features: Features,
    folder: Path,
    record: dict[str, Any],
    max_shard_size: str = MAX_SHARD_SIZE,
) -> None:
    """Write rows as a folder of Parquet shards with their record in it; a folder that was written so before is replaced.

    Args:
        ds: rows in memory, memory-mapped, or streamed.
        features (`Features`): their columns' types.
        folder (`Path`): where to; `check_folder` says whether it may be.
        record (`dict`): what `gateau.json` is to say.
        max_shard_size (`str`): about the most bytes of a shard in memory, as in `datasets`; the file is smaller.

    Raises:
        ValueError: a row does not fit the types.
        RuntimeError: another process is writing this folder.
    """
    max_bytes, features = num_bytes_of(max_shard_size), parquet_features(features)
    folder = folder.resolve() if folder.is_symlink() else folder
    with _unfinished(folder) as partial:
        tables = _pieces(_of_one_type(_tables(ds), features), min(max_bytes, ROW_GROUP_BYTES))
        shards = [
            _write_shard(map(itemgetter(1), part), features, partial / f"train-{number:05d}.parquet")
            for number, part in groupby(_numbered(tables, max_bytes), itemgetter(0))
        ]
        for shard in shards:
            shard.rename(shard.with_stem(f"{shard.stem}-of-{len(shards):05d}"))
        (partial / SIDECAR).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        synced(partial / SIDECAR)
        replace_folder(folder)


def write_parquet(ds: Dataset | IterableDataset, features: Features, path: Path) -> None:
    """Write rows as one Parquet file, in bounded memory.

    Raises:
        ValueError: a row does not fit the types.
    """
    features = parquet_features(features)
    tables = _pieces(_of_one_type(_tables(ds), features), ROW_GROUP_BYTES)
    _write_parquet(tables, features, path)


def parquet_features(features: Features) -> Features:
    """The types with JSON in place of objects without any key, which Parquet cannot hold."""
    from datasets import Features

    return Features({name: _with_keys(feature) for name, feature in features.items()})


def _with_keys(feature: Any) -> Any:
    from datasets import Json, LargeList, List

    if isinstance(feature, dict):
        return {name: _with_keys(part) for name, part in feature.items()} or Json()
    if isinstance(feature, (List, LargeList)):
        return replace(feature, feature=_with_keys(feature.feature))
    return feature


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """An empty folder beside that one, for this process alone; what is left of it in the end is removed."""
    partial = partial_folder(folder)
    with written_alone(folder):
        settle_folder(folder)
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_folder(folder: Path) -> None:
    """Refuse to replace a folder that is not an earlier output, or part of one.

    Raises:
        ValueError: it holds something else, such as data that came from elsewhere.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    recover_folder(folder)
    finished, partial = _names(folder), _names(partial_folder(folder))
    is_ours = SIDECAR in finished and all(SHARD.fullmatch(name) for name in finished - {SIDECAR})
    is_part = all(UNFINISHED_SHARD.fullmatch(name) for name in partial - {SIDECAR})
    for place, replaceable in ((folder, is_ours or not finished), (partial_folder(folder), is_part)):
        if not replaceable:
            raise ValueError(f"{str(place)!r} is a folder that holds something else; name a new one as --output.")


def _names(folder: Path) -> set[str]:
    return {x.name for x in folder.iterdir()} if folder.is_dir() else set()


def _tables(ds: Dataset | IterableDataset) -> Iterator[pa.Table]:
    from datasets.utils import tqdm

    total = len(ds) if hasattr(ds, "__len__") else None
    with tqdm(total=total, desc="Writing", unit=" rows") as bar:
        for table in ds.with_format("arrow").iter(ROWS_A_TABLE):
            yield table
            bar.update(len(table))


def _of_one_type(tables: Iterable[pa.Table], features: Features) -> Iterator[pa.Table]:
    """The tables with the same columns of the same types; the first ones of a stream cannot know what comes later."""
    import pyarrow as pa
    from datasets.table import CastError, cast_table_to_schema

    schema, num_rows = features.arrow_schema, 0
    try:
        for table in tables:
            yield cast_table_to_schema(table, schema)
            num_rows += len(table)
    except (CastError, pa.ArrowException, TypeError) as error:  # the last is what `datasets` raises for unlike types
        raise ValueError(
            f"The rows after the first {num_rows:,} do not fit their columns, or cannot be read ({error}). Mend them, or give "
            "them as one .jsonl file without --streaming, which keeps such lines with the reason in gateau_error."
        ) from error


def _pieces(tables: Iterable[pa.Table], max_bytes: int) -> Iterator[pa.Table]:
    """The tables, cut where they are larger than that, but never within a row."""
    for table in tables:
        num_rows = max(1, max_bytes * len(table) // max(table.nbytes, 1))
        yield from (table.slice(a, num_rows) for a in range(0, len(table), num_rows))


def _numbered(tables: Iterable[pa.Table], max_bytes: int) -> Iterator[tuple[int, pa.Table]]:
    """Each table with the number of the group that it falls into, where a group has at most so many bytes."""
    number = size = 0
    for table in tables:
        if size and size + table.nbytes > max_bytes:
            number, size = number + 1, 0
        size += table.nbytes
        yield number, table


def _write_shard(tables: Iterable[pa.Table], features: Features, path: Path) -> Path:
    """One file, which has its name once it is whole."""
    unfinished = path.with_name(f".{path.name}")
    _write_parquet(tables, features, unfinished)
    return synced(unfinished).rename(path)


def _write_parquet(tables: Iterable[pa.Table], features: Features, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, features.arrow_schema) as writer:
        for _, group in groupby(_numbered(tables, ROW_GROUP_BYTES), itemgetter(0)):
            writer.write_table(pa.concat_tables(map(itemgetter(1), group)))
