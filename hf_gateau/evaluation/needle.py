"""Needle in a Haystack: one sentence hidden in a long text, at every length and depth of a grid; is it found again?

As LongAlign (arXiv 2401.18058) and GATEAU (arXiv 2410.15633) ran it: their needle and question, the needle at the end of a
sentence. They had a judge rate the answer; here the score is the share of the needle's distinctive words in it, which needs
none.

Lengths are tokens of the text with the needle in it, by the model's own tokenizer; question and chat template come on top.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import count
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.texts import read_user_text
from .metrics import distinctive_words, needle_score, words_of
from .needle_map import write_maps
from .results import TaskResult, means_by
from .tasks import Generator, Work


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NEEDLE = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
QUESTION = "What is the best thing to do in San Francisco?"
PROMPT = "{context}\n\nRead the document and answer: {question}"  # LongAlign's
# A full stop, or a blank line, as after a heading
SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s+|[。！？][”’」』]*\s*|\n\s*\n")
TEXT_SUFFIXES = (".txt", ".md")
SHORTEST, LONGEST, NUM_LENGTHS = 1_000, 64_000, 10  # of the grid, where none is given; LongAlign's
SPARE = 16  # tokens of a haystack before a piece of it that begins first, so that it can begin a little earlier
ROUNDS, FAR, ENDS = 8, 20, 8  # attempts, characters and ends to look at for a text of a wanted number of tokens


@dataclass
class NeedleConfig:
    """The grid, the needle and the text.

    Raises:
        ValueError: a field is out of range.
        FileNotFoundError: there is no such haystack.
    """

    RARELY_GIVEN = (
        "needle_repeats",
        "needle_seed",
        "needle",
        "needle_question",
        "needle_words",
        "needle_prompt",
        "needle_answer_tokens",
    )

    needle_lengths: list[int] | None = field(
        default=None,
        metadata={
            "help": "Lengths of the text with the needle in it, in tokens. Default: ten from 1,000 to the model's window, "
            "64,000 at most; for planted_needle nine from 64 to 896."
        },
    )
    needle_depths: list[float] = field(
        default_factory=lambda: [float(depth) for depth in range(0, 101, 10)],
        metadata={"help": "Where the needle is, in percent of the text: 0 is its beginning."},
    )
    needle_repeats: int = field(
        default=1,
        metadata={"help": "Texts at each length and depth, cut from the haystack at places drawn at random."},
    )
    needle_seed: int = field(default=0, metadata={"help": "What is drawn at random is drawn from this seed."})
    needle: str = field(default=NEEDLE, metadata={"help": "The sentence that is hidden."})
    needle_question: str = field(default=QUESTION, metadata={"help": "The question that it answers."})
    needle_words: list[str] | None = field(
        default=None,
        metadata={
            "help": "Words that the answer must have; their share is the score. Default: those of the needle that neither "
            "the question has nor every text."
        },
    )
    needle_prompt: str = field(
        default=PROMPT, metadata={"help": "How text and question are put together, with {context} and {question}."}
    )
    needle_answer_tokens: int = field(default=48, metadata={"help": "The longest answer, in tokens."})
    haystack: str | None = field(
        default=None,
        metadata={
            "help": "Text to hide it in: a .txt or .md file, or a folder of such files; repeated where it is too short. "
            "Default: the documentation that comes with Python, half a million characters of English."
        },
    )

    def __post_init__(self):
        for name in ("needle_repeats", "needle_answer_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is a whole number, got {getattr(self, name)}; give 1 or more.")
        if self.needle_lengths is not None and (not self.needle_lengths or min(self.needle_lengths) < 1):
            raise ValueError(f"needle_lengths are numbers of tokens, got {self.needle_lengths}; give some above 0.")
        if not self.needle_depths or not all(0 <= depth <= 100 for depth in self.needle_depths):
            raise ValueError(f"needle_depths are percent, got {self.needle_depths}; give some from 0 to 100.")
        if missing := [name for name in ("{context}", "{question}") if name not in self.needle_prompt]:
            raise ValueError(f"needle_prompt has no {' and no '.join(missing)}: {self.needle_prompt!r}; put it there.")
        try:
            self.prompt_with("")
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"needle_prompt has braces besides {{context}} and {{question}}: {self.needle_prompt!r}; double them."
            ) from error
        if self.haystack is not None and not Path(self.haystack).expanduser().exists():
            raise FileNotFoundError(
                f"There is no haystack at {self.haystack!r}; give a text file, or a folder of such files."
            )
        if not self.words:
            raise ValueError("No word of the needle is left that the question has not; name some as needle_words.")
        if empty := [word for word in self.words if not words_of(word)]:
            raise ValueError(
                f"needle_words has no letter or digit in {empty}; every answer would have it. Name words."
            )

    def prompt_with(self, text: str) -> str:
        """The question about a text."""
        return self.needle_prompt.format(context=text, question=self.needle_question)

    @property
    def words(self) -> list[str]:
        """Those that the answer must have."""
        return self.needle_words or distinctive_words(self.needle, self.needle_question)


OPTIONS = (NeedleConfig,)


@dataclass(frozen=True)
class Question:
    """One cell of the grid, once.

    Attributes:
        length, depth, repeat: where it is in the grid: tokens, percent, number.
        num_tokens: those that the text has in fact; `length`, or as near as can be.
        prompt: text and question.
        words: that the answer must have.
    """

    length: int
    depth: float
    repeat: int
    num_tokens: int
    prompt: str
    words: tuple[str, ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as a conversation."""
        return [{"role": "user", "content": self.prompt}]


def run(work: Work) -> TaskResult:
    """Ask at every length and depth, and draw what was found."""
    config, generator = work.settings(NeedleConfig), work.generator()
    text = read_haystack(config.haystack)
    lengths = sorted(set(config.needle_lengths or default_lengths(generator, config)))
    haystack = Haystack(text, generator.tokenizer, max(lengths))
    questions = []
    for length in lengths:
        for repeat in range(config.needle_repeats):
            rng = random.Random(f"{config.needle_seed} {length} {repeat}") if repeat else None
            end = haystack.draw_end(length, rng)
            for depth in sorted(set(config.needle_depths)):
                found, num_tokens = haystack.with_needle(config.needle, length, depth, end)
                prompt, words = config.prompt_with(found), tuple(config.words)
                questions.append(Question(length, depth, repeat, num_tokens, prompt, words))
    return ask("needle", work, questions, config.needle_answer_tokens, asdict(config) | {"lengths": lengths})


def ask(name: str, work: Work, questions: list[Question], answer_tokens: int, settings: dict[str, Any]) -> TaskResult:
    """The result of a grid of questions, its heat map and table among the task's files; of `work.limit` questions, those of
    `spread_evenly`.

    Raises:
        ValueError: the longest prompt with its answer is longer than the model's window.
    """
    generator = work.generator()
    questions = spread_evenly(questions, work.limit)
    check_fits(generator, max(questions, key=lambda question: question.num_tokens), answer_tokens)
    answers = generator.generate([question.messages for question in questions], answer_tokens)
    rows = [
        {
            "id": f"{question.length}-{question.depth:g}-{question.repeat}",
            "score": needle_score(answer, question.words),
            "group": str(question.length),
            "length": question.length,
            "depth": question.depth,
            "num_tokens": question.num_tokens,
            "words": list(question.words),
            "answer": answer,
        }
        for question, answer in zip(questions, answers, strict=True)
    ]
    result = TaskResult(name, grid_metrics(rows), rows, settings)
    write_maps({work.model: result}, work.folder / name)
    return result


def spread_evenly(questions: list[Question], limit: int | None) -> list[Question]:
    """So many questions of a whole grid, in its order: each length as often as any other, the longest among them, and each
    time at another depth. The first ones alone would be the shortest, which every model finds."""
    if limit is None or limit >= len(questions):
        return questions
    lengths, depths = (sorted({getattr(question, name) for question in questions}) for name in ("length", "depth"))
    # Steps of about 0.618 of all depths: what comes one after the other is far apart, and comes back only after all.
    step = next(n for n in count(round(0.618 * len(depths))) if gcd(n, len(depths)) == 1)
    chosen = set()
    for turn in range(-(-limit // len(lengths))):
        size = min(len(lengths), limit - len(chosen))
        for place in range(size):
            at = round((place + 1) * len(lengths) / size) - 1 if size > 1 else len(lengths) - 1
            chosen.add((lengths[at], depths[(turn + at) * step % len(depths)], turn // len(depths)))
    return [question for question in questions if (question.length, question.depth, question.repeat) in chosen]


def grid_metrics(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The mean of all cells, and of those of each length, in points."""
    means = dict(sorted(means_by(rows, "length").items()))
    return {"mean": sum(means.values()) / len(means), **{f"{length} tokens": mean for length, mean in means.items()}}


def check_fits(generator: Generator, question: Question, answer_tokens: int) -> None:
    """A prompt that lost its middle would have lost its needle."""
    needed = generator.num_tokens(question.messages) + answer_tokens
    if needed > generator.max_length:
        raise ValueError(
            f"A text of {question.num_tokens:,} tokens makes {needed:,} with question and answer, and {generator.model!r} "
            f"reads {generator.max_length:,}; give shorter lengths, or a larger max_length to see what it does beyond."
        )


def default_lengths(generator: Generator, config: NeedleConfig) -> list[int]:
    """Ten lengths with equal steps, up to what the model's window has room for."""
    prompt = [{"role": "user", "content": config.prompt_with(config.needle)}]
    others = generator.num_tokens(prompt) + config.needle_answer_tokens
    top = min(LONGEST, generator.max_length - others)
    low = min(SHORTEST, top // NUM_LENGTHS)
    if low < 1:
        raise ValueError(
            f"{generator.model!r} reads {generator.max_length:,} tokens, too few for needle and question."
        )
    return [round(low + i * (top - low) / (NUM_LENGTHS - 1)) for i in range(NUM_LENGTHS)]


# The text


def read_haystack(place: str | None) -> str:
    """The text of a file, or of all text files of a folder in order of their names; Python's documentation for None.

    Raises:
        ValueError: a file is no text in UTF-8 (or UTF-16 or UTF-32 with its mark), or there is no sentence in it.
    """
    if place is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics.values())
    path = Path(place).expanduser()
    files = [path] if path.is_file() else sorted(x for x in path.rglob("*") if x.suffix in TEXT_SUFFIXES)
    texts = [read_user_text(file) for file in files]
    text = "\n\n".join(texts).strip()
    if not SENTENCE_END.search(text + "\n"):
        raise ValueError(f"The haystack {place!r} has no sentence in {len(files)} files ({', '.join(TEXT_SUFFIXES)}).")
    return text


class Haystack:
    """A text that pieces of any number of tokens are cut from, with a needle put in at the end of a sentence.

    Args:
        text: repeated where it is shorter than `longest`.
        tokenizer: a fast one, which tells where in the text a token begins.
        longest: tokens of the longest piece.

    Raises:
        ValueError: the text has no sentence.
    """

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerFast, longest: int):
        self.tokenizer = tokenizer
        text = text.strip() + "\n"
        if not SENTENCE_END.search(text):
            raise ValueError("The haystack has no sentence; give a text with some.")
        # As much as any piece may need, twice over, so that there are places to draw from.
        shortened = text[: 40 * longest]
        while (num_tokens := self.count(shortened)) < 2 * longest and len(shortened) < len(text):
            shortened = text[: 2 * len(shortened)]
        self.text = shortened if num_tokens >= 2 * longest else text * (2 * longest // max(1, self.count(text)) + 1)

    @cached_property
    def starts(self) -> list[int]:
        """Where in the text each token begins."""
        found = self.tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [start for start, _ in found["offset_mapping"]]

    @cached_property
    def boundaries(self) -> list[int]:
        """Where in the text a sentence begins, after another one's end."""
        return [match.end() for match in SENTENCE_END.finditer(self.text)]

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def draw_end(self, length: int, rng: random.Random | None) -> int:
        """Where in the text a piece of that many tokens may end: the first place, or one drawn at random."""
        enough = self.starts[min(length + SPARE, len(self.starts) - 1)]
        first = min(bisect_left(self.boundaries, enough), len(self.boundaries) - 1)
        return self.boundaries[first if rng is None else rng.randrange(first, len(self.boundaries))]

    def with_needle(self, needle: str, length: int, depth: float, end: int) -> tuple[str, int]:
        """A piece of the text with the needle in it, and its number of tokens: `length`, or, where no cut gives that, as
        near as can be.

        The piece ends at `end`, or a few sentences on, with a whole sentence; it begins wherever the number of tokens comes
        out right. The needle is a line of its own at the last end of a sentence before `depth` percent of the other tokens,
        at the very beginning for 0 and at the very end for 100.

        Raises:
            ValueError: the needle alone is longer.
        """
        line = needle.strip()
        room = length - self.count(line)
        if room < 0:
            raise ValueError(
                f"The needle has {length - room} tokens, more than a text of {length}; give longer lengths."
            )
        at, found = bisect_left(self.boundaries, end), []
        for place in self.boundaries[at : at + ENDS]:
            found.append(self._cut(line, length, room, depth, place))
            if found[-1][1] == length:
                break
        return min(found, key=lambda piece: abs(piece[1] - length))

    def _cut(self, line: str, length: int, room: int, depth: float, end: int) -> tuple[str, int]:
        """The piece that ends at `end`, as near to the length as can be."""
        last = bisect_left(self.starts, end)
        first, tried = max(0, last - room), {}
        for _ in range(ROUNDS):
            start = self.starts[first] if first < last else end
            tried[start] = self.count(self._piece(line, start, end, depth))
            moved = first + tried[start] - length
            if tried[start] == length or not 0 <= moved <= last:
                break
            first = moved
        best = min(tried, key=lambda start: abs(tried[start] - length))
        # Text that is cut elsewhere may have other tokens than before; within a word, one more or less.
        near = (place for step in range(1, FAR) for place in (best - step, best + step) if 0 <= place < end)
        while tried[best] != length and (place := next(near, None)) is not None:
            tried[place] = self.count(self._piece(line, place, end, depth))
            best = place if tried[place] == length else best
        return self._piece(line, best, end, depth), tried[best]

    def _piece(self, line: str, start: int, end: int, depth: float) -> str:
        """Text from `start` to `end` with the line in it."""
        if depth >= 100 or start >= end:
            return f"{self.text[start:end].strip()}\n{line}".strip()
        first, last = bisect_left(self.starts, start), bisect_left(self.starts, end)
        target = self.starts[min(first + int((last - first) * depth / 100), len(self.starts) - 1)]
        place = self.boundaries[bisect_right(self.boundaries, target) - 1] if target >= self.boundaries[0] else start
        if place <= start:
            return f"{line}\n{self.text[start:end].strip()}"
        return f"{self.text[start:place].strip()}\n{line}\n{self.text[place:end].strip()}"
