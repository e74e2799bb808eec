"""A row is read as a `Conversation`: checked turns, and where in them the context stands.

A row holds `messages`, ShareGPT's `conversations`, TRL's `prompt` and `completion`, or the columns `context`, `instruction` and
`response`. One that cannot be used raises a `SampleError`, whose message is the reason that is kept beside the row.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..files.json_records import UNREADABLE_REASON
from ..settings import a_type, did_you_mean, import_function
from .context_rules import find_by_rules
from .decoding import as_turns, from_json


ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
# What other data call a role; told, not taken, since what such a turn holds may have another form too
FOREIGN_ROLES = {
    **dict.fromkeys(("function_call", "model", "bot", "ai", "agent", "chatbot"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response", "ipython", "environment"), "tool"),
    **dict.fromkeys(("developer", "instructions"), "system"),
    **dict.fromkeys(("human", "prompter", "customer"), "user"),
}
# The forms that a row can have, by their columns; those of one column hold turns. A row with several forms is read in the first.
PROMPT_FORM, COLUMNS_FORM = ("prompt", "completion"), ("context", "instruction", "response")
ROW_FORMS = (("messages",), ("conversations",), PROMPT_FORM, COLUMNS_FORM)
TURN_COLUMNS = tuple(form[0] for form in ROW_FORMS if len(form) == 1)
MAY_HOLD_TURNS = (*TURN_COLUMNS, *PROMPT_FORM)
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
    """Checked turns; the context begins at character `start` of turn `first` and ends at `end` of turn `last`.

    Attributes:
        rule (`str`): what told the place of the context: the name of one of `context_rules.RULES`, or of `OTHER_RULES`.
        completion (`int` or `None`): the first turn of TRL's `completion`, where the row has that form.
        is_text (`bool`): `prompt` and `completion` are strings, which no chat template writes.
    """

    messages: list[dict]
    first: int
    start: int
    last: int
    end: int
    rule: str = ""
    completion: int | None = None
    is_text: bool = False


# What tells where the context stands, beside the rules for a single turn -> what it means
BY_COLUMNS, BY_CONTEXT_COLUMN, BY_FUNCTION = "columns", "context column", "find_context"
BY_EARLIER_TURNS, BY_TOOLS = "earlier turns", "tool results"
OTHER_RULES = {
    BY_COLUMNS: "the column `context`, beside `instruction` and `response`",
    BY_CONTEXT_COLUMN: "the column `context`, found in one turn of the conversation",
    BY_FUNCTION: "your own `find_context`",
    BY_EARLIER_TURNS: "all turns before the last question, with what stands before the instruction in its own",
    BY_TOOLS: "what tools answered to the only question",
}


def read_conversation(row: Mapping[str, Any], find_context: FindContext | None = None) -> Conversation:
    """Check one row and find its context.

    Args:
        row: in one of `ROW_FORMS`.
        find_context (*optional*): from the text of the last user turn to the characters of its context. Default: the first of
            `context_rules.RULES` that can tell.

    Raises:
        SampleError: a key or role is missing, a value is null, empty or no string, or there is no context.
    """
    if has_prompt(row):
        return _from_prompt(row, find_context)
    messages = read_turns(row)
    if messages is None:
        return _from_columns(row)
    _check_turns(messages)
    return _with_context(messages, row, find_context)


def _with_context(messages: list[dict], row: Mapping[str, Any], find_context: FindContext | None) -> Conversation:
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


def has_prompt(row: Mapping[str, Any]) -> bool:
    """Whether the row is of TRL's form of `prompt` and `completion`, and of none that is read before it."""
    if row.get(UNREADABLE_REASON) is not None or any(row.get(name) is not None for name in TURN_COLUMNS):
        return False
    return all(name in row for name in PROMPT_FORM) and any(row[name] is not None for name in PROMPT_FORM)


def read_turns(row: Mapping[str, Any]) -> list | None:
    """The row's `messages`, or its `conversations` (ShareGPT's form) or `prompt` and `completion` as messages; None where it has
    none of them.

    Raises:
        SampleError: `conversations` is no list of mappings with `from` and `value`; one of `prompt` and `completion` is null,
            or they are not both strings or both turns; or the file had no row there.
    """
    if row.get(UNREADABLE_REASON) is not None:
        raise SampleError(row[UNREADABLE_REASON])
    if has_prompt(row):
        prompt, completion, _ = read_prompt(row)
        return [*prompt, *completion]
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


def read_prompt(row: Mapping[str, Any]) -> tuple[list[dict], list[dict], bool]:
    """The turns of a row's `prompt` and `completion`, and whether they are strings: then the user's turn and the assistant's.

    Raises:
        SampleError: one of them is null or empty, or they are not both strings or both lists of turns.
    """
    parts = [turns_or_text(row[name]) for name in PROMPT_FORM]
    if any(isinstance(part, list) for part in parts) and not all(isinstance(part, list) for part in parts):
        raise SampleError("prompt and completion are not both strings, or both lists of turns")
    for name, part in zip(PROMPT_FORM, parts, strict=True):
        if isinstance(part, list) and not part:
            raise SampleError(f"{name} has no turns")
        if not isinstance(part, list):
            check_text(part, name)
    prompt, completion = parts
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion}], True
    return prompt, completion, False


def checked_prompt(row: Mapping[str, Any]) -> tuple[list[dict], list[dict], bool]:
    """`read_prompt` of a row whose completion is the assistant's, and all of what it says.

    Raises:
        SampleError: besides, a turn cannot be read, or is in the wrong part.
    """
    prompt, completion, is_text = read_prompt(row)
    _check_turns([*prompt, *completion])
    if prompt[-1]["role"] == "assistant":
        raise SampleError("prompt ends with the assistant's turn, and completion goes on with it; make them one turn")
    if any(turn["role"] != "assistant" for turn in completion):
        raise SampleError("completion has turns that are not the assistant's; put all but the answer into prompt")
    return prompt, completion, is_text


def _from_prompt(row: Mapping[str, Any], find_context: FindContext | None) -> Conversation:
    prompt, completion, is_text = checked_prompt(row)
    found = _with_context([*prompt, *completion], row, find_context)
    return replace(found, completion=len(prompt), is_text=is_text)


def turns_or_text(value: Any) -> Any:
    """A column that holds turns, or a text: turns as they are, or packed as JSON; text as it is, be it JSON of something else."""
    found = as_turns(value)
    is_turns = isinstance(found, list) and all(isinstance(turn, Mapping) and "role" in turn for turn in found)
    return found if is_turns or not isinstance(value, str) else value


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
    hashed = [name for name in HASHED_COLUMNS if name not in PROMPT_FORM or has_prompt(row)]  # not beside messages
    content = {name: _hashed(name, row[name]) for name in hashed if row.get(name) is not None}
    content = {name: value for name, value in content.items() if value is not None}
    canonical = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _hashed(name: str, value: Any) -> Any:
    if name in TEMPLATE_COLUMNS:  # a null in them is handed to the template, which may tell it from nothing
        value = from_json(value)
        return [from_json(item) for item in value] if isinstance(value, list) else value
    if name in PROMPT_FORM:
        return _without_nulls(turns_or_text(value))
    return _without_nulls(as_turns(value) if name in TURN_COLUMNS else value)


def _without_nulls(value: Any) -> Any:
    """Arrow gives every turn the keys of all turns, with null where a turn had none."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def missing_form(columns: Iterable[str], is_row: bool = False) -> str | None:
    """Why rows with these columns can be read in none of `ROW_FORMS`: what is missing, what there is, and what may be meant by
    it; None where they can.

    Args:
        columns: names of columns, or a row.
        is_row (`bool`): the message is that of one row, and does not say what to do with all.
    """
    found = [name for name in columns if not str(name).startswith(("gateau_", "_")) and name != UNREADABLE_REASON]
    if any(set(form) <= set(found) for form in ROW_FORMS):
        return None
    missing = {form: [name for name in form if name not in found] for form in ROW_FORMS}
    near = {name: _meant(name, found) for form in ROW_FORMS for name in form}
    # The form that the columns are nearest to: most of its names there, or nearly
    form = max(ROW_FORMS[::-1], key=lambda form: sum(x in found or 0.9 * bool(near[x]) for x in form) / len(form))
    there = any(x in found or near[x] for x in form)
    form = form if there else COLUMNS_FORM
    named = {near[name]: name for name in missing[form] if near[name]}
    meant = f"did you mean {', '.join(named.values())} by {', '.join(named)}?" if named else ""
    names = ", ".join(missing[form])
    lacks = f"no {names}" if len(form) == 1 else f"neither messages nor the column(s) {names}"
    if is_row:
        return f"the row has {lacks}" + (f"; {meant}" if meant else "")
    shown = ", ".join(map(str, found[:MOST_NAMED])) + (", ..." if len(found) > MOST_NAMED else "")
    pairs = ",".join(f"{name}={near[name] or 'COLUMN'}" for name in missing[form])
    return (
        f"the rows have {lacks}; they have {shown or 'no columns'}"
        + (f": {meant}" if meant else "")
        + f". A row has one of these forms: {'; '.join(map(', '.join, ROW_FORMS))}. Name your columns: --columns {pairs}"
    )


# What other data call our columns
SYNONYMS = {
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
    "conversations": (),
    "prompt": (),
    "completion": (),
    "context": ("document", "documents", "input", "passage", "passages", "article", "text", "source", "story"),
    "instruction": ("question", "query", "instructions"),
    "response": ("answer", "answers", "output", "target", "summary", "completion", "chosen"),
}
MOST_NAMED = 12  # columns in a message


def _meant(name: str, found: list[str]) -> str | None:
    """The column that may be meant by a name of ours: it is spelled nearly so, or is a synonym."""
    others = [x for x in found if x not in CONTENT_COLUMNS]
    near = difflib.get_close_matches(name, list(map(str, others)), 1, 0.75)
    return next(iter(near), None) or next((x for x in found if str(x).lower() in SYNONYMS[name]), None)


def _from_columns(row: Mapping[str, Any]) -> Conversation:
    if "messages" in row and not any(column in row for column in COLUMNS_FORM):
        raise SampleError("messages is null")
    if reason := missing_form(row, is_row=True):
        raise SampleError(reason)
    for column in COLUMNS_FORM:
        check_text(row[column], column)
    user = row["context"] + "\n\n" + row["instruction"]
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": row["response"]}]
    return Conversation(messages, 0, 0, 0, len(row["context"]), BY_COLUMNS)


def check_text(text: Any, name: str) -> None:
    """Raise a `SampleError` where a text is none, or none that a tokenizer can read."""
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
        near = FOREIGN_ROLES.get(str(role).lower())
        meant = f"; did you mean {near!r}?" if near else did_you_mean(role, ROLES)
        raise SampleError(f"turn {i} has the role {role!r}; known roles are {', '.join(ROLES)}{meant}")
    may_be_empty = role in ("system", "tool") or (role == "assistant" and says_something(message))
    if not (may_be_empty and (content is None or (isinstance(content, str) and not content.strip()))):
        check_text(content, f"turn {i} ({role})")


def _with_given_context(messages: list[dict], context: str) -> Conversation:
    places = [(i, (message.get("content") or "").find(context)) for i, message in enumerate(messages[:-1])]
    places = [(i, start) for i, start in places if start >= 0]
    if len(places) != 1:
        raise SampleError(
            f"the context column was found in {len(places)} turns of messages, not in one; rename the column if it is "
            "not part of the conversation"
        )
    turn, start = places[0]
    return Conversation(messages, turn, start, turn, start + len(context), BY_CONTEXT_COLUMN)


def _with_found_context(messages: list[dict], find_context: FindContext | None) -> Conversation:
    """The context is all before the last question's instruction; where nothing is, what tools answered to that question."""
    question = last_question(messages)
    text = messages[question]["content"]
    rule, (start, end) = (BY_FUNCTION, _span_in(text, find_context)) if find_context else find_by_rules(text)
    first = next(i for i, message in enumerate(messages) if message["role"] != "system")
    before = [i for i in range(first, question) if says_something(messages[i])]
    if (
        before and not find_context and text[:start].strip()
    ):  # a question, and behind it a text of its own: the longer is meant
        if end - start > sum(len(messages[i].get("content") or "") for i in before):
            return Conversation(messages, question, start, question, end, rule)
        start = end = 0
    if before and end > start:
        return Conversation(messages, before[0], 0, question, end, BY_EARLIER_TURNS)
    if before:
        return _whole_turns(messages, before[0], before[-1], BY_EARLIER_TURNS)
    if text[start:end].strip():
        return Conversation(messages, question, start, question, end, rule)
    results = [
        i for i in range(question, len(messages)) if messages[i]["role"] == "tool" and says_something(messages[i])
    ]
    if results:
        return _whole_turns(messages, results[0], results[-1], BY_TOOLS)
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


def _whole_turns(messages: list[dict], first: int, last: int, rule: str) -> Conversation:
    return Conversation(messages, first, 0, last, len(messages[last].get("content") or ""), rule)


def find_context_of(setting: Callable | str | None) -> Callable | None:
    """The function that a `find_context` setting is, or names."""
    return import_function(setting, f"find_context={setting!r}") if isinstance(setting, str) else setting
