"""`cam: heads` on a data set: heads are chosen once for a store, by some of the rows; segments are measured of these alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from hf_gateau import GateauScorer, GateauSelector, calibrate_heads, measure_together, rank
from hf_gateau.cli import main
from hf_gateau.files.reading import load_rows
from hf_gateau.files.sidecar import read_sidecar
from hf_gateau.measuring import heads, passes
from hf_gateau.measuring.calibration import calibration_places
from hf_gateau.measuring.heads import HeadCalibration
from hf_gateau.measuring.passes import head_attention, measure_samples, sample_distances
from hf_gateau.measuring.survey import survey_rows
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.pair import ModelPair
from hf_gateau.quickstart import LONG_MODEL
from hf_gateau.quickstart.world import planted_rows
from hf_gateau.rows.batches import COLUMNS
from hf_gateau.store.folder import open_store
from hf_gateau.store.sqlite import Measurement
from tests.measured import make_sample


PAIR = {"long_model": LONG_MODEL, "short_window": 256, "segment_length": 64, "device": "cpu"}
HOW = {"cam": "heads", "cam_rows": 12}
OF_SEGMENTS = ("gateau_segment_ppl", "gateau_segment_attention", "gateau_token_nll_far", "gateau_token_nll_near")


def rows_of_several_lengths(count: int = 24) -> list[dict]:
    """Planted rows cut from the left; the shortest have no far segment, and the last two say the same."""
    rows = planted_rows(count - 2, seed=5)
    for i, row in enumerate(rows):
        words = row["messages"][0]["content"].split(" ")
        row["messages"][0]["content"] = " ".join(words[-(250 + 650 * i // count) :])
    return [*rows, {**rows[3], "id": "twice"}, {"id": "bad", "messages": None}]


ROWS = rows_of_several_lengths()


@pytest.fixture(autouse=True)
def any_agreement(monkeypatch):
    """The planted pair's two layers have four heads, none of them good enough: what is tested here is what comes after."""
    monkeypatch.setattr(heads, "LEAST_AGREEMENT", 0.0)
    monkeypatch.setattr(heads, "LEAST_ROWS", 0)


def close(found, expected, **tolerance):
    """Two columns of numbers or lists, null in the same rows."""
    for got, want in zip(found, expected, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            np.testing.assert_allclose(got, want, **tolerance)


@pytest.fixture(scope="module")
def by_segments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segments")
    return measure_together(Dataset.from_list(ROWS), GateauScorer(**PAIR, store=folder / "s.sqlite"))


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "s.sqlite")


def test_segments_are_measured_of_the_rows_that_choose_alone(by_segments, store, monkeypatch):
    ds, scorer, measured = Dataset.from_list(ROWS), GateauScorer(**PAIR, **HOW, store=store), []
    real = passes.segment_nlls
    monkeypatch.setattr(
        passes, "segment_nlls", lambda model, samples, *rest: measured.extend(samples) or real(model, samples, *rest)
    )
    out = measure_together(ds, scorer)
    choosing = [x is not None for x in out["gateau_segment_ppl"]]
    assert sum(choosing) == len(measured) == 12
    for name in ("gateau_ppl_long", "gateau_ppl_short", "gateau_ppl_no_context", "gateau_token_nll_long"):
        close(out[name], by_segments[name], rtol=1e-4, atol=1e-5)
    for name in ("gateau_num_far_segments", "gateau_error", "gateau_num_context_tokens"):
        assert out[name] == by_segments[name]
    for name in OF_SEGMENTS:
        expected = [x if is_one else None for x, is_one in zip(by_segments[name], choosing, strict=True)]
        close(out[name], expected, rtol=1e-4, atol=1e-5)

    runtime, calibration = scorer.start(), scorer.start().calibration
    assert calibration.num_rows == 12 and scorer.describe()["calibration"] == calibration.to_json()
    for row, found in zip(ROWS[:-1], out["gateau_segment_heads"], strict=False):
        sample = runtime.lay_out(row)
        names, attention = head_attention(runtime.pair, sample, runtime.cut, runtime.limits)
        columns = [names.index(head) for head in calibration.heads]
        seen = calibration.calibrated(attention[:, columns], sample_distances(sample, runtime.cut))
        np.testing.assert_allclose(found, seen, rtol=1e-4, atol=1e-4)
    assert out["gateau_segment_heads"][-1] is None and out["gateau_error"][-1] == by_segments["gateau_error"][-1]
    ranked = rank(out, cas="heads")
    assert ranked["gateau_rank"].count(None) == 1


def test_rows_that_choose_are_the_same_in_any_order_and_have_far_segments(tmp_path):
    found = []
    for i, rows in enumerate((ROWS, ROWS[::-1])):
        scorer = GateauScorer(**PAIR, **HOW, store=tmp_path / f"{i}.sqlite")
        ds, runtime = Dataset.from_list(rows), scorer.start()
        places = calibration_places(survey_rows(ds, scorer), runtime)
        samples = [runtime.lay_out(rows[place]) for place in places]
        assert all(len(x.context) - runtime.pair.num_near(x) >= 128 for x in samples)
        found.append({x.key for x in samples})
        assert len(found[-1]) == len(places) == 12
        found.append(calibrate_heads(ds, scorer).to_json())
    assert found[0] == found[2] and found[1] == found[3]


def test_a_later_run_and_other_processes_take_the_heads_that_are_there(store, monkeypatch):
    ds = Dataset.from_list(ROWS)
    first = GateauScorer(**PAIR, **HOW, store=store)
    found = calibrate_heads(ds, first)
    monkeypatch.setattr(heads, "_chosen", lambda *args: pytest.fail("heads are chosen anew"))
    other = GateauScorer(**PAIR, cam="heads", cam_rows=5, store=store)
    assert calibrate_heads(ds, other) == found and other.describe()["config_key"] == first.describe()["config_key"]
    apart = ds.map(other, batched=True, batch_size=5, num_proc=2)
    together = measure_together(ds, GateauScorer(**PAIR, **HOW, store=store))
    for name in COLUMNS:
        if COLUMNS[name] in (
            "list",
            "list32",
            "float64",
        ):  # of the row that is there twice each process has its own numbers
            close(apart[name], together[name], rtol=1e-4, atol=1e-5)
        else:
            assert apart[name] == together[name], name


def test_nothing_is_measured_before_heads_are_chosen(store):
    scorer = GateauScorer(**PAIR, **HOW, store=store)
    assert scorer.count(Dataset.from_list(ROWS))["kept"] == 0
    with pytest.raises(ValueError, match=r"has none: call calibrate_heads\(ds, scorer\)"):
        scorer(ROWS[0])
    calibrate_heads(Dataset.from_list(ROWS), GateauScorer(**PAIR, **HOW, store=store))
    assert scorer(ROWS[0])["gateau_segment_heads"]  # another scorer's heads are found
    with pytest.raises(ValueError, match="keeps in the store what it chooses by, and it is off"):
        GateauScorer(**PAIR, **HOW, store=False)(ROWS[0])
    with pytest.raises(ValueError, match="the scorer has cam='segments'"):
        calibrate_heads(Dataset.from_list(ROWS), GateauScorer(**PAIR, store=store))


def test_heads_that_agree_too_little_leave_segments_to_be_measured(by_segments, store, monkeypatch, caplog):
    monkeypatch.setattr(heads, "LEAST_AGREEMENT", 1.1)
    ds, scorer = Dataset.from_list(ROWS), GateauScorer(**PAIR, **HOW, store=store)
    out = measure_together(ds, scorer)
    assert "so segments are measured: the chosen heads find" in caplog.text
    assert out["gateau_key"] == by_segments["gateau_key"] and out["gateau_segment_heads"] == [None] * len(ROWS)
    for name in OF_SEGMENTS:
        close(out[name], by_segments[name], rtol=1e-4, atol=1e-5)
    assert GateauScorer(**PAIR, **HOW, store=store)(ROWS[0])["gateau_segment_ppl"]  # known, and not tried again


def test_a_row_that_cannot_be_seen_is_left_out(store, monkeypatch, caplog):
    real, calls = passes.head_attention, []

    def fails_once(*args):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("made to fail")
        return real(*args)

    monkeypatch.setattr(passes, "head_attention", fails_once)
    assert calibrate_heads(Dataset.from_list(ROWS), GateauScorer(**PAIR, **HOW, store=store)).num_rows == 11
    assert "left out of the calibration: RuntimeError: made to fail" in caplog.text


SCRIPT = """
import json, sys
from datasets import Dataset, disable_progress_bars
disable_progress_bars()
from hf_gateau import GateauScorer, measure_together
from hf_gateau.measuring import heads
heads.LEAST_AGREEMENT, heads.LEAST_ROWS = 0.0, 0
rows, settings, cache = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
scorer = GateauScorer(**settings)
out = measure_together(Dataset.from_list(rows), scorer)
print(json.dumps({"calibration": scorer.describe()["calibration"], "columns": out.to_dict()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["s.sqlite", "folder/"])
def test_killed_while_heads_are_chosen_and_gone_on_with_by_two_processes(place, tmp_path):
    """Nothing that was measured is lost, and heads and numbers are those of a run that was not stopped."""
    rows = [{"id": row["id"], "messages": row["messages"]} for row in ROWS]
    if place.endswith("/"):
        (tmp_path / place).mkdir()
    settings = {**PAIR, **HOW, "store": str(tmp_path / place)}
    command = [sys.executable, "-c", SCRIPT, json.dumps(rows), json.dumps(settings), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    store = open_store(tmp_path / place)
    with subprocess.Popen(command, env=environment, **options) as process:
        while num_attended(store) < 4:
            assert process.poll() is None, process.stderr.read()[-3000:]
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    kept = num_attended(store)
    assert 4 <= kept < 12 + 2, "it was killed too late to tell anything"
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
    alone = GateauScorer(**PAIR, **HOW, store=tmp_path / "other.sqlite")
    expected = measure_together(Dataset.from_list(rows), alone)
    calibration = alone.start().calibration
    again = HeadCalibration.from_json(found[0]["calibration"])
    assert again.heads == calibration.heads and again.bins == calibration.bins
    np.testing.assert_allclose(again.habits, calibration.habits, rtol=1e-4, atol=1e-5)
    for name in COLUMNS:
        if COLUMNS[name] in ("list", "list32", "float64"):
            close(found[0]["columns"][name], expected[name], rtol=1e-3, atol=1e-4)
    for known in open_store(tmp_path / place).configurations():
        assert known["num_rows"] <= known["num_measured"] <= known["num_rows"] + 1  # the names, by the second process


def num_attended(store) -> int:
    """What is kept of rows whose heads were all looked at."""
    return sum(x["num_rows"] for x in store.configurations() if x["description"].get("column") == "head_attention")


def test_the_command_leaves_the_heads_on_record(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = [f"--{name}={value}" for name, value in (PAIR | HOW).items()]
    command = ["score", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "out.parquet"), *settings]
    assert main([*command, "--store", str(tmp_path / "s.sqlite")]) in (None, 0)
    told = capsys.readouterr().out
    assert (
        "23 of 24 rows measured" in told
        and f"Next: hf-gateau rank {tmp_path}/out.parquet -o RANKED --cas heads," in told
    )
    out = load_rows(str(tmp_path / "out.parquet"))
    calibration = HeadCalibration.from_json(read_sidecar(str(tmp_path / "out.parquet"))["measuring"]["calibration"])
    assert calibration.heads and sum(x is not None for x in out["gateau_segment_heads"]) == 23


# Passes


CALIBRATION = HeadCalibration(((0, 1), (1, 2)), (6, 8, 10), ((0.1, 0.2, 0.3), (-0.1, 0.0, 0.4)))


def test_neighbours_change_nothing(tiny_model):
    """Rows of several lengths, some on one context, some in pieces, and one without any context."""
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=60, device="cpu"))
    first = make_sample(150, 9, 7)
    samples = [
        first,
        make_sample(20, 5, 3, seed=1),
        make_sample(150, 4, 12, seed=2, of=first),
        make_sample(70, 1, 1, seed=3),
    ]
    samples += [make_sample(145, 9, 6, seed=4), make_sample(0, 9, 6, seed=5)]

    def measured(some, limits):
        return measure_samples(pair, some, Cut(16), limits, heads=CALIBRATION)

    alone = [measured([sample], Limits(1))[0] for sample in samples]
    for limits in (Limits(400), Limits(10_000), Limits(400, 50)):
        for found, expected in zip(measured(samples, limits), alone, strict=True):
            assert found.segment_ppl is found.segment_attention is found.token_nll_far is None
            close(vars(found).values(), vars(expected).values(), rtol=1e-4, atol=2e-5)
    assert [len(found.segment_heads) for found in alone] == [10, 2, 10, 5, 10, 0]
    assert alone[0].without_tokens() == replace(
        Measurement(*(getattr(alone[0], f"ppl_{x}") for x in ("short", "long", "no_context"))),
        segment_heads=alone[0].segment_heads,
        num_far_segments=alone[0].num_far_segments,
    )


@pytest.mark.parametrize("place", ["s.sqlite", "folder/"])
def test_both_stores_keep_what_heads_see(place, tmp_path):
    if place.endswith("/"):
        (tmp_path / place).mkdir()
    found = Measurement(1.5, 2.5, 3.5, segment_heads=[0.1, -2.0, 1e-9], num_far_segments=2, token_nll_long=[0.5])
    store = open_store(tmp_path / place)
    store.put("key", "a", found)
    store.put_values("key", {"text": "of what is no row's", "list": [0.5]})
    again = open_store(tmp_path / place)
    assert again.get("key", ["a"]) == {"a": found}
    assert again.get_values("key", ["text", "list"]) == {"text": "of what is no row's", "list": [0.5]}


def test_a_selector_that_would_rank_by_segments_is_refused(store):
    with pytest.raises(ValueError, match="cam='heads' measures no segments, and cas='far_tokens' needs"):
        GateauSelector(top_k=3, **PAIR, **HOW, store=store)
    kept = GateauSelector(top_k=3, cas="heads", **PAIR, **HOW, store=store).select(Dataset.from_list(ROWS))
    assert len(kept) == 3
