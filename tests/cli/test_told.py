"""What `score`, `plan`, `rank` and `select` say of rows that were cut, and refuse before a model loads."""

import json

import pytest
from datasets import Dataset

from hf_gateau.cli import main
from hf_gateau.files.reading import load_rows
from hf_gateau.files.sidecar import read_sidecar
from hf_gateau.hub.dataset_card import cut_rows
from hf_gateau.hub.scored import split_record
from hf_gateau.models.pair import ModelPair
from hf_gateau.rows.cuts import Cuts
from tests.measured import measured


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture()
def data(rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    return path


@pytest.fixture()
def pair(tiny_model) -> list:
    return f"--long_model {tiny_model} --segment_length 64 --device cpu --store off".split()


@pytest.fixture()
def no_model(monkeypatch):
    monkeypatch.setattr(ModelPair, "_load", lambda *_: pytest.fail("a model was loaded"))


@pytest.mark.parametrize("how", ["dataset", "stored", "streaming"])
def test_cut_rows_are_told_by_every_command(how, data, pair, tmp_path, capsys):
    more = {"stored": ["--store", tmp_path / "s.sqlite"], "streaming": ["--streaming"]}.get(how, [])
    out = tmp_path / "out"
    command = ["score", data, "-o", out, *pair, "--max_length", 400, "--short_window", 100, *more]
    assert run(*command) == 0
    cut = Cuts.of_data(load_rows(str(out)))
    assert cut.rows == cut.of == 5 and 0 < cut.tokens < cut.before
    printed = capsys.readouterr().out
    assert printed.count(cut.line()) == (1 if how == "streaming" else 2), "before and after, where all rows are known"
    assert run(*command, "--json") == 0
    assert json.loads(capsys.readouterr().out)["cut"] == cut.to_record()
    if how != "streaming":
        assert read_sidecar(str(out))["cut"] == cut.to_record()
    assert run("rank", out, "-o", tmp_path / "ranked.parquet") == 0
    assert cut.line() in capsys.readouterr().out
    assert read_sidecar(str(tmp_path / "ranked.parquet"))["ranking"]["cut"] == cut.to_record()
    assert run("select", tmp_path / "ranked.parquet", "-o", tmp_path / "best.parquet", "--top_k", 2) == 0
    printed = capsys.readouterr().out
    assert "2 of the rows cut to fit max_length" in printed and "2 of 2 rows were cut to fit max_length" in printed
    assert read_sidecar(str(tmp_path / "best.parquet"))["selection"]["cut"]["rows"] == 2
    ((title, text),) = cut_rows(split_record(load_rows(str(out)), None)["cut"])
    assert title == "context dropped" and text == f"{cut.told()}, from the left"


def test_the_plan_tells_what_is_cut(data, pair, capsys):
    plan = ["plan", data, *pair, "--short_window", 100, "--pilot_seconds", 0.1]
    assert run(*plan, "--json", "--max_length", 4096) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["rows"]["cut"]["rows"] == 0 and whole["tokens"]["longest_uncut"] == whole["tokens"]["longest"]
    assert run(*plan, "--max_length", 400) == 0
    printed = capsys.readouterr().out
    assert "5 of 5 rows were cut to fit max_length" in printed and "longest row 400" in printed
    assert f"the longest row has {whole['tokens']['longest']:,} tokens" in printed


def test_data_that_were_scored_earlier(tmp_path, capsys):
    measured(12, gateau_truncated=[True] * 4 + [False] * 8).to_parquet(tmp_path / "m.parquet")
    assert run("rank", tmp_path / "m.parquet", "-o", tmp_path / "r.parquet") == 0
    assert "4 of 12 rows were cut to fit max_length, and lost part of their context" in capsys.readouterr().out


def test_the_window_is_chosen_told_and_kept(data, pair, tmp_path, capsys):
    assert run("score", data, "-o", tmp_path / "m.parquet", *pair) == 0
    printed = capsys.readouterr().out
    sidecar = read_sidecar(str(tmp_path / "m.parquet"))
    window = sidecar["measuring"]["short"]["window"]
    assert window < 4096 and sidecar["settings"]["short_window"] == window
    assert f"its last {window} tokens" in printed and f"--short_window {window} keeps it for other rows" in printed
    assert run("plan", data, *pair, "--pilot_seconds", 0.1) == 0
    assert f"short_window {window:,}, chosen by the rows' median context" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["score", "plan"])
@pytest.mark.parametrize(
    "more, message",
    [
        (["--short_window", 4096], "short_window=4096 holds the whole context of all 5 rows"),
        (
            ["--segment_length", 9999],
            "segment_length=9999 leaves fewer than 2 segments to measure in the context of all 5",
        ),
    ],
)
def test_settings_that_leave_nothing(command, more, message, data, pair, tmp_path, capsys, no_model):
    output = ["-o", tmp_path / "m.parquet"] if command == "score" else []
    assert run(command, data, *output, *pair, *more) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "m.parquet").exists()


@pytest.mark.parametrize("command", ["score", "plan", "score --streaming"])
def test_columns_of_no_form(command, pair, tmp_path, capsys, no_model):
    (tmp_path / "rows.jsonl").write_text('{"mesages": [{"role": "user", "content": "x"}], "source": "y"}\n')
    output = ["-o", tmp_path / "out"] if "score" in command else []
    command, *more = command.split()
    assert run(command, tmp_path / "rows.jsonl", *output, *more, *pair) == 2
    error = capsys.readouterr().err
    assert "the rows have no messages; they have mesages, source: did you mean messages by mesages?" in error


@pytest.mark.parametrize("command", ["rank", "select", "top", "report"])
def test_nothing_to_rank_says_why(command, tmp_path, capsys):
    errors = ["messages is null"] * 9 + ["no response"] * 3
    measured(12, gateau_error=errors).to_parquet(tmp_path / "m.parquet")
    output = {"top": [], "report": ["-o", tmp_path / "page.html"]}.get(command, ["-o", tmp_path / "out.parquet"])
    assert run(command, tmp_path / "m.parquet", *output) == 2
    error = capsys.readouterr().err
    assert "None of 12 rows can be ranked; of 9 the reason is: messages is null" in error
    assert not (tmp_path / "out.parquet").exists()


def test_nothing_ranked_by_somebody_else(tmp_path, capsys):
    ranked = {"gateau_rank": [None, None], "gateau_score": [None, None], "gateau_note": ["gone wrong"] * 2}
    Dataset.from_dict(ranked).to_parquet(tmp_path / "r.parquet")
    assert run("select", tmp_path / "r.parquet", "-o", tmp_path / "s.parquet") == 2
    assert "None of 2 rows can be ranked; of 2 the reason is: gone wrong" in capsys.readouterr().err
