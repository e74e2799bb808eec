"""The explorer as a person meets it, in a browser; and its folder as it lies on the disk."""

import csv
import io
import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from datasets import ClassLabel

from hf_gateau import compare, rank
from hf_gateau.cli import main
from hf_gateau.ranking.columns import read_columns
from hf_gateau.ranking.config import CAS_VARIANTS, COMBINE_VARIANTS, HMP_VARIANTS, RANK_MODES, RankConfig
from hf_gateau.ranking.order import derive
from hf_gateau.ranking.selection import select
from hf_gateau.records import attach_record
from hf_gateau.report.explorer import write_explorer
from hf_gateau.report.figures import figures
from tests.browser import HOSTILE, contrast, until
from tests.measured import measured
from tests.ranking.test_bounds import screened


pytestmark = pytest.mark.filterwarnings("ignore::hf_gateau.ranking.order.DegenerateRankingWarning")


PIECES = [f"<piece {i}> the mill is old and it rains. " for i in range(8)]
CONTEXT = "".join(PIECES)


def turns(context=CONTEXT, question="Who owns it?", answer="Ida and Frank."):
    return [{"role": "user", "content": f"{context}\n\n{question}"}, {"role": "assistant", "content": answer}]


def with_texts(num_rows=30, **columns):
    """Rows with texts, in pairs on one document; of the first, segment 3 alone tells the response."""
    contexts = [CONTEXT.replace("<", f"<{i // 2}.") for i in range(num_rows)]
    ppl = np.random.default_rng(0).lognormal(1, 0.2, (num_rows, 8))
    ppl[0, 2] = 1.05
    starts = [[x.find(f"<{i // 2}.piece {j}>") for j in range(8)] for i, x in enumerate(contexts)]
    fixed = {
        "messages": [turns(x, f"Who owns mill {i}?", f"Ida {i} and Frank.") for i, x in enumerate(contexts)],
        "gateau_segment_ppl": ppl.tolist(),
        "gateau_num_context_tokens": [8 * 16] * num_rows,
        "gateau_segment_starts": starts,
        "gateau_num_cut_tokens": [0] * num_rows,
    }
    ds = measured(num_rows, **fixed | columns)
    attach_record(ds, "measuring", {"config_key": "c", "long": {"model": "them/long"}, "segment_length": 16})
    return ds


def lines(tab, column):
    """What the table shows in a column, from the top."""
    names = tab.locator("#grid-header > *").all_inner_texts()
    at = next(i for i, name in enumerate(names) if name.strip(" ▲▼") == column)
    cells = tab.locator(f"#grid-body .line:not([hidden]) > :nth-child({at + 1})")
    places = tab.locator("#grid-body .line:not([hidden])").evaluate_all("x => x.map(line => Number(line.dataset.at))")
    return [text for _, text in sorted(zip(places, cells.all_inner_texts(), strict=True))]


def text_of(tab, place):
    return tab.locator(place).inner_text()


@pytest.mark.parametrize("combinations", ["each variant", pytest.param("all", marks=pytest.mark.slow)])
def test_the_live_ranking_is_that_of_python_for_every_mode_and_variant(opened, combinations):
    """1,000 rows with ties, errors and nulls: the order and the scores. Each HMP with two CAS and alone, each CAS with two HMP and
    alone, in every way of combining; or all of them."""
    errors = [None] * 990 + ["too long"] * 10
    ds = measured(1_000, seed=5, gateau_error=errors)
    ds = ds.map(lambda row, i: row | ({"gateau_ppl_short": None} if i % 97 == 0 else {}), with_indices=True)
    seen = np.random.default_rng(1).normal(size=(1_000, 8)).round(1)
    ds = ds.add_column("gateau_segment_heads", seen.tolist()).add_column("gateau_num_far_segments", [6] * 1_000)
    ds = rank(ds, alpha=0.7)
    some_hmp, some_cas = ({"log_difference", "softmax", "none"}, {"gain_far", "heads", "none"})
    cases = [RankConfig(mode=mode, alpha=alpha) for mode in RANK_MODES for alpha in (0.0, 0.35, 0.8, 1.0)]
    cases += [
        RankConfig(hmp=hmp, cas=cas, combine=combine, alpha=0.6)
        for hmp in HMP_VARIANTS
        for cas in CAS_VARIANTS
        for combine in COMBINE_VARIANTS
        if (hmp, cas) != ("none", "none") and (hmp in some_hmp or cas in some_cas or combinations == "all")
    ]
    cases += [
        RankConfig(method=name) for name in ("perplexity", "ifd_context", "longfilter", "ladm", "random", "longest")
    ]
    of_lists: dict = {}

    def expected(config):
        """`rank`'s arrays, its columns of lists read once a term."""
        columns = {}
        for term in ("hmp", "cas") if config.method == "gateau" else ():
            alone = (
                replace(config, **{"cas" if term == "hmp" else "hmp": "none"})
                if getattr(config, term) != "none"
                else None
            )
            if alone is not None:
                name = (term, config.mode, getattr(config, term))
                of_lists[name] = of_lists.get(name) or read_columns(ds, alone)
                columns |= of_lists[name]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return derive(columns or read_columns(ds, config), config)[0]

    tab = opened(ds)
    settings = [
        {name: getattr(x, name) or "" for name in ("method", "mode", "hmp", "cas", "combine")} | {"alpha": x.alpha}
        for x in cases
    ]
    script = """settings => settings.map(x => {
        const { model, ranking } = gateau, { rank, score } = ranking.rank(model.about.ranking, model.array, model.about.num_rows, x);
        return [Array.from(rank), Array.from(score, value => Number.isNaN(value) ? null : value)];
    })"""
    for start in range(0, len(cases), 60):
        found = tab.evaluate(script, settings[start : start + 60])
        for config, (ranks, scores) in zip(cases[start : start + 60], found, strict=True):
            want = expected(config)
            assert ranks == np.nan_to_num(want["gateau_rank"]).astype(int).tolist(), config
            scores = np.array(scores, dtype=float)
            np.testing.assert_allclose(scores, want["gateau_score"], rtol=1e-13, atol=1e-300, err_msg=str(config))
    assert len(cases) > (400 if combinations == "all" else 170)


def test_strata_keep_what_the_command_keeps(opened, tmp_path):
    """Of three sources of different merit, with rows that a person keeps and drops."""
    rng = np.random.default_rng(3)
    columns = {"source": [["law", "news", "long o'clock"][i % 7 % 3] for i in range(301)]}
    ds = with_texts(301).remove_columns("source").add_column("source", columns["source"])
    worse = [
        x * (0.5 if source == "news" else 1) for x, source in zip(ds["gateau_ppl_short"], ds["source"], strict=True)
    ]
    ds = rank(ds.remove_columns("gateau_ppl_short").add_column("gateau_ppl_short", worse))
    tab = opened(ds)
    decided = {str(i): "keep" if i % 2 else "drop" for i in rng.choice(301, 24, replace=False).tolist()}
    file = tmp_path / "decisions.csv"
    file.write_text(
        "gateau_key,decision,note\n" + "".join(f"{ds['gateau_key'][int(i)]},{x},\n" for i, x in decided.items())
    )
    marks = [{"keep": 1, "drop": -1}.get(decided.get(str(i)), 0) for i in range(301)]
    script = """([by, amount, marks]) => {
        const { model, ranking } = gateau, stratum = model.array("strata:source");
        const { mask } = ranking.select(model.live.ranks.order, by, amount, model.array("tokens"), marks, stratum);
        return Array.from(mask).flatMap((x, i) => (x ? [i] : []));
    }"""
    for settings in ({"fraction": 0.1}, {"fraction": 0.333}, {"top_k": 31}, {"top_k": 1}, {"fraction": 1.0}):
        [(by, amount)] = settings.items()
        want = select(ds, strata="source", **settings)["id"]
        assert [ds["id"][i] for i in tab.evaluate(script, [by, amount, None])] == want
        if amount not in (1, 1.0):
            want = select(ds, strata="source", decisions=file, **settings)["id"]
            assert [ds["id"][i] for i in tab.evaluate(script, [by, amount, marks])] == want
    plain, ours = (select(ds, fraction=0.1, strata=x)["id"] for x in (None, "source"))
    assert set(plain) != set(ours)
    tab.select_option("#strata", "source")
    assert text_of(tab, "#selected").startswith(f"{len(ours)} of 301")
    tab.click("#show-in")
    assert set(lines(tab, "id")) == set(ours)
    assert "strata=source" in tab.evaluate("location.hash")
    tab.click("summary:has-text('and the command')")
    assert text_of(tab, "#command") == "hf-gateau select RANKED -o selected.parquet --fraction 0.1 --strata source"


ODD_STRATA = {
    "spaces": ["law ", "law", " law", "code"],
    "none": ["None", None, "", "x"],
    "alike": ["a" * 120 + middle + "b" * 120 for middle in ("1", "2")],
    "flag": [True, False, None],
    "grade": [1, 2, 5, 7, None],
    "size": list(range(3, 9_000, 37)),
    "-dash": ["x", "y", "z"],
}


@pytest.mark.slow
def test_strata_of_any_column_are_those_of_the_command(opened):
    """Values that look alike on the page, nulls, numbers of few and of many values, and labels."""
    rng = np.random.default_rng(4)
    ds = with_texts(250)
    for name, values in ODD_STRATA.items():
        ds = ds.add_column(name, [values[i] for i in rng.integers(0, len(values), 250)])
    ds = ds.add_column("label", rng.integers(0, 3, 250).tolist()).cast_column(
        "label", ClassLabel(names=["p", "q", "r"])
    )
    ds = rank(ds)
    tab = opened(ds)
    assert tab.evaluate("gateau.model.strata()") == ["source", *ODD_STRATA, "label", "gateau_num_context_tokens"][:9]
    for name in (*ODD_STRATA, "label"):
        for fraction in (0.1, 0.37):
            tab.evaluate(f"gateau.model.set({{ strata: {json.dumps(name)}, amount: {fraction} }})")
            kept = tab.evaluate("Array.from(gateau.model.live.mask).flatMap((x, i) => (x ? [i] : []))")
            assert [ds["id"][i] for i in kept] == select(ds, fraction=fraction, strata=name)["id"], name
    assert "p" in tab.locator("aside, main").all_inner_texts()[0], "labels are called by their names"


def no_help(row, i):
    """Every third row is as easy without its context."""
    return row | ({"gateau_ppl_no_context": 0.9 * row["gateau_ppl_long"]} if i % 3 == 0 else {})


def a_part(ds):
    return ds.select(range(0, len(ds), 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda ds: rank(ds, method="full"),
        pytest.param(lambda ds: rank(ds, method="random", seed=7), marks=pytest.mark.slow),
        pytest.param(
            lambda ds: rank(ds.map(no_help, with_indices=True), method="ifd_context", ifd_below_one=True),
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda ds: a_part(rank(ds)), marks=pytest.mark.slow),
        lambda ds: rank(screened(ds, 0.6), alpha=0.8),
    ],
    ids=["full", "seed", "below one", "a part of the rows", "screened"],
)
def test_a_ranking_that_the_page_cannot_make_stays_as_given(make, opened):
    ds = make(with_texts(200))
    tab = opened(ds)
    assert tab.input_value("#method") == "given" and text_of(tab, "#show-enters") == "0 enter"
    order = sorted((rank, i) for i, rank in enumerate(ds["gateau_rank"]) if rank)
    assert tab.evaluate("Array.from(gateau.model.live.ranks.order)") == [i for _, i in order]
    kept = tab.evaluate("Array.from(gateau.model.live.mask).flatMap((x, i) => (x ? [i] : []))")
    assert [ds["id"][i] for i in kept] == select(ds, fraction=0.1)["id"]
    tab.click("summary:has-text('and the command')")
    assert text_of(tab, "#command") == "hf-gateau select RANKED -o selected.parquet --fraction 0.1"
    if "gateau" in tab.locator("#method option").evaluate_all("x => x.map(option => option.value)"):
        tab.select_option("#method", "gateau")
        label = tab.evaluate("document.getElementById('mode').selectedOptions[0].label")
        assert tab.evaluate("gateau.model.live.ranks.order.length") > 0 or "rows lack its CAS" in label


def test_a_ranking_with_another_tau_is_made_by_its_command(opened):
    ds = rank(with_texts(100), hmp="need", cas="far_need", tau=0.2)
    tab = opened(ds, "alpha=0.6")
    tab.click("summary:has-text('and the command')")
    words = text_of(tab, "#command").splitlines()[0].split()
    assert words[-2:] == ["--tau", "0.2"]
    again = rank(ds, hmp="need", cas="far_need", tau=0.2, alpha=0.6)
    assert tab.evaluate("Array.from(gateau.model.live.ranks.rank)") == again["gateau_rank"][:]


def test_the_figures_of_the_report_stand_on_the_page(opened, tmp_path):
    """In both themes, from files beside it; a name in a figure is no markup."""
    ds = with_texts(60)
    ds = rank(ds.remove_columns("source").add_column("source", ["<script>alert(1)</script>", "law & order", "c"] * 20))
    tab = opened(ds, "view=about", draws=True)
    want = figures(ds)
    assert tab.locator("#view-about figcaption").all_inner_texts() == [x.title for x in want] and len(want) > 4
    assert tab.locator("#view-about img").evaluate_all("x => x.map(image => image.alt)") == [x.text for x in want]
    for theme in ("light", "dark"):
        tab.emulate_media(color_scheme=theme)
        drawn = f"(x.loading = 'eager', x.complete && x.currentSrc.endsWith('-{theme}.svg') && x.naturalWidth > 100)"
        until(tab, f"[...document.querySelectorAll('#view-about img')].every(x => {drawn})")
    assert "<script" not in "".join(x.read_text() for x in (tmp_path / "explorer" / "data").glob("*.svg"))


def test_controls_rank_and_select_as_the_commands_do(opened):
    ds = rank(with_texts(125))
    tab = opened(ds)
    assert text_of(tab, "#left").startswith("125 of 125 rows left")
    assert lines(tab, "id")[:3] == ds.sort("gateau_rank")["id"][:3]
    tab.select_option("#mode", "mean")
    tab.fill("#alpha-number", "0.3")
    tab.fill("#amount", "0.1")  # 12.5 of 125: Python's round goes to the even 12
    again = rank(ds, mode="mean", alpha=0.3)
    kept, was = (select(x, fraction=0.1) for x in (again, ds))
    assert lines(tab, "id")[:20] == again.sort("gateau_rank")["id"][:20]
    tokens = sum(kept["gateau_num_context_tokens"]) + sum(kept["gateau_num_response_tokens"])
    assert len(kept) == 12 and text_of(tab, "#selected") == f"12 of 125 ranked rows, {tokens:,} tokens"
    enter, leave = (len(set(a["id"]) - set(b["id"])) for a, b in ((kept, was), (was, kept)))
    assert text_of(tab, "#show-enters") == f"{enter} enter" and text_of(tab, "#show-leaves") == f"{leave} leave"
    assert enter and leave
    rho = np.corrcoef(ds["gateau_rank"], again["gateau_rank"])[0, 1]
    assert f"Spearman {rho:.3f}" in text_of(tab, "#moved")
    tab.click("#show-leaves")
    assert set(lines(tab, "id")) == set(was["id"]) - set(kept["id"])
    tab.click("#clear")
    tab.select_option("#by", "max_tokens")
    tab.fill("#amount", "1000")
    assert text_of(tab, "#selected").startswith(f"{len(select(again, max_tokens=1000))} of 125")
    tab.click("summary:has-text('and the command')")
    anew = "hf-gateau rank RANKED -o ranked-anew.parquet --mode mean --alpha 0.3"
    assert (
        text_of(tab, "#command")
        == f"{anew}\nhf-gateau select ranked-anew.parquet -o selected.parquet --max_tokens 1000"
    )
    tab.click("#as-given")
    assert text_of(tab, "#show-enters") == "0 enter"
    assert text_of(tab, "#command") == "hf-gateau select RANKED -o selected.parquet --max_tokens 1000"


def test_sorting_filtering_brushing_and_a_link_that_keeps_it_all(opened):
    ds = rank(with_texts(60, gateau_error=["too long"] * 3 + [None] * 57))
    tab = opened(ds)
    tab.click("#grid-header button:has-text('need')")
    need = [float(x) for x in lines(tab, "need") if x != "–"]
    assert need == sorted(need, reverse=True) and len(need) > 10
    assert tab.locator("[aria-sort=descending]").inner_text().startswith("need")
    tab.get_by_label("law").check()  # a value of the column `source`
    assert text_of(tab, "#left").startswith("20 of 60 rows left") and set(lines(tab, "source")) == {"law"}
    chart = tab.locator("#chart-need canvas")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    tab.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 20)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 20, steps=4)
    tab.mouse.up()
    low = float(tab.input_value("#chart-need input >> nth=0"))
    high = float(tab.input_value("#chart-need input >> nth=1"))
    short, long = (np.log(np.array(ds[f"gateau_ppl_{x}"], float)) for x in ("short", "long"))
    inside = [i for i, x in enumerate(short - long) if low <= x <= high and ds["source"][i] == "law"]
    assert 0 < len(inside) < 20 and text_of(tab, "#left").startswith(f"{len(inside)} of 60 rows left")
    ids = lines(tab, "id")
    assert set(ids) == {ds["id"][i] for i in inside}
    tab.fill("#search", f"MILL {ds['gateau_key'][inside[0]].upper()}")
    until(tab, "gateau.model.state.q")
    assert lines(tab, "id") == [ds["id"][inside[0]]]
    tab.fill("#search", "")
    until(tab, "!gateau.model.state.q")
    tab.fill("#alpha-number", "0.55")
    address, ids = tab.evaluate("location.hash.slice(1)"), lines(tab, "id")
    tab = opened(ds, address)
    assert lines(tab, "id") == ids and tab.input_value("#alpha-number") == "0.55"
    assert tab.locator("[aria-sort=descending]").inner_text().startswith("need")
    assert text_of(tab, "#clear") == "clear 2 filters"
    tab.click("#clear")
    tab.get_by_label("too long").check()
    assert text_of(tab, "#left").startswith("3 of 60") and set(lines(tab, "rank")) == {"–"}
    nonsense = "mode=none&alpha=7&row=99999&ranges.nothing=1~2&x=__proto__&sort=constructor&lasso=a"
    assert text_of(opened(ds, nonsense), "#left").startswith(
        "60 of 60 rows left"
    )  # what makes no sense is passed over


def test_a_lasso_in_the_scatter_plot(opened):
    tab = opened(rank(with_texts(60)), "view=scatter")
    tab.select_option("#scatter-y", "response_tokens")
    box = tab.locator("#scatter-canvas").bounding_box()
    corners = ((0.3, 0.05), (0.95, 0.05), (0.95, 0.6), (0.3, 0.6), (0.3, 0.06))
    for i, (x, y) in enumerate(corners):
        tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
        if i == 0:
            tab.mouse.down()
    tab.mouse.up()
    left = tab.evaluate("Array.from(gateau.model.live.left)")
    assert 0 < len(left) < 60 and text_of(tab, "#left").startswith(f"{len(left)} of 60")
    points = tab.evaluate("gateau.model.state.lasso.points")
    low, high = min(points[::2]), max(points[::2])
    need = tab.evaluate("Array.from(gateau.model.values('need'))")
    assert all(low <= need[i] <= high for i in left)
    tab.reload()
    until(tab, "document.body.dataset.ready")
    assert tab.evaluate("Array.from(gateau.model.live.left)") == left
    tab.click("#lasso-clear")
    assert text_of(tab, "#left").startswith("60 of 60")


def test_a_row_shows_what_its_response_needs_and_where_that_stands(opened):
    ds = rank(with_texts())
    tab = opened(ds)
    tab.fill("#search", "row-0")
    until(tab, "gateau.model.state.q")
    tab.click("#grid-body .line:not([hidden])")
    tab.wait_for_selector("#segment-text mark")
    assert "#row=0&" in tab.evaluate("location.hash")
    assert text_of(tab, "#segment-text mark") == "<0.piece 2> the mill is old and it rains. "
    assert text_of(tab, "#segment-words").startswith("segment 3 of 8, far: gain")
    tab.focus("#strip")
    tab.keyboard.press("End")
    assert text_of(tab, "#segment-text mark").startswith("<0.piece 7>")
    assert text_of(tab, "#segment-words").startswith("segment 8 of 8, near: gain")
    assert tab.evaluate(IN_SIGHT)
    box = tab.locator("#strip").bounding_box()
    tab.mouse.click(box["x"] + box["width"] * 1.5 / 8, box["y"] + 10)
    assert text_of(tab, "#segment-text mark").startswith("<0.piece 1>") and "segment=1" in tab.evaluate(
        "location.hash"
    )
    body = text_of(tab, "#row-body")
    for said in ("Who owns mill 0?", "Ida 0 and Frank.", "On the same document: 1 other rows", "source", "books"):
        assert said in body, said
    tab.hover(".tokens .token >> nth=1")
    long, short, none = (ds[0][f"gateau_token_nll_{x}"][1] for x in ("long", "short", "no_context"))
    info = text_of(tab, ".info")
    assert f"need {max(0, min(short, none) - long - 0.5):.2f} nats" in info
    assert f"long {long:.2f}, short {short:.2f}, no context {none:.2f}" in info and "best far segment" in info
    tab.click(".neighbours button")
    until(tab, "document.querySelector('#row-title').textContent.includes('row-1')")
    tab.go_back()
    until(tab, "document.querySelector('#row-title').textContent.includes('row-0')")
    tab.click("#row-close")
    assert not tab.locator("#row").is_visible()


def test_decisions_are_kept_and_exported(open_page, tmp_path):
    ds = rank(with_texts(gateau_key=[None, *(f"c:{i:02}" for i in range(29))]))
    page = write_explorer(ds, tmp_path / "explorer")
    tab = open_page(page)
    assert tab.locator("#export").is_disabled()
    tab.focus("#grid")
    tab.keyboard.press("k")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("d")
    tab.keyboard.press("Enter")
    tab.keyboard.press("n")
    tab.keyboard.type('he said "no", twice')
    tab.keyboard.press("Escape")
    first, second = ds.sort("gateau_rank").select(range(2))["gateau_key"]
    assert text_of(tab, "#decisions") == "1 keep, 1 drop, 1 notes"
    tab = open_page(page, beside=tab)  # of the same browser
    assert text_of(tab, "#decisions") == "1 keep, 1 drop, 1 notes"
    assert lines(tab, "decided")[:2] == ["✓ keep", "✗ drop ✎"]
    with tab.expect_download() as download:
        tab.click("#export")
    text = download.value.path().read_text(encoding="utf-8")
    rows = [{"gateau_key": first, "decision": "keep", "note": ""}]
    rows.append({"gateau_key": second, "decision": "drop", "note": 'he said "no", twice'})
    assert (
        list(csv.DictReader(io.StringIO(text, newline=""))) == rows
        and download.value.suggested_filename == "decisions.csv"
    )
    assert lines(tab, "selected")[:4] == [
        "in",
        "leaves",
        "in",
        "enters",
    ]  # a tenth: 3 of 30, the next best for the dropped one
    assert text_of(tab, "#selected").startswith("3 of 30 ranked rows")
    tab.select_option("#decided", "drop")
    assert lines(tab, "id") == [ds.sort("gateau_rank")[1]["id"]]
    tab.click("#clear")
    tab.click("summary:has-text('Decide on all')")
    tab.click("#all-drop")
    assert text_of(tab, "#decisions") == "0 keep, 29 drop, 1 notes"
    assert "29 rows marked as drop; 1 have no key" in text_of(tab, "#said")
    tab.click("#said button")
    assert text_of(tab, "#decisions") == "1 keep, 1 drop, 1 notes"
    files = {"name": "x.csv", "mimeType": "text/csv"}
    tab.set_input_files("#import", files | {"buffer": b"gateau_key,decision,note\r\nc:05,maybe,\r\n"})
    until(tab, "document.querySelector('#said').textContent.includes('not keep or drop')")
    tab.set_input_files("#import", files | {"buffer": text.replace("keep", "drop").encode()})
    until(tab, "document.querySelector('#decisions').textContent.startsWith('0 keep, 2 drop')")
    at = ds["gateau_key"].index(None)
    tab = open_page(page, f"row={at}", beside=tab)
    assert tab.locator("#row-keep").is_disabled() and tab.locator("#row-note").is_disabled()


# The marked segment is in the box that it is read in.
IN_SIGHT = """(() => {
    const [box, mark] = ["#segment-text", "#segment-text mark"].map(x => document.querySelector(x).getBoundingClientRect());
    return mark.top >= box.top && mark.top < box.bottom;
})()"""
HOSTILE_TEXTS = {
    "html": HOSTILE,
    "script": "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'>",
    "control": "a\x00b\x07c\x1b[31mred\x7f\x85\r\nlast",
    "bidi": "abc\u202egnp.exe\u2066x\u2069\u200f",
    "word": "w" * 1_000_000,
    "marks": "Z" + "\u0301" * 5000,
    "astral": "😀" * 400 + "𝔘",
    "formula": '=HYPERLINK("http://a.b","c")',
    "empty": " ",
}


def test_no_text_of_a_row_is_run_or_breaks_the_page(open_page, tmp_path):
    """Every text of a row, and every name and value of its columns, in all views."""
    names = list(HOSTILE_TEXTS)
    texts = list(HOSTILE_TEXTS.values())
    contexts = [x + "".join(PIECES) for x in texts]
    num_rows = len(texts)
    hostile = {
        "id": texts,
        "kind": [x[:300] for x in texts],
        "messages": [turns(context, f"{x[:5000]}?", f"{x} .") for context, x in zip(contexts, texts, strict=True)],
        HOSTILE[:60]: list(range(num_rows)),
        "gateau_segment_starts": [[len(x) + CONTEXT.find(piece) for piece in PIECES] for x in texts],
        "gateau_error": [HOSTILE] + [None] * (num_rows - 1),
    }
    ds = rank(with_texts(num_rows, **hostile))
    attach_record(ds, "measuring", {"config_key": HOSTILE, "long": {"model": HOSTILE}, "segment_length": 16})
    page = write_explorer(ds, tmp_path / "explorer", title=HOSTILE)
    tab = open_page(page)
    assert tab.title() == HOSTILE.strip() or "alert" in tab.title()
    for view in ("scatter", "compare", "about", "rows"):
        tab.click(f"[data-view={view}]")
    for i, name in enumerate(names):
        tab.evaluate(f"gateau.model.set({{ row: {i}, segment: null }})")
        tab.wait_for_selector("#row-body:not([aria-busy]) section")
        assert tab.evaluate("gateau.model.state.row") == i
        if i:  # the first has an error, and the segments all the same
            tab.evaluate("gateau.model.set({ segment: 2 })")
            assert text_of(tab, "#segment-text mark").startswith("<piece 2>"), name
        assert tab.evaluate(IN_SIGHT), name
    assert tab.evaluate("window.ran") is None
    assert tab.evaluate("document.querySelectorAll('img:not(.figures img), iframe, object, embed').length") == 0
    assert tab.evaluate("document.querySelectorAll('script[src]').length") == 11
    shown = {
        name: tab.evaluate("i => gateau.dom.shown(gateau.model.text('id', i))", i) for i, name in enumerate(names)
    }
    assert "\u202e" not in shown["bidi"] and "\x1b" not in shown["control"]
    signs = tab.evaluate(r"gateau.dom.shown('a\u0000\u001b\u202e\ud800\u007f\r\n')")
    assert signs == "a\u2400\u241b\ufffd\ufffd\u2421\n"
    tab.locator("#grid").focus()
    tab.keyboard.press("End")
    tab.keyboard.press("k")
    assert text_of(tab, "#decisions").startswith("1 keep")


def test_halves_of_characters_come_through(open_page, tmp_path):
    """Arrow holds none, and JSON does: `\\ud800` of a file of JSON lines reaches a row as it is."""
    from hf_gateau.report.pieces import write_piece

    text = 'a\ud800b 😀 \u2028 \x00 "\\ é 漢'
    size = write_piece(tmp_path / "explorer-odd.js", {"text": text, "bytes": "".join(map(chr, range(0x2500)))})
    page = write_explorer(rank(with_texts()), tmp_path / "explorer")
    (tmp_path / "explorer-odd.js").rename(page.parent / "data" / "odd.js")
    assert size < 20_000
    tab = open_page(page)
    script = (
        (page.parent / "data" / "odd.js")
        .read_bytes()
        .replace("explorer-odd".encode("utf-16-le"), "odd".encode("utf-16-le"))
    )
    (page.parent / "data" / "odd.js").write_bytes(script)
    units = "gateau.data.load('odd').then(x => Array.from({ length: x.content.text.length }, (_, i) => x.content.text.charCodeAt(i)))"
    assert tab.evaluate(units) == np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2").tolist()


def test_two_rankings_side_by_side(open_page, tmp_path):
    """The numbers are those of `compare`; rows are found by their content, in any order."""
    ds = rank(with_texts(60), alpha=0.8)
    other = rank(with_texts(60).shuffle(seed=1).select(range(55)), mode="mean", alpha=0.4)
    found = compare(ds, other, names=("these rows", "elsewhere"))
    tab = open_page(
        write_explorer(ds, tmp_path / "explorer", other=other, other_name="elsewhere"), "view=compare&against=other"
    )
    said = text_of(tab, "#compare-facts")
    for told in (f"{found.spearman:.4f}", f"{found.kendall:.4f}", "55"):
        assert told in said, told
    for overlap in found.overlaps:
        assert f"{overlap.num_both} of {overlap.num_top}, Jaccard {overlap.jaccard:.3f}" in said
    assert "mode\trobust\tmean" in text_of(tab, "#compare-settings") and "alpha\t0.8\t0.4" in text_of(
        tab, "#compare-settings"
    )
    rows = [line.split("\t") for line in text_of(tab, "#compare-rows").splitlines()]
    for row, moved in zip(rows, found.moved, strict=False):
        places = moved.place["a"], moved.place["b"], moved.place["b"] - moved.place["a"]
        assert row[0] == ds[moved.position["a"]]["id"] and tuple(map(int, row[1:4])) == places
    tab.click("#compare-rows button >> nth=0")
    until(tab, f"document.querySelector('#row-title').textContent.includes('{rows[0][0]}')")
    tab.evaluate("gateau.model.set({ row: null })")
    tab.select_option("#against", "given")
    assert "1.0000" in text_of(tab, "#compare-facts") and tab.locator("#compare-none").is_visible()
    assert not tab.locator("#compare-settings").is_visible()
    tab.fill("#alpha-number", "0.2")
    again = compare(rank(ds, alpha=0.2), ds)
    assert f"{again.spearman:.4f}" in text_of(tab, "#compare-facts") and f"{again.kendall:.4f}" in text_of(
        tab, "#compare-facts"
    )


def test_keys_and_a_screen_reader(opened):
    ds = rank(with_texts(200))
    tab = opened(ds)
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.id") == "search"
    tab.keyboard.press("Escape")
    tab.keyboard.press("?")
    assert tab.locator("#help").is_visible()
    tab.keyboard.press("Escape")
    assert not tab.locator("#help").is_visible()
    tab.keyboard.press("g")
    for key in ("ArrowDown", "PageDown", "End"):
        tab.keyboard.press(key)
    active = tab.get_attribute("#grid", "aria-activedescendant")
    assert active == "line-199" and tab.locator(f"#{active}").is_visible()
    assert tab.get_attribute(f"#{active}", "aria-rowindex") == "201" == tab.get_attribute("#grid", "aria-rowcount")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#row-body section")
    assert "Rank 200 of 200" in text_of(tab, "#row-title")
    tab.keyboard.press(",")
    until(tab, "document.querySelector('#row-title').textContent.includes('Rank 199')")
    tab.keyboard.press("Escape")
    assert not tab.locator("#row").is_visible() and tab.evaluate("document.activeElement.id") == "grid"
    unnamed = tab.evaluate("""Array.from(document.querySelectorAll('button, input, select, canvas, [role]')).filter(x =>
        x.checkVisibility() && !x.ariaLabel && !x.labels?.length && !x.textContent.trim() && !x.title &&
        !['gridcell', 'row', 'rowgroup', 'status'].includes(x.getAttribute('role'))).map(x => x.outerHTML)""")
    assert unnamed == []
    levels = tab.evaluate("Array.from(document.querySelectorAll('h1, h2, h3'), x => Number(x.tagName[1]))")
    assert levels.count(1) == 1 and levels[0] == 1


def test_contrast_in_both_themes():
    """WCAG 2.2, 1.4.3: 4.5 for text, 1.4.11: 3 for what a figure is made of."""
    from importlib.resources import files

    style = (files("hf_gateau.report") / "static" / "explorer.css").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--([\w-]+): (#\w+);", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    assert len(themes) == 2
    for theme in themes:
        backs = ("back", "raised", "chosen", "mark", *(f"need-{i}" for i in range(1, 5)))
        for back in backs:
            assert contrast(theme["ink"], theme[back]) >= 4.5, back
        for back in ("back", "raised"):
            assert min(contrast(theme[name], theme[back]) for name in ("muted", "link", "second")) >= 4.5, back
            assert contrast(theme["first"], theme[back]) >= 3


@pytest.mark.parametrize("width", [360, 900])
def test_a_narrow_screen(opened, width):
    """Nothing is wider than the screen; a row that is opened takes it whole."""
    tab = opened(rank(with_texts()), size=(width, 700))
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.click("#grid-body .line:not([hidden]) >> nth=0")
    tab.wait_for_selector("#segment-text mark")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert not tab.locator("#grid").is_visible()
    box = tab.locator("#strip").bounding_box()
    assert 0 <= box["x"] and box["x"] + box["width"] <= width
    tab.click("#row-close")
    assert tab.locator("#grid").is_visible()


@pytest.mark.slow
def test_rows_by_a_baseline_or_without_segments_or_texts(opened):
    bare = measured(20).remove_columns(["gateau_segment_ppl", "gateau_segment_attention", "gateau_key", "id"])
    bare = bare.remove_columns([x for x in bare.column_names if "token_" in x])
    for ds in (
        rank(measured(20), method="perplexity"),
        rank(bare, hmp="difference", cas="none"),
        rank(measured(20), hmp="softmax"),
        rank(bare, mode="mean", cas="none", alpha=0.3),
    ):
        tab = opened(ds, "row=3")
        tab.wait_for_selector("#row-body section")
        ranks = tab.evaluate("Array.from(gateau.model.live.ranks.rank)")
        assert ranks == ds["gateau_rank"]


def test_the_folder(tmp_path, capsys):
    """A context is kept once, a folder is replaced, and no other one is written over."""
    ds = rank(with_texts())
    page = write_explorer(ds, tmp_path / "out" / "explorer")
    files = sorted(x.relative_to(page.parent).as_posix() for x in page.parent.rglob("*") if x.is_file())
    assert {"index.html", "data/numbers.js", "data/heads.js", "data/rows-00000.js", "data/texts-00000.js"} <= set(
        files
    )
    assert not any(
        "://" in x.read_text("utf-8") for x in page.parent.glob("*.*") if x.suffix in (".html", ".js", ".css")
    )
    assert write_explorer(ds, tmp_path / "out" / "explorer") == page
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than an explorer"):
        write_explorer(ds, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="not ranked"):
        write_explorer(with_texts(), tmp_path / "x")
    with pytest.raises(TypeError, match="one ranked Dataset"):
        write_explorer({"train": ds}, tmp_path / "x")
    ds.to_parquet(tmp_path / "ranked.parquet")
    assert main(["explore", str(tmp_path / "ranked.parquet"), "-o", str(tmp_path / "cli"), "--title", "Mine"]) == 0
    assert "open it in a browser" in capsys.readouterr().out
    assert json.loads((tmp_path / "cli" / "gateau_explorer.json").read_text())["digest"]
    assert main(["explore", str(tmp_path / "ranked.parquet"), "-o", str(tmp_path / "mine")]) == 2
    compared = ["--compare", str(tmp_path / "ranked.parquet")]
    assert main(["explore", str(tmp_path / "ranked.parquet"), "-o", str(tmp_path / "cli"), *compared]) == 0
