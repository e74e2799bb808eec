"""Where in the text of a chat template each turn stands, by rendering it again with a turn's words changed.

No string is searched for inside the text, and nothing is known of any template: what stays the same when a turn's words
change is not that turn's. Words are what a turn says: its content, its thoughts, the arguments of its calls.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

from .conversations import MARKER, THOUGHTS, Conversation, SampleError, says_something
from .parts import Slice
from .rendering import ChatTemplate, described


class Rendered:
    """A conversation as a chat template writes it.

    Attributes:
        text (`str`): all of it.

    Raises:
        SampleError: the template refuses the conversation, or writes what no tokenizer can read.
    """

    def __init__(self, template: ChatTemplate, messages: list[dict]):
        self.template, self.messages = template, messages
        self._starts: dict[int, int] = {}
        self.text = template.render(messages)
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise SampleError(
                "the row holds a lone surrogate, which is no valid Unicode; re-encode the row"
            ) from error
        if MARKER in self.text:
            raise SampleError(f"the row holds the private-use marker {MARKER!r}")

    def answers(self) -> list[tuple[int, int]]:
        """The characters that are the assistant's to say, a span a turn.

        A turn begins where the template's generation prompt ends, and ends with what closes it: the beginning of the next
        turn is not the assistant's to say.

        Raises:
            SampleError: the template does not show a turn, or not in its place.
        """
        self.check_written()
        turns = self._answering()
        spans = [(self.answer_start(turn), self.answer_end(turn)) for turn in turns]
        for turn, (_, end) in zip(turns, spans, strict=True):
            if self._holds_next(turn, end):
                inner, outer = (f"turn {i} ({described(self.messages[i])})" for i in (turn + 1, turn))
                raise SampleError(f"the chat template writes what {inner} says inside {outer}")
        borders = [border for span in spans for border in span]
        if borders != sorted(borders):
            raise SampleError("the chat template writes the turns in another order than they have")
        return spans

    def check_written(self) -> None:
        """Raise a `SampleError` where the template shows nothing of what the assistant says in a turn."""
        for turn in self._answering():
            self.words_start(turn)

    def _answering(self) -> list[int]:
        return [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]

    def _holds_next(self, turn: int, end: int) -> bool:
        """Whether what a tool answers stands within the turn that called it."""
        if turn + 1 == len(self.messages) or self.messages[turn + 1]["role"] != "tool":
            return False
        try:
            return self.words_start(turn + 1) < end
        except SampleError:  # shown nowhere
            return False

    def answer_start(self, turn: int) -> int:
        """Where the generation prompt of an assistant's turn ends; where its words begin, if there is no such prompt."""
        if not turn:
            return self.words_start(turn)
        before = self.messages[:turn]
        try:
            prompt = self.template.render(before, prompts=True)
        except SampleError:
            return self.words_start(turn)
        if self.text.startswith(prompt):
            return len(prompt)
        try:  # a prompt that shows earlier turns otherwise: what it writes behind the last of them may stand in the text
            behind = _behind_words(self.template, before, turn - 1, prompt, prompts=True)
            start = self.words_end(turn - 1)
        except SampleError:
            return self.words_start(turn)
        shared = _common_prefix(prompt[behind:], self.text[start : start + len(prompt)])
        return min(start + shared, self.words_start(turn))

    def answer_end(self, turn: int) -> int:
        """The end of a turn: what closes it as the last of the conversation closes it here too, as far as it stands here."""
        if turn == len(self.messages) - 1:
            return len(self.text)
        alone = self._closed_at(turn)
        if alone is not None and self.text.startswith(alone):
            return len(alone)
        end = self.words_end(turn)
        closing = (
            "" if alone is None else alone[_behind_words(self.template, self.messages[: turn + 1], turn, alone) :]
        )
        return end + self._closed(closing, self.text[end:])

    def _closed(self, closing: str, after: str) -> int:
        """How many characters close a turn, `after` which others follow, if `closing` is what closes the last one.

        The tokenizer's own tokens close a turn whole or not at all. One that ends a conversation (GPT-OSS' `<|return|>`) stands
        for the one that ends a turn.
        """
        shared = _common_prefix(closing, after)
        tokens = self._own_tokens
        cut = next((x.start() for x in tokens.finditer(closing) if x.start() < shared < x.end()), shared)
        if not cut and tokens.match(closing) and (instead := tokens.match(after)):
            return instead.end()
        return cut

    @cached_property
    def _own_tokens(self) -> re.Pattern:
        tokenizer = self.template.tokenizer
        tokens = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or "(?!)")

    def _closed_at(self, turn: int) -> str | None:
        """The conversation up to a turn; None where the template refuses to end there."""
        try:
            return self.template.render(self.messages[: turn + 1])
        except SampleError:
            return None

    def words_start(self, turn: int) -> int:
        """The first character that depends on the words of a turn.

        Raises:
            SampleError: the template shows none of them.
        """
        if turn not in self._starts:
            changed = _with_words(self.messages[turn], lambda _: MARKER)
            text = self.template.render([*self.messages[:turn], changed, *self.messages[turn + 1 :]])
            if MARKER not in text:
                raise _not_written(self.messages, turn)
            self._starts[turn] = _common_prefix(text, self.text)
        return self._starts[turn]

    def words_end(self, turn: int) -> int:
        """The character behind the last that depends on the words of a turn.

        Raises:
            SampleError: the template shows none of them.
        """
        return _behind_words(self.template, self.messages, turn, self.text)

    def context(self, conversation: Conversation) -> tuple[int, int]:
        """The characters of the context.

        Raises:
            SampleError: the template rewrites the turns that hold it.
        """
        first, last = conversation.first, conversation.last
        start = self._place(first, conversation.start, 1)
        end = self._place(last, conversation.end, -1)
        return start, max(start, end)

    def slices(self, slices: Sequence[Slice]) -> list[tuple[int, int, int]] | None:
        """Where pieces of turns' contents stand: first character and end in the text, and the character of `context_text` that
        the first is. White space at the ends of a piece, which a template may strip, is none of it. None where the template
        rewrites one of the turns."""
        messages, shown = list(self.messages), []
        for piece in slices:
            content = self.messages[piece.turn]["content"]
            start, end = _next_printed(content, piece.start, 1), _next_printed(content, piece.end, -1)
            shown.append(piece.at + start - piece.start)
            marked = content[:start] + MARKER + content[start:end] + MARKER + content[end:]
            messages[piece.turn] = {**self.messages[piece.turn], "content": marked}
        parts = self.template.render(messages).split(MARKER)
        if len(parts) != 2 * len(shown) + 1 or "".join(parts) != self.text:
            return None
        ends = list(accumulate(map(len, parts)))
        return list(zip(ends[::2], ends[1::2], shown, strict=False))

    def _place(self, turn: int, at: int, step: int) -> int:
        """Where in the text a character of a turn's content stands; if it was stripped, the next by `step` that stands."""
        content = self.messages[turn].get("content") or ""
        if not content.strip():
            return self.words_start(turn) if step > 0 else self.words_end(turn)
        counts = []
        for place in dict.fromkeys((at, _next_printed(content, at, step))):
            counts.append(self._shown_at(turn, content[:place], content[place:]))
            if isinstance(counts[-1], int):
                return counts[-1]
        raise SampleError(counts[0])

    def _shown_at(self, turn: int, before: str, after: str) -> int | str:
        """Where the text has the place between two parts of a turn's content, or why it cannot be told."""
        changed = {**self.messages[turn], "content": before + MARKER + after}
        parts = self.template.render([*self.messages[:turn], changed, *self.messages[turn + 1 :]]).split(MARKER)
        if len(parts) != 2:
            return f"the chat template shows the content of turn {turn} {len(parts) - 1} times, not once"
        if "".join(parts) != self.text:
            return f"the chat template rewrites the content of turn {turn}, so its tokens cannot be told apart"
        return len(parts[0])


def _behind_words(template: ChatTemplate, messages: list[dict], turn: int, text: str, prompts: bool = False) -> int:
    """The character of `text`, the conversation as it is rendered, behind the last that depends on the words of a turn."""
    changed = [*messages[:turn], _with_words(messages[turn], lambda word: word + MARKER), *messages[turn + 1 :]]
    other = template.render(changed, prompts=prompts)
    if MARKER not in other:
        raise _not_written(messages, turn)
    return len(text) - _common_prefix(text[::-1], other[::-1])


def _not_written(messages: list[dict], turn: int) -> SampleError:
    return SampleError(f"the chat template does not write what turn {turn} ({described(messages[turn])}) says")


def _with_words(message: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A turn with other words: texts and thoughts that are not blank, and what its calls hand to tools; some, if it has none."""
    if not says_something(message):
        return {**message, "content": change("")}
    changed = {name: change(text) for name in ("content", *THOUGHTS) if _is_text(text := message.get(name))}
    if isinstance(calls := message.get("tool_calls"), list):
        changed["tool_calls"] = [_with_words_of_call(call, change) for call in calls]
    return {**message, **changed}


def _with_words_of_call(call: Any, change: Callable[[str], str]) -> Any:
    """A call of `{"function": {"name", "arguments"}}`, or that mapping itself; its name changes where it hands nothing over."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_words_of_call(call["function"], change)}
    arguments = call.get("arguments")
    if arguments or isinstance(arguments, (bool, int, float)):
        return {**call, "arguments": _with_words_inside(arguments, change)}
    return {**call, "name": change(call["name"])} if _is_text(call.get("name")) else call


def _with_words_inside(value: Any, change: Callable[[str], str]) -> Any:
    """Arguments with every value changed; what is no text becomes one."""
    if isinstance(value, Mapping) and value:
        return {name: _with_words_inside(item, change) for name, item in value.items()}
    if isinstance(value, list) and value:
        return [_with_words_inside(item, change) for item in value]
    return change(value if isinstance(value, str) else "")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _next_printed(content: str, at: int, step: int) -> int:
    """The place itself, moved over white space."""
    while 0 <= at - (step < 0) < len(content) and content[at - (step < 0)].isspace():
        at += step
    return at


def _common_prefix(one: str, other: str) -> int:
    """Characters that two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
