"""From the command line to what a command takes: TRL-style dataclasses, which a YAML file given with `--config` can fill too."""

import re

from .arguments import POSITIONALS, PROGRAM
from .commands import COMMANDS, command_of


def parse(command: str, arguments: list[str]) -> list:
    """What a command is given: one value for each that it takes."""
    from trl import TrlParser

    function, takes = command_of(command)
    classes = [kind for kind in takes if kind not in POSITIONALS]
    parser = TrlParser(classes, prog=f"{PROGRAM} {command}", description=" ".join(function.__doc__.split()))
    parser.add_argument("--config", help="YAML file with any of these arguments; the command line wins over it.")
    for name in takes:
        if name in POSITIONALS:
            parser.add_argument(name, help=POSITIONALS[name])
    parsed = parser.parse_args_and_config(arguments)
    by_class = {type(part): part for part in parsed}
    rest = parsed[-1]
    return [getattr(rest, kind) if kind in POSITIONALS else by_class[kind] for kind in takes]


def usage() -> str:
    """All commands, a line each."""
    lines = [f"usage: {PROGRAM} COMMAND ...   ({PROGRAM} COMMAND --help says more)", ""]
    for name in COMMANDS:
        first = re.split(r"[.:] ", " ".join(command_of(name)[0].__doc__.split()))[0].rstrip(".")
        lines.append(f"  {name:<17}{first}")
    return "\n".join(lines)
