"""The command line of every command: TRL's parser of dataclasses, with a YAML file under it and errors of one line."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from trl import TrlParser

from ..settings import a_type, did_you_mean
from .ending import error_text
from .help import Group, group_of, help_text, value_word
from .values import fitting, read_yaml, takes_text


class _HelpAll(argparse.Action):
    """`--help_all`: the help with what few need."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(parser.format_help(shows_all=True), end="")
        parser.exit()


class ShellParser(TrlParser):
    """TRL's parser of dataclasses, with help by group, `--help_all`, and errors that are one line.

    Args:
        kinds: the dataclasses.
        prog: the command, as errors begin.
        description: what it does.
        examples: lines of commands, for the help.
        positionals: name -> help of what stands on the command line without a name.
        groups: how the help puts arguments together; default: a group for each dataclass.
    """

    def __init__(
        self,
        kinds: Iterable[type],
        prog: str | None = None,
        description: str = "",
        examples: Iterable[str] = (),
        positionals: dict[str, str] | None = None,
        groups: Iterable[Group] | None = None,
    ):
        kinds = tuple(kinds)
        super().__init__(kinds, prog=prog, description=description)
        self._examples = list(examples)
        self._groups = [group_of(kind) for kind in kinds] if groups is None else list(groups)
        self._hints = {
            x.name: hints[x.name] for kind in kinds for hints in [get_type_hints(kind)] for x in fields(kind)
        }
        for action in self._actions:
            if action.dest in self._hints and action.metavar is None and not action.choices:
                action.metavar = value_word(action.dest, self._hints[action.dest])
        for name, said in (positionals or {}).items():
            self.add_argument(name, help=said)
            self._hints[name] = str
        self.add_argument(
            "--help_all",
            "--help-all",
            action=_HelpAll,
            nargs=0,
            dest="help_all",
            default=argparse.SUPPRESS,
            help="Show every argument and exit.",
        )
        self.add_argument(
            "--config", metavar="FILE", help="YAML file with any of these; the command line wins over it."
        )

    file_flags = ("config",)  # each names a YAML file
    has_terse_help = False

    # What is printed

    def format_help(self, shows_all: bool = False) -> str:
        actions = [x for x in self._actions if x.help is not argparse.SUPPRESS]
        words = (self.prog, self.description or "", self._examples)
        return help_text(*words, actions, self._groups, shows_all, self.has_terse_help)

    def error(self, message: str):
        self.refuse(self._in_shell_words(message))

    def refuse(self, message: str):
        """End with a line and status 2; the usage is for --help."""
        self.exit(2, f"{self.prog}: {message}\n")

    def _in_shell_words(self, message: str) -> str:
        """A message of argparse's without what is Python's, and with the first of the names that mean the same."""
        message = re.sub(r"(--\w+)(?:/--?[\w-]+)+", r"\1", message)
        if found := re.fullmatch(r"argument (\S+): invalid choice: (.*?) \(choose from (.*)\)", message):
            return f"{found[1]}={found[2]} is not known; use one of {found[3]}."
        if found := re.fullmatch(r"argument (\S+): invalid .* value: (.*)", message):
            return f"{found[1]} takes {takes_text(self._hints.get(self.name_of(found[1])))}, got {found[2]}"
        return message.removeprefix("argument ")

    # What is read

    def other_flags(self) -> Iterable[str]:
        """Flags that are not this parser's, and that somebody takes who gets what is left."""
        return ()

    def other_keys(self) -> Iterable[str]:
        """Keys of a YAML file that are no arguments."""
        return ("env",)

    def name_of(self, flag: str) -> str | None:
        """The argument that a flag names, in full, in part or with dashes; None where it names none, or more than one."""
        flag = flag.partition("=")[0]
        known = self._option_string_actions
        if flag in known:
            return known[flag].dest
        names = {action.dest for text, action in known.items() if flag[:2] == "--" and text.startswith(flag)}
        return names.pop() if len(names) == 1 else None

    def parse_args_and_config(
        self,
        args: Iterable[str] | None = None,
        return_remaining_strings: bool = False,
        fail_with_unknown_args: bool = True,
        separate_remaining_strings: bool = False,
    ) -> tuple:
        """As TRL's: the dataclasses, filled from the file of --config and from the command line over it."""
        args = [str(x) for x in (sys.argv[1:] if args is None else args)]
        self._refuse_unknown_flags(args)
        left_of_file = self._read_config(args)
        *parsed, left = self.parse_args_into_dataclasses(args=args, return_remaining_strings=True)
        if return_remaining_strings:
            return (*parsed, left_of_file, left) if separate_remaining_strings else (*parsed, left_of_file + left)
        if left and fail_with_unknown_args:
            self.error(f"unexpected argument {left[0]!r}")
        return tuple(parsed)

    def _refuse_unknown_flags(self, args: list[str]) -> None:
        """Before anything is asked of what is there: a misspelt flag is the reason why another is missing."""
        flags = [x.partition("=")[0] for x in args[: args.index("--") if "--" in args else None]]
        known = self._option_string_actions
        unknown = [x for x in flags if re.match(r"--[a-zA-Z]", x) and " " not in x]
        unknown = [x for x in unknown if not any(text.startswith(x) for text in known)]
        if not unknown:
            return
        others = list(self.other_flags())
        for flag in unknown:
            if not any(text.startswith(flag) for text in others):
                near = did_you_mean(
                    flag.replace("-", "_").replace("__", "--", 1), [x for x in (*known, *others) if "-" not in x[2:]]
                )
                self.error(f"unknown argument {flag}{near}")

    def _read_config(self, args: list[str]) -> list[str]:
        """Take the YAML file's flag out of the arguments, and the file as what holds without them; returns what is others'."""
        places = [place for place, x in enumerate(args) if x.startswith("--") and self.name_of(x) in self.file_flags]
        if not places:
            return []
        if len(places) > 1:
            self.error(f"give one of {' and '.join(f'--{name}' for name in self.file_flags)}, once")
        flag, is_joined, file = args.pop(places[0]).partition("=")
        if not is_joined:
            if places[0] == len(args):
                self.error(f"{flag} needs a YAML file")
            file = args.pop(places[0])
        try:
            path = self.find_file(self.name_of(flag), file)
            settings = read_yaml(path)
        except (OSError, ValueError) as error:
            self.error(error_text(error))
        for name, value in self._environment(path, settings.pop("env", None)).items():
            os.environ[name] = value
        return self.set_defaults_with_config(**self.checked(str(path), settings))

    def find_file(self, name: str, file: str) -> Path:
        """The file that one of `file_flags` names."""
        return Path(file).expanduser()

    def _environment(self, file: Path, found: Any) -> dict[str, str]:
        if not isinstance(found, (dict, type(None))):
            self.error(f"{file}: `env:` is {a_type(found)}; it holds variables, one a line, as `OMP_NUM_THREADS: 8`")
        return {str(name): str(value) for name, value in (found or {}).items()}

    def checked(self, file: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings of a file, each of its type; an unknown one ends the command."""
        settings = {"yes" if name is True else name: value for name, value in settings.items()}  # as YAML reads it
        own = {x.dest for x in self._actions} - {"help", "help_all", *self.file_flags}
        others = {x.lstrip("-").replace("-", "_") for x in self.other_flags()} if settings.keys() - own else set()
        known = {*own, *others, *self.other_keys()}
        for name in settings:
            if name not in known:
                self.error(f"{file}: there is no setting {name!r}{did_you_mean(name, known)}")
        found = {}
        for name, value in settings.items():
            if name not in self._hints:
                found[name] = value
            else:
                try:
                    found[name] = fitting(name, value, self._hints[name])
                except ValueError as error:
                    self.error(f"{file}: {error}")
        return found
