"""What of the rows' contexts was dropped to fit `max_length`: counted from columns, and said in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from datasets import Dataset

WHETHER, LOST, LEFT = "gateau_truncated", "gateau_num_cut_tokens", "gateau_num_context_tokens"
CUT_COLUMNS = (WHETHER, LOST, LEFT)


@dataclass(frozen=True)
class Cuts:
    """Rows that lost context tokens, from the left, so that a sample has `max_length` tokens.

    Attributes:
        rows, of (`int`): rows that lost some, of so many that were laid out as tokens.
        tokens (`int`): that they lost; None where the data, of an earlier version, do not say.
        before (`int`): context tokens that these rows had before; None likewise.
    """

    rows: int = 0
    of: int = 0
    tokens: int | None = 0
    before: int | None = 0

    def __bool__(self) -> bool:
        return self.rows > 0

    def __add__(self, other: Cuts) -> Cuts:
        """Of both parts of some rows."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__}
        return Cuts(**{name: None if None in pair else sum(pair) for name, pair in pairs.items()})

    @classmethod
    def of_data(cls, data: Dataset | pd.DataFrame | pa.Table) -> Cuts:
        """Of measured rows; of rows that were never measured, none."""
        names = [name for name in CUT_COLUMNS if name in (data.columns if _is_frame(data) else data.column_names)]
        if WHETHER not in names:
            return cls()
        columns = {name: _numbers(data, name) for name in names}
        cut = columns[WHETHER] == 1
        counted = [columns[name][cut] for name in (LOST, LEFT) if name in columns]
        of = int(np.isfinite(columns[WHETHER]).sum())
        if len(counted) < 2 or not all(np.isfinite(x).all() for x in counted):
            return cls(int(cut.sum()), of, None, None) if cut.any() else cls(0, of)
        lost, left = (int(x.sum()) for x in counted)
        return cls(int(cut.sum()), of, lost, lost + left)

    @classmethod
    def of_record(cls, record: Mapping[str, Any] | None) -> Cuts:
        """What `to_record` gave, by this version or another; nothing of nothing."""
        known = {name: value for name, value in (record or {}).items() if name in cls.__dataclass_fields__}
        return cls(**{name: value for name, value in known.items() if value is None or isinstance(value, int)})

    def to_record(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    def told(self) -> str:
        """How many rows lost how much."""
        lost = (
            "part" if self.tokens is None or self.before is None else f"{self.tokens:,} of the {self.before:,} tokens"
        )
        return f"{self.rows:,} of {self.of:,} rows were cut to fit max_length, and lost {lost} of their context"

    def line(self) -> str:
        """The same, and what to do."""
        return f"{self.told()}, from the left: raise max_length, or take a long model with a longer window"


def _is_frame(data: Any) -> bool:
    return not hasattr(data, "column_names")


def _numbers(data: Dataset | pd.DataFrame | pa.Table, name: str) -> np.ndarray:
    """A column as float64, NaN for null."""
    import pyarrow as pa

    if _is_frame(data):
        column = pa.chunked_array([pa.array(data[name], from_pandas=True)])
    elif isinstance(data, pa.Table):
        column = data[name]
    else:
        column = data.select_columns([name]).with_format("arrow")[:][name]
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return column.cast(pa.float64()).to_numpy().astype(float)
