"""Questions to a model behind an OpenAI-compatible endpoint, many at once, each reply kept on the disk as it arrives.

Judges (`evaluation`) and data construction (`building`) ask through here. A reply is known by what was asked: the same
question to the same model is never paid for twice, a run that was cut off goes on where it was, and recorded replies give
the same results on a machine without network.

    EndpointConfig -> Endpoint.ask(requests, parse) -> one Answer a request, in order
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .chat_client import ChatClient, EndpointConfig, NoReply, ReplyError
from .replies import EndpointError, ReplyStore, Request, default_replies_path


logger = logging.getLogger(__name__)

BYTES_A_TOKEN = 4  # of UTF-8, for the estimate of cost alone: four letters of English, a character or two of Chinese
# HTTP statuses that say nothing of the endpoint: this one request is too long, or not in order.
OF_ONE_REQUEST = (400, 413, 422)
FEWEST_FAILURES = 3  # with no reply ever, before an endpoint is given up


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
        price = "" if self.price is None else f", about {self.price:,.2f} if replies are that long"
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
        self._known_as = config.known_as
        self.store = ReplyStore(Path(config.replies).expanduser() if config.replies else default_replies_path())
        self.client = None if config.replay else ChatClient(config)
        self._address = self.client.address if self.client else str(self.store.path)
        self._failures = 0  # one after the other, with no reply in between
        self._has_replied = False

    def key(self, request: Request, attempt: int = 0) -> str:
        """What the reply to a request is known by in the file of replies."""
        return request.key(self._known_as, attempt)

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What asking will take; nothing is asked."""
        keys = {self.key(request): request for request in requests}
        new = [request for key, request in keys.items() if self.store.get(key) is None]
        texts = (message["content"] for request in new for message in request.messages)
        tokens = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) // BYTES_A_TOKEN
        most = sum(self._most_tokens(request) for request in new)
        prices = self.config.input_price, self.config.output_price
        price = None if None in prices else (tokens * prices[0] + most * prices[1]) / 1e6
        return Estimate(len(keys), len(keys) - len(new), tokens, most, price)

    def _most_tokens(self, request: Request) -> int:
        """Of a reply: what is sent along, where `endpoint_parameters` names a limit of its own."""
        given = (self._parameters.get(name) for name in ("max_completion_tokens", "max_tokens"))
        return next((limit for limit in given if isinstance(limit, int)), request.max_tokens)

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
                self._address,
                self.config.request_timeout,
                self.config.request_retries + 1,
            )

    def _check_heard(self, answers: Iterable[Answer]) -> None:
        """An endpoint that answered nothing, ever, is not one bad question."""
        answers = list(answers)
        if answers and not self._has_replied and not any(answer.replies for answer in answers):
            raise EndpointError(
                f"The endpoint {self._address} answered none of {len(answers)} requests ({answers[-1].error}). "
                "Check its address, the model, and what it takes (endpoint_parameters)."
            )

    def _answer(self, request: Request, parse: Callable[[str], Any]) -> Answer:
        """Ask until a reply can be used."""
        replies, error, key = [], None, None
        for attempt in range(self.config.reply_attempts):
            try:
                replies.append(self._reply(request, attempt))
                key = self.key(request, attempt)
                if request.whole and self.store.was_cut_off(key):
                    raise ReplyError(f"it is cut off at max_tokens={request.max_tokens}")
                return Answer(parse(replies[-1]), None, tuple(replies), key)
            except ReplyError as problem:
                error = str(problem)
                if not request.whole and self.store.was_cut_off(self.key(request, attempt)):
                    error += ", and it is cut off: give it more tokens with endpoint_parameters"
            except NoReply as problem:
                self._failed(problem)
                return Answer(None, str(problem), tuple(replies), key)
        return Answer(None, f"{self.config.reply_attempts} replies, the last one: {error}", tuple(replies), key)

    def _reply(self, request: Request, attempt: int) -> str:
        """The text of one reply, recorded or new.

        Raises:
            ReplyError: what came is no chat completion.
            EndpointError: the endpoint refuses, or nothing is recorded and nothing may be asked.
            NoReply: no reply came to this request.
        """
        key = self.key(request, attempt)
        if (text := self.store.get(key)) is not None:
            return text
        if self.client is None:
            raise EndpointError(
                f"There is no recorded reply of {self.model} to a question that starts "
                f"{request.messages[-1]['content'][:80]!r} in {self.store.path}; run without replay to ask it."
            )
        try:
            reply = self.client.ask(request, attempt)
        except ReplyError:
            self._failures, self._has_replied = 0, True  # it speaks
            raise
        self._failures, self._has_replied = 0, True
        return self.store.put(key, self.model, request, attempt, reply)

    def _failed(self, error: NoReply) -> None:
        """Count a request without a reply.

        Raises:
            EndpointError: none of the last ones had any.
        """
        if error.status in OF_ONE_REQUEST:
            return
        self._failures += 1
        patience = self.config.concurrency * (2 if self._has_replied else 1)
        if self._failures > max(patience, FEWEST_FAILURES):
            then = "Replies that arrived are kept; run again to go on." if self._has_replied else "Check its address."
            raise EndpointError(
                f"The endpoint {self._address} did not answer {self._failures} requests in a row ({error}). {then}"
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
                stopped.set()  # at once: whoever waits would hear of it when the next question is already asked
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
