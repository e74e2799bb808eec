"""What the settings of every room have in common: checks with one wording, and settings that are JSON or name a function."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields
from types import CodeType
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
    """The end of a message about an unknown name: the nearest known one, if there is one near; flags as one gives them."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    if not near:
        return otherwise
    return f"; did you mean {near[0] if near[0].startswith('-') else repr(near[0])}?"


# What YAML and JSON call their values
TYPE_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a mapping",
}


def a_type(value: object) -> str:
    """What a value is, with its article, for messages: "an integer", "a list"."""
    kind = type(value)
    article = "an" if kind.__name__[0].lower() in "aeiou" else "a"
    return TYPE_NAMES.get(kind) or f"{article} {kind.__name__}"


def set_fields(config: Any) -> dict[str, Any]:
    """The fields of a configuration that are not None."""
    return {name: value for name, value in vars(config).items() if value is not None}


def call_text(name: str, given: dict[str, Any], defaults: dict[str, Any] | None = None) -> str:
    """An object as one would write it: the class's name, and the settings that differ from their defaults."""
    defaults = defaults or {}
    settings = [(key, value) for key, value in given.items() if key not in defaults or value != defaults[key]]
    texts = [f"{key}={getattr(value, '__name__', None) or repr(value)}" for key, value in settings]
    return f"{name}({', '.join(texts)})"


def defaults_of(*configs: type) -> dict[str, Any]:
    """The defaults of dataclasses of settings, by name."""
    return {x.name: x.default for config in configs for x in fields(config) if x.default is not MISSING}


def short_repr(config: Any) -> str:
    """The `__repr__` of a dataclass of settings: those that differ from their defaults."""
    return call_text(
        type(config).__name__, {x.name: getattr(config, x.name) for x in fields(config)}, defaults_of(type(config))
    )


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


PLAIN = (str, bytes, int, float, bool, type(None))


def function_digest(function: Callable) -> str:
    """What tells a function from what it was before an edit: its code, with the functions and plain values that it uses of its
    own package; 16 hexadecimal digits, the same in every process of one Python version."""
    return hashlib.sha256("\n".join(_code_of(function, set())).encode()).hexdigest()[:16]


def _code_of(function: Any, seen: set[int]) -> Iterator[str]:
    """Lines that say what a function does; of a `partial`, what it calls, of an object its `__call__`."""
    if not hasattr(function, "__code__"):
        function = getattr(function, "func", None) or type(function).__call__
    code = getattr(function, "__code__", None)
    if code is None or id(code) in seen:
        return
    seen.add(id(code))
    names = set()
    for part in _nested(code):
        names.update(part.co_names)
        constants = [_said(x) for x in part.co_consts if not isinstance(x, CodeType)]
        yield f"{part.co_code.hex()} {part.co_names} {part.co_varnames} {constants}"
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != type(cell)()]
    used = [function.__globals__[name] for name in sorted(names) if name in function.__globals__]
    for value in [*used, *cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]:
        if hasattr(value, "__code__"):
            yield from _code_of(value, seen) if _package(value) == _package(function) else [value.__qualname__]
        else:
            yield _said(value)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _package(function: Callable) -> str:
    return (function.__module__ or "").partition(".")[0]


def _said(value: Any) -> str:
    """A plain value as text that is the same in every process; of any other its type."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, re.Pattern):
        return f"{value.pattern!r} {value.flags}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_said, value))})"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(_said, value)))}}}"
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{_said(key)}: {_said(x)}' for key, x in value.items()))}}}"
    return type(value).__qualname__
