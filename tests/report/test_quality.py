"""The figures against scipy, and against numbers that can be counted by hand."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from hf_gateau.report.quality import auroc, bootstrap_interval, precision_at


pytestmark = pytest.mark.quick


def test_auroc_by_hand():
    # pairs (positive, negative): 3>2, 3>1, 2=2, 2>1: 3.5 of 4
    assert auroc([3, 2, 2, 1], [True, True, False, False]) == 3.5 / 4
    assert auroc([1, 2], [False, True]) == 1.0
    assert auroc([2, 1], [False, True]) == 0.0
    assert auroc([5, 5, 5], [True, False, True]) == 0.5


def test_auroc_takes_infinite_scores():
    assert auroc([np.inf, 0.0, -np.inf], [True, False, False]) == 1.0


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_is_mann_whitney(levels):
    rng = np.random.default_rng(levels)
    scores, positive = rng.integers(0, levels, 200).astype(float), rng.random(200) < 0.3
    u = mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert auroc(scores, positive) == pytest.approx(u / (positive.sum() * (~positive).sum()), abs=1e-15)
    assert auroc(-scores, positive) == pytest.approx(1 - auroc(scores, positive), abs=1e-15)


def test_precision_by_hand():
    scores, positive = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [True, False, True] + [False] * 7
    assert precision_at(scores, positive, 0.1) == 1.0
    assert precision_at(scores, positive, 0.2) == 0.5
    assert precision_at(scores, positive, 0.3) == pytest.approx(2 / 3)
    assert precision_at(scores, positive, 1.0) == 0.2
    assert precision_at(scores, positive, 0.001) == 1.0  # one row at least


def test_precision_is_the_mean_over_tie_breaks():
    # one row above the border, then 2 of 4 tied rows, of which 1 in 4 is positive: (1 + 2 / 4) / 3
    assert precision_at([2, 1, 1, 1, 1, 0], [True, True, False, False, False, True], 0.5) == 0.5
    assert precision_at([1, 1, 1, 1], [True, False, False, False], 0.25) == 0.25


def test_bootstrap_is_reproducible_and_holds_the_estimate():
    rng = np.random.default_rng(0)
    positive = np.arange(80) < 30
    scores = rng.normal(size=80) + positive
    low, high = bootstrap_interval(auroc, scores, positive)
    assert low < auroc(scores, positive) < high
    assert (low, high) == bootstrap_interval(auroc, scores, positive)
    narrow = bootstrap_interval(auroc, scores, positive, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_width_is_that_of_the_known_standard_error():
    # The mean of n=400 standard normals has a 95% interval of 2 * 1.96 / 20 = 0.196.
    scores = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval(lambda x, _: x.mean(), scores, np.arange(400) < 200, num_resamples=4000)
    assert high - low == pytest.approx(0.196 * scores.std(), rel=0.05)


def test_bootstrap_is_stratified():
    scores, positive = np.arange(20.0), np.arange(20) < 2
    assert bootstrap_interval(lambda _, p: p.sum(), scores, positive, num_resamples=50) == (2.0, 2.0)
    perfect = bootstrap_interval(auroc, -scores, positive, num_resamples=50)
    assert perfect == (1.0, 1.0)


def test_what_is_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are null"):
        auroc([np.nan, 1], [True, False])
    with pytest.raises(ValueError, match="2 positive and 0 negative"):
        auroc([0, 1], [True, True])
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        auroc([0, 1], [True, True, False])
    with pytest.raises(ValueError, match="fraction=0"):
        precision_at([0, 1], [True, False], 0)
    with pytest.raises(ValueError, match="at least one row"):
        precision_at([], [], 0.5)
    with pytest.raises(ValueError, match="level=95"):
        bootstrap_interval(auroc, [0, 1], [True, False], level=95)
