"""A line on the screen where somebody would otherwise look at nothing for long."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def are_shown() -> bool:
    """Whether such lines are wanted: as the bars of `datasets`, which is not imported for this."""
    if (bars := sys.modules.get("datasets.utils")) is not None:
        return not bars.are_progress_bars_disabled()
    return os.environ.get("HF_DATASETS_DISABLE_PROGRESS_BARS", "").upper() not in ("1", "ON", "YES", "TRUE")


def tell(text: str) -> None:
    """Say a line on stderr, unless bars are disabled."""
    if are_shown():
        print(f"{text} ...", file=sys.stderr, flush=True)


@contextmanager
def announced(text: str, after: float = 0.0) -> Iterator[None]:
    """Say what the block does, at once or if it takes more than some seconds."""
    if not after:
        tell(text)
        yield
        return
    timer = threading.Timer(after, tell, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
