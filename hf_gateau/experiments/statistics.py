"""Means with confidence intervals: a bootstrap over seeds and questions.

Legend: S seeds (trainings), Q questions, G groups of questions, N resamples.

A figure is the mean over seeds of the mean over groups of the mean over a group's questions; with one group, of the mean over
questions. A resample draws seeds with replacement, and, within each group, questions with replacement. All seeds answer the
same questions, so a resample draws the questions once and takes them at every seed it drew: if it drew them anew at each
seed, how hard the questions happen to be would average out over the seeds, and intervals would be too narrow. The
difference of two ways to select is paired: it is made at each seed and question first, then resampled.

The interval is the percentile interval (Efron, 1979). A mean of S draws varies by (S - 1) / S too little, which matters
for few seeds, so seeds' deviations from their mean are widened by the root of S / (S - 1) within a resample (the rescaled
bootstrap of Rao and Wu, 1988). Two or three seeds still cannot show how far seeds can lie apart: then an interval that
is said to hold 95% of the time holds less often (see the test for how often). No interval reaches beyond the lowest and
the highest score that was seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
BATCH = 200  # resamples at a time: bounds memory at BATCH x S x Q numbers


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval; the interval is None where there is nothing to resample (one seed and one question)."""

    mean: float
    low: float | None
    high: float | None
    num_seeds: int
    num_questions: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low is not None and (self.low > 0 or self.high < 0)


Scores = Mapping[int, Mapping[str, tuple[str, float]]]  # seed -> question's id -> (group, score)


def estimate(scores: Scores, num_resamples: int = NUM_RESAMPLES, rng_seed: int = 0) -> Estimate | None:
    """Mean and interval of scores; questions that some seed has no score of are left out. None where none is left."""
    table_SQ, groups = _table(scores)
    if not table_SQ.size:
        return None
    resampled_N = resample(table_SQ, groups, num_resamples, rng_seed)
    return _estimate(table_SQ, groups, resampled_N)


def difference(a: Scores, b: Scores, num_resamples: int = NUM_RESAMPLES, rng_seed: int = 0) -> Estimate | None:
    """Of a and b, a - b, paired by seed and question; what only one has is left out. None where nothing is paired."""
    return estimate(paired(a, b), num_resamples, rng_seed)


def paired(a: Scores, b: Scores) -> dict[int, dict[str, tuple[str, float]]]:
    """a - b at every seed and question that both have."""
    found: dict[int, dict[str, tuple[str, float]]] = {}
    for seed in sorted(a.keys() & b.keys()):
        both = a[seed].keys() & b[seed].keys()
        found[seed] = {x: (a[seed][x][0], a[seed][x][1] - b[seed][x][1]) for x in sorted(both)}
    return found


def of_seeds(values: Mapping[int, float], num_resamples: int = NUM_RESAMPLES, rng_seed: int = 0) -> Estimate | None:
    """Mean and interval of one number a seed, where a task's figure is no mean over questions: seeds alone are resampled."""
    return estimate({seed: {"": ("", value)} for seed, value in values.items()}, num_resamples, rng_seed)


def _table(scores: Scores) -> tuple[np.ndarray, list[np.ndarray]]:
    """(S, Q) scores of the questions that every seed has, and the columns of each group."""
    seeds = sorted(scores)
    common = sorted(set.intersection(*(set(scores[seed]) for seed in seeds))) if seeds else []
    if not common:
        return np.zeros((0, 0)), []
    table_SQ = np.array([[scores[seed][question][1] for question in common] for seed in seeds], float)
    names = [scores[seeds[0]][question][0] for question in common]
    return table_SQ, [np.flatnonzero([name == group for name in names]) for group in sorted(set(names))]


def grand_mean(table_SQ: np.ndarray, groups: Sequence[np.ndarray]) -> float:
    """Mean over seeds of the mean over groups of the mean over questions."""
    return float(np.mean([table_SQ[:, columns].mean() for columns in groups]))


def resample(table_SQ: np.ndarray, groups: Sequence[np.ndarray], num_resamples: int, rng_seed: int) -> np.ndarray:
    """The figure of every resample, (N,)."""
    rng, num_seeds, done = np.random.default_rng(rng_seed), len(table_SQ), []
    widen = np.sqrt(num_seeds / (num_seeds - 1)) if num_seeds > 1 else 1.0
    for start in range(0, num_resamples, BATCH):
        size = min(BATCH, num_resamples - start)
        of_seed_NS = np.zeros((size, num_seeds))
        for columns in groups:
            drawn_NQ = columns[rng.integers(len(columns), size=(size, len(columns)))]
            of_seed_NS += table_SQ[:, drawn_NQ].mean(axis=2).T / len(groups)
        centre_N1 = of_seed_NS.mean(axis=1, keepdims=True)
        drawn_NS = rng.integers(num_seeds, size=(size, num_seeds))
        deviations_NS = np.take_along_axis(of_seed_NS - centre_N1, drawn_NS, axis=1)
        done.append(centre_N1[:, 0] + widen * deviations_NS.mean(axis=1))
    return np.concatenate(done)


def _estimate(table_SQ: np.ndarray, groups: Sequence[np.ndarray], resampled_N: np.ndarray) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    seen = table_SQ.min(), table_SQ.max()
    low, high = (float(x) for x in np.quantile(resampled_N, (tail, 1 - tail)).clip(*seen))
    num_seeds, num_questions = table_SQ.shape
    if num_seeds == 1 and num_questions == 1:
        low = high = None
    return Estimate(grand_mean(table_SQ, groups), low, high, num_seeds, num_questions)
