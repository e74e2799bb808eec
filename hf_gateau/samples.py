"""One row becomes one `Sample`: token spans prefix | context | instruction | response.

The concatenation of the spans is exactly what TRL's `SFTTrainer` tokenises for the row, so that the perplexity is taken
over the very tokens that training would put loss on. No string is searched for inside the rendered conversation: the
chat template is rendered once as it is and once with a marker in place of each content, which tells where each content
went, also for templates that strip it.

Spans (token indices into `input_ids`):

    [0, context_start)                prefix: BOS, system turn, role header, a question asked before the context
    [context_start, context_end)      context c, the only span that truncation may shorten (from the left)
    [context_end, response_start)     instruction x, with the template's glue up to the response
    [response_start, response_end)    response y, with the end-of-turn tokens that training puts loss on
"""

import hashlib
import json
import os
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any


ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
CONTENT_COLUMNS = ("messages", "conversations", "context", "instruction", "response")
IGNORED = -100  # label of a token without loss, as in PyTorch's cross-entropy
# Private-use characters: no tokenizer, template or text gives them a meaning.
MARKER = "\ue000gateau\ue001"
CONTEXT_HEADER, INSTRUCTION_HEADER, RESPONSE_HEADER = "### Input:\n", "\n### Instruction:\n", "\n### Response:\n"

FindContext = Callable[[str], tuple[int, int]]


class SampleError(ValueError):
    """A row that cannot be measured; the message is the reason kept in `gateau_error`."""


@dataclass(frozen=True)
class Sample:
    """Token spans of one row.

    Attributes:
        input_ids (`list[int]`): all tokens that `SFTTrainer` would see for the row, context truncated.
        context_start, context_end, response_start, response_end (`int`): span borders, see the module's legend.
        num_truncated (`int`): context tokens dropped from the left.
    """

    input_ids: list[int]
    context_start: int
    context_end: int
    response_start: int
    response_end: int
    num_truncated: int = 0

    @property
    def prefix(self) -> list[int]:
        return self.input_ids[: self.context_start]

    @property
    def context(self) -> list[int]:
        return self.input_ids[self.context_start : self.context_end]

    @property
    def instruction(self) -> list[int]:
        return self.input_ids[self.context_end : self.response_start]

    @property
    def prompt(self) -> list[int]:
        """Everything before the response."""
        return self.input_ids[: self.response_start]

    @property
    def response(self) -> list[int]:
        return self.input_ids[self.response_start : self.response_end]

    @cached_property
    def key(self) -> str:
        """Content key: SHA-256 over the tokens that are measured and their borders, 32 hex digits."""
        borders = (self.context_start, self.context_end, self.response_start, self.response_end)
        measured = self.input_ids[: self.response_end]
        return hashlib.sha256(array("q", [*borders, *measured]).tobytes()).hexdigest()[:32]

    @cached_property
    def context_key(self) -> str:
        """The same for samples with one prefix and one context: what they need not go through a model for twice."""
        shared = array("q", [self.context_start, *self.input_ids[: self.context_end]])
        return hashlib.sha256(shared.tobytes()).hexdigest()[:32]


def build_sample(
    row: Mapping[str, Any], tokenizer, *, max_length: int | None = None, find_context: FindContext | None = None
) -> Sample:
    """Lay one row out as a `Sample`.

    Args:
        row: a mapping with `messages` (`[{"role", "content"}, ...]`, the last turn the assistant's), with ShareGPT's
            `conversations` (`[{"from", "value"}, ...]`), or with the string columns `context`, `instruction`, `response`;
            with `messages`, a string column `context` names the part of the conversation that is the context.
        tokenizer: a transformers tokenizer. With a chat template the conversation is rendered through it; without one,
            as `### Input / ### Instruction / ### Response`, the paper's form.
        max_length (`int`, *optional*): longest sample in tokens; the context loses tokens from its left until it fits.
        find_context: maps the text of the last user turn to the character span `(start, end)` of its context; what stands
            before stays in front of it, what follows is the instruction. Default: `last_paragraph`. Where there are several
            turns, all before the last user turn are context too.

    Raises:
        SampleError: the row has no usable context, instruction or response; the message says why.
    """
    conversation = read_conversation(row, find_context or last_paragraph)
    text, borders = _render_chat(conversation, tokenizer) if tokenizer.chat_template else _render_plain(conversation)
    sample = _mark_trained_tokens(_tokenize(text, borders, tokenizer), conversation, tokenizer)
    if not sample.response:
        raise SampleError("the response has no tokens")
    if not sample.context:
        raise SampleError("the context has no tokens")
    if not sample.prefix and not sample.instruction:
        raise SampleError("nothing but the context precedes the response; give the row an instruction")
    return truncate_context(sample, max_length) if max_length is not None else sample


def truncate_response(sample: Sample, num_tokens: int) -> Sample:
    """Leave out all response tokens but the first `num_tokens`."""
    return replace(sample, response_end=min(sample.response_end, sample.response_start + num_tokens))


def truncate_context(sample: Sample, max_length: int) -> Sample:
    """Drop context tokens from the left until `response_end <= max_length` (the paper truncates scoring from the left).

    Raises:
        SampleError: prefix, instruction and response leave no room for a single context token.
    """
    excess = sample.response_end - max_length
    if excess <= 0:
        return sample
    if excess >= len(sample.context):
        fixed = sample.response_end - len(sample.context)
        raise SampleError(
            f"prefix, instruction and response take {fixed} tokens ({len(sample.response)} of them the response) and "
            f"leave no room for context in max_length={max_length}; raise max_length"
        )
    start = sample.context_start
    return replace(
        sample,
        input_ids=sample.input_ids[:start] + sample.input_ids[start + excess :],
        context_end=sample.context_end - excess,
        response_start=sample.response_start - excess,
        response_end=sample.response_end - excess,
        num_truncated=sample.num_truncated + excess,
    )


# From a row to a conversation with a known context


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


def read_turns(row: Mapping[str, Any]) -> list | None:
    """The row's `messages`, or its `conversations` (ShareGPT's form) as messages; None where it has neither.

    Raises:
        SampleError: `conversations` is no list of mappings with `from` and `value`.
    """
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


# From a conversation to text with character borders


def _render_plain(conversation: Conversation) -> tuple[str, tuple[int, int, int]]:
    """The paper's form for tokenizers without a chat template; all turns before the response, one after the other."""
    contents = [message["content"] for message in conversation.messages[:-1]]
    offsets = [0]
    for content in contents:
        offsets.append(offsets[-1] + len(content) + len("\n\n"))
    asked = "\n\n".join(contents)
    start, end = offsets[conversation.first] + conversation.start, offsets[conversation.last] + conversation.end
    head = CONTEXT_HEADER + asked[:end]
    text = head + INSTRUCTION_HEADER + asked[end:].strip() + RESPONSE_HEADER
    return text + conversation.messages[-1]["content"], (len(CONTEXT_HEADER) + start, len(head), len(text))


def _render_chat(conversation: Conversation, tokenizer) -> tuple[str, tuple[int, int, int]]:
    messages = conversation.messages
    text = _apply_template(tokenizer, messages)
    prompt = _apply_template(tokenizer, messages[:-1], add_generation_prompt=True)
    if text.startswith(prompt):
        response_start = len(prompt)
    else:  # a template whose generation prompt is no prefix of its own rendering: begin at the response's content
        response_start = _place(tokenizer, messages, len(messages) - 1, text)[0]
    first_start, first_cut = _place(tokenizer, messages, conversation.first, text)
    last_start, last_cut = (
        (first_start, first_cut)
        if conversation.first == conversation.last
        else _place(tokenizer, messages, conversation.last, text)
    )
    start = first_start + max(conversation.start - first_cut, 0)
    end = last_start + max(conversation.end - last_cut, 0)
    return text, (start, min(end, response_start), response_start)


def _place(tokenizer, messages: list[dict], turn: int, text: str) -> tuple[int, int]:
    """Where the content of one turn begins in the rendered text, and how many of its characters were stripped."""
    start, end = _shown(tokenizer, messages, turn, text)
    for cut, candidate in _stripped(messages[turn]["content"]):
        if text[start:end] == candidate:
            return start, cut
    raise SampleError(f"the chat template rewrites the content of turn {turn}, so its tokens cannot be told apart")


def _shown(tokenizer, messages: list[dict], turn: int, text: str) -> tuple[int, int]:
    """The characters of the rendered text that stand where a marker stands in place of the turn's content."""
    before, after = _around(tokenizer, messages, turn)
    if len(before) + len(after) > len(text) or not (text.startswith(before) and text.endswith(after)):
        raise SampleError(f"the chat template rewrites the conversation around turn {turn}")
    return len(before), len(text) - len(after)


def _around(tokenizer, messages: list[dict], turn: int, **options) -> tuple[str, str]:
    """What the template writes before and after the content of one turn."""
    marked = [*messages[:turn], {**messages[turn], "content": MARKER}, *messages[turn + 1 :]]
    parts = _apply_template(tokenizer, marked, **options).split(MARKER)
    if len(parts) != 2:
        raise SampleError(f"the chat template shows the content of turn {turn} {len(parts) - 1} times, not once")
    return parts[0], parts[1]


def _stripped(content: str) -> list[tuple[int, str]]:
    """The content as a template may show it: whole, or stripped at either end, with the characters lost in front."""
    lost = len(content) - len(content.lstrip())
    return [(0, content), (lost, content.strip()), (lost, content.lstrip()), (0, content.rstrip())]


def _apply_template(tokenizer, messages: list[dict], **kwargs) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    except (TemplateError, TypeError, ValueError) as error:
        raise SampleError(f"the chat template refuses the conversation: {error}") from error


# From text to tokens


def _tokenize(text: str, borders: tuple[int, int, int], tokenizer) -> Sample:
    """The whole text as tokens, cut into spans."""
    input_ids, (context_start, context_end, response_start) = _encode(text, borders, tokenizer)
    return Sample(input_ids, context_start, max(context_start, context_end), response_start, len(input_ids))


def _encode(text: str, borders: Sequence[int], tokenizer) -> tuple[list[int], list[int]]:
    """The text as tokens, and the first token after each border.

    All is tokenised at once; a token belongs to the span of its last character, so each counts once.
    """
    chat = bool(tokenizer.chat_template)
    encoding = tokenizer(text, add_special_tokens=not chat, return_offsets_mapping=tokenizer.is_fast)
    input_ids = encoding["input_ids"]
    if tokenizer.is_fast:
        ends = [end for _, end in encoding["offset_mapping"]]
        while not chat and ends and ends[-1] == 0:  # special tokens appended by the tokenizer: training appends EOS
            input_ids.pop(), ends.pop()
        starts = [next((i for i, end in enumerate(ends) if end > border), len(ends)) for border in borders]
    else:
        starts = [_common_prefix(input_ids, tokenizer, text[:border], chat) for border in borders]
    if not chat and tokenizer.eos_token_id is not None and input_ids[-1:] != [tokenizer.eos_token_id]:
        input_ids = [*input_ids, tokenizer.eos_token_id]
    return list(input_ids), starts


def _common_prefix(input_ids: list[int], tokenizer, text: str, chat: bool) -> int:
    """Border for tokenizers without offsets: how many tokens of the text up to the border stand in the whole one."""
    head = tokenizer(text, add_special_tokens=not chat)["input_ids"]
    pairs = enumerate(zip(head, input_ids, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(head), len(input_ids)))


def _mark_trained_tokens(sample: Sample, conversation: Conversation, tokenizer) -> Sample:
    """Where the template marks the assistant's tokens (`{% generation %}`), the response is what it marks."""
    if not _has_generation_marks(tokenizer):
        return sample
    encoding = tokenizer.apply_chat_template(
        conversation.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = encoding["assistant_masks"]
    if len(mask) != len(sample.input_ids):
        raise SampleError("the chat template does not tokenise as it renders")
    end = next((i + 1 for i in range(len(mask) - 1, -1, -1) if mask[i]), 0)
    start = next((i + 1 for i in range(end - 1, -1, -1) if not mask[i]), 0)
    return replace(sample, response_start=max(start, sample.context_end), response_end=end)


def _has_generation_marks(tokenizer) -> bool:
    template = tokenizer.chat_template or ""
    template = template.get("default", "") if isinstance(template, Mapping) else template
    return tokenizer.is_fast and bool(re.search(r"\{%-?\s*generation\b", template))


# For training: loss on what the assistant says, in every turn


def tokenize_for_training(row: Mapping[str, Any], tokenizer) -> dict[str, list[int]]:
    """The tokens that `SFTTrainer` would make of a row, with labels on the assistant's turns alone.

    What the template marks with `{% generation %}` has labels; without marks, everything from each generation prompt to
    the end of the assistant's turn, end-of-turn token included. Without a chat template, what follows `### Response:`.

    Args:
        row: as for `build_sample`; a context is not needed, and there may be any number of turns.
        tokenizer: a transformers tokenizer.

    Returns:
        `input_ids` and `labels`, of one length; `labels` is -100 where there is no loss.

    Raises:
        SampleError: the row is no conversation with something for the assistant to say, or the chat template refuses it.
    """
    messages = read_turns(row)
    messages = _from_columns(row).messages if messages is None else messages
    _check_turns(messages)
    if all(message["role"] != "assistant" for message in messages):
        raise SampleError("no turn is the assistant's")
    options = _template_options(row)
    if not tokenizer.chat_template:
        text, spans = _render_plain_turns(row, messages)
    elif _has_generation_marks(tokenizer):
        return _tokenize_marked(messages, tokenizer, **options)
    else:
        text = _apply_template(tokenizer, messages, **options)
        spans = assistant_spans(messages, tokenizer, text, **options)
    input_ids, borders = _encode(text, [border for span in spans for border in span], tokenizer)
    if not tokenizer.chat_template:
        borders[-1] = len(input_ids)  # the end-of-sequence token that the tokenizer lacks is learned too
    labels = [IGNORED] * len(input_ids)
    for start, end in zip(borders[::2], borders[1::2], strict=True):
        labels[start:end] = input_ids[start:end]
    return {"input_ids": input_ids, "labels": labels}


def assistant_spans(messages: list[dict], tokenizer, text: str, **options) -> list[tuple[int, int]]:
    """The characters of the rendered conversation `text` that are the assistant's to say, a span a turn.

    A turn begins where the template's generation prompt ends. What closes the last turn closes the earlier ones too, as
    far as it stands there: the beginning of the next turn is not the assistant's to say.

    Raises:
        SampleError: the template shows a turn not at all, more than once, or elsewhere.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    closing = _around(tokenizer, messages[: turns[-1] + 1], turns[-1], **options)[1]
    specials = [re.escape(token) for token in tokenizer.all_special_tokens]
    spans = []
    for i in turns:
        before, after = _around(tokenizer, messages, i, **options)
        end = len(text) - len(after)
        start = _response_start(messages, i, tokenizer, text, len(before), **options)
        if not (text.endswith(after) and start <= end and (start < len(before) or text.startswith(before))):
            raise SampleError(f"the chat template rewrites the conversation around turn {i}")
        shared = len(os.path.commonprefix([closing, after]))
        cut = (m.start() for m in re.finditer("|".join(specials) or "(?!)", closing) if m.start() < shared < m.end())
        spans.append((start, end + next(cut, shared)))  # a special token closes a turn whole or not at all
    return spans


def _response_start(messages: list[dict], turn: int, tokenizer, text: str, shown: int, **options) -> int:
    """Where the generation prompt of a turn ends in the text; its content's place where there is no such prompt."""
    if not turn:
        return shown
    prompt = _apply_template(tokenizer, messages[:turn], add_generation_prompt=True, **options)
    if len(prompt) <= shown and text.startswith(prompt):
        return len(prompt)
    try:  # a prompt that shows earlier turns otherwise: what it writes after the last of them may stand in the text
        glue = _around(tokenizer, messages[:turn], turn - 1, add_generation_prompt=True, **options)[1]
        start = len(text) - len(_around(tokenizer, messages, turn - 1, **options)[1])
    except SampleError:
        return shown
    return start + len(glue) if text.startswith(glue, start) and start + len(glue) <= shown else shown


def _template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """What `SFTTrainer` hands to the chat template besides the messages."""
    tools = row.get("tools")
    options = {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **(row.get("chat_template_kwargs") or {}),
    }
    return {name: value for name, value in options.items() if value is not None}


def _tokenize_marked(messages: list[dict], tokenizer, **options) -> dict[str, list[int]]:
    from jinja2 import TemplateError

    try:
        encoding = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **options
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise SampleError(f"the chat template refuses the conversation: {error}") from error
    input_ids, mask = encoding["input_ids"], encoding["assistant_masks"]
    return {"input_ids": input_ids, "labels": [x if on else IGNORED for x, on in zip(input_ids, mask, strict=True)]}


def _render_plain_turns(row: Mapping[str, Any], messages: list[dict]) -> tuple[str, list[tuple[int, int]]]:
    """The paper's form, with `### Input:` only where there is a context."""
    try:
        text, (_, _, start) = _render_plain(read_conversation(row))
    except SampleError:
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        asked = "\n\n".join(message["content"] for message in messages[:last])
        head = INSTRUCTION_HEADER.lstrip() + asked.strip() + RESPONSE_HEADER
        text, start = head + messages[last]["content"], len(head)
    return text, [(start, len(text))]
