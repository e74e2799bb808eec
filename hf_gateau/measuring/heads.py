"""Retrieval heads: the few attention heads that look at the segment which matters, found without labels, and what they see.

Averaged over all heads, attention follows habits: how far away a segment is, and what every head does whatever the text says.
A head's attention to a segment here is a logarithm, minus that to the row's middle segment, minus the head's habit at that
distance. The heads whose attention so corrected goes with the segments' gains on some rows, which were measured segment by
segment, tell of all other rows which segment matters, from the pass over the whole row alone.

Shapes: S segments of a row, H heads of all layers, C chosen heads, D bins of distance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np


# Added to attention before the logarithm, as a share of what each token gets of even attention
EPSILON = 2e-4
BINS_PER_OCTAVE = 2  # of distance, within which a head has one habit
MOST_HEADS, ONE_OF = 8, 4  # the best so many are chosen, and of a model with few, the best of so many
# A segment is telling that alone makes the response so many nats a token likelier than most; and the only one, if no other
# gains more than that share of it.
TELLING_NATS, ONLY_SHARE = 0.5, 0.5
LEAST_ROWS = 6  # with one telling segment: of fewer, agreement says nothing
LEAST_AGREEMENT = 0.8  # below it segments are measured instead


@dataclass(frozen=True)
class CalibrationRow:
    """A row that was measured segment by segment, with every head's attention.

    Attributes:
        key (`str`): of the sample, by which rows are halved.
        attention (`np.ndarray`, (S, H)): mean attention of the response's tokens to each token of a segment, by head.
        gains (`np.ndarray`, (S,)): see `segment_gains`.
        distances (`np.ndarray`, (S,)): tokens from the middle of a segment to the end of the context.
        num_far (`int`): the first segments, which the short sibling does not see.
    """

    key: str
    attention: np.ndarray
    gains: np.ndarray
    distances: np.ndarray
    num_far: int

    @property
    def is_telling(self) -> bool:
        """Whether a segment tells something of the response."""
        return self.gains.max() > TELLING_NATS

    @property
    def tells_once(self) -> bool:
        """Whether one segment does so, and no other."""
        *_, second, best = np.sort(self.gains)
        return best > TELLING_NATS and second <= ONLY_SHARE * best


@dataclass(frozen=True)
class HeadCalibration:
    """The chosen heads and their habits; plain numbers, so that JSON of it is all there is to keep.

    Attributes:
        heads: (layer, head) of each, counted from 0 in the order in which attention layers run; none where no row tells.
        bins: whole numbers: bin b is of distances from 2 ** (b / 2) tokens on.
        habits: for each head one number a bin, nats.
        epsilon (`float`): see `EPSILON`.
        agreement (`float`, *optional*): share of rows with one telling segment, not used for choosing, where the heads find it.
        auroc (`float`, *optional*): how well far minus near (see `far_minus_near`) tells rows with a telling far segment from the
            others, on the same terms.
        num_rows, num_tested (`int`): rows of the calibration, and those that `agreement` is of.
    """

    heads: tuple[tuple[int, int], ...]
    bins: tuple[int, ...]
    habits: tuple[tuple[float, ...], ...]
    epsilon: float = EPSILON
    agreement: float | None = None
    auroc: float | None = None
    num_rows: int = 0
    num_tested: int = 0

    @property
    def refusal(self) -> str | None:
        """Why segments are to be measured instead; None where the heads serve."""
        if not self.heads:
            return f"none of {self.num_rows} calibration rows has a segment that tells of its response"
        if self.agreement is None:
            return (
                f"{self.num_tested} of {self.num_rows} calibration rows have one telling segment, and {LEAST_ROWS} are needed to "
                "try the heads on"
            )
        if self.agreement < LEAST_AGREEMENT:
            return (
                f"the chosen heads find the telling segment of {self.agreement:.0%} of {self.num_tested} rows, and "
                f"{LEAST_AGREEMENT:.0%} are needed"
            )
        return None

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that tell other heads, habits or another epsilon."""
        found = self.to_json()
        numbers = {name: found[name] for name in ("heads", "bins", "habits", "epsilon")}
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, which `from_json` makes the same calibration of."""
        return (
            asdict(self)
            | {name: list(map(list, getattr(self, name))) for name in ("heads", "habits")}
            | {"bins": [*self.bins]}
        )

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> HeadCalibration:
        """Read what `to_json` made; other entries are ignored."""
        lists = {name: tuple(map(tuple, found[name])) for name in ("heads", "habits")} | {"bins": tuple(found["bins"])}
        known = {field.name: found[field.name] for field in fields(cls) if field.name in found}
        return cls(**known | lists)

    def calibrated(self, attention: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """What the chosen heads say of each segment, (S,) in nats above the row's middle segment and the heads' habits.

        Args:
            attention (`np.ndarray`, (S, C)): as in `CalibrationRow`, of the chosen heads.
            distances (`np.ndarray`, (S,)): as there.
        """
        if not len(distances):
            return np.zeros(0)
        habits = np.array(self.habits).reshape(len(self.heads), len(self.bins)).T
        return (_centred(attention, distances, self.epsilon) - _at(distances, self.bins, habits)).mean(1)


def segment_gains(segment_ppl: Sequence[float]) -> np.ndarray:
    """How much likelier each segment alone makes the response than the row's middle segment, in nats a token: (S,)."""
    nll = np.log(np.asarray(segment_ppl, float))
    return np.median(nll) - nll


def segment_distances(starts: Sequence[int], length: int, num_context: int) -> np.ndarray:
    """Tokens from the middles of segments, which start at some tokens of a context, to its end: (S,)."""
    starts = np.asarray(starts, float)
    return num_context - (starts + np.minimum(starts + length, num_context)) / 2


def far_minus_near(calibrated: np.ndarray, num_far: int) -> float:
    """Most that the heads see in a far segment, minus most in a near one, in nats. Where there are none of one kind, the row's
    lowest stands for them."""
    lowest = calibrated.min()
    return float(calibrated[:num_far].max(initial=lowest) - calibrated[num_far:].max(initial=lowest))


def choose_heads(rows: Sequence[CalibrationRow], names: Sequence[tuple[int, int]]) -> HeadCalibration:
    """The heads that best follow the segments' gains, with their habits; and how well they do on rows that did not choose them.

    Rows are halved by their keys, and the heads that one half chooses are tried on the other; those that are returned are
    chosen by all.

    Args:
        rows: of any lengths, of two segments or more each; their order does not matter.
        names: (layer, head) of each of the H heads.
    """
    rows = sorted(rows, key=lambda row: row.key)
    tested, hits, values, are_far = 0, 0, [], []
    for first in (0, 1):
        chosen, others = _chosen(rows[first::2], names), rows[1 - first :: 2]
        tested += sum(row.tells_once for row in others)
        if not chosen.heads:
            continue
        columns = [list(names).index(name) for name in chosen.heads]
        for row in others:
            found = chosen.calibrated(row.attention[:, columns], row.distances)
            hits += row.tells_once and found.argmax() == row.gains.argmax()
            values.append(far_minus_near(found, row.num_far))
            are_far.append(row.is_telling and row.gains.argmax() < row.num_far)
    tested = int(tested)
    agreement = float(hits / tested) if tested >= LEAST_ROWS else None
    about = {"agreement": agreement, "auroc": auroc(values, are_far), "num_rows": len(rows), "num_tested": tested}
    return replace(_chosen(rows, names), **about)


def likely_heads(sizes: Sequence[int]) -> HeadCalibration:
    """As many heads as would be chosen, evenly over the layers, where none are yet: to foresee what measuring by them takes.

    Args:
        sizes: heads of each layer that sees everything, by its number; 0 for those that do not.
    """
    layers = [layer for layer, size in enumerate(sizes) if size]
    number = min(MOST_HEADS, max(1, sum(sizes) // ONE_OF))
    places = [divmod(i * len(layers), number) for i in range(number)]
    heads = tuple(sorted({(layers[place], i % sizes[layers[place]]) for i, (place, _) in enumerate(places)}))
    return HeadCalibration(heads, (0,), ((0.0,),) * len(heads))


def auroc(values: Sequence[float], are_positive: Sequence[bool]) -> float | None:
    """Share of pairs of a positive row and another in which the positive one has the higher value, ties half; None without one."""
    values, are_positive = np.asarray(values, float), np.asarray(are_positive, bool)
    positive, others = values[are_positive], np.sort(values[~are_positive])
    if not len(positive) or not len(others):
        return None
    below = np.searchsorted(others, positive, "left") + np.searchsorted(others, positive, "right")
    return float(below.mean() / (2 * len(others)))


def _chosen(rows: Sequence[CalibrationRow], names: Sequence[tuple[int, int]]) -> HeadCalibration:
    """The best heads by some rows, untried."""
    telling = [row for row in rows if row.is_telling]
    candidates = np.flatnonzero(_see_far(rows)) if telling else []
    if not len(candidates):
        return HeadCalibration((), (), ())
    centred = [_centred(row.attention[:, candidates], row.distances, EPSILON) for row in rows]
    bins, habits = _habits(centred, [row.distances for row in rows])
    scores = [
        _correlation(found - _at(row.distances, bins, habits), row.gains)
        for row, found in zip(rows, centred, strict=True)
        if row.is_telling
    ]
    number = min(MOST_HEADS, max(1, len(candidates) // ONE_OF))
    best = np.sort(np.argsort(-np.mean(scores, 0), kind="stable")[:number])
    heads = tuple((int(layer), int(head)) for layer, head in (names[i] for i in candidates[best]))
    return HeadCalibration(heads, tuple(bins), tuple(map(tuple, habits[:, best].T.tolist())))


def _see_far(rows: Sequence[CalibrationRow]) -> np.ndarray:
    """Which heads look at most of the far segments at all; the window of a layer may end before them: (H,)."""
    return np.mean(np.concatenate([row.attention[: row.num_far] > 0 for row in rows]), 0) > 0.5


def _centred(attention: np.ndarray, distances: np.ndarray, epsilon: float) -> np.ndarray:
    """Logarithm of attention, minus that to the row's middle segment, by head; the context is as long as its first token is far."""
    found = np.log(np.asarray(attention, float) * distances.max() + epsilon)
    return found - np.median(found, 0)


def _bins(distances: np.ndarray) -> np.ndarray:
    return np.floor(BINS_PER_OCTAVE * np.log2(np.maximum(distances, 1.0))).astype(int)


def _habits(centred: Sequence[np.ndarray], distances: Sequence[np.ndarray]) -> tuple[list[int], np.ndarray]:
    """The bins that rows have segments in, and each head's median there: (D, H)."""
    of_segments, found = _bins(np.concatenate(distances)), np.concatenate(centred)
    bins = np.unique(of_segments)
    return bins.tolist(), np.stack([np.median(found[of_segments == b], 0) for b in bins])


def _at(distances: np.ndarray, bins: Sequence[int], habits: np.ndarray) -> np.ndarray:
    """Habits at some distances, those of the nearest bin that there are any for: (S, H)."""
    nearest = np.abs(_bins(distances)[:, None] - np.asarray(bins)).argmin(1)
    return habits[nearest]


def _correlation(found: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Of each head's numbers with the gains over a row's segments: (H,); 0 where a head has one number for all."""
    found, gains = found - found.mean(0), gains - gains.mean()
    size = np.sqrt((found**2).sum(0) * (gains**2).sum())
    return np.where(size > 0, gains @ found / np.where(size > 0, size, 1.0), 0.0)
