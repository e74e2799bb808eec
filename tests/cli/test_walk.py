"""A walk through the commands as somebody takes it who has never seen them, mistakes included: what each says, and its status."""

import gzip
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hf_gateau.quickstart import LONG_MODEL, PLANTED
from tests.paths import ROOT


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Planted rows in forms that people have: question first in CSV, columns misspelt, long ones, mixed kinds."""
    folder = tmp_path_factory.mktemp("walk")
    rows = [json.loads(line) for line in gzip.decompress(Path(PLANTED).read_bytes()).splitlines()[:40]]
    turns = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows]
    split = [(user.rsplit("\n\n", 1), answer) for user, answer in turns]
    write = (folder / "rows.jsonl").write_text
    write("".join(json.dumps(row) + "\n" for row in rows))
    first = [
        {
            "messages": [
                {"role": "user", "content": f"Answer this: {x}\n\n{c}\n\nEnd of it ."},
                {"role": "assistant", "content": y},
            ]
        }
        for (c, x), y in split
    ]
    (folder / "first.jsonl").write_text("".join(json.dumps(row) + "\n" for row in first))
    named = [{"context": c, "instuction": x, "response": y} for (c, x), y in split]
    (folder / "misspelt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    prompts = [{"prompt": user, "completion": answer} for user, answer in turns]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (folder / "mixed").mkdir()
    shutil.copy(folder / "rows.jsonl", folder / "mixed" / "a.jsonl")
    (folder / "mixed" / "b.csv").write_text(
        "document,question,answer\n" + "".join(f'"{c}","{x}","{y}"\n' for (c, x), y in split[:9])
    )
    return folder


@pytest.fixture()
def run(folder):
    """`hf-gateau ARGUMENTS` in a process of its own: its status, and all that it says."""

    def run(*arguments, status: int = 0) -> str:
        environment = os.environ | {"HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        environment["HF_GATEAU_STORE"] = str(folder / "store.sqlite")
        command = [sys.executable, "-m", "hf_gateau.cli", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    return run


PAIR = ["--long_model", LONG_MODEL, "--segment_length", 64, "--device", "cpu"]


def test_rows_are_looked_at_before_anything_is_measured(run):
    assert "last paragraph" in run("check", "rows.jsonl", *PAIR)
    assert "instuction" in (said := run("check", "misspelt.jsonl", status=2)) and "did you mean instruction" in said
    assert "prompt" in run("check", "prompts.jsonl", *PAIR)
    said = run("check", "mixed", status=2)
    assert ".jsonl" in said and ".csv" in said


def test_what_would_be_for_nothing_is_refused_before_it_is_measured(run, folder):
    said = run("score", "rows.jsonl", "-o", "out.parquet", *PAIR, "--short_window", 4096, status=2)
    assert "short_window" in said
    said = run("score", "rows.jsonl", "-o", "out.parquet", *PAIR[:2], "--segment_length", 100_000, status=2)
    assert "segment_length" in said
    assert "did you mean" in run("score", "misspelt.jsonl", "-o", "out.parquet", *PAIR, status=2)
    assert "--columns" in run("score", "misspelt.jsonl", "-o", "out.parquet", *PAIR, status=2)
    said = run("score", "rows.jsonl", "-o", "out.parquet", status=2)
    assert "7B" in said or "billion parameters" in said
    assert "--yes" in said
    before = (folder / "rows.jsonl").read_bytes()
    assert "rows.jsonl" in run("score", "rows.jsonl", "-o", "rows.jsonl", *PAIR, "--limit", 3, status=2)
    assert (folder / "rows.jsonl").read_bytes() == before and not (folder / "out.parquet").exists()


def test_from_rows_to_the_best_of_them(run, folder):
    cut = ["--max_length", 400]
    planned = run("plan", "rows.jsonl", *PAIR, *cut, "--pilot_seconds", 2)
    assert "cut to fit max_length" in planned
    said = run("score", "rows.jsonl", "-o", "measured.parquet", *PAIR, *cut)
    assert "cut to fit max_length" in said and "short_window" in said and "context" in said
    again = run("score", "rows.jsonl", "-o", "measured.parquet", *PAIR, *cut)
    assert "taken from the store, none measured" in again
    assert "cut to fit max_length" in run("rank", "measured.parquet", "-o", "ranked.parquet")
    shown = run("top", "ranked.parquet", "-n", 1)
    assert shown.startswith("The best") and "were cut by max_length" in shown
    run("report", "ranked.parquet", "-o", "report.html")
    assert "cut by max_length" in (folder / "report.html").read_text()
    assert "4 of 40 rows kept" in run("select", "ranked.parquet", "-o", "best.parquet", "--fraction", 0.1)
    assert "ranked.parquet" in run("select", "ranked.parquet", "-o", "ranked.parquet", status=2)


def test_other_forms_are_measured(run):
    columns = ["--columns", "instruction=instuction"]
    for data, more in (("first.jsonl", []), ("prompts.jsonl", []), ("misspelt.jsonl", columns)):
        assert "5 of 5 rows measured" in run("score", data, "-o", "forms.parquet", *PAIR, *more, "--limit", 5)
    run(
        "score",
        "mixed/*.csv",
        "-o",
        "csv.parquet",
        *PAIR,
        "--columns",
        "context=document,instruction=question,response=answer",
    )
    assert "question first" in run("check", "first.jsonl", *PAIR, status=0)


def test_a_measured_file_among_the_data_is_no_data(run, folder):
    data = folder / "data"
    data.mkdir()
    shutil.copy(folder / "rows.jsonl", data)
    run("score", data / "rows.jsonl", "-o", folder / "aside.jsonl", *PAIR, "--limit", 4)
    shutil.copy(folder / "aside.jsonl", data / "measured.jsonl")
    assert "40 of 40 rows" in (said := run("score", data, "-o", "whole.parquet", *PAIR)) and "measured.jsonl" in said


def test_misspelt_words_and_damaged_files_end_in_a_line(run, folder):
    said = run("sft", "--recipe", "tiny-cpu", "--dry_run", "true", "--gateau_frction", 0.2, status=2)
    assert "gateau_fraction" in said.splitlines()[-1] and len(said.splitlines()) < 5
    (folder / "bad.yaml").write_text("gatau:\n  fraction: 0.2\n")
    assert "gateau" in run("sft", "--recipe", "bad.yaml", "--dry_run", "true", status=2).splitlines()[-1]
    (folder / "broken.yaml").write_text("gateau: [1,\n  x: : y\n")
    assert "broken.yaml" in run("sft", "--recipe", "broken.yaml", "--dry_run", "true", status=2)
    assert "CUDA" in run("score", "rows.jsonl", "-o", "x.parquet", *PAIR[:-1], "cuda", status=2)
    with sqlite3.connect(folder / "newer.sqlite") as connection:
        connection.execute("PRAGMA user_version = 999")
    said = run("score", "rows.jsonl", "-o", "x.parquet", *PAIR, "--store", "newer.sqlite", status=2)
    assert "version 999" in said
