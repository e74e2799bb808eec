"""From the command line to what a command takes: dataclasses, which a YAML file given with `--config` can fill too."""

from typing import TYPE_CHECKING

from ..quickstart import resolve_shipped
from ..shell.help import read_docstring
from .arguments import POSITIONALS, PROGRAM
from .commands import COMMANDS, TITLES, command_of


if TYPE_CHECKING:
    from ..shell.parser import ShellParser


def parser_of(command: str) -> "ShellParser":
    """The parser of a command; that of `sft` is the training script's."""
    if command == "sft":
        from ..scripts.arguments import make_parser

        return make_parser(f"{PROGRAM} sft")
    from ..shell.parser import ShellParser

    function, takes = command_of(command)
    description, examples = read_docstring(function)
    kinds = [kind for kind in takes if kind not in POSITIONALS]
    positionals = {name: POSITIONALS[name] for name in takes if name in POSITIONALS}
    return ShellParser(kinds, f"{PROGRAM} {command}", description, examples, positionals)


def parse(command: str, arguments: list[str]) -> list:
    """What a command is given: one value for each that it takes."""
    parsed = parser_of(command).parse_args_and_config(arguments)
    for part in parsed:
        for name, value in vars(part).items():
            if isinstance(value, str):
                setattr(part, name, resolve_shipped(value))
    by_class = {type(part): part for part in parsed}
    rest = parsed[-1]
    return [getattr(rest, kind) if kind in POSITIONALS else by_class[kind] for kind in command_of(command)[1]]


def usage() -> str:
    """All commands, a line each, in the order of the work."""
    lines = [f"usage: {PROGRAM} COMMAND ...   ({PROGRAM} COMMAND --help says more)"]
    for name in COMMANDS:
        lines += ["", f"{TITLES[name]}:"] if name in TITLES else []
        first = read_docstring(command_of(name)[0])[0].partition(". ")[0].rstrip(".")
        lines.append(f"  {name:<17}{first}")
    return "\n".join(lines)
