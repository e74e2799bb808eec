"""No command writes over what it reads: every command that has an output, on every input that it has."""

from dataclasses import fields, is_dataclass

import pytest

from hf_gateau.cli import main
from hf_gateau.cli.commands import COMMANDS, command_of
from tests.measured import measured


# Command -> lines that would write over an input, or be read with it; IN: a file of measured rows, DIR: a folder of such.
CLASHES = {
    "score": [
        "{IN} -o {IN} --limit 3",
        "{DIR} -o {DIR}",
        "{DIR}/*.parquet -o {DIR}",
        "{DIR} -o {DIR}/out",
        "{OTHER} -o new --store new",
    ],
    "rank": ["{IN} -o {IN}", "{DIR} -o {DIR}/out.parquet", "{DIR}/part.parquet -o {DIR}"],
    "select": ["{IN} -o {IN}", "{DIR} -o {DIR}", "{HARD} -o {IN}", "{LINK} -o {IN}"],
    "report": [
        "{DIR} -o {DIR}/page.html",
        "{IN} -o page.html --figures {IN}",
        "{DIR} -o page.html --figures {DIR}/figures",
    ],
    "explore": ["{DIR} -o {DIR}/page", "{IN} --compare {DIR} -o {DIR}", "{IN} -o {IN}"],
    "compare": ["{DIR} {IN} -o {DIR}/both.json", "{IN} {DIR} -o {DIR}/both.json"],
    "build": ["{IN} -o {IN}", "{DIR} -o {DIR}/rows.parquet"],
    "eval": ["{DIR} --tasks needle -o {DIR}"],
    "characteristics": ["{DIR} -o {DIR} --dry_run", "{DIR} -o {DIR}/out --dry_run"],
    "human-sheet": ["--first a.html --second {IN} -o a.html", "--first a.key.json --second {IN} -o a.html"],
    "human-tally": ["--key key.json --votes {IN} -o {IN}"],
    "experiment": ["{GRID} -o {GRID}"],
}
NOTHING_LOCAL = {"quickstart", "pull"}  # which read no file that is named on the command line


def with_output() -> set[str]:
    """Commands that take an output."""
    kinds = {name: [x for x in command_of(name)[1] if is_dataclass(x)] for name in COMMANDS}
    return {name for name, found in kinds.items() if any(x.name == "output" for kind in found for x in fields(kind))}


@pytest.mark.quick
def test_every_command_with_an_output_is_here():
    assert with_output() == {*CLASHES, *NOTHING_LOCAL}


@pytest.fixture()
def named(tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    rows = measured(12)
    rows.to_json(tmp_path / "in.jsonl")
    (tmp_path / "dir").mkdir()
    rows.to_parquet(tmp_path / "dir" / "part.parquet")
    (tmp_path / "other.jsonl").write_text("{}\n")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "in.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "in.jsonl")
    for name in ("a.html", "a.key.json", "key.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "grid.yaml").write_text("data: in.jsonl\n")
    found = {"IN": "in.jsonl", "DIR": "dir", "OTHER": "other.jsonl", "LINK": "link.jsonl", "HARD": "hard.jsonl"}
    return found | {"GRID": "grid.yaml"}


@pytest.mark.quick
@pytest.mark.parametrize("command, line", [(name, line) for name, lines in CLASHES.items() for line in lines])
def test_refused_before_anything_is_written(command, line, named, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_GATEAU_STORE", "off")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([command, *line.format(**named).split()]) == 2
    error = capsys.readouterr().err
    assert "which is read here; name another place" in error or "is a file; give a folder" in error, error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["rank", "select", "score"])
def test_a_file_that_somebody_else_wrote_stays(command, named, tmp_path, capsys):
    """Outputs of ours have a record beside them, and are replaced."""
    mine = tmp_path / "mine.jsonl"
    mine.write_text("precious\n")
    more = ["--long_model", "quickstart:long"] if command == "score" else []
    assert main([command, "in.jsonl", "-o", "mine.jsonl", *more]) == 2
    assert "no record beside it says that hf-gateau wrote it" in capsys.readouterr().err
    assert mine.read_text() == "precious\n"
    if command == "rank":
        assert main(["rank", "in.jsonl", "-o", "ours.jsonl"]) == main(["rank", "in.jsonl", "-o", "ours.jsonl"]) == 0
