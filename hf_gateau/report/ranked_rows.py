"""The rows of a dataset that have a rank: columns of one number a row, and where each row is from.

Segments and texts, which can be long, are not read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ranking.order import check_ranked, ranking_record
from .texts import shortened


if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

TOP = 0.1  # the fraction that is marked, counted and compared
NUMBERS = (
    "rank",
    "score",
    "hmp",
    "cas",
    "ppl_short",
    "ppl_long",
    "ppl_no_context",
    "num_context_tokens",
    "num_response_tokens",
)
SOURCE_COLUMNS = ("source", "dataset", "kind", "category")  # tried in this order
MAX_SOURCES = 20
SOURCE = "source"  # column of the frame


@dataclass(frozen=True)
class RankedRows:
    """Shapes: n rows that have a rank, in the order of the data.

    Attributes:
        frame: (n,) `NUMBERS` as floats, `gateau_key` and `source`, each if it is there.
        num_unranked (`int`): rows that were left out.
        record (`dict`): see `ranking_record`; None where there is none.
        source (`str`): the column of the data that sources are from; None where there is none.
    """

    frame: pd.DataFrame
    num_unranked: int
    record: dict | None
    source: str | None

    @property
    def num_top(self) -> int:
        return num_kept_of(TOP, len(self.frame))

    @property
    def top(self) -> np.ndarray:
        """(n,) bool, the best tenth."""
        return best_rows(self.frame["gateau_rank"].to_numpy(), self.num_top)

    @property
    def counted(self) -> str:
        """How many rows, in words."""
        rest = f" ({self.num_unranked:,} without a rank are left out)" if self.num_unranked else ""
        return f"{len(self.frame):,} ranked rows{rest}"

    def numbers(self, name: str) -> np.ndarray | None:
        """A column, null as NaN; None where it is missing, or has fewer than two different values."""
        column = f"gateau_{name}"
        there = column in self.frame and self.frame[column].nunique() > 1
        return self.frame[column].to_numpy() if there else None


def num_kept_of(fraction: float, num_rows: int) -> int:
    """As many rows as `select` keeps, but at least one."""
    return max(1, round(fraction * num_rows))


def best_rows(ranks: np.ndarray, num_kept: int) -> np.ndarray:
    """Which rows have the lowest ranks; NaN is no rank."""
    best = np.zeros(len(ranks), dtype=bool)
    best[np.argsort(ranks)[:num_kept]] = True
    return best & ~np.isnan(ranks)


def read_ranked(ds: Dataset, source_column: str | None) -> RankedRows:
    """Read the columns; `source_column` is that of `figures`, as are the errors."""
    import datasets

    if not isinstance(ds, datasets.Dataset):
        raise TypeError(f"Figures are of one ranked Dataset, got {type(ds).__name__}; give one split, as a Dataset.")
    check_ranked(ds)
    names = [name for name in (f"gateau_{name}" for name in NUMBERS) if name in ds.column_names]
    keys = ["gateau_key"] if "gateau_key" in ds.column_names else []
    frame = ds.select_columns(names + keys).with_format("pandas")[:]
    frame[names] = frame[names].astype(float)
    ranked = frame["gateau_rank"].notna()
    if not ranked.any():
        raise ValueError(f"None of the {len(ds)} rows has a rank; the column gateau_note says why.")
    source, labels = _find_source(ds, source_column)
    frame = (frame if source is None else frame.assign(**{SOURCE: labels}))[ranked].reset_index(drop=True)
    if frame["gateau_rank"].duplicated().any():
        raise ValueError(
            "Rows share a rank: parts were ranked apart and put together. Rank the whole, with `hf-gateau rank` or rank(ds)."
        )
    return RankedRows(frame, int((~ranked).sum()), ranking_record(ds), source)


def _find_source(ds: Dataset, source_column: str | None) -> tuple[str | None, list[str]]:
    """The column that says where rows are from, and a short text a row; None where the data do not say."""
    if source_column is not None and source_column not in ds.column_names:
        raise ValueError(f"There is no column {source_column!r} to show sources by; the data have {ds.column_names}.")
    names = SOURCE_COLUMNS if source_column is None else (source_column,)
    for name in (name for name in names if name in ds.column_names):
        labels, found = [], set()
        for batch in ds.select_columns([name]).with_format(None).iter(100):  # in case it is a column of long texts
            labels += [_label(value) for value in batch[name]]
            found |= set(labels[-len(batch[name]) :])
            if len(found) > MAX_SOURCES and source_column is None:
                break
        if source_column is not None or 2 <= len(found) <= MAX_SOURCES:
            return name, labels
    return None, []


def _label(value: Any) -> str:
    """A short name; SVG holds no control characters."""
    text = "".join(x for x in shortened(str(value), 24) if x.isprintable())
    return "(none)" if value is None else text or "(empty)"


def source_groups(rows: RankedRows) -> dict[str, np.ndarray]:
    """Source -> which rows are from it, the largest first; the smallest together where there are more than 20."""
    labels = rows.frame[SOURCE].to_numpy()
    common = [name for name, _ in Counter(labels).most_common()]
    num_shown = len(common) if len(common) <= MAX_SOURCES else MAX_SOURCES - 1
    groups = {name: labels == name for name in common[:num_shown]}
    if rest := common[num_shown:]:
        groups[f"{len(rest):,} others"] = np.isin(labels, rest)
    return groups


def length_ranges(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """From a power of two to below the next -> which rows; rows of unknown length are in none."""
    power = np.where(np.isnan(lengths), -1, np.frexp(lengths)[1])
    masks = {(2 ** int(p) // 2, 2 ** int(p) - 1): power == p for p in np.unique(power) if p >= 0}
    return {f"{low:,} to {high:,}" if low < high else f"{low:,}": mask for (low, high), mask in masks.items()}
