"""Files of JSON as a reader of `datasets`: into its cache, memory-mapped, for a second time at once; or as a stream.

Every file is read twice: all of it tells the types of the columns, as no first part of it could.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.builder import Key
from datasets.data_files import DataFilesDict, DataFilesList

from .json_records import Record, read_records
from .json_types import features_of, tables_of


READER = "1.1.0"  # part of the name in the cache; another one whenever rows come out otherwise


@dataclass
class JsonRowsConfig(datasets.BuilderConfig):
    """Which files: `identity` changes with them, so that no cache is older than they are."""

    identity: str = ""


class JsonRows(datasets.ArrowBasedBuilder):
    """One row an object, and one a line, or part of a file, that is none; see `json_records` and `json_types`."""

    BUILDER_CONFIG_CLASS = JsonRowsConfig
    VERSION = datasets.Version(READER)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        files = dict(self.config.data_files)
        local = dl_manager.download(files)
        named = {split: _named(files[split], local[split]) for split in files}
        if self.info.features is None:
            everything = [file for part in named.values() for file in part]
            self.info.features = features_of(_records_of(everything, "Reading types"))
        if not self.info.features:
            raise NoRowsError
        return [datasets.SplitGenerator(split, {"files": part}) for split, part in named.items()]

    def _generate_tables(self, files: list[tuple[str, str]]) -> Iterator[tuple[Key, pa.Table]]:
        for i, (path, name) in enumerate(files):
            for j, table in enumerate(tables_of(read_records(path, name), self.info.features)):
                yield Key(i, j), table


class NoRowsError(Exception):
    """No file has a row."""


def _named(files: list[str], local: list[str]) -> list[tuple[str, str]]:
    """Where each file is, and what to call it: the last part of its name, if that tells it from the others."""
    names = [os.path.basename(file) for file in files]
    return list(zip(local, names if len(set(names)) == len(names) else files, strict=True))


def _records_of(files: list[tuple[str, str]], what: str) -> Iterator[Record]:
    from datasets.utils import tqdm

    for path, name in tqdm(files, desc=what, unit=" files", disable=len(files) < 2):
        yield from read_records(path, name)


def json_builder(files: list[str], split: str = "train", dataset_name: str = "json") -> JsonRows:
    """The reader of some local files.

    Args:
        files: their names, in order.
        split, dataset_name: what the dataset is to say of itself.
    """
    paths = [str(Path(file).absolute()) for file in files]
    stats = [os.stat(path) for path in paths]
    identity = repr([(x.st_size, x.st_mtime_ns, x.st_ctime_ns, x.st_ino) for x in stats])
    data_files = DataFilesDict({split: DataFilesList(paths, [(x,) for x in paths])})
    return JsonRows(dataset_name=dataset_name, hash="hf_gateau", data_files=data_files, identity=identity)


def json_builder_for(builder: datasets.DatasetBuilder) -> JsonRows:
    """The same files of the Hub as those of a builder of `datasets`, beside its own in the cache."""
    names = ("dataset_name", "config_id", "hash", "base_path", "token", "repo_id", "storage_options")
    same = {name: getattr(builder, name) for name in names}
    return JsonRows(config_name=builder.config.name, data_files=builder.config.data_files, **same)
