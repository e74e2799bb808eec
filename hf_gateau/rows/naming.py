"""Columns under other names than ours: which of a dataset's columns is meant by each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..settings import did_you_mean
from .conversations import HASHED_COLUMNS


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

OURS = ("id", *HASHED_COLUMNS)


def parse_columns(text: str) -> dict[str, str]:
    """`context=document,response=answer` as a mapping of our names to a dataset's.

    Raises:
        ValueError: a part has no `=`, a name is not ours or named twice, or a column is taken for two.
    """
    mapping: dict[str, str] = {}
    for part in filter(str.strip, text.split(",")):
        ours, equals, theirs = (x.strip() for x in part.partition("="))
        if not (equals and ours and theirs):
            raise ValueError(f"columns has the part {part!r}; give e.g. context=document,response=answer.")
        if ours not in OURS:
            hint = did_you_mean(ours, OURS, f"; ours are {', '.join(OURS)}.")
            raise ValueError(f"columns names {ours!r}, which is no column that is read{hint}")
        if ours in mapping or theirs in mapping.values():
            raise ValueError(f"columns names {ours if ours in mapping else theirs!r} twice; name each column once.")
        mapping[ours] = theirs
    if not mapping:
        raise ValueError(f"columns is {text!r}; give e.g. context=document,response=answer.")
    return mapping


def rename_columns(ds: Dataset | IterableDataset, mapping: Mapping[str, str]) -> Dataset | IterableDataset:
    """A dataset, or a stream, whose columns have our names.

    Args:
        mapping: our name -> the dataset's.

    Raises:
        ValueError: the dataset has no such column, or one of our names beside it that nothing moves away.
    """
    there = list(ds.column_names or next(iter(ds), {}))
    for ours, theirs in mapping.items():
        if theirs not in there:
            hint = did_you_mean(theirs, there, ".")
            raise ValueError(
                f"columns names {theirs!r} for {ours}, and the rows have the columns {', '.join(there)}{hint}"
            )
        if ours in there and ours != theirs and ours not in mapping.values():
            raise ValueError(
                f"columns names {theirs!r} for {ours}, and the rows have a column {ours} already; name that one for another "
                "of ours too, or drop it."
            )
    renamed = {theirs: ours for ours, theirs in mapping.items() if ours != theirs}
    if not renamed:
        return ds
    apart = {theirs: f"gateau renamed {ours}" for theirs, ours in renamed.items()}  # two may have each other's names
    return ds.rename_columns(apart).rename_columns({apart[theirs]: ours for theirs, ours in renamed.items()})
