"""Contexts cut from documents: at the ends of paragraphs, or of sentences, and of lengths that are balanced.

A context is a piece of one document, or, where documents are too short for that, several of one source one after the other
with `SEPARATOR` between them. No two contexts share text.

Lengths: the range from `min_tokens` to `max_tokens` is cut into ranges that double (8k, 16k, 32k, 64k), and each context is
of the range that has fewest so far and that its document is long enough for, the longer one where they tie; so long
documents, which are rarer, go to long contexts first (LongAlign takes more of the longer articles, and does not say how).
Within a range the length is log-uniform; a document whose rest falls into the range is taken to its end.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import re
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

from .config import BuildConfig
from .documents import Document, Documents
from .prompts import language_of


logger = logging.getLogger(__name__)

SEPARATOR = "\n\n* * *\n\n"  # between documents
LONGEST_PIECE = 2000  # characters of a paragraph that is not cut
PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|[。！？；…]+[”’」』）\"]*\s*|\n\s*")
SPACE = re.compile(r"\s+")
TOO_FEW = "shorter than min_tokens, and too few of its source to join"
NO_PLACE = "no place to cut at gives a length in the range"
MOST_TRIES = 50  # at the length of one context

CountTokens = Callable[[list[str]], list[int]]


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of the document at `place` among `Documents`."""

    place: int
    start: int
    end: int


@dataclass(frozen=True)
class Context:
    """Spans that make a context, its text's key, language (`en` or `zh`) and length in tokens."""

    spans: tuple[Span, ...]
    key: str
    language: str
    num_tokens: int


def text_of(spans: tuple[Span, ...], documents: Documents) -> str:
    """The text that spans stand for."""
    return SEPARATOR.join(documents[span.place].text[span.start : span.end] for span in spans)


def cut_places(text: str) -> list[int]:
    """Where a text may be cut, the end included: after paragraphs; in one of more than `LONGEST_PIECE` characters, after
    sentences or lines; in such a sentence, after words, and where it has none, anywhere.
    """
    places: list[int] = []

    def cut(start: int, end: int, levels: tuple[re.Pattern, ...]) -> None:
        if not levels:
            places.extend([*range(start + LONGEST_PIECE, end, LONGEST_PIECE), end])
            return
        borders = [match.end() for match in levels[0].finditer(text, start, end) if match.end() < end]
        for a, b in pairwise([start, *borders, end]):
            if b - a > LONGEST_PIECE:
                cut(a, b, levels[1:])
            else:
                places.append(b)

    cut(0, len(text), (PARAGRAPH, SENTENCE, SPACE))
    return places


def length_ranges(min_tokens: int, max_tokens: int) -> list[tuple[int, int]]:
    """(first, last) lengths of the ranges that are balanced: as many as make each about a doubling."""
    number = max(1, round(math.log2(max_tokens / min_tokens)))
    edges = [round(min_tokens * (max_tokens / min_tokens) ** (i / number)) for i in range(number + 1)]
    return [(low, high if high == max_tokens else high - 1) for low, high in pairwise(edges)]


def range_of(num_tokens: int, ranges: list[tuple[int, int]]) -> int:
    """Place of the range that a length is of."""
    return max(i for i, (low, _) in enumerate(ranges) if low <= num_tokens)


class Lengths:
    """Chooses how long the next context is to be."""

    def __init__(self, config: BuildConfig):
        self.ranges = length_ranges(config.min_tokens, config.max_tokens)
        self.counts = [0] * len(self.ranges)
        self._random = random.Random(f"{config.seed} lengths")

    def choose(self, available: float) -> int | None:
        """A length of at most `available` tokens; None where that is not enough for any. All of it, where it is as long as
        is wanted."""
        fitting = [i for i, (low, _) in enumerate(self.ranges) if low <= available]
        if not fitting:
            return None
        low, high = self.ranges[min(fitting, key=lambda i: (self.counts[i], -i))]
        if available <= high:
            return int(available)
        return round(math.exp(self._random.uniform(math.log(low), math.log(high))))

    def count(self, num_tokens: int) -> None:
        """Tell of a context that was cut."""
        self.counts[range_of(num_tokens, self.ranges)] += 1


@dataclass
class _Rest:
    """What is left of a document: where it may be cut, and the tokens up to there (a little off: pieces are counted apart)."""

    place: int
    cuts: array
    tokens: array
    first: int = 0  # cut that the rest begins at

    @property
    def available(self) -> int:
        return self.tokens[-1] - self.tokens[self.first]


class ContextCutter:
    """Cuts contexts one after the other, one of each document before the second of any.

    Args:
        documents (`Documents`): what to cut.
        config (`BuildConfig`): lengths, seed, and whether to join.
        count_tokens: texts to their lengths.

    Attributes:
        dropped: why documents are in no context, and how many.
    """

    def __init__(self, documents: Documents, config: BuildConfig, count_tokens: CountTokens):
        self.documents, self.config, self.count_tokens = documents, config, count_tokens
        self.lengths = Lengths(config)
        self.dropped: Counter = Counter()
        self._pools: dict[str, list[Span]] = defaultdict(list)  # short documents that wait to be joined
        self._pool_tokens: Counter = Counter()
        self._pool_targets: dict[str, int] = {}

    def __iter__(self) -> Iterator[Context]:
        order = list(range(len(self.documents)))
        random.Random(f"{self.config.seed} documents").shuffle(order)
        rests = (self._measure(place) for place in order)
        while True:
            going_on = []
            for rest in rests:
                context = self._next(rest)
                if context is not None:
                    yield context
                    if rest.available >= self.config.min_tokens:
                        going_on.append(rest)
            yield from self._close_pools()
            if not going_on:
                return
            rests = iter(going_on)

    def _measure(self, place: int) -> _Rest:
        text = self.documents[place].text
        cuts = [0, *cut_places(text)]
        counts = self.count_tokens([text[a:b] for a, b in pairwise(cuts)])
        return _Rest(place, array("q", cuts), array("q", [0, *accumulate(counts)]))

    def _next(self, rest: _Rest) -> Context | None:
        """A context that begins with the rest of a document, or one that a short document has completed."""
        document = self.documents[rest.place]
        if rest.first == 0 and rest.available < self.config.min_tokens:
            return self._joined(rest, document) if self.config.join else self._too_short()
        target = self.lengths.choose(rest.available)
        return None if target is None else self._fitted((), rest, document, target)

    def _too_short(self) -> None:
        self.dropped[f"shorter than min_tokens={self.config.min_tokens}"] += 1

    def _joined(self, rest: _Rest, document: Document) -> Context | None:
        """Put a short document with others of its source; a context where they are long enough together."""
        source, pool = document.source, self._pools[document.source]
        target = self._pool_targets.setdefault(source, self.lengths.choose(math.inf))
        missing = target - self._pool_tokens[source]
        if rest.available < missing:
            start, end = _trimmed(document.text, 0, len(document.text))
            pool.append(Span(rest.place, start, end))
            self._pool_tokens[source] += rest.available + self.count_tokens([SEPARATOR])[0]
            return None
        context = self._fitted(tuple(pool), rest, document, missing)
        self._forget_pool(source)
        return context

    def _forget_pool(self, source: str) -> None:
        for kept in (self._pools, self._pool_targets, self._pool_tokens):
            kept.pop(source, None)

    def _close_pools(self) -> Iterator[Context]:
        """What is left of short documents, where it is enough for a context."""
        for source, pool in list(self._pools.items()):
            num_tokens = self.count_tokens([text_of(tuple(pool), self.documents)])[0] if pool else 0
            if self.config.min_tokens <= num_tokens <= self.config.max_tokens:
                yield self._made(tuple(pool), num_tokens)
            elif pool:
                self.dropped[TOO_FEW if num_tokens < self.config.min_tokens else NO_PLACE] += len(pool)
            self._forget_pool(source)

    def _fitted(self, before: tuple[Span, ...], rest: _Rest, document: Document, target: int) -> Context | None:
        """A context of `before` and about `target` tokens of the rest, whose length is in the range when it is counted as a
        whole; what is taken is no longer in the rest."""
        tokens, last = rest.tokens, len(rest.cuts) - 1
        first, rest_start = rest.first, rest.tokens[rest.first]
        cut = min(last, max(first + 1, bisect_left(tokens, rest_start + target)))
        tried: set[int] = set()
        while cut not in tried and len(tried) < MOST_TRIES:
            tried.add(cut)
            span = Span(rest.place, *_trimmed(document.text, rest.cuts[first], rest.cuts[cut]))
            spans = (*before, span) if span.end > span.start else before
            num_tokens = self.count_tokens([text_of(spans, self.documents)])[0]
            excess = max(0, num_tokens - self.config.max_tokens) or min(0, num_tokens - self.config.min_tokens)
            if not excess:
                rest.first = cut
                return self._made(spans, num_tokens)
            nearer = bisect_left(tokens, tokens[cut] - excess)
            cut = min(last, max(first + 1, min(nearer, cut - 1) if excess > 0 else max(nearer, cut + 1)))
        self.dropped[NO_PLACE] += len(before) + 1
        rest.first = last
        return None

    def _made(self, spans: tuple[Span, ...], num_tokens: int) -> Context:
        text = text_of(spans, self.documents)
        self.lengths.count(num_tokens)
        return Context(spans, hashlib.sha256(text.encode()).hexdigest()[:32], language_of(text), num_tokens)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the space at its ends."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return start, max(start, end - (len(piece) - len(piece.rstrip())))


def token_counter(tokenizer_name: str) -> CountTokens:
    """Counts the tokens of texts with a tokenizer, special ones left out: a folder's, a .gguf file's or the Hub's.

    Raises:
        ValueError: the tokenizer cannot be loaded. No length is estimated instead.
    """
    from transformers import AutoTokenizer

    from ..models.loading import load_location, load_options

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            *load_location(tokenizer_name), **load_options(tokenizer_name, None, False)
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The tokenizer {tokenizer_name!r}, which lengths are counted with, cannot be loaded "
            f"({' '.join(str(error).split())[:200]}). Name another with --tokenizer: a folder, a .gguf file or a Hub id."
        ) from error

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]

    return count
