"""Figures against slow and obvious computations on the same rows, and their files byte by byte."""

import re
import time
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from datasets import DatasetDict, concatenate_datasets
from matplotlib.figure import Figure as Canvas
from matplotlib.image import imread

from hf_gateau import rank, select
from hf_gateau.records import attach_record
from hf_gateau.report.drawing import WIDTH, Figure, save_png, to_svg, to_svgs
from hf_gateau.report.figures import figures, segment_figures, write_figures
from tests.measured import SOURCES, measured


@pytest.fixture(scope="module")
def ranked():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rank(measured(120))


def by_name(*arguments, **settings) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures(*arguments, **settings)}


def best(ds, num_kept) -> set[str]:
    """Ids of the rows of the lowest ranks."""
    rows = sorted((place, name) for place, name in zip(ds["gateau_rank"], ds["id"], strict=True) if place is not None)
    return {name for _, name in rows[:num_kept]}


def test_all_figures_are_there_in_words_and_numbers(ranked):
    found = by_name(ranked)
    assert list(found) == [
        "score_distribution",
        "hmp_and_cas",
        "score_and_length",
        "kept_by_length",
        "kept_by_source",
        "baseline_overlap",
        "alpha_stability",
        "reach",
    ]
    for figure in found.values():
        header, rows = figure.table
        assert rows and all(len(row) == len(header) for row in rows)
        assert "120 ranked rows" in figure.text and figure.text.endswith(".") and "  " not in figure.text


def test_distribution_counts_every_row_and_cuts_at_the_last_kept(ranked):
    figure = by_name(ranked, {"a quarter": 0.25, "all": 1.0})["score_distribution"]
    assert sum(row[2] for row in figure.table[1]) == 120
    scores = sorted(ranked["gateau_score"], reverse=True)
    assert figure.text.endswith(f"a quarter {scores[29]:.3g}, all {scores[-1]:.3g}.")


def test_kept_share_by_source(ranked):
    kept = best(ranked, 12)
    rows = by_name(ranked)["kept_by_source"].table[1]
    assert {row[0] for row in rows} == set(SOURCES)
    for source, in_top, size, share in rows:
        names = {row["id"] for row in ranked if row["source"] == source}
        assert (in_top, size, share) == (len(names & kept), len(names), len(names & kept) / len(names))


def test_kept_share_by_length(ranked):
    kept = best(ranked, 12)
    rows = by_name(ranked)["kept_by_length"].table[1]
    assert [row[0] for row in rows][:2] == ["256 to 511", "512 to 1,023"] and sum(row[2] for row in rows) == 120
    for label, in_top, size, _ in rows:
        low, high = (int(x.replace(",", "")) for x in label.split(" to "))
        names = {row["id"] for row in ranked if low <= row["gateau_num_context_tokens"] <= high}
        assert high == 2 * low - 1 and (in_top, size) == (len(names & kept), len(names))


def test_overlap_with_baselines(ranked):
    figure, kept = by_name(ranked)["baseline_overlap"], best(ranked, 12)
    names = {"Perplexity": "perplexity", "IFD of context": "ifd_context", "longest": "longest", "random": "random"}
    expected = {label: len(best(rank(ranked, method=method), 12) & kept) for label, method in names.items()}
    assert {row[0]: row[1] for row in figure.table[1]} == expected
    assert all(row[2] == row[1] / 12 for row in figure.table[1]) and "have 10% in common" in figure.text


@pytest.mark.parametrize(
    "settings", [{}, {"mode": "mean"}, {"mode": "released", "alpha": 0.5}, {"combine": "softmax"}]
)
@pytest.mark.filterwarnings("ignore::hf_gateau.ranking.order.DegenerateRankingWarning")
def test_stability_is_what_ranking_again_gives(settings):
    # Two segment perplexities and two of the models': many ties, which the key alone can break
    rng = np.random.default_rng(1)
    tied = {"gateau_ppl_short": rng.choice([4.0, 5.0], 60), "gateau_ppl_long": [2.0] * 60}
    tied["gateau_segment_ppl"] = rng.choice([2.0, 3.0], (60, 8)).tolist()
    for columns in ({}, tied):
        ds = rank(measured(60, seed=3, **columns), **settings)
        kept = best(ds, 6)
        for alpha, common, share in by_name(ds)["alpha_stability"].table[1]:
            again = best(rank(ds, **settings | {"alpha": alpha}), 6)
            assert (common, share) == (len(kept & again), len(kept & again) / 6)


def test_without_keys_ties_go_by_position():
    tied = measured(40, gateau_ppl_short=[4.0, 5.0] * 20, gateau_ppl_long=[3.0] * 40)
    ds = rank(tied.remove_columns("gateau_key"), mode="mean")
    for alpha, common, _ in by_name(ds)["alpha_stability"].table[1]:
        assert common == len(best(ds, 4) & best(rank(ds, mode="mean", alpha=alpha), 4))


def test_what_the_data_do_not_have_is_left_out(ranked):
    longest = rank(measured(50), method="longest")
    assert "hmp_and_cas" not in by_name(longest) and "alpha_stability" not in by_name(longest)
    assert [row[0] for row in by_name(longest)["baseline_overlap"].table[1]] == [
        "Perplexity",
        "IFD of context",
        "random",
    ]
    few = ranked.remove_columns(["source", "gateau_num_context_tokens", "gateau_ppl_no_context"])
    assert not {"kept_by_source", "kept_by_length", "score_and_length"} & set(by_name(few))
    assert [row[0] for row in by_name(few)["baseline_overlap"].table[1]] == ["Perplexity", "random"]
    only = ranked.select_columns(["gateau_rank", "gateau_score"])
    assert list(by_name(only)) == ["score_distribution"]
    assert "alpha_stability" not in by_name(select(ranked, fraction=0.5)), "its terms were made of all the rows"


def test_rows_without_a_rank_are_counted_and_left_out():
    errors = ["too long" if i % 5 == 0 else None for i in range(60)]
    found = by_name(rank(measured(60, gateau_error=errors)))
    assert "48 ranked rows (12 without a rank are left out)" in found["score_distribution"].text
    assert sum(row[2] for row in found["kept_by_source"].table[1]) == 48


def test_null_lengths():
    lengths = [None] * 20 + list(range(100, 140))
    found = by_name(rank(measured(60, gateau_num_context_tokens=lengths)))
    assert "without 20 of unknown length" in found["kept_by_length"].text
    assert sum(row[2] for row in found["kept_by_length"].table[1]) == 40
    assert "20 of unknown length" in found["score_and_length"].text and "nan" not in found["score_and_length"].text
    nothing = by_name(rank(measured(60, gateau_num_context_tokens=[None] * 60)))
    assert "score_and_length" not in nothing and "longest" not in nothing["baseline_overlap"].text


def test_sources():
    many = rank(measured(60, source=[f"s{i % 30}" for i in range(60)], kind=["a", "b"] * 30))
    assert by_name(many)["kept_by_source"].table[0][0] == "kind", "source has more than 20 values"
    rows = by_name(many, source_column="source")["kept_by_source"].table[1]
    assert len(rows) == 20 and rows[-1][0] == "11 others" and sum(row[2] for row in rows) == 60
    nulls = rank(measured(60, source=["a", None, ""] * 20))
    assert {row[0] for row in by_name(nulls)["kept_by_source"].table[1]} == {"a", "(none)", "(empty)"}
    assert "kept_by_source" not in by_name(rank(measured(60, source=["one"] * 60)))
    with pytest.raises(ValueError, match="no column 'where'"):
        figures(many, source_column="where")


@pytest.mark.filterwarnings("ignore::hf_gateau.ranking.order.DegenerateRankingWarning")
def test_few_rows_and_equal_scores():
    assert figures(rank(measured(1))) == []
    assert {figure.name for figure in figures(rank(measured(2)))} <= {
        "score_distribution",
        "hmp_and_cas",
        "score_and_length",
    }
    same = {"gateau_ppl_short": [4.0] * 30, "gateau_ppl_long": [3.0] * 30, "gateau_segment_ppl": [[2.0, 3.0]] * 30}
    equal = rank(measured(30, gateau_segment_attention=[[0.1, 0.2]] * 30, **same), mode="mean")
    assert set(equal["gateau_score"]) == {0.5}
    assert set(by_name(equal)) == {"kept_by_length", "kept_by_source", "baseline_overlap"}


def test_what_is_refused(ranked):
    with pytest.raises(ValueError, match="None of the 5 rows has a rank"):
        figures(rank(measured(5, gateau_error=["broken"] * 5)))
    with pytest.raises(ValueError, match="not ranked: no column gateau_rank"):
        figures(measured(5))
    with pytest.raises(ValueError, match="Rows share a rank"):
        figures(concatenate_datasets([ranked, ranked]))
    with pytest.raises(ValueError, match=r"above 0 and at most 1, got \{'none': 0\}"):
        figures(ranked, {"none": 0, "half": 0.5})
    with pytest.raises(TypeError, match="got DatasetDict"):
        figures(DatasetDict(train=ranked))


def test_files_are_the_same_every_time(ranked, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (write_figures(ranked, tmp_path / name) for name in ("a", "b"))
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes() and b"tEXt" not in one.read_bytes()
        assert imread(one).shape[1] == WIDTH * 200
    figure = by_name(ranked)["kept_by_source"]
    for dark in (False, True):
        svg = to_svg(figure, dark)
        assert svg == to_svg(by_name(ranked)["kept_by_source"], dark) and "<metadata" not in svg
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert to_svg(figure, False) != to_svg(figure, True)


def test_both_themes_are_what_each_is_drawn_alone(ranked):
    """But for the names of markers, which matplotlib makes from their colours too."""
    many = rank(measured(1200, gateau_ppl_short=[2.0 + i % 97 / 30 for i in range(1200)]))
    for figure in [*figures(ranked), *figures(many)]:
        for theme, svg in to_svgs(figure).items():
            alone = to_svg(figure, theme == "dark")
            assert re.sub("m[0-9a-f]{10}", "m", svg) == re.sub("m[0-9a-f]{10}", "m", alone), (figure.name, theme)


def test_settings_of_matplotlib_are_left_alone(ranked, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"font.size": 40, "svg.hashsalt": None}):
        before = dict(matplotlib.rcParams)
        large = to_svg(by_name(ranked)["kept_by_source"], False)
        assert dict(matplotlib.rcParams) == before
    assert large == to_svg(by_name(ranked)["kept_by_source"], False)


def test_names_of_sources_are_text_and_nothing_else(tmp_path):
    names = ["$\\frac{", "<script>alert(1)</script>", "a\x00\x1b[31m\nb", "日本語 🦜", "_hidden" * 30]
    figure = by_name(rank(measured(50, source=names * 10)))["kept_by_source"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = to_svg(figure, True)
        save_png(figure, tmp_path / "a.png")
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]
    assert {"$\\frac{", "日本語 🦜", "a[31m b"} <= set(texts) and "<script" not in svg


def test_many_rows_are_quick_and_drawn_in_part():
    rows = measured(100_000).remove_columns(["gateau_segment_ppl", "gateau_segment_attention"])
    ds = rank(rows, mode="mean", cas="none")
    ds = ds.remove_columns("gateau_cas").add_column("gateau_cas", np.random.default_rng(0).random(len(ds)))
    attach_record(ds, "ranking", {"method": "gateau", "combine": "rank", "alpha": 0.8, "hmp": "x", "cas": "y"})
    started = time.process_time()
    found = by_name(ds)
    seconds = time.process_time() - started
    assert len(found) == 7 and seconds < 20, "about 2 seconds on one core"
    assert "5,000 of them drawn" in found["hmp_and_cas"].text
    svg = to_svg(found["hmp_and_cas"], False)
    assert len(svg) < 300_000 and len(re.findall("<use ", svg)) < 100 and svg == to_svg(found["hmp_and_cas"], False)


def test_strips_begin_at_zero_and_have_one_scale():
    """What one row's highest bar is changes no other bar: heights are gains over no context, up to 1 nat."""
    ppl = {"gateau_ppl_no_context": [4.0] * 2, "gateau_segment_attention": [[0.1] * 3] * 2}
    gains = [[0.5, -0.3, 0.0], [7.0, 0.5, 0.25]]
    ds = measured(2, gateau_segment_ppl=[[4 / np.exp(x) for x in row] for row in gains], **ppl)
    (figure,) = segment_figures(rank(ds, method="longest"), num_samples=1)
    ax = Canvas().add_subplot()
    figure.draw(ax)
    heights = [[round(bar.get_height() / 0.85, 6) for bar in bars] for bars in ax.containers]
    assert sorted(heights) == sorted([[0.5, 0, 0], [0.25] * 3, [1, 0.5, 0.25], [0.25] * 3])


def test_strips_of_the_best_and_worst_samples(ranked, tmp_path):
    """Against argmin and argmax of the rows that sorting by rank puts first and last."""
    (figure,) = segment_figures(ranked, num_samples=1)
    ordered = ranked.sort("gateau_rank")
    expected = []
    for row in (ordered[0], ordered[len(ordered) - 1]):
        label = f"rank {row['gateau_rank']}"
        expected.append((label, "gain", int(np.argmin(row["gateau_segment_ppl"])) + 1, 8))
        expected.append((label, "attention", int(np.argmax(row["gateau_segment_attention"])) + 1, 8))
    assert figure.table[1] == expected
    assert "rank 1:" in figure.text and "rank 120:" in figure.text
    save_png(figure, tmp_path / "strips.png")
    assert imread(tmp_path / "strips.png").size
    assert segment_figures(ranked.remove_columns("gateau_segment_ppl")) == []
    assert "1 nat a token or more" in figure.text
    (alone,) = segment_figures(ranked.remove_columns("gateau_segment_attention"), num_samples=1)
    assert [row[1] for row in alone.table[1]] == ["gain", "gain"]
    assert segment_figures(rank(measured(3, gateau_segment_ppl=[None] * 3), method="perplexity")) == []
