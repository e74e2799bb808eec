"""Which rows' segments are worth measuring, once everything else is measured of all rows: those that HMP puts high enough, and a
sample of the others.

With ranks from 0 to 1, the score is alpha rank(HMP) + (1 - alpha) rank(CAS), so whatever its segments tell a row gains at most
1 - alpha by them: one whose HMP is low stays behind the rows whose HMP is high. What may be selected then is `safe_fraction`; the
proof, with the ranks of the rows at hand, is in `ranking.bounds`. The sample tells where the CAS of the others lies, without which
nobody could say which rank a CAS has among all rows.

A decision is a few numbers, and a row's HMP and key say what it means for that row, so batches and processes agree on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np


# Rows whose segments are measured although their HMP is low: for every so many of high HMP one, and no more than so many
ONE_OF, MOST_SAMPLED = 4, 100
ROUNDING = 1e-12  # of scores, which are between 0 and 1


@dataclass(frozen=True)
class Screening:
    """Whose segments are measured; plain numbers, so that JSON of it is all that other processes need.

    Attributes:
        share (`float`): `segments_for`.
        hmp, tau: the HMP that rows were put in order by, by its name, and what it takes; see `ranking.config.RankConfig`.
        least (`float`): the segments of rows with this HMP or more are measured.
        sampled (`str`): and those of rows with less whose key has this hash or a lower one; empty for none.
        segments_key (`str`): of the settings that rows are measured by.
        values_key (`str`): what the store has the rows' HMP under.
        alpha (`float`): of the score.
        num_rows, num_high, num_sampled (`int`): rows that have an HMP, those with `least` or more, and the sample of the others.
        num_certain (`int`): of the best so many by score none is without segments, whatever segments tell.
    """

    share: float
    hmp: str
    tau: float
    least: float
    sampled: str
    segments_key: str
    values_key: str
    alpha: float
    num_rows: int = 0
    num_high: int = 0
    num_sampled: int = 0
    num_certain: int = 0

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that tell another decision."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, which `from_json` makes the same of."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Screening:
        """Read what `to_json` made; other entries are ignored."""
        return cls(**{field.name: found[field.name] for field in fields(cls) if field.name in found})

    def is_low(self, hmp: float | None) -> bool:
        """Whether HMP screens a row out; not one that has none."""
        return hmp is not None and hmp < self.least

    def is_sampled(self, key: str) -> bool:
        """Whether a row's segments are measured although its HMP is low."""
        return _hash(key) <= self.sampled

    def line(self) -> str:
        """What is about to be measured, for people."""
        return (
            f"Segments of {self.num_high + self.num_sampled:,} of {self.num_rows:,} rows: the {self.num_high:,} with an HMP "
            f"({self.hmp}) of {self.least:.4g} or more, and a sample of {self.num_sampled:,} of the others; with alpha "
            f"{self.alpha:g} the best {self.num_certain:,} may be selected, or more"
        )


def safe_fraction(share: float, alpha: float) -> float:
    """The share of all rows that may be selected of rows whose segments are measured for the `share` of highest HMP, so that no row
    without segments would be among them: 1 - alpha of score is what (1 - alpha) / alpha of HMP's ranks outweighs. Less, where many
    rows have one HMP."""
    return max(0.0, share - (1 - alpha) / alpha) if alpha > 0 else 0.0


def num_sampled(num_high: int, num_low: int) -> int:
    """Rows of low HMP whose segments are measured all the same, by the rows of high and of low HMP."""
    return min(num_low, MOST_SAMPLED, max(1, num_high // ONE_OF))


def foresee(share: float, alpha: float, num_rows: int, num_pending: int, num_known: int) -> dict[str, Any]:
    """What is known of `segments_for` before any HMP is, as plain JSON.

    Args:
        num_rows: that will be chosen among.
        num_pending: of them, rows that lack segments.
        num_known: and rows that have them, which are taken to be among those that are chosen.
    """
    num_high = max(1, round(share * num_rows))
    others = num_sampled(num_high, num_rows - num_high)
    return {
        "segments_for": share,
        "num_high": num_high,
        "num_sampled": others,
        "num_left": min(num_pending, max(0, num_high + others - num_known)),
        "alpha": alpha,
        "safe_fraction": safe_fraction(share, alpha),
    }


def choose_rows(
    values: np.ndarray, keys: Sequence[str], has_choice: np.ndarray, share: float, alpha: float, **about: Any
) -> Screening:
    """Decide whose segments are measured. Rows of one HMP are not told apart: as many of the highest as fit into the share.

    Args:
        values: HMP of all rows, NaN where there is none; (n,).
        keys: of their samples.
        has_choice: whether a row may be left without segments; (n,).
        share: `segments_for`.
        alpha: of the score.
        about: the other fields of `Screening`.

    Raises:
        ValueError: HMP tells no row of the share from the others, or there is none.
    """
    is_known = np.isfinite(values)
    descending = np.sort(values[is_known])[::-1]
    wanted = max(1, round(share * len(descending)))
    border = descending[wanted] if wanted < len(descending) else -np.inf
    high = descending[descending > border]
    if not len(high) and len(descending):
        raise ValueError(
            f"segments_for={share} is for {wanted:,} of {len(descending):,} rows, and {(descending == border).sum():,} have the "
            f"highest HMP ({about.get('hmp')}), so it does not say which; leave segments_for out, or give another hmp."
        )
    least = float(high[-1]) if len(high) else 0.0
    is_low = is_known & (values < least) & has_choice
    hashes = sorted({_hash(keys[i]) for i in np.flatnonzero(is_low)})
    number = num_sampled(len(high), len(hashes))
    return Screening(
        share=share,
        alpha=alpha,
        least=least,
        sampled=hashes[number - 1] if number else "",
        num_rows=len(descending),
        num_high=len(high),
        num_sampled=number,
        num_certain=_num_certain(values[is_known], values[is_low], alpha),
        **about,
    )


def _num_certain(values: np.ndarray, low: np.ndarray, alpha: float) -> int:
    """How many rows are before all of low HMP, whatever segments tell."""
    if not len(low):
        return len(values)
    ascending = np.sort(values)
    mean_rank = (np.searchsorted(ascending, values) + np.searchsorted(ascending, values, "right") - 1) / 2
    rank = mean_rank / max(1, len(values) - 1)
    return int((alpha * rank > alpha * rank[values == low.max()][0] + (1 - alpha) + ROUNDING).sum())


class Screen:
    """A decision at hand in one process, with what the store has of the rows that it is about.

    Args:
        screening: the decision.
        store: where the rows' HMP is.
    """

    def __init__(self, screening: Screening, store):
        self.screening, self._store = screening, store

    def low(self, keys: Iterable[str]) -> set[str]:
        """Those of some rows that HMP screens out, whether sampled or not."""
        values = self._store.get_values(self.screening.values_key, keys)
        return {key for key, value in values.items() if self.screening.is_low(value)}

    def without_segments(self, keys: Iterable[str]) -> set[str]:
        """Those of some rows whose segments are not measured."""
        return {key for key in self.low(keys) if not self.screening.is_sampled(key)}


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
