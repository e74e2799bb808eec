"""What a judge says of answers: ratings read strictly from its replies, every reply kept, failures counted and shown.

judge(endpoint, prompts, rating_in(1, 10)) -> one Judgement a prompt -> rated rows of a TaskResult
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ..endpoint.chat_client import ReplyError
from ..endpoint.replies import Request
from ..records import commonest
from .tasks import Messages


if TYPE_CHECKING:
    from ..endpoint.questions import Answer, Endpoint

BRACKETS = re.compile(r"\[\[\s*([^\[\]]*?)\s*\]\]")
NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
JUDGE_TOKENS = 2048  # of a judgement, at most: FastChat's


@dataclass(frozen=True)
class Judgement:
    """What the judge said of one prompt.

    Attributes:
        values: what was read, one a time it was asked; None where that failed.
        replies: the texts that arrived, of each time.
        error: why a value is missing, else None.
    """

    values: tuple[Any, ...]
    replies: tuple[tuple[str, ...], ...]
    error: str | None

    @property
    def score(self) -> float | None:
        """The mean of the ratings; None as soon as one of them is missing."""
        return None if self.error else math.fsum(self.values) / len(self.values)


def rating_in(low: int, high: int, whole: bool = True) -> Callable[[str], float]:
    """Reads `[[rating]]` of a reply.

    Exactly one rating must stand in double brackets, though it may stand there more than once: a reply that names two, or
    "[[rating]]" itself, or a number out of range, is no rating, and the judge is asked again. Nothing is taken from single
    brackets or from the text.

    Args:
        low, high: the scale.
        whole: whether the prompt asks for a whole number.

    Raises:
        ReplyError: (the function that is returned) the reply is not of that form.
    """

    def read(text: str) -> float:
        found = list(dict.fromkeys(BRACKETS.findall(text)))
        if len(found) != 1:
            raise ReplyError("there is no [[rating]] in it" if not found else f"it has several ratings, {found[:5]}")
        if not NUMBER.fullmatch(found[0]) or not low <= float(found[0]) <= high:
            raise ReplyError(f"[[{found[0]}]] is no number from {low} to {high}")
        if whole and float(found[0]) % 1:
            raise ReplyError(f"[[{found[0]}]] is no whole number")
        return float(found[0])

    return read


def shipped_prompt(name: str) -> str:
    """A text of the folder `prompts`."""
    return (files("hf_gateau.evaluation") / "prompts" / name).read_text(encoding="utf-8")


def fill(template: str, **values: str) -> str:
    """A template with `{name}` replaced for each value; other braces, and those inside values, stay as they are."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda found: values[found.group(1)], template)


def version_of(*prompts: str) -> str:
    """What tells one wording of the prompts from another: 12 hex digits."""
    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()[:12]


def check_ratings(name: str, num_ratings: int, temperature: float) -> None:
    """Refuse settings out of range; `name` is the beginning of the fields' names.

    Raises:
        ValueError: one is.
    """
    if num_ratings < 1:
        raise ValueError(f"{name}_ratings is a number of ratings, got {num_ratings}; give 1 or more.")
    if not 0 <= temperature <= 2:
        raise ValueError(f"{name}_temperature is the judge's temperature, got {temperature}; give 0 to 2.")


def judge(
    endpoint: Endpoint,
    prompts: Iterable[Messages],
    parse: Callable[[str], Any],
    *,
    num_ratings: int = 1,
    temperature: float = 0.0,
    desc: str = "Judging",
    is_told: bool = False,
) -> list[Judgement]:
    """One `Judgement` a prompt, in order; says first what asking will take.

    Args:
        endpoint: the judge.
        prompts: chat messages.
        parse: reads a reply; see `Endpoint.ask`.
        num_ratings: times that each prompt is asked, to be averaged; each time is a request of its own.
        temperature: of the judge.
        desc: what the progress bar counts.
        is_told: what asking will take has been said already.

    Raises:
        EndpointError: the judge cannot be asked.
    """
    requests = rating_requests(prompts, num_ratings, temperature)
    if not is_told:
        tell_cost(endpoint, requests)
    answers = endpoint.ask(requests, parse, desc)
    return [_together(answers[start : start + num_ratings]) for start in range(0, len(answers), num_ratings)]


def tell_cost(endpoint: Endpoint, requests: Iterable[Request]) -> None:
    """Say what asking will take."""
    print(endpoint.estimate(requests).line(endpoint.model, endpoint.config.concurrency), file=sys.stderr, flush=True)


def rating_requests(prompts: Iterable[Messages], num_ratings: int = 1, temperature: float = 0.0) -> list[Request]:
    """What `judge` asks, the ratings of one prompt together."""
    return [
        Request(prompt, max_tokens=JUDGE_TOKENS, temperature=temperature, sample=sample)
        for prompt in prompts
        for sample in range(num_ratings)
    ]


def _together(answers: Sequence[Answer]) -> Judgement:
    errors = [answer.error for answer in answers if answer.error is not None]
    error = f"{len(errors)} of {len(answers)} ratings are missing: {errors[0]}" if errors else None
    return Judgement(tuple(answer.value for answer in answers), tuple(answer.replies for answer in answers), error)


def rated_row(row: dict[str, Any], judgement: Judgement) -> dict[str, Any]:
    """A row of a `TaskResult` (`id`, `group`, and what the task adds) with what the judge said of it."""
    said = {"ratings": list(judgement.values), "replies": [list(texts) for texts in judgement.replies]}
    return {"id": row["id"], "score": judgement.score, **row, **said, "error": judgement.error}


def tell_failures(rows: Sequence[dict[str, Any]], what: str) -> int:
    """How many rows have no score; says so, and why. They are in no mean.

    Raises:
        RuntimeError: no row has a score.
    """
    reasons = commonest(Counter(row["error"] for row in rows if row["score"] is None))
    failed = sum(reasons.values())
    if failed:
        shown = "".join(f"\n  {number:,}: {reason}" for reason, number in reasons.items())
        print(f"{failed:,} of {len(rows):,} {what} have no rating and are in no mean:{shown}", file=sys.stderr)
    if failed == len(rows):
        raise RuntimeError(f"None of {len(rows):,} {what} could be rated: {next(iter(reasons), 'there are none')}.")
    return failed


def mean_score(rows: Iterable[dict[str, Any]]) -> float | None:
    """Of the rows that have a score; None where none has."""
    scores = [row["score"] for row in rows if row["score"] is not None]
    return math.fsum(scores) / len(scores) if scores else None
