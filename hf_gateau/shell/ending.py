"""How a command ends: with a line and an exit status, whatever happens, and never with a traceback that nobody asked for."""

from __future__ import annotations

import io
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager


TRACEBACK = "HF_GATEAU_TRACEBACK"  # in the environment: errors as Python tells them
# Exit statuses. What a shell reports of a process that SIGINT or SIGPIPE has ended is 128 and the signal's number.
WRONG_INPUT, UNEXPECTED, INTERRUPTED, BROKEN_PIPE = 2, 1, 130, 141
EXPECTED = (ValueError, OSError, RuntimeError, ImportError)  # raised with a message that says what to do


def run_command(program: str, work: Callable[[], int | None]) -> int:
    """Do a command's work; returns the exit status.

    Errors become a line on stderr that begins with the program's name. A reader of stdout who has gone away, as `head` does,
    ends the command quietly.
    """
    _prepare_streams()
    try:
        with plain_warnings():
            status = work() or 0
            sys.stdout.flush()
        return status
    except SystemExit as ended:  # of the parser, which has said why; or of --help
        if not isinstance(ended.code, int) or ended.code == 0:
            raise
        return ended.code
    except KeyboardInterrupt:
        return interrupted()
    except Exception as error:  # the shell is where every error arrives
        if _reader_is_gone(error):
            return BROKEN_PIPE
        if os.environ.get(TRACEBACK):
            raise
        tell_error(program, error)
        return WRONG_INPUT if isinstance(error, EXPECTED) else UNEXPECTED
    finally:
        _drop_broken_stdout()


def error_text(error: Exception) -> str:
    """An error in words: of a file, its name and what the system says; of an unexpected kind, the kind too."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, EXPECTED) and str(error):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}".rstrip(": ")


def tell_error(program: str, error: Exception) -> None:
    """Print an error's line to stderr."""
    print(f"{program}: {error_text(error)}\n({TRACEBACK}=1 shows where.)", file=sys.stderr)


def interrupted() -> int:
    """Say that Ctrl-C was heard; returns the exit status."""
    ended_line = "\n" * sys.stderr.isatty()  # below the terminal's ^C
    kept = "What was measured or asked so far is kept; the same command goes on from there."
    print(f"{ended_line}Interrupted. {kept}", file=sys.stderr)
    return INTERRUPTED


def log_handler() -> logging.Handler:
    """What prints log messages to stderr, each once: some libraries print their own, and pass them on as well."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: not _prints_itself(logging.getLogger(record.name)))
    return handler


def _prints_itself(logger: logging.Logger) -> bool:
    """Whether a logger, or one above it but for the root, writes its messages to a stream."""
    while logger.parent is not None:
        if any(type(handler) is logging.StreamHandler for handler in logger.handlers):
            return True
        logger = logger.parent
    return False


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Python's warnings as one line each, without the line of the source that they come from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, category, filename, lineno, line=None: f"WARNING: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _prepare_streams() -> None:
    """Let stdout and stderr take any text; a closed one becomes /dev/null, lest the next file to be opened take its place."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            opened = os.open(os.devnull, os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _reader_is_gone(error: Exception) -> bool:
    """Whether it was stdout that broke, and not a pipe or a connection of the command's own."""
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(found & (select.POLLERR | select.POLLHUP) for _, found in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no poll on Windows; a stdout that is no file
        return True


def _drop_broken_stdout() -> None:
    """Let what stdout cannot take go nowhere, so that Python does not complain of it once more as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except ValueError:  # closed already
        pass
