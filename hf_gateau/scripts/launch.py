"""`hf-gateau sft` and `trl sft --recipe`: check the arguments, then `accelerate launch` the script, as TRL does its own."""

from __future__ import annotations

import subprocess
from argparse import Namespace
from pathlib import Path

from ..shell.ending import error_text
from ..shell.values import read_yaml
from .arguments import find_recipe, launch_parser, make_parser, recipes_folder, split_flag


SCRIPT = "hf_gateau.scripts.sft"


def launch(arguments: list[str], prog: str = "hf-gateau sft") -> int:
    """Run the training script on as many processes as accelerate's configuration or flags say; returns its exit status.

    Arguments that are not the script's go to `accelerate launch`, such as `--num_processes 2` or `--accelerate_config
    FILE` (a file, a name of TRL's, or of one of the plugin's in recipes/accelerate). What neither takes is refused, in a dry
    run as well.
    """
    parser = make_parser(prog)
    *parsed, from_recipe, from_command_line = parser.parse_args_and_config(
        arguments, return_remaining_strings=True, separate_remaining_strings=True
    )
    launch_args = _accelerate_arguments(parser, [*from_recipe, *from_command_line])
    script_args = _without(arguments, from_command_line)
    launched = _parse_launch(parser, launch_args, script_args)
    num_processes = _num_processes(parser, launched)
    if not parsed[-1].dry_run:
        return _launch(launched)
    from .sft import main

    print("launch     " + " ".join(["accelerate", "launch", *launch_args, "-m", SCRIPT, *script_args]))
    main(*parsed, num_processes=num_processes)  # here: the plan loads no model
    return 0


def _parse_launch(parser, launch_args: list[str], script_args: list[str]) -> Namespace:
    """What `accelerate launch` makes of its arguments; the script stands first of what it does not know."""
    accelerates = launch_parser()
    accelerates.error = lambda message: parser.error(f"accelerate launch: {message}")
    parsed, unknown = accelerates.parse_known_args([*launch_args, "--module", SCRIPT, *script_args])
    if unknown or parsed.training_script != SCRIPT:
        parser.error(f"unexpected argument {[*unknown, parsed.training_script][0]!r}")
    return parsed


def _launch(launched: Namespace) -> int:
    from accelerate.commands.launch import launch_command

    try:
        launch_command(launched)
    except subprocess.CalledProcessError as error:  # one process: it has said why
        return error.returncode
    return 0


def _accelerate_arguments(parser, arguments: list[str]) -> list[str]:
    """What goes to `accelerate launch`: `--accelerate_config` as its `--config_file`."""
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    arguments = split_flag(arguments, "--accelerate_config")
    if "--accelerate_config" in arguments[:-1]:
        place = arguments.index("--accelerate_config") + 1
        own = recipes_folder() / "accelerate" / f"{Path(arguments[place]).stem}.yaml"
        if not Path(arguments[place]).is_file() and own.is_file():
            arguments[place] = str(own)
    try:
        return resolve_accelerate_config_argument(arguments)
    except ValueError as error:
        parser.error(str(error))


def _num_processes(parser, launched: Namespace) -> int:
    """How many processes accelerate would start, as far as its arguments tell."""
    if launched.num_processes or not launched.config_file:
        return launched.num_processes or 1
    try:
        return int(read_yaml(launched.config_file).get("num_processes") or 1)
    except (OSError, ValueError, TypeError) as error:
        parser.error(error_text(error))


def _without(arguments: list[str], others: list[str]) -> list[str]:
    """The arguments in order, without those others, which are among them in the same order; the recipe by its path."""
    left, found = iter(others), []
    waiting = next(left, None)
    for argument in arguments:
        if argument == waiting:
            waiting = next(left, None)
        else:
            found.append(argument)
    if "--recipe" in found[:-1]:
        place = found.index("--recipe") + 1
        found[place] = str(find_recipe(found[place]))
    return found
