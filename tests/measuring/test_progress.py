"""What is said while rows are measured and after: operations against torch's own count, time left by work, quiet logs."""

import multiprocessing
import os
import pickle
import re
import threading
from collections import Counter
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from hf_gateau import GateauScorer, measure_together
from hf_gateau.measuring.config import MeasureConfig
from hf_gateau.measuring.costs import RowShape
from hf_gateau.measuring.passes import measure_samples
from hf_gateau.measuring.progress import Meter, Reading, Summary, View
from hf_gateau.measuring.runtime import Runtime
from hf_gateau.models.config import ModelPairConfig
from tests.measured import make_sample
from tests.measuring.counted import uncounted


ERRORS = Counter({"messages is null": 2})


@pytest.fixture(autouse=True)
def with_bars():
    """Whatever a command that ran in this process before has switched off."""
    datasets.enable_progress_bars()


def make_runtime(model, **sibling) -> Runtime:
    pair = ModelPairConfig(long_model=model, device="cpu", **sibling)
    return Runtime(pair, MeasureConfig(segment_length=16, batch_tokens=400, store=False))


@pytest.mark.parametrize("sibling", [{"short_window": 60}, {"short_rope_scale": 8.0}])
def test_operations_of_rows_on_one_context_against_torch(sibling, tiny_model):
    """The context goes through the models once, and so it is counted; without sharing, the same rows count twice as much."""
    runtime = make_runtime(tiny_model, **sibling)
    first = make_sample(150, 9, 7)
    samples = [first, *(make_sample(150, 4 + i, 12, seed=i, of=first) for i in range(4))]
    runtime.meter = meter = Meter(runtime)
    with FlopCounterMode(display=False, custom_mapping=uncounted()) as counter:
        found = measure_samples(runtime.pair, samples, runtime.cut, runtime.limits)
    meter.count(samples, found, 2.0)
    assert meter.flops == meter.tried == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert sum(meter.costs(RowShape.of(sample)) for sample in samples) > 1.5 * meter.flops
    assert (meter.rows, meter.tokens) == (5, sum(sample.response_end for sample in samples))
    assert meter.read() == Reading(5, meter.tokens, meter.flops, 2.0, 2.0 * meter.rate)


def test_operations_of_many_rows_from_a_part_of_them(tiny_model):
    costs = Meter(make_runtime(tiny_model, short_window=60)).costs
    lengths = np.sort(np.random.default_rng(0).integers(50, 800, 5_000)).tolist()
    rows = [RowShape(3, n, 5, 7) for n in lengths]
    assert costs.total(rows) == pytest.approx(sum(map(costs, rows)), rel=0.002)
    assert costs.total(rows[:3]) == pytest.approx(sum(map(costs, rows[:3]))) and costs.total([]) == 0


def test_time_left_is_by_work_and_not_by_rows(capsys):
    """By hand: a tenth of the operations took 60 s, so 540 s are left, though half of the rows are done."""
    meter = SimpleNamespace(tokens=600, flops=1e9, tried=1e9, seconds=60.0, rate=1e9)
    view = View(meter, np.array([600, 5_400]), 1e10, "Measuring", " (and 3 in the store)")
    view.advance(600)
    assert view.text() == "1/2 rows (and 3 in the store), 10 tokens/s, 2% of matmul speed, 0:09:00 left"
    view.bar.close()


def bars(rows, tiny_model, tmp_path, capsys) -> list[str]:
    settings = {"long_model": tiny_model, "short_window": 200, "segment_length": 64, "max_length": 300}
    scorer = GateauScorer(**settings, device="cpu", store=tmp_path / "s.sqlite")
    measure_together(Dataset.from_list(rows), scorer)
    return re.findall(r"Measuring:[^\r\n]*", capsys.readouterr().err)


def test_bar_over_tokens_does_not_flood_a_file(rows, tiny_model, tmp_path, capsys):
    shown = bars(rows, tiny_model, tmp_path, capsys)
    assert len(shown) == 2 and "0.00/3.60k tokens" in shown[0]
    assert "100%" in shown[1] and "3.60k/3.60k tokens" in shown[1] and "12/12 rows, " in shown[1]
    assert re.search(r"[\d,]+ tokens/s, \d+% of matmul speed, 0:00:00 left", shown[1])


def test_bar_follows_the_switch_of_datasets(rows, tiny_model, tmp_path, capsys):
    datasets.disable_progress_bars()
    try:
        assert bars(rows[:2], tiny_model, tmp_path, capsys) == []
    finally:
        datasets.enable_progress_bars()


def test_summary_of_several_processes():
    """By hand: side by side for 10 s, of which the second worked 4; 5e10 of the 14e10 operations that they could have done."""
    reading = Reading.sum([Reading(3, 600, 4e10, 10.0, 10e10), Reading(1, 200, 1e10, 4.0, 4e10)])
    assert reading == Reading(4, 800, 5e10, 10.0, 14e10)
    summary = Summary.of(9, ERRORS, reading, {"the store": 2}, seconds=75.0)
    assert summary.known == {"the store": 2, "another row": 1} and summary.tokens_per_second == 80
    assert summary.lines() == [
        "7 of 9 rows measured in 0:01:15 (4 now, 2 from the store, 1 from another row; 800 tokens, 80 tokens/s, "
        "36% of matmul speed)",
        "  2 not measured: messages is null",
    ]
    assert Summary.of(9, ERRORS).lines()[0] == "7 of 9 rows measured in 0:00:00"
    summary = Summary.of(9, ERRORS, Reading(0, 0, 0.0, 0.0, 0.0), {"the store": 6, "other processes": 0})
    assert summary.lines()[0] == "7 of 9 rows taken from the store and another row, none measured"


def test_a_process_is_not_forked_while_another_thread_holds_the_lock_of_bars():
    """As tqdm's own thread does, which looks at all bars from time to time."""
    lock = tqdm.get_lock()
    pickle.dumps(GateauScorer(long_model="any", store=False))  # as `datasets` does before it forks
    held, forked = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            forked.wait(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = multiprocessing.get_context("fork").Process(target=draw_a_bar)
    child.start()
    forked.set()
    thread.join()
    child.join(20)
    hangs = child.exitcode is None
    child.kill()
    assert not hangs and child.exitcode == 0


def draw_a_bar():
    with tqdm(total=1, file=open(os.devnull, "w")) as bar:
        bar.update()
