"""Whether a command may colour what it prints."""

import os
from typing import TextIO


def is_coloured(choice: str, stream: TextIO) -> bool:
    """Whether to colour what goes to `stream`.

    Args:
        choice: 'always', 'never', or 'auto': in a terminal that knows colours, unless NO_COLOR is set (https://no-color.org).
    """
    if choice != "auto":
        return choice == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
