"""A conversation becomes the text and tokens that TRL's `SFTTrainer` makes of it, with the place of each content in them.

No string is searched for inside the rendered conversation: the chat template is rendered once as it is and once with a
marker in place of each content, which tells where each content went, also for templates that strip it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from .conversations import MARKER, Conversation, SampleError


CONTEXT_HEADER, INSTRUCTION_HEADER, RESPONSE_HEADER = "### Input:\n", "\n### Instruction:\n", "\n### Response:\n"


def render_plain(conversation: Conversation) -> tuple[str, tuple[int, int, int]]:
    """The paper's form for tokenizers without a chat template; all turns before the response, one after the other.

    Returns:
        The text, and the characters at which context, what follows the context, and response begin.
    """
    contents = [message["content"] for message in conversation.messages[:-1]]
    offsets = [0]
    for content in contents:
        offsets.append(offsets[-1] + len(content) + len("\n\n"))
    asked = "\n\n".join(contents)
    start, end = offsets[conversation.first] + conversation.start, offsets[conversation.last] + conversation.end
    head = CONTEXT_HEADER + asked[:end]
    text = head + INSTRUCTION_HEADER + asked[end:].strip() + RESPONSE_HEADER
    return text + conversation.messages[-1]["content"], (len(CONTEXT_HEADER) + start, len(head), len(text))


def render_chat(conversation: Conversation, tokenizer) -> tuple[str, tuple[int, int, int]]:
    """The conversation through the tokenizer's chat template; returns what `render_plain` does.

    Raises:
        SampleError: the template refuses the conversation, or writes a turn otherwise than as it is.
    """
    messages = conversation.messages
    text = apply_template(tokenizer, messages)
    prompt = apply_template(tokenizer, messages[:-1], add_generation_prompt=True)
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


def apply_template(tokenizer, messages: list[dict], **kwargs) -> str:
    """The turns as the chat template writes them.

    Raises:
        SampleError: the template refuses the conversation.
    """
    with refusal_as_reason():
        return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)


@contextmanager
def refusal_as_reason() -> Iterator[None]:
    """A `SampleError` in place of what a chat template raises that refuses a conversation."""
    from jinja2 import TemplateError

    try:
        yield
    except (TemplateError, TypeError, ValueError) as error:
        raise SampleError(f"the chat template refuses the conversation: {error}") from error


def around(tokenizer, messages: list[dict], turn: int, **options) -> tuple[str, str]:
    """What the template writes before and after the content of one turn.

    Raises:
        SampleError: the template refuses the conversation, or shows the content not once.
    """
    marked = [*messages[:turn], {**messages[turn], "content": MARKER}, *messages[turn + 1 :]]
    parts = apply_template(tokenizer, marked, **options).split(MARKER)
    if len(parts) != 2:
        raise SampleError(f"the chat template shows the content of turn {turn} {len(parts) - 1} times, not once")
    return parts[0], parts[1]


def has_generation_marks(tokenizer) -> bool:
    """Whether the template tells which tokens are the assistant's (`{% generation %}`), and the tokenizer can say so."""
    template = tokenizer.chat_template or ""
    template = template.get("default", "") if isinstance(template, Mapping) else template
    return tokenizer.is_fast and bool(re.search(r"\{%-?\s*generation\b", template))


def encode(text: str, borders: Sequence[int], tokenizer) -> tuple[list[int], list[int]]:
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


def _place(tokenizer, messages: list[dict], turn: int, text: str) -> tuple[int, int]:
    """Where the content of one turn begins in the rendered text, and how many of its characters were stripped."""
    start, end = _shown(tokenizer, messages, turn, text)
    for cut, candidate in _stripped(messages[turn]["content"]):
        if text[start:end] == candidate:
            return start, cut
    raise SampleError(f"the chat template rewrites the content of turn {turn}, so its tokens cannot be told apart")


def _shown(tokenizer, messages: list[dict], turn: int, text: str) -> tuple[int, int]:
    """The characters of the rendered text that stand where a marker stands in place of the turn's content."""
    before, after = around(tokenizer, messages, turn)
    if len(before) + len(after) > len(text) or not (text.startswith(before) and text.endswith(after)):
        raise SampleError(f"the chat template rewrites the conversation around turn {turn}")
    return len(before), len(text) - len(after)


def _stripped(content: str) -> list[tuple[int, str]]:
    """The content as a template may show it: whole, or stripped at either end, with the characters lost in front."""
    lost = len(content) - len(content.lstrip())
    return [(0, content), (lost, content.strip()), (lost, content.lstrip()), (0, content.rstrip())]


def _common_prefix(input_ids: list[int], tokenizer, text: str, chat: bool) -> int:
    """Border for tokenizers without offsets: how many tokens of the text up to the border stand in the whole one."""
    head = tokenizer(text, add_special_tokens=not chat)["input_ids"]
    pairs = enumerate(zip(head, input_ids, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(head), len(input_ids)))
