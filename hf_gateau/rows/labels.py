"""What training puts loss on: what the assistant says, in every turn."""

from collections.abc import Mapping
from typing import Any

from .conversations import SampleError, checked_prompt, checked_turns, has_prompt, read_conversation
from .places import Rendered
from .rendering import (
    INSTRUCTION_HEADER,
    RESPONSE_HEADER,
    ChatTemplate,
    common_prefix,
    encode,
    plain_texts,
    prompt_text,
    render_plain,
)


IGNORED = -100  # label of a token without loss, as in PyTorch's cross-entropy


def tokenize_for_training(row: Mapping[str, Any], tokenizer) -> dict[str, list[int]]:
    """The tokens that `SFTTrainer` would make of a row, with labels on the assistant's turns alone.

    What the template marks with `{% generation %}` has labels; without marks, everything from each generation prompt to
    the end of the assistant's turn, end-of-turn token included. Without a chat template, what follows `### Response:`. Of rows
    with `prompt` and `completion`, all of the completion.

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
    if has_prompt(row):
        prompt, completion, is_text = checked_prompt(row)
        if is_text:
            return _completion_of_text(prompt[0]["content"], completion[0]["content"], tokenizer)
        if template.source is not None:
            return _completion_of_turns(prompt, completion, template)
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
    is_plain = template.source is None
    borders = [border for span in spans for border in span]
    found = encode(text, borders, tokenizer, add_special_tokens=is_plain, close=is_plain)
    input_ids, borders = found.input_ids, list(found.firsts)
    if is_plain:
        borders[-1] = len(input_ids)  # the end-of-sequence token that the tokenizer lacks is learned too
    labels = [IGNORED] * len(input_ids)
    for start, end in zip(borders[::2], borders[1::2], strict=True):
        labels[start:end] = input_ids[start:end]
    return {"input_ids": input_ids, "labels": labels}


def _completion_of_text(prompt: str, completion: str, tokenizer) -> dict[str, list[int]]:
    text = prompt_text(prompt, completion, tokenizer)
    return _completion_only(tokenizer(text)["input_ids"], tokenizer(prompt)["input_ids"])


def _completion_of_turns(prompt: list[dict], completion: list[dict], template: ChatTemplate) -> dict[str, list[int]]:
    rendered = Rendered(template, [*prompt, *completion])
    rendered.check_written()
    found = encode(rendered.text, (), template.tokenizer, add_special_tokens=False, close=False)
    return _completion_only(found.input_ids, template.prompt_ids(prompt))


def _completion_only(input_ids: list[int], prompt: list[int]) -> dict[str, list[int]]:
    """Labels on what follows the tokens that the prompt alone has, as far as they are the same."""
    start = common_prefix(prompt, input_ids)
    return {"input_ids": input_ids, "labels": [IGNORED] * start + input_ids[start:]}


def render_plain_turns(row: Mapping[str, Any], messages: list[dict]) -> tuple[str, list[tuple[int, int]]]:
    """The paper's form, with `### Input:` only where there is a context; and the characters of the last turn's content."""
    try:
        written = render_plain(read_conversation(row))
        text, start = written.text, written.borders[2]
    except SampleError:
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        *asked, answer = plain_texts(messages[: last + 1])
        head = INSTRUCTION_HEADER.lstrip() + "\n\n".join(filter(None, asked)).strip() + RESPONSE_HEADER
        text, start = head + answer, len(head)
    return text, [(start, len(text))]
