"""What tells one file of weights from another, in a fraction of the time that reading it takes.

A small file is read whole. Of a large one the table of its tensors is read, and some bytes of every tensor, the small ones
whole: whatever changes a tensor as a whole (training, merging, rounding, another checkpoint) is seen, and a change to a few
elements of a large one may not be.
"""

import hashlib
import json
import mmap
import os
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple


WHOLE_BYTES = 16 << 20  # of a file that is read whole
BLOCK_BYTES = 4 << 10
BLOCKS_A_FILE = 4096  # about; a read each, and a tenth of a millisecond or less
LEAST_BLOCKS, MOST_BLOCKS = 3, 16  # of a tensor
MOST_HEADER_BYTES = 100 << 20  # as safetensors has it
COARSE_CLOCK = 2.0  # seconds: a file may be written twice in one tick of its disk's clock

# What parsing a damaged file ends in
DAMAGED = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error, zipfile.BadZipFile
)  # fmt: skip

_digests: dict[tuple, str] = {}


class Span(NamedTuple):
    """Bytes of a file."""

    start: int
    size: int


class Table(NamedTuple):
    """Where things stand in a file of tensors: what tells of them, to be read whole, and each tensor's own bytes."""

    heads: list[Span]
    tensors: list[Span]


def file_digest(path: Path) -> str:
    """What tells a file from others, 32 hexadecimal digits; the same in every process, whatever the file is called.

    A process reads a file once, as long as its place, size and times stay.

    Raises:
        OSError: the file cannot be read.
    """
    identity, now = _identity(path), time.time()
    if identity not in _digests:
        with path.open("rb", buffering=0) as stream:
            digest = hashlib.sha256(b"".join(_telling_bytes(stream, identity[2]))).hexdigest()[:32]
        if now - path.stat().st_mtime < COARSE_CLOCK or _identity(path) != identity:
            return digest  # being written, perhaps
        _digests[identity] = digest
    return _digests[identity]


def _identity(path: Path) -> tuple:
    found = path.stat()
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _telling_bytes(stream: BinaryIO, size: int) -> Iterator[bytes]:
    yield b"%d\n" % size
    if size <= WHOLE_BYTES:
        yield stream.read()
        return
    table = _table(stream, size)
    for span in table.heads:
        yield from _read(stream, span.start, span.size)
    most = BLOCKS_A_FILE if len(table.tensors) == 1 else MOST_BLOCKS
    blocks = min(most, max(LEAST_BLOCKS, BLOCKS_A_FILE // max(1, len(table.tensors))))
    for span in table.tensors:
        yield from _sampled(stream, span, blocks)


def _sampled(stream: BinaryIO, span: Span, blocks: int) -> Iterator[bytes]:
    """Bytes of a span: evenly spaced blocks, the first and the last among them, or all where they are few."""
    if span.size <= blocks * BLOCK_BYTES:
        yield from _read(stream, span.start, span.size)
        return
    for i in range(blocks):
        yield from _read(stream, span.start + i * (span.size - BLOCK_BYTES) // (blocks - 1), BLOCK_BYTES)


def _read(stream: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    stream.seek(start)
    while size > 0 and (found := stream.read(size)):  # one call may give less than was asked for
        yield found
        size -= len(found)


def _table(stream: BinaryIO, size: int) -> Table:
    """By the file's own beginning, whatever its name; a form that is not known, or damaged, is one span of bytes."""
    stream.seek(0)
    start = stream.read(8)
    try:
        if start[:4] == b"GGUF":
            return _gguf(stream, size)
        return _torch(stream) if start[:2] == b"PK" else _safetensors(stream, size, struct.unpack("<Q", start)[0])
    except DAMAGED:
        return Table([], [Span(0, size)])


def _safetensors(stream: BinaryIO, size: int, header_bytes: int) -> Table:
    """An 8-byte length, a JSON header of that length with every tensor's place behind it, the tensors."""
    head = 8 + header_bytes
    if head > min(size, MOST_HEADER_BYTES):
        raise ValueError("no safetensors file")
    header = json.loads(b"".join(_read(stream, 8, header_bytes)))
    places = sorted(tuple(about["data_offsets"]) for name, about in header.items() if name != "__metadata__")
    return Table([Span(0, head)], [Span(head + begin, end - begin) for begin, end in places])


def _torch(stream: BinaryIO) -> Table:
    """A zip archive with every tensor's bytes in a file NAME/data/N, not compressed."""
    heads, tensors = [], []
    with zipfile.ZipFile(stream) as archive:
        directory = archive.start_dir
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    for entry in entries:
        header = b"".join(_read(stream, entry.header_offset, 30))
        name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
        span = Span(entry.header_offset + 30 + name_bytes + extra_bytes, entry.compress_size)
        (tensors if entry.filename.rpartition("/")[0].endswith("/data") else heads).append(span)
    stream.seek(0, os.SEEK_END)
    return Table([*heads, Span(directory, stream.tell() - directory)], tensors)  # the directory has checksums, mostly


# GGUF's types of metadata: number -> bytes of a value; 8 is a string, 9 an array
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def _gguf(stream: BinaryIO, size: int) -> Table:
    """Metadata, the tokenizer among them, a table of tensors, and aligned behind it the tensors (versions 2 and 3)."""
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Gguf(data)
        if reader.number("I") not in (2, 3):
            raise ValueError("a version of GGUF that is not known")
        num_tensors, num_values, alignment = reader.number("Q"), reader.number("Q"), 32
        for _ in range(num_values):
            key, kind = reader.string(), reader.number("I")
            if key == b"general.alignment":
                alignment = struct.unpack_from("<I", data, reader.at)[0]
            reader.skip(kind)
        offsets = [reader.tensor() for _ in range(num_tensors)]
        begin = -(-reader.at // alignment) * alignment
    places = sorted({begin + offset for offset in offsets})
    if not places or places[-1] > size:
        raise ValueError("no tensors")
    return Table([Span(0, begin)], [Span(a, b - a) for a, b in zip(places, [*places[1:], size], strict=True)])


class _Gguf:
    """Reads one thing after the other."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 4

    def number(self, kind: str) -> int:
        [value] = struct.unpack_from(f"<{kind}", self.data, self.at)
        self.at += struct.calcsize(kind)
        return value

    def string(self) -> bytes:
        size = self.number("Q")
        self.at += size
        return self.data[self.at - size : self.at]

    def skip(self, kind: int) -> None:
        """Pass a value over."""
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            kind, length = self.number("I"), self.number("Q")
            if kind in _SIZES:
                self.at += length * _SIZES[kind]
            else:
                for _ in range(length):
                    self.skip(kind)
        else:
            self.at += _SIZES[kind]

    def tensor(self) -> int:
        """Pass an entry of the table over; returns where its tensor begins, behind the table."""
        self.string()
        num_dimensions = self.number("I")
        self.at += 8 * num_dimensions + 4
        return self.number("Q")
