"""Ranking against slow references written from the paper's equations, scipy, and numbers worked out by hand."""

import copy
import dataclasses
import logging
import math
import subprocess
import sys
import warnings

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.stats

from hf_gateau.ranking import columns as ranking_columns
from hf_gateau.ranking import config, formulas
from hf_gateau.ranking.columns import DERIVED_COLUMNS
from hf_gateau.ranking.config import RankConfig
from hf_gateau.ranking.formulas import Rows
from hf_gateau.ranking.order import DegenerateRankingWarning, rank, ranking_record
from tests.paths import ROOT
from tests.ranking.references import (
    REF_CAS,
    REF_HMP,
    REF_ROW_CAS,
    REF_TOKEN_CAS,
    REF_TOKEN_HMP,
    dataset,
    derived,
    measurements,
    ref_scores,
)


pytestmark = pytest.mark.quick


LN3 = math.log(3)
EVERY_SETTING = (
    [{"mode": mode} for mode in formulas.MODES]
    + [{"cas": name} for name in formulas.CAS]
    + [{"hmp": name} for name in formulas.HMP]
    + [{"combine": name} for name in formulas.COMBINE]
    + [{"method": name, "seed": 3} for name in formulas.METHODS]
)
# Of which every good row has a rank, and the same one wherever it stands
OF_CONTENT = [setting for setting in EVERY_SETTING if setting.get("method") not in ("full", "no_long")]
ids = str


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Degenerate data are common among the small examples here; the tests of the warnings turn them on again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateRankingWarning)
        yield


close = {"rel": 1e-11, "abs": 1e-13}


@pytest.mark.parametrize("combine", formulas.COMBINE)
@pytest.mark.parametrize("cas", [*REF_CAS, *REF_ROW_CAS])
@pytest.mark.parametrize("hmp", [*REF_HMP, *REF_TOKEN_HMP])
def test_every_combination_equals_its_reference(hmp, cas, combine):
    columns = measurements(n=23, seed=1)
    out = derived(rank(pd.DataFrame(columns), hmp=hmp, cas=cas, combine=combine, alpha=0.7))
    hmps, cass, scores = ref_scores(columns, hmp, cas, combine, 0.7)
    assert out["gateau_hmp"] == pytest.approx(hmps, **close)
    assert out["gateau_cas"] == pytest.approx(cass, **close)
    assert out["gateau_score"] == pytest.approx(scores, **close)
    best_first = sorted(range(23), key=lambda i: (-out["gateau_score"][i], columns["gateau_key"][i]))
    assert [out["gateau_rank"][i] for i in best_first] == list(range(1, 24))


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("paper", ("softmax", "paper", "softmax")),
        ("released", ("minmax", "paper", "released")),
        ("robust", ("need_tokens", "far_tokens", "rank")),
        ("mean", ("log_difference", "gain_far", "rank")),
    ],
)
def test_modes_are_their_triples_and_what_is_explicit_wins(mode, parts):
    data = dataset()
    out = rank(data, mode=mode)
    assert derived(out)["gateau_score"] == pytest.approx(ref_scores(measurements(), *parts, 0.8)[2], **close)
    assert tuple(ranking_record(out)[name] for name in ("hmp", "cas", "combine")) == parts
    other = rank(data, mode=mode, hmp="rank", cas="spearman", combine="rank")
    assert derived(other) == derived(rank(data, hmp="rank", cas="spearman", combine="rank"))


def test_default_is_robust_with_alpha_08():
    assert derived(rank(dataset())) == derived(rank(dataset(), method="gateau", mode="robust", alpha=0.8))


def test_ties_in_ranks_equal_scipy():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 9, 200).astype(float)
    np.testing.assert_allclose(formulas.normalised_rank(x), (scipy.stats.rankdata(x) - 1) / 199)
    rows = Rows(np.array([50, 1, 149]))
    expected = [scipy.stats.rankdata(part) - 1 for part in np.split(x, [50, 51])]
    np.testing.assert_array_equal(formulas.segment_ranks(x, rows), np.concatenate(expected))


# By hand


def test_golden_paper_equations():
    """Norm([1, 1 + ln 3]) = [1/4, 3/4]; HMP = that minus [1/2, 1/2]. Row 1: IS = [1/4, 3/4], Attn = [3/4, 1/4], so
    CAS = 2 * 3/16 / (10/16) = 0.6; row 2: IS = Attn, so CAS = 1. Eq. 6 with softmax(±1/4) and softmax(0.6, 1)."""
    frame = pd.DataFrame(
        {
            "gateau_ppl_short": [1.0, 1 + LN3],
            "gateau_ppl_long": [5.0, 5.0],
            "gateau_segment_ppl": [[2.0, 2 + LN3], [7.0, 7 + LN3]],
            "gateau_segment_attention": [[LN3, 0.0], [0.0, LN3]],
        }
    )
    out = derived(rank(frame, mode="paper", alpha=0.5))
    assert out["gateau_hmp"] == pytest.approx([-0.25, 0.25], abs=1e-15)
    assert out["gateau_cas"] == pytest.approx([0.6, 1.0], abs=1e-15)
    low = (1 / (1 + math.exp(0.5)) + 1 / (1 + math.exp(0.4))) / 2
    assert out["gateau_score"] == pytest.approx([low, 1 - low], abs=1e-15)
    assert out["gateau_rank"] == [2, 1]
    assert out["gateau_percentile"] == [50.0, 100.0]
    assert out["gateau_note"] == [None, None]


def test_golden_released():
    """Min-max: short [0, 1/2, 1], long [0, 0, 1], so HMP [0, 1/2, 0]; softmax of it has 2 + sqrt(e) below."""
    frame = pd.DataFrame(
        {
            "gateau_ppl_short": [1.0, 2.0, 3.0],
            "gateau_ppl_long": [1.0, 1.0, 2.0],
            "gateau_segment_ppl": [[2.0, 2 + LN3]] * 3,
            "gateau_segment_attention": [[LN3, 0.0]] * 3,
        }
    )
    out = derived(rank(frame, mode="released", alpha=0.8))
    total = 2 + math.exp(0.5)
    assert out["gateau_hmp"] == [0.0, 0.5, 0.0]
    expected = [0.8 * x / total + 0.2 * 0.6 for x in (1, math.exp(0.5), 1)]
    assert out["gateau_score"] == pytest.approx(expected, abs=1e-15)
    assert out["gateau_rank"] == [2, 1, 3]
    assert out["gateau_percentile"] == pytest.approx([200 / 3, 100, 200 / 3])


@pytest.mark.parametrize(("cas", "expected"), [("gain", 2.0), ("gain_far", 1.0), ("gain_distance", 1.2)])
def test_golden_gains(cas, expected):
    """nll [3, 1, 3, 3, 2]: median 3, gains [0, 2, 0, 0, 1]; N = 5, so two segments are near, and 3 follow segment 1."""
    frame = pd.DataFrame({"gateau_segment_ppl": [[math.exp(x) for x in (3, 1, 3, 3, 2)]]})
    assert derived(rank(frame, hmp="none", cas=cas))["gateau_cas"] == pytest.approx([expected])


def test_near_segments_are_a_quarter_and_at_most_four():
    near = {2: 1, 3: 1, 4: 1, 5: 2, 8: 2, 9: 3, 13: 4, 16: 4, 17: 4, 40: 4}
    for size, k in near.items():
        for at, sign in ((size - k, -1), (size - k - 1, 1)):  # a gain just inside and just outside
            ppl = [[math.exp(0.0 if i == at else 1.0) for i in range(size)]]
            frame = pd.DataFrame({"gateau_segment_ppl": ppl})
            assert np.sign(derived(rank(frame, hmp="none", cas="gain_far"))["gateau_cas"][0]) == sign, (size, at)


def test_direction_of_each_cas_is_the_papers():
    """Attention on the segments that matter least (high perplexity alone) is hard: high CAS in all four."""
    frame = pd.DataFrame(
        {
            "gateau_segment_ppl": [[1.0, 2.0, 3.0, 4.0]] * 2,
            "gateau_segment_attention": [[0.1, 0.2, 0.3, 0.5], [0.5, 0.3, 0.2, 0.1]],
        }
    )
    for cas in ("paper", "raw", "pearson", "spearman"):
        assert derived(rank(frame, hmp="none", cas=cas))["gateau_rank"] == [1, 2], cas


def test_a_telling_far_segment_is_high_in_the_gain_family():
    far, near, flat = [9.0, 1.1, 9, 9, 9, 9, 9, 9], [9.0, 9, 9, 9, 9, 9, 9, 1.1], [9.0] * 8
    frame = pd.DataFrame({"gateau_segment_ppl": [near, flat, far]})
    assert derived(rank(frame, hmp="none", cas="gain_far"))["gateau_rank"] == [3, 2, 1]
    assert derived(rank(frame, hmp="none", cas="gain_distance"))["gateau_rank"][2] == 1


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        # 0.2 - 0.1 is below tau; min(5, 4) - 1 - 0.5 = 2.5; the instruction alone tells the third; the fourth is not gained
        ({"hmp": "need"}, 2.5),
        ({"hmp": "need", "tau": 0.0}, 3.1),
        ({"hmp": "need_mean"}, 0.625),
        (
            {"hmp": "need_tokens"},
            math.exp(-1)
            - math.exp(-4)
            - 0.1
            + (math.exp(-0.1) - math.exp(-0.3) + math.exp(-1) - math.exp(-4) - 0.2) * 2**-20,
        ),
        ({"hmp": "key_tokens"}, 2.0),
        ({"hmp": "longfilter"}, (0.1 * math.exp(-0.1) + 4 * math.exp(-1) + 3 * math.exp(-1) - math.exp(-9)) / 4),
        # near 4, without context 4, far 1.2: 2.3; far below what the whole context gives counts as that alone
        ({"cas": "far_need"}, 2.3),
        ({"cas": "far_need", "tau": 0.0}, 2.8 + 0.05),
        ({"cas": "far_tokens"}, math.exp(-1.2) - math.exp(-4) - 0.1),
        ({"cas": "places"}, 1.0),
        ({"cas": "places", "tau": 0.0}, 2.0),
    ],
    ids=ids,
)
def test_golden_tokens(setting, expected):
    frame = pd.DataFrame(
        {
            "gateau_token_nll_long": [[0.1, 1.0, 1.0, 9.0]],
            "gateau_token_nll_short": [[0.2, 5.0, 4.0, 8.0]],
            "gateau_token_nll_no_context": [[0.3, 4.0, 1.0, 9.0]],
            "gateau_token_nll_far": [[0.05, 1.2, 1.0, 9.0]],
            "gateau_token_nll_near": [[0.15, 4.0, 9.0, 9.0]],
            "gateau_token_far_segment": [[3, 0, 0, 1]],
        }
    )
    [term] = setting.keys() - {"tau"}
    out = derived(rank(frame, **{"hmp": "none", "cas": "none"} | setting))
    assert out[f"gateau_{term}"] == pytest.approx([expected], rel=1e-12)


def test_without_a_far_segment_there_is_no_far_need_and_without_a_near_one_the_instruction_stands_for_it():
    columns = measurements()
    for name in ("gateau_token_nll_far", "gateau_token_far_segment"):
        columns[name][:20] = [[]] * 20
    columns["gateau_token_nll_near"][10:30] = [[]] * 20
    for cas, reference in REF_TOKEN_CAS.items():
        out = derived(rank(pd.DataFrame(columns), hmp="none", cas=cas))
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        assert out["gateau_cas"] == pytest.approx([reference(row) for row in rows], **close)
        assert out["gateau_cas"][:20] == [0.0] * 20 and any(out["gateau_cas"][20:30])
        assert out["gateau_note"] == [None] * 60


def test_broken_evidence_of_tokens_gets_a_note():
    columns, nan = measurements(), float("nan")
    columns["gateau_token_nll_long"][:3] = [None, [], [nan] * len(columns["gateau_token_nll_long"][2])]
    columns["gateau_token_nll_short"][3] = [1.0] * 50
    columns["gateau_token_nll_far"][4:6] = [None, [1.0] * 50]
    out = derived(rank(pd.DataFrame(columns)))["gateau_note"]
    assert {i: note for i, note in enumerate(out) if note} == {
        0: "HMP is undefined: gateau_token_nll_long is null",
        1: "HMP is undefined: gateau_token_nll_long and gateau_token_nll_short differ in length",
        2: "HMP is undefined: gateau_token_nll_long holds a value that is not a finite number",
        3: "HMP is undefined: gateau_token_nll_long and gateau_token_nll_short differ in length",
        4: "CAS is undefined: gateau_token_nll_far is null",
        5: "CAS is undefined: gateau_token_nll_long and gateau_token_nll_far differ in length",
    }


def test_broken_numbers_of_heads_get_a_note():
    columns, nan = measurements(), float("nan")
    columns["gateau_segment_heads"][:3] = [None, [], [nan, 1.0]]
    columns["gateau_num_far_segments"][3:5] = [None, -1]
    frame = pd.DataFrame(columns)
    for data in (frame, datasets.Dataset.from_pandas(frame)):
        out = derived(rank(data, cas="heads"))["gateau_note"]
        assert {i: note for i, note in enumerate(out) if note} == {
            0: "CAS is undefined: gateau_segment_heads is null",
            1: "CAS is undefined: the context has 0 segments of 1 needed",
            2: "CAS is undefined: gateau_segment_heads holds a value that is not a finite number",
            3: "gateau_num_far_segments is null, or not a count",
            4: "gateau_num_far_segments is null, or not a count",
        }


def test_rows_without_far_segments_are_the_last_by_heads():
    """By hand: the most of far segments minus the most of near ones; the row's lowest for those that are not there."""
    frame = pd.DataFrame(
        {"gateau_segment_heads": [[5.0, 1.0, 2.0], [0.0, 3.0, 1.0], [0.0, 3.0, -1.0], [0.0, 3.0, -1.0]]}
    )
    frame["gateau_num_far_segments"] = [2, 1, 0, 3]
    out = derived(rank(frame, hmp="none", cas="heads"))
    assert out["gateau_cas"] == [3.0, -3.0, -4.0, 4.0] and out["gateau_rank"] == [2, 3, 4, 1]
    with pytest.raises(ValueError, match="gateau_segment_heads; .*hf-gateau score --cam heads"):
        rank(frame.drop(columns="gateau_segment_heads"), hmp="none", cas="heads")


def test_rows_measured_by_heads_are_not_ranked_by_segments():
    """Not by those few rows either that have both."""
    columns = measurements()
    for name in columns:
        if name in ("gateau_segment_ppl", "gateau_segment_attention") or "_far" in name and "num" not in name:
            columns[name] = [None] * 31 + columns[name][31:]
    for data in (frame := pd.DataFrame(columns), datasets.Dataset.from_pandas(frame)):
        for settings in ({}, {"mode": "mean"}, {"mode": "paper"}, {"method": "ladm"}):
            with pytest.raises(
                ValueError, match="cam='heads' measures no segments, and .* needs gateau_.*cas='heads'"
            ):
                rank(data, **settings)
        assert derived(rank(data, cas="heads"))["gateau_note"] == [None] * 60
    assert ranking_record(rank(frame.drop(columns="gateau_segment_heads")))["num_ranked"] == 29


# Alpha and the ablations


@pytest.mark.parametrize("combine", formulas.COMBINE)
def test_alpha_0_and_1_and_the_ablations_are_single_terms(combine):
    data = dataset()
    for alpha, ablation in ((1.0, {"cas": "none"}), (0.0, {"hmp": "none"})):
        both, alone = (derived(rank(data, combine=combine, alpha=alpha, **kind)) for kind in ({}, ablation))
        assert both["gateau_score"] == alone["gateau_score"]
        assert both["gateau_rank"] == alone["gateau_rank"]
    assert derived(rank(data, cas="none"))["gateau_cas"] == [None] * len(data)
    assert derived(rank(data, hmp="none"))["gateau_hmp"] == [None] * len(data)


def test_baselines():
    columns, data = measurements(), dataset()
    methods = [name for name in formulas.METHODS if not formulas.is_gateau(name)]
    scores = {method: derived(rank(data, method=method))["gateau_score"] for method in methods}
    assert scores["perplexity"] == columns["gateau_ppl_long"]
    for method, other in (("ifd", "gateau_ppl_response"), ("ifd_context", "gateau_ppl_no_context")):
        pairs = zip(columns["gateau_ppl_long"], columns[other], strict=True)
        assert scores[method] == [with_context / without for with_context, without in pairs]
    lengths = zip(columns["gateau_num_context_tokens"], columns["gateau_num_response_tokens"], strict=True)
    lengths = [(context, context + response) for context, response in lengths]
    assert [lengths[i] for i in np.argsort([-s for s in scores["longest"]])] == sorted(lengths, reverse=True)
    assert all(0 <= s < 1 for s in scores["random"])
    assert (
        scipy.stats.kstest(
            derived(rank(dataset(**measurements(2000)), method="random"))["gateau_score"], "uniform"
        ).pvalue
        > 0.01
    )
    for method in methods:
        assert derived(rank(data, method=method))["gateau_hmp"] == [None] * len(data)


def test_random_depends_on_the_seed_and_on_the_key_or_else_the_position():
    data = dataset()
    first = derived(rank(data, method="random", seed=1))["gateau_score"]
    assert first != derived(rank(data, method="random", seed=2))["gateau_score"]
    assert (
        first[::-1]
        == derived(rank(data.select(range(len(data) - 1, -1, -1)), method="random", seed=1))["gateau_score"]
    )
    bare = data.select_columns(["id"])
    assert len(set(derived(rank(bare, method="random"))["gateau_score"])) == len(bare)
    assert derived(rank(bare, method="random")) == derived(rank(bare, method="random"))


# Order of rows, size of batches


@pytest.mark.parametrize("setting", OF_CONTENT, ids=ids)
def test_shuffled_rows_get_bit_identical_scores(setting):
    columns = measurements(n=257, seed=5)
    columns["gateau_segment_ppl"][3] = [2.0, float("nan"), 1.0]
    columns["gateau_ppl_long"][7] = None
    columns["gateau_ppl_short"][9] = 1e6
    columns["gateau_ppl_short"][20:30] = [1.5] * 10
    frame = pd.DataFrame(columns)
    expected = rank(frame, **setting).set_index("id")[list(DERIVED_COLUMNS)]
    for seed in range(3):
        shuffled = rank(frame.sample(frac=1, random_state=seed), **setting).set_index("id")[list(DERIVED_COLUMNS)]
        pd.testing.assert_frame_equal(shuffled.loc[expected.index], expected, check_exact=True)


@pytest.mark.parametrize("cas", ["paper", "spearman", "gain_far"])
def test_batch_bounds_change_nothing(cas, monkeypatch):
    data = dataset().select(range(17))
    expected = derived(rank(data, cas=cas))
    for batch_rows, batch_values in ((1, 1000), (7, 20), (1000, 1)):
        monkeypatch.setattr(ranking_columns, "BATCH_ROWS", batch_rows)
        monkeypatch.setattr(ranking_columns, "BATCH_VALUES", batch_values)
        assert derived(rank(data, cas=cas)) == expected
        assert derived(rank(data.to_pandas(), cas=cas)) == expected


def test_ties_go_by_key_then_by_position():
    keys = ["cfg:d", None, "cfg:b", "cfg:c", None, "cfg:a", "cfg:b"]
    data = datasets.Dataset.from_dict({"gateau_ppl_long": [2.0, 2, 2, 2, 2, 1, 2], "gateau_key": keys})
    out = derived(rank(data, method="perplexity"))
    assert out["gateau_rank"] == [4, 5, 1, 3, 6, 7, 2]
    assert out["gateau_percentile"] == pytest.approx([100.0] * 5 + [100 / 7] + [100.0])
    without = derived(rank(data.remove_columns("gateau_key"), method="perplexity"))
    assert without["gateau_rank"] == [1, 2, 3, 4, 5, 7, 6]


# Rows that cannot be ranked


def broken() -> tuple[dict[str, list], dict[int, str]]:
    columns, nan, inf = measurements(), float("nan"), float("inf")
    columns["gateau_error"][0] = "no response tokens"
    columns["gateau_ppl_short"][0:2] = [None, None]
    columns["gateau_ppl_long"][2:6] = [nan, inf, 0.0, -1.0]
    columns["gateau_segment_ppl"][6:13] = [None, [], [2.0], [2.0, nan], [2.0, 0.0], [2.0, inf], [1.0, 2.0, 3.0]]
    columns["gateau_segment_attention"][6:13] = [None, [], [0.1], [0.1, 0.2], [0.1, 0.2], [0.1, 0.2], [0.1, 0.2]]
    columns["gateau_segment_ppl"][13:17] = [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    columns["gateau_segment_attention"][13:17] = [None, [0.1, None], [0.1, inf], [0.0, 0.0]]
    number = "is null, or not positive and finite"
    ppl = "CAS is undefined: gateau_segment_ppl holds a value that is not a positive finite number"
    attention = "CAS is undefined: gateau_segment_attention holds a value that is not a finite number"
    notes = {0: "no response tokens", 1: f"gateau_ppl_short {number}"}
    notes |= dict.fromkeys(range(2, 6), f"gateau_ppl_long {number}") | dict.fromkeys((9, 10, 11), ppl)
    notes[6] = "CAS is undefined: gateau_segment_ppl is null"
    notes[7] = "CAS is undefined: the context has 0 segments of 2 needed"
    notes[8] = "CAS is undefined: the context has 1 segment of 2 needed"
    notes[12] = "CAS is undefined: gateau_segment_ppl and gateau_segment_attention differ in length"
    notes[13] = "CAS is undefined: gateau_segment_attention is null"
    notes |= dict.fromkeys((14, 15), attention)
    notes[16] = "CAS is undefined: the values of its segments are constant, or all 0"
    return columns, notes


@pytest.mark.parametrize("make", [datasets.Dataset.from_dict, pd.DataFrame])
@pytest.mark.parametrize("cas", ["raw", "pearson", "spearman"])
def test_broken_rows_get_a_note_and_touch_no_other(make, cas, caplog):
    columns, notes = broken()
    with caplog.at_level(logging.WARNING):
        out = derived(rank(make(columns), cas=cas, mode="paper"))
    assert {i: note for i, note in enumerate(out["gateau_note"]) if note} == notes
    good = [i for i in range(60) if i not in notes]
    alone = derived(rank(pd.DataFrame(columns).iloc[good], cas=cas, mode="paper"))
    for name in DERIVED_COLUMNS:
        assert [out[name][i] for i in good] == alone[name]
        assert name == "gateau_note" or {out[name][i] for i in notes} == {None}
    assert [record.message for record in caplog.records] == [caplog.records[0].message]
    assert caplog.records[0].message.startswith("17 of 60 rows have no rank: {'gateau_ppl_long is null")


def test_a_method_ignores_what_it_does_not_need():
    columns, notes = broken()
    alone = derived(rank(pd.DataFrame(columns), mode="mean", cas="none"))["gateau_note"]
    assert {i for i, note in enumerate(alone) if note} == set(range(6))
    assert derived(rank(pd.DataFrame(columns)))["gateau_note"] == ["no response tokens"] + [None] * 59
    assert derived(rank(pd.DataFrame(columns), cas="gain", hmp="none"))["gateau_note"][14:16] == [None, None]
    assert derived(rank(pd.DataFrame(columns), method="random"))["gateau_note"][1:] == [None] * 59


def test_no_row_one_row_no_good_row():
    data, frame = dataset(), pd.DataFrame(measurements())
    for empty in (
        data.select([]),
        data.select(range(0)),
        datasets.Dataset.from_dict(dict.fromkeys(measurements(), [])),
    ):
        assert derived(rank(empty)) == {name: [] for name in DERIVED_COLUMNS}
    assert derived(rank(data.select([4])))["gateau_rank"] == [1]
    for setting in EVERY_SETTING:
        assert derived(rank(frame.iloc[:0], **setting)) == {name: [] for name in DERIVED_COLUMNS}
        one = derived(rank(frame.iloc[4:5], **setting))
        if setting.get("method") == "no_long":
            continue
        assert one["gateau_rank"] == [1] and one["gateau_percentile"] == [100.0] and one["gateau_note"] == [None]
    dead = rank(dataset(gateau_error=["broken"] * 60))
    assert derived(dead) == {name: [None] * 60 for name in DERIVED_COLUMNS} | {"gateau_note": ["broken"] * 60}
    assert dead.features["gateau_rank"].dtype == "int64"
    nothing = datasets.Dataset.from_dict({name: [None, None] for name in measurements() if name != "id"})
    assert derived(rank(nothing))["gateau_rank"] == [None, None]


@pytest.mark.parametrize("setting", OF_CONTENT, ids=ids)
def test_huge_perplexities(setting):
    columns = measurements()
    columns["gateau_ppl_short"][:4] = [1e6, 1e6 + 800, 1e300, 1.0]
    columns["gateau_ppl_long"][:4] = [1e6, 1e6 - 800, 1.0, 1e300]
    columns["gateau_segment_ppl"][:3] = [[1e6, 1e6 + 800], [1e300, 1.0, 1e300], [1e308, 1e308, 1e307]]
    columns["gateau_segment_attention"][:3] = [[1e-6, 2e-6], [1e-300, 1e-308, 1e-300], [1e-4, 3e-4, 2e-4]]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        out = derived(rank(pd.DataFrame(columns), **setting))
    assert all(isinstance(s, float) and math.isfinite(s) for s in out["gateau_score"]), out["gateau_note"][:4]
    assert sorted(out["gateau_rank"]) == list(range(1, 61))


# Warnings


def caught(data, **setting) -> str:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        rank(data, **setting)
    assert all(item.category is DegenerateRankingWarning and item.filename == __file__ for item in found)
    return "\n".join(str(item.message) for item in found)


@pytest.mark.parametrize("setting", EVERY_SETTING, ids=ids)
def test_no_warning_on_good_data(setting):
    assert caught(pd.DataFrame(measurements()), **setting) == ""


def test_one_hot_softmax_warns():
    columns = measurements()
    columns["gateau_ppl_short"][5] = 40.0
    message = caught(dataset(**columns), mode="paper")
    assert "One row holds 100% of the softmax Norm(gateau_ppl_short) of Eq. 2 over 60 rows" in message
    assert "Norm(gateau_ppl_long)" not in message and "mode='robust'" in message
    assert "softmax Norm(HMP) over 60" in caught(dataset(**columns), hmp="difference", combine="softmax")
    assert caught(dataset(**columns), mode="robust") == caught(dataset(**columns), mode="released") == ""
    assert caught(dataset(**columns), mode="paper", alpha=0.0) == ""


def test_short_sibling_that_saw_everything_warns():
    columns = measurements()
    columns["gateau_ppl_short"] = columns["gateau_ppl_long"]
    columns["gateau_token_nll_short"] = columns["gateau_token_nll_long"]
    for mode in formulas.MODES:
        message = caught(dataset(**columns), mode=mode)
        assert message.count("HMP") == 1 and "short_window" in message and "hmp='none'" in message


def test_term_without_spread_warns():
    columns = measurements()
    columns["gateau_ppl_short"] = [1e-12 * i + p for i, p in enumerate(columns["gateau_ppl_long"])]
    message = caught(dataset(**columns), hmp="difference", combine="softmax")
    assert message.startswith("HMP does not count") and "mode='robust'" in message and "alpha=0.8" in message
    assert caught(dataset(**columns), hmp="difference", combine="rank") == ""
    columns = measurements() | {"gateau_segment_ppl": [[2.0, 3.0]] * 60, "gateau_segment_attention": [[0.1, 0.9]] * 60}
    assert "CAS does not count" in (message := caught(dataset(**columns), mode="mean")) and "cas='none'" in message
    assert caught(dataset(**columns), mode="mean", alpha=1.0) == ""


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_cas_that_does_not_see_attention_warns(mode):
    columns = measurements()
    columns["gateau_segment_attention"] = [[a * 1e-3 for a in row] for row in columns["gateau_segment_attention"]]
    message = caught(dataset(**columns), mode=mode)
    assert message.startswith("CAS does not see attention") and "mode='robust'" in message
    for cas in ("raw", "pearson", "spearman", "gain"):
        assert caught(dataset(**columns), mode=mode, cas=cas) == ""


def test_warnings_name_the_split_and_are_recorded():
    columns = measurements()
    columns["gateau_ppl_short"] = columns["gateau_ppl_long"]
    columns["gateau_token_nll_short"] = columns["gateau_token_nll_long"]
    data = datasets.DatasetDict({"good": dataset(), "flat": dataset(**columns)})
    for settings in ({}, {"hmp": "need"}, {"mode": "mean"}):
        assert caught(data, **settings).startswith("flat: HMP is 0 on every row")
    record = ranking_record(rank(data))
    assert record["good"]["warnings"] == [] and len(record["flat"]["warnings"]) == 1


# Containers


def test_dataset_keeps_everything_else(tmp_path):
    columns = measurements() | {"messages": [[{"role": "user", "content": f"text {i}"}] for i in range(60)]}
    info = datasets.DatasetInfo(description="Mine.\n", citation="me", license="mit", version=datasets.Version("1.2.3"))
    datasets.Dataset.from_dict(columns, info=info, split="train").save_to_disk(tmp_path / "in")
    data = datasets.load_from_disk(tmp_path / "in").with_format("numpy", columns=["gateau_ppl_long"])
    before = copy.deepcopy(data.info)
    out = rank(data)
    assert type(out) is datasets.Dataset and out.column_names == [*data.column_names, *DERIVED_COLUMNS]
    assert data.info == before
    assert out.format == data.format and out.split == data.split
    assert (out.info.citation, out.info.license, out.info.version) == ("me", "mit", info.version)
    assert out.info.description.startswith("Mine.\n\n\n<!-- gateau:ranking {")
    assert out.cache_files == data.cache_files  # the text is still read from its own file
    plain = out.with_format(None)
    assert {name: plain[:][name] for name in columns} == columns
    kinds = {name: out.features[name].dtype for name in DERIVED_COLUMNS}
    assert kinds == dict.fromkeys(DERIVED_COLUMNS[:-1], "float64") | {"gateau_rank": "int64", "gateau_note": "string"}
    assert rank(data)._fingerprint == out._fingerprint


def test_ranking_again_replaces_columns():
    first = rank(dataset(), method="perplexity")
    again = rank(first)
    assert again.column_names == first.column_names
    assert derived(again) == derived(rank(dataset()))
    frame = rank(rank(pd.DataFrame(measurements()), method="perplexity"))
    assert derived(frame) == derived(again) and list(frame.columns) == again.column_names


def test_pandas_is_a_new_frame_with_the_same_index():
    frame = pd.DataFrame(measurements(), index=[f"i{i // 2}" for i in range(60)])
    frame.attrs["mine"] = 1
    out = rank(frame)
    assert not set(DERIVED_COLUMNS) & set(frame.columns) and "gateau_ranking" not in frame.attrs
    pd.testing.assert_frame_equal(out[list(frame.columns)], frame)
    assert derived(out) == derived(rank(dataset())) and out.attrs["mine"] == 1
    assert [str(out[name].dtype) for name in DERIVED_COLUMNS] == ["float64"] * 3 + ["Int64", "float64", "string"]


def test_dataset_dict_ranks_each_split_by_itself():
    data = datasets.DatasetDict({"a": dataset(), "b": dataset(**measurements(seed=9))})
    out = rank(data)
    assert type(out) is datasets.DatasetDict
    assert {split: derived(part) for split, part in out.items()} == {s: derived(rank(p)) for s, p in data.items()}


@pytest.mark.parametrize("cas", ["spearman", "gain_far"])
def test_index_mappings_slices_and_list_types(cas, tmp_path):
    columns = broken()[0]
    data = datasets.Dataset.from_dict(columns)
    data.save_to_disk(tmp_path, num_shards=3)
    data = datasets.load_from_disk(tmp_path)
    chosen = [*range(50, 5, -2), 3, 3]
    views = {"mapped": data.select(chosen), "sliced": data.select(range(5, 50)), "shuffled": data.shuffle(seed=1)}
    views["pieces"] = datasets.concatenate_datasets([data.select(range(40, 60)), data.select(range(3, 17))])
    for name, view in views.items():
        flat = datasets.Dataset.from_dict(view.to_dict())
        assert derived(rank(view, cas=cas)) == derived(rank(flat, cas=cas)), name
        assert rank(view, cas=cas)["id"][:] == view["id"][:]


@pytest.mark.parametrize("cas", ["raw", "gain_far"])
def test_arrow_list_types(cas):
    columns = measurements(min_segments=3, max_segments=3)
    for name in formulas.SEGMENT_COLUMNS:
        columns[name][4] = None
        columns[name] = [row and [float(np.float32(x)) for x in row] for row in columns[name]]
    expected = derived(rank(pd.DataFrame(columns).iloc[2:], cas=cas))
    types = [
        pa.list_(pa.float64()),
        pa.large_list(pa.float64()),
        pa.list_(pa.float64(), 3),
        pa.large_list(pa.float32()),
    ]
    for kind in types:
        arrays = {name: pa.array(columns[name], kind) for name in formulas.SEGMENT_COLUMNS}
        table = pa.table({name: arrays.get(name, values) for name, values in columns.items()}).slice(2)
        assert derived(rank(datasets.Dataset(table), cas=cas)) == expected, kind
    hidden = pa.array([[0.0, 0.0, 0.0]] * 60)  # values under a null are not the next row's
    mask = pa.array([i == 4 for i in range(60)])
    for name in formulas.SEGMENT_COLUMNS:
        flat = pa.array([x for row in columns[name] for x in row or [7.0, 7.0, 7.0]])
        columns[name] = pa.ListArray.from_arrays(hidden.offsets, flat, mask=mask)
    assert derived(rank(datasets.Dataset(pa.table(columns).slice(2)), cas=cas)) == expected


# The record


def test_record_round_trip(tmp_path):
    columns, notes = broken()
    columns["gateau_error"][0] = "bad --> {worse} -->"
    columns["gateau_key"][3:5] = ["other:1:2", "no prefix"]
    data = datasets.Dataset.from_dict(columns, info=datasets.DatasetInfo(description="My data."))
    assert ranking_record(data) is None and ranking_record(data.to_pandas()) is None
    out = rank(data, mode="paper", alpha=0.7, cas="raw", seed=5)
    record = ranking_record(out)
    assert record["num_ranked"] == 43 and sum(record["num_unranked"].values()) == 17
    assert record["num_unranked"]["bad --> {worse} -->"] == 1
    assert record["measuring_configs"] == ["cfg", "other"]
    expected = {"method": "gateau", "mode": "paper", "hmp": "softmax", "cas": "raw", "combine": "softmax"}
    expected |= {"alpha": 0.7, "seed": 5}
    assert {name: record[name] for name in expected} == expected and record["version"]
    out.save_to_disk(tmp_path)
    assert ranking_record(datasets.load_from_disk(tmp_path)) == record
    assert ranking_record(rank(data.to_pandas(), mode="paper", alpha=0.7, cas="raw", seed=5)) == record
    assert ranking_record(out.filter(lambda r: r in (1, 2, 3), input_columns="gateau_rank").select(range(2))) == record


def test_record_is_replaced_and_the_users_text_stays():
    data = rank(dataset(), alpha=0.3)
    data.info.description = f"Before.\n\n{data.info.description}\nAfter."
    for _ in range(2):
        data = rank(data, method="ifd_context")
    assert data.info.description.count("gateau:ranking") == 1 and data.info.description.startswith("Before.\nAfter.")
    record = ranking_record(data)
    assert record["method"] == "ifd_context" and record["alpha"] is None and record["mode"] is None
    assert ranking_record(rank(dataset())) == ranking_record(rank(rank(dataset(), method="ifd")))


def test_parts_ranked_apart_have_no_common_record(caplog):
    parts = [rank(dataset(), alpha=0.3), rank(dataset(), alpha=0.4)]
    both = datasets.concatenate_datasets(parts)
    assert ranking_record(both) is None and "of parts made apart; make it again on the whole" in caplog.text
    assert ranking_record(rank(both))["num_ranked"] == 120
    assert ranking_record(datasets.DatasetDict({"a": parts[0], "b": dataset()}))["b"] is None


def test_the_record_stays_short_and_mixed_measurements_are_told(caplog):
    errors = [f"row {i} failed" for i in range(30)] + [None] * 30
    record = ranking_record(rank(dataset(gateau_error=errors, gateau_key=[f"{i % 2}:{i}" for i in range(60)])))
    assert len(record["num_unranked"]) == 21 and record["num_unranked"]["other reasons"] == 10
    assert "measured in different ways" in caplog.text and "['0', '1']" in caplog.text


# What is refused


def test_missing_columns_are_named():
    data = dataset(gateau_segment_ppl=None, gateau_ppl_short=None, gateau_token_nll_short=None)
    for part in (data, data.to_pandas()):
        with pytest.raises(
            ValueError, match="gateau_token_nll_short; the data have .*rows measured before .*mode='mean'"
        ):
            rank(part)
        with pytest.raises(ValueError, match="gateau_ppl_short, gateau_segment_ppl; the data have .*gateau_score"):
            rank(part, mode="mean")
        assert derived(rank(part, method="perplexity"))["gateau_rank"]
    with pytest.raises(ValueError, match="needs the column.s. gateau_ppl_no_context; .*gateau_score"):
        rank(dataset(gateau_ppl_no_context=None), method="ifd_context")
    bare = dataset(gateau_error=None, gateau_key=None, gateau_segment_attention=None)
    assert derived(rank(bare, mode="mean")) == derived(rank(dataset(), mode="mean"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"method": "best"}, "method='best' is not known; use one of 'gateau', 'without_hmg'"),
        ({"mode": "letter"}, "mode='letter'.*'robust', 'mean', 'paper', 'released'"),
        ({"hmp": "log"}, "hmp='log'.*'log_difference'"),
        ({"cas": "kendall"}, "cas='kendall'.*'spearman'"),
        ({"combine": "sum"}, "combine='sum'.*'rank'"),
        ({"alpha": 1.1}, "alpha=1.1 is not between 0 and 1; use"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"hmp": "none", "cas": "none"}, "nothing to rank by"),
        ({"seed": 0.5}, "whole number, got 0.5"),
    ],
    ids=ids,
)
def test_bad_arguments(bad, message):
    with pytest.raises(ValueError, match=message):
        rank(dataset(), **bad)


def test_streams_are_refused():
    with pytest.raises(TypeError, match="got list_iterator; a ranking needs all the rows at once"):
        rank(iter([{"gateau_ppl_long": 2.0}]))


# Configuration and imports


def test_config_names_are_the_tables():
    assert set(config.RANK_METHODS) == set(formulas.METHODS)
    assert set(config.RANK_MODES) == set(formulas.MODES)
    assert set(config.HMP_VARIANTS) == set(formulas.HMP)
    assert set(config.CAS_VARIANTS) == set(formulas.CAS)
    assert set(config.COMBINE_VARIANTS) == set(formulas.COMBINE)


def test_rank_config_on_the_command_line():
    parser = pytest.importorskip("transformers.hf_argparser").HfArgumentParser(RankConfig)
    (parsed,) = parser.parse_args_into_dataclasses(["--mode", "paper", "--alpha", "0.7", "--cas", "none"])
    assert parsed == RankConfig(mode="paper", alpha=0.7, cas="none")
    fields = dataclasses.fields(RankConfig)
    assert all(field.metadata["help"] for field in fields)
    assert "seed" not in {field.name for field in fields}  # TrainingArguments has it; one parser must hold both


def test_imports_stay_light():
    heavy = "{'torch', 'transformers', 'datasets', 'pandas', 'pyarrow', 'sklearn'}"
    code = f"import sys, hf_gateau.settings, hf_gateau.ranking.order; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
