"""Which columns the objects of JSON files make, told from all of them, and those columns as Arrow.

A value keeps its type: a text that looks like a date is a text. Where values of a place are of unlike kinds, objects with
unequal keys, or without any, the place is JSON (`datasets.Json`), which keeps each as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features

    from .json_records import Record

LARGEST_EXACT = 2**53  # integers up to here are exact among decimal numbers
DEEPEST = 16  # lists and objects within each other that are columns; what is deeper is JSON
ENCODER = json.JSONEncoder(ensure_ascii=False)
BATCH_BYTES = 16 * 2**20  # about as much text becomes a table at a time
ROW_BYTES = 200  # of an object in memory, beside its text


class Shape:
    """What was seen at one place of many values: `add` them, then ask for the `feature`.

    Attributes:
        kinds: Python types of the values, without that of None.
        item: of the lists' items. fields: of the objects' values; None before there is one.
        is_uneven: whether objects had unequal keys, or none at all.
        low, high: of the integers.
    """

    __slots__ = ("kinds", "item", "fields", "is_uneven", "low", "high", "depth")

    def __init__(self, depth: int = 0):
        self.kinds: set[type] = set()
        self.item: Shape | None = None
        self.fields: dict[str, Shape] | None = None
        self.is_uneven, self.low, self.high, self.depth = False, 0, 0, depth

    def add(self, value: Any) -> None:
        """See one more value."""
        if value is None:
            return
        kind = type(value)
        if kind not in self.kinds:
            self.kinds.add(kind)
        if kind is int:
            if value > self.high:
                self.high = value
            elif value < self.low:
                self.low = value
        elif kind is dict:
            if not self.is_uneven:
                self._add_object(value)
        elif kind is list:
            self._add_list(value)

    def _add_object(self, value: dict[str, Any]) -> None:
        if self.fields is None:
            self.fields = {name: Shape(self.depth + 1) for name in value}
        if not value or self.depth >= DEEPEST or self.fields.keys() != value.keys():
            self.is_uneven, self.fields = True, None
            return
        for name, part in value.items():
            shape = self.fields[name]
            if type(part) is not str:
                shape.add(part)
            elif str not in shape.kinds:  # most values are texts
                shape.kinds.add(str)

    def _add_list(self, value: list) -> None:
        if self.depth >= DEEPEST:
            self.is_uneven = True
            return
        if self.item is None:
            self.item = Shape(self.depth + 1)
        for part in value:
            self.item.add(part)

    def feature(self) -> Any:
        """The type, as `datasets` has it."""
        from datasets import Json, Value

        if not self.kinds:
            return Value("null")
        if self.is_uneven or len(self.kinds) > 1:
            return Value("float64") if self._are_numbers() else Json()
        (kind,) = self.kinds
        if kind is dict:
            fields = {name: shape.feature() for name, shape in self.fields.items()}
            return Json() if any(isinstance(field, Json) for field in fields.values()) else fields
        if kind is list:
            return self._list_feature()
        if kind is int:
            return self._integer_feature()
        return Value({str: "string", bool: "bool", float: "float64"}[kind])

    def _integer_feature(self) -> Any:
        from datasets import Json, Value

        if self.high < 2**63:
            return Value("int64")
        return Value("uint64") if self.low >= 0 else Json()

    def _list_feature(self) -> Any:
        """A text alone would be taken for JSON itself when `datasets` writes it again, so only objects are items as JSON."""
        from datasets import Json, List

        item = self.item.feature()
        return Json() if isinstance(item, Json) and self.item.kinds != {dict} else List(item)

    def _are_numbers(self) -> bool:
        return self.kinds == {int, float} and max(-self.low, self.high) <= LARGEST_EXACT


def features_of(records: Iterable[Record]) -> Features:
    """The columns of rows, in the order in which they are met; empty without any row."""
    from datasets import Features

    columns: dict[str, Shape] = {}
    for row, _ in records:
        for name, value in row.items():
            if name not in columns:
                columns[name] = Shape()
            columns[name].add(value)
    return Features({name: shape.feature() for name, shape in columns.items()})


def tables_of(records: Iterable[Record], features: Features) -> Iterator[pa.Table]:
    """The rows as Arrow tables with these columns, null where a row lacks one.

    Raises:
        ValueError: a value is of another type; `features` are those of other rows.
    """
    import pyarrow as pa
    from datasets.table import table_cast

    converters = {name: _converter(feature) for name, feature in features.items()}
    stored = pa.schema([(name, _storage(feature)) for name, feature in features.items()])
    for batch in _batches(records):
        try:
            columns = [
                pa.array(map(convert, values) if convert else values, stored.field(name).type, size=len(batch))
                for name, convert in converters.items()
                for values in [[row.get(name) for row in batch]]
            ]
        except (pa.ArrowException, OverflowError, TypeError, AttributeError) as error:
            raise ValueError(f"the file has changed while it was read ({error}); give the command again.") from error
        yield table_cast(pa.Table.from_arrays(columns, schema=stored), features.arrow_schema)


def _batches(records: Iterable[Record]) -> Iterator[list[dict[str, Any]]]:
    batch, size = [], 0
    for row, num_characters in records:
        batch.append(row)
        size += num_characters + ROW_BYTES
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _storage(feature: Any) -> pa.DataType:
    """The Arrow type of a feature with JSON as text, which Arrow can make of Python's values."""
    import pyarrow as pa
    from datasets import Json, List

    if isinstance(feature, Json):
        return pa.string()
    if isinstance(feature, List):
        return pa.list_(_storage(feature.feature))
    if isinstance(feature, dict):
        return pa.struct([(name, _storage(part)) for name, part in feature.items()])
    return feature()


def _converter(feature: Any) -> Callable[[Any], Any] | None:
    """What makes a value that Arrow can store of one that may hold JSON; None where it is stored as it is."""
    from datasets import Json, List

    if isinstance(feature, Json):
        return _dumped
    if isinstance(feature, List) and (convert := _converter(feature.feature)):
        return lambda value: None if value is None else [convert(part) for part in value]
    parts = {name: _converter(part) for name, part in feature.items()} if isinstance(feature, dict) else {}
    if not any(parts.values()):
        return None
    parts = {name: convert or (lambda value: value) for name, convert in parts.items()}
    return lambda value: None if value is None else {name: parts[name](part) for name, part in value.items()}


def _dumped(value: Any) -> str | None:
    return None if value is None else ENCODER.encode(value)
