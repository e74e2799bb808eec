"""Shapes that files of rows come in, written by plain Python, pyarrow and pandas, with the rows that plain `json` reads."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


class Shape(NamedTuple):
    """A file's bytes, and its name's suffix; `bad`: place of a row that cannot be read -> words of the reason."""

    data: bytes
    bad: dict[int, str] = {}
    suffix: str = ".jsonl"


def lines(*rows: Any) -> str:
    """Rows as JSON lines; a text is a line as it stands."""
    return "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)


def turns(*contents: str, **more: Any) -> dict[str, Any]:
    asked = [
        {"role": role, "content": content} for role, content in zip(("user", "assistant"), contents, strict=False)
    ]
    return {"messages": asked, **more}


def of(*rows: Any, bad: dict[int, str] | None = None) -> Shape:
    return Shape(lines(*rows).encode(), bad or {})


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 0.25, "y": [1, None]}}}
CALLED = {
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "2024-01-01", "name": "f"},
        {"role": "assistant", "content": "5"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
}
GOOD = [turns("q", f"a{i}", id=i) for i in range(4)]
JSON = "it is no JSON"
ROWS = [{"id": i, "text": "t" * i, "tags": ["x", 1.5, None]} for i in range(5)]
WHOLE = json.dumps(ROWS)

SHAPES = {
    "plain": of(*GOOD),
    "all answers are dates": of(turns("q", "2024-01-31"), turns("q", "1999-12-24")),
    "all answers are times": of({"response": "2024-01-31T10:00:00Z"}, {"response": "2024-01-31 10:00:00"}),
    "all answers are numbers in quotes": of({"response": "12"}, {"response": "007"}),
    "tool calls": of(CALLED, turns("q", "a")),
    "tool calls after many without": of(*[turns("q", "a")] * 300, CALLED),
    "content is text or parts": of(turns("5", "true"), turns([{"type": "text", "text": "a"}], "b")),
    "a bad line among mixed types": of(CALLED, {"messages": 5}, "not json", turns("q", "a"), bad={2: JSON}),
    "two bad lines": of("{", *GOOD, "[1]", bad={0: JSON, 5: "it is an array, not an object"}),
    "lines of all kinds": of(GOOD[0], "null", "5", '"x"', "{}", bad={i: "it is " for i in range(1, 5)}),
    "a cut last line": Shape(lines(*GOOD).encode()[:-20], {3: "the file may break off here"}),
    "no end of the last line": Shape(lines(*GOOD).encode()[:-1]),
    "a cut first line": of('{"messages": [{"role": "user", "cont', *GOOD, bad={0: JSON}),
    "a line of zeros": Shape(lines(*GOOD).encode() + b"\0" * 500, {4: JSON}),
    "integers beyond 64 bits": of({"id": 2**63, "n": 10**30}, {"id": 5, "n": 1}, {"id": 6, "n": -(2**70)}),
    "integers of 5,000 digits": of({"n": 1}, '{"n": ' + "7" * 5000 + "}"),
    "64 bits without a sign": of({"id": 2**64 - 1}, {"id": 0}),
    "integers and decimals": of({"n": 1}, {"n": 0.1}, {"n": 2**53}),
    "large integers and decimals": of({"n": 2**53 + 1}, {"n": 0.5}),
    "every digit": of({"n": 0.1234567890123456}, {"n": 1e-320}),
    "numbers and texts": of({"id": 1}, {"id": "a"}, {"id": "5"}, {"id": True}, {"id": None}),
    "UTF-8 that is broken": Shape(
        lines(GOOD[0]).encode() + '{"a": "é"}\n'.encode("latin-1") + lines(GOOD[1]).encode(), {1: "it is no UTF-8"}
    ),
    "a byte order mark": Shape("\ufeff".encode() + lines(*GOOD).encode()),
    "UTF-16": Shape(lines(*GOOD, turns("q", "é漢")).encode("utf-16")),
    "letters of all kinds": of(turns("é漢😀\u2028\u0085", "a\\u0000b")),
    "CRLF": Shape(lines(*GOOD).replace("\n", "\r\n").encode()),
    "blank lines": of("", GOOD[0], "  ", "", GOOD[1], ""),
    "NaN and Infinity": of({"n": 1.5}, '{"n": NaN}', '{"n": -Infinity}'),
    "duplicated keys": of('{"a": 1, "a": 2}', {"a": 3}),
    "half of a surrogate pair": of(GOOD[0], '{"a": "\\ud800"}', bad={1: "a lone surrogate"}),
    "an empty object": of(turns("q", "a", completion={}), turns("q", "a", completion={})),
    "empty objects within": of({"a": [{}], "b": {"c": {}}}, {"a": [], "b": {"c": {}}}),
    "empty lists": of({"a": []}, {"a": []}),
    "nested unequal objects": of({"m": {"a": 1}}, {"m": {"b": {"c": [1, "x"]}}}, {"m": {}}),
    "list or object": of({"m": [1]}, {"m": {"a": 1}}, {"m": None}),
    "null at first": of(*[{"a": None, "b": 1}] * 10_001, {"a": "late", "b": 2}),
    "a column that comes late": of(*[{"b": 1}] * 3_000, {"a": "late"}),
    "deep": of({"a": json.loads("[" * 60 + "]" * 60)}),
    "too deep": of(GOOD[0], '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", bad={1: "it is nested too deeply"}),
    "strange names": of({"": 1, "_type": "x", "a.b": {"_type": "y", "dtype": "z"}, "unreadable": "mine"}),
    "array": Shape(WHOLE.encode(), suffix=".json"),
    "array over lines": Shape(json.dumps(ROWS, indent=2).encode(), suffix=".json"),
    "array that is cut": Shape(WHOLE[:-30].encode(), {4: "the file breaks off in it"}, ".json"),
    "array over lines that is cut": Shape(
        json.dumps(ROWS, indent=2)[:-30].encode(), {4: "the file breaks off in it"}, ".json"
    ),
    "array without its end": Shape(WHOLE[:-1].encode(), {5: "the array has no end"}, ".json"),
    "array of texts": Shape(b'["a", "2024-01-01"]', suffix=".json"),
    "array of unlike things": Shape(b'[{"a": 1}, 5]', {1: "it is a number, not an object"}, ".json"),
    "one object over lines": Shape(json.dumps(ROWS[3], indent=2).encode(), suffix=".json"),
    "objects over lines": Shape("\n".join(json.dumps(row, indent=2) for row in ROWS).encode(), suffix=".json"),
    "lines called .json": Shape(lines(*ROWS).encode(), suffix=".json"),
}


def integers_as_kept(digits: str) -> int | str:
    """What the reader says that it makes of integers."""
    return digits if len(digits) > 30 or not -(2**63) <= int(digits) < 2**64 else int(digits)


def expected_rows(shape: Shape) -> list[dict[str, Any] | None]:
    """The rows by `json` alone, None for those that cannot be read."""
    text = shape.data.decode("utf-16" if shape.data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "replace")

    def read(text):
        return json.loads(text, parse_int=integers_as_kept)

    if text.startswith("["):
        whole = text if not shape.bad or "unlike" in text or text.endswith("]") else None
        found = read(whole) if whole else ROWS[: next(iter(shape.bad))] + [None]
        found = [{"text": x} if isinstance(x, str) else x for x in found]
    elif text.startswith("{\n") and shape.suffix == ".json":
        found = read("[" + text.replace("\n}\n{", "\n},{") + "]")
    else:
        found = [None if i in shape.bad else read(x) for i, x in enumerate(filter(str.strip, text.split("\n")))]
    return [None if i in shape.bad else row for i, row in enumerate(found)]


def packed(data: bytes, suffix: str) -> bytes:
    """Data as files of that suffix hold them."""
    if suffix == ".gz":
        return gzip.compress(data)
    return pa.compress(data, "zstd", asbytes=True) if suffix == ".zst" else data


def _struct(path: Path, rows: list[dict]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def _large(path: Path, rows: list[dict]) -> None:
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.cast(pa.schema([("id", pa.int32()), ("text", pa.large_string())])), path, compression="zstd")


def _dictionary(path: Path, rows: list[dict]) -> None:
    table = pa.table({"id": [x["id"] for x in rows], "text": pa.array([x["text"] for x in rows]).dictionary_encode()})
    pq.write_table(table, path, row_group_size=2, version="1.0")


def _pandas(path: Path, rows: list[dict]) -> None:
    pd.DataFrame(rows).to_parquet(path)


def _pandas_indexed(path: Path, rows: list[dict]) -> None:
    pd.DataFrame(rows).set_index("id").to_parquet(path)


FLAT = [{"id": i, "text": f"t{i}"} for i in range(5)]
# name -> what writes it, its rows
PARQUET: dict[str, tuple[Callable[[Path, list[dict]], None], list[dict]]] = {
    "structs": (_struct, [turns("q", "2024-01-01", id=i) for i in range(3)]),
    "large strings": (_large, FLAT),
    "dictionaries, several row groups": (_dictionary, FLAT),
    "pandas": (_pandas, FLAT),
    "pandas with an index": (_pandas_indexed, [{"id": f"r{i}", "text": f"t{i}"} for i in range(5)]),
    "pandas with lists of structs": (_pandas, [turns("q", "a", id=i) for i in range(3)]),
}
