"""How far back rows reach, against sums token by token."""

import numpy as np
import pytest

from hf_gateau import rank
from hf_gateau.models.packing import Cut
from hf_gateau.records import attach_record
from hf_gateau.report.figures import figures
from hf_gateau.report.reach import distances, reach_of_segments
from hf_gateau.report.tokens import response_tokens
from tests.measured import measured


pytestmark = pytest.mark.quick

CUT = Cut(64)


def rows(num_rows=60, seed=0, cut=CUT, **columns):
    """Rows of random tokens; a third of each one's segments is near."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(200, 9000, num_rows)
    counts = [len(cut.starts(n)) for n in lengths.tolist()]
    far = [n - n // 3 for n in counts]
    sizes = rng.integers(1, 30, num_rows)
    draw = lambda scale: [rng.exponential(scale, size).tolist() for size in sizes]  # noqa: E731
    own = {
        "gateau_num_context_tokens": lengths.tolist(),
        "gateau_segment_ppl": [rng.lognormal(1, 0.3, n).tolist() for n in counts],
        "gateau_segment_attention": [rng.random(n).tolist() for n in counts],
        "gateau_token_nll_long": draw(0.5),
        "gateau_token_nll_short": draw(2.0),
        "gateau_token_nll_no_context": draw(3.0),
        "gateau_token_nll_far": draw(0.5),
        "gateau_token_nll_near": draw(3.0),
        "gateau_token_far_segment": [rng.integers(0, n, size).tolist() for n, size in zip(far, sizes, strict=True)],
        "gateau_token_text": ["x" * size for size in sizes.tolist()],
        "gateau_token_starts": [list(range(size)) for size in sizes.tolist()],
    }
    return measured(num_rows, seed, **(own | columns))


@pytest.mark.parametrize("cut", [Cut(64), Cut(64, 3), Cut(100)])
@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_against_the_tokens_of_each_row(cut, tau):
    ds, beyond = (
        rows(cut=cut if cut.length == 64 else Cut(64)),
        [512, 1024, 4096],
    )  # the last record is of other segments
    found = reach_of_segments(ds, beyond, tau, cut)
    for row, nats in zip(ds, found, strict=True):
        tokens = response_tokens(row, {"tau": tau}, cut).tokens
        needed = [(x.far_need, x.distance) for x in tokens if x.segment is not None]
        assert nats.tolist() == pytest.approx([sum(y for y, z in needed if z >= distance) for distance in beyond])
    assert (np.diff(found, axis=1) <= 1e-12).all() and found[:, 0].max() > 0


def test_rows_of_which_it_is_not_known():
    ds = rows(5)
    columns = ds.to_dict()
    columns["gateau_token_nll_far"][:3] = [None, [], [1.0] * 99]
    columns["gateau_token_far_segment"][:3] = [None, [], [0] * 99]
    columns["gateau_num_context_tokens"] = [*columns["gateau_num_context_tokens"][:4], None]
    found = reach_of_segments(type(ds).from_dict(columns), [512], 0.5, Cut(64))[:, 0]
    assert np.isnan(found).tolist() == [True, False, True, False, True]
    assert found[1] == 0, "without a far segment a row reaches nowhere"
    assert reach_of_segments(ds.remove_columns("gateau_token_nll_far"), [512], 0.5, None) is None
    none = type(ds).from_dict(columns | {"gateau_token_nll_far": [None] * 5})
    assert reach_of_segments(none, [512], 0.5, None) is None


def test_distances():
    assert distances(np.array([9000.0, np.nan])) == [512, 1024, 2048, 4096, 8192]
    assert distances(np.array([4096.0])) == [512, 1024, 2048] and distances(np.array([960.0])) == [128, 256, 512]
    assert distances(np.array([np.nan])) == [] and distances(np.array([1.0])) == []


def test_the_figure_in_words_and_numbers():
    ds = rows(120)
    attach_record(ds, "measuring", {"config_key": "c", "segment_length": 64})
    ranked = rank(ds, method="longest")
    figure = next(x for x in figures(ranked) if x.name == "reach")
    found = reach_of_segments(ranked, distances(np.array(ranked["gateau_num_context_tokens"], float)), 0.5, Cut(64))
    best = np.array(ranked["gateau_rank"]) <= 12
    assert [row[0] for row in figure.table[1]] == [512, 1024, 2048, 4096, 8192]
    for i, (_, of_top, of_all, top_reaches, reaches) in enumerate(figure.table[1]):
        assert of_top == pytest.approx(found[best, i].mean()) and of_all == pytest.approx(found[:, i].mean())
        assert top_reaches == (found[best, i] > 0).mean() and reaches == (found[:, i] > 0).mean()
    assert "nested windows were not measured" in figure.text and "0.5 nats a token" in figure.text
    lacking = rank(rows(120, gateau_token_nll_far=[None] * 120), method="longest")
    assert "reach" not in [x.name for x in figures(lacking)]
    some = ranked.to_dict()
    some["gateau_token_nll_far"][:20] = [None] * 20
    figure = next(x for x in figures(rank(type(ds).from_dict(some), method="longest")) if x.name == "reach")
    assert "without 20 whose far segments were not measured" in figure.text
