"""A scored dataset as others get it: compact columns, a record of how they came about, and a digest to check them by."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ranking.columns import ARROW_TYPES, DERIVED_COLUMNS
from ..records import column_of, commonest
from ..rows.batches import COLUMNS, LISTS, VALUE_COLUMNS
from ..rows.conversations import CONTENT_COLUMNS, HASHED_COLUMNS, content_hash
from ..rows.cuts import Cuts


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

SCHEMA_VERSION = 1
KINDS = COLUMNS | VALUE_COLUMNS  # of measured columns
# Types that are pushed: what a perplexity of a segment says beyond 7 digits is noise, and there are hundreds a row.
NARROW = {"int64": "int32"}
ROWS_PER_READ = 256  # of texts that may be megabytes each


@dataclass
class ScoredRecord:
    """What goes with a scored dataset, as plain JSON.

    Attributes:
        splits (`dict`): split -> {"num_rows", "num_measured", "errors" (reason -> rows), "cut" (see `rows.cuts.Cuts`), "ranking" (see `ranking_record`),
            "digest" (see `rows_digest`), "measuring" (the models with their revisions, see `GateauScorer.describe`; None
            where not known), "source" (the data that were scored, see `records.origin_of`)}.
        selections (`dict`): configuration -> split -> {"record" (a `SelectionRecord`), "digest"}.
        version (`str`): of this package.
        schema_version (`int`): of this form.
    """

    splits: dict[str, dict[str, Any]]
    selections: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    version: str = ""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> ScoredRecord:
        """Read what `to_json` wrote; `where` is for the message.

        Raises:
            ValueError: the text is no such record, or one of a later form.
        """
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("schema_version"), int):
            raise ValueError(f"{where} is no record of a scored dataset; push the dataset again with push_scored.")
        if found["schema_version"] > SCHEMA_VERSION:
            raise ValueError(
                f"{where} has schema version {found['schema_version']}, and this hf_gateau reads up to {SCHEMA_VERSION}; "
                "install a newer one."
            )
        parts = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
        splits, selections = parts.get("splits"), parts.get("selections", {})
        is_sound = (
            splits and _is_nested(splits) and _is_nested(selections) and all(map(_is_nested, selections.values()))
        )
        if not is_sound or not all(isinstance(x.get("record"), dict) for y in selections.values() for x in y.values()):
            raise ValueError(
                f"{where} is damaged: it names no splits, or not in the known form. Push the dataset again."
            )
        return cls(**parts)


def _is_nested(part: Any) -> bool:
    """Whether a part is a mapping of mappings."""
    return isinstance(part, dict) and all(isinstance(x, dict) for x in part.values())


def gateau_columns(ds: Dataset) -> list[str]:
    """The measured and derived columns that a dataset has, in their order."""
    return [name for name in (*KINDS, *DERIVED_COLUMNS) if name in ds.column_names]


def compact_type(name: str) -> pa.DataType:
    """The Arrow type that a measured or derived column is pushed in."""
    import pyarrow as pa

    kind = NARROW.get(KINDS[name], KINDS[name]) if name in KINDS else ARROW_TYPES.get(name, "float64")
    if kind in LISTS:
        return pa.list_({"nlls": pa.float16(), "places": pa.int32()}.get(kind, pa.float32()))
    return {"bool": pa.bool_()}.get(kind) or getattr(pa, kind)()


def compact(ds: Dataset) -> Dataset:
    """The measured columns alone, in the types that are pushed."""
    import pyarrow as pa
    from datasets import Dataset, Features

    names = [name for name in KINDS if name in ds.column_names]
    schema = pa.schema([(name, compact_type(name)) for name in names])
    if not len(ds):  # of which `map` would leave the types
        return Dataset(schema.empty_table())
    columns = ds.select_columns(names).with_format("arrow")
    out = columns.map(_cast, batched=True, features=Features.from_arrow_schema(schema), desc="Compacting")
    return out.with_format(None)


def _cast(table: pa.Table) -> pa.Table:
    import pyarrow as pa

    return pa.table({name: table[name].cast(compact_type(name)) for name in table.column_names})


# Digests: what tells that rows are those that a record was written for


def rows_digest(ds: Dataset) -> str:
    """SHA-256 over all measured and derived columns, in order, whatever the batches and files they come in.

    Null and NaN are the same here, as in a frame.
    """
    names = gateau_columns(ds)
    parts = {name: hashlib.sha256() for name in names}
    for table in ds.select_columns(names).with_format("arrow").iter(4096):
        for name in names:
            for piece in _bytes_of(table[name].cast(compact_type(name)).combine_chunks()):
                parts[name].update(piece)
    whole = hashlib.sha256()
    for name, part in parts.items():
        whole.update(f"{name} {part.hexdigest()}\n".encode())
    return whole.hexdigest()


def _bytes_of(array: pa.Array) -> Iterator[bytes]:
    """Row by row what an array holds, as bytes: for each value whether it is null, its length, itself."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(array.type):
        sizes = pc.list_value_length(array).fill_null(-1).to_numpy().astype("<i8")
        values = array.flatten()
        if pa.types.is_integer(array.type.value_type):
            values = values.fill_null(-1).to_numpy().astype("<i4")
        else:
            values = values.fill_null(np.nan).to_numpy()
            values = np.where(np.isnan(values), np.nan, values).astype("<f4")  # one NaN, whatever its bits
        ends = np.cumsum(np.maximum(sizes, 0))
        for size, end in zip(sizes, ends, strict=True):
            yield size.tobytes() + values[end - max(size, 0) : end].tobytes()
    elif pa.types.is_string(array.type):
        for value in array.to_pylist():
            data = None if value is None else value.encode("utf-8", "surrogatepass")
            yield b"-" if data is None else f"{len(data)}:".encode() + data
    else:
        values = array.cast(pa.float64()).fill_null(np.nan).to_numpy()
        yield np.where(np.isnan(values), np.nan, values).astype("<f8").tobytes()


def content_hashes(ds: Dataset) -> Iterator[str]:
    """The content hash of every row, in order; texts are read a few rows at a time."""
    readable = [name for name in HASHED_COLUMNS if name in ds.column_names]
    if not set(readable) & set(CONTENT_COLUMNS):
        raise ValueError(f"The rows have none of the columns {', '.join(CONTENT_COLUMNS)}, but {ds.column_names}.")
    for batch in ds.select_columns(readable).with_format(None).iter(ROWS_PER_READ):
        for i in range(len(batch[readable[0]])):
            yield content_hash({name: batch[name][i] for name in readable})


def changed_rows(ds: Dataset) -> list[int]:
    """Positions of the rows whose text is not what `gateau_content_hash` was made of; reads every text once."""
    if "gateau_content_hash" not in ds.column_names:
        return []
    pairs = zip(column_of(ds, "gateau_content_hash"), content_hashes(ds), strict=True)
    return [i for i, (then, now) in enumerate(pairs) if then is not None and then != now]


def split_record(ds: Dataset, ranking: dict[str, Any] | None) -> dict[str, Any]:
    """The entry of one split in `ScoredRecord.splits`."""
    errors = Counter(column_of(ds, "gateau_error") if "gateau_error" in ds.column_names else [None] * len(ds))
    num_measured = errors.pop(None, 0)
    return {
        "num_rows": len(ds),
        "num_measured": num_measured,
        "errors": commonest(errors),
        "cut": Cuts.of_data(ds).to_record(),
        "ranking": ranking,
        "digest": rows_digest(ds),
    }
