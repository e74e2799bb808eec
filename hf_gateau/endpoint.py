"""Questions to a model behind an OpenAI-compatible endpoint, many at once, each reply kept on the disk as it arrives.

Judges (`evaluation`) and data construction (`building`) ask through here. A reply is known by what was asked: the same
question to the same model is never paid for twice, a run that was cut off goes on where it was, and recorded replies give
the same results on a machine without network.

    EndpointConfig -> Endpoint.ask(requests, parse) -> one Answer a request, in order
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import json_object
from .redaction import redact
from .replies import EndpointError, ReplyStore, Request, default_replies_path


if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

CHARACTERS_A_TOKEN = 4  # of English text, for the estimate of cost alone
CONNECT_SECONDS = 20.0  # to wait for a connection, which no model's thinking delays
# HTTP statuses that say nothing of the endpoint: this one request is too long, or not in order.
OF_ONE_REQUEST = (400, 413, 422)
FEWEST_FAILURES = 3  # with no reply ever, before an endpoint is given up


class _NoReply(Exception):
    """Nothing came to a request; `status` is HTTP's, None where there was no answer at all."""

    def __init__(self, reason: str, status: int | None = None):
        super().__init__(reason)
        self.status = status


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
    endpoint_parameters: str | None = field(
        default=None,
        metadata={
            "help": "JSON of other parameters of every request, over our own; null leaves one out. Some models want "
            """'{"max_tokens": null, "max_completion_tokens": 4096, "temperature": null}'."""
        },
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
        for name in ("input_price", "output_price"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise ValueError(f"{name} is a price, got {getattr(self, name)}; give 0 or more.")
        self.parameters()

    def parameters(self) -> dict[str, Any]:
        """`endpoint_parameters`, read.

        Raises:
            ValueError: they are no JSON object.
        """
        return json_object("endpoint_parameters", self.endpoint_parameters, '{"reasoning_effort": "low"}')


@dataclass(frozen=True)
class Answer:
    """What came of one request.

    Attributes:
        value: what `parse` made of the reply; None where there is no usable one.
        error: why there is none, else None.
        replies: the texts that arrived, the last one the one that counts.
        key: what the file of replies knows that one by; None where none arrived.
    """

    value: Any
    error: str | None
    replies: tuple[str, ...] = ()
    key: str | None = None


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
        self._parameters = config.parameters()
        # What replies are known by: other parameters, other replies.
        self._known_as = (
            f"{self.model} {json.dumps(self._parameters, sort_keys=True)}" if self._parameters else self.model
        )
        self.store = ReplyStore(Path(config.replies).expanduser() if config.replies else default_replies_path())
        self._client = None if config.replay else self._connect()
        self._failures = 0  # one after the other, with no reply in between
        self._has_replied = False

    def _connect(self) -> OpenAI:
        try:
            from openai import OpenAI, Timeout
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
            timeout=Timeout(settings.request_timeout, connect=min(CONNECT_SECONDS, settings.request_timeout)),
            max_retries=settings.request_retries,
        )

    def key(self, request: Request, attempt: int = 0) -> str:
        """What the reply to a request is known by in the file of replies."""
        return request.key(self._known_as, attempt)

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What asking will take; nothing is asked."""
        keys = {self.key(request): request for request in requests}
        new = [request for key, request in keys.items() if self.store.get(key) is None]
        characters = sum(len(message["content"]) for request in new for message in request.messages)
        tokens, most = characters // CHARACTERS_A_TOKEN, sum(request.max_tokens for request in new)
        prices = self.config.input_price, self.config.output_price
        price = None if None in prices else (tokens * prices[0] + most * prices[1]) / 1e6
        return Estimate(len(keys), len(keys) - len(new), tokens, most, price)

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

        requests, answers, places = list(requests), {}, defaultdict(list)
        for place, request in enumerate(requests):
            places[self.key(request)].append(place)  # equal ones are asked once
        self._failures = 0
        ended = _in_threads(
            lambda same: self._answer(requests[same[0]], parse),
            list(places.values()),
            self.config.concurrency,
            self._tell_silence,
            self.config.request_timeout,
        )
        with tqdm(total=len(requests), desc=desc, disable=not requests) as bar:
            for same, answer in ended:
                for place in same:
                    answers[place] = answer
                    bar.update()
                    if tell is not None:
                        tell(place, answer)
        self._check_heard(answers.values())
        return [answers[place] for place in range(len(requests))]

    def _tell_silence(self) -> None:
        """Called each time that nothing has come for as long as one reply may take."""
        if not self._has_replied:
            logger.warning(
                "%s has not answered within %g seconds, and is asked again, %d times in all. Ctrl-C ends this.",
                self._client.base_url if self._client else self.store.path,
                self.config.request_timeout,
                self.config.request_retries + 1,
            )

    def _check_heard(self, answers: Iterable[Answer]) -> None:
        """An endpoint that answered nothing, ever, is not one bad question."""
        answers = list(answers)
        if answers and not self._has_replied and not any(answer.replies for answer in answers):
            raise EndpointError(
                f"The endpoint {self._client.base_url} answered none of {len(answers)} requests ({answers[-1].error}). "
                "Check its address, the model, and what it takes (endpoint_parameters)."
            )

    def _answer(self, request: Request, parse: Callable[[str], Any]) -> Answer:
        """Ask until a reply can be used."""
        replies, error, key = [], None, None
        for attempt in range(self.config.reply_attempts):
            try:
                replies.append(self._reply(request, attempt))
                key = request.key(self._known_as, attempt)
                if request.whole and self.store.was_cut_off(key):
                    raise ReplyError(f"it is cut off at max_tokens={request.max_tokens}")
                return Answer(parse(replies[-1]), None, tuple(replies), key)
            except ReplyError as problem:
                error = str(problem)
            except _NoReply as problem:
                self._failed(problem)
                return Answer(None, str(problem), tuple(replies), key)
        return Answer(None, f"{self.config.reply_attempts} replies, the last one: {error}", tuple(replies), key)

    def _reply(self, request: Request, attempt: int) -> str:
        """The text of one reply, recorded or new.

        Raises:
            ReplyError: what came is no chat completion.
            EndpointError: the endpoint refuses, or nothing is recorded and nothing may be asked.
            _NoReply: no reply came to this request.
        """
        key = self.key(request, attempt)
        if (text := self.store.get(key)) is not None:
            return text
        if self._client is None:
            raise EndpointError(
                f"There is no recorded reply of {self.model} to a question that starts "
                f"{request.messages[-1]['content'][:80]!r} in {self.store.path}; run without replay to ask it."
            )
        completion = self._complete(request, attempt)
        self._failures, self._has_replied = 0, True
        if not getattr(completion, "choices", None) or getattr(completion.choices[0], "message", None) is None:
            raise ReplyError("it holds no message")
        return self.store.put(key, self.model, request, attempt, completion)

    def _complete(self, request: Request, attempt: int) -> Any:
        """Ask the endpoint once; `openai` itself asks again after a timeout, a lost connection, 429 or 5xx."""
        import openai

        settings = {
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            # A reply that is asked for once more must not be the same one again, where the server counts seeds.
            "seed": request.sample * 1000 + attempt,
            **self._parameters,
        }
        try:
            return self._client.chat.completions.create(
                model=self.model,
                messages=list(request.messages),
                extra_body={name: value for name, value in settings.items() if value is not None},
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise EndpointError(
                redact(
                    f"The endpoint {self._client.base_url} refuses ({error}). Check {self.config.endpoint_key_variable}, "
                    f"the address and the model's name, {self.model!r}."
                )
            ) from error
        except openai.OpenAIError as error:
            reason = redact(f"{type(error).__name__}: {error}")
            raise _NoReply(reason, getattr(error, "status_code", None)) from error
        except UnicodeError as error:
            raise _NoReply(f"it cannot be sent ({error})", status=400) from error
        except ValueError as error:
            raise ReplyError(f"it is no JSON ({error})") from error

    def _failed(self, error: _NoReply) -> None:
        """Count a request without a reply.

        Raises:
            EndpointError: none of the last ones had any.
        """
        if error.status in OF_ONE_REQUEST:
            return
        self._failures += 1
        patience = self.config.concurrency * (2 if self._has_replied else 1)
        if self._failures > max(patience, FEWEST_FAILURES):
            raise EndpointError(
                f"The endpoint {self._client.base_url} did not answer {self._failures} requests in a row ({error}). "
                "Replies that arrived are kept; run again to go on."
            ) from error


def _in_threads(
    work: Callable, items: Sequence, num_threads: int, on_silence: Callable[[], None], patience: float
) -> Iterator[tuple]:
    """(item, what `work` makes of it), as they end; `on_silence` is called each `patience` seconds without one.

    Unlike those of a pool, these threads do not keep the interpreter from ending: a question can be under way for minutes
    when Ctrl-C is pressed.
    """
    todo, ended, stopped = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
    for item in items:
        todo.put(item)

    def run() -> None:
        while not stopped.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                ended.put((item, work(item), None))
            except BaseException as error:
                ended.put((item, None, error))

    for number in range(min(num_threads, len(items))):
        threading.Thread(target=run, name=f"endpoint-{number}", daemon=True).start()
    missing = len(items)
    try:
        while missing:
            try:
                item, result, error = ended.get(timeout=patience)
            except queue.Empty:
                on_silence()
                continue
            if error is not None:
                raise error
            missing -= 1
            yield item, result
    finally:
        stopped.set()
