"""Stretches that need far text and how they are marked: in a terminal, in plain text, on a page; and that rows' texts stay texts."""

import io
import re

import pytest

from hf_gateau import rank
from hf_gateau.cli import main
from hf_gateau.models.packing import Cut
from hf_gateau.records import attach_record
from hf_gateau.report.marking import THE_END, WHITE_SPACE, Piece, pieces, stretches, words
from hf_gateau.report.page import write_report
from hf_gateau.report.sample_text import marks_legend, sample_text
from hf_gateau.report.tokens import NO_STARTS, NOT_MEASURED, ResponseToken, ResponseTokens, response_tokens
from hf_gateau.shell.colour import is_coloured
from tests.browser import HOSTILE, Page
from tests.measured import measured


pytestmark = pytest.mark.quick


def of(*tokens: tuple, is_exact: bool = True) -> ResponseTokens:
    """Tokens of (text, need, far segment or None)."""
    made = [
        ResponseToken(text, need, need if segment else 0.0, segment, 100.0 * segment if segment else None, *[0.0] * 5)
        for text, need, segment in tokens
    ]
    return ResponseTokens(made, 0.5, is_exact=is_exact)


def unmarked(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def test_stretches_are_the_runs_of_most_need():
    found = of(
        ("In ", 0, None), ("Par", 1.5, 2), ("is", 3.0, 1), (" or ", 0, None), ("Rome", 0.5, None), (".", 0, None)
    )
    first, second = stretches(found)
    assert (first.text, first.need, first.segment) == ("Paris", 4.5, 1)
    assert first.label == "“Paris”: 4.50 nats, from segment 1, 100 tokens before the context's end"
    assert second.label == "“Rome”: 0.50 nats, from no far segment alone" and second.segment is None
    assert stretches(of(*[(f"w{i} ", i % 2 * i, 1) for i in range(20)]), 2)[0].text == "w17", (
        "in the order of the text"
    )
    about = of(("Paris", 2.0, 3), is_exact=False)
    assert "about 300 tokens before" in stretches(about)[0].label
    by_heads = ResponseTokens([ResponseToken("So", 1.0, None, None, None, *[0.0] * 3, None, None)], 0.5)
    assert stretches(by_heads)[0].label == "“So”: 1.00 nats", "segments were not measured"
    assert stretches(of(("a", 0, None))) == [] and stretches(ResponseTokens([], 0.5, NO_STARTS)) == []


def test_tokens_of_one_character_and_of_none():
    found = of(
        ("So ", 0, None),
        ("", 1.0, None),
        ("", 0.5, 2),
        ("🙂", 0.25, None),
        ("!", 0, None),
        ("", 3.0, 1),
        ("", 1.0, None),
    )
    smile, end = stretches(found)
    assert (smile.text, smile.need, smile.segment) == ("🙂", 1.75, 2) and (end.text, end.need) == (THE_END, 4.0)
    assert pieces(found, 100)[1:] == [
        Piece("🙂", 2, "1.75 nats, from segment 2, 200 tokens before the context's end"),
        Piece("!"),
    ]


def test_pieces_say_what_the_response_says():
    found = of(
        (" It", 0, None),
        (" is \n", 0, None),
        ("\n  06", 2.0, 1),
        (":15\n", 9.0, 1),
        ("\tthen", 0, None),
        ("  ", 0, None),
    )
    assert [(x.text, x.level) for x in pieces(found, 100)] == [("It is ", 0), ("06", 2), (":15", 4), (" then", 0)]
    assert "".join(x.text for x in pieces(found, 100, keep_lines=True)) == "It is\n06:15\nthen"


def test_white_space_is_not_marked():
    blank = of(("So", 0, None), (" \n", 2.0, None), ("be", 0, None))
    assert [x.text for x in stretches(blank)] == [WHITE_SPACE] and stretches(blank)[0].label.startswith(
        "white space: 2"
    )
    assert pieces(blank, 100) == [Piece("So be")]


def test_of_a_long_response_the_part_of_most_need_is_shown():
    words = [(f"word{i} ", 0.0, None) for i in range(400)]
    both_ends = "".join(x.text for x in pieces(of(*words), 100))
    assert both_ends.startswith("word0 ") and both_ends.endswith("word399") and " ... " in both_ends
    words[250], words[30] = ("Paris ", 4.0, 1), ("Rome ", 1.0, 2)
    shown = pieces(of(*words), 100)
    text = "".join(x.text for x in shown)
    assert text.startswith("... ") and text.endswith(" ...") and len(text) == 108 and "Rome" not in text
    assert [x.text for x in shown if x.level] == ["Paris"] and 40 < text.index("Paris") < 60


def test_what_the_marks_mean():
    known, old, plain = of(("a", 1.0, 1)), ResponseTokens([], 0.5, NO_STARTS), ResponseTokens([], 0.5, NOT_MEASURED)
    assert words([known], "bold is so")["response"] == "bold is so; tau is 0.5 nats" and "far need" in words(
        [known], ""
    )
    assert words([old, known, old], "bold is so")["response"].count(NO_STARTS) == 1
    assert words([old, plain], "") == {
        "response": "; ".join(f"no token is marked: {x}" for x in (NO_STARTS, NOT_MEASURED))
    }
    assert words([of(("a", 0, None))], "x").keys() == {"response"} and words([], "x") == {}


def ranked_rows(
    text="In Paris, not Rome. \N{GRINNING FACE}", user="A b c d e f g h.\n\nWhere?", num_rows=12, **columns
):
    """Rows whose second token, "Paris", the second of eight segments tells."""
    first = text.index("Paris") if "Paris" in text else 1
    starts = [0, first, first + len("Paris"), len(text)]
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": text}]
    own = {
        "gateau_token_nll_long": [[0.1, 0.0, 0.1, 0.0]] * num_rows,
        "gateau_token_nll_short": [[0.1, 5.0, 0.1, 0.0]] * num_rows,
        "gateau_token_nll_no_context": [[0.1, 6.0, 0.1, 0.0]] * num_rows,
        "gateau_token_nll_far": [[0.1, 0.25, 0.1, 0.0]] * num_rows,
        "gateau_token_nll_near": [[0.1, 5.5, 0.1, 0.0]] * num_rows,
        "gateau_token_far_segment": [[0, 1, 0, 0]] * num_rows,
        "gateau_token_text": [text] * num_rows,
        "gateau_token_starts": [starts] * num_rows,
        "gateau_num_context_tokens": [800] * num_rows,
        "gateau_ppl_no_context": [4.0] * num_rows,
        "gateau_segment_ppl": [[4.0, 1.5] + [4.0] * 6] * num_rows,
        "gateau_segment_starts": [[0, 2, 4, 6, 8, 10, 12, 14]] * num_rows,
    }
    ds = rank(measured(num_rows, messages=[turns] * num_rows, **(own | columns)), method="perplexity")
    attach_record(ds, "measuring", {"config_key": "c", "segment_length": 100})
    return ds


NEEDS = "“Paris”: 4.50 nats, from segment 2, 600 tokens before the context's end"


def test_a_sample_in_colour_and_without():
    row, tokens = ranked_rows()[0], response_tokens(ranked_rows()[0], None, Cut(100))
    plain = sample_text(row, 12, 100, Cut(100), tokens)
    assert "response    In [Paris], not Rome. 😀\n" in plain and f"needs       {NEEDS}" in plain
    assert "far need    │ █      │" in plain and "\x1b" not in plain
    coloured = sample_text(row, 12, 100, Cut(100), tokens, is_coloured=True)
    assert "\x1b[1;38;5;16;48;5;208mParis\x1b[0m, not Rome" in coloured
    assert unmarked(coloured) == plain.replace("[Paris]", "Paris")
    old = sample_text(
        {x: y for x, y in row.items() if x != "gateau_token_starts"}, 12, 100, Cut(100), is_coloured=True
    )
    assert "response    In Paris, not Rome." in old and "\x1b" not in old and "needs" not in old


def test_coloured_lines_are_as_wide_as_others():
    row = ranked_rows("They say that it was Paris and so forth. " * 6)[0]
    lines = sample_text(row, 12, 60, Cut(100), is_coloured=True).splitlines()
    plain = [unmarked(line) for line in lines]
    assert max(map(len, plain[2:])) <= 60 and sum("\x1b" in line for line in lines) == 1
    start = next(i for i, line in enumerate(plain) if line.startswith("response"))
    end = next(i for i, line in enumerate(plain) if line.startswith("needs"))
    assert (
        " ".join(line[12:] for line in plain[start:end]) == ("They say that it was Paris and so forth. " * 6).strip()
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("choice", "stream", "variables", "expected"),
    [
        ("auto", Terminal(), {}, True),
        ("auto", io.StringIO(), {}, False),
        ("auto", Terminal(), {"NO_COLOR": "1"}, False),
        ("auto", Terminal(), {"NO_COLOR": ""}, True),  # no-color.org: "when present and not an empty string"
        ("auto", Terminal(), {"TERM": "dumb"}, False),
        ("always", io.StringIO(), {"NO_COLOR": "1", "TERM": "dumb"}, True),
        ("never", Terminal(), {}, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(choice, stream, variables, expected, monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_coloured(choice, stream) is expected


def test_top_says_what_the_marks_mean(tmp_path, capsys):
    ranked_rows().to_parquet(tmp_path / "ranked.parquet")

    def shown(*arguments) -> str:
        assert main(["top", str(tmp_path / "ranked.parquet"), "-n", "1", *arguments]) == 0
        return capsys.readouterr().out

    plain = shown()
    assert "In [Paris]" in plain and NEEDS.replace("600", "about 600") in " ".join(plain.split()), (
        "no record of the cut"
    )
    assert "\x1b" not in plain
    assert " ".join(marks_legend(False).split()[:6]) in plain and "tau is 0.5 nats" in plain
    coloured = shown("--color", "always")
    assert "mParis\x1b[0m" in coloured and "colours are on tokens" in coloured and "above\xa04" in coloured
    assert main(["top", str(tmp_path / "ranked.parquet"), "--color", "blue"]) == 2
    old = ranked_rows().remove_columns("gateau_token_starts")
    old.to_parquet(tmp_path / "ranked.parquet")
    assert "no token is marked: nothing tells where its tokens begin" in " ".join(shown().split())


def test_the_page_marks_tokens_for_eyes_and_ears(tmp_path):
    text = write_report(ranked_rows(), tmp_path / "report.html", num_samples=1).read_text(encoding="utf-8")
    page = Page(text)
    assert page.all("mark") == [{"class": "need4", "title": NEEDS.partition(": ")[2]}] * 2
    assert "In Paris, not Rome. 😀" in page.text and page.text.count(NEEDS) == 2, (
        "in words for those who see no colours"
    )
    assert "the deeper the colour of a token" in page.text
    assert (
        sum(
            x["aria-label"].startswith("8 segments; the highest far need, 4.75 nats, at segment 2")
            for x in page.all("svg")
        )
        == 2
    )
    old = write_report(ranked_rows(gateau_token_starts=[None] * 12), tmp_path / "old.html", num_samples=1)
    old = Page(old.read_text(encoding="utf-8"))
    assert not old.all("mark") and "In Paris, not Rome. 😀" in old.text and "no token is marked" in old.text


def test_hostile_tokens_stay_text(tmp_path):
    bad = f"Paris{HOSTILE} \x1b[31m\u202eno\u202c\x07"
    ds = ranked_rows(bad)
    text = write_report(ds, tmp_path / "report.html", num_samples=1).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("script", "img")[7:] and "<script" not in text and len(page.all("mark")) == 2
    assert HOSTILE in page.text and not any("onerror" in x for _, x in page.elements) and "\x1b" not in text
    shown = sample_text(ds[0], 12, 100, Cut(100), is_coloured=True)
    assert not set("\x07\u202e\u202c") & set(shown) and "\x1b" not in unmarked(shown)
