"""Data in script files, for a page that is opened from the disk: there a browser loads scripts, and fetches nothing.

A piece is JSON and arrays, compressed (raw deflate) and written as one string of UTF-16, two bytes a character. A byte order
mark tells a browser the encoding, whatever a server says of it. The few units that a string cannot hold are escaped, which makes
a piece 3% longer than its bytes; base64 would make it a third longer. `static/data.js` reads it back.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


ESCAPE, FLIP = 0x0001, 0x8000  # a unit after ESCAPE has its highest bit flipped
IN_NO_STRING = (ESCAPE, ord("\n"), ord("\r"), ord('"'), ord("\\"))
SURROGATES = range(0xD800, 0xE000)  # which no decoder lets through unless they are pairs
LEVEL = 6  # of deflate; 9 is 1% smaller and takes twice as long
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def write_piece(path: Path, content: Any, arrays: Mapping[str, np.ndarray] | None = None) -> int:
    """Write a piece, known to the page by its file's name; returns its size in bytes.

    Args:
        content: what `json` can write; NaN and infinity as strings. Lone surrogates arrive as they are.
        arrays: numbers beside it, (n,) each, by name.
    """
    data = compressed(packed(content, arrays or {}))
    call = f'gateau.piece("{path.stem}",{len(data)},"'.encode("utf-16-le")
    path.write_bytes(b"\xff\xfe" + call + as_units(data).tobytes() + '")\n'.encode("utf-16-le"))
    return path.stat().st_size


def packed(content: Any, arrays: Mapping[str, np.ndarray]) -> bytes:
    """The length of the JSON (4 bytes), the JSON, and the arrays' bytes; the JSON says where each begins, and of which type."""
    parts, places, at = [], {}, 0
    for name, values in arrays.items():
        data = shuffled(values)
        places[name] = [values.dtype.str[1:], at, len(values)]
        parts.append(data)
        at += len(data)
    header = json_bytes({"content": content, "arrays": places})
    return b"".join([len(header).to_bytes(4, "little"), header, *parts])


def json_bytes(content: Any) -> bytes:
    """JSON in UTF-8, short for all scripts; only halves of surrogate pairs, which UTF-8 cannot hold, are escaped."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return LONE_SURROGATE.sub(lambda x: f"\\u{ord(x[0]):04x}", text).encode("utf-8")


def shuffled(values: np.ndarray) -> bytes:
    """All first bytes of the numbers, then all second ones, and so on: like bytes side by side compress well."""
    values = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
    return values.view(np.uint8).reshape(len(values), values.dtype.itemsize).T.tobytes() if len(values) else b""


def compressed(data: bytes) -> bytes:
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -15)
    return deflate.compress(data) + deflate.flush()


def as_units(data: bytes) -> np.ndarray:
    """Bytes as UTF-16 units (n,) that a string of a script may hold; an odd last byte is filled up with 0."""
    units = np.frombuffer(data + b"\0" * (len(data) % 2), dtype="<u2")
    is_escaped = (units >= SURROGATES.start) & (units < SURROGATES.stop) | np.isin(units, IN_NO_STRING)
    places = np.arange(len(units)) + np.cumsum(is_escaped)
    out = np.full(len(units) + int(is_escaped.sum()), ESCAPE, dtype="<u2")
    out[places] = np.where(is_escaped, units ^ FLIP, units)
    return out
