"""Which of the ranked rows are kept: what a person decided first, then each stratum's share, then the best of all others."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Collection, Iterator
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from ..records import column_of
from .config import SelectConfig
from .decisions import contents_of, read_decisions
from .order import rank_order


if TYPE_CHECKING:
    from datasets import Dataset

TOKEN_COLUMNS = ("gateau_num_context_tokens", "gateau_num_response_tokens")
MANY_VALUES = 32  # a numeric column with more is cut into ranges


class ToChoose:
    """What selecting needs of the data: who is ranked, in which order, in which stratum, of how many tokens, decided how.

    Attributes:
        order (`list[int]`): positions of the ranked rows, the best first.
        scores (`np.ndarray`): one a row, NaN where not ranked.
        tokens (`list[int]`): one a row, None without the columns.
        stratum (`list[str]`): one a row, None without strata.
        notes (`list[str]`): one a row, why it is not ranked; None where it is.
        decisions (`Decisions`): None without a file of them.
        keep, drop (`list[int]`): positions of the rows that a person keeps, and drops, ascending.
        num_unknown (`int`): decisions about other rows.
    """

    def __init__(self, ds: Dataset, config: SelectConfig, elsewhere: Collection[str | None]):
        ranks = column_of(ds, "gateau_rank")
        self.order = rank_order(ranks)
        self.scores = np.array(column_of(ds, "gateau_score"), dtype=float)
        pairs = zip(ranks, _notes(ds), strict=True)
        self.notes = [note or "not ranked" if rank is None else None for rank, note in pairs]
        self.tokens = self.stratum = None
        if all(name in ds.column_names for name in TOKEN_COLUMNS):
            counts = [column_of(ds, name) for name in TOKEN_COLUMNS]
            self.tokens = [(context or 0) + (response or 0) for context, response in zip(*counts, strict=True)]
        elif config.max_tokens is not None:
            raise ValueError(f"max_tokens needs the columns {', '.join(TOKEN_COLUMNS)}; measure the rows first.")
        if config.strata is not None:
            self.stratum = strata_of(ds, config)
        self.decisions, self.keep, self.drop, self.num_unknown = None, [], [], 0
        if config.decisions is not None:
            self.decisions, contents = read_decisions(config.decisions), contents_of(ds)
            self.keep, self.drop = self.decisions.places(contents)
            self.num_unknown = self.decisions.num_unknown([*contents, *elsewhere])

    @property
    def left(self) -> list[int]:
        """Positions of the ranked rows of which nothing is decided, the best first."""
        decided = {*self.keep, *self.drop}
        return [i for i in self.order if i not in decided] if decided else self.order


def _notes(ds: Dataset) -> list:
    return column_of(ds, "gateau_note") if "gateau_note" in ds.column_names else [None] * len(ds)


def strata_of(ds: Dataset, config: SelectConfig) -> list[str]:
    """The stratum of each row: a column's value, or the range it falls into.

    Raises:
        ValueError: there is no such column, or `strata_edges` are for one that holds no numbers.
    """
    if config.strata not in ds.column_names:
        raise ValueError(f"There is no column {config.strata!r} to form strata of; the data have {ds.column_names}.")
    values = column_of(ds, config.strata)
    numeric = all(value is None or (isinstance(value, Real) and not isinstance(value, bool)) for value in values)
    values = [None if value != value else value for value in values] if numeric else values  # NaN
    edges = config.strata_edges
    if edges is not None and not numeric:
        raise ValueError(f"strata_edges need a column of numbers; {config.strata!r} is none.")
    if edges is None and not (numeric and len(set(values)) > MANY_VALUES):
        return [str(value) for value in values]
    if edges is None:
        largest = max(value for value in values if value is not None)
        edges = [2**power for power in range(64) if 2**power <= max(largest, 1)]
    names = [f"below {edges[0]}", *(f"{low} to {high}" for low, high in zip(edges, edges[1:], strict=False))]
    names.append(f"{edges[-1]} or more")
    return ["None" if value is None else names[bisect.bisect_right(edges, value)] for value in values]


def kept_rows(columns: ToChoose, config: SelectConfig) -> list[int]:
    """Positions of the rows that are kept, ascending."""
    num_ranked, by_hand, left = len(columns.order), columns.keep, columns.left
    wanted = round(config.fraction * num_ranked) if config.fraction is not None else config.top_k
    if config.top_k is not None and config.top_k > len(by_hand) + len(left):
        told = f"{num_ranked} ranked rows"
        if columns.decisions is not None:
            told = f"{len(by_hand) + len(left)} rows that are left by the decisions of {num_ranked} ranked ones"
        raise ValueError(f"top_k={config.top_k} asks for more than the {told}; lower it.")
    room = wanted if wanted is not None else config.max_tokens
    taken = sum(columns.tokens[i] for i in by_hand) if config.max_tokens is not None else len(by_hand)
    if room is not None and taken > room:
        unit, asked = ("tokens", "max_tokens") if config.max_tokens is not None else ("rows", "fraction or top_k")
        raise ValueError(
            f"The rows that a person keeps are {taken} {unit}, and {room} are asked for; raise {asked}, or keep fewer."
        )
    share = wanted / max(num_ranked, 1) if config.min_share is None and wanted is not None else config.min_share
    assured = _assured(columns, left, share) if columns.stratum is not None else []
    if config.min_share is None and wanted is not None:
        assured = assured[: wanted - taken]  # a person may keep more of one stratum than its share
    if wanted is not None and taken + len(assured) > wanted:
        beside = f" beside the {taken} rows that a person keeps" if by_hand else " alone"
        raise ValueError(f"min_share={share}{beside} keeps {len(assured)} rows, and {wanted} are asked for; lower it.")
    others = set(assured)
    others = [i for i in left if i not in others]
    if config.min_score is not None:
        others = [i for i in others if columns.scores[i] >= config.min_score]
    elif config.max_tokens is not None:
        budget = config.max_tokens - taken - sum(columns.tokens[i] for i in assured)
        others = list(_within_budget(others, columns.tokens, budget))
    else:
        others = others[: wanted - taken - len(assured)]
    return sorted([*by_hand, *assured, *others])


def _assured(columns: ToChoose, left: list[int], share: float) -> list[int]:
    """Of the rows of which nothing is decided the best of each stratum, until it has its share of its own ranked rows (rounded
    down); those that a person keeps are part of it."""
    sizes = Counter(columns.stratum[i] for i in columns.order)
    due = {stratum: int(share * size + 1e-9) for stratum, size in sizes.items()}
    for i in columns.keep:
        if due.get(columns.stratum[i]):
            due[columns.stratum[i]] -= 1
    assured = []
    for i in left:
        if due[columns.stratum[i]]:
            due[columns.stratum[i]] -= 1
            assured.append(i)
    return assured


def _within_budget(order: list[int], tokens: list[int], budget: int) -> Iterator[int]:
    if budget < 0:
        raise ValueError(
            "min_share of the strata alone takes more than max_tokens; lower min_share or raise max_tokens."
        )
    for i in order:
        budget -= tokens[i]
        if budget < 0:
            return
        yield i
