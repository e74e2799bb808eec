"""What a scorer is handed and gives back: a batch of columns or one row, lists, Arrow or pandas, each in its own shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..files.json_records import UNREADABLE_REASON
from ..settings import a_type
from .conversations import HASHED_COLUMNS, MAY_HOLD_TURNS, TURN_COLUMNS
from .decoding import cell, column_values, plain


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from datasets import Dataset, Features

# Name -> type of every column that measuring adds, in order; "list" is a list of float64, "places" one of int64.
COLUMNS = {
    "gateau_ppl_short": "float64",
    "gateau_ppl_long": "float64",
    "gateau_ppl_no_context": "float64",
    "gateau_segment_ppl": "list",
    "gateau_segment_attention": "list",
    "gateau_segment_heads": "list",
    "gateau_num_far_segments": "int64",
    "gateau_token_nll_long": "nlls",
    "gateau_token_nll_short": "nlls",
    "gateau_token_nll_no_context": "nlls",
    "gateau_token_nll_far": "nlls",
    "gateau_token_nll_near": "nlls",
    "gateau_token_far_segment": "places",
    "gateau_token_text": "string",
    "gateau_token_starts": "places",
    "gateau_num_context_tokens": "int64",
    "gateau_num_response_tokens": "int64",
    "gateau_truncated": "bool",
    "gateau_num_cut_tokens": "int64",
    "gateau_context_rule": "string",
    "gateau_context_span": "places",
    "gateau_segment_starts": "places",
    "gateau_screened": "bool",
    "gateau_error": "string",
    "gateau_key": "string",
    "gateau_content_hash": "string",
}
# The response as text, and where in it its tokens begin: with the evidence of tokens, and off with it
RESPONSE_COLUMNS = ("gateau_token_text", "gateau_token_starts")
# What the layout alone tells, which no store keeps
LAYOUT_COLUMNS = (
    "gateau_truncated",
    "gateau_num_cut_tokens",
    "gateau_context_rule",
    "gateau_context_span",
    "gateau_segment_starts",
    *RESPONSE_COLUMNS,
)
# Likewise of what other scorers than the pair add, some of them to some data; see `LISTS`.
VALUE_COLUMNS = {
    "gateau_ppl_response": "float64",
    "gateau_ppl_response_error": "string",
    "gateau_windows": "places",
    "gateau_window_nll": "nlls",
    "gateau_window_nll_error": "string",
    "gateau_reward": "float64",
    "gateau_reward_error": "string",
    "gateau_embedding": "list32",
    "gateau_embedding_error": "string",
}

# Types of lists -> of what is in them
LISTS = {"list": "float64", "list32": "float32", "nlls": "float32", "places": "int64"}

# All that measuring looks at; other columns of a batch are not even decoded.
READ_COLUMNS = ("id", *HASHED_COLUMNS, UNREADABLE_REASON)

# Columns that hold mappings -> whether they are lists of them.
JSON_COLUMNS = {**dict.fromkeys(TURN_COLUMNS, True), "tools": True, "chat_template_kwargs": False}


def readable(ds: Dataset) -> Dataset:
    """The columns that measuring looks at, as Python values."""
    columns = [name for name in READ_COLUMNS if name in ds.column_names] or ds.column_names
    return ds.select_columns(columns).with_format(None)


def rows_of(batch: dict[str, list]) -> list[dict[str, Any]]:
    """The rows of a batch of columns."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def column_features() -> Features:
    """The types of `COLUMNS`, as `datasets` names them."""
    from datasets import Features

    return Features({name: feature_of(kind) for name, kind in COLUMNS.items()})


def feature_of(kind: str) -> Any:
    """A type of `COLUMNS`, as `datasets` has it."""
    from datasets import List, Value

    return List(Value(LISTS[kind])) if kind in LISTS else Value(kind)


class BatchShape:
    """Tells a batch from a row, and gives the new columns back in the shape that keeps their types for the caller.

    Args:
        batch: what `map` and its like hand to a function: a mapping of columns, or of one row's values; an Arrow table (Ray
            Data's `batch_format="pyarrow"`, `with_format("arrow")`) or a data frame of pandas.

    Attributes:
        rows (`list[dict]`): the rows, with `READ_COLUMNS` as far as they are there, as plain Python values.

    Raises:
        TypeError: the batch is none of these.
    """

    def __init__(self, batch: Mapping[str, Any] | pa.Table | pd.DataFrame):
        import pandas as pd
        import pyarrow as pa
        from datasets.formatting.formatting import LazyBatch, LazyRow

        self.table, self.is_lazy, self.is_row = None, isinstance(batch, (LazyBatch, LazyRow)), False
        if isinstance(batch, pd.DataFrame):
            self.table, num_rows = batch, len(batch)
            columns = {name: [cell(value) for value in batch[name]] for name in READ_COLUMNS if name in batch}
        elif isinstance(batch, pa.Table):
            self.table, num_rows = batch, batch.num_rows
            columns = {name: column_values(batch[name]) for name in READ_COLUMNS if name in batch.column_names}
        elif isinstance(batch, Mapping):
            columns = {name: plain(batch[name]) for name in READ_COLUMNS if name in batch}
            self.is_row = isinstance(batch, LazyRow) or (not self.is_lazy and _looks_like_a_row(batch))
            if self.is_row:
                self.rows = [columns]
                return
            num_rows = batch.pa_table.num_rows if self.is_lazy else len(next(iter(batch.values()), ()))
        else:
            raise TypeError(
                f"A batch is {a_type(batch)}; give a mapping of columns, an Arrow table or a data frame of pandas: "
                "ds.with_format(None), or batch_format='pyarrow'."
            )
        self.rows = [{name: values[i] for name, values in columns.items()} for i in range(num_rows)]

    def pack(self, rows: list[dict[str, Any]], columns: Mapping[str, str] = COLUMNS) -> dict[str, Any] | pa.Table:
        """The rows' new columns (name -> type): a mapping of columns, or of values for one row; Arrow where `Dataset.map` asked. A table
        comes back with its own columns too: Ray Data, unlike `map`, keeps nothing else."""
        if self.table is None and not self.is_lazy:
            return rows[0] if self.is_row else {name: [row[name] for row in rows] for name in columns}
        import pyarrow as pa

        types = {"float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_(), "string": pa.string()}
        types |= {kind: pa.list_(types.get(of) or getattr(pa, of)()) for kind, of in LISTS.items()}
        new = {name: pa.array([row[name] for row in rows], types[kind]) for name, kind in columns.items()}
        if self.table is None:
            return _ArrowColumns(new)
        return pa.table(_own_columns(self.table) | new)


def _own_columns(table: pa.Table | pd.DataFrame) -> dict[str, Any]:
    """The columns of a table, for Arrow; those of pandas that hold mappings as JSON, since turns may have unequal keys."""
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        return {name: table[name] for name in table.column_names}
    return {str(name): _from_pandas(str(name), table[name]) for name in table.columns}


def _from_pandas(name: str, column: pd.Series) -> pa.Array:
    """A column of pandas, of one type in every batch as far as it can be told: a batch may have nothing but nulls."""
    import pyarrow as pa

    values = [cell(value) for value in column]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    if name not in JSON_COLUMNS and not any(isinstance(item, Mapping) for item in items):
        return pa.array(column, from_pandas=True)
    is_list = JSON_COLUMNS.get(name, any(isinstance(value, list) for value in values))
    if not is_list or not all(isinstance(value, list) or value is None for value in values):
        return pa.array([_packed(value) for value in values], pa.json_())
    lists = [None if value is None else [_packed(item) for item in value] for value in values]
    texts = pa.array(lists, pa.list_(pa.string()))
    typed = pa.ExtensionArray.from_storage(pa.json_(), texts.values)
    return pa.ListArray.from_arrays(texts.offsets, typed, mask=texts.is_null())


def _packed(value: Any) -> str | None:
    """JSON of a value; a string is JSON already, as a stream of data frames has it."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


class _ArrowColumns(dict):
    """Arrow columns for `Dataset.map`, which writes them as they are.

    Plain lists would lose their type where the first batch has nothing but null in a column (`gateau_error`, in a sound
    dataset), and the first bad row after it would end the run. `map` admits only lists in the check that it makes on
    `values()`, hence these.
    """

    def values(self):
        return [column.to_pylist() for column in super().values()]


def _looks_like_a_row(batch: Mapping[str, Any]) -> bool:
    """A plain mapping is a row if a column of turns holds turns, or if its values are not lists of one length."""
    for turns in (plain(batch.get(name)) for name in MAY_HOLD_TURNS):
        if isinstance(turns, list) and turns and all(isinstance(turn, Mapping) for turn in turns):
            return True
    lengths = {len(value) if isinstance(plain(value), list) else None for value in batch.values()}
    return len(lengths) != 1 or None in lengths


REASON = "{}_error"  # column that says why another is null; may be absent
