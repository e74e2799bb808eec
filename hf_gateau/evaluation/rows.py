"""Rows in JSON lines: questions, answers, and what evaluations left."""

from __future__ import annotations

import json
import os
from typing import Any

from ..files.texts import read_user_text
from ..settings import a_type


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a file in JSON lines, as `results.save_result` writes them; empty lines are none.

    Raises:
        ValueError: a line is no JSON object, or the file no text in UTF-8, or UTF-16 with its mark.
    """
    try:
        text = read_user_text(path)
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}; give JSON lines, one object a line.") from error
    return rows_of(text, str(path))


def rows_of(text: str, where: str) -> list[dict[str, Any]]:
    """The same of a text; `where` it is from is for the message."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not at U+2028, as splitlines does
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"Line {number} of {where} is no JSON ({error}); give one JSON object a line.") from error
        if rows and not isinstance(rows[-1], dict):
            raise ValueError(f"Line {number} of {where} is {a_type(rows[-1])}; give one JSON object a line.")
    return rows
