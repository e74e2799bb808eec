"""What is certain of an order in which some rows have no CAS, because their segments were not measured (`segments_for`).

n rows are ranked by s = alpha h + (1 - alpha) c, with h and c the ranks of their HMP and CAS from 0 to 1. Every h is known. Of c,
that of U rows is not; P rows are screened, those U and a sample of S others, drawn by a hash of what the rows say, whose segments
are measured all the same. Against the order in which all segments are measured:

1. No row is lost. Rows without segments can only add to those that a measured row leaves behind, so its c is at least its rank k
   among the measured rows alone, on the scale of all n: s >= L = alpha h + (1 - alpha) k. A row without segments has at most
   alpha h + (1 - alpha), the highest of which is B. Where K rows have L > B, all of them are before all rows without segments, in
   the full order and in this one: whoever selects K rows or fewer selects none of these in either. That much is certain. Before
   segments are measured, h alone tells that K is n (share - (1 - alpha) / alpha) or more, to a row (`safe_fraction` of
   `measuring.screening`), unless many rows have the HMP at the border of the share (`Screening.num_certain`).
2. Among the measured rows, c is estimated: each row of the sample stands for P / S rows. By the Dvoretzky-Kiefer-Wolfowitz
   inequality (with Massart's constant, 1990; drawing without replacement does no harm) an estimated distribution is nowhere
   further than e = sqrt(ln(2 / .05) / 2 S) from the true one, 95 times in 100. So no score is further than
   E = (1 - alpha) P / (n - 1) e from that of the full order, and of K selected rows only those can be others whose scores lie
   within 2 E of the border. Where no row of another choice lies there, the selection is the same.

A row without segments has the score alpha h, the least that it can have; so it is before no row that is before it in the full
order for certain, and its rank says no more than that.

Shapes: (n,) throughout.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import log, sqrt
from typing import Any

import numpy as np

from ..measuring.screening import ROUNDING
from ..store.sqlite import SEGMENT_FIELDS
from .formulas import normalised_rank
from .lists import ListMeasure


SCREENED = "gateau_screened"
OF_SEGMENTS = tuple(f"gateau_{name}" for name in SEGMENT_FIELDS)
UNLIKELY = 0.05  # chance of an estimate further off than `Bound.error`


@dataclass(frozen=True)
class Bound:
    """What holds of an order of rows of which some have no segments.

    Attributes:
        num_without (`int`): ranked rows without segments, U. num_sampled: S.
        num_safe (`int`): K, of the best so many none is without segments, here and in the full order.
        highest_score (`float`): B, the most that a row without segments can score.
        error (`float`): E, by how much the score of a measured row may be off, 95 times in 100.
    """

    num_without: int
    num_sampled: int
    num_safe: int
    highest_score: float
    error: float

    def to_record(self) -> dict[str, Any]:
        """Plain JSON, which goes into the ranking's record."""
        return asdict(self)

    def check(self, num_kept: int, num_ranked: int, how: str, min_score: float | None = None) -> None:
        """Refuse to keep rows where one without segments might belong in their place.

        Args:
            num_kept, num_ranked: rows.
            how: what asks for them, for the message.
            min_score: what every kept row scores at least, where that is what is asked for.

        Raises:
            ValueError: it is not certain that none does.
        """
        if num_kept <= self.num_safe or (min_score is not None and min_score > self.highest_score):
            return
        most = f"ask for at most top_k={self.num_safe} (fraction={self.num_safe / num_ranked:.3g})"
        advice = f"{most}, or measure" if self.num_safe else "Measure"
        raise ValueError(
            f"{how} keeps {num_kept:,} of {num_ranked:,} ranked rows, {self.num_without:,} of which have no segments, since their "
            f"HMP was too low when segments_for chose. That none of these belongs to the best is certain of the best "
            f"{self.num_safe:,} alone. {advice[0].upper() + advice[1:]} again with a larger segments_for, or without it: what is "
            "measured is not measured twice."
        )

    def num_uncertain(self, scores: np.ndarray, kept: np.ndarray) -> int:
        """How many of the kept rows may be others than with all segments, at most (statement 2), 95 times in 100.

        Args:
            scores: of all rows, NaN where not ranked. kept (bool): which are kept.
        """
        border = scores[kept].min()
        near = np.abs(scores - border) <= 2 * self.error
        return int(min((near & kept).sum(), (near & ~kept).sum()))


def lack_segments(screened: np.ndarray, code: np.ndarray, measure: ListMeasure | None) -> np.ndarray:
    """Which rows have no CAS because HMP screened them out.

    Args:
        screened: the column `gateau_screened`, 1 for true, NaN for null.
        code: of `ListMeasure.reasons`.
    """
    if measure is None:
        return np.zeros(len(screened), bool)
    null = [i for i, name in enumerate(measure.columns, 1) if name in OF_SEGMENTS]
    return (screened == 1) & np.isin(code, null)


def stand_for(without: np.ndarray, screened: np.ndarray) -> np.ndarray:
    """How many rows each measured one stands for: 1, or its share of all screened rows for one of their sample; 0 for rows without
    segments."""
    is_low = screened == 1
    is_sampled, weight = is_low & ~without, np.where(without, 0.0, 1.0)
    if is_sampled.any():
        weight[is_sampled] = is_low.sum() / is_sampled.sum()
    return weight


def bound_of(hmp: np.ndarray, cas: np.ndarray, without: np.ndarray, screened: np.ndarray, alpha: float) -> Bound:
    """The bound of ranked rows; `cas` is not looked at where a row is `without` segments, of which there is one at least."""
    n, is_low, h = len(hmp), screened == 1, normalised_rank(hmp)
    num_sampled = int((is_low & ~without).sum())
    least = np.zeros(n)
    measured = normalised_rank(cas[~without]) if not without.all() else np.zeros(0)
    least[~without] = measured * (len(measured) - 1) / max(1, n - 1)  # as ranks among all n
    highest = float((alpha * h[without] + (1 - alpha)).max())
    is_safe = ~without & (alpha * h + (1 - alpha) * least > highest + ROUNDING)
    off = min(1.0, sqrt(log(2 / UNLIKELY) / (2 * num_sampled))) if num_sampled else 1.0
    error = (1 - alpha) * is_low.sum() / max(1, n - 1) * off
    return Bound(int(without.sum()), num_sampled, int(is_safe.sum()), highest, float(error))
