"""A YAML file as settings: read with the place of what is wrong, and every value of the type that its setting takes."""

from __future__ import annotations

import os
import types
from typing import Any, Union, get_args, get_origin

from ..files.texts import read_user_text
from ..settings import a_type


WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """What a YAML file says, one key or more.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no YAML, or no mapping; the message has the file and, where there is one, the line.
    """
    import yaml

    text = read_user_text(path)
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = "" if mark is None else f", line {mark.line + 1}"
        raise ValueError(f"{path}{place}: this is no YAML ({problem or ' '.join(str(error).split())}).") from error
    except (ValueError, RecursionError) as error:  # a date that there is not, brackets without an end
        raise ValueError(f"{path}: this is no YAML ({error}).") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {a_type(found)}; give settings, one a line, as `limit: 100`.")
    if unnamed := [key for key in found if not isinstance(key, str)]:
        raise ValueError(f"{path}: the key {unnamed[0]!r} is {a_type(unnamed[0])}; names of settings are text.")
    return found


def fitting(name: str, value: Any, hint: Any) -> Any:
    """A value of a YAML file as one that a setting of this type takes. Types that no check is known for take anything.

    Raises:
        ValueError: it is of another type.
    """
    kinds = _alternatives(hint)
    listed = next((kind for kind in kinds if get_origin(kind) is list), None)
    if isinstance(value, list) and listed is not None:
        (kind,) = get_args(listed)
        return [fitting(name, x, kind) for x in value]
    if any(kind not in (*WORDS, type(None), list) and kind is not listed for kind in kinds):
        return value
    if value is None and type(None) in kinds:
        return None
    for kind in (bool, int, float, str):
        if kind in kinds and (found := _as(kind, value)) is not None:
            return found
    quotes = "; put it in quotes if it is text" * (str in kinds and isinstance(value, bool))
    raise ValueError(f"{name} takes {takes_text(hint)}, got {_said(value)}{quotes}.")


def takes_text(hint: Any) -> str:
    """What a setting of a type takes, in words."""
    kinds = _alternatives(hint)
    known = [words for kind, words in WORDS.items() if kind in kinds]
    known += ["a list"] * any(kind is list or get_origin(kind) is list for kind in kinds)
    return " or ".join(known) or "another value"


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _as(kind: type, value: Any) -> Any:
    """A value as one of a plain type, or None where it is none."""
    if kind is str:  # a name or a revision may look like a number
        return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None
    if kind is bool:
        return BOOLEANS.get(value.lower()) if isinstance(value, str) else value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)  # YAML takes 1e-5 for a text
        if kind is float:
            return number if isinstance(value, str) else value
        return int(value) if isinstance(value, str) or number == int(number) else None
    except (ValueError, OverflowError):  # no number; no end
        return None


def _said(value: Any) -> str:
    return a_type(value) if isinstance(value, (list, dict)) or value is None else repr(value)
