"""How far back rows reach: how many nats of a response come from beyond so many tokens before the context's end.

Shapes: n rows of a dataset, W distances in tokens.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from ..models.packing import Cut
from ..ranking.evidence import BEST, FAR_TOKENS, LONG, NO_CONTEXT, SHORT, token_far_need, token_need
from ..ranking.lists import ListMeasure, Rows
from ..records import find_record, value_kind


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger(__name__)

SEGMENTS, CONTEXT = "gateau_segment_ppl", "gateau_num_context_tokens"
FEWEST_TOKENS, SHORTEST_SHARE = 512, 8  # the first distance; of the longest context, where that is shorter
BATCH_ROWS = 1000
WINDOWS, WINDOW_NLL = "gateau_windows", "gateau_window_nll"
SAME = ("fingerprint", "adapter", "dtype", "bits", "response_head", "max_length")  # of records of windows and of rows
ENDS = "segment_end"  # of each token's best far segment, in tokens before the context's end


def distances(lengths: np.ndarray) -> list[int]:
    """Powers of two below the longest context, from 512; from an eighth of it where that is shorter."""
    longest = int(np.nanmax(lengths, initial=0))
    first = min(FEWEST_TOKENS, longest // SHORTEST_SHARE)
    powers = [2**power for power in range(longest.bit_length())]
    return [power for power in powers if first <= power < longest]


def has_own_windows(ds: Dataset) -> bool:
    """Whether nested windows were measured by the model, and on the tokens, that the rows were; a warning where their records say
    that they were not."""
    windows, measuring = find_record(ds, value_kind(WINDOW_NLL)), find_record(ds, "measuring")
    if windows is None or measuring is None:
        return True
    own = {**measuring, **(measuring.get("long") or {})}
    other = [name for name in SAME if name in windows and windows[name] != own.get(name)]
    if other:
        logger.warning(
            "Nested windows were measured otherwise than the rows (%s), and tell nothing of how far back these reach; "
            "`hf-gateau score --windows` measures them anew.", ", ".join(other),
        )  # fmt: skip
    return not other


def reach_of_windows(ds: Dataset, tau: float) -> tuple[list[int], np.ndarray] | None:
    """Nats of every row's response that are lost when the long model sees so many of the context's last tokens and no more; see
    `token_need`, whose short sibling is the long model itself here.

    Args:
        ds: with raw columns, and those of `WindowScorer`.
        tau: nats of a token that are not counted.

    Returns:
        W windows in tokens, and (n, W) float64: 0 where a window is as long as the row's context, NaN where it was not measured;
        None where no row's were.
    """
    columns = (WINDOWS, WINDOW_NLL, LONG, NO_CONTEXT)
    if not {*columns, CONTEXT} <= set(ds.column_names):
        return None
    parts = []
    for table in ds.select_columns([*columns, CONTEXT]).with_format("arrow").iter(BATCH_ROWS):
        lengths = table[CONTEXT].cast("float64").to_numpy()
        parts.append((*_beyond_windows({name: _values(table[name]) for name in columns}, tau), lengths))
    windows = sorted({int(size) for _, sizes, *_ in parts for size in sizes})
    if not windows:
        return None
    found = []
    for row, sizes, nats, is_known, lengths in parts:
        shows_all = is_known[:, None] & (lengths[:, None] <= windows)
        found.append(np.where(shows_all, 0.0, np.nan))
        found[-1][row, np.searchsorted(windows, sizes)] = nats
    return windows, np.concatenate(found)


def _beyond_windows(lists, tau: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each window of each row: which row, how long, and the nats that are beyond it; and which rows are known."""
    counts = {name: sizes for name, (_, sizes, _) in lists.items()}
    is_known = (counts[LONG] > 0) & ~np.any([null for _, _, null in lists.values()], axis=0)
    is_known &= (counts[NO_CONTEXT] == counts[LONG]) & (counts[WINDOW_NLL] == counts[WINDOWS] * counts[LONG])
    num_windows = np.where(is_known, counts[WINDOWS], 0)
    row = np.repeat(np.arange(len(is_known)), num_windows)
    nth, tokens = Rows(num_windows).position, Rows(counts[LONG][row])

    def values(name: str, begin: np.ndarray | int = 0) -> np.ndarray:
        """What a column has of the tokens of each window."""
        return lists[name][0][tokens.spread(Rows(counts[name]).starts[row] + begin) + tokens.position]

    sizes = lists[WINDOWS][0][Rows(counts[WINDOWS]).starts[row] + nth]
    short = values(WINDOW_NLL, nth * counts[LONG][row])
    need = token_need({SHORT: short, NO_CONTEXT: values(NO_CONTEXT), LONG: values(LONG)}, tau)
    return row, sizes, tokens.sum(need) if len(row) else np.zeros(0), is_known


def reach_of_segments(ds: Dataset, beyond: list[int], tau: float, cut: Cut | None) -> np.ndarray | None:
    """Nats of every row's response that a far segment alone tells which ends so many tokens or more before the context's end,
    each token by the far segment that tells it best; see `token_far_need`.

    Args:
        ds: with raw columns.
        beyond: W distances in tokens.
        tau: nats of a token that are not counted.
        cut: how contexts were cut into segments, see `segments.cut_of`.

    Returns:
        (n, W) float64, NaN for rows whose far segments were not measured; None where no row's were.
    """
    columns = (*FAR_TOKENS, BEST)
    if not {*columns, SEGMENTS, CONTEXT} <= set(ds.column_names):
        return None
    measures = [ListMeasure((*columns, ENDS), _beyond(distance), optional=(*columns[2:], ENDS)) for distance in beyond]
    parts = []
    for table in ds.select_columns([*columns, SEGMENTS, CONTEXT]).with_format("arrow").iter(BATCH_ROWS):
        lists = {name: _values(table[name]) for name in columns}
        lists[ENDS] = _ends(lists[BEST], _values(table[SEGMENTS])[1], table[CONTEXT], cut)
        parts.append(np.stack([measure(lists, tau)[0] for measure in measures], axis=1))
    found = np.concatenate(parts)
    return None if np.isnan(found).all() else found


def _beyond(distance: int):
    def measure(x, rows: Rows, tau: float) -> np.ndarray:
        return rows.sum(np.where(x[ENDS] >= distance, token_far_need(x, tau), 0.0))

    return measure


def _ends(best, num_segments: np.ndarray, lengths: pa.ChunkedArray, cut: Cut | None):
    """Where each token's best far segment ends, in tokens before the context's end; of a row that was not cut as `cut` says, as if
    its segments were equally long."""
    places, sizes, null = best
    rows = Rows(sizes)
    context = lengths.cast("float64").to_numpy()
    each = context / np.maximum(num_segments, 1)
    first, step = np.zeros(len(sizes)), np.ones(len(sizes))
    if cut is not None:
        every = np.ceil(context / cut.length)
        begin = np.mod(every - 1, cut.stride)
        is_cut_so = np.ceil((every - begin) / cut.stride) == num_segments
        each = np.where(is_cut_so, cut.length, each)
        first, step = (np.where(is_cut_so, x, y) for x, y in ((begin, first), (cut.stride, step)))
    number = rows.spread(first) + places * rows.spread(step)
    ends = np.minimum((number + 1) * rows.spread(each), rows.spread(context))
    return rows.spread(context) - ends, sizes, null


def _values(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of all lists, null as NaN; list lengths, 0 for null; which are null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = column.cast(pa.large_list(pa.float64())).combine_chunks()
    sizes = pc.list_value_length(array).fill_null(0).to_numpy()
    return array.flatten().to_numpy(zero_copy_only=False), sizes, array.is_null().to_numpy(zero_copy_only=False)
