"""A row is read as a `Conversation`: checked turns, and where in them the context stands.

A row holds `messages`, ShareGPT's `conversations`, or the columns `context`, `instruction` and `response`. One that
cannot be used raises a `SampleError`, whose message is the reason that is kept beside the row.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..files.json_records import UNREADABLE_REASON
from ..settings import import_function


ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
CONTENT_COLUMNS = ("messages", "conversations", "context", "instruction", "response")
# Private-use characters: no tokenizer, template or text gives them a meaning.
MARKER = "\ue000gateau\ue001"

FindContext = Callable[[str], tuple[int, int]]


class SampleError(ValueError):
    """A row that cannot be measured; the message is the reason kept in `gateau_error`."""


@dataclass(frozen=True)
class Conversation:
    """Checked turns; the context begins at character `start` of turn `first` and ends at `end` of turn `last`."""

    messages: list[dict]
    first: int
    start: int
    last: int
    end: int


def last_paragraph(text: str) -> tuple[int, int]:
    """The default `find_context`: the last non-empty paragraph is the instruction, the rest the context."""
    borders = list(re.finditer(r"\n[^\S\n]*\n\s*", text.rstrip()))
    return (0, borders[-1].start()) if borders else (0, 0)


def read_conversation(row: Mapping[str, Any], find_context: FindContext = last_paragraph) -> Conversation:
    """Check one row and find its context.

    Raises:
        SampleError: a key or role is missing, a value is null, empty or no string, or there is no context.
    """
    messages = read_turns(row)
    if messages is None:
        return _from_columns(row)
    _check_messages(messages)
    if isinstance(context := row.get("context"), str) and context.strip():
        return _with_given_context(messages, context.strip())
    return _with_found_context(messages, find_context)


def checked_turns(row: Mapping[str, Any]) -> list[dict]:
    """The row's turns, any number of them and whoever has the last word; columns are a question and its answer.

    Raises:
        SampleError: a key or role is missing, or a value is null, empty or no string.
    """
    messages = read_turns(row)
    messages = _from_columns(row).messages if messages is None else messages
    _check_turns(messages)
    return messages


def read_turns(row: Mapping[str, Any]) -> list | None:
    """The row's `messages`, or its `conversations` (ShareGPT's form) as messages; None where it has neither.

    Raises:
        SampleError: `conversations` is no list of mappings with `from` and `value`; or the file had no row there.
    """
    if row.get(UNREADABLE_REASON) is not None:
        raise SampleError(row[UNREADABLE_REASON])
    if row.get("messages") is not None or row.get("conversations") is None:
        return row.get("messages")
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise SampleError("conversations is no list of turns")
    if all("role" in turn and turn["role"] is not None for turn in turns):  # messages under ShareGPT's name
        return turns
    if not all("from" in turn and "value" in turn for turn in turns):
        raise SampleError("conversations holds a turn without from and value")
    return [{"role": SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": turn["value"]} for turn in turns]


def content_hash(row: Mapping[str, Any]) -> str:
    """What the row says, as 16 hex digits, whatever the tokenizer: tells whether a scored row has changed since."""
    content = {name: _without_nulls(row[name]) for name in CONTENT_COLUMNS if row.get(name) is not None}
    canonical = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _without_nulls(value: Any) -> Any:
    """Arrow gives every turn the keys of all turns, with null where a turn had none."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _from_columns(row: Mapping[str, Any]) -> Conversation:
    if "messages" in row and not any(column in row for column in ("context", "instruction", "response")):
        raise SampleError("messages is null")
    missing = [column for column in ("context", "instruction", "response") if column not in row]
    if missing:
        raise SampleError(f"the row has neither messages nor the column(s) {', '.join(missing)}")
    for column in ("context", "instruction", "response"):
        _check_text(row[column], column)
    user = row["context"] + "\n\n" + row["instruction"]
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": row["response"]}]
    return Conversation(messages, 0, 0, 0, len(row["context"]))


def _check_text(text: Any, name: str) -> None:
    if text is None:
        raise SampleError(f"{name} is null")
    if not isinstance(text, str):
        raise SampleError(f"{name} is a {type(text).__name__}, not a string")
    if not text.strip():
        raise SampleError(f"{name} is empty")
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise SampleError(f"{name} has no printable character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleError(f"{name} holds a lone surrogate, which is no valid Unicode; re-encode the row") from error
    if MARKER in text:
        raise SampleError(f"{name} holds the private-use marker {MARKER!r}")


def _check_messages(messages: Any) -> None:
    _check_turns(messages)
    if messages[-1]["role"] != "assistant":
        raise SampleError(f"the last turn is the {messages[-1]['role']}'s; the response must be the assistant's")
    if messages[-2]["role"] != "user":
        raise SampleError(f"the turn before the response is the {messages[-2]['role']}'s, not the user's")


def _check_turns(messages: Any) -> None:
    if not isinstance(messages, list):
        raise SampleError(f"messages is a {type(messages).__name__}, not a list of turns")
    if len(messages) < 2:
        raise SampleError(f"messages has {len(messages)} turn(s); a user and an assistant turn are needed")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise SampleError(f"turn {i} is a {type(message).__name__}, not a mapping with role and content")
        for key in ("role", "content"):
            if key not in message:
                raise SampleError(f"turn {i} has no {key}")
        if message["role"] not in ROLES:
            raise SampleError(f"turn {i} has the role {message['role']!r}; known roles are {', '.join(ROLES)}")
        _check_text(message["content"], f"turn {i} ({message['role']})")


def _with_given_context(messages: list[dict], context: str) -> Conversation:
    places = [(i, message["content"].find(context)) for i, message in enumerate(messages[:-1])]
    places = [(i, start) for i, start in places if start >= 0]
    if len(places) != 1:
        raise SampleError(
            f"the context column was found in {len(places)} turns of messages, not in one; rename the column if it is "
            "not part of the conversation"
        )
    turn, start = places[0]
    return Conversation(messages, turn, start, turn, start + len(context))


def _with_found_context(messages: list[dict], find_context: FindContext) -> Conversation:
    last = len(messages) - 2
    text = messages[last]["content"]
    try:
        start, end = find_context(text)
    except Exception as error:  # the user's own function: a reason, not the end of the run
        raise SampleError(f"find_context failed: {error!r}") from error
    if not 0 <= start <= end <= len(text):
        raise SampleError(f"find_context gave the span ({start}, {end}) for a user turn of {len(text)} characters")
    earlier = next(i for i, message in enumerate(messages) if message["role"] != "system")
    if earlier < last:  # several turns: everything before the last instruction is context
        return (
            Conversation(messages, earlier, 0, last, end) if end > start else _ending_before(messages, earlier, last)
        )
    if not text[start:end].strip():
        raise SampleError("the context is empty: the user turn has one paragraph, so all of it is the instruction")
    return Conversation(messages, last, start, last, end)


def _ending_before(messages: list[dict], first: int, last: int) -> Conversation:
    return Conversation(messages, first, 0, last - 1, len(messages[last - 1]["content"]))


def find_context_of(setting: Callable | str | None) -> Callable | None:
    """The function that a `find_context` setting is, or names."""
    return import_function(setting, f"find_context={setting!r}") if isinstance(setting, str) else setting
