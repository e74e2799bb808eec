"""The page as a reader, a screen reader and a browser meet it."""

import base64
import math
import re
import shutil

import pytest

from hf_gateau import rank
from hf_gateau.cli import main
from hf_gateau.records import attach_record
from hf_gateau.report.figures import figures
from hf_gateau.report.page import write_report
from hf_gateau.report.sample_text import shortened
from hf_gateau.shipped import render, templates_folder
from tests.browser import HOSTILE, Page, browse, contrast
from tests.measured import measured


def with_texts(num_rows=30, **columns):
    texts = [{"role": "user", "content": "A long story.\n\nWho?"}, {"role": "assistant", "content": "Ida."}]
    return measured(num_rows, messages=[texts] * num_rows, **columns)


@pytest.fixture()
def written(tmp_path, monkeypatch):
    """Writes a report; without figures, which take longer than all else, where nobody looks at them."""

    def write(ds, draws=True, **settings):
        monkeypatch.setattr("hf_gateau.report.page.figures", figures if draws else lambda *args, **kwargs: [])
        text = write_report(ds, tmp_path / "out" / "report.html", **settings).read_text(encoding="utf-8")
        return text, Page(text)

    return write


def test_figures_samples_and_summary(written):
    ds = rank(with_texts(gateau_error=["too long"] * 2 + [None] * 28), alpha=0.7)
    text, page = written(ds, title="Mine", num_samples=2)
    assert len(page.all("figure")) == len(page.all("img")) == len(page.all("source")) == 8
    for name in ("Mine", "need_tokens", "far_tokens", "0.7", "too long", "28", "Who?", "Ida."):
        assert name in page.text
    for place in (1, 2, 27, 28):
        assert f"Rank {place} of 28: {ds['id'][ds['gateau_rank'].index(place)]}" in page.text
    assert page.text.count("Rank ") == 4
    best = ds[ds["gateau_rank"].index(1)]
    highest = best["gateau_segment_ppl"].index(min(best["gateau_segment_ppl"])) + 1
    words = [attributes["aria-label"] for attributes in page.all("svg")]
    gain = math.log(best["gateau_ppl_no_context"]) - math.log(min(best["gateau_segment_ppl"]))
    assert words[0] == f"8 segments; the highest gain, {gain:.2f} nats a token, at segment {highest} of 8"
    assert len(words) == 8
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert ids.index("summary") < ids.index("figures") < ids.index("best") < ids.index("settings") == len(ids) - 1


def test_the_page_begins_with_what_was_found_and_shows_the_text_that_tells_most(written):
    """Two facts in a long context: the segments that hold them are there, what lies between is not."""
    pieces = (
        ["The mill is old."] * 6
        + ["Ida Baxter owns it."]
        + ["It rains."] * 6
        + ["Frank Brooks left."]
        + ["It snows."] * 2
    )
    context = "".join(f"{piece:<30}" for piece in pieces)
    turns = [{"role": "user", "content": f"{context}\n\nWho?"}, {"role": "assistant", "content": "Ida and Frank."}]
    ppl = [2.06 if "Ida" in piece else 1.71 if "Frank" in piece else 4.22 for piece in pieces]
    many = {
        "gateau_ppl_no_context": [4.22] * 20,
        "gateau_ppl_long": [1.03] * 20,
        "gateau_ppl_short": [2.4] * 2 + [1.03] * 18,
        "gateau_segment_ppl": [ppl] * 20,
        "gateau_segment_attention": [[0.1] * 16] * 20,
        "gateau_num_context_tokens": [16 * 128] * 20,
        "gateau_segment_starts": [[30 * i for i in range(16)]] * 20,
        "gateau_num_cut_tokens": [0] * 19 + [15_774],
        "gateau_context_rule": ["last paragraph"] * 20,
    }
    ds = measured(20, messages=[turns] * 20, **many)
    attach_record(
        ds,
        "measuring",
        {"config_key": "c", "long": {"model": "them/long"}, "short": {"window": 512}, "segment_length": 128},
    )
    _, page = written(rank(ds, mode="mean", cas="none"), draws=False, num_samples=1)
    found = page.text.index(
        "The best tenth (2 of 20 rows) needs far text: the long model finds its responses 0.85 nats"
    )
    assert found < page.text.index("them/long") < page.text.index("1 of 20, which lost 15,774 tokens")
    assert "last paragraph (before the last paragraph): 20 rows" in page.text
    best = page.text[page.text.index("Rank 1 of 20") : page.text.index("Rank 20 of 20")]
    first = best.index("segment 7 of 16, 1,152 tokens before the context's end: gain 0.72")
    second = best.index("segment 14 of 16, 256 tokens before the context's end: gain 0.90")
    assert first < best.index("Ida Baxter owns it.") < second < best.index("Frank Brooks left.") < best.index("Who?")
    assert "It rains." not in best and "The mill" not in best
    for word in ("score", "need", "HMP", "gain", "attention", "perplexity"):
        assert word in [attributes for attributes in re.findall(r"(\w+)\n?: ", page.text)], word


@pytest.mark.filterwarnings("ignore::hf_gateau.ranking.order.DegenerateRankingWarning")
def test_the_page_is_accessible(written):
    text, page = written(rank(with_texts(gateau_ppl_short=[3.0] * 30, gateau_ppl_long=[3.0] * 30)))
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert {link["href"][1:] for link in page.all("a")} <= set(names)
    assert [link["href"] for link in page.all("a")][0] == "#main"
    assert len(page.all("main")) == len(page.all("header")) == len(page.all("nav")) == 1
    assert all(len(image["alt"]) > 60 for image in page.all("img"))
    assert all(strip["role"] == "img" and strip["aria-label"] for strip in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table")) and all("scope" in x for x in page.all("th"))
    regions = [x for x in page.all("div") if x.get("role") == "region"]
    assert regions and all(x["tabindex"] == "0" and x["aria-label"] for x in regions)
    assert "Warnings of this ranking" in page.text and "HMP is 0 on every row" in page.text


def test_contrast_in_both_themes():
    """WCAG 2.2, 1.4.3: 4.5 for text, 1.4.11: 3 for what a figure is made of."""

    from hf_gateau.report.drawing import DARK, LIGHT

    style = (templates_folder() / "report.html").read_text(encoding="utf-8")
    themes = [dict(re.findall(r"--(\w+): (#\w+);", line)) for line in style.splitlines() if ":root {" in line]
    assert len(themes) == 2
    for theme, colours in zip(themes, (LIGHT, DARK), strict=True):
        for back in (theme["back"], theme["raised"]):
            assert min(contrast(theme[name], back) for name in ("ink", "muted", "link")) >= 4.5
            assert min(contrast(theme[name], back) for name in ("first", "second", "third")) >= 3
            assert min(contrast(theme["ink"], theme[f"need{level}"]) for level in (1, 2, 3, 4)) >= 4.5
            assert contrast(colours["ink"], back) >= 4.5 and min(contrast(x, back) for x in colours["cycle"][:2]) >= 3


def test_the_page_links_to_an_explorer(written):
    ds = rank(with_texts())
    assert "All rows, to look through" not in written(ds, draws=False)[1].text
    for place in ("explorer/index.html", "https://example.org/a?b=1&c", "../x y.html".replace(" ", "%20")):
        assert place in [link["href"] for link in written(ds, draws=False, explorer=place)[1].all("a")]
    for place in ("javascript:alert(1)", "data:text/html,x", " javascript:x", "java\nscript:x"):
        with pytest.raises(ValueError, match="no place to link to"):
            written(ds, draws=False, explorer=place)


def test_nothing_comes_from_the_network(written):
    text, page = written(rank(with_texts()))
    assert "http://" not in text and "https://" not in text and "<script" not in text and "@import" not in text
    assert page.all("meta")[1]["content"].startswith("default-src 'none'")
    sources = [x.get("src") or x["srcset"] for x in page.all("img", "source")]
    assert all(x.startswith("data:image/svg+xml;base64,") for x in sources) and not page.all("link", "iframe")
    for source in sources:
        svg = base64.b64decode(source.partition(",")[2]).decode()
        assert not re.search(r"""(?:href|src)=["'](?!#|data:)""", svg) and "@import" not in svg


def test_hostile_text_stays_text(written):
    texts = [{"role": "user", "content": f"{HOSTILE}\n\n{HOSTILE}"}, {"role": "assistant", "content": HOSTILE}]
    ds = measured(
        30,
        messages=[texts] * 30,
        id=[HOSTILE + "\n"] * 30,
        source=[HOSTILE, "other"] * 15,
        gateau_error=[HOSTILE] + [None] * 29,
        gateau_ppl_no_context=[4.0] * 30,
        gateau_segment_ppl=[[1 + i / 100] + [4.0] * 7 for i in range(30)],
        gateau_segment_starts=[[0] + [len(HOSTILE)] * 7] * 30,
        gateau_context_rule=[HOSTILE] * 30,
    )
    text, page = written(rank(ds), title=HOSTILE, num_samples=1)
    assert not page.all("script") and len(page.all("style")) == 1 and len(page.all("img")) == 8
    assert text.count("<style") == 1 and "<script" not in text and "49" not in re.findall(r"\b\d+\b", page.text)
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert page.text.count(HOSTILE) == 2 + 1 + 1 + 2 * 4, "title, heading, rule, reason; id and texts of two samples"
    assert shortened(HOSTILE, 24) in page.text, "the source"


@pytest.mark.filterwarnings("ignore::hf_gateau.ranking.order.DegenerateRankingWarning")
def test_edge_cases(written):
    _, page = written(rank(with_texts(1)))
    assert "Rank 1 of 1" in page.text and "The best sample" in page.text and not page.all("figure")
    with pytest.raises(ValueError, match="None of the 3 rows has a rank"):
        written(rank(with_texts(3, gateau_error=["x"] * 3)))
    with pytest.raises(ValueError, match="num_samples=-1"):
        written(rank(with_texts()), num_samples=-1)
    assert "Rank " not in written(rank(with_texts()), draws=False, num_samples=0)[1].text
    lists = {"gateau_segment_ppl": [None] * 30, "gateau_segment_attention": [[]] * 30, "gateau_ppl_short": [None] * 30}
    _, page = written(rank(with_texts(**lists), method="longest"))
    assert "Rank 1 of 30" in page.text and not page.all("svg")


def test_long_rows_have_few_bars_and_short_texts(written):
    segments = {"gateau_segment_ppl": [[2.0] * 499 + [1.5]] * 12, "gateau_segment_attention": [[0.1] * 500] * 12}
    segments["gateau_ppl_no_context"] = [2.0] * 12
    talk = [{"from": "human", "value": "word " * 60_000 + "\n\nWhy?"}, {"from": "gpt", "value": "Because."}]
    text, page = written(
        rank(measured(12, conversations=[talk] * 12, **segments), method="longest"), draws=False, num_samples=1
    )
    words = [x["aria-label"] for x in page.all("svg")][:2]
    assert words[0] == "500 segments; the highest gain, 0.29 nats a token, at segment 500 of 500"
    assert words[1] == "500 segments; attention is equal in all of them" and "9 segments to a bar" in page.text
    assert len(page.all("rect")) == 2 * (1 + 56), "of two rows: the one gain there is, and attention"
    assert len(text) < 1_000_000 and "Why?" in page.text


def test_the_same_data_give_the_same_page(tmp_path):
    ds = rank(with_texts())
    one, two = (write_report(ds, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert one == two


def test_templates():
    assert (templates_folder() / "report.html").is_file()
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="title"):
        render("report.html", autoescape=True, version="1")


def test_command(tmp_path, capsys):
    data, page = tmp_path / "ranked.parquet", tmp_path / "report.html"
    measured(30).to_parquet(data)
    arguments = ["report", str(data), "-o", str(page), "--source_column", "source", "--figures", str(tmp_path / "png")]
    assert main([*arguments, "--alpha", "0.4"]) == 0
    assert f"{page} written." in capsys.readouterr().out and len(list((tmp_path / "png").glob("*.png"))) == 9
    assert "0.4" in Page(page.read_text()).text
    main(["rank", str(data), "-o", str(tmp_path / "r.jsonl"), "--alpha", "0.3"])
    assert main(["report", str(tmp_path / "r.jsonl"), "-o", str(page), "-n", "1"]) == 0
    assert "0.3" in Page(page.read_text()).text, "from the file beside the rows"


def test_command_refuses_another_suffix_before_any_work(tmp_path, capsys):
    assert main(["report", str(tmp_path / "not-there.parquet"), "-o", "report.pdf"]) == 2
    assert "give a name that ends in .html" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
def test_in_a_browser(tmp_path):
    """No message on the console and no request; another page, which asks for a picture, shows that one would be seen."""
    texts = [{"role": "user", "content": f"{HOSTILE}\n\nWho?"}, {"role": "assistant", "content": HOSTILE}]
    page = write_report(rank(measured(40, messages=[texts] * 40, id=[HOSTILE] * 40)), tmp_path / "report.html")
    elements, console, asked = browse(page, tmp_path)
    assert "Rank 1 of 40" in elements and console == [] and asked == []
    other = tmp_path / "other.html"
    other.write_text("<img src='http://a.invalid/b'><script>console.log('here')</script>")
    _, console, asked = browse(other, tmp_path)
    assert asked == ["http://a.invalid/b"] and any("here" in line for line in console)
