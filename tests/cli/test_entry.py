"""The command line as its users meet it: score, rank, top, store, wrong input, Ctrl-C and again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

from hf_gateau import GateauScorer, rank
from hf_gateau.cli import main
from hf_gateau.cli.commands import COMMANDS, command_of
from hf_gateau.files.json_records import UNREADABLE, UNREADABLE_REASON
from hf_gateau.files.reading import load_rows
from hf_gateau.files.sidecar import read_sidecar
from hf_gateau.rows.batches import COLUMNS


@pytest.fixture()
def data(rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture()
def pair(tiny_model):
    return f"--long_model {tiny_model} --short_window 200 --segment_length 64 --max_length 700 --device cpu".split()


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet", "out"])
def test_score_rank_top(output, data, rows, pair, tiny_model, tmp_path, capsys):
    measured, ranked = tmp_path / output, tmp_path / f"ranked-{output}"
    assert run("score", data, "-o", measured, *pair) == 0
    assert "12 of 12 rows measured" in capsys.readouterr().out
    scorer = GateauScorer(long_model=tiny_model, short_window=200, segment_length=64, max_length=700, device="cpu")
    ds = load_rows(str(measured))
    assert ds.remove_columns(list(COLUMNS)).to_list() == rows
    assert ds["gateau_ppl_long"] == [scorer(row)["gateau_ppl_long"] for row in rows]
    assert run("rank", measured, "-o", ranked, "--alpha", 0.7) == 0
    assert "12 of 12 rows ranked (method=gateau, mode=robust" in capsys.readouterr().out
    expected = rank(ds, alpha=0.7)
    assert load_rows(str(ranked))["gateau_rank"] == expected["gateau_rank"]
    sidecar = read_sidecar(str(ranked))
    assert sidecar["ranking"]["alpha"] == 0.7 and sidecar["measuring"]["long"]["model"] == tiny_model
    assert run("top", ranked, "-n", 2) == 0
    shown = capsys.readouterr().out
    best = expected["id"][expected["gateau_rank"].index(1)]
    assert (
        f"rank 1 of 12  id {best}" in shown
        and "rank 12 of 12" in shown
        and f"long model: {Path(tiny_model).name}" in shown
        and "gain        │" in shown
    )


def test_top_ranks_what_is_not_ranked(data, pair, tmp_path, capsys):
    run("score", data, "-o", tmp_path / "m.parquet", *pair)
    assert run("top", tmp_path / "m.parquet", "-n", 1) == 0
    assert "The 1 best of 12 ranked samples" in capsys.readouterr().out


def test_limit_split_and_save_to_disk_input(rows, pair, tmp_path):
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    assert run("score", tmp_path / "data", "-o", tmp_path / "m", "--limit", 3, *pair) == 0
    assert len(load_dataset(str(tmp_path / "m"), split="train")) == 3


@pytest.mark.slow
def test_processes(data, pair, tmp_path):
    """Two, in a process of its own: workers are spawned, which a test runner should not be asked for."""
    assert run("score", data, "-o", tmp_path / "one.parquet", *pair) == 0
    command = [sys.executable, "-m", "hf_gateau.cli", "score", data, "-o", str(tmp_path / "two.parquet")]
    subprocess.run([*command, *pair, "--num_proc", "2"], check=True, capture_output=True)
    one, two = (
        load_dataset("parquet", data_files=str(tmp_path / f"{n}.parquet"), split="train") for n in ("one", "two")
    )
    assert one["id"] == two["id"]
    assert two["gateau_ppl_long"] == pytest.approx(one["gateau_ppl_long"], rel=1e-6)


def test_config_file_and_command_line_over_it(data, pair, tiny_model, tmp_path, capsys):
    config = tmp_path / "score.yaml"
    config.write_text(f"data: {data}\nlong_model: {tiny_model}\nshort_window: 200\ndevice: cpu\nlimit: 5\n")
    assert run("score", "--config", config, "--limit", 2, "-o", tmp_path / "m.jsonl") == 0
    assert "2 of 2 rows measured" in capsys.readouterr().out
    config.write_text("segment_lenght: 5\n")
    assert run("score", data, "--config", config, "-o", tmp_path / "m.jsonl") == 2
    assert "segment_lenght" in capsys.readouterr().err


@pytest.mark.quick
def test_malformed_lines_end_no_run(data, rows, pair, tmp_path, capsys):
    lines = [
        "not json",
        "[]",
        '{"messages": 5}',
        '{"messages": [{"role": "user"}]}',
        '{"id": 7, "messages": null}',
        "\\ud800",
    ]
    lines += ['{"messages": [{"role": "user", "content": "\\ud800"}]}']
    with open(data, "a") as stream:
        stream.write("\n".join(lines) + "\n")
    assert run("score", data, "-o", tmp_path / "m.parquet", *pair) == 0
    out = capsys.readouterr().out
    assert f"{len(rows)} of {len(rows) + len(lines)} rows measured" in out
    bad = len(rows) + 1
    assert (
        f"2 not measured: unreadable: it is no JSON (Expecting value) (line {bad} of rows.jsonl, column 1, and 1 more)"
        in out
    )
    assert f"1 not measured: unreadable: it is an array, not an object (line {bad + 1} of rows.jsonl)" in out
    assert "1 not measured: messages is an integer, not a list" in out and "1 not measured: messages is null" in out
    ds = load_rows(str(tmp_path / "m.parquet"))
    assert ds["id"][: len(rows)] == [row["id"] for row in rows]
    assert all(ds["gateau_error"][len(rows) :]) and not any(ds["gateau_error"][: len(rows)])
    assert ds[UNREADABLE][len(rows)] == "not json" and ds[UNREADABLE][0] is None
    unreadable = [reason for reason in ds[UNREADABLE_REASON] if reason]
    assert len(unreadable) == 4 and set(unreadable) < set(ds["gateau_error"])
    assert run("rank", tmp_path / "m.parquet", "-o", tmp_path / "r.parquet") == 0
    assert f"{len(rows)} of {len(ds)} rows ranked" in capsys.readouterr().out


@pytest.mark.quick
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["bogus"], "there is no command 'bogus'"),
        (["top", "nowhere.jsonl", "-n", "-1"], "--num_samples is a number of rows, got -1; give 0 or more"),
        (["score", "nowhere.jsonl", "-o", "m.jsonl"], "There is no file or folder 'nowhere.jsonl'"),
        (["score", "{data}", "-o", "m.csv"], "ends in '.csv'; use .jsonl, .parquet, or a folder's name"),
        (["score", "{data}", "-o", "m.jsonl", "--segment_length", "0"], "segment_length is a number of tokens, got 0"),
        (["score", "{data}", "-o", "m.jsonl", "--limit", "0"], "--limit is a number of rows, got 0"),
        (["score", "{data}", "-o", "m.jsonl", "--long_model", "./nowhere"], "no model at './nowhere'"),
        (["score", "*.parquet", "-o", "m.jsonl"], "No file matches '*.parquet'"),
        (["score", "{data}", "-o", "m", "--max_shard_size", "much"], "--max_shard_size is a size, got 'much'"),
        (["score", "{data}", "-o", "m.parquet", "--streaming"], "--streaming writes shard by shard; name a folder"),
        (["score", "{data}", "-o", "m", "--streaming", "--num_proc", "2"], "--streaming is for one process"),
        (["score", "{data}", "-o", "m", "--streaming", "--scored_dataset", "a/b"], "cannot be looked up"),
        (["rank", "{data}", "-o", "m.jsonl"], "needs the column(s) gateau_token_nll_long"),
        (["rank", "{data}", "-o", "m.jsonl", "--mode", "mean"], "needs the column(s) gateau_ppl_short"),
        (["rank", "{data}", "-o", "m.jsonl", "--alpha", "1.5"], "alpha=1.5 is not between 0 and 1"),
        (["rank", "{data}", "-o", "m.jsonl", "--mode", "best"], "mode='best' is not known"),
        (["score", "{data}", "-o", "{data}/m.jsonl"], "cannot be written"),
    ],
)
def test_wrong_input_is_one_clear_line(arguments, message, data, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*(argument.format(data=data) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.quick
def test_empty_file(tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("")
    assert run("score", tmp_path / "empty.jsonl", "-o", tmp_path / "m.jsonl") == 2
    assert "has no rows" in capsys.readouterr().err


def test_unknown_split_names_those_there_are(rows, tmp_path, capsys):
    from datasets import DatasetDict

    DatasetDict(a=Dataset.from_list(rows), b=Dataset.from_list(rows)).save_to_disk(tmp_path / "data")
    assert run("rank", tmp_path / "data", "-o", tmp_path / "m.jsonl") == 2
    assert "There is no split 'train'; name one of a, b with --split" in capsys.readouterr().err


def test_interrupted_and_again(data, rows, pair, tmp_path, monkeypatch, capsys):
    from hf_gateau.measuring import passes
    from hf_gateau.store.sqlite import MeasurementStore

    real, calls = passes.measure_samples, []

    def interrupted_at_the_fifth(*arguments):
        calls.extend(arguments[1])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(passes, "measure_samples", interrupted_at_the_fifth)
    command = ["score", data, "-o", tmp_path / "m.jsonl", "--store", tmp_path / "s.sqlite", *pair]
    assert run(*command) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert not (tmp_path / "m.jsonl").exists()
    assert run(*command) == 0
    assert len(calls) == len(rows) + 1  # the one in flight was measured again, no other
    assert MeasurementStore(tmp_path / "s.sqlite").configurations()[0]["num_measured"] == len(rows)


def test_json_has_the_figures_of_the_last_lines(data, rows, pair, tmp_path, capsys):
    with open(data, "a") as stream:
        stream.write(json.dumps(rows[7]) + "\n" + '{"id": "bad", "messages": null}\n')
    command = ["score", data, "-o", tmp_path / "m.parquet", "--store", tmp_path / "s.sqlite", *pair]
    assert run(*command, "--limit", 5) == 0
    assert "5 of 5 rows measured in 0:00:" in capsys.readouterr().out
    assert run(*command, "--json") == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert (told["rows"], told["measured"], told["known"]) == (14, 7, {"the store": 5, "another row": 1})
    assert told["not_measured"] == {"messages is null": 1} and told["output"] == str(tmp_path / "m.parquet")
    assert told["tokens"] == 7 * 700 and 0 < told["measuring_seconds"] < told["seconds"]
    assert told["tokens_per_second"] == pytest.approx(told["tokens"] / told["measuring_seconds"])
    assert 0 < told["share_of_matrix_rate"] < 1
    assert "14 rows; long model" in printed.err and "7/7 rows (and 5 in the store, 1 not measurable)" in printed.err
    assert run(*command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  13 of 13 rows were cut to fit max_length"), "before anything is measured"
    assert lines[2].startswith("How rows are split")
    after = next(
        i for i, line in enumerate(lines) if line.startswith("13 of 14 rows taken from the store, none measured: ")
    )
    assert lines[after + 1] == "  1 not measured: messages is null"
    assert told["cut"]["rows"] == 13 and lines[after + 2] == lines[1], "and after"


def test_json_of_a_stream(data, pair, tmp_path, capsys):
    assert run("score", data, "-o", tmp_path / "m", "--streaming", "--json", *pair) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["measured"] == told["rows"] == 12 and told["tokens"] == 12 * 700 and not told["known"]


@pytest.mark.quick
def test_store_lists_and_prunes(data, pair, tmp_path, capsys):
    store = tmp_path / "s.sqlite"
    assert run("store", "--store", store) == 0 and "There is no store" in capsys.readouterr().out
    run("score", data, "-o", tmp_path / "m.jsonl", "--store", store, *pair)
    capsys.readouterr()
    assert run("store", "--store", store) == 0
    listed = capsys.readouterr().out
    key = listed.splitlines()[1].split()[0]
    assert "12 rows" in listed and "segment_length" in listed
    assert run("store", "--store", store, "--prune", "nokey") == 2
    assert "has no configuration nokey" in capsys.readouterr().err
    assert run("store", "--store", store, "--prune", key) == 0
    assert "12 measurements deleted" in capsys.readouterr().out


@pytest.mark.quick
@pytest.mark.parametrize("command", [x for x in COMMANDS if x != "sft"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as end:
        run(command, "--help")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert " ".join(shown.split()).count(" ".join(command_of(command)[0].__doc__.split())[:60]) == 1


def test_help_of_sft_has_trls_arguments_and_ours(capsys):
    with pytest.raises(SystemExit, match="0"):
        run("sft", "--help")
    shown = capsys.readouterr().out
    assert all(f"--{name} " in shown for name in ("recipe", "gateau_fraction", "loss_weighting", "learning_rate"))


@pytest.mark.quick
def test_usage_lists_every_command(capsys):
    assert run() == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in COMMANDS)


def test_import_is_light():
    code = "import sys, hf_gateau, hf_gateau.cli, hf_gateau.settings; print([m for m in ('torch', 'datasets', 'trl') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_what_runs_no_model_does_not_wait_for_torch():
    code = "import sys; from hf_gateau.cli import main; main(['check', 'quickstart:planted']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr[-1000:]


def test_public_names_resolve():
    import hf_gateau

    for name in hf_gateau.__all__:
        assert getattr(hf_gateau, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'cake'"):
        hf_gateau.cake  # noqa: B018
