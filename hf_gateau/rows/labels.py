"""What training puts loss on: what the assistant says, in every turn."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from .conversations import SampleError, checked_turns, read_conversation
from .rendering import (
    INSTRUCTION_HEADER,
    RESPONSE_HEADER,
    apply_template,
    around,
    encode,
    has_generation_marks,
    refusal_as_reason,
    render_plain,
)


IGNORED = -100  # label of a token without loss, as in PyTorch's cross-entropy


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
    messages = checked_turns(row)
    if all(message["role"] != "assistant" for message in messages):
        raise SampleError("no turn is the assistant's")
    options = _template_options(row)
    if not tokenizer.chat_template:
        text, spans = render_plain_turns(row, messages)
    elif has_generation_marks(tokenizer):
        return _tokenize_marked(messages, tokenizer, **options)
    else:
        text = apply_template(tokenizer, messages, **options)
        spans = assistant_spans(messages, tokenizer, text, **options)
    input_ids, borders = encode(text, [border for span in spans for border in span], tokenizer)
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
    closing = around(tokenizer, messages[: turns[-1] + 1], turns[-1], **options)[1]
    specials = [re.escape(token) for token in tokenizer.all_special_tokens]
    spans = []
    for i in turns:
        before, after = around(tokenizer, messages, i, **options)
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
    prompt = apply_template(tokenizer, messages[:turn], add_generation_prompt=True, **options)
    if len(prompt) <= shown and text.startswith(prompt):
        return len(prompt)
    try:  # a prompt that shows earlier turns otherwise: what it writes after the last of them may stand in the text
        glue = around(tokenizer, messages[:turn], turn - 1, add_generation_prompt=True, **options)[1]
        start = len(text) - len(around(tokenizer, messages, turn - 1, **options)[1])
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
    with refusal_as_reason():
        encoding = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **options
        )
    input_ids, mask = encoding["input_ids"], encoding["assistant_masks"]
    return {"input_ids": input_ids, "labels": [x if on else IGNORED for x, on in zip(input_ids, mask, strict=True)]}


def render_plain_turns(row: Mapping[str, Any], messages: list[dict]) -> tuple[str, list[tuple[int, int]]]:
    """The paper's form, with `### Input:` only where there is a context; and the characters of the last turn's content."""
    try:
        text, (_, _, start) = render_plain(read_conversation(row))
    except SampleError:
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        asked = "\n\n".join(message["content"] for message in messages[:last])
        head = INSTRUCTION_HEADER.lstrip() + asked.strip() + RESPONSE_HEADER
        text, start = head + messages[last]["content"], len(head)
    return text, [(start, len(text))]
