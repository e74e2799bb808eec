"""`hf-gateau score` on many files and on streams: every way of naming them gives the same numbers, and a killed run goes on."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from datasets import Dataset, load_dataset

from hf_gateau import GateauScorer
from hf_gateau.cli import main
from hf_gateau.files.reading import load_rows
from hf_gateau.files.sidecar import read_sidecar
from hf_gateau.quickstart.world import planted_rows
from hf_gateau.rows.batches import COLUMNS
from hf_gateau.store.sqlite import MeasurementStore
from tests.servers.hub_client import Client, cli
from tests.servers.hub_server import HubServer


@pytest.fixture(scope="module")
def settings(tiny_model) -> dict:
    return {"long_model": tiny_model, "short_window": 200, "segment_length": 64, "max_length": 700, "device": "cpu"}


@pytest.fixture(scope="module")
def alone(rows, settings) -> Dataset:
    """The rows as `map` measures them: what every way of naming files is compared with."""
    return Dataset.from_list(rows).map(GateauScorer(**settings), batched=True)


def run(command, data, output, settings, *more) -> int:
    given = [x for name, value in settings.items() for x in (f"--{name}", str(value))]
    return main([command, str(data), "-o", str(output), *given, *map(str, more)])


def write_json(path, rows) -> None:
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture()
def folder(rows, tmp_path):
    """The rows in parts, in every form that is read."""
    for name in ("parquet", "plain", "packed"):
        (tmp_path / name).mkdir()
    for i in range(3):
        part = rows[4 * i : 4 * i + 4]
        Dataset.from_list(part).to_parquet(tmp_path / "parquet" / f"part-{i}.parquet")
        write_json(tmp_path / "plain" / f"part-{i}.jsonl", part)
        write_json(tmp_path / "packed" / f"part-{i}.jsonl.gz", part)
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "data", ["parquet", "parquet/*.parquet", "plain", "plain/part-?.jsonl", "packed", "**/*.jsonl.gz", "saved"]
)
def test_every_way_of_naming_rows(data, streaming, folder, rows, alone, settings, capsys):
    more = ["--streaming"] if streaming else []
    assert run("score", folder / data, folder / "out", settings, "--max_shard_size", "20KB", *more) == 0
    assert "12 of 12 rows measured" in capsys.readouterr().out
    assert len(list((folder / "out").glob("train-*-of-*.parquet"))) > 2
    ds = load_dataset(str(folder / "out"), split="train")
    assert ds.remove_columns(list(COLUMNS)).to_list() == rows
    assert ds["gateau_key"] == alone["gateau_key"] and ds.features == alone.features
    assert ds["gateau_ppl_long"] == pytest.approx(alone["gateau_ppl_long"], rel=1e-6)
    assert sum(ds["gateau_segment_ppl"], []) == pytest.approx(sum(alone["gateau_segment_ppl"], []), rel=1e-6)
    assert main(["rank", str(folder / "out"), "-o", str(folder / "ranked")]) == 0
    record = read_sidecar(str(folder / "ranked"))
    assert record["ranking"]["num_ranked"] == 12 and record["measuring"]["long"]["model"] == settings["long_model"]
    assert record["origin"] == {"name": data.split("/")[0] if "**" not in data else folder.name}


def test_a_stream_leaves_nothing_in_the_cache(folder, settings, monkeypatch):
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(folder / "cache"))
    assert run("score", folder / "plain", folder / "out", settings, "--streaming", "--limit", 5) == 0
    assert not sum(x.stat().st_size for x in (folder / "cache").rglob("*") if x.is_file())  # locks are empty
    assert len(load_rows(str(folder / "out"))) == 5


def test_rows_that_cannot_be_measured_stay(folder, rows, settings, capsys):
    """The error comes after many rows without one, and before a row without any column that can be read."""
    more = [{**rows[0], "id": "empty", "messages": []}, {"id": "bare"}]
    write_json(folder / "some.jsonl", [*planted_rows(60, seed=5, num_context_tokens=40), *more])
    assert run("score", folder / "some.jsonl", folder / "out", settings, "--streaming") == 0
    out = capsys.readouterr().out
    assert "60 of 62 rows measured" in out and out.count("1 not measured: ") == 2
    ds = load_rows(str(folder / "out"))
    assert ds["id"][60:] == ["empty", "bare"] and all(ds["gateau_error"][60:]) and not any(ds["gateau_error"][:60])


def test_a_line_that_cannot_be_read_is_a_row_with_its_file_and_line(folder, settings, capsys):
    with open(folder / "plain" / "part-1.jsonl", "a") as stream:
        stream.write("not json\n")
    for more in ([], ["--streaming"]):
        assert run("score", folder / "plain", folder / "out", settings, *more) == 0
        out = capsys.readouterr().out
        assert "12 of 13 rows measured" in out and "it is no JSON (Expecting value) (line 5 of part-1.jsonl" in out
        assert load_rows(str(folder / "out"))["unreadable"] == [None] * 8 + ["not json"] + [None] * 4


@pytest.mark.parametrize("streaming", [False, True])
def test_files_whose_types_go_together(streaming, folder, rows, settings, capsys):
    """A column without a value in the first file, with some in a later one, and not there in a third."""
    for i, more in enumerate([{"note": None, "n": 1}, {"note": "seen", "n": 2.5}, {"n": 3}]):
        Dataset.from_list([{**row, **more} for row in rows[:3]]).to_parquet(folder / f"note-{i}.parquet")
    assert run("score", folder / "note-*.parquet", folder / "out", settings, *["--streaming"] * streaming) == 0
    ds = load_rows(str(folder / "out"))
    assert ds["note"] == [None] * 3 + ["seen"] * 3 + [None] * 3 and ds["n"] == [1] * 3 + [2.5] * 3 + [3] * 3


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_other_types_are_one_clear_line(streaming, folder, rows, settings, capsys):
    for i, note in enumerate(["seen", "seen", 5]):
        Dataset.from_list([{**row, "note": note} for row in rows[:3]]).to_parquet(folder / f"note-{i}.parquet")
    assert run("score", folder / "note-*.parquet", folder / "out", settings, *["--streaming"] * streaming) == 2
    error = capsys.readouterr().err
    assert "note-2.parquet' cannot be read together" in error and "column 'note' is int64 there and string in" in error
    assert not (folder / "out").exists() and not (folder / "out.partial").exists()


def test_empty_stream(tmp_path, settings, capsys):
    Dataset.from_list([{"messages": []}]).select([]).to_parquet(tmp_path / "none.parquet")
    assert run("score", tmp_path / "none.parquet", tmp_path / "out", settings, "--streaming") == 2
    assert "has no rows" in capsys.readouterr().err


def test_zstandard(folder, rows, settings):
    import pyarrow as pa

    with pa.CompressedOutputStream(str(folder / "rows.jsonl.zst"), "zstd") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    for more in ([], ["--streaming"]):
        assert run("score", folder / "rows.jsonl.zst", folder / "out", settings, *more) == 0
        assert load_rows(str(folder / "out"))["id"] == [row["id"] for row in rows]


@pytest.mark.slow
def test_killed_and_the_same_command_again(tmp_path, settings):
    """No row is measured twice, and what the killed run had written is nowhere taken for whole."""
    data, out, store = tmp_path / "rows.jsonl", tmp_path / "out", MeasurementStore(tmp_path / "s.sqlite")
    write_json(data, rows := planted_rows(150, seed=9, num_context_tokens=300))
    given = [x for name, value in settings.items() for x in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "hf_gateau.cli", "score", str(data), "-o", str(out), *given]
    command += ["--streaming", "--max_shard_size", "20KB", "--store", str(tmp_path / "s.sqlite")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not any((tmp_path / "out.partial").glob("train-*.parquet")):
            assert process.poll() is None, process.stderr.read()[-3000:]
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not out.exists()
    for shard in (tmp_path / "out.partial").glob("train-*.parquet"):
        assert len(load_dataset("parquet", data_files=str(shard), split="train"))  # those with a name are whole
    assert 0 < store.configurations()[0]["num_rows"] < len(rows)
    subprocess.run(command, check=True, capture_output=True)
    (configuration,) = store.configurations()
    assert configuration["num_rows"] == configuration["num_measured"] == len(rows)
    assert load_rows(str(out))["id"] == [row["id"] for row in rows] and not (tmp_path / "out.partial").exists()


def push_rows(repo_id: str, rows: list[dict]) -> str:
    return Dataset.from_list(rows).push_to_hub(repo_id).oid


@pytest.mark.slow
def test_a_stream_from_the_hub_says_which_commit_it_was(rows, settings, tmp_path):
    with HubServer(tmp_path / "hub") as server, Client(server, tmp_path / "somebody") as client:
        commit_hash = client(push_rows, "tester/rows", rows)
        given = [x for name, value in settings.items() for x in (f"--{name}", str(value))]
        status, _, errors = client(cli, "score", "tester/rows", "--streaming", "-o", tmp_path / "out", *given)
        assert status == 0, errors
    assert load_rows(str(tmp_path / "out"))["id"] == [row["id"] for row in rows]
    origin = read_sidecar(str(tmp_path / "out"))["origin"]
    assert origin == {"repo_id": "tester/rows", "config": "default", "revision": commit_hash}
    assert not list((tmp_path / "somebody").rglob("*.arrow"))


def push_file(repo_id: str, path: str) -> str:
    from huggingface_hub import HfApi

    HfApi().create_repo(repo_id, repo_type="dataset")
    return (
        HfApi().upload_file(path_or_fileobj=path, path_in_repo="train.jsonl", repo_id=repo_id, repo_type="dataset").oid
    )


def load_answers(repo_id: str) -> list:
    from hf_gateau.records import origin_of

    ds = load_rows(repo_id)
    return [ds["response"][:], [reason is not None for reason in ds["unreadable_reason"]], origin_of(ds)]


def test_json_on_the_hub_is_read_as_json_on_the_disk(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"response": "2024-01-31"}\n{"response": "2024-02\n{"response": "1999-12-24"}\n'
    )
    with HubServer(tmp_path / "hub") as server, Client(server, tmp_path / "somebody") as client:
        commit_hash = client(push_file, "tester/dates", str(tmp_path / "rows.jsonl"))
        for _ in range(2):
            answers, are_unreadable, origin = client(load_answers, "tester/dates")
            assert answers == ["2024-01-31", None, "1999-12-24"] and are_unreadable == [False, True, False]
            assert origin == {"repo_id": "tester/dates", "config": "default", "revision": commit_hash}


KEEPING = """
import torch
from hf_gateau.models.device import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def given_back():
    block = torch.ones(64 << 20, dtype=torch.uint8)
    full = resident()
    del block
    return full - resident()

before = given_back()
keep_freed_memory()
print(before, given_back())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_stays_for_the_next_layer():
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True, env=environment)
    before, after = map(int, done.stdout.split())
    assert before > 60 << 20 and after < 4 << 20


BAD = '{"messages": 5}\nnot json\n{"id": 1}\n'


@pytest.mark.parametrize("more", [[], ["--streaming"], ["--json"]])
def test_nothing_measured_is_a_failure(more, folder, settings, capsys):
    (folder / "bad.jsonl").write_text(BAD)
    assert run("score", folder / "bad.jsonl", folder / "out", settings, *more) == 2
    printed = capsys.readouterr()
    assert "None of 3 rows could be measured" in printed.err and "Next:" not in printed.out
    assert "line 2 of bad.jsonl" in printed.out and (
        json.loads(printed.out)["rows"] == 3 if more == ["--json"] else True
    )
    assert sum(reason.startswith("unreadable: ") for reason in load_rows(str(folder / "out"))["gateau_error"]) == 1


@pytest.mark.parametrize("output", ["out", "out.parquet", "out.jsonl"])
def test_rows_of_every_kind_are_measured_written_and_ranked(output, folder, rows, settings, capsys):
    """Empty and unequal objects, a cut line: what is read is written, in every form, with the rows that could be measured."""
    more = [{"completion": {}, "meta": {}}, {"completion": {}, "meta": {"a": 1}}, {"completion": {}, "meta": [1, "x"]}]
    text = "".join(json.dumps({**row, **extra}) + "\n" for row, extra in zip(rows, more, strict=False))
    (folder / "odd.jsonl").write_text(text + BAD + '{"messages": [{"role": "us')
    assert run("score", folder / "odd.jsonl", folder / output, settings) == 0
    assert "3 of 7 rows measured" in capsys.readouterr().out
    assert main(["rank", str(folder / output), "-o", str(folder / f"ranked-{output}")]) == 0
    ranked = load_rows(str(folder / f"ranked-{output}"))
    assert sorted(ranked["gateau_rank"][:3]) == [1, 2, 3] and ranked["gateau_rank"][3:] == [None] * 4
    assert ranked["completion"][:3] == [{}] * 3 and ranked["meta"][:3] == [x["meta"] for x in more]
    assert ranked["messages"][:3] == [row["messages"] for row in rows[:3]]


@pytest.mark.parametrize("output", ["out", "out.jsonl"])
def test_a_full_disk_loses_nothing_that_was_measured(output, folder, settings, capsys, monkeypatch):
    from hf_gateau.files import replacing

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(replacing, "synced", full)
    monkeypatch.setattr("hf_gateau.files.shards.synced", full)
    more = ["--store", folder / "s.sqlite"]
    assert run("score", folder / "plain", folder / output, settings, *more) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and f"What was measured is kept in {folder / 's.sqlite'}" in error
    assert not (folder / output).exists()
    monkeypatch.undo()
    assert run("score", folder / "plain", folder / output, settings, *more) == 0
    assert "12 of 12 rows taken from the store, none measured: " in capsys.readouterr().out
