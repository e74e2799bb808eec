"""`segments_for` on a data set: everything else is measured of all rows first, and segments of those that HMP lets come into question."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher

from hf_gateau import (
    GateauScorer,
    GateauSelector,
    measure_together,
    rank,
    ranking_record,
    reuse_scores,
    screen,
    select,
)
from hf_gateau.measuring import passes
from hf_gateau.measuring.screening import Screening
from hf_gateau.quickstart import LONG_MODEL
from hf_gateau.quickstart.world import planted_rows
from hf_gateau.ranking.bounds import OF_SEGMENTS
from hf_gateau.rows.batches import COLUMNS
from hf_gateau.store.folder import open_store
from tests.measured import assert_same


PAIR = {"long_model": LONG_MODEL, "short_window": 256, "segment_length": 64, "device": "cpu"}
SHARE = {"segments_for": 0.5}
RANKING = {"mode": "mean"}  # in which no two rows are tied


def some_rows(count: int = 14) -> list[dict]:
    """Planted rows cut from the left, so that they differ in length; one twice, one of a single segment, and a bad one."""
    rows = [{"id": row["id"], "messages": row["messages"]} for row in planted_rows(count, seed=5)]
    for i, row in enumerate(rows):
        words = row["messages"][0]["content"].split(" ")
        row["messages"][0]["content"] = " ".join(words[-(250 + 150 * i // count) :])
    words = rows[0]["messages"][0]["content"].split(" ")
    short = [{"role": "user", "content": " ".join(words[-40:])}, *rows[0]["messages"][1:]]
    return [*rows, {**rows[3], "id": "twice"}, {"id": "short", "messages": short}, {"id": "bad", "messages": None}]


ROWS = some_rows()


class Passes:
    """How many rows' segments, and how many rows without them, were measured."""

    def __init__(self, monkeypatch):
        self.whole, self.segments = [], []
        work = passes._Work
        whole, segments = work.whole_rows, work.segments

        def counted_whole(this, *rest):
            self.whole += [x.key for x in this.samples]
            return whole(this, *rest)

        def counted_segments(this, *rest):
            self.segments += [x.key for x in this.samples]
            return segments(this, *rest)

        monkeypatch.setattr(work, "whole_rows", counted_whole)
        monkeypatch.setattr(work, "segments", counted_segments)

    def take(self) -> tuple[int, int]:
        found = len(self.whole), len(self.segments)
        assert len(set(self.whole)) == len(self.whole) and len(set(self.segments)) == len(self.segments)
        self.whole.clear(), self.segments.clear()
        return found


@pytest.fixture
def counted(monkeypatch):
    return Passes(monkeypatch)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    store = tmp_path_factory.mktemp("plain") / "s.sqlite"
    return measure_together(Dataset.from_list(ROWS), GateauScorer(**PAIR, store=store))


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "s.sqlite")


def as_screened(plain: Dataset, screening: Screening, **settings) -> list[dict]:
    """What rows with all segments become."""
    hmp = rank(plain, **settings)["gateau_hmp"]
    rows = [dict(row) for row in plain]
    for row, value in zip(rows, hmp, strict=True):
        if row["gateau_key"] is None:
            continue
        row["gateau_screened"] = screening.is_low(value)
        if row["gateau_screened"] and not screening.is_sampled(row["gateau_key"].partition(":")[2]):
            row |= dict.fromkeys(OF_SEGMENTS)
    return rows


def test_segments_are_measured_of_the_chosen_rows_and_nothing_twice(plain, store, counted):
    ds, scorer = Dataset.from_list(ROWS), GateauScorer(**PAIR, **SHARE, store=store)
    with pytest.raises(ValueError, match=r"nobody has chosen yet: call screen\(ds, scorer\)"):
        measure_together(ds, scorer)
    found = screen(ds, scorer, **RANKING)
    assert counted.take() == (15, 0) and found.num_rows == 16 and found.num_high in (7, 8)  # one is there twice
    out = measure_together(ds, scorer)
    whole, segments = counted.take()
    assert whole == 0 and found.num_high + found.num_sampled - 1 <= segments <= found.num_high + found.num_sampled + 1
    assert_same(out, as_screened(plain, found, **RANKING))
    assert scorer.describe()["screening"] == found.to_json()
    assert scorer.describe()["config_key"] == GateauScorer(**PAIR, store=store).describe()["config_key"]

    again = GateauScorer(**PAIR, **SHARE, store=store)  # all of it again
    assert screen(ds, again, **RANKING) == found and counted.take() == (0, 0)
    assert measure_together(ds, again).to_dict() == out.to_dict() and counted.take() == (0, 0)

    more = GateauScorer(**PAIR, segments_for=0.8, store=store)  # of more rows: their segments alone
    wider = screen(ds, more, **RANKING)
    assert_same(measure_together(ds, more), as_screened(plain, wider, **RANKING))
    assert counted.take()[0] == 0 and wider.num_high > found.num_high
    assert_same(measure_together(ds, GateauScorer(**PAIR, store=store)), list(plain))
    assert counted.take()[0] == 0
    assert screen(ds, again, **RANKING) == found  # though the store has all segments, the rows come out as before
    assert measure_together(ds, again).to_dict() == out.to_dict() and counted.take() == (0, 0)


def test_rows_that_have_their_segments_are_not_measured_again(plain, store, counted):
    ds = Dataset.from_list(ROWS)
    measure_together(ds.select(range(9)), GateauScorer(**PAIR, store=store))
    counted.take()
    scorer = GateauScorer(**PAIR, **SHARE, store=store)
    found = screen(ds, scorer, **RANKING)
    assert counted.take() == (6, 0)
    assert_same(measure_together(ds, scorer), as_screened(plain, found, **RANKING))
    assert counted.take()[0] == 0


def test_a_map_of_several_processes_and_any_order_of_rows_find_the_same(plain, store, counted):
    ds, scorer = Dataset.from_list(ROWS), GateauScorer(**PAIR, **SHARE, store=store)
    ranking = {"hmp": "need", "cas": "far_need", "tau": 0.0}
    with pytest.raises(ValueError, match="nobody has chosen yet"):
        scorer(ROWS[0])
    found = screen(ds, scorer, **ranking)
    expected = as_screened(plain, found, **ranking)
    assert (found.hmp, found.tau) == ("need", 0.0)
    assert pickle.loads(pickle.dumps(scorer)).describe() == scorer.describe()
    unscreened = GateauScorer(**PAIR, **SHARE, store=store)
    assert Hasher.hash(scorer) != Hasher.hash(unscreened)  # what `datasets` keeps is of one decision
    assert_same(ds.map(scorer, batched=True, batch_size=4), expected)
    counted.take()
    turned = Dataset.from_list(ROWS[::-1])
    assert screen(turned, unscreened, **ranking) == found
    assert_same(turned.map(unscreened, batched=True, batch_size=5, num_proc=2), expected[::-1])
    assert scorer.configure(on_error="skip").describe().get("screening") is None  # other settings, another decision


@pytest.mark.slow
def test_a_row_that_fails_in_either_pass_has_its_reason(store, monkeypatch):
    ds, scorer = Dataset.from_list(ROWS), GateauScorer(**PAIR, **SHARE, store=store)
    keys = [scorer.start().lay_out(row).key for row in ROWS[:2]]
    real = passes._Work.whole_rows

    def failing(this, *rest):
        if any(x.key == keys[0] for x in this.samples):
            raise RuntimeError("made to fail")
        return real(this, *rest)

    monkeypatch.setattr(passes._Work, "whole_rows", failing)
    found = screen(ds, scorer, **RANKING)
    assert found.num_rows == 15
    monkeypatch.setattr(passes._Work, "segments", lambda this: 1 / 0)
    out = measure_together(ds, scorer)
    assert "made to fail" in out["gateau_error"][0] and out["gateau_ppl_long"][0] is None
    failed = [error is not None and "ZeroDivisionError" in error for error in out["gateau_error"]]
    assert found.num_high <= sum(failed) <= found.num_high + found.num_sampled + 2
    assert all(
        ppl is not None for ppl, is_bad in zip(out["gateau_ppl_long"][1:-1], failed[1:-1], strict=True) if not is_bad
    )


def test_what_cannot_be_chosen_by_is_refused(store):
    ds, scorer = Dataset.from_list(ROWS), GateauScorer(**PAIR, **SHARE, store=store)
    for settings, match in (
        ({"mode": "paper"}, "with combine='softmax' one row's CAS can outweigh any HMP"),
        ({"hmp": "none"}, "has none; leave it out, or rank with an HMP"),
        ({"hmp": "rank"}, "hmp='rank' changes with the other rows"),
        ({"cas": "heads"}, "cas='heads' needs none; leave it out"),
        ({"alpha": 0.6}, "is certain of no row with alpha=0.6.*give a segments_for above 0.667"),
        ({"alpha": 0.5}, "is certain of no row with alpha=0.5.*; leave it out"),
    ):
        with pytest.raises(ValueError, match=match):
            screen(ds, scorer, **settings)
    with pytest.raises(ValueError, match="this one has none; give e.g. segments_for=0.4"):
        screen(ds, GateauScorer(**PAIR, store=store))
    with pytest.raises(ValueError, match="segments_for keeps in the store what it chooses by, and it is off"):
        screen(ds, GateauScorer(**PAIR, **SHARE, store=False))
    for settings in ({"segments_for": 0.0}, {"segments_for": 1.0}, {"segments_for": -1}, {"segments_for": 40}):
        with pytest.raises(ValueError, match="segments_for is a share of the rows between 0 and 1"):
            GateauScorer(**PAIR, **settings)
    with pytest.raises(ValueError, match="cam='heads' measures none; leave one out"):
        GateauScorer(**PAIR, **SHARE, cam="heads")


def test_a_selector_screens_by_its_own_ranking_and_refuses_what_is_not_certain(plain, store):
    for settings, match in (
        (
            {"fraction": 0.3},
            "certain of the best 0.25 of the rows, and fraction=0.3 is wanted; give a segments_for of 0.55",
        ),
        ({"fraction": 0.9}, "is wanted; leave it out"),
        ({"top_k": 2, "strata": "length"}, "strata='length' keeps some of every stratum"),
        ({"mode": "released"}, "combine='released'"),
    ):
        with pytest.raises(ValueError, match=match):
            GateauSelector(**PAIR, **SHARE, store=store, **settings)
    selector = GateauSelector(**PAIR, **SHARE, store=store, mode="mean", top_k=2)
    kept = selector.select(Dataset.from_list(ROWS))
    assert len(kept) == 2 and kept["id"] == select(rank(plain, mode="mean"), top_k=2)["id"]
    assert (
        selector.record.screening["num_without"] > 0
        and selector.record.measuring["screening"]["hmp"] == "log_difference"
    )


def test_scored_rows_without_segments_are_not_taken_for_measured(plain, store, counted):
    ds, scorer = Dataset.from_list(ROWS[:-1]), GateauScorer(**PAIR, **SHARE, store=store)
    screen(ds, scorer, **RANKING)
    scored = measure_together(ds, scorer)
    counted.take()
    whole = GateauScorer(**PAIR, store=store)
    out = reuse_scores(ds, scored, whole)
    assert counted.take()[0] == 0 and None not in out["gateau_segment_ppl"]
    np.testing.assert_allclose(out["gateau_ppl_long"], plain["gateau_ppl_long"][:-1], rtol=1e-5)
    known = reuse_scores(ds, scored)  # without models what there is
    assert known["gateau_screened"] == scored["gateau_screened"]
    assert (
        ranking_record(rank(known, mode="mean"))["screening"] == ranking_record(rank(scored, mode="mean"))["screening"]
    )
    with pytest.raises(ValueError, match="the scored rows are not measured now; leave one of the two out"):
        reuse_scores(ds, scored, scorer)


SCRIPT = """
import json, sys
from datasets import Dataset, disable_progress_bars
disable_progress_bars()
from hf_gateau import GateauScorer, measure_together, screen
rows, settings = json.loads(sys.argv[1]), json.loads(sys.argv[2])
ds, scorer = Dataset.from_list(rows), GateauScorer(**settings)
found = screen(ds, scorer, mode="mean")
out = measure_together(ds, scorer)
print(json.dumps({"screening": found.to_json(), "columns": out.to_dict()}))
"""


def num_kept(store, segments: bool) -> int:
    """Rows that are kept with their segments, or without."""
    about = [
        x for x in store.configurations() if "segment_length" in x["description"] and "column" not in x["description"]
    ]
    return sum(x["num_rows"] for x in about if x["description"].get("segments", True) is segments)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["s.sqlite", "folder/"])
@pytest.mark.parametrize("after_choosing", [False, True])
def test_killed_and_gone_on_with_by_two_processes(plain, place, after_choosing, tmp_path):
    """Nothing that was measured is lost, and the decision and the numbers are those of a run that was not stopped."""
    if place.endswith("/"):
        (tmp_path / place).mkdir()
    settings = {**PAIR, **SHARE, "store": str(tmp_path / place)}
    command = [sys.executable, "-c", SCRIPT, json.dumps(ROWS), json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    store = open_store(tmp_path / place)
    with subprocess.Popen(command, env=environment, **options) as process:
        while num_kept(store, segments=after_choosing) < 3:
            assert process.poll() is None, process.stderr.read()[-3000:]
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (num_kept(store, segments=True) > 0) is after_choosing
    with socket.socket() as free:
        free.bind(("localhost", 0))
        launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    both = [
        subprocess.Popen(command, env={**environment, **launch, "RANK": x, "LOCAL_RANK": x}, **options) for x in "01"
    ]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    found = [json.loads(out.splitlines()[-1]) for out, _ in told]
    assert found[0] == found[1]
    rows = Dataset.from_dict(found[0]["columns"])
    assert_same(
        rows.select_columns([name for name in COLUMNS]),
        as_screened(plain, Screening.from_json(found[0]["screening"]), **RANKING),
    )
    for known in store.configurations():
        assert known["num_rows"] == known["num_measured"]
