"""A process that is killed at any step of replacing an output: the old or the new is there, whole and with its own record."""

import json
import os
import shutil
from pathlib import Path

import pytest
from datasets import Dataset

from hf_gateau.files.reading import load_rows
from hf_gateau.files.sidecar import read_sidecar
from hf_gateau.files.writing import check_output, save_rows


OLD, NEW = Dataset.from_list([{"a": "old"}] * 3), Dataset.from_list([{"a": "new"}] * 5)
STEPS = [(os, "replace"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "fsync"), (shutil, "rmtree")]
STEPS += [(Path, "rename"), (Path, "write_text"), (Path, "unlink"), (Path, "mkdir")]


def killed_at(step: int, work) -> bool:
    """Does the work in a process that dies before its step of that number; whether it came so far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = [step]

    def dying(real):
        def call(*arguments, **options):
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
            return real(*arguments, **options)

        return call

    for place, name in STEPS:
        setattr(place, name, dying(getattr(place, name)))
    try:
        work()
    finally:
        os._exit(0)


def leftovers(folder: Path, output: str) -> set[str]:
    return {x.name for x in folder.iterdir()} - {output, f"{output}.gateau.json"}


@pytest.mark.parametrize("output", ["out", "out.jsonl", "out.parquet"])
def test_killed_at_every_step(output, tmp_path):
    seen, place = set(), str(tmp_path / output)
    for step in range(200):
        save_rows(OLD, place, {"origin": {"name": "old"}})
        was_killed = killed_at(step, lambda: save_rows(NEW, place, {"origin": {"name": "new"}}))
        found, record = load_rows(place).to_list(), read_sidecar(place)["origin"]["name"]
        assert found == {"old": OLD, "new": NEW}[record].to_list(), step
        seen.add(record)
        check_output(place)
        save_rows(NEW, place, {"origin": {"name": "again"}})
        assert load_rows(place).to_list() == NEW.to_list() and read_sidecar(place)["origin"]["name"] == "again"
        assert not leftovers(tmp_path, output), step
        if not was_killed:
            break
    assert not was_killed and step > 5 and seen == {"old", "new"}


def test_killed_while_what_was_interrupted_is_settled(tmp_path):
    """The start after a kill may be killed as well, at any of its own steps."""
    place = tmp_path / "out"
    save_rows(OLD, str(place), {"origin": {"name": "old"}})
    for step in range(200):
        state = tmp_path / "state"
        shutil.copytree(place, tmp_path / ".out.replaced")
        shutil.rmtree(place)
        save_rows(NEW, str(state), {"origin": {"name": "new"}})
        state.rename(tmp_path / "out.partial")
        was_killed = killed_at(step, lambda: load_rows(str(place)))
        assert load_rows(str(place)).to_list() == NEW.to_list() and leftovers(tmp_path, "out") <= {".out.writing"}
        if not was_killed:
            break
    assert not was_killed and step > 2


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
def test_an_error_in_the_middle_leaves_the_old(name, tmp_path, monkeypatch):
    place = str(tmp_path / name)
    save_rows(OLD, place, {"origin": {"name": "old"}})
    real = os.replace

    def failing(source, target):
        if Path(target) == Path(place) and "replaced" not in Path(source).name:
            raise OSError(28, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="No space left"):
        save_rows(NEW, place, {"origin": {"name": "new"}})
    monkeypatch.undo()
    assert load_rows(place).to_list() == OLD.to_list() and read_sidecar(place)["origin"]["name"] == "old"
    save_rows(NEW, place, {"origin": {"name": "new"}})
    assert not leftovers(tmp_path, name)


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "rows")
    (tmp_path / "disk" / "rows").mkdir()
    for ds in (OLD, NEW):
        check_output(str(tmp_path / "out"))
        save_rows(ds, str(tmp_path / "out"), {})
        assert load_rows(str(tmp_path / "out")).to_list() == ds.to_list()
    assert (tmp_path / "out").is_symlink() and not leftovers(tmp_path / "disk", "rows")


def test_a_record_under_way_is_that_of_its_own_file_alone(tmp_path):
    place = tmp_path / "out.jsonl"
    save_rows(OLD, str(place), {"origin": {"name": "old"}})
    stat = place.stat()
    (tmp_path / f".out.jsonl.{stat.st_size}-{stat.st_mtime_ns}.gateau.json").write_text('{"origin": {"name": "its"}}')
    assert read_sidecar(str(place)) == {"origin": {"name": "its"}}
    place.write_text('{"a": "mine"}\n')
    assert read_sidecar(str(place)) == {"origin": {"name": "old"}}
    assert json.loads(place.read_text()) == {"a": "mine"}
