"""The commands, in the order in which one gives them, and what they take."""

import importlib
from collections.abc import Callable
from typing import Any


# Command -> the module, counted from the package, that has it: `command`, a function whose docstring is the help, and `TAKES`,
# what it takes: positional arguments by name (see `arguments.POSITIONALS`), then dataclasses. A room's own command stands there.
COMMANDS = {
    "quickstart": "cli.quickstart",
    "check": "cli.check",
    "score": "cli.score",
    "plan": "cli.plan",
    "rank": "cli.rank",
    "select": "cli.select",
    "push": "cli.push",
    "pull": "cli.pull",
    "sft": "cli.sft",
    "top": "cli.top",
    "report": "cli.report",
    "store": "cli.store",
    "eval": "evaluation.command",
    "characteristics": "evaluation.characteristics",
    "human-sheet": "evaluation.human_sheet",
    "human-tally": "evaluation.human_tally",
    "experiment": "experiments.command",
    "build": "building.command",
}


def command_of(name: str) -> tuple[Callable, tuple[Any, ...]]:
    """A command's function, and what it takes."""
    module = importlib.import_module(f"hf_gateau.{COMMANDS[name]}")
    return module.command, module.TAKES
