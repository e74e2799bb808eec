"""The bytes of a file that may be packed, by what it begins with and not by its name."""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

from .texts import encoding_of


GZIP, ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class Unpacked(io.RawIOBase):
    """The bytes of a file, unpacked where it is packed; where that breaks off they end, and `fault` says why.

    Attributes:
        encoding, errors (`str`): how to read them as text.
        fault (`str`): empty where all is well.
    """

    def __init__(self, path: str):
        self.fault = ""
        self._file = open(path, "rb")  # noqa: SIM115
        self._stream = _unpacking(self._file)
        self._head = self._read(4)
        self.encoding = encoding_of(self._head)
        self.errors = "surrogateescape" if self.encoding.startswith("utf-8") else "replace"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._head[: len(buffer)] or self._read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._file.close()
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            return b"" if self.fault else self._stream.read(size)
        except (EOFError, OSError, zlib.error) as error:  # of gzip, and of Arrow's Zstandard
            self.fault = str(error)
            return b""


def _unpacking(file: BinaryIO) -> BinaryIO:
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(GZIP):
        import gzip

        return gzip.GzipFile(fileobj=file)
    if magic == ZSTANDARD:
        import pyarrow as pa

        return pa.CompressedInputStream(file, "zstd")
    return file
