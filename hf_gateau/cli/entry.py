"""The `hf-gateau` command: picks the subcommand, and ends with a line and an exit status, never with a traceback."""

import logging
import os
import sys
from contextlib import nullcontext

from ..models.notices import announced
from .arguments import PROGRAM
from .commands import COMMANDS, command_of
from .parser import parse, usage


INTERRUPTED = 130  # the shell's exit status for Ctrl-C


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `hf-gateau`; returns the exit status: 0, 2 for wrong input, 130 for Ctrl-C."""
    from .. import __version__

    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "--version"):
        print(__version__ if command == "--version" else usage())
        return 0
    if command not in COMMANDS:
        print(f"{PROGRAM}: there is no command {command!r}\n\n{usage()}", file=sys.stderr)
        return 2
    if not sys.stderr.isatty():  # a file keeps every line of a bar; read when tqdm is imported
        os.environ.setdefault("TQDM_MININTERVAL", "60")
    # Huge pages for torch's buffers on a CPU, some 5% of the time; read when torch is imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # Libraries take seconds to import: who looks on is told so.
    is_slow = sys.stderr.isatty() and "torch" not in sys.modules and not {"-h", "--help"} & set(arguments)
    with announced(f"Starting {PROGRAM} {command}", after=1.0) if is_slow else nullcontext():
        return _run(command, arguments)


def _run(command: str, arguments: list[str]) -> int:
    try:
        if command == "sft":  # its arguments are TRL's and accelerate's too
            return command_of(command)[0](arguments[1:])
        command_of(command)[0](*parse(command, arguments[1:]))
    except KeyboardInterrupt:
        print(
            "\nInterrupted. What was measured or asked so far is kept; the same command goes on from there.",
            file=sys.stderr,
        )
        return INTERRUPTED
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("HF_GATEAU_TRACEBACK"):
            raise
        print(f"{PROGRAM} {command}: {error}\n(HF_GATEAU_TRACEBACK=1 shows where.)", file=sys.stderr)
        return 2
    return 0
