"""What `--help` prints: the usage, what the command does, its examples as they are written, and its arguments group by group.

A dataclass of settings is a group. Its title is the beginning of its docstring; the names in its `RARELY_GIVEN`, where it has
one, are shown by `--help_all` alone.
"""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, get_args


GENERAL = ("help", "help_all", "config")  # of every command; the last line of --help tells of them
MOST_COLUMNS = 100  # longer lines are hard to read
WIDEST_CHOICES = 36  # characters of {a,b,c} beside a flag


@dataclass(frozen=True)
class Group:
    """Arguments that stand together.

    Attributes:
        title: what stands above them.
        names: the arguments, as the parser keeps them.
        rare: those of them that `--help` leaves to `--help_all`.
    """

    title: str
    names: tuple[str, ...]
    rare: frozenset[str] = frozenset()


def group_of(config: type, prefix: str = "") -> Group:
    """The group of a dataclass of settings, whose names may have a prefix on the command line."""
    title = re.split(r"[.:;,(]", " ".join(inspect.getdoc(config).split()))[0].strip()
    rare = frozenset(prefix + name for name in getattr(config, "RARELY_GIVEN", ()))
    return Group(title, tuple(prefix + x.name for x in fields(config)), rare)


def read_docstring(function) -> tuple[str, list[str]]:
    """What a command does, and the lines of its examples: what stands, indented, below `Example:` or `Examples:`."""
    text, *rest = re.split(r"^Examples?:\n", inspect.getdoc(function), maxsplit=1, flags=re.MULTILINE)
    return " ".join(text.split()), textwrap.dedent("".join(rest)).strip().splitlines()


def help_text(
    prog: str,
    description: str,
    examples: list[str],
    actions: list[argparse.Action],
    groups: Iterable[Group],
    shows_all: bool,
    tersely: bool = False,
) -> str:
    """The page, in lines as wide as the terminal and at most 100 columns.

    Args:
        prog, description, examples: the command, what it does, lines of examples.
        actions: the parser's arguments.
        groups: how they stand together; what no group names comes last.
        shows_all: with what few need, and with every help in full.
        tersely: otherwise with no more of each help than its first words.
    """
    width = min(shutil.get_terminal_size((80, 24)).columns, MOST_COLUMNS)
    named: dict[str, list[argparse.Action]] = {}
    for action in actions:
        named.setdefault(action.dest, []).append(action)
    positional = [name for name, (first, *_) in named.items() if not first.option_strings]
    needed = [flag_text(x[:1]) for x in named.values() if x[0].option_strings and x[0].required]
    words = [prog, *(name.upper() for name in positional), *(re.sub(r"^-\w, ", "", x) for x in needed), "[OPTIONS]"]
    lines = textwrap.wrap(f"usage: {' '.join(words)}", width, subsequent_indent="  ", break_on_hyphens=False)
    lines += ["", *textwrap.wrap(description, width)]
    if examples:
        lines += ["", f"example{'s' * (len(examples) > 1)}:", *(f"  {line}" for line in examples)]
    num_hidden = 0
    for title, names, rare in _all_groups(groups, named, positional):
        shown = [name for name in names if shows_all or name not in rare]
        num_hidden += sum(name not in (*shown, *GENERAL) for name in names)
        if shown:
            lines += ["", f"{title}:"]
            lines += [
                line for name in shown for line in _entry(named[name], prog, width, None if shows_all else tersely)
            ]
    if not shows_all:
        more = f"{num_hidden} more arguments, and more about these" if num_hidden else "more about these"
        last = f"--help_all shows {more}. --config FILE takes them from a YAML file."
        lines += ["", *textwrap.wrap(last, width)]
    return "\n".join(lines) + "\n"


def _all_groups(groups, named, positional) -> Iterator[tuple[str, list[str], frozenset[str]]]:
    """The groups with what the parser has of them, those of one title together; around them what no dataclass names."""
    merged: dict[str, tuple[list[str], set[str]]] = {}
    for group in groups:
        names, rare = merged.setdefault(group.title, ([], set()))
        names += [name for name in group.names if name in named and name not in names]
        rare |= group.rare
    taken = {name for names, _ in merged.values() for name in names} | set(positional)
    if positional:
        yield "arguments", positional, frozenset()
    yield from ((title, names, frozenset(rare)) for title, (names, rare) in merged.items())
    yield "other", [name for name in named if name not in taken], frozenset(GENERAL)


def _entry(actions: list[argparse.Action], prog: str, width: int, tersely: bool | None) -> list[str]:
    """The lines of one argument, in full where `tersely` is None; `--no_...` of a setting that is on stands beside it."""
    column = 28 if width >= 90 else 25
    action, flag = actions[0], flag_text(actions)
    text = " ".join((action.help or "").split())
    text = text % {**vars(action), "prog": prog} if text else ""
    default = default_text(action, text)
    text = text if tersely is None else brief(text, tersely)
    choices = _choices(action)
    if not value_text(action).startswith("{") and not all(x in text for x in choices):
        text += f" One of {', '.join(choices)}."
    wrapped = textwrap.wrap(" ".join(filter(None, (text, default))), width - column) or [""]
    if len(flag) > column - 3:
        return [f"  {flag}", *(" " * column + line for line in wrapped)]
    return [f"  {flag:<{column - 2}}{wrapped[0]}".rstrip(), *(" " * column + line for line in wrapped[1:])]


def flag_text(actions: list[argparse.Action]) -> str:
    """`-o, --output OUTPUT`; of `--max_length` and `--max-length`, which are the same, the first."""
    action = actions[0]
    if not action.option_strings:
        return action.dest.upper()
    flags = [x for other in actions for x in other.option_strings]
    flags = sorted((x for x in flags if "-" not in x.lstrip("-")), key=lambda x: x.startswith("--"))
    return " ".join(filter(None, (", ".join(flags), value_text(action))))


def value_text(action: argparse.Action) -> str:
    """What stands for an argument's value."""
    if action.nargs in (0, "?"):
        return ""
    choices = "{" + ",".join(_choices(action)) + "}"
    text = action.metavar or action.dest.rpartition("_")[2].upper()
    if 2 < len(choices) <= WIDEST_CHOICES:
        text = choices
    return f"{text} ..." if action.nargs == "+" else text


def value_word(name: str, hint: Any) -> str:
    """N for an integer, X for a number, else the last word of the setting's name."""
    kinds = {hint, *get_args(hint), *(x for kind in get_args(hint) for x in get_args(kind))}
    if str in kinds:
        return name.rpartition("_")[2].upper()
    return "N" if int in kinds else "X" if float in kinds else name.rpartition("_")[2].upper()


def brief(text: str, tersely: bool = False) -> str:
    """The beginning of an argument's help, up to the first stop or semicolon, and what it says of the default; tersely, no
    default in words."""
    first, *others = re.split(r"(?<=[.)])\s+(?=[A-Z'(])", text)
    first = re.split(r";\s(?![^()]*\))", first, maxsplit=1)[0]
    first += "" if first.endswith((".", ")")) else "."
    return " ".join([first, *(x for x in others if x.startswith("Default:") and not tersely)])


def _choices(action: argparse.Action) -> list[str]:
    return [str(x) for x in action.choices or ()]


def default_text(action: argparse.Action, text: str) -> str:
    """An argument's default, where there is one that its help does not tell."""
    default = action.default
    if (
        action.required
        or default in (None, False, "", [])
        or default is argparse.SUPPRESS
        or "default" in text.lower()
    ):
        return ""
    if isinstance(default, (list, tuple)):
        default = " ".join(map(str, default))
    return f"(default: {'true' if default is True else default})"
