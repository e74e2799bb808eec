"""Text that users bring, in the encodings that say what they are; a file that does not is refused, never guessed at."""

from __future__ import annotations

import codecs
import os
from pathlib import Path


# Byte order mark -> codec that reads it away; UTF-32's begins as UTF-16's does, so it comes first
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SHOWN = 1_000  # characters to look at for the NULs of an unmarked UTF-16


def encoding_of(head: bytes) -> str:
    """The codec that the first four bytes of a file ask for: that of their byte order mark, else UTF-8."""
    return next((codec for mark, codec in MARKS.items() if head.startswith(mark)), "utf-8")


def read_user_text(path: str | os.PathLike, newline: str | None = None) -> str:
    """A text file in UTF-8, or with a byte order mark in UTF-16 or UTF-32.

    Args:
        path: the file.
        newline (`str`, *optional*): "" keeps the ends of lines as they are. Default: all become "\\n".

    Raises:
        ValueError: the file is in another encoding; the message says where, and how to convert it.
        OSError: it cannot be read.
    """
    data = Path(path).expanduser().read_bytes()
    try:
        text = data.decode(encoding_of(data[:4]))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"line {line:,} holds the byte 0x{data[error.start]:02x}"
        raise ValueError(_refusal(path, f"no text in {error.encoding.upper()} ({found})", "ENCODING")) from error
    if text.count("\0", 0, SHOWN) * 4 > len(text[:SHOWN]):
        raise ValueError(_refusal(path, "no text in UTF-8 (every other byte is 0)", "UTF-16LE"))
    return text if newline == "" else text.replace("\r\n", "\n").replace("\r", "\n")


def _refusal(path: str | os.PathLike, problem: str, encoding: str) -> str:
    named = ", where ENCODING is what it was written in, such as GBK, SHIFT_JIS or WINDOWS-1252" * (
        encoding == "ENCODING"
    )
    return f"{path} is {problem}; convert it: iconv -f {encoding} -t UTF-8 '{path}' > NEW.txt{named}."
