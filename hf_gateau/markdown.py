"""Text of other people in our Markdown: made harmless, cut, and put into tables and links."""

from __future__ import annotations

import html
import os
import re
import unicodedata
from collections.abc import Iterable

from .redaction import redact


HUB = "https://huggingface.co"
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
PLAIN = re.compile(r"[\w ,:;/@+=%()'-][\w .,:;/@+=%()'#-]*", re.ASCII)
PUNCTUATION = re.compile(r"([\\`*_{}\[\]!|~$@^=#]|(?<=:)/(?=/)|(?<=www)\.)", re.IGNORECASE)  # and bare addresses
MANY_CHARACTERS = 500


def inline(text: object) -> str:
    """Any text as one line of Markdown that shows it and does nothing else, also within a table."""
    line = one_line(text)
    return f"`{line}`" if PLAIN.fullmatch(line) else escape(line) or "(nothing)"


def escape(text: object) -> str:
    """The same without a code span, for places that have none: a picture's alternative, a heading."""
    return PUNCTUATION.sub(r"\\\1", html.escape(one_line(text), quote=False))


def one_line(text: object) -> str:
    """Text without secrets, control characters, line breaks, and what no file can hold; cut where it is very long."""
    text = "".join(" " if unicodedata.category(x) in ("Cc", "Cs", "Zl", "Zp") else x for x in redact(str(text)))
    text = " ".join(text.split())
    return text if len(text) <= MANY_CHARACTERS else text[: MANY_CHARACTERS - 3] + "..."


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    lines = [header := list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def link(repo_id: str | None, repo_type: str = "dataset", revision: str | None = None) -> str:
    """A repository of the Hub as a link; text that is no repository's name stays text."""
    if not is_repo_id(repo_id):
        return inline(repo_id)
    place = f"{HUB}/{'' if repo_type == 'model' else f'{repo_type}s/'}{repo_id}"
    if revision is not None and re.fullmatch(r"[0-9a-f]{7,40}", revision):
        return f"[{repo_id}]({place}) at [`{revision[:10]}`]({place}/tree/{revision})"
    return f"[{repo_id}]({place})"


def is_repo_id(name: object) -> bool:
    """Whether a name is one of a repository on the Hub, OWNER/NAME, and not of a folder here."""
    return isinstance(name, str) and REPO_ID.fullmatch(name) is not None and not os.path.exists(name)


def public_name(name: str | None) -> str | None:
    """A model's or a file's name without the folders of this machine that lead to it."""
    if name is None or is_repo_id(name):
        return name
    return os.path.basename(os.path.normpath(name)) or name
