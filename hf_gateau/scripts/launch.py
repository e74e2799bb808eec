"""`hf-gateau sft` and `trl sft --recipe`: check the arguments, then `accelerate launch` the script, as TRL does its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .arguments import find_recipe, make_parser, recipes_folder, split_flag


SCRIPT = "hf_gateau.scripts.sft"


def launch(arguments: list[str], prog: str = "hf-gateau sft") -> int:
    """Run the training script on as many processes as accelerate's configuration or flags say; returns its exit status.

    Arguments that are not the script's go to `accelerate launch`, such as `--num_processes 2` or `--accelerate_config
    FILE` (a file, a name of TRL's, or of one of the plugin's in recipes/accelerate).
    """
    parser = make_parser(prog)
    *parsed, from_recipe, from_command_line = parser.parse_args_and_config(
        arguments, return_remaining_strings=True, separate_remaining_strings=True
    )
    launch_args = _accelerate_arguments(parser, [*from_recipe, *from_command_line])
    script_args = _without(arguments, from_command_line)
    command = ["accelerate", "launch", *launch_args, "-m", SCRIPT, *script_args]
    if not parsed[-1].dry_run:
        return _launch(parser, launch_args, script_args)
    from .sft import main

    print("launch     " + " ".join(command))
    main(*parsed, num_processes=_num_processes(launch_args))  # here: the plan loads no model
    return 0


def _launch(parser, launch_args: list[str], script_args: list[str]) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser

    parsed, unknown = launch_command_parser().parse_known_args([*launch_args, "--module", SCRIPT, *script_args])
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    try:
        launch_command(parsed)
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


def _num_processes(launch_args: list[str]) -> int:
    """How many processes accelerate would start, as far as its arguments tell."""
    import yaml

    if "--num_processes" in launch_args[:-1]:
        return int(launch_args[launch_args.index("--num_processes") + 1])
    if "--config_file" in launch_args[:-1]:
        path = Path(launch_args[launch_args.index("--config_file") + 1])
        return int(yaml.safe_load(path.read_text(encoding="utf-8")).get("num_processes") or 1)
    return 1


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
