"""Text that users bring, in the encodings that say what they are; a file that does not is refused, never guessed at."""

from __future__ import annotations

import codecs
import gzip
import os
import zlib
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
PIECE = 1 << 20  # bytes decoded at a time of a file that is only checked


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
        raise _undecodable(path, error, data.count(b"\n", 0, error.start) + 1, data[error.start]) from error
    _check_not_utf_16(path, text[:SHOWN])
    return text if newline == "" else text.replace("\r\n", "\n").replace("\r", "\n")


def check_encoding(path: str | os.PathLike) -> None:
    """The same check without the text, in bounded memory; a file that ends in .gz is unpacked.

    Raises:
        ValueError: the file is in another encoding, or cannot be unpacked.
        OSError: it cannot be read.
    """
    path = Path(path).expanduser()
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as stream:
        try:
            head = stream.peek(PIECE)
            decoder, line = codecs.getincrementaldecoder(encoding_of(head[:4]))(), 1
            _check_not_utf_16(path, head[:SHOWN].decode("latin-1"), encoding_of(head[:4]))
            for data in iter(lambda: stream.read(PIECE), b""):
                held = decoder.getstate()[0]  # of a character that the last piece has cut
                decoder.decode(data)
                line += data.count(b"\n")
            held, data = decoder.getstate()[0], b""
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            data = held + data
            raise _undecodable(path, error, line + data.count(b"\n", 0, error.start), data[error.start]) from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} cannot be unpacked: {error}.") from error


def _check_not_utf_16(path: str | os.PathLike, head: str, encoding: str = "utf-8") -> None:
    if encoding == "utf-8" and head.count("\0") * 4 > len(head):
        raise ValueError(_refusal(path, "no text in UTF-8 (every other byte is 0)", "UTF-16LE"))


def _undecodable(path: str | os.PathLike, error: UnicodeDecodeError, line: int, byte: int) -> ValueError:
    found = f"line {line:,} holds the byte 0x{byte:02x}"
    return ValueError(_refusal(path, f"no text in {error.encoding.upper()} ({found})", "ENCODING"))


def _refusal(path: str | os.PathLike, problem: str, encoding: str) -> str:
    named = ", where ENCODING is what it was written in, such as GBK, SHIFT_JIS or WINDOWS-1252" * (
        encoding == "ENCODING"
    )
    return f"{path} is {problem}; convert it: iconv -f {encoding} -t UTF-8 '{path}' > NEW.txt{named}."
