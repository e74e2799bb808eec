"""Ray Data: actors measure as one process does, and one that is killed loses nothing. `pip install "hf-gateau[ray]"`."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest
from datasets import Dataset

from hf_gateau import GateauScorer
from hf_gateau.quickstart import LONG_MODEL
from hf_gateau.quickstart.world import planted_rows
from hf_gateau.store.sqlite import MeasurementStore
from tests.measured import assert_same


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]

PAIR = {"long_model": LONG_MODEL, "short_window": 256, "segment_length": 64, "device": "cpu"}
NUM_ROWS = 60
TWO_ACTORS = """
import json, sys
import ray
from hf_gateau import GateauScorer
ray.init(num_cpus=3, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
ds = ray.data.read_json(sys.argv[1])
options = {"fn_constructor_kwargs": json.loads(sys.argv[3]), "compute": ray.data.ActorPoolStrategy(size=2)}
ds = ds.map_batches(GateauScorer, batch_format="pyarrow", batch_size=5, **options)
ds.write_parquet(sys.argv[2])
"""
ACTOR = b"ray::MapWorker(MapBatches(GateauScorer"


def actors_of(marker: str) -> list[int]:
    """Processes of the run that carries the marker in its environment, and of no other."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            is_actor = process.name.isdigit() and (process / "cmdline").read_bytes().startswith(ACTOR)
            if is_actor and marker.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


@pytest.mark.parametrize("kill", [False, True])
def test_two_actors_measure_as_one_process(kill, tmp_path):
    rows, store, marker = planted_rows(NUM_ROWS, seed=8), MeasurementStore(tmp_path / "s.sqlite"), uuid4().hex
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = json.dumps({**PAIR, "store": str(store.path)})
    command = [sys.executable, "-c", TWO_ACTORS, str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), settings]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env={**os.environ, "RUN": marker}, stdout=log, stderr=log) as run,
    ):
        while kill and sum(known["num_rows"] for known in store.configurations()) < 10:
            assert run.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.005)
        if kill:
            os.kill(actors_of(marker)[0], signal.SIGKILL)
        assert run.wait() == 0, (tmp_path / "log").read_text()[-3000:]
    out = Dataset.from_parquet([str(path) for path in (tmp_path / "out").glob("*.parquet")])
    out = sorted(out.to_list(), key=lambda row: [row["id"] for row in rows].index(row["id"]))
    assert [row["messages"] for row in out] == [row["messages"] for row in rows]
    scorer = GateauScorer(**PAIR, store=False)
    assert_same(out, [scorer(row) for row in rows])
    (configuration,) = store.configurations()
    assert configuration["num_rows"] == configuration["num_measured"] == NUM_ROWS
