"""Rows in, for the command line: files of JSON, Parquet, CSV, folders and patterns of these, the Hub."""

import glob
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from ..records import attach_record, column_of
from ..settings import did_you_mean
from .common_types import common_type
from .csv_files import reading_options
from .finding import SUFFIXES, check_signature, counted, files_of_folder, files_of_pattern, is_record, kind_of
from .hub_reading import head_of, repeated
from .json_records import UNREADABLE_REASON
from .replacing import recover_folder
from .sidecar import folder_of_pattern, is_pattern


logger = logging.getLogger(__name__)

SHOWN = 5  # places of unreadable lines that a warning names
NO_CARD = "Repo card metadata block was not found"


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
        data (`str`): a file of JSON lines or an array (`.jsonl`, `.json`, also `.gz` or `.zst`), a `.parquet`, `.csv` or
            `.tsv` file, a pattern such as `data/*.parquet`, a folder (of such files, or of `save_to_disk`), or a Hub id.
        split, name, revision (`str`, *optional*): as in `datasets.load_dataset`; `split` may be left out where there
            is a train split, or one split alone.
        streaming (`bool`): as an `IterableDataset`, of which nothing is kept on the disk.

    Raises:
        FileNotFoundError: `data` looks like a path or pattern, and nothing is there.
        ValueError: the files are of no known form or of several, cannot be read, or the split must be named.
    """
    from datasets import load_from_disk

    path = Path(data).expanduser()
    recover_folder(folder_of_pattern(data) if is_pattern(data) else path)
    if path.is_dir() and any((path / file).exists() for file in ("dataset_info.json", "dataset_dict.json")):
        ds = _choose_split(load_from_disk(str(path)), split)
        return ds.to_iterable_dataset() if streaming else ds
    if path.is_file():
        return _load_files([str(path)], streaming)
    if path.is_dir():
        with _no_word_of_a_card():
            return _load_folder(path, name, split, streaming)
    if is_pattern(data):
        return _load_files(files_of_pattern(data), streaming)
    if _looks_like_a_path(data):
        raise FileNotFoundError(f"There is no file or folder {data!r}" + did_you_mean(path.name, _beside(path), "."))
    with _no_word_of_a_card():
        return _choose_split(_load_from_hub(data, name, revision, streaming), split)


@contextmanager
def _no_word_of_a_card() -> Iterator[None]:
    """Without the warning for each time that a README without metadata is looked at, which is nothing to mend."""
    log = logging.getLogger("huggingface_hub.repocard")

    def is_other(record: logging.LogRecord) -> bool:
        return NO_CARD not in record.getMessage()

    log.addFilter(is_other)
    try:
        yield
    finally:
        log.removeFilter(is_other)


def _load_files(files: list[str], streaming: bool, split: str = "train", dataset_name: str = "json"):
    """Files of one kind, as one split."""
    kind = kind_of(files[0])
    if kind is None:
        raise ValueError(
            f"{files[0]!r} is of no known form; give a .jsonl, .parquet or .csv file, a folder or pattern of such files, or a "
            "Hub id."
        )
    for file in files:
        check_signature(file)
    if kind == "json":
        return _load_json(files, split, streaming, dataset_name)
    from datasets import load_dataset

    options = {"split": split, "streaming": streaming, **_options(kind, files)}
    reader = "csv" if kind == "tsv" else kind

    def load(files: list[str]):
        return load_dataset(reader, data_files={split: [glob.escape(x) for x in files]}, **options)

    try:
        return _readable(files, lambda: load(files))
    except ValueError:
        for file in files if len(files) > 1 else ():  # which one it is
            _readable([file], lambda file=file: load([file]))
        raise


def _options(kind: str, files: list[str]) -> dict[str, Any]:
    if kind in ("csv", "tsv"):
        return reading_options(files)
    return {"features": _common_features(files)} if kind == "parquet" else {}


def _load_folder(path: Path, name: str | None, split: str | None, streaming: bool):
    """A folder: as its card says, where it has one that parts the files; else the files of rows that are there."""
    if name is None and not _has_configurations(path):
        splits = files_of_folder(path)
        if splits:
            chosen = _chosen_split(splits, split)
            return _load_files(splits[chosen], streaming, chosen, path.resolve().name)
        return _load_what_else(path, split, streaming)
    return _load_by_card(path, name, split, streaming)


def _has_configurations(path: Path) -> bool:
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    card = path / "README.md"
    if not card.is_file():
        return (path / ".huggingface.yaml").is_file()
    data = _readable([str(card)], lambda: DatasetCard.load(card).data)
    return bool(MetadataConfigs.from_dataset_card_data(data))


def _load_what_else(path: Path, split: str | None, streaming: bool):
    """A folder without rows that we know, as far as `datasets` can make something of it, such as of texts."""
    wanted = "name one with .jsonl, .parquet or .csv files"
    there = [str(x) for x in path.rglob("*") if x.is_file() and not x.name.startswith(".")]
    if not there:
        raise FileNotFoundError(f"{str(path)!r} is an empty folder; {wanted}.")
    try:
        return _load_by_card(path, None, split, streaming)
    except (OSError, ValueError, BadZipFile) as error:
        raise ValueError(f"{str(path)!r} holds no file of rows, but {counted(there)}; {wanted} ({error}).") from error


def _load_by_card(path: Path, name: str | None, split: str | None, streaming: bool):
    """A folder, whose files `datasets` finds and parts into splits."""
    from datasets import load_dataset, load_dataset_builder
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet

    builder = _readable([str(path)], lambda: load_dataset_builder(str(path), name))
    files = {
        str(x): [file for file in part if not is_record(file)] for x, part in (builder.config.data_files or {}).items()
    }
    if isinstance(builder, Json) and builder.config.features is None and files:
        chosen = _chosen_split(files, split)
        return _load_json(files[chosen], chosen, streaming, builder.dataset_name)
    everything = [file for part in files.values() for file in part] if isinstance(builder, Parquet) else []
    options = {"streaming": streaming, "features": _common_features(everything)}
    loaded = _readable([str(path)], lambda: load_dataset(str(path), name, **options))
    return _choose_split(loaded, split)


def _load_json(files: list[str], split: str, streaming: bool, dataset_name: str = "json"):
    """Files of JSON by our own reader, which keeps what cannot be read as rows with a reason."""
    from datasets import Dataset, IterableDataset
    from datasets.exceptions import DatasetGenerationError

    from .json_rows import NoRowsError, json_builder

    builder = json_builder(files, split, dataset_name)
    try:
        if streaming:
            return builder.as_streaming_dataset(split)
        builder.download_and_prepare()
    except NoRowsError:
        return IterableDataset.from_generator(lambda: iter(())) if streaming else Dataset.from_dict({})
    except DatasetGenerationError as error:
        shown = repr(files[0]) if len(files) == 1 else f"One of {len(files)} files"  # which one, the cause says
        raise ValueError(f"{shown} cannot be read: {error.__cause__ or error}") from error
    ds = builder.as_dataset(split)
    _warn_of_unreadable(ds)
    return ds


def _warn_of_unreadable(ds) -> None:
    if UNREADABLE_REASON not in ds.column_names:
        return
    reasons = [reason for reason in column_of(ds, UNREADABLE_REASON) if reason is not None]
    if reasons:
        shown = "; ".join(reasons[:SHOWN]) + "; ..." * (len(reasons) > SHOWN)
        logger.warning("%d of %d rows cannot be read and are kept with the reason: %s", len(reasons), len(ds), shown)


def _common_features(files: list[str]):
    """The types that hold the rows of all Parquet files; None where they are of the same types.

    Raises:
        ValueError: a file is no Parquet, or has a column of a type that does not go with the others'.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    common, are_alike = None, True
    for file in files:
        try:
            found = Features.from_arrow_schema(pq.read_schema(file))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file!r} cannot be read: {error}") from error
        try:
            common = found if common is None else Features(common_type(common, found))
        except TypeError as error:
            raise ValueError(f"{file!r} cannot be read together with the files before it: {error}.") from error
        are_alike = are_alike and common == found
    return None if are_alike else common


def _readable(files: list[str], load):
    """What is loaded, with the reason in one line where it cannot be read."""
    from datasets.exceptions import DatasetsError

    try:
        return load()
    except (DatasetsError, ValueError) as error:
        shown = repr(files[0]) if len(files) == 1 else f"One of {len(files)} files such as {files[0]!r}"
        raise ValueError(f"{shown} cannot be read: {error.__cause__ or error}") from error


def _load_from_hub(repo_id: str, name: str | None, revision: str | None, streaming: bool):
    """From the Hub; a stream, which leaves no cached file to tell it, with a record of the commit that it comes from."""
    from datasets import load_dataset

    if not streaming:
        return repeated(lambda: _prepared_from_hub(repo_id, name, revision), f"Loading {repo_id}")
    commit_hash = head_of(repo_id, "dataset", revision)
    options = {"revision": commit_hash or revision, "streaming": True}
    loaded = repeated(lambda: load_dataset(repo_id, name, **options), f"Loading {repo_id}")
    for ds in loaded.values():
        attach_record(ds, "origin", {"repo_id": repo_id, "config": ds.info.config_name, "revision": commit_hash})
    return loaded


def _prepared_from_hub(repo_id: str, name: str | None, revision: str | None):
    """All splits in the cache, as `load_dataset` puts them there; files of JSON by our own reader."""
    from datasets import load_dataset_builder
    from datasets.packaged_modules.json.json import Json

    from .json_rows import json_builder_for

    builder = load_dataset_builder(repo_id, name, revision=revision)
    if isinstance(builder, Json) and builder.config.features is None and builder.config.field is None:
        builder = json_builder_for(builder)
    builder.download_and_prepare()
    loaded = builder.as_dataset()
    for ds in loaded.values():
        _warn_of_unreadable(ds)
    return loaded


def _looks_like_a_path(data: str) -> bool:
    """Whether a name that is nowhere here is meant as a file's: so is one whose end is nearly that of a file of rows."""
    if data.startswith((".", "/", "~")) or data.count("/") > 1 or data.lower().endswith(SUFFIXES):
        return True
    end = Path(data).suffix.lower()
    return end[1:].isalpha() and bool(get_close_matches(end, SUFFIXES, 1, 0.7))


def _beside(path: Path) -> list[str]:
    """Names of what is in the folder that a path is in."""
    return [x.name for x in path.parent.iterdir()] if path.parent.is_dir() else []


def _choose_split(loaded, split: str | None):
    return loaded[_chosen_split(loaded, split)] if isinstance(loaded, dict) else loaded


def _chosen_split(splits: dict, split: str | None) -> str:
    if split is None and len(splits) == 1:
        return next(iter(splits))
    split = split or "train"
    if split not in splits:
        raise ValueError(f"There is no split {split!r}; name one of {', '.join(splits)} with --split.")
    return split
