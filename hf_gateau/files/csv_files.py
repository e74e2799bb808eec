"""CSV and TSV files: which columns they have, and how the reader of `datasets` is to take them.

They know no types, so every cell is text, as it stands there, and an empty one is null.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .texts import check_encoding, encoding_of


if TYPE_CHECKING:
    from datasets import Features

SEPARATORS = (",", ";", "\t", "|")  # of files that are called .csv; the first that parts the first line
ROWS_A_CHUNK = 200  # in memory at once: each may be a book
LONGEST_CELL = 1 << 30  # characters; the first row of a file without a header may be a book


def header_of(file: str) -> tuple[list[str], str]:
    """The names of a file's columns, and what separates them.

    Raises:
        ValueError: the file begins with what is no text in its encoding.
    """
    csv.field_size_limit(LONGEST_CELL)
    separators = SEPARATORS if ".csv" in file.lower() else ("\t",)
    for separator in separators:
        with _opened(file) as stream:
            try:
                names = next((row for row in csv.reader(stream, delimiter=separator) if row), [])
            except UnicodeDecodeError:
                check_encoding(file)
                raise
        if len(names) > 1:
            return names, separator
    return names, separators[0]


def numbered_rows(file: str, needed: Iterable[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a small file, each with the number of the line that it begins in; an empty line is no row.

    Args:
        file: a path.
        needed: columns that it must have.

    Raises:
        ValueError: the file is no text in its encoding, lacks a column, has one twice, or a row has more cells than columns.
    """
    check_encoding(file)
    names, separator = header_of(file)
    _check_names(file, names)
    if missing := [name for name in needed if name not in names]:
        raise ValueError(
            f"{file!r} has no column {missing[0]}, but {', '.join(names)}; its first line names the columns."
        )
    with _opened(file) as stream:
        reader, begins, is_header = csv.reader(stream, delimiter=separator, strict=True), 1, True
        try:
            for cells in reader:
                if len(cells) > len(names):
                    raise ValueError(
                        f"{file}, line {begins:,} has {len(cells)} cells, and there are {len(names)} columns; put a text that "
                        f"holds {separator!r} in double quotes."
                    )
                if cells and not is_header:
                    yield begins, dict.fromkeys(names, "") | dict(zip(names, cells, strict=False))
                is_header, begins = is_header and not cells, reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{file}, line {begins:,} cannot be read as CSV: {error}.") from error


def reading_options(files: list[str]) -> dict[str, Any]:
    """What the reader of `datasets` is told for files of one header.

    Raises:
        ValueError: a file is no text in its encoding (the message names its line), or has other columns than the first.
    """

    found = {}
    for file in files:
        check_encoding(file)
        found[file] = (*header_of(file), _encoding(file))
    (first, (names, separator, encoding)), *others = found.items()
    for file, (other_names, *other_form) in others:
        if sorted(other_names) != sorted(names):
            raise ValueError(
                f"{file!r} has the columns {', '.join(other_names)}, and {first!r} has {', '.join(names)}; give files of the "
                "same columns."
            )
        if other_form != [separator, encoding]:
            raise ValueError(
                f"{file!r} and {first!r} differ in encoding or separator ({other_form[1]}, {other_form[0]!r}; {encoding}, "
                f"{separator!r}); convert one of them."
            )
    _check_names(first, names)
    return {
        "features": _all_texts(names),
        "sep": separator,
        "encoding": encoding,
        "chunksize": ROWS_A_CHUNK,
        "keep_default_na": False,  # an answer may be "None" or "NA"
        "na_values": [""],
    }


def _check_names(file: str, names: list[str]) -> None:
    if not names:
        raise ValueError(f"{file!r} is empty; its first line names the columns.")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{file!r} has more than one column {repeated[0]!r}; rename one of them.")


def _all_texts(names: list[str]) -> Features:
    from datasets import Features, Value

    return Features({name: Value("string") for name in names})


def _opened(file: str):
    opener = gzip.open if file.lower().endswith(".gz") else open
    return opener(file, "rt", encoding=_encoding(file), newline="")


def _encoding(file: str) -> str:
    with (gzip.open if file.lower().endswith(".gz") else open)(file, "rb") as stream:
        return encoding_of(stream.read(4))
