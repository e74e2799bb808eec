"""How well scores put the wanted rows first.

Shapes: n rows; `scores` (n,) float, high = wanted; `positive` (n,) bool, which rows are wanted in truth.
"""

from collections.abc import Callable

import numpy as np


Statistic = Callable[[np.ndarray, np.ndarray], float]


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive row scores higher than a negative one, a tie counting half (Mann-Whitney's U
    over the number of pairs): 1 is perfect, 0.5 chance, 0 exactly the wrong way round.

    Raises:
        ValueError: a score is NaN, the shapes differ, or one of the two classes is empty.
    """
    scores, positive = _checked(scores, positive)
    wanted, others = scores[positive], np.sort(scores[~positive])
    if not len(wanted) or not len(others):
        raise ValueError(
            f"AUROC compares two classes, got {len(wanted)} positive and {len(others)} negative rows; give both."
        )
    below = np.searchsorted(others, wanted, "left") + np.searchsorted(others, wanted, "right")
    return float(below.sum() / (2 * len(wanted) * len(others)))


def precision_at(scores: np.ndarray, positive: np.ndarray, fraction: float) -> float:
    """The share of positive rows among the best `fraction` of all, rounded to whole rows, at least one.

    Where the border runs through tied scores, the tied rows inside count with the positive share of all that are tied:
    what breaking the tie at random gives on average.

    Raises:
        ValueError: a score is NaN, the shapes differ, there are no rows, or fraction is not in (0, 1].
    """
    scores, positive = _checked(scores, positive)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction!r} is not above 0 and at most 1; use e.g. 0.1 for the best tenth.")
    if not len(scores):
        raise ValueError("precision_at needs at least one row, got none.")
    num_kept = max(1, round(fraction * len(scores)))
    border = np.sort(scores)[-num_kept]
    above, tied = scores > border, scores == border
    return float((positive[above].sum() + (num_kept - above.sum()) * positive[tied].mean()) / num_kept)


def bootstrap_interval(
    statistic: Statistic,
    scores: np.ndarray,
    positive: np.ndarray,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic(scores, positive)`, from rows drawn with replacement.

    Positive and negative rows are drawn apart (stratified), so that every draw has as many of each as the data. It has
    no width where the statistic is at its bound on the data, however few they are.

    Raises:
        ValueError: a score is NaN, the shapes differ, or level is not between 0 and 1.
    """
    scores, positive = _checked(scores, positive)
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} is not between 0 and 1; use e.g. 0.95.")
    rng = np.random.default_rng(seed)
    strata = [np.flatnonzero(positive == value) for value in (True, False)]
    draws = np.empty(num_resamples)
    for i in range(num_resamples):
        rows = np.concatenate([rng.choice(stratum, len(stratum)) for stratum in strata if len(stratum)])
        draws[i] = statistic(scores[rows], positive[rows])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise ValueError(f"scores and positive must be (n,) alike, got {scores.shape} and {positive.shape}.")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} of {len(scores)} scores are null; leave out rows without a rank.")
    return scores, positive
