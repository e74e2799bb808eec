"""The window that follows from the rows, and settings that leave nothing of them."""

import logging

import numpy as np
import pytest
from datasets import Dataset

from hf_gateau import GateauScorer, GateauSelector
from hf_gateau.measuring.config import MeasureConfig
from hf_gateau.measuring.lengths import CAS, HMP, Lengths, check_lengths, default_window
from hf_gateau.measuring.together import fit_to_rows
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.packing import Cut
from tests.measured import make_sample


@pytest.mark.quick
@pytest.mark.parametrize(
    "median, window",
    [
        (1, 64),
        (300, 64),
        (511, 64),
        (512, 128),
        (987, 128),
        (1024, 256),
        (4095.5, 512),
        (4096, 1024),
        (16_383, 2048),
        (16_384, 4096),
        (60_000, 4096),
        (1_000_000, 4096),
    ],
)
def test_default_window(median, window):
    assert default_window(median) == window


def lengths(*contexts: int, instruction: int = 10, lost: int = 0) -> Lengths:
    return Lengths(*(np.array(x) for x in (contexts, [instruction] * len(contexts), [lost] * len(contexts))))


def check(found: Lengths, needs=(HMP, CAS), pair=None, **settings) -> None:
    window = {"short_window": settings.pop("short_window", 100)} if pair is None else {}
    check_lengths(found, pair or ModelPairConfig(long_model="m", **window), MeasureConfig(**settings), needs)


@pytest.mark.quick
def test_settings_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="short_window=4096 holds the whole context of all 3 rows .*such as 128"):
        check(lengths(900, 987, 1000), short_window=4096)
    with pytest.raises(ValueError, match="segment_length=100000 leaves fewer than 2 segments .* all 3 rows .*such as"):
        check(lengths(900, 987, 1000), segment_length=100_000)
    with pytest.raises(ValueError, match="segment_length=128 with segment_stride=9 leaves.*segment_stride=1"):
        check(lengths(900, 987, 1000), segment_stride=9)
    with pytest.raises(ValueError, match="2 of 2 rows were cut to fit max_length, and lost 1,000 of the 1,160 tokens"):
        check(lengths(80, 80, lost=500))


@pytest.mark.quick
def test_what_is_not_needed_may_be_empty():
    check(lengths(900, 987), needs=[CAS], short_window=4096)
    check(lengths(900, 987), needs=[HMP], segment_length=100_000)
    check(lengths(900, 987), pair=ModelPairConfig(long_model="m", short_model="s"))
    check(lengths(), short_window=4096)


@pytest.mark.quick
def test_a_share_of_the_rows_is_warned_of(caplog):
    check(lengths(50, 1000, 1000, 1000, 1000))  # one in five
    assert not caplog.messages
    check(lengths(90, 91, 1000), segment_length=32)
    (message,) = caplog.messages
    assert message.startswith("short_window=100 holds the whole context of 1 of 3 rows"), "the instruction takes 10"
    caplog.clear()
    check(lengths(128, 129, 1000))
    (message,) = caplog.messages
    assert message.startswith(
        "segment_length=128 leaves fewer than 2 segments to measure in the context of 1 of 3 rows"
    )


@pytest.mark.quick
@pytest.mark.parametrize("length, stride", [(64, 1), (64, 2), (64, 3), (1, 7), (500, 1)])
def test_segments_are_counted_as_they_are_cut(length, stride):
    contexts = np.arange(1, 400)
    cut = Cut(length, stride)
    expected = [len(cut(range(0, n, length))) for n in contexts]
    assert lengths(*contexts).num_segments(length, stride).tolist() == expected


@pytest.mark.quick
def test_of_samples_counts_the_rows_that_each_stands_for():
    found = Lengths.of_samples([(make_sample(100, 5, 3), 2), (make_sample(7, 1, 1), 1)])
    assert found.context.tolist() == [100, 100, 7] and found.instruction.tolist() == [5, 5, 1] and len(found) == 3
    assert len(Lengths.of_samples([])) == 0 and not found.cuts


@pytest.fixture()
def settings(tiny_model) -> dict:
    return {"long_model": tiny_model, "segment_length": 64, "max_length": 4096, "device": "cpu"}


def test_the_window_follows_from_all_rows_and_is_part_of_the_key(rows, settings, tmp_path):
    ds, scorer = Dataset.from_list(rows), GateauScorer(**settings, store=tmp_path / "s.sqlite")
    assert scorer.pair_config.window_is_open and scorer.pair_config.short_window == 4096
    part, found = fit_to_rows(ds, scorer)
    median = np.median(found.context)
    assert len(part) == len(rows) and scorer.pair_config.short_window == default_window(median) < 4096
    assert scorer.describe()["short"]["window"] == default_window(median)
    told = GateauScorer(**settings, short_window=default_window(median))
    assert scorer.describe()["config_key"] == told.describe()["config_key"]
    assert not told.pair_config.window_is_open
    fit_to_rows(Dataset.from_list([rows[0]]), scorer)
    assert scorer.pair_config.short_window == default_window(median), "once chosen, it stays"


def test_the_selector_measures_as_score_does(rows, settings, tmp_path):
    selector = GateauSelector(fraction=0.5, **settings, store=str(tmp_path / "s.sqlite"))
    scorer, ds = GateauScorer(**settings), Dataset.from_list(rows[:4])
    fit_to_rows(ds, scorer)
    selector.select(ds)
    assert selector.record.measuring["config_key"] == scorer.describe()["config_key"]
    assert selector.record.measuring["short"]["window"] == scorer.pair_config.short_window


def test_settings_that_leave_nothing_end_before_a_model_loads(rows, settings, monkeypatch):
    from hf_gateau.models.pair import ModelPair

    monkeypatch.setattr(ModelPair, "_load", lambda *_: pytest.fail("a model was loaded"))
    ds = Dataset.from_list(rows[:3])
    with pytest.raises(ValueError, match="short_window=4096 holds the whole context of all 3 rows"):
        GateauSelector(fraction=0.5, **settings, short_window=4096).select(ds)
    with pytest.raises(ValueError, match="segment_length=9999 leaves fewer than 2 segments"):
        GateauSelector(fraction=0.5, **settings | {"segment_length": 9999}).select(ds)


def test_a_batch_knows_no_more_than_its_rows(rows, settings, caplog):
    """In `map` the window stays the paper's, and a batch of short rows is told once."""
    ds = Dataset.from_list(rows[:4])
    with caplog.at_level(logging.WARNING, "hf_gateau"):
        out = ds.map(GateauScorer(**settings), batched=True, batch_size=2)
    told = [message for message in caplog.messages if message.startswith("In one batch, short_window=4096 holds")]
    assert len(told) == 1 and out["gateau_ppl_short"] == out["gateau_ppl_long"]
