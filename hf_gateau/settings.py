"""What the settings of every room have in common: checks with one wording, and settings that are JSON or name a function."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Callable, Iterable
from typing import Any


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(map(repr, choices))}.")


def check_belongings(config: Any, owner: str, what: str) -> None:
    """Refuse settings without the one that they belong to."""
    settings = [name for name in set_fields(config) if name != owner]
    if getattr(config, owner) is None and settings:
        raise ValueError(f"{' and '.join(settings)} came without {owner}; name {what}, or leave them out.")


def json_object(name: str, text: str | None, example: str) -> dict[str, Any]:
    """A setting that is written as a JSON object; empty for None.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be a JSON object, got {text!r}; give e.g. {example!r}.")
    return found


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name: the nearest known one, if there is one near."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else otherwise


def set_fields(config: Any) -> dict[str, Any]:
    """The fields of a configuration that are not None."""
    return {name: value for name, value in vars(config).items() if value is not None}


def import_function(name: str, said: str) -> Callable:
    """The function behind 'package.module:function'.

    Raises:
        ValueError: there is none; `said` is how the message begins.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{said} cannot be imported ({error}); name a function as 'module:function'.") from error
