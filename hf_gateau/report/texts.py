"""What a row says, for people to read: its context, instruction and response; in whole, as the models read it, or its ends."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from ..rows.parts import texts_of


# Controls, lone surrogates, and marks that turn the direction of all that follows, of a page or a terminal too
UNSEEN = ("Cc", "Cs")
TURNING = dict.fromkeys([0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])


def sample_texts(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Context, instruction and response of a row in any of the forms that can be measured; empty where there is none."""
    before, context, instruction, response = texts_of(row)
    return context, instruction or before, response


def readable(text: str) -> str:
    """Text without what a page or a terminal would obey instead of showing it."""
    text = text.translate(TURNING)
    return "".join(x for x in text if x in "\n\t" or unicodedata.category(x) not in UNSEEN)


def shortened(text: str, width: int) -> str:
    """The beginning and the end of a text on one line."""
    text = " ".join(readable(text).split())
    half = (width - 5) // 2
    return text if len(text) <= width else f"{text[:half]} ... {text[-half:]}"


def excerpt(text: str, width: int) -> str:
    """The same with its lines."""
    lines = (" ".join(line.split()) for line in readable(text).strip().split("\n"))
    text, half = "\n".join(lines), (width - 5) // 2
    return text if len(text) <= width else f"{text[:half]} ...\n... {text[-half:]}"
