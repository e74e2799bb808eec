"""The commands, in the order of the work, and what they take."""

import importlib
from collections.abc import Callable
from typing import Any


# Command -> the module, counted from the package, that has it: `command`, a function whose docstring is the help, and `TAKES`,
# what it takes: positional arguments by name (see `arguments.POSITIONALS`), then dataclasses. A room's own command stands there.
COMMANDS = {
    "quickstart": "cli.quickstart",
    "check": "cli.check",
    "plan": "cli.plan",
    "score": "cli.score",
    "rank": "cli.rank",
    "top": "cli.top",
    "report": "cli.report",
    "compare": "cli.compare",
    "explore": "cli.explore",
    "select": "cli.select",
    "sft": "cli.sft",
    "push": "cli.push",
    "pull": "cli.pull",
    "eval": "evaluation.command",
    "characteristics": "evaluation.characteristics",
    "human-sheet": "evaluation.human_sheet",
    "human-tally": "evaluation.human_tally",
    "build": "building.command",
    "experiment": "experiments.command",
    "store": "cli.store",
}
# What stands in the overview above a command, and those after it
TITLES = {
    "quickstart": "See it at work, and whether your data fit",
    "plan": "Measure rows, put them in order, look at them",
    "select": "Keep the best, and train on them",
    "push": "Share measured rows on the Hub",
    "eval": "Evaluate models and rankings",
    "build": "Make data, compare methods, look after the store",
}


def command_of(name: str) -> tuple[Callable, tuple[Any, ...]]:
    """A command's function, and what it takes."""
    module = importlib.import_module(f"hf_gateau.{COMMANDS[name]}")
    return module.command, module.TAKES
