"""Two rankings side by side, against orders whose distance is counted pair by pair."""

import json
import re

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_gateau import compare, rank
from hf_gateau.cli import main
from hf_gateau.files.writing import save_rows
from hf_gateau.ranking.order import ranking_record
from hf_gateau.records import attach_record
from hf_gateau.report.comparison import Comparison, kendall, line_of, overlap, settings_of, spearman
from hf_gateau.report.comparison_text import comparison_text, scatter
from tests.measured import measured


pytestmark = [
    pytest.mark.quick,
    pytest.mark.filterwarnings("ignore::hf_gateau.ranking.order.DegenerateRankingWarning"),
]


def turns(i: int) -> list[dict]:
    return [
        {"role": "user", "content": f"A long text.\n\nWhat of {i} ?"},
        {"role": "assistant", "content": f"It is {i}."},
    ]


def ordered(ranks, **columns) -> Dataset:
    """Rows c:k0, c:k1, ... with such ranks."""
    columns = {
        "messages": [turns(i) for i in range(len(ranks))],
        "gateau_key": [f"c:k{i}" for i in range(len(ranks))],
        "gateau_rank": ranks,
        "gateau_score": [None if x is None else -float(x) for x in ranks],
    } | columns
    return Dataset.from_dict({name: values for name, values in columns.items() if values is not None})


# ---- numbers


def slow(a, b) -> tuple[float, float]:
    """Pearson's correlation of the places; and the pairs in the same order minus the others, over all."""
    n = len(a)
    signs = [np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i in range(n) for j in range(i)]
    return float(np.corrcoef(a, b)[0, 1]), float(np.mean(signs))


@pytest.mark.parametrize("n", [2, 3, 10, 127, 128, 129, 130, 300, 700])
def test_correlations_agree_with_counting_every_pair(n):
    rng = np.random.default_rng(n)
    a = rng.permutation(n) + 1
    for b in (rng.permutation(n) + 1, np.argsort(np.argsort(a + rng.normal(0, n / 4, n))) + 1):
        assert (spearman(a, b), kendall(a, b)) == pytest.approx(slow(a, b), abs=1e-12)


def test_correlations_at_their_limits():
    a = np.arange(1, 401)
    assert spearman(a, a) == kendall(a, a) == 1 and spearman(a, a[::-1]) == kendall(a, a[::-1]) == -1
    assert spearman(a[:1], a[:1]) is None and kendall(a[:1], a[:1]) is None


def test_they_agree_with_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.permutation(500) + 1, rng.permutation(500) + 1
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)


def test_many_rows_take_no_time():
    """Pair by pair they would take minutes, and 80 GB."""
    assert abs(kendall(np.arange(1, 100_001), np.random.default_rng(0).permutation(100_000) + 1)) < 0.01


def test_overlap_counts_the_best_of_both():
    a, b = np.arange(1, 21), np.array([2, 11, 1, 12, 3, 13, *range(4, 11), *range(14, 21)])
    for fraction, num_top in ((0.1, 2), (0.3, 6), (0.5, 10), (0.01, 1)):
        best = [{i for i, x in enumerate(places) if x <= num_top} for places in (a, b)]
        found = overlap(a, b, fraction)
        assert (found.num_top, found.num_both) == (num_top, len(best[0] & best[1]))
        assert found.jaccard == len(best[0] & best[1]) / len(best[0] | best[1])
    assert overlap(a, a, 0.3).jaccard == 1


# ---- which rows are the same


def test_rows_are_the_same_that_say_the_same_wherever_they_stand():
    a = ordered([1, 2, 3, 4, 5, None], gateau_key=[f"a:k{i}" for i in range(6)])
    b = ordered([None, 1, 2, 5, 4, 3], gateau_key=[f"b:k{i}" for i in (5, 4, 9, 0, 1, 2)])  # row 3 not, and another
    found = compare(a, b)
    assert found.matched_by == "gateau_key" and found.num_common == 5
    assert found.frame[["position_a", "position_b", "rank_a", "rank_b"]].values.tolist() == [
        *([0, 3, 1, 5], [1, 4, 2, 4], [2, 5, 3, 3], [4, 1, 5, 1])
    ]
    assert found.frame[["place_a", "place_b"]].values.tolist() == [[1, 4], [2, 3], [3, 2], [4, 1]]
    assert found.spearman == found.kendall == -1
    assert (found.a.num_rows, found.a.num_ranked, found.a.num_alone, found.a.num_ranked_alone) == (6, 5, 1, 0)
    assert (found.b.num_rows, found.b.num_ranked, found.b.num_alone, found.b.num_ranked_alone) == (6, 5, 1, 0)


def test_rows_that_one_side_alone_ranks_are_counted():
    found = compare(ordered([1, 2, 3, None]), ordered([1, None, None, 2]))
    assert (found.num_common, len(found.frame)) == (4, 1) and found.spearman is None and not found.moved
    assert (found.a.num_ranked_alone, found.b.num_ranked_alone) == (2, 1)
    assert "Orders" not in comparison_text(found)


def test_what_a_row_says_comes_first_and_copies_have_partners():
    hashes = {"gateau_content_hash": ["x", "y", "x", "x"]}
    a = ordered([1, 2, 3, 4], **hashes)
    found = compare(a, ordered([4, 3, 2, 1], gateau_content_hash=["x", "x", "z", "y"], gateau_key=list("pqrs")))
    assert found.matched_by == "gateau_content_hash"
    assert found.frame[["position_a", "position_b"]].values.tolist() == [[0, 0], [1, 3], [2, 1]]
    other_form = ordered([1, 2, 3, 4], gateau_content_hash=list("pqrs"))  # the same turns in other columns
    assert compare(a, other_form).matched_by == "gateau_key"
    null = ordered([1, 2], gateau_key=[None, "c:k1"])
    assert compare(null, ordered([2, 1])).num_common == 1


@pytest.mark.parametrize(
    "a, b, error, message",
    [
        (ordered([1]), [1], TypeError, "B is a list"),
        (DatasetDict(train=ordered([1])), ordered([1]), TypeError, "A is a DatasetDict"),
        (ordered([1]), ordered([1]).remove_columns("gateau_rank"), ValueError, "not ranked"),
        (ordered([1, 1]), ordered([1, 2]), ValueError, "Rows of A share a rank"),
        (ordered([1]), ordered([1], gateau_key=None), ValueError, "Nothing tells which rows are the same"),
        (ordered([1]), ordered([1], gateau_key=["c:x"]), ValueError, "No row of one is in the other, by gateau_key"),
        (ordered([1, None]), ordered([None, 1]), ValueError, "No row has a rank in both A and B"),
    ],
)
def test_what_cannot_be_compared_is_refused(a, b, error, message):
    with pytest.raises(error, match=message):
        compare(a, b)


# ---- what is told


def test_terms_have_places_of_their_own():
    known = {"gateau_ppl_long": [2.0] * 4, "gateau_ppl_short": [2.0, 8.0, 4.0, 4.0], "gateau_cas": [None] * 4}
    a = ordered([1, 2, 3, 4], **known, gateau_hmp=[4.0, 3.0, 2.0, 1.0])
    b = ordered([4, 2, 3, 1], **known, gateau_hmp=[0.1, 0.3, 0.2, None])
    found = compare(a, b)
    assert found.frame["need_a"].tolist() == pytest.approx(np.log([1, 4, 2, 2]).tolist())
    assert found.frame["need_place_a"].tolist() == found.frame["need_place_b"].tolist() == [4, 1, 2.5, 2.5]
    assert found.frame["hmp_place_a"].tolist() == [1, 2, 3, 4] and found.frame["cas_place_a"].isna().all()
    first, last = found.moved
    assert (first.position, first.place) == ({"a": 0, "b": 0}, {"a": 1, "b": 4})
    assert first.terms == {"hmp": {"a": 1, "b": 3}, "cas": {"a": None, "b": None}, "need": {"a": 4, "b": 4}}
    assert first.most == "hmp" and last.terms["hmp"] == {"a": 4, "b": None} and last.most is None
    assert first.text == "What of 0 ? -> It is 0."
    assert [row.position["a"] for row in compare(a, b, num_rows=1).moved] == [0]
    assert line_of({"id": 7}) == "7"


def test_settings_that_differ_stand_side_by_side():
    ds = measured(40)
    measuring = {"config_key": "c", "long": {"model": "/home/me/long"}, "short": {"window": 4096}, "max_length": 9000}
    attach_record(ds, "measuring", measuring)
    other = measured(40, gateau_key=[key.replace("c:", "d:") for key in ds["gateau_key"]])
    attach_record(other, "measuring", measuring | {"config_key": "d", "short": {"window": 8192, "rope_scale": 2.0}})
    found = compare(
        rank(ds, alpha=0.5, hmp="minmax", cas="gain"), rank(other, alpha=0.7, hmp="difference", cas="gain")
    )
    assert found.different == {
        **{"hmp": {"a": "minmax", "b": "difference"}, "alpha": {"a": "0.5", "b": "0.7"}},
        **{"config_key": {"a": "c", "b": "d"}, "short.window": {"a": "4096", "b": "8192"}},
        "short.rope_scale": {"a": "-", "b": "2"},
    }
    assert settings_of(rank(ds))["long.model"] == "long" and len(found.frame) == 40
    same = compare(rank(ds), rank(ds))
    assert same.different == {} and same.moved == [] and same.spearman == same.kendall == 1
    assert "Measured and ranked alike" in comparison_text(same)


def test_scatter_puts_every_row_where_it_is():
    lines = list(scatter(np.arange(1, 41), np.arange(1, 41), 10, 5))
    assert [line[8:-1] for line in lines[1:]] == ["..        ", "  ..      ", "    ..    ", "      ..  ", "        .."]
    crowded = list(scatter(np.arange(1, 2001), np.arange(1, 2001)[::-1], 2, 2))
    assert [line[8:-1] for line in crowded[1:]] == [" #", "# "]


def test_the_text_holds_nothing_that_a_terminal_obeys():
    hostile = [
        {"role": "user", "content": "\x1b[2J\u202eA long text.\n\nWhat ?"},
        {"role": "assistant", "content": "\x07No."},
    ]
    found = compare(ordered([1, 2], messages=[hostile] * 2), ordered([2, 1]))
    assert not set("\x1b\x07\u202e") & set(comparison_text(found)) and "No." in comparison_text(found)


# ---- the command


def run(*arguments) -> int:
    return main(["compare", *map(str, arguments)])


def test_the_command_tells_and_writes_the_same(tmp_path, capsys):
    ds = measured(60, messages=[turns(i) for i in range(60)], gateau_content_hash=[f"h{i}" for i in range(60)])
    for name in ("robust", "paper"):
        part = rank(ds, mode=name).select(range(0 if name == "robust" else 5, 60))
        save_rows(part, str(tmp_path / f"{name}.parquet"), {"ranking": ranking_record(part)})
    files = [tmp_path / "robust.parquet", tmp_path / "paper.parquet"]
    assert run(*files, "-n", 3, "--json", tmp_path / "new" / "numbers.json") == 0
    out = capsys.readouterr().out
    found: Comparison = compare(rank(ds, mode="robust"), rank(ds, mode="paper").select(range(5, 60)), num_rows=3)
    assert f"{files[0]}: 60 rows, 5 of them not in the other, 60 ranked" in out
    assert "55 rows are in both, by gateau_content_hash; 55 have a rank in both" in out
    assert f"Spearman {found.spearman:.3f}, Kendall {found.kendall:.3f}" in out
    for x in found.overlaps:
        assert f"Best {x.fraction:.0%}: {x.num_both} of {x.num_top} rows are in both (Jaccard {x.jaccard:.2f})" in out
    assert re.search("\nmode +robust +paper\n", out) and "The 3 rows that disagree most" in out
    for row in found.moved:
        assert f"{row.place['a']} -> {row.place['b']}" in out and f"row {row.position['a']}: {row.text}" in out
    assert max(map(len, out.splitlines()[3:])) <= 100
    written = json.loads((tmp_path / "new" / "numbers.json").read_text())
    assert written["different"].pop("data") == {"a": "robust.parquet", "b": "paper.parquet"}
    names = {side: written[side] | {"name": name} for side, name in (("a", "A"), ("b", "B"))}
    assert written | names == json.loads(json.dumps(found.to_dict()))


def test_the_command_ranks_both_as_it_is_told(tmp_path, capsys):
    measured(30).to_parquet(tmp_path / "measured.parquet")
    rank(measured(30), mode="paper").to_parquet(tmp_path / "ranked.parquet")
    files = [tmp_path / "measured.parquet", tmp_path / "ranked.parquet"]
    assert run(*files, "-n", 0) == 0
    assert "Spearman 1.000" not in capsys.readouterr().out
    assert run(*files, "--alpha", 0.5) == 0  # both anew
    assert "Spearman 1.000, Kendall 1.000" in capsys.readouterr().out


def test_the_command_refuses_what_it_cannot_do(tmp_path, capsys):
    measured(10).to_parquet(tmp_path / "a.parquet")
    measured(10, gateau_key=[f"c:x{i}" for i in range(10)]).to_parquet(tmp_path / "b.parquet")
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for arguments, message in (
        ([a], "the following arguments are required: other"),
        ([a, b], "No row of one is in the other"),
        ([a, tmp_path / "c.parquet"], "There is no file or folder"),
        ([a, b, "-o", "numbers.csv"], "give a name that ends in .json"),
        ([a, b, "-n", -1], "--num_rows is a number of rows, got -1"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
