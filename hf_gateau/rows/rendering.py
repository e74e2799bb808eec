"""A conversation becomes the text and tokens that TRL's `SFTTrainer` makes of it: through the chat template, or in the paper's form."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..settings import a_type
from .conversations import Conversation, SampleError, says_something
from .decoding import from_json


CONTEXT_HEADER, INSTRUCTION_HEADER, RESPONSE_HEADER = "### Input:\n", "\n### Instruction:\n", "\n### Response:\n"
# Parameters of `apply_chat_template` that a row may set: the others decide how training reads all rows.
ROW_DECIDES = ("tools", "documents", "chat_template")
TURNS_TRIED = 100  # to find the one that a template refuses


@dataclass(frozen=True)
class Written:
    """A conversation as text, without a chat template.

    Attributes:
        text (`str`): all of it.
        borders (`tuple[int, int, int]`): the characters at which context, what follows it, and response begin.
        offsets (`list[int]`): of each turn that may hold context: the character at which its content stands, or would stand.
    """

    text: str
    borders: tuple[int, int, int]
    offsets: list[int]


def render_plain(conversation: Conversation) -> Written:
    """The paper's form for tokenizers without a chat template; all turns before the response, one after the other. Where all
    that is asked stands before the context, so it does here."""
    texts, offsets = plain_texts(conversation.messages), [0]
    for text in texts[:-1]:
        offsets.append(offsets[-1] + (len(text) + len("\n\n") if text else 0))
    asked = "\n\n".join(filter(None, texts[:-1]))
    start, end = offsets[conversation.first] + conversation.start, offsets[conversation.last] + conversation.end
    before, behind = asked[:start].strip(), asked[end:].strip()
    if before and not behind:
        begin = INSTRUCTION_HEADER.lstrip() + before + "\n" + CONTEXT_HEADER
        head = begin + asked[start:end]
        text = head + RESPONSE_HEADER
        moved = len(begin) - start
    else:
        head, moved = CONTEXT_HEADER + asked[:end], len(CONTEXT_HEADER)
        text = head + INSTRUCTION_HEADER + behind + RESPONSE_HEADER
    borders = moved + start, len(head), len(text)
    return Written(text + texts[-1], borders, [moved + offset for offset in offsets])


def prompt_text(prompt: str, completion: str, tokenizer) -> str:
    """`prompt` and `completion` as `SFTTrainer` puts strings together: with the end of sequence, where it is not there."""
    end_of_sequence = tokenizer.eos_token or ""
    return prompt + completion + ("" if completion.endswith(end_of_sequence) else end_of_sequence)


def plain_texts(messages: list[Mapping]) -> list[str]:
    """What each turn says, '' for one without text.

    Raises:
        SampleError: a turn calls a tool, or thinks, without a word: only a chat template has a form for that.
    """
    texts = [content if (content := message.get("content") or "").strip() else "" for message in messages]
    for i, text in enumerate(texts):
        if not text and says_something(messages[i]):
            raise SampleError(f"turn {i} ({described(messages[i])}) has no form without a chat template")
    return texts


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, and what one row hands to it beside its turns.

    Attributes:
        source (`str` or `None`): the template in Jinja; None where the tokenizer has none.
        options (`dict`): `tools` and the row's `chat_template_kwargs`, as `SFTTrainer` hands them on.
    """

    tokenizer: Any
    source: str | None
    options: dict[str, Any]

    @classmethod
    def of(cls, row: Mapping[str, Any], tokenizer) -> "ChatTemplate":
        """The template for a row.

        Raises:
            SampleError: `tools` or `chat_template_kwargs` is nothing that a template can be handed.
        """
        options = {"tools": _tools(row), **_template_kwargs(row, tokenizer)}
        if not (tokenizer.chat_template or options.get("chat_template")):
            return cls(tokenizer, None, options)
        with _refusal_as_reason():
            source = tokenizer.get_chat_template(options.get("chat_template"), options["tools"])
        return cls(tokenizer, source, options)

    @property
    def marks_answers(self) -> bool:
        """Whether it tells which tokens are the assistant's (`{% generation %}`), and the tokenizer can say so."""
        return self.tokenizer.is_fast and bool(re.search(r"\{%-?\s*generation\b", self.source or ""))

    def render(self, messages: list[dict], prompts: bool = False) -> str:
        """The turns as the template writes them; with the beginning of an answer behind them where it `prompts` for one.

        Raises:
            SampleError: the template refuses the conversation.
        """
        return self._applied(messages, tokenize=False, **({"add_generation_prompt": True} if prompts else {}))

    def prompt_ids(self, messages: list[dict]) -> list[int]:
        """The tokens of a prompt, with the beginning of an answer behind it.

        Raises:
            SampleError: the template refuses it.
        """
        return list(self._applied(messages, tokenize=True, return_dict=True, add_generation_prompt=True)["input_ids"])

    def marked(self, messages: list[dict]) -> tuple[list[int], list[int]]:
        """Tokens, and 1 for each that `{% generation %}` marks.

        Raises:
            SampleError: the template refuses the conversation.
        """
        found = self._applied(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return list(found["input_ids"]), list(found["assistant_masks"])

    def _applied(self, messages: list[dict], **settings):
        try:
            with _refusal_as_reason():
                return self.tokenizer.apply_chat_template(messages, **self.options, **settings)
        except SampleError as error:
            if (turn := self._refused_turn(messages, str(error))) is None:
                raise
            raise SampleError(f"{error} (turn {turn}, {described(messages[turn])})") from error

    def _refused_turn(self, messages: list[dict], reason: str) -> int | None:
        """The first turn with which the template refuses the conversation for this reason."""
        for turn in range(min(len(messages), TURNS_TRIED)):
            try:
                with _refusal_as_reason():
                    self.tokenizer.apply_chat_template(messages[: turn + 1], **self.options, tokenize=False)
            except SampleError as error:
                if str(error) == reason:
                    return turn
        return None


def described(message: Mapping[str, Any]) -> str:
    """A turn in words: who says it, and what of the usual it has not or has beside."""
    calls = " with tool_calls" if message.get("tool_calls") else ""
    return f"{message['role']}{calls}{'' if (message.get('content') or '').strip() else ' without text'}"


def _tools(row: Mapping[str, Any]) -> list | None:
    tools = from_json(row.get("tools"))
    if tools is None:
        return None
    tools = [from_json(tool) for tool in tools] if isinstance(tools, list) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise SampleError("tools is no list of functions' descriptions; rename the column if it is something else")
    return tools


def _template_kwargs(row: Mapping[str, Any], tokenizer) -> dict[str, Any]:
    kwargs = from_json(row.get("chat_template_kwargs"))
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping):
        raise SampleError(f"chat_template_kwargs is {a_type(kwargs)}, not a mapping of the template's variables")
    own = inspect.signature(tokenizer.apply_chat_template).parameters
    own = {name for name in own if own[name].kind != inspect.Parameter.VAR_KEYWORD} - {*ROW_DECIDES}
    if wrong := sorted(own & kwargs.keys()):
        raise SampleError(f"chat_template_kwargs sets {', '.join(wrong)}, which training sets itself")
    return dict(kwargs)


@contextmanager
def _refusal_as_reason() -> Iterator[None]:
    """A `SampleError` in place of whatever a chat template, which is a program, raises over a row."""
    try:
        yield
    except Exception as error:
        raise SampleError(f"the chat template refuses the conversation: {error}") from error


@dataclass(frozen=True)
class Encoded:
    """A text as tokens.

    Attributes:
        input_ids (`list[int]`): the tokens.
        firsts (`list[int]`): the first token after each border that was asked for.
        starts (`list[int]` or `None`): the character at which each token begins, the text's end for tokens behind it; None where
            the tokenizer does not tell.
        text (`str`): that was encoded.
        marks (`frozenset[int]`): tokens that stand for no text, such as the end of a turn or of the sequence.
    """

    input_ids: list[int]
    firsts: list[int]
    starts: list[int] | None
    text: str
    marks: frozenset[int]


def encode(text: str, borders: Sequence[int], tokenizer, *, add_special_tokens: bool, close: bool) -> Encoded:
    """The text as tokens, and the first token after each border.

    All is tokenised at once; a token belongs to the span of its last character, so each counts once.

    Args:
        add_special_tokens (`bool`): the tokenizer's own, before and after; a chat template writes them itself.
        close (`bool`): it ends with the end of sequence, which the tokenizer may lack.
    """
    found = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=tokenizer.is_fast)
    input_ids, starts = found["input_ids"], None
    if tokenizer.is_fast:
        starts, ends = [start for start, _ in found["offset_mapping"]], [end for _, end in found["offset_mapping"]]
        length = max((i + 1 for i, end in enumerate(ends) if end), default=0)
        if close:  # special tokens appended by the tokenizer: training appends EOS
            del input_ids[length:], starts[length:], ends[length:]
        starts[length:] = [len(text)] * len(starts[length:])
        firsts = [next((i for i, end in enumerate(ends) if end > border), len(ends)) for border in borders]
    else:
        firsts = [_common_prefix(input_ids, tokenizer, text[:border], add_special_tokens) for border in borders]
    if close and tokenizer.eos_token_id is not None and input_ids[-1:] != [tokenizer.eos_token_id]:
        input_ids = [*input_ids, tokenizer.eos_token_id]
        starts = starts and [*starts, len(text)]
    return Encoded(list(input_ids), firsts, starts, text, _marks(tokenizer))


def _marks(tokenizer) -> frozenset[int]:
    """The special tokens, but for the one that stands for text which the tokenizer does not know."""
    return (_added_marks(tokenizer, len(tokenizer)) | {*tokenizer.all_special_ids}) - {tokenizer.unk_token_id}


@lru_cache(maxsize=4)
def _added_marks(tokenizer, size: int) -> frozenset[int]:
    """Of the tokens that were added to a vocabulary, now of this size, the special ones: listing thousands takes milliseconds, and
    this is asked for every row."""
    return frozenset(token for token, x in tokenizer.added_tokens_decoder.items() if x.special)


def _common_prefix(input_ids: list[int], tokenizer, text: str, add_special_tokens: bool) -> int:
    """Border for tokenizers without offsets: how many tokens of the text up to the border stand in the whole one."""
    return common_prefix(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"], input_ids)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
