"""What training puts loss on: what the assistant says, in every turn."""

from collections.abc import Mapping
from typing import Any

from .conversations import SampleError, checked_turns, read_conversation
from .places import Rendered
from .rendering import (
    INSTRUCTION_HEADER,
    RESPONSE_HEADER,
    ChatTemplate,
    encode,
    plain_texts,
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
    template = ChatTemplate.of(row, tokenizer)
    if template.marks_answers:
        Rendered(template, messages).check_written()
        input_ids, mask = template.marked(messages)
        return {
            "input_ids": input_ids,
            "labels": [x if on else IGNORED for x, on in zip(input_ids, mask, strict=True)],
        }
    if template.source is None:
        text, spans = render_plain_turns(row, messages)
    else:
        rendered = Rendered(template, messages)
        text, spans = rendered.text, rendered.answers()
    input_ids, borders = encode(
        text, [border for span in spans for border in span], tokenizer, template.source is not None
    )
    if template.source is None:
        borders[-1] = len(input_ids)  # the end-of-sequence token that the tokenizer lacks is learned too
    labels = [IGNORED] * len(input_ids)
    for start, end in zip(borders[::2], borders[1::2], strict=True):
        labels[start:end] = input_ids[start:end]
    return {"input_ids": input_ids, "labels": labels}


def render_plain_turns(row: Mapping[str, Any], messages: list[dict]) -> tuple[str, list[tuple[int, int]]]:
    """The paper's form, with `### Input:` only where there is a context; and the characters of the last turn's content."""
    try:
        text, (_, _, start) = render_plain(read_conversation(row))
    except SampleError:
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        *asked, answer = plain_texts(messages[: last + 1])
        head = INSTRUCTION_HEADER.lstrip() + "\n\n".join(filter(None, asked)).strip() + RESPONSE_HEADER
        text, start = head + answer, len(head)
    return text, [(start, len(text))]
