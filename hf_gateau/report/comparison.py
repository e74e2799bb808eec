"""Two rankings of the same rows, or of two measurings of them, side by side: how far the order moved, and which rows with it.

Shapes: n rows that both have a rank for. A row's place is its rank among these, 1 for the best; where both sides rank the same
rows, it is the rank. The arithmetic is on places, so scores of two modes or two pairs need no common scale.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..markdown import public_name
from ..ranking.decisions import contents_of
from ..ranking.formulas import METHOD_SETTINGS
from ..ranking.order import check_ranked, ranking_record
from ..records import column_of, find_record
from .provenance import data_name, ways_measured
from .ranked_rows import num_kept_of
from .texts import sample_texts, shortened


if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

SIDES = ("a", "b")
FRACTIONS = (0.1, 0.3, 0.5)  # the paper's shares
TERMS = ("hmp", "cas", "need")
RANKED_BY = ("method", "mode", "hmp", "cas", "combine", "alpha", "tau", *METHOD_SETTINGS, "seed", "version")
KEYS = ("gateau_content_hash", "gateau_key")  # what tells which rows are the same, the first that does
SMALL = 128  # as many numbers are counted at once
NUM_ROWS, TEXT_WIDTH = 10, 80


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        name (`str`): as the caller calls it.
        num_rows, num_ranked (`int`): all of its rows, and those with a rank.
        num_alone (`int`): rows that the other has not.
        num_ranked_alone (`int`): rows of both that it alone has a rank for.
    """

    name: str
    num_rows: int
    num_ranked: int
    num_alone: int
    num_ranked_alone: int


@dataclass(frozen=True)
class Overlap:
    """The best of both.

    Attributes:
        fraction (`float`): share of the n rows.
        num_top, num_both (`int`): so many rows are the best of each, and of these so many are among the best of both.
        jaccard (`float`): rows of both over rows of either.
    """

    fraction: float
    num_top: int
    num_both: int
    jaccard: float


@dataclass(frozen=True)
class Moved:
    """A row, and where it stands in A and in B.

    Attributes:
        position (`dict`): side -> row of its data, counted from 0.
        rank (`dict`): side -> `gateau_rank`.
        place (`dict`): side -> place among the n rows.
        terms (`dict`): term (see `TERMS`) -> side -> place by this term, the highest first; ties have their mean, and
            None is where a side does not know it.
        text (`str`): its instruction and response, in a line.
    """

    position: dict[str, int]
    rank: dict[str, int]
    place: dict[str, int]
    terms: dict[str, dict[str, float | None]]
    text: str

    @property
    def most(self) -> str | None:
        """The term whose place moved most; None where none did."""
        moved = {x: abs(y["b"] - y["a"]) for x, y in self.terms.items() if None not in y.values()}
        return max(moved, key=moved.get) if any(moved.values()) else None


@dataclass(frozen=True)
class Comparison:
    """What two rankings have in common, and what not.

    Attributes:
        a, b (`Side`): the two.
        matched_by (`str`): the column that tells which rows are the same.
        num_common (`int`): rows that both have; of those that say the same, the first in A is the first in B, and so on.
        frame: (n,) a row for each row that both have a rank for, in A's order: `position_`, `rank_` and `place_` of `a` and
            `b`; for each of `TERMS` its value (`hmp_a`) and its place (`hmp_place_a`), NaN where a side does not know it.
            `need` is in nats a token: how much likelier the response is for the long model than for the short sibling.
        spearman, kendall (`float`): correlation of the two orders, 1 for the same and -1 for the opposite; None for fewer than
            two rows.
        overlaps (`list[Overlap]`): the best 10, 30 and 50%.
        different (`dict`): how they were measured and ranked, where that differs: name -> side -> value, as text.
        moved (`list[Moved]`): the rows whose place moved most.
    """

    a: Side
    b: Side
    matched_by: str
    num_common: int
    frame: pd.DataFrame
    spearman: float | None
    kendall: float | None
    overlaps: list[Overlap]
    different: dict[str, dict[str, str]]
    moved: list[Moved]

    def to_dict(self) -> dict[str, Any]:
        """All but the frame, as plain JSON."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "frame"}
        found |= {"a": asdict(self.a), "b": asdict(self.b), "num_compared": len(self.frame)}
        moved = [asdict(row) | {"most": row.most} for row in self.moved]
        return found | {"overlaps": [asdict(x) for x in self.overlaps], "moved": moved}


def compare(a: Dataset, b: Dataset, *, names: tuple[str, str] = ("A", "B"), num_rows: int = NUM_ROWS) -> Comparison:
    """Compare two rankings of the same rows, or of two measurings of them; see `Comparison`.

    Args:
        a, b: ranked rows (`rank`), in any order; rows that one of them alone has are counted, and left out.
        names: what they are called.
        num_rows (`int`): how many of the rows that moved most are told.

    Raises:
        TypeError: one is no `Dataset`.
        ValueError: rows that are not ranked, or ranked in parts, or that are not the same.
    """
    import pandas as pd

    sides = {"a": a, "b": b}
    for name, ds in zip(names, sides.values(), strict=True):
        _check(ds, name)
    matched_by, pairs = _pairs(a, b)
    ranks = {side: np.array(column_of(ds, "gateau_rank"), dtype=float) for side, ds in sides.items()}
    where = dict(zip(SIDES, np.array(pairs, dtype=int).T, strict=True))
    is_ranked = {side: ~np.isnan(ranks[side][where[side]]) for side in SIDES}
    both = is_ranked["a"] & is_ranked["b"]
    if not both.any():
        raise ValueError(f"No row has a rank in both {names[0]} and {names[1]}, so nothing can be compared.")
    columns: dict[str, np.ndarray] = {}
    for side, ds in sides.items():
        columns |= {f"{name}_{side}": x for name, x in _columns(ds, ranks[side], where[side][both]).items()}
    frame = pd.DataFrame(columns)
    found = [
        Side(
            name,
            len(ds),
            int((~np.isnan(ranks[side])).sum()),
            len(ds) - len(pairs),
            int((is_ranked[side] & ~both).sum()),
        )
        for name, (side, ds) in zip(names, sides.items(), strict=True)
    ]
    places = [frame[f"place_{side}"].to_numpy() for side in SIDES]
    return Comparison(
        *found,
        matched_by=matched_by,
        num_common=len(pairs),
        frame=frame,
        spearman=spearman(*places),
        kendall=kendall(*places),
        overlaps=[overlap(*places, fraction) for fraction in FRACTIONS],
        different=_different(*(settings_of(ds) for ds in sides.values())),
        moved=list(_moved(frame, a, num_rows)),
    )


# Which rows are the same


def _check(ds: Any, name: str) -> None:
    import datasets

    if not isinstance(ds, datasets.Dataset):
        raise TypeError(f"{name} is a {type(ds).__name__}; compare takes one split of ranked rows, a Dataset.")
    check_ranked(ds)
    ranks = [rank for rank in column_of(ds, "gateau_rank") if rank is not None]
    if len(set(ranks)) < len(ranks):
        raise ValueError(
            f"Rows of {name} share a rank: parts were ranked apart and put together. Rank the whole, with `hf-gateau rank` or "
            "rank(ds)."
        )


def _pairs(a: Dataset, b: Dataset) -> tuple[str, list[tuple[int, int]]]:
    """The column that tells which rows are the same, and the positions of each row in both, in A's order."""
    known = [name for name in KEYS if name in a.column_names and name in b.column_names]
    for name in known:
        read = contents_of if name == "gateau_key" else lambda ds, name=name: column_of(ds, name)
        places = {x: i for i, x in enumerate(_numbered(read(b))) if x is not None}
        if pairs := [(i, places[x]) for i, x in enumerate(_numbered(read(a))) if x in places]:
            return name, pairs
    if not known:
        raise ValueError(
            f"Nothing tells which rows are the same: compare needs {' or '.join(KEYS)} on both sides, which `hf-gateau score` gives "
            f"them. The columns are {a.column_names} and {b.column_names}."
        )
    raise ValueError(
        f"No row of one is in the other, by {' and '.join(known)}; compare two rankings, or two measurings, of the same rows."
    )


def _numbered(contents: list[str | None]) -> list[tuple[str, int] | None]:
    """Each content with how often it came before, so that copies of a row have partners too."""
    counts: Counter = Counter()
    found: list[tuple[str, int] | None] = []
    for content in contents:
        found.append(None if content is None else (content, counts[content]))
        counts[content] += 1
    return found


# Numbers of the rows


def _columns(ds: Dataset, ranks: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
    """What one side knows of the n rows."""
    import pandas as pd

    found = {"position": positions, "rank": ranks[positions].astype(int)}
    found["place"] = np.argsort(np.argsort(found["rank"])) + 1
    for name, values in _terms(ds).items():
        found[name] = values[positions]
        found[f"{name}_place"] = pd.Series(-values[positions]).rank().to_numpy()  # NaN stays NaN
    return found


def _terms(ds: Dataset) -> dict[str, np.ndarray]:
    """One value a row for each of `TERMS`."""

    def column(name: str) -> np.ndarray:
        there = name in ds.column_names
        return np.array(column_of(ds, name), dtype=float) if there else np.full(len(ds), np.nan)

    with np.errstate(all="ignore"):
        need = np.log(column("gateau_ppl_short")) - np.log(column("gateau_ppl_long"))
    found = {"hmp": column("gateau_hmp"), "cas": column("gateau_cas"), "need": need}
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in found.items()}


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Correlation of two orders of n rows, by their (n,) places, of which none are tied; None for fewer than two."""
    n = len(a)
    return 1 - 6 * float(((a - b).astype(float) ** 2).sum()) / (n * (n * n - 1)) if n > 1 else None


def kendall(a: np.ndarray, b: np.ndarray) -> float | None:
    """Share of the pairs of rows that both have in the same order, minus that of the others; likewise."""
    n = len(a)
    return 1 - 4 * _inversions(b[np.argsort(a)]) / (n * (n - 1)) if n > 1 else None


def _inversions(order: np.ndarray) -> int:
    """Pairs of which the larger comes first."""
    if len(order) <= SMALL:
        return int(np.triu(order[:, None] > order[None]).sum())
    left, right = order[: len(order) // 2], order[len(order) // 2 :]
    across = len(left) - np.searchsorted(np.sort(left), right)
    return int(across.sum()) + _inversions(left) + _inversions(right)


def overlap(a: np.ndarray, b: np.ndarray, fraction: float) -> Overlap:
    """The best of two orders, by their (n,) places; at least one row of each."""
    num_top = num_kept_of(fraction, len(a))
    num_both = int(((a <= num_top) & (b <= num_top)).sum())
    return Overlap(fraction, num_top, num_both, num_both / (2 * num_top - num_both))


# How they came about


def settings_of(ds: Dataset) -> dict[str, str]:
    """Data, ranking and measuring of ranked rows, by their records: names and values; a part of a part is `part.name`."""
    ranking, measuring = ranking_record(ds) or {}, find_record(ds, "measuring") or {}
    found = {"data": data_name(ds)} | {x: ranking[x] for x in RANKED_BY if ranking.get(x) is not None}
    ways = ", ".join(sorted(ways_measured(ds)))
    found |= dict(_flat(measuring)) | ({"config_key": ways} if ways else {})
    return {name: _text(value) for name, value in found.items()}


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, public_name(value) if name in ("model", "adapter", "adapter_name") else value


def _text(value: Any) -> str:
    return shortened(f"{value:g}" if isinstance(value, float) else str(value), 60)


def _different(a: dict[str, str], b: dict[str, str]) -> dict[str, dict[str, str]]:
    names = dict.fromkeys([*a, *b])
    return {x: {"a": a.get(x, "-"), "b": b.get(x, "-")} for x in names if a.get(x) != b.get(x)}


# The rows


def _moved(frame: pd.DataFrame, ds: Dataset, num_rows: int) -> Iterator[Moved]:
    """The rows whose place moved most, those that moved as far in A's order; none that did not."""
    distance = (frame["place_b"] - frame["place_a"]).abs().to_numpy()
    for i in np.lexsort((frame["place_a"].to_numpy(), -distance))[:num_rows]:
        row = frame.iloc[int(i)]
        if not distance[i]:
            return
        numbers = {
            name: {side: int(row[f"{name}_{side}"]) for side in SIDES} for name in ("position", "rank", "place")
        }
        terms = {name: {side: _number(row[f"{name}_place_{side}"]) for side in SIDES} for name in TERMS}
        yield Moved(**numbers, terms=terms, text=line_of(ds[numbers["position"]["a"]]))


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def line_of(row: Mapping[str, Any]) -> str:
    """What a row asks and what it answers, in a line; its `id` where it says nothing."""
    _, instruction, response = sample_texts(row)
    told = " -> ".join(filter(None, (shortened(x, TEXT_WIDTH // 2) for x in (instruction, response))))
    return told or shortened(str(row.get("id", "")), TEXT_WIDTH)
