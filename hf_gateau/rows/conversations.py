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
from ..settings import a_type, import_function
from .decoding import as_turns, from_json


ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
# The forms that a row can have, by their columns; those of one column hold turns.
ROW_FORMS = (("messages",), ("conversations",), ("context", "instruction", "response"))
TURN_COLUMNS = tuple(form[0] for form in ROW_FORMS if len(form) == 1)
CONTENT_COLUMNS = tuple(name for form in ROW_FORMS for name in form)
# What `SFTTrainer` hands to the chat template beside the turns.
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
HASHED_COLUMNS = (*CONTENT_COLUMNS, *TEMPLATE_COLUMNS)
# Under these names templates and data have what the assistant thinks.
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
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
    _check_turns(messages)
    _check_order(messages)
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
        return as_turns(row.get("messages"))
    turns = as_turns(row["conversations"])
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise SampleError("conversations is no list of turns")
    if all("role" in turn and turn["role"] is not None for turn in turns):  # messages under ShareGPT's name
        return turns
    if not all("from" in turn and "value" in turn for turn in turns):
        raise SampleError("conversations holds a turn without from and value")
    return [_from_sharegpt(turn) for turn in turns]


def _from_sharegpt(turn: Mapping[str, Any]) -> dict[str, Any]:
    more = {name: value for name, value in turn.items() if name not in ("from", "value")}
    speaker = turn["from"]
    role = SHAREGPT_ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
    return {**more, "role": role, "content": turn["value"]}


def says_something(message: Mapping[str, Any]) -> bool:
    """Whether a turn has text, thoughts or calls of tools."""
    said = (message.get(name) for name in ("content", *THOUGHTS))
    return bool(message.get("tool_calls")) or any(isinstance(text, str) and text.strip() for text in said)


def content_hash(row: Mapping[str, Any]) -> str:
    """What the row says, as 16 hex digits, whatever the tokenizer: tells whether a scored row has changed since."""
    content = {name: _hashed(name, row[name]) for name in HASHED_COLUMNS if row.get(name) is not None}
    content = {name: value for name, value in content.items() if value is not None}
    canonical = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _hashed(name: str, value: Any) -> Any:
    if name in TEMPLATE_COLUMNS:  # a null in them is handed to the template, which may tell it from nothing
        value = from_json(value)
        return [from_json(item) for item in value] if isinstance(value, list) else value
    return _without_nulls(as_turns(value) if name in TURN_COLUMNS else value)


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
        raise SampleError(f"{name} is {a_type(text)}, not a string")
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


def _check_order(messages: list[Mapping]) -> None:
    if messages[-1]["role"] != "assistant":
        raise SampleError(f"the last turn is the {messages[-1]['role']}'s; the response must be the assistant's")
    if all(message["role"] != "user" for message in messages):
        raise SampleError("no turn is the user's, so there is no instruction")


def _check_turns(messages: Any) -> None:
    if not isinstance(messages, list):
        raise SampleError(f"messages is {a_type(messages)}, not a list of turns")
    if len(messages) < 2:
        raise SampleError(f"messages has {len(messages)} turn(s); a user and an assistant turn are needed")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise SampleError(f"turn {i} is {a_type(message)}, not a mapping with role and content")
        _check_turn(message, i)


def _check_turn(message: Mapping[str, Any], i: int) -> None:
    """A system turn and a tool's result may be empty, and the assistant's where it calls a tool or thinks."""
    for key in ("role", "content"):
        if key not in message and not (key == "content" and says_something(message)):
            raise SampleError(f"turn {i} has no {key}")
    role, content = message["role"], message.get("content")
    if role not in ROLES:
        raise SampleError(f"turn {i} has the role {role!r}; known roles are {', '.join(ROLES)}")
    may_be_empty = role in ("system", "tool") or (role == "assistant" and says_something(message))
    if not (may_be_empty and (content is None or (isinstance(content, str) and not content.strip()))):
        _check_text(content, f"turn {i} ({role})")


def _with_given_context(messages: list[dict], context: str) -> Conversation:
    places = [(i, (message.get("content") or "").find(context)) for i, message in enumerate(messages[:-1])]
    places = [(i, start) for i, start in places if start >= 0]
    if len(places) != 1:
        raise SampleError(
            f"the context column was found in {len(places)} turns of messages, not in one; rename the column if it is "
            "not part of the conversation"
        )
    turn, start = places[0]
    return Conversation(messages, turn, start, turn, start + len(context))


def _with_found_context(messages: list[dict], find_context: FindContext) -> Conversation:
    """The context is all before the last question's instruction; where nothing is, what tools answered to that question."""
    question = last_question(messages)
    start, end = _span_in(messages[question]["content"], find_context)
    first = next(i for i, message in enumerate(messages) if message["role"] != "system")
    before = [i for i in range(first, question) if says_something(messages[i])]
    if before and end > start:
        return Conversation(messages, before[0], 0, question, end)
    if before:
        return _whole_turns(messages, before[0], before[-1])
    if messages[question]["content"][start:end].strip():
        return Conversation(messages, question, start, question, end)
    results = [
        i for i in range(question, len(messages)) if messages[i]["role"] == "tool" and says_something(messages[i])
    ]
    if results:
        return _whole_turns(messages, results[0], results[-1])
    raise SampleError("the context is empty: the user turn has one paragraph, so all of it is the instruction")


def last_question(messages: list[Mapping]) -> int:
    """The last turn of the user."""
    return max(i for i, message in enumerate(messages) if message["role"] == "user")


def _span_in(text: str, find_context: FindContext) -> tuple[int, int]:
    try:
        start, end = find_context(text)
    except Exception as error:  # the user's own function: a reason, not the end of the run
        raise SampleError(f"find_context failed: {error!r}") from error
    if not 0 <= start <= end <= len(text):
        raise SampleError(f"find_context gave the span ({start}, {end}) for a user turn of {len(text)} characters")
    return start, end


def _whole_turns(messages: list[dict], first: int, last: int) -> Conversation:
    return Conversation(messages, first, 0, last, len(messages[last].get("content") or ""))


def find_context_of(setting: Callable | str | None) -> Callable | None:
    """The function that a `find_context` setting is, or names."""
    return import_function(setting, f"find_context={setting!r}") if isinstance(setting, str) else setting
