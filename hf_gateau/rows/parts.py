"""What a row says, in its parts, as text to show: the context as it was measured, what stands around it, and the response."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .conversations import COLUMNS_FORM, Conversation, FindContext, SampleError, checked_turns, read_conversation


SPAN_COLUMN = "gateau_context_span"
BETWEEN_TURNS = "\n\n"


def span_of(conversation: Conversation) -> list[int]:
    """The place of the context, as `gateau_context_span` has it: first turn, character in it, last turn, character in it."""
    return [conversation.first, conversation.start, conversation.last, conversation.end]


def text_between(messages: Sequence[Mapping[str, Any]], span: Sequence[int]) -> str:
    """What turns say between two places, a blank line between two turns; turns without text are passed over."""
    return BETWEEN_TURNS.join(
        (messages[x.turn]["content"] or "")[x.start : x.end] for x in slices_between(messages, span)
    )


@dataclass(frozen=True)
class Slice:
    """Characters `start` to `end` of a turn's content, that stand at `at` in `context_text`."""

    turn: int
    start: int
    end: int
    at: int


def slices_between(messages: Sequence[Mapping[str, Any]], span: Sequence[int]) -> list[Slice]:
    """The pieces of `text_between`."""
    first, start, last, end = span
    slices, at = [], 0
    for turn in range(first, min(last + 1, len(messages))):
        content = messages[turn].get("content") or ""
        low, high = (start if turn == first else 0), (end if turn == last else len(content))
        if content[low:high].strip():
            slices.append(Slice(turn, low, high, at))
            at += high - low + len(BETWEEN_TURNS)
    return slices


def context_text(row: Mapping[str, Any], span: Sequence[int] | None = None) -> str:
    """The context of a row, as it was or would be measured; empty where it has none.

    Args:
        row: in any form that can be measured, with the column `gateau_context_span` or without it.
        span (*optional*): the place of the context, as `gateau_context_span` has it. Default: that of the row's column, else by
            the default rules.
    """
    return texts_of(row, span)[1]


def texts_of(
    row: Mapping[str, Any], span: Sequence[int] | None = None, find_context: FindContext | None = None
) -> tuple[str, str, str, str]:
    """What stands before the context, the context, the instruction behind it, and the response; empty where there is none.

    Args:
        row, span: as for `context_text`.
        find_context (*optional*): tells the context where there is no span.
    """
    try:
        messages = checked_turns(row)
    except SampleError:  # shown as far as it can be
        context, instruction, response = (x if isinstance(x := row.get(name), str) else "" for name in COLUMNS_FORM)
        return "", context, instruction, response
    *asked, answer = messages
    response, end_of_all = answer.get("content") or "", (len(asked) - 1, len(asked[-1].get("content") or ""))
    span = row.get(SPAN_COLUMN) if span is None else span
    if span is None:
        try:
            span = span_of(read_conversation(row, find_context))
        except SampleError:  # no context
            return "", "", text_between(asked, (0, 0, *end_of_all)).strip(), response.strip()
    first, start, last, end = map(int, span)
    before, behind = text_between(asked, (0, 0, first, start)), text_between(asked, (last, end, *end_of_all))
    return before.strip(), text_between(asked, (first, start, last, end)), behind.strip(), response.strip()
