"""One scored row for a page to show: its texts, its numbers a segment and a token, and where each segment stands in the text.

Characters are counted as a browser counts them, in UTF-16 units. Nats are whole thousandths in 16 bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..models.packing import Cut
from ..ranking.evidence import BEST, FAR, LONG, NEAR, NO_CONTEXT, SHORT
from ..rows.batches import RESPONSE_COLUMNS
from ..rows.conversations import HASHED_COLUMNS
from ..rows.parts import texts_of
from .segments import character_spans, cut_mark, segment_measures


UNKNOWN, MOST = -(2**15), 2**15 - 1  # thousandths: no number, and the most that is told
META_WIDTH, MOST_META = 2000, 40  # characters of a value, columns
TOKENS = {"long": LONG, "short": SHORT, "no_context": NO_CONTEXT, "far": FAR, "near": NEAR}


def thousandths(values: Sequence[float | None]) -> np.ndarray:
    """Numbers as int16 (n,), at most 32.767 in size; what is no number is `UNKNOWN`."""
    numbers = np.array([np.nan if x is None else x for x in values], dtype=float)
    known = np.clip(np.round(np.nan_to_num(1000 * numbers, nan=0, posinf=MOST, neginf=-MOST)), -MOST, MOST)
    return np.where(np.isnan(numbers), UNKNOWN, known).astype(np.int16)


def utf16_places(text: str, places: Sequence[int]) -> np.ndarray:
    """Places in a text, counted in characters, as counted in UTF-16 units."""
    places = np.asarray(places, dtype=np.int64)
    if text.isascii() or not len(places) or max(text) <= "\uffff":
        return places
    long = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4") > 0xFFFF
    return places + np.concatenate([[0], np.cumsum(long)])[np.clip(places, 0, len(text))]


def row_record(row: Mapping[str, Any], cut: Cut | None) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """What is told of a row beside the table: JSON, arrays by name, and its context, which other rows may have too.

    Arrays, each as far as it was measured: "gain" and "attention" (S,) of segments, the second as the logarithm of its multiple of
    the mean; "starts" and "ends" (S,) of segments in the context; "long", "short", "no_context", "far", "near" (R,) of the
    response's tokens, and "best" (R,), the segment that "far" is of; "token_starts" (R,) in "read".
    """
    before, context, instruction, response = texts_of(row)
    measures = segment_measures(dict(row))
    gain, attention = (measures.bars.get(name, []) for name in ("gain", "attention"))
    arrays = {}
    if gain:
        arrays["gain"] = thousandths(gain)
        spans, is_exact = character_spans(dict(row), len(gain), cut, context)
        if spans:
            arrays |= zip(("starts", "ends"), _int32(context, list(zip(*spans, strict=True))), strict=True)
    if attention:
        with np.errstate(divide="ignore"):
            arrays["attention"] = thousandths(np.log(attention))
    for name, column in TOKENS.items():
        if row.get(column):
            arrays[name] = thousandths(row[column])
    text, starts = (row.get(name) for name in RESPONSE_COLUMNS)
    if text is not None and starts:
        arrays["token_starts"] = utf16_places(text, starts).astype(np.int32)
    if row.get(BEST):
        arrays["best"] = np.array([-1 if x is None else x for x in row[BEST]], dtype=np.int32)
    record = {
        "before": before,
        "instruction": instruction,
        "response": response,
        "read": text,  # the response as its tokens have it
        "cut": cut_mark(dict(row)),
        "meta": _meta(row),
        **({"near": _num_near(row, len(gain)), "exact": is_exact, "baseline": measures.baseline} if gain else {}),
    }
    return record, arrays, context


def _int32(text: str, columns: list[Sequence[int]]) -> list[np.ndarray]:
    return [utf16_places(text, places).astype(np.int32) for places in columns]


def _num_near(row: Mapping[str, Any], num_segments: int) -> int:
    """How many of the last segments are near: those that the short sibling sees a part of, as far as the row says; else as many as
    CAS variant 'gain_far' takes for near."""
    far = row.get("gateau_num_far_segments")
    return num_segments - far if far is not None else min(4, -(-num_segments // 4))


def _meta(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The row's other columns of one value, as text."""
    found = []
    for name, value in row.items():
        if name in HASHED_COLUMNS or name.startswith("gateau_segment_") or name.startswith("gateau_token_"):
            continue
        if value is None or (isinstance(value, list) and name.startswith("gateau_")):
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        found.append((name, text[:META_WIDTH] + (" ..." if len(text) > META_WIDTH else "")))
    return found[:MOST_META]
