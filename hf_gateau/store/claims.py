"""Two commands that measure the same rows at once share them: who begins with a row claims it, and the other takes the next.

A claim lasts `LEASE` seconds and is renewed as long as its process lives; so that of a process that was killed, or whose machine
was, holds nobody up for longer. Claims save work, and no number rests on them: of a row that two measured the first one stays.
"""

import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from .folder import FolderStore, open_store
from .owners import new_name
from .sqlite import MeasurementStore, StoreError


LEASE = 60.0  # seconds
BEATS = 4  # times that a claim is renewed in its lease
LOOK_AGAIN = 0.5  # seconds between looks at what others are measuring


class Claims:
    """The rows of one configuration that this process is measuring.

    Args:
        store: where they are told to others.
        config_key (`str`): of the configuration.

    Attributes:
        others (`set[str]`): processes that were met at the same configuration, by the names of `owners`.
    """

    def __init__(self, store: MeasurementStore | FolderStore, config_key: str):
        self._store, self._config_key, self.others = store, config_key, set()
        self._owner, self._process, self._holds, self._heart = None, None, False, None

    def take(self, keys: Iterable[str]) -> set[str]:
        """Claim rows; returns those that others are measuring. What is claimed lasts until `release`."""
        keys = list(keys)
        found = self._store.claim(self._config_key, keys, self._own(), LEASE)
        self.others |= set(found.values())
        self._holds = len(found) < len(keys)
        if self._holds and (self._heart is None or not self._heart.is_alive()):
            self._heart = threading.Thread(target=self._beat, name="claims", daemon=True)
            self._heart.start()
        return set(found)

    def release(self) -> None:
        """Let go of all that was claimed."""
        if self._holds:
            self._holds = False
            self._store.release(self._config_key, self._own())

    def wait(self, keys: Iterable[str]) -> None:
        """Return when others are no longer measuring all of these rows: they have done one, or let go of it, or ended."""
        keys = set(keys)
        while keys <= self._store.claimed(self._config_key, self._own(), LEASE).keys():
            time.sleep(LOOK_AGAIN)

    def _own(self) -> str:
        if self._process != os.getpid():  # of a forked process nothing is claimed yet, and no thread runs
            self._owner, self._process, self._holds, self._heart = new_name(), os.getpid(), False, None
        return self._owner

    def _beat(self) -> None:
        """Renew the claims, through a connection of this thread's own, as long as there are any."""
        store, owner = None, self._owner
        while True:
            time.sleep(LEASE / BEATS)
            if not self._holds:
                return
            with suppress(StoreError):  # others may then measure the row too, which costs time alone
                store = open_store(self._store.path) if store is None else store
                store.renew(self._config_key, owner, LEASE)
