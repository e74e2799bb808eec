"""Rows whose segments were not measured, in order: what is certain of it, against the order in which all segments are measured."""

import numpy as np
import pytest
from datasets import Dataset

from hf_gateau import rank, ranking_record, select, selection_record
from hf_gateau.measuring.screening import choose_rows, num_sampled, safe_fraction
from hf_gateau.ranking.bounds import OF_SEGMENTS, SCREENED, bound_of, stand_for
from hf_gateau.ranking.formulas import MODES, normalised_rank
from tests.measured import measured


ABOUT = {"hmp": "an HMP", "tau": 0.5, "segments_key": "", "values_key": "", "alpha": 0.8}
MODES_ON_RANKS = [mode for mode, (_, _, combine) in MODES.items() if combine == "rank"]


def screened(ds: Dataset, share: float, **settings) -> Dataset:
    """The rows as `segments_for` measures them."""
    hmp, keys = np.array(rank(ds, **settings)["gateau_hmp"], float), ds["gateau_key"]
    found = choose_rows(hmp, keys, np.ones(len(ds), bool), share, **ABOUT)
    low = [found.is_low(x) for x in hmp]
    left = [is_low and not found.is_sampled(key) for is_low, key in zip(low, keys, strict=True)]
    out = ds.to_dict() | {SCREENED: low}
    for name in OF_SEGMENTS:
        out[name] = [None if is_left else x for x, is_left in zip(out[name], left, strict=True)]
    return Dataset.from_dict(out)


def best(ds: Dataset, number: int) -> set[str]:
    return {key for key, place in zip(ds["gateau_key"], ds["gateau_rank"], strict=True) if place and place <= number}


def scores(ds: Dataset) -> np.ndarray:
    return np.array(ds["gateau_score"], float)


@pytest.mark.parametrize("mode", MODES_ON_RANKS)
@pytest.mark.parametrize("alpha", [0.7, 0.8, 0.95])
def test_no_row_without_segments_belongs_to_the_best(mode, alpha):
    """Statement 1 of `bounds`, with columns drawn at random, some tied; and what h alone promises is kept."""
    for seed, share in enumerate((0.45, 0.6, 0.7)):
        ds = measured(300, seed)
        full, part = (rank(x, mode=mode, alpha=alpha) for x in (ds, screened(ds, share, mode=mode, alpha=alpha)))
        found = ranking_record(part)["screening"]
        without = {key for key, cas in zip(part["gateau_key"], part["gateau_cas"], strict=True) if cas is None}
        assert len(without) == found["num_without"] > 0
        assert part["gateau_hmp"] == full["gateau_hmp"] and None not in part["gateau_rank"]
        number = found["num_safe"]
        assert not best(full, number) & without and not best(part, number) & without
        ties = 300 * share - sum(not x for x in part[SCREENED])  # that did not fit into the share
        assert number >= 300 * safe_fraction(share, alpha) - ties - 2
        of_others = scores(full)[[key in without for key in full["gateau_key"]]]
        assert of_others.max() <= found["highest_score"] + 1e-12
        of_others = np.array(
            [[x, y] for x, y, cas in zip(scores(part), scores(full), part["gateau_cas"], strict=True) if cas is None]
        )
        assert (of_others[:, 0] <= of_others[:, 1] + 1e-12).all()  # never falsely before another


def test_the_bound_is_sharp():
    """One row more, and there are segments that bring a row without them among the best."""
    n, alpha = 40, 0.8
    hmp = np.arange(n, dtype=float)
    low = hmp < 20
    cas = np.where(low, np.nan, n - hmp)  # the measured rows' CAS in the order that hurts most
    bound = bound_of(hmp, cas, low, low.astype(float), alpha)
    worst = np.where(low, 100 + hmp, n - hmp)  # all others above them
    full = alpha * normalised_rank(hmp) + (1 - alpha) * normalised_rank(worst)
    assert (full > full[19]).sum() == bound.num_safe


def test_scores_are_as_close_as_the_sample_makes_them():
    """Statement 2: the error holds 95 times in 100, and with it the number of rows that may be others."""
    held, same, alike = [], [], []
    for seed in range(20):
        ds = measured(300, seed)
        full, part = rank(ds), rank(screened(ds, 0.45))
        found = ranking_record(part)["screening"]
        known = [cas is not None for cas in part["gateau_cas"]]
        assert found["num_sampled"] == num_sampled(sum(not x for x in part[SCREENED]), sum(part[SCREENED]))
        held.append(np.abs(scores(full) - scores(part))[known].max() <= found["error"])
        number = min(found["num_safe"], 40)
        record = selection_record(select(part, top_k=number))
        others = len(best(full, number) - best(part, number))
        same.append(others <= record.screening["num_uncertain"])
        alike.append(1 - others / number)
    assert np.mean(held) >= 0.95 and np.mean(same) >= 0.95 and np.mean(alike) > 0.9


def test_with_all_segments_nothing_is_estimated():
    ds = measured(120)
    low = [i % 3 > 0 for i in range(120)]
    part = rank(ds.add_column(SCREENED, low))
    assert part["gateau_score"] == rank(ds)["gateau_score"] and "screening" not in ranking_record(part)
    assert set(stand_for(np.zeros(120, bool), np.array(low, float))) == {1.0}


def test_weights_are_repeated_rows():
    x = np.array([3.0, 1.0, 2.0, 7.0])
    weight = np.array([1, 2, 0, 3])
    again = normalised_rank(np.repeat(x, weight))
    found = normalised_rank(x, weight.astype(float))
    np.testing.assert_allclose(np.repeat(found, weight), again)
    assert found[2] == 0


def test_rows_without_segments_are_told_and_counted():
    part = rank(screened(measured(200), 0.45))
    notes = {note for note, cas in zip(part["gateau_note"], part["gateau_cas"], strict=True) if cas is None}
    number = ranking_record(part)["screening"]["num_safe"]
    assert notes == {f"segments not measured: HMP too low to be among the best {number}"}
    record = ranking_record(part)
    assert record["num_ranked"] == 200 and record["num_unranked"] == {}
    with_bad = part.to_dict()
    with_bad["gateau_error"][0] = "out of memory"
    record = ranking_record(rank(Dataset.from_dict(with_bad)))
    assert record["num_ranked"] == 199 and record["num_unranked"] == {"out of memory": 1}


def test_what_needs_all_segments_is_refused():
    part = screened(measured(200), 0.45)
    for settings in ({"mode": "paper"}, {"method": "without_hmg"}, {"combine": "released"}):
        with pytest.raises(
            ValueError, match="rows have no segments, since their HMP was too low when segments_for chose"
        ):
            rank(part, **settings)
    for settings in ({"method": "without_cam"}, {"method": "perplexity"}, {"method": "ladm"}):
        ranked = rank(part, **settings)
        assert ranking_record(ranked)["num_ranked"] == 200 and "screening" not in ranking_record(ranked)


def test_a_selection_that_is_not_certain_is_refused():
    part = rank(screened(measured(200), 0.45))
    number, highest = (ranking_record(part)["screening"][name] for name in ("num_safe", "highest_score"))
    assert len(select(part, top_k=number)) == number == len(best(part, number))
    with pytest.raises(ValueError, match=f"certain of the best {number} alone. Ask for at most top_k={number}"):
        select(part, top_k=number + 1)
    with pytest.raises(ValueError, match=r"fraction=0.5 keeps 100 of 200 ranked rows"):
        select(part, fraction=0.5)
    with pytest.raises(ValueError, match="Select without strata"):
        select(part, top_k=2, strata="source")
    kept = select(part, min_score=highest + 1e-9)
    assert None not in kept["gateau_cas"]
    with pytest.raises(ValueError, match="min_score"):
        select(part, min_score=highest / 2)
    stream = part.to_iterable_dataset()
    stream.info.description = part.info.description
    assert len(list(select(stream, min_score=highest + 1e-9))) == len(kept)
    with pytest.raises(ValueError, match="rows without segments may score up to"):
        select(stream, min_score=highest)


def test_ties_are_not_split_and_a_share_that_tells_nothing_is_refused():
    hmp, keys = np.array([5.0, 4, 4, 4, 1, 1, 1, 1, 1, np.nan]), [str(i) for i in range(10)]
    all_rows = np.ones(10, bool)
    assert choose_rows(hmp, keys, all_rows, 0.33, **ABOUT).least == 5
    found = choose_rows(hmp, keys, all_rows, 0.45, **ABOUT)
    assert (found.least, found.num_high, found.num_rows, found.num_sampled) == (4, 4, 9, 1)
    sampled = [i for i, x in enumerate(hmp) if found.is_low(x) and found.is_sampled(keys[i])]
    assert len(sampled) == 1 and not found.is_low(None)
    others = choose_rows(hmp, keys, np.arange(10) != sampled[0], 0.45, **ABOUT)  # which has its segments anyway
    assert others.sampled > found.sampled and others.num_sampled == 1
    with pytest.raises(ValueError, match="5 have the highest HMP"):
        choose_rows(hmp[4:], keys[4:], all_rows[4:], 0.3, **ABOUT)


@pytest.mark.parametrize("alpha", [0.7, 0.8, 0.95])
def test_what_hmp_alone_makes_certain(alpha):
    """No more than what `rank` finds with the segments, and what is promised where no HMP is tied."""
    for seed in range(5):
        values = np.random.default_rng(seed).random(200).round(seed % 3 + 1)  # from ten values to no tie
        keys, has_choice = [str(i) for i in range(200)], np.ones(200, bool)
        found = choose_rows(values, keys, has_choice, 0.5, **ABOUT | {"alpha": alpha})
        low = values < found.least
        cas = np.where(low, np.nan, 0.0)
        cas[~low] = -np.arange((~low).sum())
        bound = bound_of(values, cas, low, low.astype(float), alpha)
        assert found.num_certain <= bound.num_safe
        full = alpha * normalised_rank(values) + (1 - alpha) * normalised_rank(np.where(low, 1.0, 0.0))
        assert found.num_certain <= (full > full[low].max()).sum()  # all of low HMP with the best segments
        if len(set(values)) == 200:
            assert found.num_certain >= int(200 * safe_fraction(0.5, alpha)) - 1
