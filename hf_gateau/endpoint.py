"""Questions to a model behind an OpenAI-compatible endpoint, many at once, each reply kept on the disk as it arrives.

Judges (`evaluation`) and data construction (`building`) ask through here. A reply is known by what was asked: the same
question to the same model is never paid for twice, a run that was cut off goes on where it was, and recorded replies give
the same results on a machine without network.

    EndpointConfig -> Endpoint.ask(requests, parse) -> one Answer a request, in order
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

CHARACTERS_A_TOKEN = 4  # of English text, for the estimate of cost alone
SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, request TEXT NOT NULL, attempt INTEGER NOT NULL,
    text TEXT NOT NULL, finish_reason TEXT, input_tokens INTEGER, output_tokens INTEGER, created REAL NOT NULL)
WITHOUT ROWID;
"""


class EndpointError(RuntimeError):
    """The endpoint cannot be used; replies that have arrived are kept."""


class ReplyError(ValueError):
    """A reply is not in the form that was asked for; the message says what is wrong with it."""


@dataclass
class EndpointConfig:
    """A model behind an OpenAI-compatible endpoint; its address and key come from OPENAI_BASE_URL and OPENAI_API_KEY.

    Raises:
        ValueError: a field is out of range.
    """

    endpoint_model: str | None = field(
        default=None, metadata={"help": "Name of the model that the endpoint is to answer with, such as gpt-4.1."}
    )
    endpoint_url: str | None = field(
        default=None,
        metadata={"help": "Address of an OpenAI-compatible endpoint. Default: $OPENAI_BASE_URL, else OpenAI's own."},
    )
    endpoint_key_variable: str = field(
        default="OPENAI_API_KEY",
        metadata={"help": "Environment variable that holds the key. It need not be set for a server of your own."},
    )
    concurrency: int = field(default=8, metadata={"help": "Requests under way at a time."})
    request_timeout: float = field(default=300.0, metadata={"help": "Seconds to wait for one reply."})
    request_retries: int = field(
        default=6,
        metadata={
            "help": "Times to ask again after a timeout, a lost connection, 429 (as its Retry-After says) or 5xx."
        },
    )
    reply_attempts: int = field(
        default=3, metadata={"help": "Times to ask for a reply until one is in the form that was asked for."}
    )
    replies: str | None = field(
        default=None,
        metadata={
            "help": "SQLite file that keeps every reply; a question in it is not asked again. Default: "
            "gateau/replies.sqlite under HF_HOME."
        },
    )
    replay: bool = field(
        default=False, metadata={"help": "Ask nothing: take recorded replies alone, and stop where one is missing."}
    )
    input_price: float | None = field(
        default=None, metadata={"help": "Price of a million input tokens, in any currency, for the estimate of cost."}
    )
    output_price: float | None = field(default=None, metadata={"help": "Price of a million output tokens."})

    def __post_init__(self):
        for name in ("concurrency", "reply_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is a whole number, got {getattr(self, name)}; give 1 or more.")
        if self.request_retries < 0:
            raise ValueError(f"request_retries is a number of times, got {self.request_retries}; give 0 or more.")
        if not self.request_timeout > 0:
            raise ValueError(f"request_timeout is a number of seconds, got {self.request_timeout}; give more than 0.")


@dataclass(frozen=True)
class Request:
    """One question: chat messages and the sampling settings of `chat.completions.create`.

    `sample` tells apart questions that are asked more than once on purpose, as for two ratings to be averaged.
    """

    messages: Sequence[dict[str, str]]
    max_tokens: int = 1024
    temperature: float = 0.0
    sample: int = 0

    def key(self, model: str, attempt: int) -> str:
        """What a reply is known by."""
        asked = [model, list(self.messages), self.max_tokens, self.temperature, self.sample, attempt]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What came of one request.

    Attributes:
        value: what `parse` made of the reply; None where there is no usable one.
        error: why there is none, else None.
        replies: the texts that arrived, the last one the one that counts.
    """

    value: Any
    error: str | None
    replies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """What asking will take: requests, those whose replies are recorded, tokens of the others, and their price."""

    requests: int
    recorded: int
    input_tokens: int
    output_tokens: int
    price: float | None

    def line(self, model: str, concurrency: int) -> str:
        """For the user, before anything is asked."""
        price = "" if self.price is None else f", at most {self.price:,.2f}"
        return (
            f"{self.requests:,} questions to {model}, {self.recorded:,} of them answered before; to ask: about "
            f"{self.input_tokens:,} input tokens, at most {self.output_tokens:,} output tokens{price}; {concurrency} at a time"
        )


class ReplyStore:
    """Every reply, in one SQLite file; safe for threads and for several processes."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._lock = path, threading.Lock()
        try:
            self._connection = sqlite3.connect(path, timeout=120, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise EndpointError(f"The file of replies {path} cannot be used ({error}); name another.") from error

    def get(self, key: str) -> str | None:
        """The text of a reply, None where there is none."""
        with self._lock:
            found = self._connection.execute("SELECT text FROM replies WHERE key = ?", [key]).fetchone()
        return found[0] if found else None

    def put(self, key: str, model: str, request: Request, attempt: int, completion: Any) -> str:
        """Commit a reply; returns its text. It is on the disk when this returns."""
        choice, usage = completion.choices[0], completion.usage
        text = choice.message.content or ""
        asked = {"messages": list(request.messages), "max_tokens": request.max_tokens}
        asked |= {"temperature": request.temperature, "sample": request.sample}
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        row = [key, model, json.dumps(asked), attempt, text, choice.finish_reason, *tokens, time.time()]
        try:
            with self._lock:
                self._connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise EndpointError(
                f"A reply could not be kept in {self.path} ({error}). What was kept before is there; run again to go on."
            ) from error
        return self.get(key) or text  # another thread's, where it asked the same and was first


def default_replies_path() -> Path:
    """`gateau/replies.sqlite` under `HF_HOME`."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "gateau" / "replies.sqlite"


class Endpoint:
    """Asks a model, and keeps what it replies.

    Args:
        config (`EndpointConfig`): which model, where, and how often.

    Raises:
        ValueError: no model is named.
        ImportError: the `openai` client is not installed.
        EndpointError: the file of replies cannot be used.
    """

    def __init__(self, config: EndpointConfig):
        if not config.endpoint_model:
            raise ValueError("No model to ask is named; give endpoint_model, e.g. --endpoint_model gpt-4.1.")
        self.config, self.model = config, config.endpoint_model
        self.store = ReplyStore(Path(config.replies).expanduser() if config.replies else default_replies_path())
        self._client = None if config.replay else self._connect()
        self._failures = 0  # one after the other, with no reply in between

    def _connect(self) -> OpenAI:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ImportError(
                "Asking an endpoint needs the `openai` client; install it with `pip install hf-gateau[judge]`."
            ) from error
        settings = self.config
        url = settings.endpoint_url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get(settings.endpoint_key_variable)
        if not key and not url:
            raise ValueError(
                f"OpenAI's endpoint wants a key, and {settings.endpoint_key_variable} is not set; set it, or name another "
                "endpoint with OPENAI_BASE_URL or endpoint_url."
            )
        return OpenAI(
            base_url=url,
            api_key=key or "none",
            timeout=settings.request_timeout,
            max_retries=settings.request_retries,
        )

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What asking will take; nothing is asked."""
        requests = list(requests)
        new = [request for request in requests if self.store.get(request.key(self.model, 0)) is None]
        characters = sum(len(message["content"]) for request in new for message in request.messages)
        tokens, most = characters // CHARACTERS_A_TOKEN, sum(request.max_tokens for request in new)
        prices = self.config.input_price, self.config.output_price
        price = None if None in prices else (tokens * prices[0] + most * prices[1]) / 1e6
        return Estimate(len(requests), len(requests) - len(new), tokens, most, price)

    def ask(
        self,
        requests: Iterable[Request],
        parse: Callable[[str], Any] = str,
        desc: str = "Replies",
        tell: Callable[[int, Answer], None] | None = None,
    ) -> list[Answer]:
        """One `Answer` a request, in order.

        Args:
            requests: what to ask; those with recorded replies are not asked again.
            parse: makes a value of a reply's text; raises `ReplyError` where it cannot, and the question is put again, up
                to `reply_attempts` times in all.
            desc: what the progress bar counts.
            tell: called in this thread with (place of the request, its answer) as answers arrive, in any order.

        Raises:
            EndpointError: the endpoint refuses the key or the model, or does not answer at all.
        """
        from tqdm.auto import tqdm

        requests, answers = list(requests), {}
        waiting = iter(enumerate(requests))
        under_way: dict[Future, int] = {}
        self._failures = 0
        pool = ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="endpoint")
        try:
            with tqdm(total=len(requests), desc=desc, disable=not requests) as bar:
                while len(answers) < len(requests):
                    while len(under_way) < self.config.concurrency and (item := next(waiting, None)) is not None:
                        under_way[pool.submit(self._answer, item[1], parse)] = item[0]
                    for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                        place = under_way.pop(done)
                        answers[place] = done.result()
                        bar.update()
                        if tell is not None:
                            tell(place, answers[place])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [answers[place] for place in range(len(requests))]

    def _answer(self, request: Request, parse: Callable[[str], Any]) -> Answer:
        """Ask until a reply can be used."""
        replies, error = [], None
        for attempt in range(self.config.reply_attempts):
            text = self._reply(request, attempt)
            if isinstance(text, Answer):
                return Answer(None, text.error, tuple(replies))
            replies.append(text)
            try:
                return Answer(parse(text), None, tuple(replies))
            except ReplyError as problem:
                error = str(problem)
        return Answer(None, f"{len(replies)} replies, the last one: {error}", tuple(replies))

    def _reply(self, request: Request, attempt: int) -> str | Answer:
        """The text of one reply, recorded or new; an `Answer` with the reason where this request can have none."""
        key = request.key(self.model, attempt)
        if (text := self.store.get(key)) is not None:
            return text
        if self._client is None:
            raise EndpointError(
                f"There is no recorded reply of {self.model} to a question that starts "
                f"{request.messages[-1]['content'][:80]!r} in {self.store.path}; run without replay to ask it."
            )
        import openai

        try:
            # A reply that is asked for once more must not be the same one again, where the server counts seeds.
            completion = self._client.chat.completions.create(
                model=self.model,
                messages=list(request.messages),
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                seed=request.sample * 1000 + attempt,
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise EndpointError(
                f"The endpoint {self._client.base_url} refuses ({error}). Check {self.config.endpoint_key_variable}, the "
                f"address and the model's name, {self.model!r}."
            ) from error
        except openai.OpenAIError as error:
            return self._failed(error)
        self._failures = 0
        if not completion.choices:
            return Answer(None, "the endpoint's reply has no choices")
        return self.store.put(key, self.model, request, attempt, completion)

    def _failed(self, error: Exception) -> Answer:
        """The reason why one request has no reply.

        Raises:
            EndpointError: none of the last ones had any.
        """
        from openai import BadRequestError

        if not isinstance(error, BadRequestError):  # which is about this request alone
            self._failures += 1
            if self._failures > 2 * self.config.concurrency:
                raise EndpointError(
                    f"The endpoint {self._client.base_url} did not answer {self._failures} requests in a row ({error}). "
                    "Replies that arrived are kept; run again to go on."
                ) from error
        return Answer(None, f"{type(error).__name__}: {error}")
