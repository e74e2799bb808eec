"""What a scorer is handed and gives back: a batch of columns or one row, lists or Arrow, each in its own shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..files.json_records import UNREADABLE_REASON
from .conversations import CONTENT_COLUMNS


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

# Name -> type of every column that measuring adds, in order.
COLUMNS = {
    "gateau_ppl_short": "float64",
    "gateau_ppl_long": "float64",
    "gateau_ppl_no_context": "float64",
    "gateau_segment_ppl": "list",
    "gateau_segment_attention": "list",
    "gateau_num_context_tokens": "int64",
    "gateau_num_response_tokens": "int64",
    "gateau_truncated": "bool",
    "gateau_error": "string",
    "gateau_key": "string",
    "gateau_content_hash": "string",
}
# Likewise of what other scorers than the pair add, some of them to some data; "list32" is a list of float32.
VALUE_COLUMNS = {
    "gateau_ppl_response": "float64",
    "gateau_ppl_response_error": "string",
    "gateau_reward": "float64",
    "gateau_reward_error": "string",
    "gateau_embedding": "list32",
    "gateau_embedding_error": "string",
}

# All that measuring looks at; other columns of a batch are not even decoded.
READ_COLUMNS = ("id", *CONTENT_COLUMNS, UNREADABLE_REASON)


def readable(ds: Dataset) -> Dataset:
    """The columns that measuring looks at, as Python values."""
    columns = [name for name in READ_COLUMNS if name in ds.column_names] or ds.column_names
    return ds.select_columns(columns).with_format(None)


def rows_of(batch: dict[str, list]) -> list[dict[str, Any]]:
    """The rows of a batch of columns."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def column_features() -> Features:
    """The types of `COLUMNS`, as `datasets` names them."""
    from datasets import Features, List, Value

    return Features({x: List(Value("float64")) if kind == "list" else Value(kind) for x, kind in COLUMNS.items()})


class BatchShape:
    """Tells a batch from a row, and gives the new columns back in the shape that keeps their types for the caller.

    Args:
        batch: what `map` and its like hand to a function: a mapping of columns, or of one row's values; or an Arrow table
            (Ray Data's `batch_format="pyarrow"`).

    Attributes:
        rows (`list[dict]`): the rows, with `READ_COLUMNS` as far as they are there.
    """

    def __init__(self, batch: Mapping[str, Any] | pa.Table):
        import pyarrow as pa
        from datasets.formatting.formatting import LazyBatch, LazyRow

        self.table = batch if isinstance(batch, pa.Table) else None
        if self.table is not None:
            self.rows = batch.select([name for name in READ_COLUMNS if name in batch.column_names]).to_pylist()
            self.rows = self.rows or [{} for _ in range(batch.num_rows)]  # no column to read: an error a row
            return
        self.is_lazy = isinstance(batch, (LazyBatch, LazyRow))
        self.is_row = isinstance(batch, LazyRow) or (not self.is_lazy and _looks_like_a_row(batch))
        columns = {name: _plain(batch[name]) for name in READ_COLUMNS if name in batch}
        if self.is_row:
            self.rows = [columns]
        else:
            num_rows = batch.pa_table.num_rows if self.is_lazy else len(next(iter(batch.values()), ()))
            self.rows = [{name: values[i] for name, values in columns.items()} for i in range(num_rows)]

    def pack(self, rows: list[dict[str, Any]], columns: Mapping[str, str] = COLUMNS) -> dict[str, Any] | pa.Table:
        """The rows' new columns (name -> type): a mapping of columns, or of values for one row; Arrow where `Dataset.map` asked. A table
        comes back with its own columns too: Ray Data, unlike `map`, keeps nothing else."""
        if self.table is None and not self.is_lazy:
            return rows[0] if self.is_row else {name: [row[name] for row in rows] for name in columns}
        import pyarrow as pa

        types = {"float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_(), "string": pa.string()}
        types |= {"list": pa.list_(pa.float64()), "list32": pa.list_(pa.float32())}
        new = {name: pa.array([row[name] for row in rows], types[kind]) for name, kind in columns.items()}
        if self.table is None:
            return _ArrowColumns(new)
        own = {name: self.table[name] for name in self.table.column_names}
        return pa.table(own | new)


class _ArrowColumns(dict):
    """Arrow columns for `Dataset.map`, which writes them as they are.

    Plain lists would lose their type where the first batch has nothing but null in a column (`gateau_error`, in a sound
    dataset), and the first bad row after it would end the run. `map` admits only lists in the check that it makes on
    `values()`, hence these.
    """

    def values(self):
        return [column.to_pylist() for column in super().values()]


def _plain(value: Any) -> Any:
    """Numpy's arrays, as Ray Data and formatted datasets hand them over, as lists; the arrays in them too."""
    if not hasattr(value, "tolist"):
        return value
    value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _looks_like_a_row(batch: Mapping[str, Any]) -> bool:
    """A plain mapping is a row if its messages are turns, or if its values are not lists of one length."""
    messages = batch.get("messages")
    if isinstance(messages, list) and messages and all(isinstance(turn, Mapping) for turn in messages):
        return True
    lengths = {len(value) if isinstance(_plain(value), list) else None for value in batch.values()}
    return len(lengths) != 1 or None in lengths


REASON = "{}_error"  # column that says why another is null; may be absent
