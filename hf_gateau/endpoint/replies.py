"""What was asked of an endpoint and what it replied, kept in one SQLite file; `endpoint` asks."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, request TEXT NOT NULL, attempt INTEGER NOT NULL,
    text TEXT NOT NULL, finish_reason TEXT, input_tokens INTEGER, output_tokens INTEGER, created REAL NOT NULL)
WITHOUT ROWID;
"""
AGAIN_TEMPERATURE = 0.5  # at least, where a reply was not in the form that was asked for


class EndpointError(RuntimeError):
    """The endpoint cannot be used; replies that have arrived are kept."""


@dataclass(frozen=True)
class Request:
    """One question: chat messages and the sampling settings of `chat.completions.create`.

    `sample` tells apart questions that are asked more than once on purpose, as for two ratings to be averaged. `whole`: a
    reply that ended at `max_tokens` is none.
    """

    messages: Sequence[dict[str, str]]
    max_tokens: int = 1024
    temperature: float = 0.0
    sample: int = 0
    whole: bool = False

    def key(self, model: str, attempt: int) -> str:
        """What a reply is known by."""
        asked = [model, list(self.messages), self.max_tokens, self.temperature, self.sample, attempt]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def seed_of(self, attempt: int) -> int:
        """A reply that is asked for once more must not be the same one again, where the server counts seeds."""
        return self.sample * 1000 + attempt

    def temperature_of(self, attempt: int) -> float:
        """The same of a server that is greedy at temperature 0 and has one reply to a question: it is drawn then."""
        return max(self.temperature, AGAIN_TEMPERATURE) if attempt else self.temperature


@dataclass(frozen=True)
class Reply:
    """What came: its text, why it ended ("length": it had as many tokens as were asked for), and tokens where they are known."""

    text: str
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


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

    def _execute(self, statement: str, values: Sequence[Any]) -> tuple | None:
        """The first row of what a statement finds."""
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise EndpointError(
                f"The file of replies {self.path} fails ({error}). What was kept before is there; run again to go on."
            ) from error

    def get(self, key: str) -> str | None:
        """The text of a reply, None where there is none."""
        found = self._execute("SELECT text FROM replies WHERE key = ?", [key])
        return found[0] if found else None

    def was_cut_off(self, key: str) -> bool:
        """Whether a reply ended because it had as many tokens as were asked for."""
        found = self._execute("SELECT finish_reason FROM replies WHERE key = ?", [key])
        return found is not None and found[0] == "length"

    def put(self, key: str, model: str, request: Request, attempt: int, reply: Reply) -> str:
        """Commit a reply; returns its text. It is on the disk when this returns."""
        text = reply.text.encode("utf-8", "replace").decode()  # SQLite holds no lone surrogate
        asked = {"messages": list(request.messages), "max_tokens": request.max_tokens}
        asked |= {"temperature": request.temperature_of(attempt), "sample": request.sample}
        said = [text, reply.finish_reason, reply.input_tokens, reply.output_tokens]
        row = [key, model, json.dumps(asked), attempt, *said, time.time()]
        self._execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return self.get(key) or text  # another thread's, where it asked the same and was first


def default_replies_path() -> Path:
    """`gateau/replies.sqlite` under `HF_HOME`."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "gateau" / "replies.sqlite"
