"""What each token of a response needs, by hand."""

import pytest

from hf_gateau.models.packing import Cut
from hf_gateau.report.tokens import NO_STARTS, NOT_MEASURED, ResponseToken, level_of, response_tokens


pytestmark = pytest.mark.quick

# Four segments of 100 tokens but for the last; two are far. The second token is told by the first segment, the third by the
# whole context alone, the fourth is as likely without any.
ROW = {
    "gateau_num_context_tokens": 350,
    "gateau_segment_ppl": [2.0, 3.0, 3.0, 3.0],
    "gateau_token_nll_long": [0.1, 0.25, 0.5, 1.0, 0.0],
    "gateau_token_nll_short": [0.1, 5.0, 4.0, 1.0, 0.25],
    "gateau_token_nll_no_context": [0.2, 6.0, 3.5, 1.0, 0.25],
    "gateau_token_nll_far": [0.2, 0.5, 3.25, 1.0, 0.0],
    "gateau_token_nll_near": [0.1, 5.5, 3.5, 1.0, 0.5],
    "gateau_token_far_segment": [1, 0, 0, 1, 1],
    "gateau_token_text": "In Paris 🙂",
    "gateau_token_starts": [0, 3, 9, 9, 10],  # two tokens make the last character; the end of the turn has none
}


def test_texts_and_numbers():
    found = response_tokens(ROW, {"tau": 0.5}, Cut(100))
    assert [token.text for token in found.tokens] == ["In ", "Paris ", "", "🙂", ""] and not found.missing
    assert found.text == ROW["gateau_token_text"] and found.tau == 0.5
    assert [token.need for token in found.tokens] == [0.0, 4.25, 2.5, 0.0, 0.0] and found.need == 6.75
    assert [token.far_need for token in found.tokens] == [0.0, 4.5, 0.0, 0.0, 0.0]
    assert [token.segment for token in found.tokens] == [None, 1, None, None, None]
    assert found.tokens[1].distance == 250, "the first of 350 tokens' segments ends at 100"
    assert [token.level for token in found.tokens] == [0, 4, 3, 0, 0]
    assert found.tokens[1] == ResponseToken("Paris ", 4.25, 4.5, 1, 250, 0.25, 5.0, 6.0, 0.5, 5.5)


def test_tau_is_that_of_the_ranking():
    needs = {tau: response_tokens(ROW, {"tau": tau}).need for tau in (0.0, 2.0, 5.0)}
    assert needs == {0.0: 4.75 + 3.0 + 0.25, 2.0: 2.75 + 1.0, 5.0: 0.0}
    assert response_tokens(ROW).tau == response_tokens(ROW, {"method": "longest"}).tau == 0.5


def test_rows_without_far_or_near_segments():
    none = response_tokens(ROW | {"gateau_token_nll_far": [], "gateau_token_far_segment": []}, None, Cut(100)).tokens
    assert [token.far_need for token in none] == [0.0] * 5 and {token.segment for token in none} == {None}
    assert none[0].nll_far is None and none[0].nll_near == 0.1
    all_far = response_tokens(ROW | {"gateau_token_nll_near": []}, None, Cut(100)).tokens
    assert [token.far_need for token in all_far] == [0.0, 5.0, 0.0, 0.0, 0.0] and all_far[1].segment == 1
    heads = {name: None for name in ROW if "_far" in name or "_near" in name or "segment_ppl" in name}
    assert response_tokens(ROW | heads).tokens[1] == ResponseToken(
        "Paris ", 4.25, None, None, None, 0.25, 5.0, 6.0, None, None
    )


def test_distances_without_a_record_of_the_cut():
    """Four segments of equal length are taken for those of 350 tokens."""
    assert response_tokens(ROW).tokens[1].distance == pytest.approx(350 - 87.5)
    assert response_tokens(ROW | {"gateau_num_context_tokens": None}).tokens[1].distance is None


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"gateau_token_nll_long": None}, NOT_MEASURED),
        ({"gateau_token_nll_short": [0.0] * 4}, NOT_MEASURED),
        ({"gateau_token_nll_short": [0.0, float("nan"), 0.0, 0.0, 0.0]}, NOT_MEASURED),
        ({"gateau_token_starts": None}, NO_STARTS),
        ({"gateau_token_text": None}, NO_STARTS),
        ({"gateau_token_starts": [0]}, NO_STARTS),
    ],
)
def test_what_cannot_be_told_is_said(change, missing):
    found = response_tokens(ROW | change)
    assert found.tokens == [] and found.text == "" and found.missing == missing
    columns = {name: value for name, value in (ROW | change).items() if value is not None}
    assert response_tokens(columns).missing == missing, "a column that is not there"


def test_levels():
    assert [level_of(need) for need in (0.0, 0.01, 1.0, 1.5, 2.5, 4.0, 4.1, 100.0)] == [0, 1, 1, 2, 3, 3, 4, 4]
