"""Values as Arrow, Parquet, pandas and numpy hold them, turned into the plain Python values that they stand for.

`datasets` types turns of unequal keys as `List(Json)`: whoever reads the Arrow table, and not the dataset, gets strings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import pyarrow as pa

# Of a turn: may itself be JSON in a file that has lost its types.
NESTED = ("tool_calls",)


def as_turns(value: Any) -> Any:
    """A column of turns, each a mapping: out of JSON where the turns, their calls or all of them are strings of it.

    What is no JSON of a list or mapping comes back as it is, for the checks to name.
    """
    value = from_json(value)
    return [_as_turn(item) for item in value] if isinstance(value, list) else value


def _as_turn(value: Any) -> Any:
    turn = from_json(value)
    if not isinstance(turn, Mapping):
        return value
    packed = {name: from_json(turn[name]) for name in NESTED if isinstance(turn.get(name), (str, list))}
    return {**turn, **{name: _items(value) for name, value in packed.items()}}


def _items(value: Any) -> Any:
    return [from_json(item) for item in value] if isinstance(value, list) else value


def from_json(value: Any) -> Any:
    """The list or mapping that a string of JSON holds, or its null; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{", "null")):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return found if found is None or isinstance(found, (list, Mapping)) else value


def column_values(column: pa.ChunkedArray) -> list:
    """A column of an Arrow table as Python values, JSON inside it decoded by its type."""
    values = column.to_pylist()
    return [_decoded(value, column.type) for value in values] if _holds_json(column.type) else values


def _holds_json(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return True
    return any(_holds_json(kind.field(i).type) for i in range(kind.num_fields))


def _decoded(value: Any, kind: pa.DataType) -> Any:
    import pyarrow as pa

    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if isinstance(value, list):
        return [_decoded(item, kind.value_type) for item in value]
    if isinstance(value, dict):
        return {name: _decoded(item, kind.field(name).type) for name, item in value.items()}
    return value


def plain(value: Any) -> Any:
    """Numpy's arrays and numbers and torch's tensors, at any depth, as lists and Python's numbers."""
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def cell(value: Any) -> Any:
    """`plain`, of a cell of pandas, where a value that is missing is NaN, NA or NaT."""
    import pandas as pd

    value = plain(value)
    return None if not isinstance(value, (list, Mapping, str)) and pd.isna(value) else value
