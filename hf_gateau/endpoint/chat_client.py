"""One request to an OpenAI-compatible endpoint: sent, waited for, read, and what goes wrong said without a secret in it.

EndpointConfig -> ChatClient.ask(request) -> Reply, or NoReply, ReplyError, EndpointError
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from ..redaction import REMOVED, SHORTEST_SECRET, redact
from ..settings import json_object
from .replies import EndpointError, Reply, Request


logger = logging.getLogger(__name__)

CONNECT_SECONDS = 20.0  # to wait for a connection, which no model's thinking delays
# Seconds that an endpoint asks to wait (Retry-After): the client itself waits up to the first, we up to the second.
CLIENT_WAITS, LONGEST_WAIT = 60.0, 3600.0
LONG_WAITS = 3  # of that kind, for one reply


class NoReply(Exception):
    """Nothing came to a request; `status` is HTTP's, None where there was no answer at all; `wait` is Retry-After's."""

    def __init__(self, reason: str, status: int | None = None, wait: float = 0.0):
        super().__init__(reason)
        self.status, self.wait = status, wait


class ReplyError(ValueError):
    """A reply is not in the form that was asked for; the message says what is wrong with it."""


@dataclass
class EndpointConfig:
    """A model behind an OpenAI-compatible endpoint; its address and key come from OPENAI_BASE_URL and OPENAI_API_KEY.

    Raises:
        ValueError: a field is out of range.
    """

    RARELY_GIVEN = (
        "endpoint_key_variable",
        "request_timeout",
        "request_retries",
        "reply_attempts",
        "replies",
        "replay",
        "endpoint_parameters",
        "input_price",
        "output_price",
    )

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
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("Only one of input_price and output_price is given; a price takes both.")
        self.parameters()

    def parameters(self) -> dict[str, Any]:
        """`endpoint_parameters`, read.

        Raises:
            ValueError: they are no JSON object.
        """
        return json_object("endpoint_parameters", self.endpoint_parameters, '{"reasoning_effort": "low"}')

    @property
    def known_as(self) -> str | None:
        """What replies, and figures that rest on them, are known by: with other parameters, they are others."""
        parameters = self.parameters()
        if not parameters or self.endpoint_model is None:
            return self.endpoint_model
        return f"{self.endpoint_model} {json.dumps(parameters, sort_keys=True)}"


class ChatClient:
    """The `openai` client of an endpoint; safe for threads.

    Args:
        config (`EndpointConfig`): which model and where.

    Attributes:
        address: of the endpoint, as it may be shown.

    Raises:
        ValueError: there is no key, or the address has no scheme.
        ImportError: the `openai` client is not installed.
    """

    def __init__(self, config: EndpointConfig):
        try:
            from openai import OpenAI, Timeout
        except ImportError as error:
            raise ImportError(
                'Asking an endpoint needs the `openai` client; install it with `pip install "hf-gateau[judge]"`.'
            ) from error
        self.config, self._parameters = config, config.parameters()
        url = config.endpoint_url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get(config.endpoint_key_variable)
        if url and not url.startswith(("http://", "https://")):
            raise ValueError(
                f"The endpoint's address begins with http:// or https://, got {_without_password(url)!r}."
            )
        if not key and not url:
            raise ValueError(
                f"OpenAI's endpoint wants a key, and {config.endpoint_key_variable} is not set; set it, or name another "
                "endpoint with OPENAI_BASE_URL or endpoint_url."
            )
        self._client = OpenAI(
            base_url=url,
            api_key=key or "none",
            timeout=Timeout(config.request_timeout, connect=min(CONNECT_SECONDS, config.request_timeout)),
            max_retries=config.request_retries,
        )
        self.address = _without_password(str(self._client.base_url))

    def ask(self, request: Request, attempt: int = 0) -> Reply:
        """What the endpoint replies; where it asks to wait longer than `openai` does, wait and ask again.

        Raises:
            ReplyError: what came is no chat completion.
            EndpointError: the endpoint refuses the key or the model, or asks to wait for hours.
            NoReply: no reply came.
        """
        for left in range(min(self.config.request_retries, LONG_WAITS), -1, -1):
            try:
                return self._complete(request, attempt)
            except NoReply as problem:
                if problem.wait > LONGEST_WAIT:
                    raise EndpointError(
                        f"The endpoint {self.address} asks to wait {problem.wait:,.0f} seconds ({problem}). Replies that "
                        "arrived are kept; run again then."
                    ) from problem
                if not left or problem.wait <= CLIENT_WAITS:
                    raise
                logger.warning("%s asks to wait %.0f seconds.", self.address, problem.wait)
                self._wait(problem.wait)
        raise AssertionError("the last time raises")

    def _wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def _clean(self, text: str) -> str:
        """Without secrets; the key is one, whatever the variable is called that holds it."""
        key = os.environ.get(self.config.endpoint_key_variable) or ""
        return redact(text.replace(key, REMOVED) if len(key) >= SHORTEST_SECRET else text)

    def _complete(self, request: Request, attempt: int) -> Reply:
        """Ask the endpoint once; `openai` itself asks again after a timeout, a lost connection, 429 or 5xx."""
        import openai

        settings = {
            "max_tokens": request.max_tokens,
            "temperature": request.temperature_of(attempt),
            "seed": request.seed_of(attempt),
            **self._parameters,
        }
        try:
            answer = self._client.chat.completions.with_raw_response.create(
                model=self.config.endpoint_model,
                messages=list(request.messages),
                extra_body={name: value for name, value in settings.items() if value is not None},
            )
            return _read_completion(answer.http_response.json())
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise EndpointError(
                self._clean(
                    f"The endpoint {self.address} refuses ({error}). Check {self.config.endpoint_key_variable}, "
                    f"the address and the model's name, {self.config.endpoint_model!r}."
                )
            ) from error
        except openai.OpenAIError as error:
            reason = self._clean(f"{type(error).__name__}: {error}")
            wait = _seconds_to_wait(error.response.headers) if isinstance(error, openai.APIStatusError) else 0.0
            raise NoReply(reason, getattr(error, "status_code", None), wait) from error
        except UnicodeError as error:
            raise NoReply(f"it cannot be sent ({error})", status=400) from error
        except ReplyError:
            raise
        except ValueError as error:
            raise ReplyError(f"it is no JSON ({error})") from error


def _read_completion(body: Any) -> Reply:
    """A chat completion's text, and what is said of it; servers leave out and add what they like.

    Raises:
        ReplyError: it holds no message, or none of text.
    """
    try:
        choice, usage = body["choices"][0], body.get("usage")
        content = choice["message"].get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ReplyError("it holds no message") from None
    if isinstance(content, list):  # of parts
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if not isinstance(content, str | None):
        raise ReplyError(f"its message is no text, but of type {type(content).__name__}")
    usage = usage if isinstance(usage, dict) else {}
    numbers = (usage.get(f"{name}_tokens") for name in ("prompt", "completion"))
    reason = choice.get("finish_reason")
    return Reply(
        content or "",
        reason if isinstance(reason, str) else None,
        *(number if isinstance(number, int) else None for number in numbers),
    )


def _without_password(url: str) -> str:
    """An address as it may be shown: without user, password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _seconds_to_wait(headers: Mapping[str, str]) -> float:
    """What `Retry-After` says, seconds or a date; 0 where it says nothing that can be used."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return seconds if math.isfinite(seconds) else 0.0
