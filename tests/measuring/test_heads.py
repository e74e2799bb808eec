"""Heads chosen among others whose attention has habits alone, on made-up rows of several lengths; and the arithmetic by hand."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from hf_gateau.measuring import heads
from hf_gateau.measuring.heads import (
    CalibrationRow,
    HeadCalibration,
    auroc,
    choose_heads,
    far_minus_near,
    likely_heads,
    segment_distances,
    segment_gains,
)


pytestmark = pytest.mark.quick

NAMES = [(layer, head) for layer in range(5) for head in range(8)]
FOLLOWING = [(1, 3), (2, 0), (2, 7), (3, 5), (4, 1)]  # these look where it matters
WINDOWED = (0, 2)  # and this one too, but only in the last 500 tokens


def make_row(number: int, rng, telling: bool = True, noise: float = 0.4) -> CalibrationRow:
    """A row of 8 to 40 segments, one of which tells; every head has a slope over distance, and likes the first segment."""
    size = int(rng.integers(8, 41))
    distances = segment_distances(range(0, 128 * size - 30, 128), 128, 128 * size - 30)
    gains = rng.normal(0, 0.02, size)
    place = int(rng.integers(size))
    gains[place] += 2.0 if telling else 0.0
    slopes = np.linspace(-1.5, 0.5, len(NAMES))
    found = np.log(distances)[:, None] * slopes + rng.normal(0, noise, (size, len(NAMES)))
    found[0] += np.linspace(0, 3, len(NAMES))
    for name in [*FOLLOWING, WINDOWED]:
        found[:, NAMES.index(name)] += 2 * gains
    attention = np.exp(found)
    attention /= attention.sum(0) * 128
    attention[distances > 500, NAMES.index(WINDOWED)] = 0.0
    return CalibrationRow(f"{number:04}", attention, gains, distances, size - 4)


def make_rows(count: int, seed: int = 0, **kwargs) -> list[CalibrationRow]:
    rng = np.random.default_rng(seed)
    return [make_row(number, rng, telling=number % 3 > 0, **kwargs) for number in range(count)]


def test_heads_that_follow_the_gains_are_found_whatever_their_habits():
    rows = make_rows(60)
    found = choose_heads(rows, NAMES)
    assert set(FOLLOWING) <= set(found.heads) and WINDOWED not in found.heads and len(found.heads) == 8
    assert found.agreement > 0.95 and found.auroc > 0.95 and found.refusal is None
    assert (found.num_rows, found.num_tested) == (60, 40)
    columns = [NAMES.index(head) for head in found.heads]
    others = make_rows(40, seed=9)
    seen = [found.calibrated(row.attention[:, columns], row.distances) for row in others]
    hits = [x.argmax() == row.gains.argmax() for x, row in zip(seen, others, strict=True) if row.is_telling]
    assert np.mean(hits) > 0.95
    mean = [row.attention.mean(1).argmax() == row.gains.argmax() for row in others if row.is_telling]
    assert np.mean(mean) < 0.5  # the average of all heads, as Eq. 4 takes it


def test_order_of_rows_does_not_matter_and_shorter_rows_have_the_same_habits():
    rows = make_rows(40)
    found = choose_heads(rows, NAMES)
    random.Random(0).shuffle(rows)
    assert choose_heads(rows, NAMES) == found
    row = rows[0]
    columns = [NAMES.index(head) for head in found.heads]
    far = found.calibrated(row.attention[:, columns], row.distances * 64)  # no calibration row was as long
    assert np.isfinite(far).all()


def test_agreement_is_of_rows_that_chose_nothing(monkeypatch):
    """Each half's heads are tried on the other half alone."""
    rows, seen = make_rows(30), []
    real = heads._chosen
    monkeypatch.setattr(heads, "_chosen", lambda part, names: seen.append([x.key for x in part]) or real(part, names))
    choose_heads(rows, NAMES)
    keys = [row.key for row in rows]
    assert seen == [keys[::2], keys[1::2], keys]


def test_what_does_not_serve_says_why():
    """No row that tells; too few to try heads on; heads that follow nothing."""
    none = choose_heads(make_rows(30)[::3], NAMES)
    assert none.heads == () and none.refusal == "none of 10 calibration rows has a segment that tells of its response"
    assert choose_heads([], NAMES).refusal == "none of 0 calibration rows has a segment that tells of its response"
    few = choose_heads(make_rows(6), NAMES)
    assert few.agreement is None and few.refusal.startswith(
        "4 of 6 calibration rows have one telling segment, and 6 are"
    )
    noisy = choose_heads(make_rows(60, noise=8.0), NAMES)
    assert noisy.agreement < 0.8 and f"find the telling segment of {noisy.agreement:.0%} of 40 rows" in noisy.refusal


def test_few_heads_of_a_small_model_are_chosen():
    rows = [replace(row, attention=row.attention[:, :12]) for row in make_rows(40)]
    assert choose_heads(rows, NAMES[:12]).heads[-1] == (1, 3)
    assert len(choose_heads(rows, NAMES[:12]).heads) == 2  # of eleven that see far segments


def test_json_both_ways_and_what_the_digest_tells():
    found = choose_heads(make_rows(40), NAMES)
    again = HeadCalibration.from_json(json.loads(json.dumps(found.to_json())) | {"of a later version": 1})
    assert again == found and again.digest == found.digest
    assert replace(found, agreement=0.1, num_rows=7).digest == found.digest
    others = (
        replace(found, epsilon=1e-3),
        replace(found, heads=found.heads[::-1]),
        replace(found, bins=tuple(b + 1 for b in found.bins)),
        replace(found, habits=((*found.habits[0][:-1], 0.5), *found.habits[1:])),
    )
    assert len({found.digest, *(other.digest for other in others)}) == 5
    row = make_rows(2)[1]
    columns = [NAMES.index(head) for head in found.heads]
    attention = row.attention[:, columns]
    np.testing.assert_array_equal(
        again.calibrated(attention, row.distances), found.calibrated(attention, row.distances)
    )


def test_calibrated_by_hand():
    """Distances 300, 100 and 50 are in bins 16, 13 and 11, of which there are habits for 11 and 16 alone."""
    found = HeadCalibration(((0, 0), (1, 0)), (11, 16), ((0.5, -0.5), (1.0, 2.0)), epsilon=0.0)
    attention = np.array([[0.01, 0.02], [0.02, 0.02], [0.04, 0.08]])
    a, b = math.log(0.5) + 0.5, 0.0 - 2.0  # far: minus the median, minus the habit
    c, d = 0.0 - 0.5, 0.0 - 1.0
    e, f = math.log(2) - 0.5, math.log(4) - 1.0
    expected = [(a + b) / 2, (c + d) / 2, (e + f) / 2]
    assert found.calibrated(attention, np.array([300.0, 100.0, 50.0])) == pytest.approx(expected)
    assert found.calibrated(np.zeros((0, 2)), np.zeros(0)).tolist() == []


def test_gains_and_distances_by_hand():
    assert segment_gains([2.0, 1.0, 4.0]) == pytest.approx([0.0, math.log(2), -math.log(2)])
    assert segment_distances([0, 128, 256], 128, 300).tolist() == [236.0, 108.0, 22.0]
    assert far_minus_near(np.array([1.0, 5.0, 2.0]), 2) == 3.0
    assert far_minus_near(np.array([1.0, 5.0, 2.0]), 0) == -4.0 and far_minus_near(np.array([1.0, 5.0, 2.0]), 3) == 4.0


def test_auroc_is_the_share_of_pairs():
    rng = random.Random(0)
    values, positive = [rng.randint(0, 9) for _ in range(50)], [rng.random() < 0.4 for _ in range(50)]
    pairs = [
        (a > b) + (a == b) / 2
        for a, x in zip(values, positive, strict=True)
        for b, y in zip(values, positive, strict=True)
        if x and not y
    ]
    assert auroc(values, positive) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc([1.0, 2.0], [True, True]) is None


def test_likely_heads_are_of_layers_that_see_everything():
    found = likely_heads([0, 4, 0, 0, 4, 4])
    assert len(found.heads) == 3 and {layer for layer, _ in found.heads} == {1, 4, 5}
    assert len(likely_heads([32] * 32).heads) == 8 and likely_heads([2]).heads == ((0, 0),)
