"""`hf-gateau plan`: counts against the scorer's columns, sampling, fits of planted coefficients, prices, refusals."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_gateau import GateauScorer, measure_together, screen
from hf_gateau.cli import main
from hf_gateau.measuring.config import MeasureConfig
from hf_gateau.measuring.costs import PARTS, LayerShape, ModelShape, RowShape, Way, flops, pass_tokens, row_work
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.device import MATRIX_SIZE
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.planning.pilot import MemoryModel, Pilot, PilotRow, TimeModel, Timing, nonnegative_least_squares
from hf_gateau.planning.plan import Job, largest_fitting, make_plan, num_characters, spread
from hf_gateau.planning.plan_text import duration, plan_text
from hf_gateau.rows.samples import truncate_context
from hf_gateau.store.sqlite import MeasureError, MeasurementStore
from tests.measured import make_sample


pytestmark = pytest.mark.quick


SHAPE = ModelShape(100_000, 20_000, ((LayerShape(64, 4, None), 2),), sdpa=True, weights_per_chunk=1 << 21)
WAY = Way(Cut(128), 1024, 256, True)
ROWS = [RowShape(10, 300 * i, 20, 30) for i in range(1, 8)]


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    monkeypatch.setitem(MATRIX_SIZE, "cpu", 256)


@pytest.fixture()
def settings(tiny_model, tmp_path):
    return {"long_model": tiny_model, "short_window": 200, "device": "cpu", "segment_length": 64} | {
        "store": str(tmp_path / "store.sqlite")
    }


def plan_of(rows, settings, **options):
    kinds = [{k: v for k, v in settings.items() if k in vars(kind())} for kind in (ModelPairConfig, MeasureConfig)]
    ds = Dataset.from_list(rows, on_mixed_types="use_json")
    return make_plan(ds, ModelPairConfig(**kinds[0]), MeasureConfig(**kinds[1]), **options)


def test_counts_are_those_of_the_scorers_columns(rows, settings):
    plan = plan_of(rows, settings, pilot_seconds=0.2)
    columns = GateauScorer(**{**settings, "store": "off"})({"messages": [row["messages"] for row in rows]})
    tokens, counts = plan["tokens"], plan["rows"]
    assert counts["exact"] and counts["to_measure"] == counts["total"] == 12 and counts["in_store"] == 0
    assert tokens["context"] == sum(columns["gateau_num_context_tokens"])
    assert tokens["response"] == sum(columns["gateau_num_response_tokens"])
    assert plan["segments"] == sum(map(len, columns["gateau_segment_ppl"]))
    assert plan["store"] == settings["store"]  # and the pilot kept nothing there
    assert [known["num_rows"] for known in MeasurementStore(settings["store"]).configurations()] == []


def test_rows_that_the_template_cannot_write_are_counted_beforehand(rows, settings):
    call = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    asked = rows[0]["messages"][0]
    called = {"id": "a", "messages": [asked, {"role": "assistant", "content": "", "tool_calls": call}], "tools": None}
    named = {"id": "b", "messages": rows[1]["messages"], "tools": "hammer"}
    sound = [{"id": row["id"], "messages": row["messages"], "tools": None} for row in rows[2:5]]
    found = plan_of([*sound, called, named], settings, pilot_seconds=0.2)["rows"]["not_measurable"]
    unwritten = "the chat template does not write what turn 1 (assistant with tool_calls without text) says"
    assert found == {
        unwritten: 1,
        "tools is no list of functions' descriptions; rename the column if it is something else": 1,
    }


def test_heads_are_foreseen_before_they_are_chosen(rows, settings):
    """Half of the rows choose them: their segments are measured, and their long pass runs twice."""
    by_segments = plan_of(rows, settings, pilot_seconds=0.2)
    plan = plan_of(rows, settings | {"cam": "heads", "cam_rows": 6}, pilot_seconds=0.2)
    assert plan["flops"]["segments"] == pytest.approx(by_segments["flops"]["segments"] / 2)
    assert 1.2 < plan["flops"]["long"] / by_segments["flops"]["long"] < 1.7
    assert plan["flops"]["short"] == by_segments["flops"]["short"] and plan["segments"] == 0
    none = plan_of(rows, settings | {"cam": "heads", "cam_rows": 1}, pilot_seconds=0.2)["flops"]
    assert none["segments"] == pytest.approx(by_segments["flops"]["segments"] / 12)
    assert [known["num_rows"] for known in MeasurementStore(settings["store"]).configurations()] == []
    assert plan_text(plan)


def test_segments_of_some_rows_alone_are_foreseen(rows, settings):
    """Half of twelve rows and a sample of one; then nothing but these rows' segments is left, then nothing."""
    by_segments = plan_of(rows, settings, pilot_seconds=0.2)
    assert "screening" not in by_segments and by_segments["rows"]["begun"] == 0
    some = settings | {"segments_for": 0.5}
    plan = plan_of(rows, some, pilot_seconds=0.2, alpha=0.9)
    found = plan["screening"]
    assert (found["num_high"], found["num_sampled"], found["num_left"]) == (6, 1, 7)
    assert found["safe_fraction"] == pytest.approx(0.5 - 0.1 / 0.9)
    assert plan["flops"]["segments"] == pytest.approx(by_segments["flops"]["segments"] * 7 / 12)
    assert plan["flops"]["long"] == by_segments["flops"]["long"]
    assert plan["segments"] == round(by_segments["segments"] * 7 / 12)
    saved = found["seconds_of_all"] - plan["seconds"]["total"]
    assert saved == pytest.approx(plan["seconds"]["segments"] * 5 / 7) and 0 < found["saves"] < 1
    text = plan_text(plan)
    assert "segments of 7 of them alone (--segments_for 0.5): of 6 rows of highest HMP, and of 1 others" in text
    assert "with alpha 0.9 the best 38.9% of all rows may be selected" in text and "segments_for saves" in text

    ds, scorer = Dataset.from_list(rows), GateauScorer(**some)
    screening = screen(ds, scorer, mode="mean")
    plan = plan_of(rows, some, pilot_seconds=0.2)
    assert plan["rows"]["begun"] == 12 and plan["flops"]["long"] == plan["flops"]["short"] == 0
    assert plan["flops"]["segments"] == pytest.approx(by_segments["flops"]["segments"] * 7 / 12)
    assert "12 of them lack nothing but segments" in plan_text(plan)
    measure_together(ds, scorer)
    assert (screening.num_high, screening.num_sampled) == (6, 1)
    plan = plan_of(rows, some)
    assert plan["screening"]["num_left"] == 0 and "Nothing is left to measure" in plan_text(plan)
    plan = plan_of(rows, settings, pilot_seconds=0.2)  # without it, the other rows' segments
    assert plan["rows"]["to_measure"] == plan["rows"]["begun"] == 5 and plan["flops"]["long"] == 0


def test_rows_in_the_store_and_repeated_rows_are_left_out(rows, settings):
    GateauScorer(**settings)({"messages": [row["messages"] for row in rows[:5]]})
    plan = plan_of(rows + rows[8:10], settings, pilot_seconds=0.2)
    counts = plan["rows"]
    assert (counts["total"], counts["in_store"], counts["repeated"], counts["to_measure"]) == (14, 5, 2, 7)
    GateauScorer(**settings)({"messages": [row["messages"] for row in rows]})
    plan = plan_of(rows, settings)
    assert plan["rows"]["to_measure"] == 0 and "seconds" not in plan
    assert "Nothing is left to measure" in plan_text(plan)


def test_rows_that_cannot_be_measured_are_counted_with_their_reasons(rows, settings):
    broken = [{"id": "a", "messages": None}, {"id": "b", "messages": None}]
    plan = plan_of(
        [{"id": row["id"], "messages": row["messages"]} for row in rows[:4]] + broken, settings, pilot_seconds=0.2
    )
    (reason,) = plan["rows"]["not_measurable"]
    assert "messages is null" in reason and plan["rows"]["not_measurable"][reason] == 2
    assert f"2 cannot be measured: {reason}" in plan_text(plan)
    with pytest.raises(ValueError, match=r"None of the 2 rows can be measured: context is null.*\(2 rows\)"):
        plan_of([{"context": None, "instruction": None, "response": None, **row} for row in broken], settings)


def test_a_sample_stands_for_all_rows(rows, settings):
    exact = plan_of(rows, settings, pilot_seconds=0.2)
    plan = plan_of(rows, settings, pilot_seconds=0.2, sample_rows=6)
    assert not plan["rows"]["exact"] and plan["rows"]["laid_out"] == 6 and plan["rows"]["to_measure"] == 12
    assert plan["tokens"]["length"] == pytest.approx(exact["tokens"]["length"], rel=0.05)
    assert plan["flops"]["total"] == pytest.approx(exact["flops"]["total"], rel=0.05)
    assert "estimated from 6, evenly over their lengths" in plan_text(plan)


def test_spread_is_deterministic_and_complete():
    lengths = np.random.default_rng(0).lognormal(8, 1, 1000).astype(int).tolist()
    chosen = spread(lengths, 50)
    assert chosen == spread(lengths, 50) and len(chosen) == 50 and sum(chosen.values()) == 1000
    assert chosen[int(np.argmax(lengths))] == 1 and list(chosen) == sorted(chosen)
    assert sum(lengths[i] * weight for i, weight in chosen.items()) == pytest.approx(sum(lengths), rel=0.03)
    assert spread([3, 1, 2], 3) == {0: 1, 1: 1, 2: 1} and sum(spread([3, 1, 2], 1).values()) == 1
    assert sum(spread([5] * 10, 2).values()) == 10


def test_num_characters():
    assert num_characters({"a": "xyz", "messages": [{"content": "ab", "n": 5}, None]}) == 5


# Fits


def test_nonnegative_least_squares():
    """Against scipy's, also where the free solution has negative coefficients."""
    from scipy.optimize import nnls

    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = rng.random((12, 4)), rng.normal(size=12)
        assert nonnegative_least_squares(a, b) == pytest.approx(nnls(a, b)[0], abs=1e-9)
    assert nonnegative_least_squares(np.zeros((3, 2)), np.ones(3)).tolist() == [0, 0]


def observations(per_unit, rows):
    found = [(part, work) for row in rows for part, work in row_work(SHAPE, SHAPE, row, WAY).items()]
    return [part for part, _ in found], [work for _, work in found], [float(work @ per_unit) for _, work in found]


def test_time_model_recovers_what_was_planted():
    per_unit = np.array([1e-3, 2e-11, 5e-11, 2e-10, 1e-11])
    model = TimeModel(*observations(per_unit, ROWS))
    assert model.per_unit == pytest.approx(per_unit, rel=1e-3)
    assert model.factors == pytest.approx(dict.fromkeys(PARTS, 1.0))
    long_row = row_work(SHAPE, SHAPE, RowShape(10, 60_000, 20, 30), WAY)
    for part, work in long_row.items():
        assert model(part, work) == pytest.approx(float(work @ per_unit), rel=1e-3)


def test_time_model_under_noise_extrapolates():
    per_unit = np.array([1e-3, 2e-11, 5e-11, 2e-10, 1e-11])
    parts, work, seconds = observations(per_unit, ROWS[:5])
    noisy = np.array(seconds) * np.random.default_rng(0).normal(1, 0.03, len(seconds))
    model, (_, other, expected) = TimeModel(parts, work, noisy), observations(per_unit, ROWS)
    predicted = sum(model(part, x) for part, x in zip(observations(per_unit, ROWS)[0], other, strict=True))
    assert predicted == pytest.approx(sum(expected), rel=0.05)


def test_a_part_of_its_own_speed_gets_a_factor():
    parts, work, seconds = observations(np.array([0, 1e-11, 1e-11, 1e-11, 1e-11]), ROWS)
    seconds = [2 * x if part == "segments" else x for part, x in zip(parts, seconds, strict=True)]
    model = TimeModel(parts, work, seconds)
    for part in PARTS:
        chosen = [i for i, name in enumerate(parts) if name == part]
        assert sum(model(part, work[i]) for i in chosen) == pytest.approx(sum(seconds[i] for i in chosen))


def test_memory_model_takes_the_part_that_takes_most():
    model = MemoryModel(["long", "long", "segments"], [100, 200, 50], [1100, 2100, 4000])
    assert model({"long": 1000, "segments": 50}) == pytest.approx(10_100)
    assert model({"long": 10, "segments": 50}) == pytest.approx(4000)
    assert MemoryModel(["long"], [100], [1000])({"long": 200}) == pytest.approx(2000)


def test_largest_fitting():
    job = Job(tuple((row, 1) for row in ROWS), SHAPE, SHAPE, WAY)
    memory = MemoryModel(["long", "long"], [100, 200], [1000, 2000])
    assert largest_fitting(job, memory, 12_345) == 1234
    assert largest_fitting(job, memory, 500) is None
    assert job.cut(1234).peak(memory) <= 12_345 < job.peak(memory)


# The pilot


def test_a_pilot_without_time_measures_one_row(rows, settings):
    plan = plan_of(rows, settings, pilot_seconds=1e-6)
    assert len(plan["pilot"]["tokens"]) == 1 and plan["pilot"]["rounds"] == 1


class Clock:
    """Time that passes as operations are done, a billion a second; the model of the pilot is never asked."""

    def __init__(self, monkeypatch, slower: float = 1.0):
        self.now, self.slower, self.tokens = 0.0, slower, []
        for name in ("monotonic", "perf_counter", "process_time"):
            monkeypatch.setattr(f"hf_gateau.planning.pilot.time.{name}", lambda: self.now)
        monkeypatch.setattr("hf_gateau.measuring.passes.measure_sample", self.measure)
        monkeypatch.setattr("hf_gateau.measuring.segments.segment_nlls", lambda *_: None)

    def measure(self, pair, sample, cut, limits, watch, heads):
        row = row_of(sample)
        self.tokens.append(sample.response_end)
        for part, work in row.work.items():
            with watch(part):
                self.now += self.slower ** (sample.response_end > 600) * flops(work) / 1e9


def row_of(sample) -> PilotRow:
    shape = RowShape.of(sample)
    return PilotRow(sample, row_work(SHAPE, SHAPE, shape, WAY), pass_tokens(shape, WAY))


def seconds_of(sample) -> float:
    return row_of(sample).flops / 1e9


def pilot_of(samples, budget, clock) -> Pilot:
    pair = SimpleNamespace(device=torch.device("cpu"), long=None)
    runtime = SimpleNamespace(pair=pair, cut=WAY.cut, limits=Limits(1024), heads=None)
    return Pilot(runtime, samples, row_of, budget, lambda row: None)


@pytest.mark.parametrize("slower", [1.0, 1.2, 3.0])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_of_a_row_that_takes_too_long_a_piece_is_measured(slower, share, monkeypatch):
    """Long rows may be slower than short ones let expect; parts that would begin too late are left out."""
    [long] = samples = [make_sample(20_000, 30, 40)]
    clock, budget = Clock(monkeypatch, slower), share * seconds_of(long)
    pilot = pilot_of(samples, budget, clock)
    smallest = seconds_of(truncate_context(long, 512))
    assert clock.tokens[0] == 512 and max(clock.tokens) >= 2_000
    assert max(clock.tokens) < long.response_end
    assert clock.now <= (1.25 * budget + smallest if slower < 2 else 2 * budget)
    work, predicted = row_of(long).work, 0.0
    predicted = sum(pilot.time["wall"](part, x) for part, x in work.items())
    assert predicted == pytest.approx(slower * seconds_of(long), rel=0.3 if slower < 2 else 0.7)


def test_whole_rows_are_measured_where_there_is_time(monkeypatch):
    samples = [make_sample(n, 30, 40, seed=n) for n in (300, 2_000, 3_000, 5_000, 20_000)]
    clock = Clock(monkeypatch)
    pilot = pilot_of(samples, 10 * sum(map(seconds_of, samples)), clock)
    assert {x.response_end for x in samples} <= {row.sample.response_end for row in pilot.rows} and pilot.rounds == 3


def test_a_first_row_that_fails_leaves_the_others(monkeypatch):
    clock, samples = Clock(monkeypatch), [make_sample(n, 30, 40, seed=n) for n in (300, 400, 450, 460, 470)]
    real = clock.measure

    def fails(pair, sample, *rest):
        if sample.response_end == samples[0].response_end:
            raise MeasureError("made to fail")
        return real(pair, sample, *rest)

    monkeypatch.setattr("hf_gateau.measuring.passes.measure_sample", fails)
    pilot = pilot_of(samples, 1e9, clock)
    assert pilot.failures and samples[-1] in [row.sample for row in pilot.rows]


def test_a_row_that_is_expected_not_to_fit_is_not_tried():
    pilot = object.__new__(Pilot)
    rows = [PilotRow(None, row_work(SHAPE, SHAPE, row, WAY), pass_tokens(row, WAY)) for row in ROWS]
    pilot.rows, pilot.failures, pilot.loaded, pilot.capacity = rows[:2], [], 0, 10_000_000
    pilot.timings = [[[Timing("long", (1.0, 1.0), 1000 * row.tokens["long"])]] for row in rows[:2]]
    assert pilot._affordable(rows, deadline=float("inf")) is rows[6]
    pilot.capacity = 1000 * rows[3].tokens["long"] / 0.9 + 1
    assert pilot._affordable(rows, deadline=float("inf")) is rows[3]


# The command


def arguments(settings) -> list[str]:
    return [x for name, value in settings.items() for x in (f"--{name}", str(value))]


def test_json_and_price(rows, settings, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--price_per_hour", "3", "--num_devices", "4", "--pilot_seconds", "1", "--json", "true"]
    assert main(["plan", str(data), *arguments(settings), *more]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert set(plan) == {
        *("rows", "tokens", "segments", "store", "pilot", "batches", "flops", "seconds", "cpu_seconds"),
        *("rates", "memory", "cost", "cheaper", "training", "short_window", "short_window_chosen"),
    }
    assert set(plan["seconds"]) == {"loading", "laying_out", *PARTS, "total"} == set(plan["cpu_seconds"])
    assert plan["seconds"]["total"] == pytest.approx(sum(plan["seconds"].values()) / 2)
    cost = plan["cost"]
    assert cost["device_hours"] == pytest.approx(4 * plan["seconds"]["total"] / 3600)
    assert cost["total"] == pytest.approx(3 * cost["device_hours"])
    assert plan["memory"]["fits"] and plan["memory"]["longest_fitting"] == plan["tokens"]["longest"]
    batches = plan["batches"]
    assert batches["batch_tokens"] == 1024 and set(batches["seconds"]) <= {"512", "1024", "2048", "4096"}
    text = plan_text(plan | {"batches": {"batch_tokens": 1024, "seconds": {"512": 3.0, "1024": 2.0, "2048": 1.0}}})
    assert "512 tokens 1.50, 1,024 tokens 1.00, 2,048 tokens 0.50; --batch_tokens 2048 saves 50% of it" in text
    text = plan_text(plan)
    assert "12 rows, all laid out as tokens" in text and "at 3 an hour each" in text and "total" in text
    assert "segments alone" in text and "NOT FIT" not in text
    text = plan_text(plan | {"memory": plan["memory"] | {"fits": False, "longest_fitting": 700}})
    assert "THE LONGEST ROWS WILL NOT FIT: --max_length 700 would" in text
    text = plan_text(plan | {"memory": plan["memory"] | {"fits": False, "longest_fitting": None}})
    assert "NO ROW WILL FIT" in text


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("sample_rows", "0", "--sample_rows is a whole number, got 0; give 1 or more"),
        ("num_devices", "0", "--num_devices is a whole number, got 0; give 1 or more"),
        ("pilot_seconds", "0", "--pilot_seconds is a time, got 0.0; give a number above 0"),
        ("price_per_hour", "-1", "--price_per_hour is a price, got -1.0; give 0 or more"),
    ],
)
def test_refusals(option, value, message, capsys):
    assert main(["plan", "nowhere.jsonl", f"--{option}={value}"]) == 2
    assert message in capsys.readouterr().err


def test_advice_names_what_saves(rows, settings, tiny_model):
    plan = plan_of(rows, {**settings, "short_window": None, "short_model": tiny_model}, pilot_seconds=2)
    changes = [way["change"] for way in plan["cheaper"]]
    assert any(change.startswith("short_window=") for change in changes) and all(
        0 < way["saves"] < 1 for way in plan["cheaper"]
    )


def test_duration():
    assert duration(3.21) == "3.2 s" and duration(75) == "0:01:15" and duration(90_061) == "25:01:01"


def test_questions_on_one_document_cost_less(rows, settings):
    """Four questions on each of two contexts, some rows apart, against as many rows by themselves."""
    shared = []
    for i in range(8):
        document = rows[i % 2]["messages"][0]["content"].rpartition("\n\n")[0]
        question = rows[i]["messages"][0]["content"].rpartition("\n\n")[2]
        turns = [{"role": "user", "content": f"{document}\n\n{question} {i}"}, rows[i]["messages"][1]]
        shared.append({"messages": turns})
    alone, together = (plan_of(part, settings, pilot_seconds=0.2) for part in (rows[:8], shared))
    assert together["rows"]["to_measure"] == alone["rows"]["to_measure"] == 8
    assert together["tokens"]["length"] == pytest.approx(alone["tokens"]["length"], rel=0.2)
    assert together["flops"]["long"] < 0.4 * alone["flops"]["long"]
    assert together["flops"]["segments"] < 0.8 * alone["flops"]["segments"]


def test_rows_that_training_would_drop_are_counted(rows, settings):
    """Of 975 tokens each; scoring cuts their contexts and keeps the answers, training cuts the answers off."""
    rows = [{"id": row["id"], "messages": row["messages"]} for row in rows[:4]]
    short = {"messages": [{"role": "user", "content": "the road\n\nwhat ?"}, rows[0]["messages"][1]], "id": "short"}
    broken = {"id": "broken", "messages": None}
    cut = {**settings, "max_length": 700}

    def lost(**options):
        plan = plan_of([*rows, short, broken], cut, pilot_seconds=0.1, **options)
        return plan["rows"]["not_trainable"], plan_text(plan)

    counts, text = lost()
    assert counts == {"its whole response lies beyond max_length": 4}
    assert (
        "4 can be measured, but not trained on with --train_max_length 700 --truncation_mode keep_start: its wh"
        in text
    )
    assert lost(sample_rows=3)[0]["its whole response lies beyond max_length"] == pytest.approx(4, abs=1)
    for options in ({"train_max_length": 1100}, {"truncation_mode": "keep_end"}):
        counts, text = lost(**options)
        assert counts == {} and "not trained on" not in text


def test_a_training_that_cannot_be_is_refused(rows, tmp_path, settings, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"messages": row["messages"]}) for row in rows[:3]))
    command = ["plan", str(path), "--long_model", settings["long_model"], "--short_window", "200", "--device", "cpu"]
    assert main([*command, "--train_max_length", "0"]) == 2
    assert "--train_max_length is a whole number, got 0" in capsys.readouterr().err
    command += ["--store", "off", "--pilot_seconds", "0.1", "--train_max_length", "500"]
    assert main(command) == 0
    assert "3 can be measured, but not trained on with --train_max_length 500" in capsys.readouterr().out
