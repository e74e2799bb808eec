"""One row becomes one `Sample`: token spans prefix | context | instruction | response.

The concatenation of the spans is exactly what TRL's `SFTTrainer` tokenises for the row, so that the perplexity is taken
over the very tokens that training would put loss on.

Spans (token indices into `input_ids`):

    [0, context_start)                prefix: BOS, system turn, role header, a question asked before the context
    [context_start, context_end)      context c, the only span that truncation may shorten (from the left)
    [context_end, response_start)     instruction x, with the template's glue up to the response
    [response_start, response_end)    response y, with the end-of-turn tokens that training puts loss on
"""

import hashlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from .conversations import Conversation, FindContext, SampleError, read_conversation
from .places import Rendered
from .rendering import ChatTemplate, encode, render_plain


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
            with `messages`, a string column `context` names the part of the conversation that is the context. `tools` and
            `chat_template_kwargs` go to the chat template, as in `SFTTrainer`.
        tokenizer: a transformers tokenizer. With a chat template the conversation is rendered through it; without one,
            as `### Input / ### Instruction / ### Response`, the paper's form.
        max_length (`int`, *optional*): longest sample in tokens; the context loses tokens from its left until it fits.
        find_context: maps the text of the last user turn to the character span `(start, end)` of its context; what stands
            before stays in front of it, what follows is the instruction. Default: the first of `context_rules.RULES` that can tell. Where there are several
            turns, all before the last user turn are context too. Where that turn is alone and has no context, what tools
            answered to it is the context.

    Raises:
        SampleError: the row has no usable context, instruction or response; the message says why.
    """
    conversation = read_conversation(row, find_context)
    template = ChatTemplate.of(row, tokenizer)
    if template.source is None:
        sample = _tokenize(*render_plain(conversation), tokenizer, chat=False)
    else:
        sample = _through_template(conversation, template)
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


def _tokenize(text: str, borders: tuple[int, int, int], tokenizer, chat: bool) -> Sample:
    """The whole text as tokens, cut into spans."""
    input_ids, (context_start, context_end, response_start) = encode(text, borders, tokenizer, chat)
    return Sample(input_ids, context_start, max(context_start, context_end), response_start, len(input_ids))


def _through_template(conversation: Conversation, template: ChatTemplate) -> Sample:
    """The conversation as the chat template writes it; the response is what training puts loss on in the last turn."""
    rendered, last = Rendered(template, conversation.messages), len(conversation.messages) - 1
    follows = conversation.messages[last - 1]["role"] == "assistant"
    if not template.marks_answers:
        answer = rendered.answers()[-1][0]
    else:  # the mask tells; where no header stands between two turns, it runs on from one to the other
        rendered.check_written()
        answer = rendered.answer_end(last - 1) if follows else rendered.words_start(last)
    start, end = rendered.context(conversation)
    sample = _tokenize(rendered.text, (start, min(end, answer), answer), template.tokenizer, chat=True)
    if not template.marks_answers:
        return sample
    return _with_marked_response(sample, conversation, template, sample.response_start if follows else 0)


def _with_marked_response(sample: Sample, conversation: Conversation, template: ChatTemplate, earliest: int) -> Sample:
    """Where the template marks the assistant's tokens (`{% generation %}`), the response is what it marks in the last turn."""
    _, mask = template.marked(conversation.messages)
    if len(mask) != len(sample.input_ids):
        raise SampleError("the chat template does not tokenise as it renders")
    end = next((i + 1 for i in range(len(mask) - 1, -1, -1) if mask[i]), 0)
    first = next((i for i in range(sample.response_start, end) if mask[i]), end)
    start = next((i + 1 for i in range(first - 1, -1, -1) if not mask[i]), 0)
    return replace(sample, response_start=max(start, earliest, sample.context_end), response_end=end)
