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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from .conversations import Conversation, FindContext, SampleError, read_conversation
from .parts import slices_between, span_of
from .places import Rendered
from .rendering import ChatTemplate, Encoded, common_prefix, encode, prompt_text, render_plain


@dataclass(frozen=True)
class Sample:
    """Token spans of one row.

    Attributes:
        input_ids (`list[int]`): all tokens that `SFTTrainer` would see for the row, context truncated.
        context_start, context_end, response_start, response_end (`int`): span borders, see the module's legend.
        num_truncated (`int`): context tokens dropped from the left.
        rule (`str`), span (`list[int]`): what told where the context stands, and where in the row it does (`parts.span_of`).
        starts (`array` or `None`): of each token the character at which it begins in `text`, which is all that was rendered; None
            where the tokenizer does not tell.
        marks (`frozenset[int]`): tokens that stand for no text, see `rendering.Encoded`.
        slices (`list` or `None`): where the context's turns stand in that text, see `Rendered.slices`.
    """

    input_ids: list[int]
    context_start: int
    context_end: int
    response_start: int
    response_end: int
    num_truncated: int = 0
    rule: str = field(default="", compare=False)
    span: list[int] | None = field(default=None, compare=False)
    starts: array | None = field(default=None, compare=False, repr=False)
    text: str = field(default="", compare=False, repr=False)
    marks: frozenset[int] = field(default=frozenset(), compare=False, repr=False)
    slices: list[tuple[int, int, int]] | None = field(default=None, compare=False)

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

    def places(self, tokens: Iterable[int]) -> list[int] | None:
        """The characters of `parts.context_text` at which some of the context's tokens begin; None where it cannot be told.

        What a template writes between two turns belongs to the next.
        """
        if self.starts is None or not self.slices:
            return None
        places = []
        for at in (self.starts[self.context_start + token] for token in tokens):
            start, end, place = next((x for x in self.slices if at < x[1]), self.slices[-1])
            is_begin = at <= self.slices[0][0]  # white space that a template may strip included
            places.append(0 if is_begin else place + min(max(at, start), end) - start)
        return places

    def response_text(self) -> tuple[str, list[int]] | None:
        """The response as text, without what is no text of it such as the end of a turn, and the character of it at which each
        response token begins: it goes on to where the next one does. None where it cannot be told.

        A mark, which stands for no text, is empty so; and where several tokens make one character, the last of them has it.
        """
        if self.starts is None:
            return None
        borders = [*self.starts[self.response_start :][: len(self.response) + 1], len(self.text)]
        is_mark = [token in self.marks for token in self.response]
        pieces = [
            "" if mark else self.text[start:end]
            for mark, start, end in zip(is_mark, borders, borders[1:], strict=False)
        ]
        behind = max((i + 1 for i, mark in enumerate(is_mark) if mark), default=len(pieces))
        if not "".join(pieces[behind:]).strip():  # a line break that the template writes behind a turn
            pieces[behind:] = [""] * len(pieces[behind:])
        return "".join(pieces), [0, *accumulate(map(len, pieces))][: len(pieces)]

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
    span = span_of(conversation)
    template = ChatTemplate.of(row, tokenizer)
    if conversation.is_text:
        sample = _of_strings(conversation, tokenizer)
    elif template.source is None:
        sample = _without_template(conversation, span, tokenizer)
    else:
        sample = _through_template(conversation, span, template)
    sample = replace(sample, rule=conversation.rule, span=span)
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
        starts=None if sample.starts is None else sample.starts[:start] + sample.starts[start + excess :],
    )


def _cut_into_spans(found: Encoded) -> Sample:
    context_start, context_end, response_start = found.firsts
    context_end = max(context_start, context_end)
    starts = None if found.starts is None else array("q", found.starts)
    borders = context_start, context_end, response_start, len(found.input_ids)
    return Sample(found.input_ids, *borders, starts=starts, text=found.text, marks=found.marks)


def _without_template(conversation: Conversation, span: list[int], tokenizer) -> Sample:
    """In the paper's form."""
    written = render_plain(conversation)
    found = encode(written.text, written.borders, tokenizer, add_special_tokens=True, close=True)
    slices, offsets = slices_between(conversation.messages, span), written.offsets
    places = [(offsets[x.turn] + x.start, offsets[x.turn] + x.end, x.at) for x in slices]
    return replace(_cut_into_spans(found), slices=places)


def _of_strings(conversation: Conversation, tokenizer) -> Sample:
    """`prompt` and `completion` as they are."""
    prompt, completion = (message["content"] for message in conversation.messages)
    start, end = conversation.start, conversation.end
    text, borders = prompt_text(prompt, completion, tokenizer), (start, end, len(prompt))
    sample = _cut_into_spans(encode(text, borders, tokenizer, add_special_tokens=True, close=False))
    return _with_completion(replace(sample, slices=[(start, end, 0)]), tokenizer(prompt)["input_ids"])


def _with_completion(sample: Sample, prompt: list[int]) -> Sample:
    """Where a row has `prompt` and `completion`, the response begins where the tokens of the prompt alone end, or differ."""
    start = common_prefix(prompt, sample.input_ids)
    return replace(sample, context_end=min(sample.context_end, start), response_start=start)


def _through_template(conversation: Conversation, span: list[int], template: ChatTemplate) -> Sample:
    """The conversation as the chat template writes it; the response is what training puts loss on in the last turn, all of
    `completion` where the row has that."""
    rendered, last = Rendered(template, conversation.messages), len(conversation.messages) - 1
    slices = rendered.slices(slices_between(conversation.messages, span))
    is_marked = template.marks_answers and conversation.completion is None
    follows = conversation.messages[last - 1]["role"] == "assistant"
    if conversation.completion is not None:
        rendered.check_written()
        answer = len(rendered.text)
    elif not is_marked:
        answer = rendered.answers()[-1][0]
    else:  # the mask tells; where no header stands between two turns, it runs on from one to the other
        rendered.check_written()
        answer = rendered.answer_end(last - 1) if follows else rendered.words_start(last)
    start, end = rendered.context(conversation)
    borders = start, min(end, answer), answer
    found = encode(rendered.text, borders, template.tokenizer, add_special_tokens=False, close=False)
    sample = replace(_cut_into_spans(found), slices=slices)
    if conversation.completion is not None:
        return _with_completion(sample, template.prompt_ids(conversation.messages[: conversation.completion]))
    if not is_marked:
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
