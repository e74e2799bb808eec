"""The `hf-gateau` command: picks the subcommand, and ends with a line and an exit status, never with a traceback."""

import logging
import os
import sys
from contextlib import nullcontext

from ..models.notices import announced
from ..settings import did_you_mean
from ..shell.ending import WRONG_INPUT, log_handler, run_command
from .arguments import PROGRAM
from .commands import COMMANDS, command_of
from .parser import parse, usage


def run(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or what the command says; 2 for wrong input, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    return run_command(f"{PROGRAM} {command}", lambda: _run(command, arguments[1:]))


def _run(command: str, arguments: list[str]) -> int:
    from .. import __version__

    if command in ("-h", "--help", "--version"):
        print(__version__ if command == "--version" else usage())
        return 0
    if command not in COMMANDS:
        otherwise = f"; {PROGRAM} --help lists them"
        print(
            f"{PROGRAM}: there is no command {command!r}{did_you_mean(command, COMMANDS, otherwise)}", file=sys.stderr
        )
        return WRONG_INPUT
    if not sys.stderr.isatty():  # a file keeps every line of a bar; read when tqdm is imported
        os.environ.setdefault("TQDM_MININTERVAL", "60")
    # Huge pages for torch's buffers on a CPU, some 5% of the time; read when torch is imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    logging.basicConfig(handlers=[log_handler()], format="%(levelname)s: %(message)s", level=logging.WARNING)
    # Libraries take seconds to import: who looks on is told so.
    is_slow = (
        sys.stderr.isatty() and "torch" not in sys.modules and not {"-h", "--help", "--help_all"} & set(arguments)
    )
    with announced(f"Starting {PROGRAM} {command}", after=1.0) if is_slow else nullcontext():
        if command == "sft":  # its arguments are TRL's and accelerate's too
            return command_of(command)[0](arguments)
        return command_of(command)[0](*parse(command, arguments)) or 0
