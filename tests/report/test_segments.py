"""Which segments tell most, against perplexities made by hand, and which text of the row each of them is."""

import math

import pytest

from hf_gateau.models.packing import Cut
from hf_gateau.report.sample_text import BLOCKS, sample_text, strip
from hf_gateau.report.segments import (
    FULL,
    MEDIAN,
    cut_mark,
    cut_of,
    in_words,
    merge_segments,
    nothing_told,
    segment_measures,
    telling_segments,
    text_read,
)


pytestmark = pytest.mark.quick

LETTERS = "abcdefghijklmnop"


def row(gains, length=10, letters=LETTERS, **columns) -> dict:
    """A row whose context is ten letters of a kind a segment: aaaaaaaaaabbbbbbbbbb..."""
    text = "".join(letter * length for letter in letters[: len(gains)])
    return {
        "messages": [{"role": "user", "content": f"{text}\n\nWho?"}, {"role": "assistant", "content": "Ida."}],
        "id": "r",
        "gateau_rank": 1,
        "gateau_score": 0.5,
        "gateau_ppl_short": 6.0,
        "gateau_ppl_long": 2.0,
        "gateau_ppl_no_context": 4.0,
        "gateau_segment_ppl": [4.0 / math.exp(gain) for gain in gains],
        "gateau_segment_attention": [0.1] * len(gains),
        "gateau_num_context_tokens": 128 * len(gains),
        "gateau_truncated": False,
    } | columns


def with_starts(gains, starts, **columns) -> dict:
    found = row(gains, **columns)
    end = len(found["messages"][0]["content"]) - len("\n\nWho?")
    return found | {"gateau_context_span": [0, 0, 0, end], "gateau_segment_starts": starts}


def texts(found) -> list[tuple[int, str]]:
    return [(segment.number, segment.text) for segment in found]


def test_the_segments_that_tell_most_in_the_order_of_the_text():
    gains = [0.0, 0.7, -0.2, 0.1, 0.6, 0.5, 0.65, 0.0, -0.1, 0.0]
    found = telling_segments(with_starts(gains, [10 * i for i in range(10)]), Cut(128))
    assert texts(found) == [(2, "b" * 10), (5, "e" * 10), (7, "g" * 10)]
    assert [round(x.gain, 6) for x in found] == [0.7, 0.6, 0.65] and all(
        x.attention == pytest.approx(1) for x in found
    )
    assert found[0].label == (
        "segment 2 of 10, 1,024 tokens before the context's end: gain 0.70, attention 1.0 times the mean"
    )


def test_what_no_segment_stands_out_in():
    for gains, why in (
        ([0.01, -0.3, 0.0, 0.0], "than the instruction does"),
        ([0.5, 0.5, 0.51, 0.5], "than most others do"),
    ):
        assert telling_segments(row(gains)) == [] and why in nothing_told(row(gains))
    assert nothing_told(row([])) == "" and telling_segments(row([])) == []
    # Every segment tells of the topic; one tells more.
    assert [x.number for x in telling_segments(row([0.4, 0.38, 1.1, 0.4, 0.45, 0.41]))] == [3]
    assert [x.number for x in telling_segments(row([0.4]))] == [1], "of one segment none is usual"


def test_texts_by_their_starts_also_where_they_are_of_unequal_length():
    found = telling_segments(with_starts([0.9, 0.0, 0.0, 0.0, 0.8], [0, 3, 11, 12, 44]), Cut(128))
    text = "".join(letter * 10 for letter in LETTERS[:5])
    assert texts(found) == [(1, text[:3]), (5, text[44:])] and all(x.is_exact for x in found)
    assert found[1].place == "the context's end"
    unrecorded = telling_segments(with_starts([0.9, 0.0, 0.0, 0.0, 0.8], [0, 3, 11, 12, 44]))
    assert texts(unrecorded) == texts(found) and all(x.is_exact for x in unrecorded)
    assert unrecorded[0].place.startswith("about 512 tokens")


def test_of_a_cut_row_only_what_was_read_is_shown():
    cut = with_starts([0.0, 0.9, 0.0, 0.0], [22, 30, 40, 50], gateau_num_cut_tokens=15_774, gateau_truncated=True)
    cut["messages"][0]["content"] = "".join(x * 10 for x in LETTERS[:6]) + "\n\nWho?"
    cut["gateau_context_span"] = [0, 0, 0, 60]
    assert text_read(cut) == "c" * 8 + "d" * 10 + "e" * 10 + "f" * 10
    assert texts(telling_segments(cut, Cut(128))) == [(2, "d" * 10)]
    shown = sample_text(cut, 1, 100, Cut(128))
    assert "… 15,774 tokens before this were cut by max_length" in shown and "aaa" not in shown and "bbb" not in shown
    quiet = sample_text(cut | {"gateau_segment_ppl": [4.0] * 4}, 1, 100, Cut(128))
    assert "ccccccccdddddddddd" in quiet and "bbb" not in quiet


def test_data_that_were_measured_before_tell_about_where():
    found = telling_segments(row([0.0, 0.0, 0.0, 0.9]), Cut(128))
    assert texts(found) == [(4, "d" * 10)] and not found[0].is_exact and found[0].label.endswith("about here")
    # A last segment of 64 tokens is half as much text.
    short = telling_segments(row([0.0, 0.0, 0.9, 0.0], gateau_num_context_tokens=3 * 128 + 64), Cut(128))
    assert short[0].text == text_read(row([0.0] * 4))[round(40 * 256 / 448) : round(40 * 384 / 448)]
    cut = row([0.0, 0.0, 0.0, 0.9], gateau_truncated=True)
    assert telling_segments(cut)[0].text is None and text_read(cut) is None
    assert cut_mark(cut) == "… some tokens before this were cut by max_length" and "aaaa" not in sample_text(cut, 1)
    assert cut_mark(row([0.1])) is None and cut_mark(row([0.1], gateau_num_cut_tokens=1)).startswith(
        "… 1 token before"
    )
    unknown = row([0.0, 0.0, 0.0, 0.9, 0.0], gateau_num_context_tokens=None)
    assert telling_segments(unknown)[0].place == "1 segments before the context's end"


def test_of_every_other_segment_that_was_measured():
    """Seven segments, of which the first, third, fifth and seventh were measured."""
    found = telling_segments(
        with_starts([0.0, 0.9, 0.0, 0.8], [0, 16, 32, 48], gateau_num_context_tokens=7 * 128 - 28), Cut(128, 2)
    )
    assert [x.place for x in found] == ["484 tokens before the context's end", "the context's end"]
    text = "".join(x * 10 for x in LETTERS[:4])
    assert [x.text for x in found] == [text[16:24], text[48:]] and not found[0].is_exact
    other = telling_segments(row([0.0, 0.9, 0.0, 0.8]), Cut(100, 2))
    assert other[0].place.startswith("about 256"), "the record is of rows that were cut otherwise"


def test_gains_are_from_the_response_without_context():
    measures = segment_measures(row([0.3, -0.2]))
    assert measures.bars["gain"] == pytest.approx([0.3, -0.2]) and measures.baseline == "without context"
    for unknown in (None, float("nan"), 0.0):
        measures = segment_measures(row([0.3, 0.0, -0.2], gateau_ppl_no_context=unknown))
        assert measures.bars["gain"] == pytest.approx([0.3, 0.0, -0.2]) and measures.baseline == MEDIAN
    assert segment_measures(row([0.1, 0.2], gateau_segment_attention=[3.0, 1.0])).bars["attention"] == [1.5, 0.5]
    assert set(segment_measures(row([0.1, 0.2], gateau_segment_attention=None)).bars) == {"gain"}
    for broken in ([0.0, 1.0], [float("inf"), 1.0], [float("nan"), 2.0], None, []):
        assert segment_measures(row([0.1, 0.2], gateau_segment_ppl=broken)).bars == {}


def test_bars_have_one_scale_and_begin_at_zero():
    assert strip([-1, 0, 0.01, 0.02, 0.125, 0.5, 0.51, 1, 30], FULL["gain"]) == "   ▁▁▄▅██"
    assert strip([2.0, 2.0], FULL["attention"]) == "▄▄" and len(BLOCKS) == 8
    one_outlier = strip([9.0] + [0.05] * 12, FULL["gain"])
    assert one_outlier == "█" + "▁" * 12, "useless segments stay low beside it"
    without = strip([0.05] * 13, FULL["gain"])
    assert without[1:] == one_outlier[1:], "and are as high as in any other row"


def test_blocks_and_words():
    assert merge_segments([1, 5, 2, 3, 9], 2) == [5, 9] and merge_segments([1, 2], 5) == [1, 2]
    assert in_words("gain", [0.1, 0.65]) == "2 segments; the highest gain, 0.65 nats a token, at segment 2 of 2"
    assert in_words("attention", [1.0, 1.0]) == "2 segments; attention is equal in all of them"
    assert cut_of({"segment_length": 64}) == Cut(64) and cut_of({"segment_length": 64, "segment_stride": 3}) == Cut(
        64, 3
    )
    assert cut_of(None) is None and cut_of({}) is None


def test_a_terminal_obeys_nothing_in_a_row():
    hostile = "\x1b[2J\x1b]0;title\x07 \u202edesrever\u202c \u2066x\u2069 \x9b31m"
    found = row([0.0, 0.0, 0.9, 0.0], id=hostile)
    found["messages"] = [
        {"role": "user", "content": f"{hostile * 20}\n\n{hostile}Who?"},
        {"role": "assistant", "content": hostile},
    ]
    for shown in (sample_text(found, 1), sample_text(found | {"gateau_segment_ppl": None}, 1)):
        assert "desrever" in shown and all(x.isprintable() or x == "\n" for x in shown)
        assert not set("\u202e\u202c\u2066\u2069") & set(shown)


def test_a_sample_in_the_terminal():
    shown = sample_text(with_starts([0.0, 0.9, 0.0, 0.0], [0, 10, 20, 30]), 7, 100, Cut(128)).splitlines()
    assert shown == [
        "rank 1 of 7  id r  score 0.5000",
        "perplexity  short 6.00  long 2.00  without context 4.00  need 1.10",
        "gain        │ █  │ 4 segments",
        "attention   │▂▂▂▂│",
        "segment 2 of 4, 256 tokens before the context's end: gain 0.90, attention 1.0 times the mean",
        "    bbbbbbbbbb",
        "instruction Who?",
        "response    Ida.",
    ]
    assert all(len(line) <= 70 for line in sample_text(row([0.5] * 300), 7, 70).splitlines()[2:])
    bare = sample_text({"gateau_rank": 1, "gateau_score": 0.5}, 1)
    assert "unknown" in bare and "gain" not in bare
