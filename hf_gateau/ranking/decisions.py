"""What a person decided of rows, kept in a CSV file: `gateau_key`, `decision` (keep, drop, or empty) and `note`.

A decision is about what a row says, so of its key, SETTINGS:ROW, the part after the colon counts: rows measured anew with another
window, in another arithmetic or by another pair of the same tokenizer keep their decisions, and every copy of a row has them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.csv_files import numbered_rows
from ..files.finding import kind_of
from ..markdown import public_name
from ..records import column_of


if TYPE_CHECKING:
    from datasets import Dataset

KEY, DECISION, NOTE = "gateau_key", "decision", "note"  # columns of the file; others are left alone
KEEP, DROP = "keep", "drop"
EXAMPLE = f"{KEY},{DECISION},{NOTE}"


@dataclass(frozen=True)
class Decisions:
    """What a file says.

    Attributes:
        file (`str`): its name, without the folders that lead to it.
        keep, drop (`frozenset[str]`): of the keys of these rows the part after the colon, see `content_of`.
    """

    file: str
    keep: frozenset[str]
    drop: frozenset[str]

    @cached_property
    def digest(self) -> str:
        """Of what is kept and dropped, whatever the order and the notes; 16 hex digits."""
        return hashlib.sha256(json.dumps([sorted(self.keep), sorted(self.drop)]).encode()).hexdigest()[:16]

    def places(self, contents: list[str | None]) -> tuple[list[int], list[int]]:
        """Positions of the rows to keep, and of those to drop, among rows of such content."""
        kept, dropped = ([i for i, x in enumerate(contents) if x in part] for part in (self.keep, self.drop))
        return kept, dropped

    def num_unknown(self, contents: Iterable[str | None]) -> int:
        """How many decisions are of rows with none of these contents.

        Raises:
            ValueError: all of them.
        """
        decided = self.keep | self.drop
        unknown = decided.difference(contents)
        if decided and len(unknown) == len(decided):
            raise ValueError(
                f"None of the {len(decided):,} decisions in {self.file!r} is about a row of these data: no {KEY} ends in what "
                f"those of the file do, such as {min(decided)!r}. Other rows, another tokenizer and another max_length have other keys; "
                "give the decisions that were made on these rows."
            )
        return len(unknown)


def read_decisions(path: str | os.PathLike) -> Decisions:
    """Read a .csv or .tsv file of decisions, in UTF-8 or with a byte order mark, as spreadsheets write them too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has not the columns, or a line is not as it must be; the message names the line.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file of decisions {str(path)!r}; give a .csv file with the columns {EXAMPLE}."
        )
    if kind_of(str(path)) not in ("csv", "tsv"):
        raise ValueError(f"{str(path)!r} is no .csv or .tsv file; give one of decisions, with the columns {EXAMPLE}.")
    found: dict[str, tuple[str, int]] = {}  # content -> what was decided, and in which line
    for line, row in numbered_rows(str(path), (KEY, DECISION)):
        key, decision = row[KEY].strip(), row[DECISION].strip().lower()
        where = f"{path}, line {line:,}"
        if not key and any(value.strip() for value in row.values()):
            raise ValueError(f"{where} has no {KEY}; copy that of the row which it is about, or delete the line.")
        if decision not in (KEEP, DROP, ""):
            raise ValueError(
                f"{where}: the decision {row[DECISION]!r} is not known; use {KEEP}, {DROP}, or nothing for a note alone."
            )
        earlier, first = found.setdefault(content_of(key), (decision, line)) if decision else (decision, line)
        if earlier != decision:
            raise ValueError(
                f"{where}: {key} is to {decision} here, and line {first:,} says {earlier} of a row with the same content; leave "
                "one of them."
            )
    parts = (frozenset(x for x, (decision, _) in found.items() if decision == wanted) for wanted in (KEEP, DROP))
    return Decisions(public_name(str(path)), *parts)


def content_of(key: str | None) -> str | None:
    """The part of a `gateau_key` that stands for what the row says, as it is measured."""
    return None if key is None else key.rpartition(":")[2]


def contents_of(ds: Dataset) -> list[str | None]:
    """That part of the key of every row; None for a row that has no key, as one that could not be read.

    Raises:
        ValueError: rows without keys.
    """
    check_keys(ds)
    return [content_of(key) for key in column_of(ds, KEY)]


def contents_of_all(splits: Iterable[Dataset]) -> set[str | None]:
    """Those of the rows of several splits together."""
    return {content for part in splits for content in contents_of(part)}


def check_keys(ds: Any) -> None:
    """Let only rows pass that can be found by their keys; a stream may not know its columns yet."""
    if ds.column_names is not None and KEY not in ds.column_names:
        raise ValueError(
            f"Decisions are found by the column {KEY}, and the rows have {ds.column_names}. Measure them first, with `hf-gateau score` "
            "or ds.map(gateau_score, batched=True), or leave the decisions out."
        )
