"""The type that holds the values of two, as files that were written apart have them for one column."""

from __future__ import annotations

from typing import Any

from ..settings import a_type


def common_type(one: Any, other: Any, column: str = "") -> Any:
    """The narrowest type, as `datasets` names it, that holds the values of both without changing them.

    Args:
        one, other: types; mappings of names to types for rows and objects.
        column (`str`): where they stand, for the message.

    Raises:
        TypeError: there is none.
    """
    from datasets import Json, List, Value

    if one == other or other == Value("null"):
        return one
    if one == Value("null"):
        return other
    if isinstance(one, dict) and isinstance(other, dict):
        names = dict.fromkeys((*one, *other))
        null = Value("null")
        return {x: common_type(one.get(x, null), other.get(x, null), f"{column}.{x}".lstrip(".")) for x in names}
    if isinstance(one, List) and isinstance(other, List) and one.length == other.length:
        return List(common_type(one.feature, other.feature, column), one.length)
    if isinstance(one, Json) or isinstance(other, Json):
        return Json()
    return _common_value(one, other, column)


def _common_value(one: Any, other: Any, column: str) -> Any:
    import pyarrow as pa
    from datasets import Features, Value

    refusal = TypeError(f"column {column!r} is {_name(other)} there and {_name(one)} in those")
    if not isinstance(one, Value) or not isinstance(other, Value):
        raise refusal
    schemas = [pa.schema([("x", feature())]) for feature in (one, other)]
    try:
        unified = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise refusal from error
    return Features.from_arrow_schema(unified)["x"]


def _name(feature: Any) -> str:
    from datasets import Value

    return feature.dtype if isinstance(feature, Value) else a_type(feature)
