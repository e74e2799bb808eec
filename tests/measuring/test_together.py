"""Several processes measure one dataset: as one would, each row once, and again after a kill."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from hf_gateau import GateauScorer, WindowScorer
from hf_gateau.files.reading import load_rows
from hf_gateau.measuring import together
from hf_gateau.measuring.together import balanced_shares, measure_together
from hf_gateau.quickstart import LONG_MODEL
from hf_gateau.quickstart.world import planted_rows
from hf_gateau.rows.batches import COLUMNS
from hf_gateau.store.folder import FolderStore, open_store
from hf_gateau.store.sqlite import MeasurementStore, StoreError
from tests.measured import assert_same


PAIR = {"long_model": LONG_MODEL, "short_window": 256, "segment_length": 64, "device": "cpu"}
NUM_ROWS, FEW = 40, 16
PACKAGE_FOLDER = Path(together.__file__).parents[2]


# Shares


def loads(num_tokens, shares):
    return [sum(num_tokens[i] for i in share) for share in shares]


def test_shares_are_within_grahams_bound_of_the_best_division():
    """The best of all divisions, by trying every one; the bound is that of R. L. Graham, 1969."""
    rng = np.random.default_rng(0)
    for num_shares, num_rows in ((2, 9), (3, 8), (4, 6)):
        for _ in range(20):
            num_tokens = [int(n) for n in rng.lognormal(9, 1.5, num_rows)]
            shares = balanced_shares(num_tokens, num_shares)
            assert sorted(sum(shares, [])) == list(range(num_rows))
            best = min(
                max(np.bincount(division, num_tokens, num_shares))
                for division in itertools.product(range(num_shares), repeat=num_rows)
            )
            assert max(loads(num_tokens, shares)) <= best * (4 / 3 - 1 / (3 * num_shares)) + 1e-6


def test_shares_of_many_rows_are_even_in_tokens():
    """10,000 rows of 8,000 to 64,000 tokens over 64 processes: within 0.2%; the longest first; always the same."""
    num_tokens = np.random.default_rng(1).integers(8_000, 64_000, 10_000).tolist()
    found = loads(num_tokens, shares := balanced_shares(num_tokens, 64))
    assert max(found) < 1.002 * sum(num_tokens) / 64 < 1.004 * min(found)
    assert all(num_tokens[a] >= num_tokens[b] for share in shares for a, b in itertools.pairwise(share))
    assert shares == balanced_shares(num_tokens, 64)


def test_shares_of_few_rows_and_of_none():
    assert balanced_shares([5, 7], 4) == [[1], [0], [], []]
    assert balanced_shares([], 2) == [[], []]


# Processes


def environment(**more) -> dict[str, str]:
    quiet = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **quiet, **{name: str(value) for name, value in more.items()}}


def score_command(folder: Path, store: str) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", str(free_port()), "-m", "hf_gateau.cli"]
    settings = [f"--{name}={value}" for name, value in PAIR.items()]
    return [
        *launcher,
        "score",
        str(folder / "rows.jsonl"),
        "-o",
        str(folder / "out.parquet"),
        *settings,
        "--store",
        store,
    ]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def workers_of(launcher: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]


def num_rows(store) -> int:
    return sum(configuration["num_rows"] for configuration in store.configurations())


@pytest.mark.slow
@pytest.mark.parametrize("place", ["s.sqlite", "folder/"])
def test_worker_killed_and_the_same_command_again(place, tmp_path):
    """Nothing is lost, and nothing measured twice; one process ends the launch at once, though the other is at work."""
    rows = planted_rows(NUM_ROWS, seed=7)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "folder").mkdir()
    store, command = open_store(tmp_path / place), score_command(tmp_path, str(tmp_path / place))
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        while num_rows(store) < 6:
            assert launcher.poll() is None, launcher.stderr.read()[-3000:]
            time.sleep(0.005)
        os.kill(workers_of(launcher)[1], signal.SIGKILL)
        killed = time.monotonic()
        launcher.communicate()
    assert launcher.returncode != 0 and time.monotonic() - killed < 60
    kept = num_rows(store)
    assert 6 <= kept < NUM_ROWS and not (tmp_path / "out.parquet").exists()
    done = subprocess.run([*command, "--windows", "40,80"], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(f"{NUM_ROWS} rows; long model") == done.stdout.count("rows measured in") == 1
    of_pair, of_windows = store.configurations()
    assert of_pair["num_rows"] == of_pair["num_measured"] == NUM_ROWS
    assert of_windows["num_rows"] == of_windows["num_measured"] == NUM_ROWS
    out = load_rows(str(tmp_path / "out.parquet"))
    alone = Dataset.from_list(rows).map(GateauScorer(**PAIR, store=False), batched=True)
    assert_same(out, alone)
    windows = WindowScorer(LONG_MODEL, windows=(40, 80), store=False)
    for row, kept in zip(rows, out["gateau_window_nll"], strict=True):
        assert kept == pytest.approx(windows(row)["gateau_window_nll"], abs=1e-4)
    assert out.select_columns(["id", "messages"]).to_dict() == alone.select_columns(["id", "messages"]).to_dict()


COMMAND = """
import json, os, sys, time
from pathlib import Path
from datasets import Dataset
from hf_gateau import GateauScorer, WindowScorer
from hf_gateau.measuring import passes
from hf_gateau.measuring.together import measure_together
folder, name, stops_at, settings = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
real, mine = passes.measure_samples, []
def counted(pair, samples, *rest):
    mine.append(len(samples))
    if len(mine) == stops_at:
        (folder / "stopped").touch()
        time.sleep(600)
    return real(pair, samples, *rest)
passes.measure_samples = counted
scorer = GateauScorer(**settings)
scorer.start().pair.load()
(folder / name).touch()
while not (folder / "go").exists():
    time.sleep(0.01)
out = measure_together(Dataset.from_json(str(folder / "rows.jsonl"), cache_dir=str(folder / f"cache-{name}")), scorer)
print(json.dumps({"mine": sum(mine), "out": out.to_list()}))
"""


def start_command(folder, name, settings, stops_at=-1) -> subprocess.Popen:
    command = [sys.executable, "-c", COMMAND, str(folder), name, str(stops_at), json.dumps(settings)]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PACKAGE_FOLDER
    )


def wait_until(path, process) -> None:
    while not path.exists():
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.01)


@pytest.fixture()
def command_folder(tmp_path):
    rows = planted_rows(FEW, seed=7)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "folder").mkdir()
    return tmp_path, rows


@pytest.mark.parametrize("place", ["s.sqlite", pytest.param("folder/", marks=pytest.mark.slow)])
def test_two_commands_at_once_share_the_rows(place, command_folder):
    """Neither knows of the other but by the store; both end with all rows, as one alone gets them."""
    folder, rows = command_folder
    settings = {**PAIR, "batch_tokens": 512, "store": f"{folder}/{place}"}
    one, two = (start_command(folder, name, settings) for name in ("one", "two"))
    for name, process in (("one", one), ("two", two)):
        wait_until(folder / name, process)
    (folder / "go").touch()
    told = [process.communicate() for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], told[0][1][-2000:] + told[1][1][-2000:]
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in told)
    assert FEW <= first["mine"] + second["mine"] < 1.2 * FEW and min(first["mine"], second["mine"]) > 0
    assert first["out"] == second["out"]
    assert_same(first["out"], Dataset.from_list(rows).map(GateauScorer(**PAIR, store=False), batched=True))
    assert any("Rows are shared with process " in errors for _, errors in told)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["s.sqlite", "folder/"])
def test_a_command_that_is_killed_leaves_its_rows_to_the_other(place, command_folder):
    folder, rows = command_folder
    settings = {**PAIR, "batch_tokens": 512, "store": f"{folder}/{place}"}
    (folder / "go").touch()
    with start_command(folder, "one", settings, stops_at=3) as one:
        wait_until(folder / "stopped", one)
        killer = threading.Timer(2.0, one.kill)  # while the other waits for its rows
        killer.start()
        out = measure_together(Dataset.from_list(rows), GateauScorer(**settings))
        killer.join()
    assert_same(out, Dataset.from_list(rows).map(GateauScorer(**PAIR, store=False), batched=True))
    (configuration,) = open_store(settings["store"]).configurations()
    assert configuration["num_rows"] == configuration["num_measured"] == FEW


MACHINE = """
import json, os, socket, sys
rank = int(os.environ["RANK"])
socket.gethostname = lambda: f"machine-{rank}"  # each process is a machine of its own
from datasets import Dataset
from hf_gateau import GateauSelector
from hf_gateau.measuring import together, passes
real, mine = passes.measure_samples, []
def counted(pair, samples, *rest):
    mine.extend(sample.response_end for sample in samples)
    fails = passes.MeasureError("made to fail")
    found = zip(samples, real(pair, samples, *rest))
    return [fails if sample.response_end == int(sys.argv[2]) else measured for sample, measured in found]
passes.measure_samples = counted
selector = GateauSelector(top_k=4, **json.loads(sys.argv[3]))
kept = selector.select(Dataset.from_json(sys.argv[1], cache_dir=f"{sys.argv[1]}-{rank}"))
print(json.dumps({"mine": mine, "kept": kept.to_dict()}))
"""


@pytest.mark.slow
def test_two_machines_select_the_same_rows_from_shares_of_equal_tokens(tmp_path):
    """Rows of many lengths, some twice, one malformed, one that fails to measure: through a folder, in two processes that
    have different host names and caches."""
    rows = [
        {"id": str(i), "messages": [{**m[0], "content": " ".join(m[0]["content"].split(" ")[-n:])}, m[1]]}
        for i, (n, m) in enumerate(zip(range(100, 900, 50), (r["messages"] for r in planted_rows(16, 5)), strict=True))
    ]
    rows += [{"id": "twice", "messages": rows[3]["messages"]}, {"id": "bad", "messages": None}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone = Dataset.from_list(rows).map(GateauScorer(**PAIR, store=False), batched=True)
    settings = json.dumps({**PAIR, "store": f"{tmp_path}/shared/"})
    addresses = {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    scorer = GateauScorer(**PAIR, store=False)
    fails = next(sample for sample, _ in scorer.survey(Dataset.from_list(rows[8:9]))).response_end
    command = [sys.executable, "-c", MACHINE, str(tmp_path / "rows.jsonl"), str(fails), settings]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    machines = [subprocess.Popen(command, env=environment(**addresses, RANK=rank), **options) for rank in (0, 1)]
    told = [machine.communicate() for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told[0][1][-2000:] + told[1][1][-2000:]
    one, two = (json.loads(out.splitlines()[-1]) for out, _ in told)
    assert one["kept"] == two["kept"]
    for i, name in enumerate(one["kept"]["id"]):
        place = [row["id"] for row in rows].index(name)
        assert_same([{x: one["kept"][x][i] for x in COLUMNS}], [alone[place]])
    assert len(one["mine"]) + len(two["mine"]) == 16 == len({*one["mine"], *two["mine"]})  # also the failed one: once
    assert one["mine"] == sorted(one["mine"], reverse=True)
    assert abs(sum(one["mine"]) - sum(two["mine"])) <= min(one["mine"] + two["mine"])
    assert num_rows(FolderStore(tmp_path / "shared")) == 15


TOGETHER = """
import json, sys
from datasets import Dataset
from hf_gateau import GateauScorer, measure_together
from hf_gateau.measuring import passes, runtime
real, bunches, laid_out, build, told = passes.measure_samples, [], [], runtime.build_sample, []
def counted(pair, samples, *rest):
    bunches.append([sample.context_key for sample in samples])
    return real(pair, samples, *rest)
passes.measure_samples = counted
runtime.build_sample = lambda row, *rest, **more: laid_out.append(row["id"]) or build(row, *rest, **more)
ds = Dataset.from_json(sys.argv[1], cache_dir=sys.argv[2])
out = measure_together(ds, GateauScorer(**json.loads(sys.argv[3])), tell=told.append)
print(json.dumps({"bunches": bunches, "laid_out": len(laid_out), "out": out.to_dict(), "told": vars(told[0])}))
"""


@pytest.mark.slow
def test_rows_on_one_context_go_to_one_process_and_none_is_laid_out_again(tmp_path):
    """Three documents with five questions each, and a row of its own; two processes with one cache between them."""
    asked = [row["messages"][0]["content"].rpartition("\n\n") for row in planted_rows(8, 5)]
    answers = [row["messages"][1]["content"] for row in planted_rows(8, 5)]
    rows = [
        {"id": f"{d}-{q}", "context": asked[d][0], "instruction": asked[3 + q][2], "response": answers[3 + q]}
        for q in range(5)
        for d in (range(4) if q == 0 else range(3))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = json.dumps({**PAIR, "store": str(tmp_path / "s.sqlite")})
    addresses = {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    Dataset.from_json(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache"))
    command = [sys.executable, "-c", TOGETHER, str(tmp_path / "rows.jsonl"), str(tmp_path / "cache"), settings]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=environment(**addresses, RANK=rank), **options) for rank in (0, 1)]
    ended = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ended[0][1][-2000:] + ended[1][1][-2000:]
    told = [json.loads(out.splitlines()[-1]) for out, _ in ended]
    bunches = told[0]["bunches"] + told[1]["bunches"]
    assert sorted(map(len, bunches)) == [1, 5, 5, 5] and all(len(set(bunch)) == 1 for bunch in bunches)
    assert sum(map(len, told[0]["bunches"])) in (5, 6, 10, 11)
    assert told[0]["laid_out"] + told[1]["laid_out"] == 2 * len(rows)
    alone = Dataset.from_list(rows).map(GateauScorer(**PAIR, store=False), batched=True)
    assert told[0]["out"] == told[1]["out"]
    assert_same(Dataset.from_dict(told[0]["out"], features=alone.features), alone)
    assert told[0]["told"]["measured"] == 16 and told[0]["told"] == told[1]["told"] | {
        name: told[0]["told"][name] for name in ("seconds", "measuring_seconds", "tokens_per_second")
    }
    assert not list((tmp_path / "cache").rglob("gateau-survey-*"))


ENDS = """
import os, sys, time
from hf_gateau.measuring import together
from accelerate import PartialState
team = together.Team(PartialState(cpu=True))
team.exchange(1)
if team.rank == 1:
    os._exit(9)
team.exchange(2)
"""


@pytest.mark.slow
def test_without_a_launcher_the_end_of_one_ends_the_others():
    addresses = {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    started = time.monotonic()
    both = [
        subprocess.Popen([sys.executable, "-c", ENDS], env=environment(**addresses, RANK=rank), stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    error = both[0].communicate()[1].decode()
    assert both[0].returncode == 1 and both[1].wait() == 9 and time.monotonic() - started < 60
    assert "Another process has ended" in error and "give the same command again" in error


# What is refused before any work


class FakeTeam:
    """Two processes, of which the second says what a test wants."""

    rank, size, is_main = 0, 2, True

    def __init__(self, **others):
        self.others = others

    def exchange(self, value):
        kind = {int: "num_rows", str: "host", bool: "sees"}.get(type(value))
        kind = (
            {"key": "segments_key", "layout": "layout_key", "segments": "cam"}.get(value, kind)
            if isinstance(value, str)
            else kind
        )
        return [value, self.others.get(kind, value)]


@pytest.mark.parametrize(
    "others, message",
    [
        ({"num_rows": 11}, r"do not have the same rows \(11, 12\)"),
        ({"segments_key": "other"}, r"do not have the same settings or models \(key, other\)"),
        ({"cam": "heads"}, r"do not have the same cam \(heads, segments\)"),
        ({"layout_key": "other"}, r"the same tokenizer, find_context or max_length \(layout, other\)"),
        ({"host": "elsewhere"}, r"on 2 machines, .* is a SQLite file, which serves one.*a slash at its end"),
        ({"sees": False}, r"is not the same for process\(es\) \[1\]"),
    ],
)
def test_processes_that_do_not_fit_together_are_refused(others, message, tmp_path):
    store, config = MeasurementStore(tmp_path / "s.sqlite"), SimpleNamespace(cam="segments")
    runtime = SimpleNamespace(segments_key="key", layout_key="layout", config=config, store=store)
    with pytest.raises(ValueError, match=message):
        together.check_alike(FakeTeam(**others), 12, runtime)
    assert not list(tmp_path.glob(".seen*"))


def test_several_processes_need_a_store(rows, tiny_model, monkeypatch):
    state = SimpleNamespace(num_processes=2, local_process_index=0, process_index=0, is_main_process=True)
    monkeypatch.setattr("accelerate.PartialState", lambda **_: state)
    with pytest.raises(ValueError, match="2 processes measure together through the store, and it is off"):
        measure_together(Dataset.from_list(rows), GateauScorer(long_model="./nowhere", store=False))


def test_store_that_does_not_show_the_others_rows_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(together, "SHARED_DISK_DELAY", 0.0)
    store = FolderStore(tmp_path)
    runtime = SimpleNamespace(store=store, known=lambda keys: store.get("key", keys))
    with pytest.raises(StoreError, match="2 rows that other processes measured are not to be seen"):
        together._wait_for(runtime, {"a", "b"})
