"""What stands in a file of JSON, one object at a time: lines, an array, objects one after another over several lines, or an
array under a key such as `data` of one object, whose other keys are left out.

What cannot be read is a row too: its text in the column `unreadable`, the reason and the place in `unreadable_reason`.
Objects are what Python's `json` makes of them, but that numbers beyond 64 bits stay as text, digit by digit.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any, NamedTuple

from .unpacking import Unpacked


UNREADABLE, UNREADABLE_REASON = "unreadable", "unreadable_reason"
HEAD = 1 << 16  # characters that tell the form of a file
PIECE = 1 << 20  # characters read at a time of an array
LONGEST_SHOWN = 1_000  # characters kept of a part that cannot be read and is no line
LINES = (".jsonl", ".ndjson")  # parts of names that promise one object a line
ROW_KEYS = (
    "data",
    "rows",
    "examples",
    "instances",
    "items",
    "samples",
    "records",
    "dataset",
)  # with all rows under them
LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
CUT_NUMBER, CUT_ESCAPE = re.compile(r"[.eE][+-]?"), re.compile(r"(\\?u?[0-9a-fA-F]{0,4}){1,2}")
ESCAPED_BYTES = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8, as Python's surrogateescape keeps them
NEXT_KEY, ARRAY_OF_OBJECTS = re.compile(r'\s*[{,]\s*"([^"\\]*)"\s*:\s*'), re.compile(r"\[\s*\{")
KINDS = {
    list: "an array",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    type(None): "null",
}


def _integer(digits: str) -> int | str:
    if len(digits) < 19:
        return int(digits)
    if len(digits) > 20:
        return digits
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else digits


def _decimal(digits: str) -> float | str:
    number = float(digits)
    return digits if math.isinf(number) else number


DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_decimal)


class Record(NamedTuple):
    """One row, and of how many characters it was read."""

    row: dict[str, Any]
    num_characters: int


def read_records(path: str, name: str) -> Iterator[Record]:
    """The objects of a file, in bounded memory as long as each of them is.

    Args:
        path (`str`): a local file, plain or packed by gzip or Zstandard, in UTF-8, or with a mark in UTF-16 or UTF-32.
        name (`str`): what reasons and errors call it.

    Raises:
        ValueError: an array, or objects over several lines, are broken in the middle; or nothing can be unpacked.
    """
    with Unpacked(path) as unpacked:
        count = 0
        with io.TextIOWrapper(io.BufferedReader(unpacked), unpacked.encoding, unpacked.errors, newline="\n") as text:
            for count, record in enumerate(_records(text, name), 1):  # noqa: B007
                yield record
        if unpacked.fault and not count:
            raise ValueError(f"{name} cannot be unpacked: {unpacked.fault}.")
        if unpacked.fault:
            yield _unreadable("", f"the packed file breaks off: {unpacked.fault}", f"after row {count} of {name}")


def _records(text: io.TextIOWrapper, name: str) -> Iterator[Record]:
    head = text.read(HEAD)
    form = form_of(head)
    if not any(part in name.lower() for part in LINES) and _has_rows_under_key(head):
        return _from_rows_under_key(_Parts(head, text, name))
    if form == "lines":
        return _from_lines(_lines(head, text), name)
    parts = _Parts(head, text, name)
    return _from_array(parts) if form == "array" else _from_objects(parts)


def form_of(head: str) -> str:
    """What a file holds, from its first characters: "lines", an "array", or "objects" over several lines each."""
    head = head.lstrip()
    line, _, rest = head.partition("\n")
    if head[:1] not in ("[", "{") or (rest.strip() and _is_json(line)):
        return "lines"
    start = 0 if head[0] == "{" else len(head) - len(head[1:].lstrip())
    try:
        value, end = DECODER.raw_decode(head, start)
    except RecursionError:
        return "lines"
    except JSONDecodeError as error:
        is_whole = False
        is_form = _is_cut(error, head) or head[start : start + 1] in ("{" if start else "", "]")
    else:
        is_whole = True
        is_form = head[end:].lstrip()[:1] in ("", ",", "]") if start else isinstance(value, dict)
    if head[0] == "[":
        return "array" if is_form else "lines"
    goes_on = "\n" in head[:end] if is_whole else rest.strip() and not _is_json(rest.strip().partition("\n")[0])
    return "objects" if is_form and goes_on else "lines"


def _has_rows_under_key(head: str) -> bool:
    """Whether a text is one object (the first of no other) with an array of objects under one of `ROW_KEYS`."""
    head = head.lstrip()
    line, _, rest = head.partition("\n")
    if rest.strip() and _is_json(line):
        return False
    place = 0
    while key := NEXT_KEY.match(head, place):
        if key[1] in ROW_KEYS:
            return bool(ARRAY_OF_OBJECTS.match(head, key.end()))
        try:
            _, place = DECODER.raw_decode(head, key.end())
        except (JSONDecodeError, RecursionError):
            return False
    return False


def _is_json(text: str) -> bool:
    try:
        DECODER.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_cut(error: JSONDecodeError, text: str) -> bool:
    """Whether a text is no JSON only because it ends too early."""
    rest = text[error.pos : error.pos + HEAD].strip()
    is_literal = any(literal.startswith(rest) for literal in LITERALS)
    is_escape = error.msg.startswith("Invalid \\") and CUT_ESCAPE.fullmatch(rest)
    is_part = is_literal or CUT_NUMBER.fullmatch(rest) or is_escape
    return error.msg.startswith("Unterminated string") or bool(is_part)


# Lines


def _lines(head: str, text: io.TextIOWrapper) -> Iterator[str]:
    *whole, last = head.split("\n")
    yield from (f"{line}\n" for line in whole)
    if last := last + text.readline():
        yield last
    yield from text


def _from_lines(lines: Iterator[str], name: str) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _checked(DECODER.decode(line), line)
        except (ValueError, RecursionError) as error:
            reason, column = _reason_of(error, line)
            reason = reason if line.endswith("\n") else f"{reason}; the file may break off here"
            yield _unreadable(line, reason, f"line {number} of {name}{column}")
        else:
            yield Record(row, len(line))


def _checked(value: Any, text: str) -> dict[str, Any]:
    """The object that some text is.

    Raises:
        ValueError: it is no object, has no key, or holds half of a surrogate pair, which no column can.
    """
    if not isinstance(value, dict):
        raise ValueError(f"it is {KINDS[type(value)]}, not an object")
    if not value:
        raise ValueError("it is an object without any key")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it is no UTF-8") from error
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("it holds a lone surrogate, which is no valid Unicode") from error
    return value


def _reason_of(error: Exception, text: str) -> tuple[str, str]:
    """Why some text is no object, and where in its line."""
    if bad := ESCAPED_BYTES.search(text):
        before = text.rfind("\n", 0, bad.start()) + 1
        return "it is no UTF-8", f", column {bad.start() - before + 1}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply", ""
    if isinstance(error, JSONDecodeError):
        return f"it is no JSON ({error.msg})", f", column {error.colno}"
    return str(error), ""


def _unreadable(text: str, reason: str, place: str) -> Record:
    shown = text.strip().encode("utf-8", "surrogateescape" if ESCAPED_BYTES.search(text) else "surrogatepass")
    row = {UNREADABLE: shown.decode("utf-8", "backslashreplace"), UNREADABLE_REASON: f"unreadable: {reason} ({place})"}
    return Record(row, len(text))


# Arrays, and objects over several lines


class _Parts:
    """Values one after another in a text that is read piece by piece."""

    def __init__(self, head: str, text: io.TextIOWrapper, name: str):
        self.buffer, self.text, self.name = head, text, name
        self.place, self.is_end, self.count = 0, False, 0
        self._lines, self._columns = 0, 0  # before the buffer, and of them those on its first line

    def next_character(self) -> str:
        """The next one that is no space; empty at the end."""
        while True:
            while self.place < len(self.buffer) and self.buffer[self.place].isspace():
                self.place += 1
            if self.place < len(self.buffer):
                return self.buffer[self.place]
            if self.is_end:
                return ""
            self._read_on(PIECE)

    def value(self) -> tuple[Any, str]:
        """The value that stands next, and its text.

        Raises:
            JSONDecodeError: it is none.
        """
        self.count += 1
        while True:
            try:
                value, end = DECODER.raw_decode(self.buffer, self.place)
            except JSONDecodeError as error:
                if self.is_end or not _is_cut(error, self.buffer):
                    raise
            else:
                if end < len(self.buffer) or self.is_end:
                    text, self.place = self.buffer[self.place : end], end
                    return value, text
            self._read_on(max(PIECE, len(self.buffer)))

    def is_cut(self, error: JSONDecodeError) -> bool:
        """Whether what is missing is the end of the file."""
        return self.is_end and _is_cut(error, self.buffer)

    def rest(self) -> str:
        """The beginning of what was not read."""
        return self.buffer[self.place : self.place + LONGEST_SHOWN]

    def where(self, place: int | None = None) -> str:
        """A place of the buffer as line and column; the present one by default."""
        lines, columns = self._before(self.place if place is None else place)
        return f"line {lines + 1}, column {columns + 1}"

    def _before(self, place: int) -> tuple[int, int]:
        last = self.buffer.rfind("\n", 0, place)
        columns = place - last - 1 if last >= 0 else self._columns + place
        return self._lines + self.buffer.count("\n", 0, place), columns

    def refusal(self, reason: str, place: int | None = None) -> ValueError:
        """The error for JSON that is broken in the middle, after which nobody knows where a row begins."""
        return ValueError(
            f"{self.name} is no JSON at {self.where(place)}, in or after row {self.count}: {reason}. Mend it there, or write "
            "one object a line (.jsonl), of which one that is broken harms no other."
        )

    def _read_on(self, num_characters: int) -> None:
        self._lines, self._columns = self._before(self.place)
        more = self.text.read(num_characters)
        self.buffer, self.place, self.is_end = self.buffer[self.place :] + more, 0, not more


def _from_array(parts: _Parts, is_within: bool = False) -> Iterator[Record]:
    parts.next_character()
    parts.place += 1
    value = are_texts = None
    while (character := parts.next_character()) not in ("]", ""):
        if parts.count and character != ",":
            raise parts.refusal("a comma is missing")
        if parts.count:
            parts.place += 1
            if parts.next_character() in ("", "]"):
                continue
        value = yield from _next_row(parts)
        are_texts = isinstance(value, str) if are_texts is None else are_texts
        if are_texts and isinstance(value, str):
            yield Record({"text": value}, len(value))
        elif not isinstance(value, (dict, _Cut)):
            yield _unreadable(json.dumps(value), f"it is {KINDS[type(value)]}, not an object", _row(parts))
    if not character:
        if not isinstance(value, _Cut):
            yield _unreadable("", "the array has no end; the file breaks off here", _row(parts, "after row"))
        return
    parts.place += 1
    if parts.next_character() and not is_within:
        raise parts.refusal("something stands after the array")


def _from_rows_under_key(parts: _Parts) -> Iterator[Record]:
    while (character := parts.next_character()) and character in "{,":
        parts.place += 1
        num_rows = parts.count
        key = _skipped(parts)
        if parts.next_character() != ":":
            break
        parts.place += 1
        is_array, parts.count = parts.next_character() == "[", num_rows
        if key not in ROW_KEYS or not is_array:
            _skipped(parts)
            parts.count = num_rows
        elif num_rows:
            raise parts.refusal(f"rows stand under more than one key, the last of which is {key!r}")
        else:
            yield from _from_array(parts, is_within=True)
    if parts.next_character() == "}":
        parts.place += 1
        character = ""
    if character or parts.next_character():
        raise parts.refusal("it is no object with all rows under one key")


def _skipped(parts: _Parts) -> Any:
    """A value that is no row."""
    parts.next_character()
    try:
        return parts.value()[0]
    except (JSONDecodeError, RecursionError) as error:
        raise parts.refusal("it breaks off, or is no JSON") from error


class _Cut:
    """What is found in place of a value that the end of the file cuts off."""


def _from_objects(parts: _Parts) -> Iterator[Record]:
    while parts.next_character():
        value = yield from _next_row(parts)
        if not isinstance(value, (dict, _Cut)):
            yield _unreadable(json.dumps(value), f"it is {KINDS[type(value)]}, not an object", _row(parts))


def _next_row(parts: _Parts) -> Iterator[Record]:
    """Yields the next value's row if it is an object, or is cut off, and returns the value."""
    try:
        value, text = parts.value()
    except JSONDecodeError as error:
        if not parts.is_cut(error):
            raise parts.refusal(error.msg, error.pos) from error
        yield _unreadable(parts.rest(), "the file breaks off in it", _row(parts))
        parts.place = len(parts.buffer)
        return _Cut()
    except RecursionError as error:
        raise parts.refusal("it is nested too deeply") from error
    if isinstance(value, dict):
        try:
            yield Record(_checked(value, text), len(text))
        except ValueError as error:
            yield _unreadable(text[:LONGEST_SHOWN], str(error), _row(parts))
    return value


def _row(parts: _Parts, what: str = "row") -> str:
    return f"{what} {parts.count} of {parts.name}, {parts.where()}"
